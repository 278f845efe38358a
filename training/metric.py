"""The metric of the field, in both conventions that its papers mix."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
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
