"""Regions of an image: found by a detector, precomputed with the post, or boxes that are the same for every image.

An extractor is called with the images of posts, if there are any the regions that came with each post (`None` where none
did), and the device for a detector. One that does not read the regions (`reads_given`) is asked for the other posts only.
`image_side` is the least side, in pixels, of the images that it needs, 0 if it looks at none and `None` if it is not known.
"""

from __future__ import annotations

import inspect
import sys
from functools import cached_property
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch.utils.data import get_worker_info
from transformers import AutoImageProcessor, AutoModelForObjectDetection

REGION_FIELDS = ("boxes", "box_labels", "box_scores")
Regions = dict[str, list]
"""`boxes` [[x1, y1, x2, y2]] in [0, 1], `box_labels` [str], `box_scores` [float] of one image."""

Device: TypeAlias = str | torch.device

# More regions of an image than anybody needs: a config from a stranger may ask for any number.
MAX_REGIONS, DEFAULT_MAX_REGIONS = 1024, 16


def no_regions() -> Regions:
    """The regions of an image that has none."""
    return {field: [] for field in REGION_FIELDS}


class FixedRegionExtractor:
    """The same boxes, without labels, for every image. Base of the extractors that need no weights."""

    reads_images = reads_given = False
    image_side = 0

    def __init__(self, boxes: list[list[float]], score: float):
        self.regions: Regions = {"boxes": boxes, "box_labels": [""] * len(boxes), "box_scores": [score] * len(boxes)}

    def __call__(self, images: list, given: list[Regions | None] | None = None, device: Device | None = None) -> list[Regions]:
        return [{field: list(values) for field, values in self.regions.items()} for _ in images]


class GridRegionExtractor(FixedRegionExtractor):
    """`"grid"`: rows × columns equal cells that do not overlap.

    Real photos need larger boxes: for 5 % of the 1,848 boxed entities of real tweets (see `AnchorRegionExtractor`) any cell
    of the 2 × 2 grid reaches an IoU of 0.5.
    """

    def __init__(self, rows: int = 2, columns: int = 2):
        rows, columns = whole_number("rows", rows, 1), whole_number("columns", columns, 1)
        if rows * columns > MAX_REGIONS:
            raise ValueError(f"region_config: expected at most {MAX_REGIONS} cells in the grid, got {rows} x {columns}")
        super().__init__(
            [
                [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows]
                for row in range(rows)
                for column in range(columns)
            ],
            score=1.0,
        )


class AnchorRegionExtractor(FixedRegionExtractor):
    """`"anchors"`: 14 boxes of the sizes and places that people and things have in photos.

    The whole image, three columns of half its width, three bands of half its height, three columns of a third and four of a
    quarter of its width. For 75.9 % of the 1,848 boxed entities of 1,318 real tweets (`entity_boxes.jsonl` of the phototweets
    set) any of them has an IoU of at least 0.5 with one of the entity's boxes; the whole image alone has 51.0 %. They score
    0, because nobody saw anything there: beside a detector's regions they come last.
    """

    # Width and height of the boxes, and how many of them lie side by side and one above the other, edge to edge.
    LAYERS = ((1, 1, 1, 1), (1 / 2, 3 / 4, 3, 1), (4 / 5, 1 / 2, 1, 3), (1 / 3, 3 / 4, 3, 1), (1 / 4, 1 / 2, 4, 1))

    def __init__(self):
        boxes = []
        for width, height, across, down in self.LAYERS:
            for y1 in _starts(height, down):
                boxes += [[x1, y1, x1 + width, y1 + height] for x1 in _starts(width, across)]
        super().__init__([[round(side, 6) for side in box] for box in boxes], score=0.0)


def _starts(length: float, count: int) -> list[float]:
    """Where `count` equal pieces of [0, 1] begin, the first at 0 and the last up to 1; a single one lies in the middle."""
    space = 1 - length
    return [space / 2] if count == 1 else [space * place / (count - 1) for place in range(count)]


