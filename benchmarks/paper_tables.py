"""The paper's tables: main table, ablation, across data sets, noise, and curves (Figure 4). Needs the posts' own images.

`python -m benchmarks.paper_tables configs/paper.yaml --data DIR [--seeds 0 1 2] [--tables main ablation …] [--name value …]`
trains every model of the tables on every data set below DIR and scores it on the test split, or on validation where there is
no test. Each folder of DIR is a data set: prepared by `hub_scripts/prepare_dataset.py`, or CoNLL files with a folder `images/`.
`--name value` are arguments of `train.py`, which replace those of the config. A finished model is not trained again. Every
table includes a model of the text alone.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict
from transformers.utils import logging

from mner_data.files import markdown_table
from mner_data.loading import load_splits
from mner_data.readers import DataError
from training.arguments import NO_LEVELS, MnerTrainingArguments, ModelArguments, merge_config_and_cli

from .controlled.experiments import FULL, LEFT_OUT, PLAIN, POOLED, TEXT_ALONE
from .controlled.perturbations import NOISES, same_types, spoiled, with_another_posts_images, without_images
from .controlled.report import plot_curves, provenance, spread
from .controlled.runner import Experiment, Splits, read_runs, run_pending

# What the models of each table change in the config. Every table includes the full model and the text alone.
SHARED = {TEXT_ALONE: NO_LEVELS, FULL: {}}
ABLATION = LEFT_OUT | {"without relevance": {"use_relevance": False}, "without CRF": {"use_crf": False}}
TABLES = {
    "main": (PLAIN, TEXT_ALONE, POOLED, FULL),
    "ablation": (TEXT_ALONE, FULL, *ABLATION),
    "cross": (TEXT_ALONE, FULL),
    "noise": (TEXT_ALONE, FULL),
}
HEADINGS = {
    "main": "Main table",
    "ablation": "Ablation",
    "cross": "Trained on one data set, scored on the others",
    "noise": "Noise in place of the images",
}
OWN = "its own"


def main(arguments: list[str] | None = None):
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML of train.py")
    parser.add_argument("--data", required=True, type=Path, help="folder that holds a folder for each data set")
    parser.add_argument("--output", type=Path, default=Path("outputs/paper_tables"), help="folder of results, tables and curves")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    options, overrides = parser.parse_known_args(arguments)
    names = sorted(path.name for path in options.data.iterdir() if path.is_dir()) if options.data.is_dir() else []
    if not names:
        raise DataError(
            f"--data: expected a folder that holds a folder for each data set, got {options.data}, which has no folders"
        )
    settings = model_settings([options.config, *overrides])
    experiments = [
        experiment
        for seed in options.seeds
        for name in names
        for experiment in experiments_for(name, settings, options.tables, seed)
    ]
    command = shlex.join(["python", "-m", "benchmarks.paper_tables", *arguments])
    sets = load_sets(options.data, tuple(names))
    run_pending(experiments, options.output, lambda experiment: load_data(experiment, sets), command=command)
    write_tables(options.output, options.tables, command)
    print(f"written: {options.output}")


def model_settings(arguments: list[str]) -> dict[str, Any]:
    """What config and command line say about model and training, without what the experiments set themselves."""
    names = set(ModelArguments.__dataclass_fields__) | set(MnerTrainingArguments.__dataclass_fields__)
    names -= {"output_dir", "overwrite_output_dir", "seed", "do_train", "do_eval", "do_predict", "vision_cache"}
    return {name: value for name, value in merge_config_and_cli(arguments).items() if name in names}


def experiments_for(data: str, settings: dict[str, Any], tables: list[str], seed: int) -> Iterator[Experiment]:
    """The experiments that the tables need for one data set and seed."""
    models = {model for table in tables for model in TABLES[table]}
    model_config = settings.get("model_config", {})
    for model, switches in (SHARED | ABLATION).items():
        if model in models:
            images = "none" if model == TEXT_ALONE else "own"
            changed = settings | {"model_config": model_config | switches}
            yield Experiment("paper", data, model, seed, changed, images=images, curve=model in SHARED)
    if PLAIN in models:
        yield Experiment("paper", data, PLAIN, seed, settings, baseline="plain", images="none")
    if POOLED in models:
        yield Experiment("paper", data, POOLED, seed, settings, baseline="pooled")


@cache
def load_sets(folder: Path, names: tuple[str, ...]) -> dict[str, DatasetDict]:
    """The data sets in a folder, with one list of labels.

    Raises:
        DataError: a data set has nothing to train on or nothing to score on.
    """
    sets = {name: load_splits(str(folder / name))[0] for name in names}
    for name, splits in sets.items():
        if "train" not in splits or len(splits) == 1:
            raise DataError(f"{folder / name}: expected train and one of validation, test, got {', '.join(splits)}")
    return same_types(sets)


def load_data(experiment: Experiment, sets: dict[str, DatasetDict]) -> Splits:
    """What an experiment is trained on, and what it is scored on: the test split of its own and of the other data sets, or
    validation where there is no test; before them validation for the curve, where there are both."""
    last_splits = {name: splits["test" if "test" in splits else "validation"] for name, splits in sets.items()}
    own_rows, train = last_splits[experiment.data], sets[experiment.data]["train"]
    if experiment.images == "none":
        train = without_images(train)
        last_splits = {name: without_images(rows) for name, rows in last_splits.items()}
    scored = {}
    if {"validation", "test"} <= sets[experiment.data].keys():
        scored["validation"] = sets[experiment.data]["validation"]
    scored[OWN] = last_splits.pop(experiment.data)
    scored |= last_splits
    if experiment.model == FULL:
        scored["another post's"] = with_another_posts_images(own_rows, experiment.seed)
        scored["no image"] = without_images(own_rows)
        scored |= {name: spoiled(own_rows, noise) for name, noise in NOISES.items()}
    return DatasetDict({"train": train}), scored


def write_tables(output: Path, tables: list[str], command: str):
    """Write `tables.md` and a plot for each data set from the finished runs. `command` is the command that made them."""
    runs = read_runs(output)
    by_data: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_data[run["data"]][run["model"]].append(run)
    lines = [
        "# Tables",
        "",
        "F1 as default seqeval counts it / strict IOB2, in percent: mean ± standard deviation over the seeds.",
    ]
    for table in tables:
        if table != "cross" or len(by_data) > 1:
            lines += ["", f"## {HEADINGS[table]}", "", _noise(by_data) if table == "noise" else _table(table, by_data)]
    lines += ["", provenance(runs), f"`{command}`"]
    (output / "tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for data, models in by_data.items():
        plot_curves(models[TEXT_ALONE] + models[FULL], output / f"curves-{data}.png")


def _table(table: str, by_data: dict[str, dict[str, list[dict]]]) -> str:
    columns = [(data, data) for data in by_data]
    if table == "cross":
        columns = [(data, other) for data in by_data for other in by_data if other != data]
    header = ["", *(data if data == other else f"{data} → {other}" for data, other in columns)]
    lines = []
    for model in TABLES[table]:
        cells = (_cell(by_data[data][model], OWN if other == data else other) for data, other in columns)
        lines.append([model, *cells])
    return markdown_table(header, lines)


def _cell(runs: list[dict], scored_on: str) -> str:
    scores = [run["scores"][scored_on] for run in runs if scored_on in run["scores"]]
    return " / ".join(spread(score[metric] for score in scores) for metric in ("f1", "f1_strict")) if scores else "–"


def _noise(by_data: dict[str, dict[str, list[dict]]]) -> str:
    lines = [[TEXT_ALONE, "–", *(_cell(models[TEXT_ALONE], OWN) for models in by_data.values())]]
    for image in (OWN, "another post's", "no image", *NOISES):
        lines.append([FULL, image, *(_cell(models[FULL], image) for models in by_data.values())])
    return markdown_table(["", "image", *by_data], lines)


if __name__ == "__main__":
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    main()
