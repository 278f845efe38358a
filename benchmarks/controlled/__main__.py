"""The controlled experiments: is each level of the paper used for what it is for, and does it do harm where it cannot help?

`python -m benchmarks.controlled [SECTION …] [--seeds 0 1 2]` runs every experiment that has not been run yet and writes
tables and plots. The sections are defaults, levels, relevance, text, paintings, phototweets and grounding. `--quick` trains
each for seconds, in a folder of its own. Real text and photos are read from the folder that `HAMLEARNING_DATA` names. A model
is scored after its last step. All settings are in `experiments.py`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from processors import HamLearningProcessor
from training.collator import MnerCollator

from .experiments import FULL, SECTIONS, WITHOUT_GROUNDING, experiments_for, load_data, photo_support
from .measures import f1_by_group, grounding, grounding_of_rules, post_counts, relevance_auc, scores_of_entities
from .report import RESULTS, write_report
from .runner import Experiment, run_pending

QUICK_RESULTS = Path("outputs/controlled_quick")


def main(arguments: list[str] | None = None):
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=f"some of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run only the experiments whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a few posts and steps each, to see that everything runs")
    parser.add_argument("--models", type=Path, help="a folder to keep the trained models in; default: they are not kept")
    options = parser.parse_args(arguments)
    results = QUICK_RESULTS if options.quick else RESULTS
    experiments = [
        experiment
        for section in options.sections
        for experiment in experiments_for(section, options.seeds)
        if options.only in experiment.name
    ]
    command = shlex.join(["python", "-m", "benchmarks.controlled", *arguments])
    run_pending(experiments, results, load_data, _measure, options.quick, command, options.models)
    write_report(results)
    print(f"written: {results}; `python -m benchmarks.controlled.report` updates the tables of the documents")


def _measure(
    experiment: Experiment, model: nn.Module, processor: HamLearningProcessor, collator: MnerCollator, scored: dict[str, Dataset]
) -> dict[str, Any]:
    """What is measured besides F1. The baselines have no relevance, no regions and no scores of entities."""
    if experiment.baseline is not None:
        return {}
    measures: dict[str, Any] = {}
    levels = model.config.levels
    if experiment.section == "levels" and levels and experiment.data in ("alignment", "iterations", "spatial", "figure1b"):
        columns = {"grounding": "deciding_region"}
        if experiment.data in ("iterations", "spatial"):
            columns["clue_grounding"] = "leading_region"
        measures |= grounding(model, processor, scored["test"], columns)
    if experiment.section == "phototweets":
        counts = {name: post_counts(model, collator, rows) for name, rows in scored.items()}
        measures["post_counts"] = counts
        support = photo_support()
        measures["f1_by_support"] = {
            name: f1_by_group(counts[name], [support[post] for post in rows["id"]]) for name, rows in scored.items()
        }
    if experiment.section in ("relevance", "paintings", "phototweets") and levels and "own" in scored:
        measures["relevance"] = relevance_auc(model, collator, scored["own"], scored["swapped"])
    if experiment.section == "grounding" or experiment.section == "phototweets" and experiment.model in (FULL, WITHOUT_GROUNDING):
        measures |= grounding_of_rules(model, processor, next(iter(scored.values())))
    if experiment.section == "text":
        measures |= scores_of_entities(model, processor, scored["valid"])
    return measures


if __name__ == "__main__":
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    main()
