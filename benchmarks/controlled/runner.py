"""Runs experiments: each trains one model and scores it. The result is a line of `runs.jsonl` and is not made again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForTokenClassification, PrinterCallback, set_seed

from mner_data.loading import dataset_labels
from modeling_hamlearning import HamLearningForTokenClassification
from processors import HamLearningProcessor
from training.arguments import MnerTrainingArguments, ModelArguments
from training.build import FROM_SCRATCH, build
from training.calibration import calibrate
from training.collator import MnerCollator
from training.metric import ComputeMnerMetrics
from training.trainer import MnerTrainer
from training.vision_cache import VisionCache

from .baselines import PlainTagger, PooledTagger

VISION_CACHE = Path("outputs/vision_features")
MODEL_FIELDS = set(ModelArguments.__dataclass_fields__)
QUICK_STEPS, QUICK_POSTS = 4, 24
RUNS = "runs.jsonl"
CALIBRATION_SHARE = 0.1


@dataclass(frozen=True)
class Experiment:
    """One model, trained once.

    Args:
        section, data, model, seed: its name in files and tables. `model` says what is special about the model.
        settings: arguments of `train.py`, by their names.
        baseline: `plain` or `pooled`, to train that baseline in place of HamLearning.
        images: what the posts are trained with: their `own` images, `none`, `unrelated` ones or `another` post's.
        calibrated: whether a tenth of train is set aside, and the temperature of the scores fitted to it.
        curve: whether the first of the sets it is scored on is scored after every epoch too.
    """

    section: str
    data: str
    model: str
    seed: int
    settings: dict = field(default_factory=dict, compare=False)
    baseline: str | None = None
    images: str = "own"
    calibrated: bool = False
    curve: bool = False

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.section} {self.data} {self.model} {self.seed}".lower())


Splits = tuple[DatasetDict, dict[str, Dataset]]
Measure = Callable[[Experiment, nn.Module, HamLearningProcessor, MnerCollator, dict[str, Dataset]], dict[str, Any]]


def run_pending(
    experiments: list[Experiment],
    results: Path,
    load_data: Callable[[Experiment], Splits],
    measure: Measure | None = None,
    quick: bool = False,
    command: str = "",
    models: Path | None = None,
):
    """Run every experiment that `results/runs.jsonl` does not hold yet.

    Args:
        load_data: returns what an experiment is trained on, and the sets it is scored on by their names.
        measure: returns what an experiment measures besides F1.
        quick: train for a few steps on a few posts.
        command: the command that runs them, which is written beside each result.
        models: a folder to keep the trained models in, by the experiments' names; baselines are not kept.
    """
    results.mkdir(parents=True, exist_ok=True)
    done = {_name(run) for run in read_runs(results)}
    progress = tqdm([experiment for experiment in experiments if experiment.name not in done], desc="experiments")
    for experiment in progress:
        progress.set_postfix_str(experiment.name)
        result = run(experiment, *load_data(experiment), measure, quick, models) | {"command": command}
        with open(results / RUNS, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def read_runs(results: Path) -> list[dict[str, Any]]:
    """The results of all experiments that have been run, in the order of their names."""
    path = results / RUNS
    if not path.is_file():
        return []
    return sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=_name)


def _name(run: dict[str, Any]) -> str:
    return Experiment(run["section"], run["data"], run["model"], run["seed"]).name


def run(
    experiment: Experiment,
    data: DatasetDict,
    scored: dict[str, Dataset],
    measure: Measure | None = None,
    quick: bool = False,
    models: Path | None = None,
) -> dict[str, Any]:
    """Train the experiment's model and score it on each of its sets.

    Args:
        data: `train`, and the splits whose labels the model has to know.
        scored: the sets to score on by their names.
    """
    start, cpu_start = time.time(), time.process_time()
    if quick:
        data = DatasetDict({split: _first_rows(rows) for split, rows in data.items()})
        scored = {name: _first_rows(rows) for name, rows in scored.items()}
    labels = dataset_labels(data["train"])
    train, held_out = data["train"], None
    if experiment.calibrated:
        train, held_out = train.train_test_split(CALIBRATION_SHARE, seed=experiment.seed).values()
    set_seed(experiment.seed)
    model, processor, collator = _build(experiment, data, labels, [data["train"], *scored.values()])
    with tempfile.TemporaryDirectory() as folder:
        trainer = MnerTrainer(
            model=model,
            args=_training_arguments(experiment, folder, quick),
            data_collator=collator,
            train_dataset=train,
            eval_dataset=next(iter(scored.values())),
            compute_metrics=ComputeMnerMetrics(labels),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        temperature = calibrate(model, trainer, held_out) if experiment.calibrated else None
        if models is not None and isinstance(model, HamLearningForTokenClassification):
            for part in (model, processor):
                part.save_pretrained(models / experiment.name)
        scores = {}
        for name, rows in scored.items():
            metrics = trainer.evaluate(rows, metric_key_prefix=name)
            scores[name] = {metric: metrics[f"{name}_{metric}"] for metric in ("f1", "f1_strict", "gold_total")}
    measures = measure(experiment, model, processor, collator, scored) if measure else {}
    if experiment.calibrated:
        measures["temperature"] = temperature
    return {
        "section": experiment.section,
        "data": experiment.data,
        "model": experiment.model,
        "seed": experiment.seed,
        "scores": scores,
        "curve": [
            {name: log[name] for name in ("epoch", "loss", "eval_loss", "eval_f1") if name in log}
            for log in trainer.state.log_history
            if "loss" in log or "eval_loss" in log
        ],
        "measures": measures,
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "seconds": round(time.time() - start),
        "cpu_seconds": round(time.process_time() - cpu_start),
    }


def _commit() -> str | None:
    """The commit of this code; `None` where git does not know one."""
    if shutil.which("git") is None:
        return None
    command = ["git", "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


def _first_rows(rows: Dataset) -> Dataset:
    return rows.select(range(min(QUICK_POSTS, len(rows))))


def _build(
    experiment: Experiment, data: DatasetDict, labels: list[str], image_sets: list[Dataset]
) -> tuple[nn.Module, HamLearningProcessor, MnerCollator]:
    """The experiment's model, its processor, and the collator, which reads a frozen backbone's features from a cache."""
    arguments = ModelArguments(**{name: value for name, value in experiment.settings.items() if name in MODEL_FIELDS})
    hamlearning, processor = build(arguments, data, labels)
    model: nn.Module = hamlearning
    if experiment.baseline == "plain":
        model = PlainTagger(_plain_tagger(arguments, hamlearning, labels))
    elif experiment.baseline == "pooled":
        model = PooledTagger(hamlearning.model.text_encoder, hamlearning.model.vision_encoder, len(labels))
    collator = MnerCollator(processor)
    if experiment.baseline != "plain" and hamlearning.config.levels and arguments.freeze_vision:
        cache = VisionCache.of_backbone(VISION_CACHE, hamlearning.model, processor.image_processor)
        for rows in image_sets:
            cache.fill(rows["image"], hamlearning.model.eval(), processor.image_processor)
        collator.vision_cache = cache
    return model, processor, collator


def _plain_tagger(arguments: ModelArguments, hamlearning: HamLearningForTokenClassification, labels: list[str]):
    label_maps = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    if arguments.text == FROM_SCRATCH:
        config = hamlearning.config.text_config
        config.id2label, config.label2id = label_maps["id2label"], label_maps["label2id"]
        return AutoModelForTokenClassification.from_config(config)
    return AutoModelForTokenClassification.from_pretrained(arguments.text, **label_maps)


def _training_arguments(experiment: Experiment, folder: str, quick: bool) -> MnerTrainingArguments:
    defaults = {
        "output_dir": folder,
        "per_device_eval_batch_size": 64,
        "save_strategy": "no",
        "report_to": "none",
        "eval_strategy": "epoch" if experiment.curve and not quick else "no",
        "logging_steps": 25,
        "disable_tqdm": True,
        "seed": experiment.seed,
    }
    settings = {name: value for name, value in experiment.settings.items() if name not in MODEL_FIELDS}
    if quick:
        settings |= {"max_steps": QUICK_STEPS}
    return MnerTrainingArguments(**defaults | settings)
