"""The output folder of bulk tagging: which run may write to it, which of its files count, and how many posts are done."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
from tqdm import tqdm

from mner_data.files import UNFINISHED, atomic_write
from mner_data.readers import DataError

# Readers of parquet folders pass over names that begin with an underscore.
SETTINGS, LOCK, RUN = "_predict.json", "_lock", "_run-"
RESULTS, CHECKPOINT = "data", "checkpoint"
PROGRESS_SECONDS = 10


def reserve_output_dir(output: Path, settings: dict, overwrite: bool) -> dict:
    """Take an empty folder, or go on in one whose run had the same settings.

    Args:
        output: the folder; it exists and its lock is held.
        settings: what the results depend on, by name.
        overwrite: remove what a run with other settings, or the same, has left.

    Returns:
        The run's state: `settings`, and the number of `posts` once they are counted.

    Raises:
        DataError: the folder holds results for other settings, or something that is no result.
    """
    settings_file = output / SETTINGS
    if settings_file.is_file():
        state = json.loads(settings_file.read_text())
        different = [name for name, value in settings.items() if state["settings"].get(name) != value]
        if not different and not overwrite:
            return state
        if not overwrite:
            raise DataError(
                f"{output} holds the results of a run with another {' and '.join(different)}: "
                "choose another --output, or --overwrite to remove them"
            )
        shutil.rmtree(adopt_run_folder(output))
        if (output / RESULTS).exists():
            # Under another name first: a half removed folder would still look like complete results.
            (output / RESULTS).rename(output / f"{RUN}removed")
            shutil.rmtree(output / f"{RUN}removed")
    elif any(path.name != LOCK and path.suffix != UNFINISHED for path in output.iterdir()):
        raise DataError(f"{output} is not empty and holds no results of predict.py: choose another --output")
    state = {"settings": settings, "posts": None}
    save_state(output, state)
    return state


def save_state(output: Path, state: dict):
    """Write the state of the run to its folder."""
    with atomic_write(output / SETTINGS) as path:
        path.write_text(json.dumps(state, indent=1))


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
