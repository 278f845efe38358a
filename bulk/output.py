"""The output folder of bulk tagging: who may write to it, what of it counts, and how far it is."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq

from mner_data.files import UNFINISHED, atomic_write
from mner_data.readers import DataError

# Names that readers of parquet folders pass over.
SETTINGS, LOCK, RUN = "_predict.json", "_lock", "_run-"
RESULTS, CHECKPOINT = "data", "checkpoint"
PROGRESS_SECONDS = 10


def claim(output: Path, settings: dict, overwrite: bool) -> dict:
    """Take an empty folder, or go on in one of the same model, data and settings; returns what is known of the run.

    Raises:
        DataError: the folder holds something else.
    """
    mark = output / SETTINGS
    if mark.is_file():
        known = json.loads(mark.read_text())
        different = [name for name, value in settings.items() if known["settings"].get(name) != value]
        if not different and not overwrite:
            return known
        if not overwrite:
            raise DataError(
                f"{output} holds the results of another {' and '.join(different)}: "
                "choose another --output, or --overwrite to remove them"
            )
        shutil.rmtree(adopt_run_folder(output))
        if (output / RESULTS).exists():
            # Under another name first: half removed it would still look like the whole result.
            (output / RESULTS).rename(output / f"{RUN}removed")
            shutil.rmtree(output / f"{RUN}removed")
    elif any(path.name != LOCK and path.suffix != UNFINISHED for path in output.iterdir()):
        raise DataError(f"{output} is not empty and not from predict.py: choose another --output")
    known = {"settings": settings, "posts": None}
    save(output, known)
    return known


def save(output: Path, known: dict):
    with atomic_write(output / SETTINGS) as path:
        path.write_text(json.dumps(known, indent=1))


def adopt_run_folder(output: Path) -> Path:
    """The folder that a run writes to until it is done: what an earlier one left, under a new name.

    Workers may outlive the driver of a killed run for a while. They know the old name, where they can write no more.
    """
    folder = output / f"{RUN}{uuid4().hex}"
    for before in output.glob(f"{RUN}*"):
        before.rename(folder)
    for name in (RESULTS, CHECKPOINT):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def drop_incomplete(folder: Path):
    """Remove what a kill left between a file of results and the checkpoint that vouches for it.

    Ray writes a pending checkpoint, the results, then renames the checkpoint. Results count only if exactly the renamed
    one is there. Ray does the same for pending ones; this also covers a retried write, where both are there.
    """
    stems: dict[str, set[str]] = {RESULTS: set(), CHECKPOINT: set(), "pending": set()}
    files = [*folder.glob(f"{RESULTS}/*.parquet"), *folder.glob(f"{CHECKPOINT}/*.parquet")]
    for file in files:
        pending = file.name.endswith(".pending.parquet")
        stems["pending" if pending else file.parent.name].add(_stem(file))
    whole = (stems[RESULTS] & stems[CHECKPOINT]) - stems["pending"]
    for file in files:
        if _stem(file) not in whole:
            file.unlink()


def _stem(file: Path) -> str:
    """What a file of results and its checkpoint share: `3f…e1_000012` of `3f…e1_000012-0.parquet`."""
    return re.split(r"[-.]", file.name)[0]


class Progress(threading.Thread):
    """Prints how many posts are safely written, at what rate, and how long the rest will take."""

    def __init__(self, folder: Path, total: int):
        super().__init__(daemon=True)
        self.folder, self.total, self.stopped = folder / CHECKPOINT, total, threading.Event()
        self.seen: set[str] = set()
        self.begun, self.before = time.monotonic(), self.count()
        if self.before:
            print(f"going on: {self.before:,} of {total:,} posts are done", flush=True)
        self.done = self.before

    def count(self) -> int:
        """Rows of the checkpoints that were not seen before."""
        new = [file for file in self.folder.glob("*.parquet") if not file.name.endswith(".pending.parquet")]
        new = [file for file in new if file.name not in self.seen]
        self.seen |= {file.name for file in new}
        return sum(pq.read_metadata(file).num_rows for file in new)

    def run(self):
        while not self.stopped.wait(PROGRESS_SECONDS):
            self.done += self.count()
            print(self.line(), flush=True)

    def line(self) -> str:
        rate = (self.done - self.before) / (time.monotonic() - self.begun)
        left = f"{_duration((self.total - self.done) / rate)} left" if rate else "…"
        share = self.done / self.total if self.total else 1
        return f"{self.done:,} of {self.total:,} posts ({share:.1%}), {rate:,.1f} a second, {left}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
