"""The card that goes to the Hub with a model: `model_card.md` filled with what the training run knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mner_data.files import markdown_table
from modeling_hamlearning.configuration_hamlearning import LEVELS

CONVENTIONS = {"default seqeval": "f1", "strict IOB2": "f1_strict"}
# The row of the table of scores that says what the images are worth: the trained model without them.
WITHOUT_IMAGES = "the same model without the images"


def template_path() -> Path:
    """The card's template: in the package where it is installed from a wheel, else at the top of the checkout."""
    installed = Path(str(files(__package__))) / "model_card.md"
    return installed if installed.is_file() else Path(__file__).resolve().parents[1] / "model_card.md"


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
    notes: list[str] | None = None,
    test_metrics: dict[str, Any] | None = None,
    confusion: str = "",
    levels: Sequence[str] = LEVELS,
    is_grounded: bool = False,
    license: str | None = None,
    language: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Fill the template and write `README.md` into the model's folder.

    Args:
        metrics: of the validation split, as [`ComputeMnerMetrics`] returns them; empty if none was run.
        settings: training arguments that a reader needs.
        references: further rows of the table of scores on the same split, by name, such as those of an ablation: mappings
            with `f1` and `f1_strict`.
        checkpoint: which one was scored.
        notes: sentences about the training, such as how many images could not be read.
        test_metrics: the same as `metrics`, of the test split.
        confusion: the validation split's table of types, in Markdown; its picture lies beside the card.
        levels: of the image that the model reads; a model of the text alone has none.
        is_grounded: whether the model has a grounding head.
        license: the Hub's identifier of the model's licence; "unknown" there where nobody said.
        language: code of the posts' language.
        dataset: the data's name on the Hub, if they lie there.
    """
    references = references or {}
    rows = {"": metrics, **{f", {name}": values for name, values in references.items()}} if metrics else {}
    scored = [("validation", suffix, values) for suffix, values in rows.items()]
    scored += [("test", ", test split", test_metrics)] if test_metrics else []
    types = sorted({label[2:] for label in labels if label != "O"})
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="token-classification",
        tags=["hamlearning", "multimodal", "named-entity-recognition", "mner"],
        base_model=base_models or None,
        license=license or "unknown",
        language=language,
        datasets=[dataset] if dataset else None,
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type="token-classification",
                task_name="Multimodal named entity recognition",
                dataset_type=data_name.replace(" ", "-").lower(),
                dataset_name=data_name,
                dataset_split=split,
                metric_type="f1",
                metric_name=f"F1 ({convention}){suffix}",
                metric_value=round(values[key], 4),
            )
            for split, suffix, values in scored
            for convention, key in CONVENTIONS.items()
        ]
        or None,
    )
    if not scored:
        del data.model_name  # without scores it would stand in the metadata by itself
    card = ModelCard.from_template(
        data,
        template_path=str(template_path()),
        model_name=model_name,
        data_name=data_name,
        checkpoint=checkpoint,
        types=", ".join(types),
        scores=scores_table(metrics, types, references),
        test_scores=scores_table(test_metrics, types, {}) if test_metrics else "",
        confusion=confusion,
        reads_images=bool(levels),
        has_regions=any(level != "global" for level in levels),
        is_grounded=is_grounded,
        without_images=WITHOUT_IMAGES in references,
        other_references=bool(set(references) - {WITHOUT_IMAGES}),
        hashes="\n".join(f"- {split}: `{value}`" for split, value in data_hashes.items()) or "- generated",
        settings=yaml.safe_dump(settings, sort_keys=True, allow_unicode=True).strip(),
        notes="\n\n".join(notes or []),
    )
    path = Path(folder) / "README.md"
    path.write_text(str(card), encoding="utf-8")
    return path


def read_reference_scores(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """Rows for the card's table from a JSON file `{"name": {"f1": …, "f1_strict": …}}`; none without a file.

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
            where = f"card_reference_scores: {path}, row {name!r}"
            raise ValueError(f"{where}: expected numbers f1 and f1_strict, got {values!r:.80}")
    return rows


def scores_table(metrics: dict[str, Any], types: list[str], references: dict[str, dict[str, Any]]) -> str:
    """F1 of all entities, of each type and of the references, in Markdown."""
    if not metrics:
        return "No validation was run."
    totals = f"{metrics['gold_total']} / {metrics['gold_total_strict']}"
    rows = [["all", f"{metrics['f1']:.4f}", f"{metrics['f1_strict']:.4f}", totals]]
    for entity_type in types:
        default, strict = metrics["per_type"].get(entity_type), metrics["per_type_strict"].get(entity_type)
        if default:
            strict = strict or {"f1": 0.0, "gold_total": 0}
            totals = f"{default['gold_total']} / {strict['gold_total']}"
            rows.append([entity_type, f"{default['f1']:.4f}", f"{strict['f1']:.4f}", totals])
    rows += [[f"*{name}*", f"{values['f1']:.4f}", f"{values['f1_strict']:.4f}", ""] for name, values in references.items()]
    table = markdown_table(["", "F1, default seqeval", "F1, strict IOB2", "gold entities, default / strict"], rows)
    return f"{table}\n\n{_grounding(metrics)}" if "gmner_f1" in metrics else table


def _grounding(metrics: dict[str, Any]) -> str:
    gold, found = metrics["grounding_gold_total"], metrics["grounding_accuracy_total"]
    rows = [
        ["GMNER F1: span, type and region", f"{metrics['gmner_f1']:.4f}", gold],
        ["EEG F1: span and region", f"{metrics['eeg_f1']:.4f}", gold],
        ["grounding accuracy given the right span", f"{metrics['grounding_accuracy']:.4f}", found],
    ]
    explanation = (
        "A region is right with an IoU of 0.5 or more with one of the entity's boxes, and no region where the image does not "
        "show the entity. Entities without annotation are left out."
    )
    return f"{markdown_table(['where in the image', 'score', 'gold entities'], rows)}\n\n{explanation}"
