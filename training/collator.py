"""Rows to a batch of the model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from processors import REGION_FIELDS, HamLearningProcessor, ImageError, load_reduced

from .vision_cache import VisionCache

logger = logging.getLogger(__name__)


class MnerCollator:
    """Calls the processor on rows and pads the labels to (B, W) with −100.

    An image that cannot be read is left out with a warning that names the post. With a `vision_cache` the batch has the
    pictures' features, (B, C, rows, columns), in place of their pixels.
    """

    def __init__(self, processor: HamLearningProcessor, with_labels: bool = True, vision_cache: VisionCache | None = None):
        self.processor = processor
        self.with_labels = with_labels
        self.vision_cache = vision_cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        fields = {name: [row.get(name) for row in rows] for name in REGION_FIELDS}
        images, image_sizes, feature_maps = zip(*map(self._image, rows), strict=True)
        regions = self.processor.extract_regions(images, **fields, names=[f"post {row['id']}" for row in rows])
        for row in rows if self.with_labels else []:
            if len(row["ner_tags"]) != len(row["tokens"]):
                raise ValueError(
                    f"post {row['id']}, field ner_tags: {len(row['ner_tags'])} labels for {len(row['tokens'])} words"
                )
        batch = dict(
            self.processor.encode(
                [row["tokens"] for row in rows], regions, image_sizes, images=None if self.vision_cache else images
            )
        )
        if present := [feature_map for feature_map in feature_maps if feature_map is not None]:
            batch["vision_features"] = present[0].new_zeros(len(rows), *present[0].shape)
            batch["vision_features"][batch["has_image"]] = torch.stack(present)
        if self.with_labels:
            labels = np.full(batch["word_mask"].shape, -100, dtype=np.int64)
            labels[batch["word_mask"].numpy()] = np.concatenate([np.asarray(row["ner_tags"], int) for row in rows])
            batch["labels"] = torch.from_numpy(labels)
        batch["ids"] = [row["id"] for row in rows]
        return batch

    def _image(self, row: dict[str, Any]) -> tuple[Any, tuple[int, int] | None, torch.Tensor | None]:
        """A post's picture, or what stands for it where only its features are needed; its size; its features."""
        if row.get("image") is None:
            return None, None, None
        try:
            if self.vision_cache is None:
                image, size = load_reduced(row["image"], self.processor.target_size)
                return image, size, None
            feature_map, size = self.vision_cache.get(row["image"])
            if self.processor.needs_image(row.get("boxes")):
                return load_reduced(row["image"], self.processor.target_size)[0], size, feature_map
            return size, size, feature_map
        except ImageError as error:
            logger.warning("post %s is read without its image, which %s", row["id"], error)
            return None, None, None
