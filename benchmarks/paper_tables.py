"""The paper's tables for whoever has the photos: main table, ablation, across data sets, noise, and curves (Figure 4).

`python -m benchmarks.paper_tables configs/paper.yaml --data DIR [--seeds 0 1 2] [--tables main ablation …] [--name value …]`
trains every row on every data set below DIR and scores it on its test split, or on validation where there is none. Each folder
of DIR is a data set: prepared by `hub_scripts/prepare_dataset.py`, or CoNLL files with `images/` beside them. `--name value`
are arguments of `train.py` over those of the config. A row that is done is not run again; a text-only row stands in every table.
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

from mner_data.loading import load_splits
from mner_data.readers import DataError
from training.arguments import NO_LEVELS, MnerTrainingArguments, ModelArguments, merge_config_and_cli

from .controlled.experiments import LEFT_OUT, NOISES, another_posts, same_types, spoiled, with_pictures
from .controlled.report import plot_curves, provenance, spread
from .controlled.runner import Row, Splits, read_rows, run_pending

# Rows by table: what each has on top of the config. The full model and the text alone stand in all of them.
FULL, TEXT_ALONE, PLAIN, POOLED = "full model", "text alone", "plain recipe", "pooled image"
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
    "cross": "Trained on one set, scored on the others",
    "noise": "Noise in place of the pictures",
}
OWN = "its own"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML of train.py")
    parser.add_argument("--data", required=True, type=Path, help="folder with a folder a data set")
    parser.add_argument("--output", type=Path, default=Path("outputs/paper_tables"), help="rows, tables and curves")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    options, over = parser.parse_known_args(arguments)
    sets = sorted(path.name for path in options.data.iterdir() if path.is_dir()) if options.data.is_dir() else []
    if not sets:
        raise DataError(f"--data: {options.data} has no folders; each is to be a data set with photos")
    settings = row_settings([options.config, *over])
    rows = [row for seed in options.seeds for name in sets for row in rows_of(name, settings, options.tables, seed)]
    run_pending(rows, options.output, lambda row: data_of(row, load_sets(options.data, tuple(sets))))
    given = sys.argv[1:] if arguments is None else arguments
    write_tables(options.output, options.tables, shlex.join(["python", "-m", "benchmarks.paper_tables", *given]))
    print(f"written: {options.output}")


def row_settings(arguments: list[str]) -> dict[str, Any]:
    """What the config and the command line say of model and training; where and what `train.py` writes is not a row's."""
    kept = set(ModelArguments.__dataclass_fields__) | set(MnerTrainingArguments.__dataclass_fields__)
    dropped = {"output_dir", "overwrite_output_dir", "seed", "do_train", "do_eval", "do_predict", "vision_cache"}
    given = merge_config_and_cli(arguments)
    return {name: value for name, value in given.items() if name in kept - dropped}


def rows_of(data: str, settings: dict[str, Any], tables: list[str], seed: int) -> Iterator[Row]:
    wanted = {name for table in tables for name in TABLES[table]}
    own = settings.get("model_config", {})
    for name, switch in (SHARED | ABLATION).items():
        if name in wanted:
            pictures = "none" if name == TEXT_ALONE else "own"
            yield Row("paper", data, name, seed, settings | {"model_config": own | switch}, None, pictures, curve=True)
    if PLAIN in wanted:
        yield Row("paper", data, PLAIN, seed, settings, rival="plain", pictures="none")
    if POOLED in wanted:
        yield Row("paper", data, POOLED, seed, settings, rival="pooled")


@cache
def load_sets(folder: Path, names: tuple[str, ...]) -> dict[str, DatasetDict]:
    """The data sets below a folder, with one list of labels."""
    sets = {name: load_splits(str(folder / name))[0] for name in names}
    for name, splits in sets.items():
        if "train" not in splits or len(splits) == 1:
            raise DataError(f"{folder / name}: has {', '.join(splits)}; train and one of validation, test are wanted")
    return same_types(sets)


def data_of(row: Row, data: dict[str, DatasetDict]) -> Splits:
    """A row's training posts, and what it is scored on: validation for the curve, then its own and the others' last split."""
    last = {name: splits["test" if "test" in splits else "validation"] for name, splits in data.items()}
    own = last[row.data]
    train = data[row.data]["train"]
    if row.pictures == "none":
        train = with_pictures(train, [None] * len(train))
        last = {name: with_pictures(rows, [None] * len(rows)) for name, rows in last.items()}
    scored = {"validation": data[row.data]["validation"]} if "validation" in data[row.data] else {}
    scored |= {OWN: last[row.data]} | {name: rows for name, rows in last.items() if name != row.data}
    if row.model == FULL:
        scored["another post's"] = with_pictures(own, another_posts(own["image"], row.seed))
        scored["no picture"] = with_pictures(own, [None] * len(own))
        scored |= {noise: spoiled(own, spoil) for noise, spoil in NOISES.items()}
    return DatasetDict({"train": train}), scored


def write_tables(output: Path, tables: list[str], command: str):
    """`tables.md` and a plot a data set, from the rows that are done; `command` made them."""
    done: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    rows = read_rows(output)
    for row in rows:
        done[row["data"]][row["model"]].append(row)
    lines = [
        "# Tables",
        "",
        "F1 as default seqeval counts it / strict IOB2, in percent: mean ± standard deviation over the seeds.",
    ]
    for table in tables:
        lines += ["", f"## {HEADINGS[table]}", ""]
        if table == "noise":
            lines += _noise(done)
        else:
            columns = [(data, data) for data in done]
            if table == "cross":
                columns = [(data, other) for data in done for other in done if other != data]
            lines += [
                "| | " + " | ".join(_column(*column) for column in columns) + " |",
                "|---" * (len(columns) + 1) + "|",
            ]
            for model in TABLES[table]:
                cells = [_cell(done[data][model], OWN if on == data else on) for data, on in columns]
                lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", provenance(rows), f"`{command}`"]
    (output / "tables.md").write_text("\n".join(lines) + "\n")
    for data, models in done.items():
        shown = {(data, model): models[model] for model in (TEXT_ALONE, FULL) if models[model]}
        plot_curves(shown, output / f"curves-{data}.png")


def _column(data: str, on: str) -> str:
    return data if data == on else f"{data} → {on}"


def _cell(rows: list[dict], scored_on: str) -> str:
    scores = [row["scores"][scored_on] for row in rows if scored_on in row["scores"]]
    if not scores:
        return "–"
    return " / ".join(spread([of_seed[metric] for of_seed in scores]) for metric in ("f1", "f1_strict"))


def _noise(done: dict[str, dict[str, list[dict]]]) -> list[str]:
    lines = ["| | picture | " + " | ".join(done) + " |", "|---" * (len(done) + 2) + "|"]
    lines.append(f"| {TEXT_ALONE} | – | " + " | ".join(_cell(models[TEXT_ALONE], OWN) for models in done.values()) + " |")
    for picture in (OWN, "another post's", "no picture", *NOISES):
        cells = [_cell(models[FULL], picture) for models in done.values()]
        lines.append(f"| {FULL} | {picture} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    main()
