"""The metric of the field, in both conventions that its papers mix."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

_DESCRIPTION = "Micro precision, recall and F1 over entities, as default seqeval counts them and in strict IOB2."
_CITATION = "@misc{seqeval, title={seqeval}, url={https://github.com/chakki-works/seqeval}, author={Hiroki Nakayama}}"


class MnerMetric(evaluate.Metric):
    """Entity scores over label strings.

    Default seqeval counts an orphan I-X as an entity, strict IOB2 does not: two "F1"s of one prediction differ. Both are
    returned (`f1` and `f1_strict`), with the number of gold entities each counts and, if given, the hash of the label
    file, so that two scores can be told apart.
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
    """`compute_metrics` of the Trainer: label ids (n, W) with −100 at padding → both conventions, per type as well."""

    def __init__(self, label_names: list[str], label_sha256: str | None = None):
        self.label_names = np.array(label_names)
        self.label_sha256 = label_sha256
        self.metric = MnerMetric()

    def strings(self, labels: np.ndarray, mask: np.ndarray) -> list[list[str]]:
        return [self.label_names[row[kept]].tolist() for row, kept in zip(labels, mask, strict=True)]

    def __call__(self, prediction) -> dict[str, Any]:
        mask = prediction.label_ids != -100
        result = self.metric.compute(
            predictions=self.strings(prediction.predictions, mask),
            references=self.strings(prediction.label_ids, mask),
            label_sha256=self.label_sha256,
        )
        result["num_labelled_words"] = int(mask.sum())
        return result
