"""What the controlled experiments measure besides F1: relevance, grounding, calibration."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from scipy.stats import binom
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import roc_auc_score
from torchvision.ops import box_iou

from mner_data.loading import dataset_labels, row_to_post
from modeling_hamlearning import LEVELS, HamLearningForTokenClassification, MnerPipeline
from modeling_hamlearning.grounding import MIN_IOU
from processors import REGION_FIELDS, HamLearningProcessor
from training.collator import MnerCollator
from training.errors import Counts, count_entities, gold_entities, predicted_entities
from training.metric import MnerMetric

BATCH_SIZE, BINS = 32, 15
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def relevance_auc(
    model: HamLearningForTokenClassification, collator: MnerCollator, own: Dataset, swapped: Dataset
) -> dict[str, float]:
    """How well relevance distinguishes a post's own image from another post's: the area under the ROC curve.

    Args:
        own: posts with their own images.
        swapped: posts with other posts' images.

    Returns:
        the area for the `mean` of the levels and for each level: 1 if relevance is always right, 0.5 if it is a guess.
    """
    own_relevance, swapped_relevance = (_relevance(model, collator, rows) for rows in (own, swapped))
    is_own = np.repeat([1, 0], [len(own_relevance), len(swapped_relevance)])
    levels = model.config.levels
    relevance = np.concatenate([own_relevance, swapped_relevance])[:, [LEVELS.index(level) for level in levels]]
    areas = {level: float(roc_auc_score(is_own, column)) for level, column in zip(levels, relevance.T, strict=True)}
    return {"mean": float(roc_auc_score(is_own, relevance.mean(1)))} | areas


@torch.no_grad()
def _relevance(model: HamLearningForTokenClassification, collator: MnerCollator, rows: Dataset) -> np.ndarray:
    """Relevance of every post at every level (posts, levels)."""
    model.eval()
    return np.concatenate([model(**batch).relevance.numpy() for _, batch in _batches(collator, rows)])


def _batches(collator: MnerCollator, rows: Dataset) -> Iterator[tuple[list[list[int]], dict[str, Any]]]:
    """Rows in batches: their labels, and the model's inputs."""
    for columns in rows.iter(BATCH_SIZE):
        batch = collator([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
        batch.pop("ids")
        yield columns["ner_tags"], batch


@torch.no_grad()
def post_counts(model: HamLearningForTokenClassification, collator: MnerCollator, rows: Dataset) -> list[list[int]]:
    """The [`Counts`] of every post (posts, 3)."""
    model.eval()
    labels, counts = dataset_labels(rows), []
    for all_tags, batch in _batches(collator, rows):
        paths = model.decode(model(**batch), batch["word_mask"])
        for tags, path in zip(all_tags, paths, strict=True):
            gold, predicted = (get_entities([labels[tag] for tag in post_tags]) for post_tags in (tags, path))
            counts.append(list(count_entities(gold, predicted)))
    return counts


def f1_by_group(counts: list[list[int]], groups: list[int]) -> dict[str, float]:
    """Micro F1 of each group of posts, from the counts of `post_counts`."""
    in_group = {group: np.array(groups) == group for group in sorted(set(groups))}
    return {str(group): float(Counts(*np.array(counts)[mask].sum(0)).f1) for group, mask in in_group.items()}


def grounding(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset, columns: dict[str, str]
) -> dict[str, float]:
    """The share of entities that report the region which a column of the data set names (IoU of 0.5 or more).

    Entities for which the column names no region are left out. An entity that the model does not find counts as wrong.

    Args:
        columns: name of the share → column: `deciding_region` or `leading_region`.
    """
    hits: dict[str, list[bool]] = {name: [] for name in columns}
    labels = dataset_labels(rows)
    for row, entities in zip(rows, _tag(model, processor, rows), strict=True):
        width, height = image_size(row["image"])
        regions = {entity["word_start"]: entity["region"] for entity in entities}
        for name, column in columns.items():
            for entity, index in zip(gold_entities(row, labels), row[column], strict=True):
                if index >= 0:
                    region = regions.get(entity.start)
                    box = [side * size for side, size in zip(row["boxes"][index], (width, height) * 2, strict=True)]
                    hits[name].append(region is not None and _iou(box, list(region["box"].values())) >= MIN_IOU)
    return {name: float(np.mean(column_hits)) for name, column_hits in hits.items()}


def grounding_of_rules(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset
) -> dict[str, Any]:
    """The grounding scores of the model's entities with its own regions, and with regions by rules that look at no image.

    Returns:
        `region_recall`: the share of the shown entities that any of their post's regions shows (IoU of 0.5 or more). By name of
        the rule the [`grounding_scores`], and how many of the entities with the right span are right of those that are
        `shown` and of those `not_shown`; `None` where there are none.
    """
    labels = dataset_labels(rows)
    predictions: list[list[str]] = []
    hits: list[bool] = []
    regions: dict[str, list[list]] = {rule: [] for rule in ("model", "whole image", "never shown", "person")}
    for row, entities in zip(rows, _tag(model, processor, rows), strict=True):
        size = image_size(row["image"]) if row["image"] else None
        predictions.append(MnerPipeline.to_bio(entities, len(row["tokens"])))
        whole = [0.0, 0.0, 1.0, 1.0] if size else None
        people = [box for box, label in zip(row["boxes"] or [], row["box_labels"] or [], strict=True) if label == "person"]
        largest = max(people, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=whole)
        regions["model"].append([_in_fractions(entity["region"], size) for entity in entities])
        regions["whole image"].append([whole for _ in entities])
        regions["never shown"].append([None for _ in entities])
        regions["person"].append([largest if entity["entity_group"] == "PER" else whole for entity in entities])
        given = {name: [row.get(name)] for name in REGION_FIELDS}
        proposed = processor.extract_regions([size], **given)[0]["boxes"]
        hits += [bool(proposed) and _best_iou(proposed, boxes) >= MIN_IOU for boxes in row["entity_boxes"] or [] if boxes]
    references = [[labels[tag] for tag in tags] for tags in rows["ner_tags"]]
    scores: dict[str, Any] = {"region_recall": float(np.mean(hits)) if hits else None}
    for rule, rule_regions in regions.items():
        scores[rule] = {
            name: value
            for name, value in _grounding(references, predictions, rows["entity_boxes"], rule_regions).items()
            if name.startswith(("gmner", "eeg", "grounding"))
        }
        for name, is_wanted in (("shown", bool), ("not_shown", lambda boxes: boxes == [])):
            only = [boxes and [item if is_wanted(item) else None for item in boxes] for boxes in rows["entity_boxes"]]
            counted = _grounding(references, predictions, only, rule_regions)
            scores[rule][name] = counted["grounding_accuracy"] if counted["grounding_accuracy_total"] else None
    return scores


def _grounding(references: list, predictions: list, entity_boxes: list, regions: list) -> dict[str, Any]:
    return MnerMetric().compute(predictions=predictions, references=references, entity_boxes=entity_boxes, regions=regions)


def _in_fractions(region: dict | None, size: tuple[int, int] | None) -> list[float] | None:
    if region is None or size is None:
        return None
    return [side / length for side, length in zip(region["box"].values(), size * 2, strict=True)]


def image_size(image: dict) -> tuple[int, int]:
    """Width and height of a row's image."""
    with Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])) as opened:
        return opened.size


