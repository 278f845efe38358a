"""The metric of the field, in both conventions that its papers mix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2
from torchvision.ops import box_iou
from transformers import EvalPrediction

from modeling_hamlearning import MnerPipeline
from modeling_hamlearning.grounding import MIN_IOU

BIO_LABEL = re.compile(r"O|[BI]-\S(.*\S)?")
_DESCRIPTION = "Micro precision, recall and F1 over entities, as default seqeval counts them and in strict IOB2."
_CITATION = "@misc{seqeval, title={seqeval}, url={https://github.com/chakki-works/seqeval}, author={Hiroki Nakayama}}"


def check_bio(labels: Iterable[str], where: str):
    """Raises `ValueError` for labels that are not BIO: seqeval would count other entities than those that are meant."""
    wrong = sorted({label for label in labels if not BIO_LABEL.fullmatch(label)})
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{where}: expected BIO labels (O, B-TYPE, I-TYPE), got {', '.join(map(repr, wrong[:5]))}{more}; "
            "convert them first, as load_splits of mner_data.loading does"
        )


class MnerMetric(evaluate.Metric):
    """Precision, recall and F1 over entities, from label strings in BIO.

    Default seqeval counts an orphan I-X as an entity and strict IOB2 does not, so the two F1 scores of one prediction
    differ. Both are returned (`f1` and `f1_strict`) with the number of gold entities that each counts.

    Example:
        >>> MnerMetric().compute(predictions=[["B-PER", "O"]], references=[["B-PER", "O"]])["f1"]
        1.0

    Given `entity_boxes` (of each post, as a row of a data set has them) and `regions` (of each post, for each predicted entity in
    order the box in [0, 1] that shows it, or `None` for "not shown"), the [`grounding_scores`] stand beside them.

    Raises:
        ValueError: a label is not BIO, or a post does not have a region for each of its predicted entities.
    """

    def _info(self):
        sequence = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions and references: a list of labels a post",
            features=datasets.Features({"predictions": sequence, "references": sequence}),
        )

    def _compute(
        self,
        predictions: list,
        references: list,
        label_sha256: str | None = None,
        entity_boxes: list | None = None,
        regions: list | None = None,
    ) -> dict[str, Any]:
        for name, posts in (("references", references), ("predictions", predictions)):
            check_bio((label for labels in posts for label in labels), name)
        result: dict[str, Any] = {}
        for suffix, options in (("", {}), ("_strict", {"mode": "strict", "scheme": IOB2})):
            report = classification_report(references, predictions, output_dict=True, zero_division=0, **options)
            micro = report.pop("micro avg")
            for average in ("macro avg", "weighted avg"):
                report.pop(average)
            result |= {
                f"precision{suffix}": float(micro["precision"]),
                f"recall{suffix}": float(micro["recall"]),
                f"f1{suffix}": float(micro["f1-score"]),
                f"gold_total{suffix}": int(micro["support"]),
                f"per_type{suffix}": {
                    kind: {
                        "precision": float(scores["precision"]),
                        "recall": float(scores["recall"]),
                        "f1": float(scores["f1-score"]),
                        "gold_total": int(scores["support"]),
                    }
                    for kind, scores in report.items()
                },
            }
        if label_sha256 is not None:
            result["label_sha256"] = label_sha256
        if (entity_boxes is None) != (regions is None):
            raise ValueError("expected entity_boxes and regions, got one of them")
        if entity_boxes is not None:
            flags = zip(
                *map(_grounding_flags, range(len(references)), references, predictions, entity_boxes, regions), strict=True
            )
            result |= grounding_scores(references, predictions, *map(list, flags))
        return result


def grounding_scores(
    references: list[list[str]],
    predictions: list[list[str]],
    is_annotated: list[list[bool]],
    is_right: list[list[bool]],
) -> dict[str, float | int]:
    """Grounded entities, as the papers count them (Yu et al. 2023, doi 10.18653/v1/2023.acl-long.508).

    A region is right that has an IoU of 0.5 or more with one of the entity's boxes, and "not shown" where there are none. An
    entity that is not annotated is left out, whether it is found or not, and so are all predictions of a post whose entities
    are all not annotated.

    Args:
        is_annotated: of each post's gold entities in order.
        is_right: of each post's gold entities in order, whether the region of the prediction with the same span is right.

    Returns:
        Precision, recall and F1 of entities whose span, type and region are right (`gmner_…`) and whose span and region are
        (`eeg_…`), both of `grounding_gold_total` gold entities; and `grounding_accuracy`, the share whose region is right of
        the `grounding_accuracy_total` gold entities that are found with the right span.
    """
    num_gold = num_predicted = num_found = 0
    right = {"gmner": 0, "eeg": 0}
    for labels, predicted_labels, annotated, grounded in zip(references, predictions, is_annotated, is_right, strict=True):
        gold = get_entities(labels)
        if gold and not any(annotated):
            continue
        kinds = {(first, last): kind for kind, first, last in get_entities(predicted_labels)}
        num_predicted += len(kinds)
        for (kind, first, last), has_boxes, region_is_right in zip(gold, annotated, grounded, strict=True):
            found = (first, last) in kinds
            num_gold += has_boxes
            num_found += found and has_boxes
            num_predicted -= found and not has_boxes
            right["eeg"] += found and has_boxes and region_is_right
            right["gmner"] += has_boxes and region_is_right and kinds.get((first, last)) == kind
    scores: dict[str, float | int] = {}
    for name, count in right.items():
        scores[f"{name}_precision"] = count / max(1, num_predicted)
        scores[f"{name}_recall"] = count / max(1, num_gold)
        scores[f"{name}_f1"] = 2 * count / max(1, num_predicted + num_gold)
    scores["grounding_gold_total"] = num_gold
    scores["grounding_accuracy"] = right["eeg"] / max(1, num_found)
    return scores | {"grounding_accuracy_total": num_found}


def _grounding_flags(
    post: int, labels: list[str], predicted_labels: list[str], entity_boxes: list | None, regions: list
) -> tuple[list[bool], list[bool]]:
    """Of each gold entity of a post whether it is annotated, and whether the region that is predicted for its span is right."""
    spans = [entity[1:] for entity in get_entities(labels)]
    predicted = [entity[1:] for entity in get_entities(predicted_labels)]
    boxes_of = [None] * len(spans) if entity_boxes is None else entity_boxes
    for name, values, count in (("entity_boxes", boxes_of, len(spans)), ("regions", regions, len(predicted))):
        if len(values) != count:
            raise ValueError(f"{name}, post {post}: expected one item for each of its {count} entities, got {len(values)}")
    region_at = dict(zip(predicted, regions, strict=True))
    is_right = [
        region_at.get(span) is None
        if not boxes
        else region_at.get(span) is not None
        and bool((box_iou(torch.tensor([region_at[span]]), torch.tensor(boxes)) >= MIN_IOU).any())
        for span, boxes in zip(spans, boxes_of, strict=True)
    ]
    return [boxes is not None for boxes in boxes_of], is_right


class ComputeMnerMetrics:
    """`compute_metrics` of the Trainer: label ids (n, W), −100 at padding, to the scores of [`MnerMetric`].

    With `batch_eval_metrics` the Trainer calls it once per batch; the posts are kept until `compute_result`, since F1 is not
    a mean over batches. Where predictions and labels are pairs, as `MnerTrainer` makes them of posts whose entities have boxes,
    the [`grounding_scores`] are part of the result.

    Args:
        label_names: the labels in the order of their ids.
        label_sha256: hash of the label file, which becomes part of the result.
    """

    def __init__(self, label_names: list[str], label_sha256: str | None = None):
        self.label_names = np.array(label_names)
        self.label_sha256 = label_sha256
        self.metric = MnerMetric()
        self.predictions: list[list[str]] = []
        self.references: list[list[str]] = []
        self.is_annotated: list[list[bool]] = []
        self.is_right: list[list[bool]] = []

    def _add(self, predictions: tuple[np.ndarray, ...], label_ids: tuple[np.ndarray, ...]):
        mask = label_ids[0] != -100
        for posts, rows in ((self.predictions, predictions[0]), (self.references, label_ids[0])):
            posts += [self.label_names[row[words]].tolist() for row, words in zip(rows, mask, strict=True)]
        # One flag for each gold entity, at its first word.
        for posts, flags in ((self.is_annotated, label_ids[1:]), (self.is_right, predictions[1:])):
            posts += [(row[row != -100] == 1).tolist() for rows in flags for row in rows]

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, Any]:
        self._add(_arrays(prediction.predictions), _arrays(prediction.label_ids))
        if not compute_result:
            return {}
        predictions, references, flags = self.predictions, self.references, (self.is_annotated, self.is_right)
        self.predictions, self.references, self.is_annotated, self.is_right = [], [], [], []
        result = self.metric.compute(predictions=predictions, references=references, label_sha256=self.label_sha256)
        if flags[0]:
            result |= grounding_scores(references, predictions, *flags)
        # Each type's F1 by its own name, for `metric_for_best_model`.
        by_type = {f"f1_{kind}": scores["f1"] for kind, scores in result["per_type"].items()}
        return by_type | result | {"num_labelled_words": sum(map(len, references))}


def _arrays(ids: Any) -> tuple[np.ndarray, ...]:
    ids = ids if isinstance(ids, tuple | list) else (ids,)
    return tuple(np.asarray(part.cpu() if isinstance(part, torch.Tensor) else part) for part in ids)


def pipeline_f1(rows, results: list[list[dict]], names: list[str]) -> float:
    """Micro F1 of the pipeline's entities against the labels of the rows.

    Args:
        rows: posts with `tokens`, which the pipeline was given as words, and `ner_tags`.
        results: the pipeline's entities of each post.
        names: label names by id.
    """
    references = [[names[tag] for tag in row["ner_tags"]] for row in rows]
    predictions = [MnerPipeline.to_bio(result, len(row["tokens"])) for row, result in zip(rows, results, strict=True)]
    return MnerMetric().compute(predictions=predictions, references=references)["f1"]
