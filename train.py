"""Train HamLearning: `python train.py configs/demo.yaml`, or `accelerate launch train.py …`; `--name value` overrides the file.

`--model FOLDER` takes a trained model in place of the encoders: with `--do_eval` or `--do_predict` alone it is scored, with
`--do_train` it is trained further.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, List
from transformers import EarlyStoppingCallback, set_seed

from mner_data.files import OutputError, atomic_write
from mner_data.loading import check_images, dataset_labels, load_splits
from mner_data.readers import DataError
from mner_data.synthetic_posts import synthetic_splits
from training.arguments import NO_LEVELS, DataArguments, MnerTrainingArguments, ModelArguments, parse_arguments
from training.build import build
from training.calibration import calibrate
from training.card import WITHOUT_IMAGES, read_reference_scores, write_card
from training.checkpoints import (
    check_resumable,
    check_writable,
    checkpoints,
    explain_write_errors,
    last_complete_checkpoint,
    reserve,
)
from training.collator import MnerCollator
from training.curves import plot_curves
from training.metric import ComputeMnerMetrics
from training.settings import run_settings
from training.trainer import MnerTrainer
from training.vision_cache import VisionCache

logger = logging.getLogger("train")

# Training arguments that the card lists.
CARD_SETTINGS = (
    "learning_rate", "head_learning_rate", "vision_learning_rate", "num_train_epochs", "seed", "warmup_steps",
    "per_device_train_batch_size", "weight_decay", "lr_scheduler_type", "bf16", "max_steps",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate and tag, as the arguments say, and leave model, card and scores in `output_dir`.

    Args:
        arguments: `[config.yaml] [--name value …]`; by default those of the command line.

    Returns:
        Every score, as in `all_results.json`.

    Raises:
        DataError: the data cannot be used.
        OutputError: `output_dir` cannot be written, or belongs to another run.
        ValueError: arguments that contradict each other.
    """
    model_arguments, data_arguments, training_arguments = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    _set_up_logging(training_arguments)
    _check_task(model_arguments, training_arguments)
    set_seed(training_arguments.seed)
    reference_scores = read_reference_scores(data_arguments.card_reference_scores)
    folder = Path(training_arguments.output_dir)
    check_writable(folder)
    data, hashes = _load_data(data_arguments)
    for option, split in (("do_train", "train"), ("do_eval", "validation"), ("do_predict", "test"), ("calibrate", "validation")):
        if getattr(training_arguments, option):
            _require_split(data, split, f"--{option}")
    label_names = dataset_labels(next(iter(data.values())))
    if data_arguments.use_images:
        check_images(data)
    else:
        data = DatasetDict({split: _without_images(rows) for split, rows in data.items()})
        model_arguments.model_config = model_arguments.model_config | NO_LEVELS
    settings = run_settings(model_arguments, data_arguments, training_arguments, hashes, data, label_names)
    # Scoring alone removes nothing, whatever the folder holds.
    overwrite = training_arguments.overwrite_output_dir and training_arguments.do_train
    with reserve(folder, settings | _task(training_arguments), overwrite, training_arguments.process_index == 0):
        return _run(
            folder, model_arguments, data_arguments, training_arguments, data, hashes, label_names, settings, reference_scores
        )


def cli():
    """Entry point of the command line: one line for data and folders that cannot be used."""
    try:
        main()
    except (DataError, OutputError) as error:
        sys.exit(f"train: {error}")


def _check_task(model: ModelArguments, arguments: MnerTrainingArguments):
    """Raises `ValueError` where nothing is asked for, or what is asked for cannot be done."""
    is_scored = arguments.do_eval or arguments.do_predict
    if not arguments.do_train and not is_scored:
        raise ValueError("nothing to do: expected --do_train, --do_eval or --do_predict, got none of them")
    if not arguments.do_train and model.model is None:
        raise ValueError(
            "nothing is trained: --do_eval and --do_predict score the model that --do_train makes, or the one that --model "
            "names; add one of the two"
        )
    if not arguments.do_train and arguments.calibrate:
        raise ValueError("--calibrate changes the model: expected --do_train beside it")
    if arguments.overwrite_output_dir and arguments.resume_from_checkpoint:
        raise ValueError(
            "--overwrite_output_dir removes the checkpoints that --resume_from_checkpoint goes on from: expected one of the two"
        )
    if arguments.push_to_hub and not arguments.do_train:
        raise ValueError("--push_to_hub: expected --do_train; a model that is trained already goes by hub_scripts.push_to_hub")


def _task(arguments: MnerTrainingArguments) -> dict[str, bool]:
    return {} if arguments.do_train else {"do_train": False}


