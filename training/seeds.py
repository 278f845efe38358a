"""Several runs that differ in their seed alone, and one table of their mean and spread."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mner_data.files import atomic_write, markdown_table

# The scores in the table: F1 in both conventions and F1 of each type, on every split that is scored.
SCORE = re.compile(r"(eval|text_only|test)_f1(_.*)?")
SEEDS_FILE = "seeds.json"


def run_seeds(
    run: Callable[[list[str]], dict[str, Any]], arguments: list[str], seeds: list[int], folder: Path, is_main_process: bool
) -> dict[str, Any]:
    """Run once a seed, each in a folder `seed-N` of its own.

    Args:
        run: `main` of train.py.
        arguments: those of the command line, without a seed.

    Returns:
        `seeds` (the scores of each), `mean` and `std` (sample standard deviation), as written to `seeds.json`.
    """
    scores: dict[int, dict[str, float]] = {}
    for seed in seeds:
        options = ["--seeds", "null", "--seed", str(seed), "--output_dir", str(folder / f"seed-{seed}")]
        results = run([*arguments, *options])
        scores[seed] = {name: value for name, value in results.items() if SCORE.fullmatch(name) and isinstance(value, float)}
    names = [name for name in scores[seeds[0]] if all(name in seed_scores for seed_scores in scores.values())]
    values = {name: [seed_scores[name] for seed_scores in scores.values()] for name in names}
    mean = {name: statistics.mean(values[name]) for name in names}
    std = {name: statistics.stdev(values[name]) for name in names}
    if is_main_process:
        with atomic_write(folder / SEEDS_FILE) as path:
            path.write_text(json.dumps({"seeds": scores, "mean": mean, "std": std}, indent=1), encoding="utf-8")
        rows = [[name, *(f"{x:.4f}" for x in values[name]), f"{mean[name]:.4f}", f"{std[name]:.4f}"] for name in names]
        print(markdown_table(["score", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"], rows))
    return {"seeds": scores, "mean": mean, "std": std}
