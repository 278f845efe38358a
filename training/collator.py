"""Rows to a batch of the model."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from mner_data.entity_boxes import check_entity_boxes
from processors import REGION_FIELDS, HamLearningProcessor, ImageError, load_reduced
from processors.region_extraction import Regions

from .vision_cache import VisionCache

logger = logging.getLogger(__name__)


# An unmounted disk loses one image after the other: so many unreadable ones among the latest end the run.
MAX_UNREADABLE, LATEST = 25, 50


class ImagesLostError(RuntimeError):
    """Most of the latest images could not be read: training on would make a model of the text alone."""


class MnerCollator:
    """Rows of a data set to a batch of the model: calls the processor and pads the labels to (B, W) with −100.

    An image that cannot be read is left out, logged with its post's id, and counted. Where half of the latest 50 cannot be
    read, `ImagesLostError` ends the run. With a `vision_cache` the batch has the images' features, (B, C, rows, columns), in
    place of their pixels.

    Where rows have `entity_boxes`, the batch has `region_overlaps` (B, E, K + 1): of each of a post's entities in order with each
    of its regions the best intersection over union, in the last column 1 for an entity that is not shown, −100 at padding and
    for entities that are not annotated.
    """

    def __init__(self, processor: HamLearningProcessor, vision_cache: VisionCache | None = None):
        self.processor = processor
        self.vision_cache = vision_cache
        # Images read and images that could not be read. Shared memory: the workers of a data loader count in it too.
        self.image_counts = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._latest: deque[bool] = deque(maxlen=LATEST)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        images, image_sizes, feature_maps = map(list, zip(*map(self._image, rows), strict=True))
        row_regions = {name: [row.get(name) for row in rows] for name in REGION_FIELDS}
        regions = self.processor.extract_regions(images, **row_regions, names=[f"post {row['id']}" for row in rows])
        for row in rows:
            if len(row["ner_tags"]) != len(row["tokens"]):
                raise ValueError(
                    f"post {row['id']}, field ner_tags: expected {len(row['tokens'])} labels, one for each word, "
                    f"got {len(row['ner_tags'])}"
                )
        batch = dict(
            self.processor.encode(
                [row["tokens"] for row in rows], regions, image_sizes, images=None if self.vision_cache else images
            )
        )
        if present := [feature_map for feature_map in feature_maps if feature_map is not None]:
            batch["vision_features"] = present[0].new_zeros(len(rows), *present[0].shape)
            batch["vision_features"][batch["has_image"]] = torch.stack(present)
        labels = np.full(batch["word_mask"].shape, -100, dtype=np.int64)
        labels[batch["word_mask"].numpy()] = np.concatenate([np.asarray(row["ner_tags"], int) for row in rows])
        batch["labels"] = torch.from_numpy(labels)
        if any("entity_boxes" in row for row in rows):
            # A batch without an image has no regions. What evaluation gathers has one form for all batches.
            num_regions = batch["region_mask"].shape[1] if "region_mask" in batch else 0
            batch["region_overlaps"] = _region_overlaps(rows, regions, num_regions)
        batch["ids"] = [row["id"] for row in rows]
        return batch

    def _image(self, row: dict[str, Any]) -> tuple[Any, tuple[int, int] | None, torch.Tensor | None]:
        """A post's image, its size and its features. Where the features are enough, the size stands for the image."""
        if row.get("image") is None:
            return None, None, None
        try:
            image = self._load(row)
        except ImageError as error:
            logger.warning("post %s is read without its image, which %s", row["id"], error)
            self._count(row, is_readable=False)
            return None, None, None
        self._count(row, is_readable=True)
        return image

    def _load(self, row: dict[str, Any]) -> tuple[Any, tuple[int, int] | None, torch.Tensor | None]:
        target_size = self.processor.target_size(row.get("boxes"))
        if self.vision_cache is None:
            image, size = load_reduced(row["image"], target_size)
            return image, size, None
        feature_map, size = self.vision_cache.get(row["image"])
        if self.processor.needs_image(row.get("boxes")):
            return load_reduced(row["image"], target_size)[0], size, feature_map
        return size, size, feature_map

    def _count(self, row: dict[str, Any], is_readable: bool):
        self.image_counts[int(not is_readable)] += 1
        self._latest.append(is_readable)
        lost = self._latest.count(False)
        if lost >= MAX_UNREADABLE:
            raise ImagesLostError(
                f"post {row['id']}, field image: {lost} of the latest {len(self._latest)} images cannot be read, "
                "so the run ends here; see that their folder is there, or set use_images to false"
            )


def _region_overlaps(rows: list[dict[str, Any]], regions: list[Regions], num_regions: int) -> torch.Tensor:
    """(B, E, K + 1), as in [`MnerCollator`].

    Raises:
        ValueError: naming a post and the entity whose boxes are wrong.
    """
    posts = [row.get("entity_boxes") or [] for row in rows]
    overlaps = torch.full((len(rows), max(map(len, posts)), num_regions + 1), -100.0)
    for place, (row, boxes, post_regions) in enumerate(zip(rows, posts, regions, strict=True)):
        region_boxes = torch.tensor(post_regions["boxes"]).reshape(-1, 4)
        for entity, entity_boxes in enumerate(check_entity_boxes(boxes, len(boxes), f"post {row['id']}") or []):
            if entity_boxes is None:
                continue
            overlaps[place, entity] = 0
            overlaps[place, entity, -1] = not entity_boxes
            if entity_boxes and len(region_boxes) and num_regions:
                best = box_iou(region_boxes, torch.tensor(entity_boxes)).amax(1)
                overlaps[place, entity, : len(region_boxes)] = best
    return overlaps
