"""Train HamLearning: `python train.py configs/demo.yaml`, or `accelerate launch train.py …`; `--name value` overrides."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from datasets import DatasetDict
from transformers import EarlyStoppingCallback, set_seed

from mner_data.loading import dataset_labels, load_splits
from mner_data.readers import DataError
from mner_data.synthetic_posts import synthetic_splits
from training.arguments import NO_LEVELS, DataArguments, MnerTrainingArguments, ModelArguments, parse_arguments
from training.build import build
from training.calibration import calibrate
from training.card import WITHOUT_PICTURES, read_rows, write_card
from training.checkpoints import (
    check_resumable,
    check_writable,
    checkpoints,
    claim,
    explain_write_errors,
    last_complete_checkpoint,
)
from training.collator import MnerCollator
from training.curves import plot_curves
from training.metric import ComputeMnerMetrics
from training.trainer import MnerTrainer
from training.vision_cache import VisionCache

logger = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> dict:
    model_arguments, data_arguments, training_arguments = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    _set_up_logging(training_arguments)
    set_seed(training_arguments.seed)
    card_reference_scores = read_rows(data_arguments.card_reference_scores)
    if (training_arguments.do_eval or training_arguments.do_predict) and not training_arguments.do_train:
        raise ValueError("nothing is trained: --do_eval and --do_predict score the model that --do_train makes; add it")
    training_arguments.do_train = True

    folder = Path(training_arguments.output_dir)
    check_writable(folder)
    data, hashes = _load_data(data_arguments)
    _need(data, "train", "training")
    if training_arguments.do_eval:
        _need(data, "validation", "--do_eval")
    if training_arguments.do_predict:
        _need(data, "test", "--do_predict")
    if training_arguments.calibrate:
        _need(data, "validation", "--calibrate")
    label_names = dataset_labels(data["train"])
    if data_arguments.use_images is False:
        data = data.map(lambda row: row | {"image": None}, desc="images left out") if _has_images(data) else data
        model_arguments.model_config = model_arguments.model_config | NO_LEVELS
    is_first = training_arguments.process_index == 0
    settings = _settings(model_arguments, data_arguments, hashes, label_names)
    claim(folder, settings, training_arguments.overwrite_output_dir, is_first)
    if str(training_arguments.resume_from_checkpoint).lower() in ("true", "auto"):
        training_arguments.resume_from_checkpoint = last_complete_checkpoint(folder)
        if training_arguments.resume_from_checkpoint is None and checkpoints(folder):
            logger.warning("%s has no whole checkpoint: training starts anew", folder)

    model, processor = build(model_arguments, data, label_names)
    if training_arguments.resume_from_checkpoint:
        check_resumable(training_arguments.resume_from_checkpoint, model.config)
    trainer = MnerTrainer(
        model=model,
        args=training_arguments,
        data_collator=MnerCollator(processor),
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=processor,
        compute_metrics=ComputeMnerMetrics(label_names, hashes.get("validation")),
        callbacks=_callbacks(training_arguments),
    )
    if model_arguments.vision_cache is not None:
        trainer.data_collator.vision_cache = _fill_vision_cache(model_arguments, trainer, data)
    results: dict = trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint).metrics
    trainer.save_state()
    if training_arguments.calibrate:
        results["temperature"] = calibrate(model, trainer, data["validation"])
    if training_arguments.do_eval:
        results |= trainer.evaluate()
        if data_arguments.use_images and "image" in data["validation"].column_names:
            without = data["validation"].remove_columns("image")
            results |= trainer.predict(without, metric_key_prefix="text_only").metrics
    if training_arguments.do_predict:
        results |= predict(trainer, data["test"], label_names, hashes.get("test"))
    trainer.save_model()
    if trainer.is_world_process_zero():
        with explain_write_errors("results", folder):
            (folder / "all_results.json").write_text(json.dumps(results, indent=1))
            _describe(folder, trainer, model_arguments, data_arguments, hashes, results, label_names, card_reference_scores)
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    return results


def _fill_vision_cache(arguments: ModelArguments, trainer: MnerTrainer, data: DatasetDict) -> VisionCache | None:
    """Features of the pictures of all splits, as far as they are not kept yet; of several processes each has its share."""
    if not arguments.freeze_vision:
        raise ValueError("vision_cache: only a frozen backbone's features stay the same; add --freeze_vision true")
    model, image_processor = trainer.model.model, trainer.processing_class.image_processor
    if not model.config.levels:
        return None
    precision = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else None
    cache = VisionCache.of_backbone(arguments.vision_cache, model, image_processor, precision)
    pictures = [rows["image"] for rows in data.values() if "image" in rows.column_names]
    shares = trainer.args.world_size
    for column in pictures:
        cache.fill(column, model, image_processor, precision, share=trainer.args.process_index, shares=shares)
    trainer.accelerator.wait_for_everyone()
    if shares > 1:  # machines that share no disk each need all of it
        for column in pictures:
            cache.fill(column, model, image_processor, precision)
    return cache


def predict(trainer: MnerTrainer, data, label_names: list[str], label_sha256: str | None) -> dict:
    """Tag the test split; `predictions.txt` holds word, gold and predicted label, in the CoNLL form of the data."""
    trainer.compute_metrics = ComputeMnerMetrics(label_names, label_sha256)
    output = trainer.predict(data, metric_key_prefix="test")
    if trainer.is_world_process_zero():
        lines = []
        for row, labels in zip(data, output.predictions, strict=True):
            lines.append(f"IMGID:{row['id']}")
            for word, gold, predicted in zip(row["tokens"], row["ner_tags"], labels, strict=False):
                # A word of a row may hold what ends a field or a line here.
                word = re.sub(r"[\t\r\n]", " ", word)
                lines.append(f"{word}\t{label_names[gold]}\t{label_names[predicted]}")
            lines.append("")
        Path(trainer.args.output_dir, "predictions.txt").write_text("\n".join(lines), encoding="utf-8")
    return output.metrics


def _load_data(arguments: DataArguments) -> tuple[DatasetDict, dict[str, str]]:
    if arguments.data_path == "synthetic":
        data, hashes = synthetic_splits(arguments.synthetic_posts), {}
    else:
        data, hashes = load_splits(arguments.data_path, arguments.image_dir, arguments.regions_file)
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    for split, limit in limits.items():
        if limit is not None and split in data:
            data[split] = data[split].select(range(min(limit, len(data[split]))))
    # What the Trainer groups posts by.
    data = DatasetDict(
        {split: rows.add_column("length", [len(tokens) for tokens in rows["tokens"]]) for split, rows in data.items()}
    )
    return data, hashes


def _settings(model: ModelArguments, data: DataArguments, hashes: dict[str, str], labels: list[str]) -> dict:
    """What makes a run this one: model and data, where the data's hashes count for more than where it lies."""
    settings = asdict(model) | asdict(data) | {"hashes": hashes, "labels": labels}
    for name in ("data_path" if hashes else "hashes", "vision_cache", "card_reference_scores"):
        del settings[name]
    return settings


