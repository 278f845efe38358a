"""Bulk tagging of many posts, 2 % of them broken: `python -m benchmarks.bulk --model outputs/demo/model --posts 100000`.

Half of the posts are synthetic and have an image, half are real ones of HAMLEARNING_DATA's twitter2017 without an image. Checks
that every post has one row, that exactly the broken ones have an error, and that a broken image or box does not cost the
entities of the text. Prints the rate and the memory over time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from mner_data.readers import read_conll
from mner_data.synthetic_posts import synthetic_dataset

from .controlled.experiments import data_folder

ROOT = Path(__file__).resolve().parents[1]
SYNTHETIC, SEED, ROWS_PER_FILE, SAMPLE_SECONDS = 400, 11, 10_000, 5
ONE_BROKEN_IN = 50
NO_TEXT = "no words"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("box_labels", pa.list_(pa.string())),
        ("box_scores", pa.list_(pa.float64())),
    ]
)
BROKEN = {
    NO_TEXT: lambda row: {"tokens": None},
    "cut image": lambda row: {"image": {"bytes": row["image"]["bytes"][:300], "path": None}},
    "page for an image": lambda row: {"image": {"bytes": b"<html></html>", "path": None}},
    "empty image": lambda row: {"image": {"bytes": b"", "path": None}},
    "path": lambda row: {"image": {"bytes": None, "path": "/etc/hostname"}},
    "URL": lambda row: {"image": {"bytes": None, "path": "http://169.254.169.254/x.png"}},
    "box not finite": lambda row: {"boxes": [[0.0, 0.0, float("nan"), 1.0]], "box_labels": None, "box_scores": None},
    "box reversed": lambda row: {"boxes": [[0.9, 0.0, 0.1, 1.0]], "box_labels": None, "box_scores": None},
    "box of three": lambda row: {"boxes": [[0.0, 0.0, 1.0]], "box_labels": None, "box_scores": None},
    "labels without boxes": lambda row: {"boxes": None, "box_labels": ["person"], "box_scores": None},
}


def rows(count: int, real: list[dict]) -> Iterator[dict]:
    """Posts as they are written: every 50th broken, the others by turns synthetic and real."""
    synthetic = synthetic_dataset(SYNTHETIC, SEED).remove_columns(["ner_tags", "deciding_region", "leading_region"]).to_list()
    with_image = [row for row in synthetic if row["image"] is not None]
    empty = dict.fromkeys(SCHEMA.names)
    for place in range(count):
        if place % ONE_BROKEN_IN == 0:
            kind = list(BROKEN)[place // ONE_BROKEN_IN % len(BROKEN)]
            row = with_image[place % len(with_image)]
            yield row | BROKEN[kind](row) | {"id": f"broken {kind} {place}"}
        elif place % 2:
            yield synthetic[place // 2 % SYNTHETIC] | {"id": f"synthetic {place}"}
        else:
            yield empty | {"id": f"real {place}", "tokens": real[place // 2 % len(real)]["tokens"]}


def write(folder: Path, count: int, real: list[dict]):
    """Write the posts as parquet files."""
    folder.mkdir(parents=True)
    batch: list[dict] = []
    for place, row in enumerate(rows(count, real)):
        batch.append(row)
        if len(batch) == ROWS_PER_FILE or place == count - 1:
            pq.write_table(pa.Table.from_pylist(batch, SCHEMA), folder / f"{place:09}.parquet", row_group_size=1000)
            batch = []


def memory(root: int) -> Counter[str]:
    """Memory in MB of a process and those below it, by what they do, shared pages counted once; the taggers' CPU seconds."""
    used: Counter[str] = Counter()
    driver = psutil.Process(root)
    for process in [driver, *driver.children(recursive=True)]:
        try:
            pss = process.memory_full_info().pss / 1e6
            name, seconds = " ".join(process.cmdline()), sum(process.cpu_times()[:2])
        except psutil.Error:
            continue  # gone meanwhile
        kind = "driver" if process == driver else "taggers" if "Tagger" in name else "rest of Ray"
        used[kind] += pss
        used["tagger seconds"] += seconds * (kind == "taggers")
        used["all"] += pss
    return used


def main():
    """Write the posts, tag them with predict.py in a process of its own, and check and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--posts", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", default="outputs/bulk", help="folder for the input, the results and memory.json")
    options = parser.parse_args()
    real = read_conll(data_folder() / "twitter2017" / "train.txt")
    folder = Path(options.output).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / "input", options.posts, real)

    command = [sys.executable, ROOT / "predict.py", "--model", options.model, "--data", folder / "input"]
    command += ["--output", folder / "tagged", "--workers", str(options.workers)]
    begun = time.monotonic()
    process = subprocess.Popen([*map(str, command)], cwd=ROOT)
    samples: list[dict] = []
    while process.poll() is None:
        samples.append({"seconds": round(time.monotonic() - begun)} | memory(process.pid))
        (folder / "memory.json").write_text(json.dumps(samples))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - begun
    if process.returncode:
        sys.exit("predict.py failed")

    results = pq.read_table(folder / "tagged").to_pylist()
    wrong = [row["id"] for row in results if (row["error"] is not None) != row["id"].startswith("broken ")]
    wrong += [row["id"] for row in results if (row["entities"] is None) != row["id"].startswith(f"broken {NO_TEXT} ")]
    distinct = len({row["id"] for row in results})
    assert len(results) == distinct == options.posts, f"{len(results)} rows, {distinct} ids, {options.posts} posts"
    assert not wrong, f"{len(wrong)} posts have an error or lack one, or lack entities, against what was written: {wrong[:5]}"
    kinds = Counter(row["id"].rsplit(" ", 1)[0] for row in results if row["error"])
    examples = {row["id"].rsplit(" ", 1)[0]: row["error"] for row in results if row["error"]}
    for kind, count in sorted(kinds.items()):
        print(f"{count:6} {kind}: {examples[kind]}")
    print(f"{len(results):,} posts in {seconds:,.0f} s, {len(results) / seconds:.1f} a second, {options.workers} taggers")
    used = max(sample["tagger seconds"] for sample in samples)
    print(f"CPU seconds of the taggers: {used:,.0f}, {len(results) / used:.1f} posts in each")
    size = sum(file.stat().st_size for file in (folder / "tagged" / "data").iterdir())
    print(f"results: {size / len(results):.0f} bytes a post; entities: {sum(len(r['entities'] or []) for r in results):,}")
    print("memory in MB, median of a tenth of the run:")
    for name, share in {"second tenth": 0.1, "middle": 0.45, "last tenth": 0.9}.items():
        part = samples[int(share * len(samples)) : max(1, int((share + 0.1) * len(samples)))] or samples[-1:]
        medians = {
            kind: round(statistics.median(sample.get(kind, 0) for sample in part))
            for kind in ("all", "driver", "taggers", "rest of Ray")
        }
        print(f"  {name}: {medians}")


if __name__ == "__main__":
    main()
