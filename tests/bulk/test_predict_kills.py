"""predict.py killed with -9, on a full disk and in a folder that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from mner_data.readers import read_conll
from mner_data.synthetic_posts import synthetic_dataset
from tests.tiny_model import saved_tiny_model

pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
REAL = os.environ.get("HAMLEARNING_DATA")
KILLS, NUM_POSTS, BLOCK_ROWS, SEED = 10, 1000, 10, 0


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Synthetic posts with their images, a few of them broken, and their ids."""
    rows = synthetic_dataset(200, SEED).remove_columns(["ner_tags", "deciding_region", "leading_region"])
    rows = rows.select([place % 200 for place in range(NUM_POSTS)]).remove_columns("id")
    rows = rows.add_column("id", [f"post {place}" for place in range(NUM_POSTS)])
    path = tmp_path_factory.mktemp("data") / "posts.parquet"
    rows.to_parquet(path, batch_size=500)
    return path, rows["id"][:]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(processes: list[psutil.Process]):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class Run:
    """predict.py in a process of its own, and the Ray below it."""

    def __init__(self, model: Path, data: Path, output: Path, log: Path, *more: str, **options):
        self.output, self.log = output, log
        command = [sys.executable, ROOT / "predict.py", "--model", model, "--data", data, "--output", output]
        command += ["--workers", "1", "--block_rows", str(BLOCK_ROWS), *more]
        with open(self.log, "ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.driver = psutil.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=log, stderr=log, **options)

    def below(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.driver.children(recursive=True)
        return []

    def workers(self) -> list[psutil.Process]:
        """Processes at work on the posts: the tagger, those that read and write, the one that leaves out what is done."""
        found = []
        for process in self.below():
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                name = process.cmdline()[0]
                works = any(kind in name for kind in ("Tagger", "Write", "Read", "Repartition", "Filter"))
                if works and "__init__" not in name:
                    found.append(process)
        return found

    def kill(self) -> list[psutil.Process]:
        """kill -9 of the driver; what it leaves alive, which end by themselves, within a minute or two."""
        below = self.below()
        with contextlib.suppress(psutil.NoSuchProcess):
            self.driver.kill()
        self.driver.wait()
        return below

    def written(self) -> int:
        return len(list(self.output.glob("_run-*/data/*.parquet")))

    def is_writing(self) -> bool:
        return any(self.output.glob("_run-*/checkpoint/*.pending.parquet"))

    def wait_for(self, condition, timeout: float = 900):
        """Until something holds, checked every millisecond; the run must not end before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.driver.poll() is None, f"ended with {self.driver.returncode}: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"nothing happened: {self.log.read_text()[-2000:]}"
            time.sleep(0.001)

    def finish(self, timeout: float = 900) -> str:
        """The rest of the run, undisturbed; what it printed."""
        below = self.below()
        try:
            assert self.driver.wait(timeout) == 0, self.log.read_text()[-3000:]
        finally:
            end([self.driver, *below, *self.below()])
        return self.log.read_text()


def check_whole(output: Path, ids: list[str]):
    """Every file can be read to its end, and every id stands in exactly one row."""
    found = [name for file in (output / "data").iterdir() for name in pq.read_table(file)["id"].to_pylist()]
    assert len(found) == len(set(found)), "an id stands twice"
    assert sorted(found) == sorted(ids)
    assert sorted(path.name for path in output.iterdir()) == ["_lock", "_predict.json", "data"]


def kill_drivers(model: Path, data: Path, output: Path, log: Path, kills: int, seed: int) -> list[str]:
    """Kill the driver at random moments, early ones and those around a write among them; returns the moments.

    The next run begins at once, beside what the killed one has left alive.
    """
    generator = random.Random(seed)
    moments, left, outlived = [], [], False
    for _ in range(kills):
        run = Run(model, data, output, log)
        kind = generator.choice(("start", "write", "write", "later"))
        if kind == "start":
            time.sleep(generator.uniform(0, 15))
        else:
            before = run.written()
            run.wait_for(lambda run=run, before=before: run.written() > before)
            if kind == "write":  # within a write: as its pending checkpoint is there
                run.wait_for(run.is_writing)
                time.sleep(generator.uniform(0, 0.02))
            else:
                time.sleep(generator.uniform(0, 4))
        there = run.written()
        end(left)
        left = run.kill()
        alive_now = sum(map(alive, left))
        outlived = outlived or alive_now > 0
        moments.append(f"{kind}, {there} files, {alive_now} processes left")
    Run(model, data, output, log).finish()
    end(left)
    assert outlived, "every driver's workers ended with it: nothing was there beside the next run"
    return moments


def test_kills_of_the_driver(model, synthetic, tmp_path):
    path, ids = synthetic
    moments = kill_drivers(model, path, tmp_path / "out", tmp_path / "log", KILLS, SEED)
    print(f"killed {len(moments)} times: {'; '.join(moments)}")
    check_whole(tmp_path / "out", ids)


def test_kills_of_a_worker(model, synthetic, tmp_path):
    """Ray tries again what a killed worker had. Where it gives up, on a busy machine, the same command goes on."""
    path, ids = synthetic
    generator = random.Random(SEED)
    run = Run(model, path, tmp_path / "out", tmp_path / "log")
    killed, runs = [], 1
    while len(killed) < KILLS:
        if run.driver.poll() is not None:
            assert not (tmp_path / "out" / "data").exists(), "it was over too soon"
            run, runs = Run(model, path, tmp_path / "out", tmp_path / "log"), runs + 1
        time.sleep(generator.uniform(0, 0.5))
        # Spread over the run: however fast it is, the last kill comes before its end.
        due = run.written() > len(killed) * NUM_POSTS // BLOCK_ROWS // (KILLS + 3)
        if due and (workers := run.workers()):
            process = generator.choice(workers)
            with contextlib.suppress(psutil.NoSuchProcess):
                name = process.cmdline()[0]
                process.kill()
                killed.append(name)
    print(f"killed in {runs} runs: {'; '.join(killed)}")
    if run.driver.wait(1200):
        run = Run(model, path, tmp_path / "out", tmp_path / "log")
    run.finish()
    check_whole(tmp_path / "out", ids)
    assert any("Tagger" in name for name in killed), "no tagger was among them: choose another seed"


def test_ctrl_c(model, synthetic, tmp_path):
    """Ctrl-C reaches every process of the terminal's group; the run says how to go on, and does."""
    path, ids = synthetic
    # A shell that starts the tests in the background has them ignore Ctrl-C, and their children with them.
    options = {"start_new_session": True, "preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL)}
    run = Run(model, path, tmp_path / "out", tmp_path / "log", **options)
    run.wait_for(lambda: run.written() >= 3)
    below = run.below()
    os.killpg(run.driver.pid, signal.SIGINT)
    assert run.driver.wait(300) == 130
    end(below)
    assert run.log.read_text().splitlines()[-1] == "predict.py: interrupted; the same command goes on where it was"
    assert "going on: " in Run(model, path, tmp_path / "out", tmp_path / "log").finish()
    check_whole(tmp_path / "out", ids)


def test_a_post_that_kills_its_worker_every_time(synthetic, tmp_path):
    """It ends the run with an error, and not the machine's patience: Ray's own default is to try for ever."""
    model = saved_tiny_model(tmp_path / "model")
    file = model / "pipeline_mner.py"
    code = file.read_text()
    assert "def preprocess(self, posts" in code
    line = "        if any('post 77' in str(post) for post in posts):\n            __import__('os')._exit(1)\n"
    head, signature, rest = code.partition("def preprocess(self, posts")
    signature_end, newline, body = rest.partition("\n")
    file.write_text(head + signature + signature_end + newline + line + body)
    posts = [{"id": f"post {place}", "text": f"this is post {place}"} for place in range(100)]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)))
    run = Run(model, tmp_path / "posts.jsonl", tmp_path / "out", tmp_path / "log")
    try:
        assert run.driver.wait(900) == 1
    finally:
        end(run.kill())
    assert "\npredict.py: " in run.log.read_text()