class PrecomputedRegionExtractor:
    """`"precomputed"`: what comes with the post."""

    reads_images, reads_given = False, True
    image_side = 0

    def __call__(self, images: list, given: list[Regions | None] | None = None, device: Device | None = None) -> list[Regions]:
        return [no_regions() if regions is None else regions for regions in given or [None] * len(images)]


class ObjectDetectionRegionExtractor:
    """`"object-detection"`: any `AutoModelForObjectDetection` checkpoint, loaded when first needed.

    Images are never padded to a common canvas: a detector that takes no mask (YOLOS) gives its boxes as fractions of the
    canvas, and every detector's boxes would depend a little on the images beside. Images that the detector's processor
    resizes to equal sizes share a batch.

    Args:
        model: Hub name or folder. Only safetensors are loaded, and no code of the checkpoint is run.
        revision: commit, tag or branch of the checkpoint.
        threshold: least score of a region.
        batch_size: the most images that are detected at once.
        device: where the detector runs; by default where the caller says, else on the first GPU if there is one, but on the CPU
            in a worker of a `DataLoader`.
    """

    reads_images, reads_given = True, False

    def __init__(
        self,
        model: str,
        revision: str = "main",
        threshold: float = 0.5,
        batch_size: int = 8,
        device: str | None = None,
    ):
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise ValueError(f"region_config: expected a number as threshold, got {threshold!r:.80}")
        self.model_name, self.revision, self.threshold = model, revision, threshold
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.device = device
        self._detectors: dict[str, torch.nn.Module] = {}
        self._options = {"revision": revision, "trust_remote_code": False}

    @cached_property
    def _processor(self):
        return AutoImageProcessor.from_pretrained(self.model_name, **self._options)

    def _detector(self, device: Device):
        """The detector on a device. Pipelines that share a processor may run on different ones."""
        if str(device) not in self._detectors:
            model = AutoModelForObjectDetection.from_pretrained(self.model_name, use_safetensors=True, **self._options)
            self._detectors[str(device)] = model.to(device).eval()
        return self._detectors[str(device)]

    @property
    def image_side(self) -> int | None:
        """Pixels of the shorter side that the detector resizes an image to; `None` where it takes images as large as they are."""
        if not getattr(self._processor, "do_resize", False):
            return None
        size = self._processor.size
        return size.get("shortest_edge") or max(size.get("height") or 0, size.get("width") or 0) or None

    @torch.no_grad()
    def __call__(
        self, images: list[Image.Image], given: list[Regions | None] | None = None, device: Device | None = None
    ) -> list[Regions]:
        if not images:
            return []
        # A worker of a DataLoader is forked, and CUDA cannot be used in a forked process.
        may_use_gpu = get_worker_info() is None and torch.cuda.is_available()
        device = self.device or device or ("cuda" if may_use_gpu else "cpu")
        processor, model = self._processor, self._detector(device)
        unpadded = {"do_pad": False} if hasattr(processor, "do_pad") else {}
        regions = [no_regions() for _ in images]
        for first in range(0, len(images), self.batch_size):
            pixels_by_shape: dict[torch.Size, dict[int, torch.Tensor]] = {}
            for place, image in enumerate(images[first : first + self.batch_size], start=first):
                pixels = processor(images=[image], return_tensors="pt", **unpadded)["pixel_values"]
                pixels_by_shape.setdefault(pixels.shape, {})[place] = pixels
            for batch in pixels_by_shape.values():
                outputs = model(pixel_values=torch.cat(list(batch.values())).to(device))
                # Boxes in [0, 1]: every image counts as one pixel wide and high.
                detections = processor.post_process_object_detection(
                    outputs, threshold=self.threshold, target_sizes=[(1, 1)] * len(batch)
                )
                for place, detection in zip(batch, detections, strict=True):
                    regions[place] = {
                        "boxes": detection["boxes"].clamp(0, 1).tolist(),
                        "box_labels": [model.config.id2label[index] for index in detection["labels"].tolist()],
                        "box_scores": detection["scores"].tolist(),
                    }
        return regions


