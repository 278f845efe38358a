"""The card that goes to the Hub with a model: `model_card.md` filled with what the training run knows."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import yaml

CONVENTIONS = {"default seqeval": "f1", "strict IOB2": "f1_strict"}
# The row that tells what the pictures are worth: the trained model, its pictures left out.
WITHOUT_PICTURES = "the same model without the pictures"
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
    references: dict[str, dict[str, Any]] | None = None,
    checkpoint: str = "checkpoint of the last epoch",
) -> Path:
    """Fill the template and write `README.md` into the model's folder.

    Args:
        metrics: of the validation split, as [`ComputeMnerMetrics`] returns them; empty if none was run.
        settings: training arguments worth reading.
        references: metrics of other rows on the same split by name, such as those of an ablation: any mapping with `f1`
            and `f1_strict`.
        checkpoint: which one was scored.
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
                            {
                                "type": "f1",
                                "name": f"F1 ({convention}){note}",
                                "value": round(values[key], 4),
                            }
                            for note, values in _rows(metrics, references)
                            for convention, key in CONVENTIONS.items()
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
        checkpoint=checkpoint,
        types=", ".join(kinds),
        scores=_scores(metrics, kinds, references),
        hashes="\n".join(f"- {split}: `{value}`" for split, value in data_hashes.items()) or "- generated",
        settings=yaml.safe_dump(settings, sort_keys=True, allow_unicode=True).strip(),
    )
    path = Path(folder) / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def read_rows(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """Rows of other runs for the card; none without a file.

    Raises:
        ValueError: naming the file, and the row that lacks a score.
    """
    if path is None:
        return {}
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"card_reference_scores: {path} cannot be read as JSON: {error}") from error
    for name, values in rows.items() if isinstance(rows, dict) else [("", rows)]:
        if not isinstance(values, dict) or not all(isinstance(values.get(key), int | float) for key in CONVENTIONS.values()):
            raise ValueError(f"card_reference_scores: {path}, row {name!r}: numbers f1 and f1_strict are wanted")
    return rows


def _rows(metrics: dict[str, Any], references: dict[str, dict[str, Any]] | None) -> list[tuple[str, dict[str, Any]]]:
    """The model's own row, without a note, then the others."""
    return [("", metrics), *((f", {name}", values) for name, values in (references or {}).items())]


def _scores(metrics: dict[str, Any], kinds: list[str], references: dict[str, dict[str, Any]] | None = None) -> str:
    if not metrics:
        return "No validation was run."
    rows = ["| | F1, default seqeval | F1, strict IOB2 | gold entities, default / strict |", "|---|---|---|---|"]
    rows.append(
        f"| all | {metrics['f1']:.4f} | {metrics['f1_strict']:.4f} | {metrics['gold_total']} / {metrics['gold_total_strict']} |"
    )
    for kind in kinds:
        loose, strict = metrics["per_type"].get(kind), metrics["per_type_strict"].get(kind)
        if loose:
            rows.append(
                f"| {kind} | {loose['f1']:.4f} | {strict['f1'] if strict else 0:.4f} "
                f"| {loose['gold_total']} / {strict['gold_total'] if strict else 0} |"
            )
    for name, values in (references or {}).items():
        rows.append(f"| *{name}* | {values['f1']:.4f} | {values['f1_strict']:.4f} | |")
    return "\n".join(rows)
