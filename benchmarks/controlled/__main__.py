"""The controlled experiments: does each level of the paper carry what it is for, and does it cost nothing where it cannot help?

`python -m benchmarks.controlled levels relevance text paintings [--seeds 0 1 2]` runs every row that is not done yet and
writes the tables and plots; `--quick` shrinks every row to seconds, in a folder of its own. Real text and photos are read
from the folder that `HAMLEARNING_DATA` names. A row is scored after its last step, with settings fixed in `experiments.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from processors import HamLearningProcessor
from training.collator import MnerCollator

from .experiments import data_of, rows_of
from .measures import grounding, relevance_auc, scores_of_entities
from .report import write_report
from .runner import Row, run_pending

SECTIONS = ("levels", "relevance", "text", "paintings")
RESULTS, QUICK_RESULTS = Path("benchmarks/results/controlled"), Path("outputs/controlled_quick")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=SECTIONS, help=f"of {', '.join(SECTIONS)}; all if not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run only the rows whose name holds this")
    parser.add_argument("--quick", action="store_true", help="a few posts and steps a row: shows that all of it runs")
    options = parser.parse_args(arguments)
    results = QUICK_RESULTS if options.quick else RESULTS
    rows = [row for section in options.sections for row in rows_of(section, options.seeds) if options.only in row.name]
    run_pending(rows, results, data_of, _measures, options.quick)
    write_report(results)
    print(f"written: {results}")


def _measures(
    row: Row, model: nn.Module, processor: HamLearningProcessor, collator: MnerCollator, scored: dict[str, Dataset]
) -> dict[str, Any]:
    """What a row tells beside F1: only our model has relevance, regions and scores of entities."""
    if row.rival is not None:
        return {}
    measures: dict[str, Any] = {}
    levels = model.config.levels
    if row.section == "levels" and levels and row.data in ("alignment", "iterations", "spatial", "figure1b"):
        columns = {"grounding": "deciding_region"}
        if row.data in ("iterations", "spatial"):
            columns["led"] = "leading_region"
        measures |= grounding(model, processor, scored["test"], columns)
    if row.section == "relevance" and levels:
        measures["relevance"] = relevance_auc(model, collator, scored["own"], scored["swapped"])
    if row.section == "paintings" and levels and "own" in scored:
        measures["relevance"] = relevance_auc(model, collator, scored["own"], scored["swapped"])
    if row.section == "text":
        measures |= scores_of_entities(model, processor, scored["valid"])
    return measures


if __name__ == "__main__":
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    main()