def _best_iou(boxes: list[list[float]], others: list[list[float]]) -> float:
    return box_iou(torch.tensor(boxes), torch.tensor(others)).max().item()


def _iou(box: list[float], other: list[float]) -> float:
    return box_iou(torch.tensor([box]), torch.tensor([other])).item()


def scores_of_entities(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset
) -> dict[str, Any]:
    """How far the entities' scores can be trusted.

    Returns:
        `calibration`: [`expected_calibration_error`] of the entities that are reported. `f1_by_min_score`: F1 as default
        seqeval counts it, for each of several values of `min_entity_score`.
    """
    scores, correct, num_gold = [], [], 0
    labels = dataset_labels(rows)
    min_score, model.config.min_entity_score = model.config.min_entity_score, 0.0
    for row, entities in zip(rows, _tag(model, processor, rows), strict=True):
        gold = set(gold_entities(row, labels))
        num_gold += len(gold)
        scores += [entity["score"] for entity in entities]
        correct += [entity in gold for entity in predicted_entities(entities)]
    model.config.min_entity_score = min_score
    scores, correct = np.array(scores), np.array(correct, dtype=bool)
    reported = scores >= min_score
    return {
        "calibration": expected_calibration_error(scores[reported], correct[reported]),
        "f1_by_min_score": {str(threshold): _f1(correct[scores >= threshold], num_gold) for threshold in THRESHOLDS},
    }


def _f1(correct: np.ndarray, num_gold: int) -> float:
    """F1 from whether each predicted entity is correct, and the number of gold entities."""
    return 2 * float(correct.sum()) / max(1, len(correct) + num_gold)


def expected_calibration_error(scores: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """The mean distance between score and share of correct entities, over bins of equal width, weighted by their counts.

    Returns:
        `ece`, and `bins` with each bin's mean `score`, its share that is `right` and its `count`.
    """
    bin_indices = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        {
            "score": float(scores[bin_indices == index].mean()),
            "right": float(correct[bin_indices == index].mean()),
            "count": int((bin_indices == index).sum()),
        }
        for index in range(BINS)
        if (bin_indices == index).any()
    ]
    error = sum(abs(bin["score"] - bin["right"]) * bin["count"] for bin in bins) / max(1, len(scores))
    return {"ece": error, "bins": bins}


def calibration_error_by_chance(bins: list[dict[str, Any]]) -> float:
    """The mean `expected_calibration_error` if every score were exact.

    It is above 0 because few entities are seldom right at exactly the rate that their scores say. The entities of a bin
    are treated as if all had the bin's mean score.
    """
    error = 0.0
    for bin in bins:
        num_right = np.arange(bin["count"] + 1)
        probability = binom.pmf(num_right, bin["count"], bin["score"])
        error += float((probability * abs(num_right - bin["count"] * bin["score"])).sum())
    return error / max(1, sum(bin["count"] for bin in bins))


def _tag(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset
) -> Iterator[list[dict[str, Any]]]:
    ner = MnerPipeline(model=model.eval(), processor=processor)
    yield from ner((row_to_post(row) for row in rows), batch_size=BATCH_SIZE)
