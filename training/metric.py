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
from seqeval.scheme import IOB2
from transformers import EvalPrediction

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

    Raises:
        ValueError: a label is not BIO.
    """

    def _info(self):
        sequence = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions and references: a list of labels a post",
            features=datasets.Features({"predictions": sequence, "references": sequence}),
        )

    def _compute(self, predictions: list, references: list, label_sha256: str | None = None) -> dict[str, Any]:
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
        return result


class ComputeMnerMetrics:
    """`compute_metrics` of the Trainer: label ids (n, W), −100 at padding, to the scores of [`MnerMetric`].

    With `batch_eval_metrics` the Trainer calls it once per batch; the posts are kept until `compute_result`, since F1 is not
    a mean over batches.

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

    def _add(self, predictions: np.ndarray, label_ids: np.ndarray):
        mask = label_ids != -100
        for posts, rows in ((self.predictions, predictions), (self.references, label_ids)):
            posts += [self.label_names[row[words]].tolist() for row, words in zip(rows, mask, strict=True)]

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, Any]:
        self._add(*(np.asarray(_to_cpu(ids)) for ids in (prediction.predictions, prediction.label_ids)))
        if not compute_result:
            return {}
        predictions, references = self.predictions, self.references
        self.predictions, self.references = [], []
        result = self.metric.compute(predictions=predictions, references=references, label_sha256=self.label_sha256)
        # Each type's F1 by its own name, for `metric_for_best_model`.
        by_type = {f"f1_{kind}": scores["f1"] for kind, scores in result["per_type"].items()}
        return by_type | result | {"num_labelled_words": sum(map(len, references))}


def _to_cpu(ids: Any) -> Any:
    return ids.cpu() if isinstance(ids, torch.Tensor) else ids


def pipeline_f1(rows, results: list[list[dict]], names: list[str]) -> float:
    """Micro F1 of the pipeline's entities against the labels of the rows.

    Args:
        rows: posts with `tokens`, joined by single spaces for the pipeline, and `ner_tags`.
        results: the pipeline's entities of each post.
        names: label names by id.
    """
    references, predictions = [], []
    for row, entities in zip(rows, results, strict=True):
        word_at = {}  # index of the word that begins at a character
        start = 0
        for index, word in enumerate(row["tokens"]):
            word_at[start] = index
            start += len(word) + 1
        labels = ["O"] * len(row["tokens"])
        for entity in entities:
            first, count = word_at[entity["start"]], len(entity["word"].split(" "))
            labels[first : first + count] = [f"B-{entity['entity_group']}"] + [f"I-{entity['entity_group']}"] * (count - 1)
        references.append([names[tag] for tag in row["ner_tags"]])
        predictions.append(labels)
    return MnerMetric().compute(predictions=predictions, references=references)["f1"]
