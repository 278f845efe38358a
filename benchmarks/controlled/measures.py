"""What the controlled experiments measures beside F1: relevance, grounding, calibration."""

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
from processors import HamLearningProcessor
from training.collator import MnerCollator

BATCH_SIZE, BINS, MIN_IOU = 32, 15, 0.5
LEAST_SCORES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def relevance_auc(
    model: HamLearningForTokenClassification, collator: MnerCollator, own: Dataset, swapped: Dataset
) -> dict[str, float]:
    """How well relevance tells a post's own picture from another post's: area under the ROC curve.

    Of each level, and of their mean, the figure that counts: 1 tells them apart every time, 0.5 is a guess.
    """
    shown = [_relevance(model, collator, rows) for rows in (own, swapped)]
    truth = np.repeat([1, 0], [len(values) for values in shown])
    values = np.concatenate(shown)[:, [LEVELS.index(level) for level in model.config.levels]]
    of_level = {level: float(roc_auc_score(truth, column)) for level, column in zip(model.config.levels, values.T, strict=True)}
    return {"mean": float(roc_auc_score(truth, values.mean(1)))} | of_level


@torch.no_grad()
def _relevance(model: HamLearningForTokenClassification, collator: MnerCollator, rows: Dataset) -> np.ndarray:
    """(posts, levels)."""
    model.eval()
    found = []
    for batch in rows.iter(BATCH_SIZE):
        given = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        inputs = collator(given)
        inputs.pop("ids")
        found.append(model(**inputs).relevance.numpy())
    return np.concatenate(found)


def grounding(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset, columns: dict[str, str]
) -> dict[str, float]:
    """Share of the entities for which a column names a region whose reported region is that one (IoU of 0.5 or more).

    An entity that is not found counts as wrong.

    Args:
        columns: what the share is called → the column: `deciding_region` or `leading_region`.
    """
    right: dict[str, list[bool]] = {name: [] for name in columns}
    names = dataset_labels(rows)
    for row, entities in zip(rows, _tagged(model, processor, rows), strict=True):
        width, height = Image.open(io.BytesIO(row["image"]["bytes"])).size
        found = {entity["start"]: entity["region"] for entity in entities}
        starts = _starts(row["tokens"])
        gold = gold_entities(row, names)
        for name, column in columns.items():
            for (_, first, _), wanted in zip(gold, row[column], strict=True):
                if wanted >= 0:
                    region = found.get(starts[first])
                    box = [part * size for part, size in zip(row["boxes"][wanted], (width, height) * 2, strict=True)]
                    right[name].append(region is not None and _iou(box, list(region["box"].values())) >= MIN_IOU)
    return {name: float(np.mean(of_column)) for name, of_column in right.items()}


def _iou(box: list[float], other: list[float]) -> float:
    return box_iou(torch.tensor([box]), torch.tensor([other])).item()


def scores_of_entities(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset
) -> dict[str, Any]:
    """How far the entities' scores are to be trusted: the calibration of those that are reported, and F1 as default seqeval
    counts it by the least score (`min_entity_score`) that an entity of the best path is reported with."""
    found, right, total = [], [], 0
    names = dataset_labels(rows)
    least, model.config.min_entity_score = model.config.min_entity_score, 0.0
    for row, entities in zip(rows, _tagged(model, processor, rows), strict=True):
        starts = _starts(row["tokens"])
        ends = [start + len(word) for start, word in zip(starts, row["tokens"], strict=True)]
        gold = {(kind, starts[first], ends[last]) for kind, first, last in gold_entities(row, names)}
        total += len(gold)
        for entity in entities:
            found.append(entity["score"])
            right.append((entity["entity_group"], entity["start"], entity["end"]) in gold)
    model.config.min_entity_score = least
    scores, correct = np.array(found), np.array(right, dtype=bool)
    reported = scores >= least
    return {
        "calibration": expected_calibration_error(scores[reported], correct[reported]),
        "f1_by_min_score": {str(other): _f1(correct[scores >= other], total) for other in LEAST_SCORES},
    }


def _f1(correct: np.ndarray, total: int) -> float:
    """Of entities that were found, right ones among them, and how many there are to find."""
    return 2 * float(correct.sum()) / max(1, len(correct) + total)


def expected_calibration_error(scores: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Mean distance between score and share of right ones, over bins of equal width, weighted by their counts."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        {
            "score": float(scores[place == index].mean()),
            "right": float(right[place == index].mean()),
            "count": int((place == index).sum()),
        }
        for index in range(BINS)
        if (place == index).any()
    ]
    error = sum(abs(of_bin["score"] - of_bin["right"]) * of_bin["count"] for of_bin in bins) / max(1, len(scores))
    return {"ece": error, "bins": bins}


def calibration_error_by_chance(bins: list[dict[str, Any]]) -> float:
    """What `expected_calibration_error` would be on average if every score were exact: so few entities never come out at
    just their probability. Of a bin's entities as if each had the bin's mean score."""
    away = 0.0
    for of_bin in bins:
        right = np.arange(of_bin["count"] + 1)
        chance = binom.pmf(right, of_bin["count"], of_bin["score"])
        away += float((chance * abs(right - of_bin["count"] * of_bin["score"])).sum())
    return away / max(1, sum(of_bin["count"] for of_bin in bins))


def gold_entities(row: dict, names: list[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of a row's entities, as default seqeval counts them."""
    return get_entities([names[tag] for tag in row["ner_tags"]])


def _starts(tokens: list[str]) -> list[int]:
    """Where each word begins in the text of words joined by blanks."""
    lengths = [len(token) + 1 for token in tokens]
    return [0, *np.cumsum(lengths).tolist()][: len(tokens)]


def _tagged(
    model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset
) -> Iterator[list[dict[str, Any]]]:
    ner = MnerPipeline(model=model.eval(), processor=processor)

    yield from ner((row_to_post(row) for row in rows), batch_size=BATCH_SIZE)
