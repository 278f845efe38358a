"""Regions of a picture: found by a detector, given with the post, or a plain grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

Regions = dict[str, list]
"""`boxes` [[x1, y1, x2, y2]] in [0, 1], `box_labels` [str], `box_scores` [float]: of one picture."""


def no_regions() -> Regions:
    return {"boxes": [], "box_labels": [], "box_scores": []}


class GridRegionExtractor:
    """`"grid"`: rows × columns equal cells without a label. Needs no weights."""

    reads_pictures = False

    def __init__(self, rows: int = 2, columns: int = 2):
        self.regions = {
            "boxes": [
                [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows]
                for row in range(rows)
                for column in range(columns)
            ],
            "box_labels": [""] * (rows * columns),
            "box_scores": [1.0] * (rows * columns),
        }

    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        return [{name: list(value) for name, value in self.regions.items()} for _ in images]


class PrecomputedRegionExtractor:
    """`"precomputed"`: only what comes with the post."""

    reads_pictures = False

    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        return [no_regions() for _ in images]


class ObjectDetectionRegionExtractor:
    """`"object-detection"`: any `AutoModelForObjectDetection` checkpoint, loaded when first needed.

    Args:
        model: Hub name or folder. Safetensors only, and no code of its own is run.
        revision: commit, tag or branch of the checkpoint.
        threshold: least score of a region.
        batch_size: pictures detected at once.
        device: where the detector runs.
    """

    reads_pictures = True

    def __init__(
        self,
        model: str,
        revision: str = "main",
        threshold: float = 0.5,
        batch_size: int = 8,
        device: str | None = None,
    ):
        self.model_name, self.revision = model, revision
        self.threshold, self.batch_size = threshold, batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._detector = None

    def _load(self):
        if self._detector is None:
            options = {"revision": self.revision, "trust_remote_code": False}
            processor = AutoImageProcessor.from_pretrained(self.model_name, **options)
            model = AutoModelForObjectDetection.from_pretrained(self.model_name, use_safetensors=True, **options)
            self._detector = processor, model.to(self.device).eval()
        return self._detector

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        if not images:
            return []
        processor, model = self._load()
        found = []
        for first in range(0, len(images), self.batch_size):
            batch = images[first : first + self.batch_size]
            outputs = model(**processor(images=batch, return_tensors="pt").to(self.device))
            # Boxes in [0, 1]: every picture counts as one pixel wide and high.
            detected = processor.post_process_object_detection(
                outputs, threshold=self.threshold, target_sizes=[(1, 1)] * len(batch)
            )
            for regions in detected:
                found.append(
                    {
                        "boxes": regions["boxes"].clamp(0, 1).tolist(),
                        "box_labels": [model.config.id2label[index] for index in regions["labels"].tolist()],
                        "box_scores": regions["scores"].tolist(),
                    }
                )
        return found


REGION_EXTRACTORS = {
    "grid": GridRegionExtractor,
    "precomputed": PrecomputedRegionExtractor,
    "object-detection": ObjectDetectionRegionExtractor,
}


def build_region_extractor(name: str, **options):
    """The extractor of that name; raises `ValueError` for an unknown one."""
    if name not in REGION_EXTRACTORS:
        raise ValueError(f'region_config: unknown extractor "{name}", known are {sorted(REGION_EXTRACTORS)}')
    return REGION_EXTRACTORS[name](**options)


def check_regions(boxes: Any, box_labels: Any, box_scores: Any, where: str) -> Regions:
    """Regions given with a post, checked and clipped to the picture. `where` names the post in errors."""
    given = {"boxes": boxes, "box_labels": box_labels, "box_scores": box_scores}
    for field, values in given.items():
        given[field] = values = values.tolist() if hasattr(values, "tolist") else values
        if values is not None and not isinstance(values, list | tuple):
            raise ValueError(f"{where}, field {field}: a list is wanted, not {values!r:.80}")
    boxes, box_labels, box_scores = given.values()
    if boxes is None:
        raise ValueError(f"{where}, field boxes: a list is wanted, not None")
    boxes = [box.tolist() if hasattr(box, "tolist") else list(box) if isinstance(box, tuple) else box for box in boxes]
    box_labels = [""] * len(boxes) if box_labels is None else ["" if label is None else label for label in box_labels]
    box_scores = [1.0] * len(boxes) if box_scores is None else list(box_scores)
    for field, values in (("box_labels", box_labels), ("box_scores", box_scores)):
        if len(values) != len(boxes):
            raise ValueError(f"{where}, field {field}: {len(values)} values for {len(boxes)} boxes")
    checked = []
    for index, box in enumerate(boxes):
        field = f"{where}, field boxes, box {index}"
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
            raise ValueError(f"{field}: four numbers x1, y1, x2, y2 are wanted, not {box!r:.80}")
        try:
            x1, y1, x2, y2 = (float(side) for side in box)
        except OverflowError as error:
            raise ValueError(f"{field}: {str(box):.80} has a number without bound") from error
        if not all(math.isfinite(side) for side in (x1, y1, x2, y2)):
            raise ValueError(f"{field}: {box} has a value that is not finite")
        if x1 > x2 or y1 > y2:
            raise ValueError(f"{field}: {box} is reversed; x1 ≤ x2 and y1 ≤ y2 are wanted")
        if max(abs(side) for side in (x1, y1, x2, y2)) > 2:
            raise ValueError(f"{field}: {box} looks like pixels; fractions of the picture in [0, 1] are wanted")
        checked.append([min(max(side, 0.0), 1.0) for side in (x1, y1, x2, y2)])
    for index, label in enumerate(box_labels):
        if not isinstance(label, str):
            raise ValueError(f"{where}, field box_labels, box {index}: a string is wanted, not {label!r:.80}")
    for index, score in enumerate(box_scores):
        if not isinstance(score, int | float) or not -1e30 < score < 1e30:
            raise ValueError(f"{where}, field box_scores, box {index}: a finite number is wanted, not {score!r:.80}")
    return {"boxes": checked, "box_labels": list(box_labels), "box_scores": [float(score) for score in box_scores]}


def keep_best(regions: Regions, max_regions: int) -> Regions:
    """The `max_regions` of highest score, in the order they came."""
    ranked = sorted(range(len(regions["boxes"])), key=lambda index: -regions["box_scores"][index])
    kept = sorted(ranked[:max_regions])
    return {name: [values[index] for index in kept] for name, values in regions.items()}
