"""Train HamLearning: `python train.py configs/demo.yaml`, or `accelerate launch train.py …`; `--name value` overrides the file.

`--model FOLDER` takes a trained model in place of the encoders: with `--do_eval` or `--do_predict` alone it is scored, with
`--do_train` it is trained further. `--seeds 1 2 3` runs once a seed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from datasets import Dataset, DatasetDict
from transformers import pipeline, set_seed

from mner_data.files import atomic_write
from mner_data.loading import check_images, count_images_without_regions, dataset_labels, load_splits
from mner_data.options import warn_of_unused_options
from mner_data.readers import DataError
from mner_data.synthetic_posts import synthetic_splits
from modeling_hamlearning import HamLearningForTokenClassification
from modeling_hamlearning.pipeline_mner import conll_post
from processors import HamLearningProcessor
from training.arguments import NO_LEVELS, DataArguments, MnerTrainingArguments, ModelArguments, check_keys, parse_arguments
from training.build import FROM_SCRATCH, build
from training.calibration import calibrate
from training.card import WITHOUT_IMAGES, read_reference_scores, scores_table, write_card
from training.checkpoints import (
    check_resumable,
    check_writable,
    checkpoints,
    explain_write_errors,
    last_complete_checkpoint,
    reserve,
)
from training.collator import ImagesLostError, MnerCollator
from training.curves import plot_curves
from training.errors import confusion_markdown, write_errors
from training.labels import add_labels, match_labels
from training.lora import add_lora
from training.metric import ComputeMnerMetrics
from training.search import search_hyperparameters
from training.seeds import run_seeds
from training.settings import run_settings
from training.trainer import MnerTrainer, NotFiniteError
from training.vision_cache import VisionCache

logger = logging.getLogger("train")

# Labels from which on the CRF's time is worth a warning.
MANY_LABELS = 400
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
        Every score, as in `all_results.json`; with `seeds`, those of each, their mean and their standard deviation.

    Raises:
        DataError: the data cannot be used.
        OutputError: `output_dir` cannot be written, or belongs to another run.
        ValueError: arguments that contradict each other.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    model_arguments, data_arguments, training_arguments = parse_arguments(arguments)
    _set_up_logging(training_arguments)
    _check_task(model_arguments, training_arguments)
    if training_arguments.seeds is not None:
        is_main_process = training_arguments.process_index == 0
        return run_seeds(main, arguments, training_arguments.seeds, Path(training_arguments.output_dir), is_main_process)
    set_seed(training_arguments.seed)
    of_card = [f"--{name}" for name in ("license", "language", "card_reference_scores") if getattr(data_arguments, name)]
    if of_card and not training_arguments.do_train:
        logger.warning("%s: not used, a card is written where a model is trained (--do_train)", ", ".join(of_card))
    reference_scores = read_reference_scores(data_arguments.card_reference_scores)
    folder = Path(training_arguments.output_dir)
    check_writable(folder)
    data, hashes = _load_data(data_arguments)
    for option, split in (
        ("do_train", "train"),
        ("do_eval", "validation"),
        ("do_predict", "test"),
        ("calibrate", "validation"),
        ("hyperparameter_search", "validation"),
    ):
        if getattr(training_arguments, option):
            _require_split(data, split, f"--{option}")
    label_names = dataset_labels(next(iter(data.values())))
    metric = (training_arguments.metric_for_best_model or "").removeprefix("eval_")
    if metric.startswith("f1_"):
        # Only of these there is a score after every evaluation.
        used = (
            {label_names[tag] for tags in data["validation"]["ner_tags"] for tag in tags} if "validation" in data else label_names
        )
        check_keys("metric_for_best_model", [metric], {"f1_strict", *(f"f1_{name[2:]}" for name in used if name != "O")})
    if data_arguments.use_images:
        check_images(data)
    else:
        data = DatasetDict({split: _without_images(rows) for split, rows in data.items()})
        if model_arguments.model is None:  # a trained model keeps its levels, which posts without an image do not use
            model_arguments.model_config = model_arguments.model_config | NO_LEVELS
    settings = run_settings(model_arguments, data_arguments, training_arguments, hashes, data, label_names)
    with reserve(
        folder,
        settings | _task(training_arguments),
        training_arguments.overwrite_output_dir,
        training_arguments.process_index == 0,
        training_arguments.do_train,
    ):
        return _run(
            folder, model_arguments, data_arguments, training_arguments, data, hashes, label_names, settings, reference_scores
        )


def cli():
    """Entry point of the command line: one line for each error that the user can mend."""
    try:
        main()
    except (ValueError, OSError, yaml.YAMLError, NotFiniteError, ImagesLostError) as error:
        if logging.root.isEnabledFor(logging.DEBUG):
            raise  # `--log_level debug` shows where
        sys.exit(f"train: {' '.join(str(error).split())}")


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
    if arguments.hyperparameter_search is not None and not (arguments.do_train and arguments.hyperparameter_search > 0):
        raise ValueError(
            "--hyperparameter_search: expected a number of trials above 0, and --do_train beside it, "
            f"got {arguments.hyperparameter_search} and --do_train {str(arguments.do_train).lower()}"
        )
    if arguments.hyperparameter_search is not None and arguments.world_size > 1:
        raise ValueError(f"--hyperparameter_search runs on one process: expected 1, got {arguments.world_size}")
    for option, value, package, extra in (
        ("hyperparameter_search", arguments.hyperparameter_search, "optuna", "search"),
        ("lora_rank", model.lora_rank, "peft", "lora"),
    ):
        if value is not None and find_spec(package) is None:
            raise ValueError(f"--{option} needs the package {package}: pip install -e '.[{extra}]' in the checkout")
    if model.lora_rank is not None and model.model is None and (model.text == FROM_SCRATCH or not model.text_pretrained):
        raise ValueError("--lora_rank keeps the text encoder's own weights: expected a pretrained one, got one from scratch")
    if arguments.seeds is not None:
        if not isinstance(arguments.seeds, list) or len(set(arguments.seeds)) < 2:
            raise ValueError(f"--seeds: expected two different ones or more, got {arguments.seeds}")
        if not arguments.do_train or arguments.push_to_hub:
            raise ValueError("--seeds trains a model a seed: expected --do_train and no --push_to_hub")
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
    if model_arguments.model is not None and training_arguments.do_train:
        _add_new_types(model, data, label_names)
    if model.config.label_names != label_names:
        data = DatasetDict(
            {split: match_labels(rows, model.config.label_names, f"split {split}") for split, rows in data.items()}
        )
        label_names = model.config.label_names
    if len(label_names) > MANY_LABELS and model.config.use_crf:
        logger.warning(
            "%d labels: the CRF scores %s pairs of them for each word, so training and tagging take long; "
            "model_config {use_crf: false} trains without these scores", len(label_names), f"{len(label_names) ** 2:,}",
        )  # fmt: skip
    if training_arguments.do_train:
        _warn_of_missing_regions(model, processor, data["train"])
    if training_arguments.hyperparameter_search is not None:
        best = _search(folder, model_arguments, training_arguments, data, label_names, processor)
        for name, value in best.items():
            setattr(training_arguments, name, value)
    adapters = None if model_arguments.lora_rank is None else add_lora(model, model_arguments.lora_rank)
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
    )
    if model_arguments.vision_cache is not None:
        trainer.data_collator.vision_cache = _fill_vision_cache(model_arguments, trainer, data)
    results: dict[str, Any] = {}
    if training_arguments.do_train:
        results |= trainer.train(resume_from_checkpoint=resume).metrics
        trainer.save_state()
        if adapters is not None:
            adapters.merge_and_unload()
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
        results |= _report(trainer, data["validation"], "validation", "eval", results, label_names)
    if training_arguments.do_predict:
        output = trainer.predict(data["test"], metric_key_prefix="test")
        results |= output.metrics | _label_hash("test", hashes.get("test"))
        # A pair where entities have boxes: label ids, and whether the regions are right.
        label_ids = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        if trainer.is_world_process_zero():
            write_predictions(folder / "predictions.txt", data["test"], label_ids, label_names)
        _save_results(trainer, results)
        results |= _report(trainer, data["test"], "test", "test", results, label_names)
    results |= trainer.image_counts()
    if results["images_unreadable"]:
        tried = results["images_read"] + results["images_unreadable"]
        logger.warning("%d of %d times an image could not be read", results["images_unreadable"], tried)
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
    with atomic_write(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for row, label_ids in zip(rows, predictions, strict=True):
            gold = [label_names[label] for label in row["ner_tags"]]
            predicted = [label_names[label] for label in label_ids[: len(gold)]]
            file.write(conll_post(row["id"], row["tokens"], gold, predicted))


def _load_data(arguments: DataArguments) -> tuple[DatasetDict, dict[str, str]]:
    options = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
    limits = {split: getattr(arguments, option) for split, option in options.items()}
    for split, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"--{options[split]}: expected a number of posts above 0, got {limit}")
    if arguments.data_path == "synthetic":
        warn_of_unused_options(arguments)
        data, hashes = synthetic_splits(arguments.synthetic_posts), {}
    else:
        if arguments.synthetic_posts != DataArguments().synthetic_posts:
            logger.warning("--synthetic_posts: not used, the posts are those of --data_path %s", arguments.data_path)
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
    for split, limit in limits.items():
        if limit is not None and split in data:
            data[split] = data[split].select(range(min(limit, len(data[split]))))
    return data, hashes


def _add_new_types(model: HamLearningForTokenClassification, data: DatasetDict, label_names: list[str]):
    """Give a trained model the types that only the data has, and log which types stay, start and are not in the data."""
    used = {label_names[tag] for rows in data.values() for tags in rows["ner_tags"] for tag in tags}
    in_data, known = ({name[2:] for name in names if name != "O"} for names in (used, model.config.label_names))
    add_labels(model, [name for name in label_names if name[2:] in in_data])
    for what, types in (
        ("types that go on with the trained model's scores", in_data & known),
        ("new types, whose scores start anew", in_data - known),
        ("types of the trained model that the data does not have, which it will learn not to find", known - in_data),
    ):
        if types:
            logger.warning("%s: %s", what, ", ".join(sorted(types)))


def _warn_of_missing_regions(model: HamLearningForTokenClassification, processor: HamLearningProcessor, rows: Dataset):
    """Say how many training posts have no regions, because none come with them and the model is told to find none; or have
    theirs found again in every epoch.
    """
    finds_none, detects = processor.region_config["name"] == "precomputed", processor.needs_image(None)
    if set(model.config.levels) <= {"global"} or not (finds_none or detects) or not (count := count_images_without_regions(rows)):
        return
    if detects:
        logger.warning(
            "a detector looks at %d images in every epoch, and in the processes of a data loader it has no GPU: "
            "hub_scripts.prepare_dataset --regions finds their regions once", count,
        )  # fmt: skip
    else:
        logger.warning(
            "%d of %d training posts have an image but bring no boxes, and region_config {name: precomputed} finds none: their "
            "regions are left out. {name: anchors} finds some, ['precomputed', 'anchors'] adds them to those that posts bring",
            count, len(rows),
        )  # fmt: skip


def _without_images(rows: Dataset) -> Dataset:
    return rows.remove_columns("image") if "image" in rows.column_names else rows


def _require_split(data: DatasetDict, split: str, option: str):
    if split not in data:
        raise DataError(f"{option} needs a {split} split; the data has {', '.join(data)}")


def _search(
    folder: Path,
    model_arguments: ModelArguments,
    training_arguments: MnerTrainingArguments,
    data: DatasetDict,
    label_names: list[str],
    processor: HamLearningProcessor,
) -> dict[str, Any]:
    """The best values of the search; those of an earlier run of this folder that was interrupted after it."""
    file = folder / "hyperparameters.json"
    if file.is_file() and not training_arguments.overwrite_output_dir:
        best = json.loads(file.read_text())
        logger.warning("%s holds the values that an earlier search found: %s", file, best)
        return best

    def make_model() -> HamLearningForTokenClassification:
        model, _ = build(model_arguments, data, label_names)
        add_labels(model, label_names)
        if model_arguments.lora_rank is not None:
            add_lora(model, model_arguments.lora_rank)
        return model

    best = search_hyperparameters(make_model, processor, data["train"], data["validation"], training_arguments, label_names)
    if training_arguments.process_index == 0:
        with explain_write_errors("the hyperparameters", folder), atomic_write(file) as path:
            path.write_text(json.dumps(best, indent=1))
        print(f"best of {training_arguments.hyperparameter_search} trials: {json.dumps(best)}")
    return best


def _report(
    trainer: MnerTrainer, rows: Dataset, split: str, prefix: str, results: dict[str, Any], label_names: list[str]
) -> dict[str, Any]:
    """Print a split's scores and write its errors: `errors.html` and others, those of the test split as `test_errors.html`."""
    is_main_process, folder = trainer.is_world_process_zero(), Path(trainer.args.output_dir)
    if is_main_process:
        types = sorted({name[2:] for name in label_names if name != "O"})
        print(f"scores on the {split} split:\n{scores_table(_with_prefix(results, f'{prefix}_'), types, {})}")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        logger.warning("the errors are not written: the model is in parts; --model FOLDER --do_eval on one process writes them")
        return {}
    # Every process tags all posts, so that none waits for long.
    ner = pipeline("mner", model=trainer.model, processor=trainer.processing_class, device=trainer.args.device)
    with trainer.compute_loss_context_manager():
        report = write_errors(
            ner,
            rows,
            folder,
            split,
            batch_size=trainer.args.eval_batch_size,
            prefix="" if split == "validation" else f"{split}_",
            is_main_process=is_main_process,
        )
    return {f"{prefix}_{name}": value for name, value in report.items()}


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
    encoders = {"text": _card_name(model_arguments.text), "vision": model_arguments.vision} | model_arguments.model_config
    base = model_arguments.text
    if model_arguments.lora_rank is not None:
        encoders |= {"lora_rank": model_arguments.lora_rank}
    if model_arguments.model is not None:
        encoders, base = {"model": _card_name(model_arguments.model)}, model_arguments.model
    metrics = _with_prefix(results, "eval_")
    references = {WITHOUT_IMAGES: _with_prefix(results, "text_only_")} if "text_only_f1" in results else {}
    notes = []
    if results["images_unreadable"]:
        tried = results["images_read"] + results["images_unreadable"]
        notes.append(
            f"{results['images_unreadable']} of {tried} times an image could not be read during this run; the "
            "post was then read by its text alone."
        )
    checkpoint = "checkpoint of the last epoch"
    if trainer.args.load_best_model_at_end:
        metric = (trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
        checkpoint = f"checkpoint with the best {'F1' if metric == 'f1' else metric} there"
    config = trainer.accelerator.unwrap_model(trainer.model).config
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
        checkpoint=checkpoint,
        notes=notes,
        test_metrics=_with_prefix(results, "test_") if "test_f1" in results else None,
        confusion=confusion_markdown(results["eval_confusion"]) if "eval_confusion" in results else "",
        levels=config.levels,
        is_grounded=config.has_grounding,
        license=data_arguments.license,
        language=data_arguments.language,
        dataset=_on_the_hub(data_arguments.data_path),
    )


def _card_name(model: str) -> str:
    """A model's name on the Hub, or the last part of its path: where a folder lies on one's own disk is not for the card."""
    return Path(model).name if Path(model).exists() else model


def _on_the_hub(name: str) -> str | None:
    """The name if it is a repo's on the Hub, not a path of this machine."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def _with_prefix(results: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The scores whose names start with the prefix, by their names without it."""
    return {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}


def _set_up_logging(arguments: MnerTrainingArguments):
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=arguments.get_process_log_level())
    transformers.utils.logging.set_verbosity(arguments.get_process_log_level())
    if arguments.log_level == "passive" and arguments.should_log:
        # By default transformers shows warnings only. What data are read, and what training makes of them, should be seen
        # without asking.
        for name in ("mner_data", "training"):
            logging.getLogger(name).setLevel(logging.INFO)


if __name__ == "__main__":
    cli()
