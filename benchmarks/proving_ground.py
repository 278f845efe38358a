"""The proving ground: does each level of the paper carry what it is for, and does it cost nothing where it cannot help?

`python -m benchmarks.proving_ground levels relevance text paintings [--seeds 0 1 2]` runs every row that is not done yet and
writes the tables and plots; `--quick` shrinks every row to seconds, in a folder of its own. Real text and photos are read
from the folder that `HAMLEARNING_DATA` names. A row is scored after its last step, with settings fixed in `ground_rows.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset, DatasetDict
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForTokenClassification, PrinterCallback, set_seed
from transformers.utils import logging

from modeling_hamlearning import HamLearningForTokenClassification
from processors import HamLearningProcessor
from train import FROM_SCRATCH, build
from training.arguments import MnerTrainingArguments, ModelArguments
from training.collator import MnerCollator
from training.data import labels_of
from training.trainer import MnerScores, MnerTrainer
from training.vision_cache import VisionCache

from .ground_measures import calibration, grounding, relevance_auc
from .ground_report import write_report
from .ground_rows import Row, data_of, rows_of
from .real_weights import vision_weights
from .rivals import PlainTagger, PooledTagger

SECTIONS = ("levels", "relevance", "text", "paintings")
RESULTS, QUICK_RESULTS = Path("benchmarks/results/proving_ground"), Path("outputs/proving_ground_quick")
VISION_CACHE = Path("outputs/vision_features")
MODEL_FIELDS = set(ModelArguments.__dataclass_fields__)
QUICK_STEPS, QUICK_POSTS = 4, 24


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=SECTIONS, help=f"of {', '.join(SECTIONS)}; all if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run only the rows whose name holds this")
    parser.add_argument("--quick", action="store_true", help="a few posts and steps a row: shows that all of it runs")
    options = parser.parse_args(arguments)
    results = QUICK_RESULTS if options.quick else RESULTS
    (results / "rows").mkdir(parents=True, exist_ok=True)
    rows = [row for section in options.sections for row in rows_of(section, options.seeds) if options.only in row.name]
    progress = tqdm([row for row in rows if not _file(results, row).is_file()], desc="rows")
    for row in progress:
        progress.set_postfix_str(row.name)
        result = run(row, quick=options.quick)
        # Under another name until it is whole: a killed run leaves no half row.
        unfinished = _file(results, row).with_suffix(".unfinished")
        unfinished.write_text(json.dumps(result, indent=1) + "\n")
        unfinished.replace(_file(results, row))
    write_report(results)
    print(f"written: {results}")


def _file(results: Path, row: Row) -> Path:
    return results / "rows" / f"{row.name}.json"


def run(row: Row, quick: bool = False) -> dict[str, Any]:
    """Train one row and score it on each of its sets."""
    began, cpu = time.time(), time.process_time()
    data, scored = data_of(row)
    if quick:
        data = DatasetDict({split: _first(rows) for split, rows in data.items()})
        scored = {name: _first(rows) for name, rows in scored.items()}
    names = labels_of(data["train"])
    set_seed(row.seed)
    model, processor, collator = _built(row, data, names, [data["train"], *scored.values()])
    with tempfile.TemporaryDirectory() as folder:
        trainer = MnerTrainer(
            model=model,
            args=_training_arguments(row, folder, quick),
            data_collator=collator,
            train_dataset=_with_length(data["train"]),
            eval_dataset=_with_length(next(iter(scored.values()))),
            compute_metrics=MnerScores(names),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
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
        "measures": _measures(row, model, processor, collator, scored),
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
    arguments = ModelArguments(vision_pretrained=False, **given)
    own, processor = build(arguments, data, names)
    processor.image_processor.image_mean = processor.image_processor.image_std = [0.5, 0.5, 0.5]
    model: nn.Module = own
    if row.rival == "plain":
        model = PlainTagger(_plain_tagger(arguments, own, names))
    elif own.config.levels:
        own.load_vision(vision_weights())
    if row.rival == "pooled":
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
    curves = row.section == "paintings" and row.rival is None and not quick
    return MnerTrainingArguments(
        **{"output_dir": folder, "per_device_eval_batch_size": 64, "save_strategy": "no", "report_to": "none"}
        | {"eval_strategy": "epoch" if curves else "no", "logging_steps": 25, "disable_tqdm": True, "seed": row.seed}
        | given
    )


def _measures(
    row: Row, model: nn.Module, processor: HamLearningProcessor, collator: MnerCollator, scored: dict[str, Dataset]
) -> dict[str, Any]:
    """What a row tells beside F1: only our model has relevance, regions and scores of entities."""
    if row.rival is not None:
        return {}
    measures: dict[str, Any] = {}
    levels = model.config.levels
    if row.section == "levels" and levels and row.data in ("alignment", "iterations", "spatial", "figure1b"):
        measures["grounding"] = grounding(model, processor, scored["test"])
    if row.section == "relevance" and levels:
        measures["relevance"] = relevance_auc(model, collator, scored["own"], scored["swapped"])
    if row.section == "paintings" and levels and "own" in scored:
        measures["relevance"] = relevance_auc(model, collator, scored["own"], scored["swapped"])
    if row.section == "text":
        measures["calibration"] = calibration(model, processor, scored["valid"])
    return measures


if __name__ == "__main__":
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    main()