class JoinedRegionExtractor:
    """`"joined"`: the regions of several extractors, equal boxes merged.

    Of equal boxes the one of best score stays. Boxes that are the same for every image score 0, so that a bound on the number
    of regions keeps them last. With `"precomputed"` in the list, the regions that come with a post are joined with the others';
    without it they are the post's only ones.

    Args:
        extractors: a `region_config` each; its `max_regions` bounds what that extractor adds.
    """

    def __init__(self, extractors: list):
        if not isinstance(extractors, list | tuple) or not extractors:
            raise ValueError(f"region_config: expected a list of extractors to join, got {extractors!r:.80}")
        configs = [complete_region_config(config) for config in extractors]
        self.max_regions = [config.pop("max_regions") for config in configs]
        self.extractors = [build_region_extractor(**config) for config in configs]
        self.reads_images = any(extractor.reads_images for extractor in self.extractors)
        self.reads_given = any(extractor.reads_given for extractor in self.extractors)

    @property
    def image_side(self) -> int | None:
        sides = [extractor.image_side for extractor in self.extractors]
        return None if None in sides else max(sides)

    def __call__(self, images: list, given: list[Regions | None] | None = None, device: Device | None = None) -> list[Regions]:
        parts = []
        for extractor, max_regions in zip(self.extractors, self.max_regions, strict=True):
            part = [keep_best(regions, max_regions) for regions in extractor(images, given, device)]
            if isinstance(extractor, FixedRegionExtractor):
                part = [regions | {"box_scores": [0.0] * len(regions["boxes"])} for regions in part]
            parts.append(part)
        return [_join(image_parts) for image_parts in zip(*parts, strict=True)]


def _join(parts: tuple[Regions, ...]) -> Regions:
    """One image's regions in order, of equal boxes only the one of best score (the first of equal scores)."""
    joined: dict[tuple, tuple] = {}
    for part in parts:
        for box, label, score in zip(*(part[field] for field in REGION_FIELDS), strict=True):
            key = tuple(round(side, 4) for side in box)
            if key not in joined or score > joined[key][2]:
                joined[key] = (box, label, score)
    return {field: [region[place] for region in joined.values()] for place, field in enumerate(REGION_FIELDS)}


REGION_EXTRACTORS = {
    "anchors": AnchorRegionExtractor,
    "grid": GridRegionExtractor,
    "precomputed": PrecomputedRegionExtractor,
    "object-detection": ObjectDetectionRegionExtractor,
    "joined": JoinedRegionExtractor,
}