def _has_images(data: DatasetDict) -> bool:
    return all("image" in rows.column_names for rows in data.values())


def _need(data: DatasetDict, split: str, asked: str):
    if split not in data:
        raise DataError(f"{asked} needs a {split} split; the data has {', '.join(data)}")


def _callbacks(arguments: MnerTrainingArguments) -> list:
    if arguments.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(early_stopping_patience=arguments.early_stopping_patience)]


def _describe(folder, trainer, model_arguments, data_arguments, hashes, results, label_names, card_reference_scores):
    """Curves and card of a finished run."""
    plot_curves(trainer.state.log_history, folder / "curves.png")
    shown = ("learning_rate", "head_learning_rate", "vision_learning_rate", "num_train_epochs", "seed", "warmup_steps",
             "per_device_train_batch_size", "weight_decay", "lr_scheduler_type", "bf16", "max_steps")  # fmt: skip
    settings = {name: trainer.args.to_dict()[name] for name in shown}
    settings |= {"text": model_arguments.text, "vision": model_arguments.vision} | model_arguments.model_config
    metrics = _of(results, "eval_")
    references = {WITHOUT_PICTURES: _of(results, "text_only_")} if "text_only_f1" in results else {}
    best = trainer.args.load_best_model_at_end
    write_card(
        folder,
        model_name=trainer.args.hub_model_id or folder.name,
        data_name=Path(data_arguments.data_path).name,
        data_hashes=hashes,
        metrics=metrics if "f1" in metrics else {},
        settings=settings,
        labels=label_names,
        base_models=[model_arguments.text] if "/" in model_arguments.text and not Path(model_arguments.text).exists() else [],
        references=references | card_reference_scores,
        checkpoint="checkpoint with the best F1 there" if best else "checkpoint of the last epoch",
    )


def _of(results: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}


def _set_up_logging(arguments: MnerTrainingArguments):
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=arguments.get_process_log_level())
    transformers.utils.logging.set_verbosity(arguments.get_process_log_level())


if __name__ == "__main__":
    main()