@pytest.mark.skipif(not REAL, reason="HAMLEARNING_DATA names no folder with the real posts")
def test_kills_on_real_posts(model, tmp_path):
    """The validation posts of Twitter2017, killed three times."""
    path = Path(REAL, "twitter2017", "valid.txt")
    moments = kill_drivers(model, path, tmp_path / "out", tmp_path / "log", 3, SEED + 1)
    print(f"killed {len(moments)} times: {'; '.join(moments)}")
    check_whole(tmp_path / "out", [post["id"] for post in read_conll(path)])


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB of memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(model, synthetic, small_disk, tmp_path):
    """A clear error; what was written stays, and the run goes on when there is room."""
    path, ids = synthetic
    output = small_disk / "out"
    run = Run(model, path, output, tmp_path / "log")
    run.wait_for(lambda: run.written() >= 3)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    assert run.driver.wait(900) == 1
    last = run.log.read_text().splitlines()[-1]
    assert last.startswith("predict.py: ") and "No space left on device" in last
    (folder,) = output.glob("_run-*")
    before = {file.name: pq.read_table(file).num_rows for file in (folder / "data").iterdir()}
    assert len(before) >= 2, "the third may have been under way"
    filler.unlink()
    Run(model, path, output, tmp_path / "log").finish()
    check_whole(output, ids)
    assert before.items() <= {file.name: pq.read_table(file).num_rows for file in (output / "data").iterdir()}.items()


def test_a_folder_that_cannot_be_written(model, synthetic, small_disk, tmp_path):
    """Root may write where permission bits forbid it, so the whole disk is made read-only."""
    (small_disk / "out").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    log = tmp_path / "log"
    for output in ("out", "new"):
        command = [sys.executable, ROOT / "predict.py", "--model", model, "--data", synthetic[0]]
        with open(log, "w") as file:
            code = subprocess.run([*command, "--output", small_disk / output], cwd=ROOT, stderr=file).returncode
        last = log.read_text().splitlines()[-1]
        assert code == 1 and last.startswith("predict.py: ") and "Read-only file system" in last and output in last
