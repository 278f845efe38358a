"""Compare two trained models on the same posts: `python -m training.compare_runs A B --data_path my_data`.

A and B are output folders of train.py or repos on the Hub. What is printed: F1 of both, the difference with a 95 % interval of
the paired bootstrap (Berg-Kirkpatrick et al. 2012) over posts, and the entities on which the models differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import pipeline

from mner_data.files import OutputError, atomic_write, markdown_table
from mner_data.loading import dataset_labels, load_splits
from mner_data.options import add_reading_options, parse_column_names, warn_of_unused_options
from mner_data.readers import DataError
from mner_data.synthetic_posts import synthetic_splits

from .checkpoints import check_writable
from .errors import Counts, Entity, count_entities, gold_entities, predicted_entities, tag_rows

SAMPLES = 10_000
# Entities that are printed; the file has all.
PRINTED = 20


def paired_bootstrap(
    counts_a: list[Counts] | np.ndarray, counts_b: list[Counts] | np.ndarray, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """F1 of B less F1 of A, and the bounds of its 95 % interval: both models are scored on the same posts of each sample.

    Args:
        counts_a, counts_b: [`Counts`] of each post (posts, 3), in the same order. Of a model that was trained with several seeds
            (seeds, posts, 3); then F1 is the mean over seeds, and each sample draws seeds too.
    """
    counts = np.stack([counts_a, counts_b]).astype(float)
    counts = counts[:, None] if counts.ndim == 3 else counts
    _, num_seeds, num_posts, _ = counts.shape
    generator, differences = np.random.default_rng(seed), np.empty(samples)
    for place in range(samples):
        seeds, posts = generator.integers(num_seeds, size=num_seeds), generator.integers(num_posts, size=num_posts)
        differences[place] = _difference(counts[:, seeds[:, None], posts])
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(_difference(counts)), float(low), float(high)


def _difference(counts: np.ndarray) -> float:
    """(2, seeds, posts, 3) → the mean of F1 of the second less that of the first."""
    f1 = [[Counts(*seed_counts).f1 for seed_counts in model_counts] for model_counts in counts.sum(2)]
    return float(np.mean(f1[1]) - np.mean(f1[0]))


def differing_entities(row: dict[str, Any], label_names: list[str], results: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """The entities of a post, gold ones and others, that one of the two models has and the other has not.

    Returns:
        A dict an entity: `id`, `text`, `entity_group`, `word`, `word_start`, `word_end`, `is_gold`, and `found_by`, which model.
    """
    gold = set(gold_entities(row, label_names))
    found = {name: set(predicted_entities(result)) for name, result in results.items()}
    only_one = set.symmetric_difference(*found.values())
    return [
        {
            "id": row["id"], "text": " ".join(row["tokens"]), "entity_group": entity.type,
            "word": " ".join(row["tokens"][entity.start : entity.end]), "word_start": entity.start, "word_end": entity.end,
            "is_gold": entity in gold, "found_by": next(name for name, entities in found.items() if entity in entities),
        }
        for entity in sorted(only_one, key=lambda entity: (entity.start, entity.end, entity.type))
    ]  # fmt: skip


def compare(a: str, b: str, rows: Dataset, batch_size: int = 32) -> dict[str, Any]:
    """Tag the rows with both models and compare.

    Returns:
        `f1` of `A` and `B`, `difference` (B less A), `interval` (its 95 % interval), `num_posts`, and `differing`: the
        entities that one of them found, as [`differing_entities`] gives them.
    """
    names = dataset_labels(rows)
    gold = [gold_entities(row, names) for row in rows]
    results, counts = {}, {}
    # Both are loaded first: one that cannot be loaded does not cost the time in which the other tags. A folder is the user's
    # own, so its code may run; for a name on the Hub, transformers asks.
    pipelines = {
        name: pipeline("mner", model=model, trust_remote_code=True if Path(model).is_dir() else None)
        for name, model in (("A", a), ("B", b))
    }
    for name, ner in pipelines.items():
        _, results[name] = tag_rows(ner, rows, batch_size)
        predicted: list[list[Entity]] = [predicted_entities(result) for result in results[name]]
        counts[name] = [count_entities(*pair) for pair in zip(gold, predicted, strict=True)]
    difference, low, high = paired_bootstrap(counts["A"], counts["B"])
    row_results = ({name: results[name][place] for name in results} for place in range(len(rows)))
    return {
        "f1": {name: Counts(*map(sum, zip(*model_counts, strict=True))).f1 for name, model_counts in counts.items()},
        "difference": difference,
        "interval": [low, high],
        "num_posts": len(rows),
        "differing": [e for row, result in zip(rows, row_results, strict=True) for e in differing_entities(row, names, result)],
    }


def report(comparison: dict[str, Any]) -> str:
    """The comparison as text."""
    low, high = comparison["interval"]
    verdict = "the models differ" if low > 0 or high < 0 else "it holds 0: these posts do not tell the models apart"
    differing = comparison["differing"]
    rows = [
        [entity["id"], entity["word"], entity["entity_group"], entity["found_by"], "right" if entity["is_gold"] else "wrong"]
        for entity in differing[:PRINTED]
    ]
    shown = f"the first {len(rows)} of " if len(differing) > len(rows) else ""
    lines = [
        f"F1 on {comparison['num_posts']:,} posts: A {comparison['f1']['A']:.4f}, B {comparison['f1']['B']:.4f}",
        f"B less A: {comparison['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}; {verdict}",
        f"{shown}{len(differing):,} entities that only one of them found:",
    ]
    return "\n".join([*lines, markdown_table(["post", "entity", "type", "found by", "which is"], rows)] if rows else lines[:2])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compare as the command line says.

    Raises:
        DataError: the data cannot be used.
        OutputError: the file of `--output` cannot be written.
        ValueError: an option's value that cannot be.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("a", metavar="A", help="folder or Hub name of a trained model")
    parser.add_argument("b", metavar="B", help="the other one")
    parser.add_argument("--data_path", required=True, help="data set with labels, as for train.py, or synthetic")
    parser.add_argument("--image_dir", help="images of label files; default: images beside them")
    parser.add_argument("--regions_file", help="JSONL of regions; default: regions.jsonl beside the label files")
    parser.add_argument("--label_scheme", help="scheme of the labels; recognised if unset")
    add_reading_options(parser)
    parser.add_argument("--split", default="validation", help="train, validation or test")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output", help="JSON file for the comparison with every entity on which the models differ")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise ValueError(f"--batch_size: expected a number above 0, got {options.batch_size}")
    if options.output and Path(options.output).is_dir():
        raise OutputError(f"--output: expected a file, got the folder {options.output}")
    if options.output:
        check_writable(Path(options.output).parent, "--output: the folder")
    if options.data_path == "synthetic":
        warn_of_unused_options(options)
        data = synthetic_splits([1, 300, 300])
    else:
        data, _ = load_splits(
            options.data_path,
            options.image_dir,
            options.regions_file,
            label_scheme=options.label_scheme,
            format=options.format,
            columns=options.columns,
            column_names=parse_column_names(options.column_names),
        )
    if options.split not in data:
        raise DataError(f"--split {options.split}: the data has {', '.join(data)}")
    comparison = compare(options.a, options.b, data[options.split], options.batch_size)
    print(report(comparison))
    if options.output:
        with atomic_write(Path(options.output)) as path:
            path.write_text(json.dumps(comparison, indent=1, ensure_ascii=False), encoding="utf-8")
    return comparison


def cli():
    """Entry point of the command line: one line for each error that the user can mend."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"compare_runs: {' '.join(str(error).split())}")


if __name__ == "__main__":
    cli()