def whole_number(field: str, value: Any, least: int, most: int | None = None) -> int:
    """The value, if it is a whole number in this range.

    Raises:
        ValueError: naming the field of `region_config`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"≥ {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"region_config: expected a whole number {bounds} as {field}, got {value!r:.80}")
    return value


def complete_region_config(config: dict | list | str | None) -> dict[str, Any]:
    """A region config as it is saved: `{"name": …, "max_regions": …, and the extractor's options}`.

    Args:
        config: such a dict, in which `name` and `max_regions` may be missing; an extractor's name alone; a list of those,
            whose regions are joined; or `None` for the default, the 14 anchors.

    Raises:
        ValueError: saying what is wrong in it.
    """
    if isinstance(config, str):
        config = {"name": config}
    elif isinstance(config, list | tuple):
        config = {"name": "joined", "extractors": list(config)}
    elif config is not None and not isinstance(config, dict):
        raise ValueError(f"region_config: expected a dict, a name or a list of those, got {config!r:.80}")
    complete = {"name": "anchors", "max_regions": DEFAULT_MAX_REGIONS} | (config or {})
    whole_number("max_regions", complete["max_regions"], 0, MAX_REGIONS)
    return complete


def build_region_extractor(name: str, **options):
    """The extractor of that name with its options; `max_regions` is not one of them.

    Raises:
        ValueError: an unknown name or option, or an option's value that cannot be.
    """
    if not isinstance(name, str) or name not in REGION_EXTRACTORS:
        raise ValueError(f'region_config: unknown extractor "{name}", known are {sorted(REGION_EXTRACTORS)}')
    parameters = inspect.signature(REGION_EXTRACTORS[name]).parameters
    if unknown := sorted(set(options) - set(parameters)):
        raise ValueError(f'region_config: unknown options {unknown} of "{name}", known are {sorted(parameters)}')
    required = {field for field, parameter in parameters.items() if parameter.default is parameter.empty}
    if missing := sorted(required - set(options)):
        raise ValueError(f'region_config: "{name}" needs {", ".join(missing)}')
    return REGION_EXTRACTORS[name](**options)


def check_regions(boxes: Any, box_labels: Any, box_scores: Any, where: str) -> Regions:
    """Regions that came with a post, checked and clipped to the image. `where` names the post in errors.

    Raises:
        ValueError: naming post, field and box.
    """
    fields = dict(zip(REGION_FIELDS, (boxes, box_labels, box_scores), strict=True))
    for field, values in fields.items():
        fields[field] = values = values.tolist() if hasattr(values, "tolist") else values
        if values is not None and not isinstance(values, list | tuple):
            raise ValueError(f"{where}, field {field}: expected a list, got {values!r:.80}")
    boxes, box_labels, box_scores = fields.values()
    if boxes is None:
        raise ValueError(f"{where}, field boxes: expected a list, got None")
    boxes = [box.tolist() if hasattr(box, "tolist") else list(box) if isinstance(box, tuple) else box for box in boxes]
    box_labels = [""] * len(boxes) if box_labels is None else ["" if label is None else label for label in box_labels]
    box_scores = [1.0] * len(boxes) if box_scores is None else list(box_scores)
    for field, values in (("box_labels", box_labels), ("box_scores", box_scores)):
        if len(values) != len(boxes):
            raise ValueError(f"{where}, field {field}: expected one value a box, got {len(values)} values for {len(boxes)} boxes")
    checked_boxes = [_check_box(box, f"{where}, field boxes, box {index}") for index, box in enumerate(boxes)]
    for index, label in enumerate(box_labels):
        if not isinstance(label, str):
            raise ValueError(f"{where}, field box_labels, box {index}: expected a string, got {label!r:.80}")
    for index, score in enumerate(box_scores):
        if not isinstance(score, int | float) or not -1e30 < score < 1e30:
            raise ValueError(f"{where}, field box_scores, box {index}: expected a finite number, got {score!r:.80}")
    return {"boxes": checked_boxes, "box_labels": box_labels, "box_scores": [float(score) for score in box_scores]}


def _check_box(box: Any, where: str) -> list[float]:
    """A box of four numbers, clipped to the image."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise ValueError(f"{where}: expected four numbers x1, y1, x2, y2, got {box!r:.80}")
    if not all(abs(side) <= sys.float_info.max for side in box):  # false for nan; Python's whole numbers have no bound
        raise ValueError(f"{where}: expected finite numbers, got {str(box):.80}, where one is not finite")
    x1, y1, x2, y2 = (float(side) for side in box)
    if x1 > x2 or y1 > y2:
        raise ValueError(f"{where}: expected x1 ≤ x2 and y1 ≤ y2, got the reversed {box}")
    if max(abs(side) for side in (x1, y1, x2, y2)) > 2:
        raise ValueError(f"{where}: expected fractions of the image in [0, 1], got {box}, which looks like pixels")
    return [min(max(side, 0.0), 1.0) for side in (x1, y1, x2, y2)]


def keep_best(regions: Regions, max_regions: int) -> Regions:
    """The `max_regions` of highest score, in the order they came."""
    ranked = sorted(range(len(regions["boxes"])), key=lambda index: -regions["box_scores"][index])
    best = sorted(ranked[:max_regions])
    return {field: [values[index] for index in best] for field, values in regions.items()}
