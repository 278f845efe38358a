"""Rows to a batch of the model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from processors import HamLearningProcessor, ImageError

logger = logging.getLogger(__name__)


class MnerCollator:
    """Calls the processor on rows and pads the labels to (B, W) with −100.

    An image that cannot be read is left out with a warning that names the post.
    """

    def __init__(self, processor: HamLearningProcessor, with_labels: bool = True):
        self.processor = processor
        self.with_labels = with_labels

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        given = {name: [row.get(name) for row in rows] for name in ("boxes", "box_labels", "box_scores")}
        images = [self._image(row) for row in rows]
        regions = self.processor.extract_regions(images, **given, names=[f"post {row['id']}" for row in rows])
        for row in rows if self.with_labels else []:
            if len(row["ner_tags"]) != len(row["tokens"]):
                raise ValueError(
                    f"post {row['id']}, field ner_tags: {len(row['ner_tags'])} labels for {len(row['tokens'])} words"
                )
        batch = dict(
            self.processor(
                text=[row["tokens"] for row in rows],
                images=images,
                **{name: [of_post[name] for of_post in regions] for name in given},
                is_split_into_words=True,
            )
        )
        if self.with_labels:
            labels = np.full(batch["word_mask"].shape, -100, dtype=np.int64)
            labels[batch["word_mask"].numpy()] = np.concatenate([np.asarray(row["ner_tags"], int) for row in rows])
            batch["labels"] = torch.from_numpy(labels)
        batch["ids"] = [row["id"] for row in rows]
        return batch

    def _image(self, row: dict[str, Any]):
        if row.get("image") is None:
            return None
        try:
            return self.processor.load_image(row["image"])
        except ImageError as error:
            logger.warning("post %s is read without its image, which %s", row["id"], error)
            return None
