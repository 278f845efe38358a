"""The output folder of bulk tagging: which run may write to it, which of its files count, and how many posts are done."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from uuid import uuid4

import pyarrow.dataset
import pyarrow.parquet as pq
from tqdm import tqdm

from mner_data.files import atomic_write
from modeling_hamlearning import MnerPipeline
from modeling_hamlearning.pipeline_mner import conll_post

# Readers of parquet folders pass over names that begin with an underscore.
SETTINGS, RUN = "_predict.json", "_run-"
RESULTS, CHECKPOINT, COUNT = "data", "checkpoint", "posts.txt"
PROGRESS_SECONDS = 10
# What the results can also be written as, in one file: its name.
FILES = {"jsonl": "tagged.jsonl", "conll": "tagged.conll"}


def clear_results(output: Path):
    """Remove the results of an earlier run, finished or not, and nothing else."""
    shutil.rmtree(adopt_run_folder(output))
    for name in FILES.values():
        (output / name).unlink(missing_ok=True)
    if (output / RESULTS).exists():
        # Under another name first: a half removed folder would still look like complete results.
        (output / RESULTS).rename(output / f"{RUN}removed")
        shutil.rmtree(output / f"{RUN}removed")


def write_file(output: Path, output_format: str) -> tuple[Path, int]:
    """Write the results in `data/` to one file beside it: `jsonl`, a line of JSON for each row, or `conll`, words and labels.

    Returns:
        The file, and how many posts it lacks: CoNLL has no place for a post whose text could not be tagged.
    """
    results = pyarrow.dataset.dataset(output / RESULTS, format="parquet")
    lacking = 0
    with atomic_write(output / FILES[output_format]) as path, open(path, "w", encoding="utf-8") as file:
        with tqdm(total=results.count_rows(), unit=" posts", desc=FILES[output_format]) as bar:
            for batch in results.to_batches():
                for row in batch.to_pylist():
                    if output_format == "jsonl":
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    elif row["tokens"] is None:
                        lacking += 1
                    else:
                        labels = MnerPipeline.to_bio(row["entities"], len(row["tokens"]))
                        file.write(conll_post(row["id"], row["tokens"], labels))
                bar.update(batch.num_rows)
    return output / FILES[output_format], lacking


def save_count(folder: Path, num_posts: int):
    """Keep the number of posts in the run's folder: to count them, all ids have to be read."""
    with atomic_write(folder / COUNT) as path:
        path.write_text(str(num_posts))


def saved_count(output: Path) -> int | None:
    """The number of posts that an interrupted run counted, if there was one."""
    for file in output.glob(f"{RUN}*/{COUNT}"):
        return int(file.read_text())
    return None


def adopt_run_folder(output: Path) -> Path:
    """The folder that a run writes to until it is done: that of the run before it, under a new name.

    The workers of a killed run may live on for a while. They only know the old name, under which they can write no more.
    """
    folder = output / f"{RUN}{uuid4().hex}"
    for before in output.glob(f"{RUN}*"):
        before.rename(folder)
    for name in (RESULTS, CHECKPOINT):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def drop_incomplete(folder: Path):
    """Remove files of results without their checkpoint, and checkpoints without their results.

    Ray writes a pending checkpoint, then the results, then renames the checkpoint; a kill may come between any two of these.
    Results count if the renamed checkpoint is there and no pending one. Ray itself removes what has only a pending one; after
    a write that was retried, both may be there.
    """
    stems: dict[str, set[str]] = {RESULTS: set(), CHECKPOINT: set(), "pending": set()}
    files = [*folder.glob(f"{RESULTS}/*.parquet"), *folder.glob(f"{CHECKPOINT}/*.parquet")]
    for file in files:
        pending = file.name.endswith(".pending.parquet")
        stems["pending" if pending else file.parent.name].add(_stem(file))
    complete = (stems[RESULTS] & stems[CHECKPOINT]) - stems["pending"]
    for file in files:
        if _stem(file) not in complete:
            file.unlink()


def _stem(file: Path) -> str:
    """The part of the name that a file of results and its checkpoint share: `3f…e1_000012` of `3f…e1_000012-0.parquet`."""
    return re.split(r"[-.]", file.name)[0]


class Progress(threading.Thread):
    """Shows how many posts are safely written, by the checkpoints in the run's folder."""

    def __init__(self, folder: Path, total: int):
        super().__init__(daemon=True)
        self.folder, self.total, self.stopped = folder / CHECKPOINT, total, threading.Event()
        self.counted: set[str] = set()
        self.before = self.count_new()
        if self.before:
            print(f"going on: {self.before:,} of {total:,} posts are done", flush=True)

    def count_new(self) -> int:
        """Posts in the checkpoints that were not counted before."""
        files = [file for file in self.folder.glob("*.parquet") if not file.name.endswith(".pending.parquet")]
        files = [file for file in files if file.name not in self.counted]
        self.counted |= {file.name for file in files}
        return sum(pq.read_metadata(file).num_rows for file in files)

    def run(self):
        with tqdm(total=self.total, initial=self.before, unit=" posts", mininterval=0) as bar:
            while not self.stopped.wait(PROGRESS_SECONDS):
                bar.update(self.count_new())
            bar.update(self.count_new())
