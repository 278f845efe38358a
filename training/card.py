"""The card that goes to the Hub with a model: `model_card.md` filled with what the training run knows."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

import yaml

TEMPLATE = Path(__file__).resolve().parents[1] / "model_card.md"


def write_card(
    folder: str | Path,
    model_name: str,
    data_name: str,
    data_hashes: dict[str, str],
    metrics: dict[str, Any],
    settings: dict[str, Any],
    labels: list[str],
    base_models: list[str],
) -> Path:
    """Fill the template and write `README.md` into the model's folder.

    Args:
        metrics: of the validation split, as [`MnerScores`] returns them; empty if none was run.
        settings: training arguments worth reading.
    """
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "token-classification",
        "tags": ["hamlearning", "multimodal", "named-entity-recognition", "mner"],
        "base_model": base_models,
    }
    if not base_models:
        del metadata["base_model"]
    if metrics:
        metadata["model-index"] = [
            {
                "name": model_name,
                "results": [
                    {
                        "task": {"type": "token-classification", "name": "Multimodal named entity recognition"},
                        "dataset": {
                            "name": data_name,
                            "type": data_name.replace(" ", "-").lower(),
                            "split": "validation",
                        },
                        "metrics": [
                            {"type": "f1", "name": "F1 (default seqeval)", "value": round(metrics["f1"], 4)},
                            {"type": "f1", "name": "F1 (strict IOB2)", "value": round(metrics["f1_strict"], 4)},
                        ],
                    }
                ],
            }
        ]
    kinds = sorted({label[2:] for label in labels if label != "O"})
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(),
        model_name=model_name,
        data_name=data_name,
        types=", ".join(kinds),
        scores=_scores(metrics, kinds),
        hashes="\n".join(f"- {split}: `{value}`" for split, value in data_hashes.items()) or "- generated",
        settings=yaml.safe_dump(settings, sort_keys=True, allow_unicode=True).strip(),
    )
    path = Path(folder) / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def _scores(metrics: dict[str, Any], kinds: list[str]) -> str:
    if not metrics:
        return "No validation was run."
    rows = ["| | F1, default seqeval | F1, strict IOB2 | gold entities, default / strict |", "|---|---|---|---|"]
    rows.append(
        f"| all | {metrics['f1']:.4f} | {metrics['f1_strict']:.4f} "
        f"| {metrics['gold_total']} / {metrics['gold_total_strict']} |"
    )
    for kind in kinds:
        loose, strict = metrics["per_type"].get(kind), metrics["per_type_strict"].get(kind)
        if loose:
            rows.append(
                f"| {kind} | {loose['f1']:.4f} | {strict['f1'] if strict else 0:.4f} "
                f"| {loose['gold_total']} / {strict['gold_total'] if strict else 0} |"
            )
    return "\n".join(rows)
