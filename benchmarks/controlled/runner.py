"""A row of a table: one training run and what it is scored on. A row that is done is a line of `runs.jsonl` and not run again."""

from __future__ import annotations

import json
import re
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


@dataclass(frozen=True)
class Row:
    """One training run.

    Args:
        section, data, model, seed: what it is called in files and tables.
        settings: arguments of `train.py`, by their names.
        rival: `plain` or `pooled` in place of our model.
        pictures: what a post is trained with: its `own` picture, `none`, an `unrelated` one or `another` post's.
        calibrated: whether a tenth of train is kept from training and the scores' temperature fitted to it.
        curve: whether the first of the sets it is scored on is scored after every epoch too.
    """

    section: str
    data: str
    model: str
    seed: int
    settings: dict = field(default_factory=dict, compare=False)
    rival: str | None = None
    pictures: str = "own"
    calibrated: bool = False
    curve: bool = False

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.section} {self.data} {self.model} {self.seed}".lower())


Splits = tuple[DatasetDict, dict[str, Dataset]]
Measure = Callable[[Row, nn.Module, HamLearningProcessor, MnerCollator, dict[str, Dataset]], dict[str, Any]]


def run_pending(
    rows: list[Row],
    results: Path,
    data_of: Callable[[Row], Splits],
    measure: Measure | None = None,
    quick: bool = False,
):
    """Run every row that `results/runs.jsonl` does not hold yet.

    Args:
        data_of: what a row is trained on, and the sets it is scored on by their names.
        measure: what a row tells beside F1.
        quick: a few posts and steps a row.
    """
    results.mkdir(parents=True, exist_ok=True)
    done = {_name(result) for result in read_rows(results)}
    progress = tqdm([row for row in rows if row.name not in done], desc="rows")
    for row in progress:
        progress.set_postfix_str(row.name)
        result = run(row, *data_of(row), measure, quick)
        with open(results / RUNS, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Every row that is done, in the order of their names."""
    path = results / RUNS
    if not path.is_file():
        return []
    return sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=_name)


def _name(result: dict[str, Any]) -> str:
    return Row(*(result[name] for name in ("section", "data", "model", "seed"))).name


def run(
    row: Row, data: DatasetDict, scored: dict[str, Dataset], measure: Measure | None = None, quick: bool = False
) -> dict[str, Any]:
    """Train one row and score it on each of its sets."""
    began, cpu = time.time(), time.process_time()
    if quick:
        data = DatasetDict({split: _first(rows) for split, rows in data.items()})
        scored = {name: _first(rows) for name, rows in scored.items()}
    names = dataset_labels(data["train"])
    train, kept = data["train"], None
    if row.calibrated:
        train, kept = train.train_test_split(0.1, seed=row.seed).values()
    set_seed(row.seed)
    model, processor, collator = _built(row, data, names, [data["train"], *scored.values()])
    with tempfile.TemporaryDirectory() as folder:
        trainer = MnerTrainer(
            model=model,
            args=_training_arguments(row, folder, quick),
            data_collator=collator,
            train_dataset=_with_length(train),
            eval_dataset=_with_length(next(iter(scored.values()))),
            compute_metrics=ComputeMnerMetrics(names),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        temperature = calibrate(model, trainer, kept) if row.calibrated else None
        scores = {name: trainer.evaluate(_with_length(rows), metric_key_prefix=name) for name, rows in scored.items()}
    result = {
        "section": row.section,
        "data": row.data,
        "model": row.model,
        "seed": row.seed,
        "scores": {
            name: {metric: of_set[f"{name}_{metric}"] for metric in ("f1", "f1_strict", "gold_total")}
            for name, of_set in scores.items()
        },
        "curve": [
            {name: log[name] for name in ("epoch", "loss", "eval_loss", "eval_f1") if name in log}
            for log in trainer.state.log_history
            if "loss" in log or "eval_loss" in log
        ],
        "measures": (measure(row, model, processor, collator, scored) if measure else {})
        | ({"temperature": temperature} if row.calibrated else {}),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - began),
        "cpu_seconds": round(time.process_time() - cpu),
    }
    return result


def _first(rows: Dataset) -> Dataset:
    return rows.select(range(min(QUICK_POSTS, len(rows))))


def _with_length(rows: Dataset) -> Dataset:
    """With what the Trainer groups posts by."""
    return rows.add_column("length", [len(tokens) for tokens in rows["tokens"]])


def _built(
    row: Row, data: DatasetDict, names: list[str], shown: list[Dataset]
) -> tuple[nn.Module, HamLearningProcessor, MnerCollator]:
    """The row's model and what makes its batches; the features of a frozen backbone come from the cache on disk."""
    given = {name: value for name, value in row.settings.items() if name in MODEL_FIELDS}
    arguments = ModelArguments(**given)
    own, processor = build(arguments, data, names)
    model: nn.Module = own
    if row.rival == "plain":
        model = PlainTagger(_plain_tagger(arguments, own, names))
    elif row.rival == "pooled":
        model = PooledTagger(own.model.text_encoder, own.model.vision_encoder, len(names))
    collator = MnerCollator(processor)
    if row.rival != "plain" and own.config.levels and arguments.freeze_vision:
        cache = VisionCache.of_backbone(VISION_CACHE, own.model, processor.image_processor)
        for rows in shown:
            cache.fill(rows["image"], own.model.eval(), processor.image_processor)
        collator.vision_cache = cache
    return model, processor, collator


def _plain_tagger(arguments: ModelArguments, own: HamLearningForTokenClassification, names: list[str]):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if arguments.text == FROM_SCRATCH:
        config = own.config.text_config
        config.id2label, config.label2id = labels["id2label"], labels["label2id"]
        return AutoModelForTokenClassification.from_config(config)
    return AutoModelForTokenClassification.from_pretrained(arguments.text, **labels)


def _training_arguments(row: Row, folder: str, quick: bool) -> MnerTrainingArguments:
    given = {name: value for name, value in row.settings.items() if name not in MODEL_FIELDS}
    if quick:
        given |= {"max_steps": QUICK_STEPS}
    curve = row.curve and not quick
    return MnerTrainingArguments(
        **{"output_dir": folder, "per_device_eval_batch_size": 64, "save_strategy": "no", "report_to": "none"}
        | {"eval_strategy": "epoch" if curve else "no", "logging_steps": 25, "disable_tqdm": True, "seed": row.seed}
        | given
    )