def _run(
    folder: Path,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: MnerTrainingArguments,
    data: DatasetDict,
    hashes: dict[str, str],
    label_names: list[str],
    settings: dict[str, Any],
    reference_scores: dict[str, Any],
) -> dict[str, Any]:
    """What `main` does once the folder is reserved."""
    resume = _checkpoint_to_resume(folder, training_arguments)
    model, processor = build(model_arguments, data, label_names)
    if model.config.label_names != label_names:
        data = DatasetDict({split: _with_labels(rows, model.config.label_names, split) for split, rows in data.items()})
        label_names = model.config.label_names
    if resume:
        check_resumable(resume, model.config, settings)
    trainer = MnerTrainer(
        model=model,
        args=training_arguments,
        data_collator=MnerCollator(processor),
        train_dataset=data.get("train"),
        eval_dataset=data.get("validation"),
        processing_class=processor,
        compute_metrics=ComputeMnerMetrics(label_names),
        callbacks=_callbacks(training_arguments),
    )
    if model_arguments.vision_cache is not None:
        trainer.data_collator.vision_cache = _fill_vision_cache(model_arguments, trainer, data)
    results: dict[str, Any] = {}
    if training_arguments.do_train:
        results |= trainer.train(resume_from_checkpoint=resume).metrics
        trainer.save_state()
        # Before anything is scored: what fails there must not cost the trained model.
        trainer.save_model()
        if training_arguments.calibrate:
            results["temperature"] = calibrate(model, trainer, data["validation"])
            trainer.save_model()
    if training_arguments.do_eval:
        results |= trainer.evaluate() | _label_hash("eval", hashes.get("validation"))
        if data_arguments.use_images and "image" in data["validation"].column_names:
            results |= trainer.predict(_without_images(data["validation"]), metric_key_prefix="text_only").metrics
        _save_results(trainer, results)
    if training_arguments.do_predict:
        output = trainer.predict(data["test"], metric_key_prefix="test")
        results |= output.metrics | _label_hash("test", hashes.get("test"))
        # A pair where entities have boxes: label ids, and whether the regions are right.
        label_ids = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        if trainer.is_world_process_zero():
            write_predictions(folder / "predictions.txt", data["test"], label_ids, label_names)
    results |= trainer.image_counts()
    if results["images_unreadable"]:
        logger.warning("%d of %d times an image could not be read", results["images_unreadable"], results["images_read"])
    _save_results(trainer, results)
    if training_arguments.do_train and trainer.is_world_process_zero():
        with explain_write_errors("the card", folder):
            plot_curves(trainer.state.log_history, folder / "curves.png")
            _write_card(folder, trainer, model_arguments, data_arguments, hashes, results, label_names, reference_scores)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return results


def _checkpoint_to_resume(folder: Path, arguments: MnerTrainingArguments) -> str | None:
    """The checkpoint that the run resumes from; `auto` or `true` is the last complete one of the folder."""
    resume = arguments.resume_from_checkpoint
    if str(resume).lower() in ("true", "auto"):
        resume = last_complete_checkpoint(folder)
        if resume is None and checkpoints(folder):
            logger.warning("%s has no complete checkpoint: training starts anew", folder)
    elif not resume and arguments.do_train and last_complete_checkpoint(folder):
        logger.warning(
            "%s holds checkpoints of this run, which are not used: --resume_from_checkpoint auto would go on from the last",
            folder,
        )
    arguments.resume_from_checkpoint = resume
    return resume or None


def _fill_vision_cache(arguments: ModelArguments, trainer: MnerTrainer, data: DatasetDict) -> VisionCache | None:
    """Compute the features of the images of all splits that the cache lacks; each of several processes takes a share."""
    if not arguments.freeze_vision:
        raise ValueError("vision_cache: only a frozen backbone's features stay the same; add --freeze_vision true")
    model, image_processor = trainer.model.model, trainer.processing_class.image_processor
    if not model.config.levels:
        return None
    precision = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None
    cache = VisionCache.of_backbone(arguments.vision_cache, model, image_processor, precision)
    columns = [rows["image"] for rows in data.values() if "image" in rows.column_names]
    shares = trainer.args.world_size
    for column in columns:
        cache.fill(column, model, image_processor, precision, share=trainer.args.process_index, shares=shares)
    trainer.accelerator.wait_for_everyone()
    if shares > 1:  # machines that share no disk need all of it, each its own
        for column in columns:
            cache.fill(column, model, image_processor, precision)
    return cache


def write_predictions(path: Path, rows: Dataset, predictions, label_names: list[str]):
    """Write a line with word, gold and predicted label for each word, tabs between, in the CoNLL form of the label files.

    Args:
        predictions: label ids, a row for each post; what stands behind its words is not read.
    """
    lines = []
    for row, label_ids in zip(rows, predictions, strict=True):
        lines.append(f"IMGID:{row['id']}")
        for word, gold, predicted in zip(row["tokens"], row["ner_tags"], label_ids, strict=False):
            # A tab or a line end inside a word would break the line in two.
            word = re.sub(r"[\t\r\n]", " ", word)
            lines.append(f"{word}\t{label_names[gold]}\t{label_names[predicted]}")
        lines.append("")
    with atomic_write(path) as unfinished:
        unfinished.write_text("\n".join(lines), encoding="utf-8")


def _load_data(arguments: DataArguments) -> tuple[DatasetDict, dict[str, str]]:
    if arguments.data_path == "synthetic":
        data, hashes = synthetic_splits(arguments.synthetic_posts), {}
    else:
        data, hashes = load_splits(
            arguments.data_path,
            arguments.image_dir,
            arguments.regions_file,
            label_scheme=arguments.label_scheme,
            entity_boxes=arguments.entity_boxes,
            format=arguments.format,
            columns=arguments.columns,
            column_names=arguments.column_names,
        )
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    for split, limit in limits.items():
        if limit is not None and split in data:
            data[split] = data[split].select(range(min(limit, len(data[split]))))
    return data, hashes


def _without_images(rows: Dataset) -> Dataset:
    return rows.remove_columns("image") if "image" in rows.column_names else rows


def _with_labels(rows: Dataset, label_names: list[str], split: str) -> Dataset:
    """Rows whose label ids are those of a trained model, matched by name.

    Raises:
        DataError: the model does not have a label that the rows use.
    """
    names = dataset_labels(rows)
    used = sorted({names[tag] for tags in rows["ner_tags"] for tag in tags})
    if unknown := [name for name in used if name not in label_names]:
        raise DataError(
            f"split {split}, field ner_tags: the model of --model does not have the labels {', '.join(unknown)}; "
            f"expected some of {', '.join(label_names)}"
        )
    ids = {tag: label_names.index(name) for tag, name in enumerate(names) if name in label_names}
    tags = [[ids[tag] for tag in row_tags] for row_tags in rows["ner_tags"]]
    feature = List(ClassLabel(names=label_names))
    return rows.remove_columns("ner_tags").add_column("ner_tags", tags, feature=feature)


def _require_split(data: DatasetDict, split: str, option: str):
    if split not in data:
        raise DataError(f"{option} needs a {split} split; the data has {', '.join(data)}")


def _callbacks(arguments: MnerTrainingArguments) -> list:
    if arguments.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(early_stopping_patience=arguments.early_stopping_patience)]


def _save_results(trainer: MnerTrainer, results: dict[str, Any]):
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        with explain_write_errors("the results", folder), atomic_write(folder / "all_results.json") as path:
            path.write_text(json.dumps(results, indent=1))


def _label_hash(prefix: str, sha256: str | None) -> dict[str, str]:
    return {} if sha256 is None else {f"{prefix}_label_sha256": sha256}


def _write_card(
    folder: Path,
    trainer: MnerTrainer,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    hashes: dict[str, str],
    results: dict[str, Any],
    label_names: list[str],
    reference_scores: dict[str, Any],
):
    arguments = trainer.args.to_dict()
    encoders = {"text": model_arguments.text, "vision": model_arguments.vision} | model_arguments.model_config
    base = model_arguments.text
    if model_arguments.model is not None:
        encoders, base = {"model": model_arguments.model}, model_arguments.model
    metrics = _with_prefix(results, "eval_")
    references = {WITHOUT_IMAGES: _with_prefix(results, "text_only_")} if "text_only_f1" in results else {}
    notes = []
    if results["images_unreadable"]:
        notes.append(
            f"{results['images_unreadable']} of {results['images_read']} times an image could not be read during this run; the "
            "post was then read by its text alone."
        )
    is_best = trainer.args.load_best_model_at_end
    write_card(
        folder,
        model_name=trainer.args.hub_model_id or folder.name,
        data_name=Path(data_arguments.data_path).name,
        data_hashes=hashes,
        metrics=metrics if "f1" in metrics else {},
        settings={name: arguments[name] for name in CARD_SETTINGS} | encoders,
        labels=label_names,
        base_models=[base] if _on_the_hub(base) else [],
        references=references | reference_scores,
        checkpoint="checkpoint with the best F1 there" if is_best else "checkpoint of the last epoch",
        notes=notes,
        license=data_arguments.license,
        language=data_arguments.language,
        dataset=_on_the_hub(data_arguments.data_path),
    )


def _on_the_hub(name: str) -> str | None:
    """The name if it is a repo's on the Hub, not a path of this machine."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def _with_prefix(results: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The scores whose names start with the prefix, by their names without it."""
    return {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}


def _set_up_logging(arguments: MnerTrainingArguments):
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=arguments.get_process_log_level())
    transformers.utils.logging.set_verbosity(arguments.get_process_log_level())


if __name__ == "__main__":
    cli()
