"""Training that is killed, that fills its disk, or that is sent to the wrong folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import train
from mner_data.files import OutputError
from training.checkpoints import checkpoints, is_complete

from .test_train import SMALL, run

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("--max_steps", "2", "--eval_strategy", "no", "--do_eval", "false", "--save_strategy", "steps",
         "--save_steps", "1", "--save_total_limit", "9")  # fmt: skip
KILLS = 10


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def train_until(folder: Path, arguments: list[str], moment, launcher: list[str], kill) -> bool:
    """Train in a process of its own, or in those of a launcher, resuming; `kill` it at the moment. Whether it was killed
    before its end.
    """
    command = [sys.executable, *launcher, "train.py", "configs/demo.yaml", *arguments, "--output_dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(folder.parent / "log.txt", "ab") as log:
        process = psutil.Popen([*command, "--resume_from_checkpoint", "auto"], cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                if moment(folder):
                    kill(process)
                    process.wait(120)
                    return True
                time.sleep(0.0005)
        finally:
            kill_all(process)
            process.wait()
    assert process.returncode == 0, (folder.parent / "log.txt").read_text()[-3000:]
    return False


def kill_all(process: psutil.Popen):
    """`kill -9` of a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def moments(seed: int, kills: int):
    """Moments of a run that has made a checkpoint since it began: some while one is written, some after a while."""
    generator = random.Random(seed)
    for number in range(kills):
        seen: dict = {}
        wait = generator.uniform(0, 0.08) if number % 2 else generator.uniform(0.1, 1.5)

        def moment(folder: Path, seen=seen, wait=wait, in_writing=number % 2 == 1) -> bool:
            now = {path.name for path in checkpoints(folder)}
            new = now - seen.setdefault("before", now)
            if not new:
                return False
            begun = seen.setdefault("begun", time.monotonic())
            if not in_writing:
                return time.monotonic() - begun > wait
            latest = seen.setdefault("latest", folder / max(new, key=lambda name: int(name.split("-")[1])))
            return time.monotonic() - begun > wait or any(latest.glob("rng_state*"))

        yield moment


def kill_and_compare(tmp_path: Path, arguments: list[str], seed: int, wanted: int = KILLS, launcher=(), kill=kill_all):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert not train_until(whole, arguments, lambda folder: False, launcher, kill)
    kills = torn = 0
    for moment in moments(seed, wanted):
        if not train_until(killed, arguments, moment, launcher, kill):
            break
        kills += 1
        torn += any(not is_complete(path) for path in checkpoints(killed))
    assert kills == wanted, f"the run ended after {kills} kills: give it more steps"
    assert torn > 0, "no kill fell into the writing of a checkpoint"
    train_until(killed, arguments, lambda folder: False, launcher, kill)
    expected, actual = weights(whole), weights(killed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, killed)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]
    print(f"{kills} kills, {torn} with a half-written checkpoint left behind")


@pytest.mark.slow
def test_killed_ten_times_on_synthetic_posts(tmp_path):
    kill_and_compare(tmp_path, [*SMALL, "--max_steps", "600", "--eval_strategy", "no", "--save_strategy", "steps",
                                "--save_steps", "7", "--save_total_limit", "3"], 0)  # fmt: skip


@pytest.mark.slow
def test_killed_ten_times_on_the_real_text(tmp_path, real_data):
    kill_and_compare(tmp_path, [*SMALL, "--data_path", str(real_data / "twitter2017"), "--use_images", "false",
                                "--max_train_samples", "200", "--max_eval_samples", "20", "--max_steps", "600",
                                "--eval_strategy", "no",
                                "--save_strategy", "steps", "--save_steps", "7", "--save_total_limit", "3"], 1)  # fmt: skip


@pytest.mark.slow
def test_two_processes_killed(tmp_path):
    """Gloo sums the gradients of two processes in the same way each time, so that the weights are equal to the last bit."""
    whom = itertools.cycle(("all", "first", "second"))

    def kill(launcher: psutil.Popen):
        """One of the two, whose launcher then ends the other, or all at once."""
        match next(whom):
            case "all":
                kill_all(launcher)
            case "first":
                launcher.children()[0].kill()
            case "second":
                launcher.children()[1].kill()

    kill_and_compare(tmp_path, [*SMALL, "--max_steps", "250", "--eval_strategy", "no", "--save_strategy", "steps",
                                "--save_steps", "7", "--save_total_limit", "3"], 2, 5,
                     ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"), kill)  # fmt: skip
    last = checkpoints(tmp_path / "killed")[0]
    assert sorted(path.name for path in last.glob("rng_state*")) == ["rng_state_0.pth", "rng_state_1.pth"]


def test_resumed_in_a_later_epoch_ends_at_the_same_weights(tmp_path):
    """The order of the posts came from the random state at the start of the process, not of the epoch."""
    steps = ("--synthetic_posts", "[12, 4, 4]", "--max_steps", "7", "--eval_strategy", "no", "--do_eval", "false")
    run(tmp_path / "whole", *steps, "--save_strategy", "steps", "--save_steps", "1",
        "--save_total_limit", "9")  # fmt: skip
    run(tmp_path / "resumed", *steps, "--save_strategy", "no",
        "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-4"))  # fmt: skip
    expected, actual = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_half_written_checkpoint_is_never_gone_on_from(tmp_path, caplog):
    run(tmp_path, *SHORT)
    for name in ("checkpoint-2", "checkpoint-1"):
        state = tmp_path / name / "optimizer.pt"
        state.write_bytes(state.read_bytes()[:-100])
        with pytest.raises(OutputError, match=f"{name} is not a complete checkpoint: .*the last complete one in "):
            run(tmp_path, *SHORT, "--resume_from_checkpoint", str(tmp_path / name))
    with caplog.at_level(logging.WARNING):
        run(tmp_path, *SHORT, "--resume_from_checkpoint", "auto")
    assert "has no complete checkpoint: training starts anew" in caplog.text


def test_a_folder_of_another_model_or_data_is_refused_unless_told(tmp_path):
    run(tmp_path, *SHORT)
    before = weights(tmp_path)
    with pytest.raises(OutputError, match=r"\(images, regions, synthetic_posts differ\).*--overwrite_output_dir"):
        run(tmp_path, *SHORT, "--synthetic_posts", "[36, 8, 8]")
    with pytest.raises(OutputError, match=r"holds another run \(image_size differ\)"):
        run(tmp_path, *SHORT, "--image_size", "32", "--resume_from_checkpoint", "auto")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items())
    run(tmp_path, "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--image_size", "32",
        "--overwrite_output_dir")  # fmt: skip
    assert not checkpoints(tmp_path)
    (tmp_path / "_run.json").unlink()
    with pytest.raises(OutputError, match="holds .*, but no _run.json"):
        run(tmp_path, *SHORT)


@pytest.mark.parametrize("name, value", [("seed", "4"), ("learning_rate", "1e-3"), ("per_device_train_batch_size", "2")])
def test_a_run_with_other_training_arguments_is_not_the_same_run(short_run, name, value):
    with pytest.raises(OutputError, match=rf"holds another run \({name} differ\)"):
        run(short_run, *SHORT, "--resume_from_checkpoint", "auto", f"--{name}", value)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    run(folder, *SHORT)
    return folder


def test_a_second_training_in_one_folder_is_refused(short_run):
    script = f"""
import sys, filelock
lock = filelock.FileLock({str(short_run / "_lock")!r}, timeout=0)
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OutputError, match="another process writes to this folder"):
            run(short_run, *SHORT)
    finally:
        other.communicate("")
    run(short_run, *SHORT)


def test_the_folder_is_reserved_while_training(tmp_path, monkeypatch):
    original = train.MnerTrainer.train
    seen = []

    def reserved(self, *arguments, **options):
        script = f"import filelock; filelock.FileLock({str(tmp_path / '_lock')!r}, timeout=0).acquire()"
        seen.append(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr)
        return original(self, *arguments, **options)

    monkeypatch.setattr(train.MnerTrainer, "train", reserved)
    run(tmp_path, "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--do_eval", "false")
    assert "Timeout" in seen[0]


def test_going_on_from_a_run_with_other_settings_is_logged(short_run, tmp_path, caplog):
    run(tmp_path, *SHORT, "--seed", "9", "--resume_from_checkpoint", str(short_run / "checkpoint-1"))
    assert "is a checkpoint of a run with other settings: seed differ" in caplog.text


def test_checkpoints_that_a_run_does_not_use_are_logged(tmp_path, caplog):
    run(tmp_path, *SHORT)
    run(tmp_path, *SHORT)
    assert "--resume_from_checkpoint auto would go on from the last" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path / "a", *SHORT)
    other = ("--resume_from_checkpoint", str(tmp_path / "a" / "checkpoint-1"))
    with pytest.raises(OutputError, match="checkpoint-1 is a checkpoint of another model: fusion_size, use_crf differ"):
        run(tmp_path / "b", *SHORT, *other, "--model_config", "{use_crf: false}")
    with pytest.raises(OutputError, match="another model: text_config.hidden_size, text_config.num_hidden_layers"):
        run(tmp_path / "c", *SHORT, *other, "--text_config", "{num_hidden_layers: 3}")


def test_a_folder_that_cannot_be_made_is_named_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(train, "_load_data", lambda arguments: pytest.fail("the data were read first"))
    with pytest.raises(OutputError, match="output_dir .*file/out cannot be written: Not a directory"):
        run(tmp_path / "file" / "out", *SHORT)


@contextmanager
def mounted(folder: Path, size: str):
    """A file system of that size."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_folder_is_named_before_training(tmp_path, monkeypatch):
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    monkeypatch.setattr(train, "_load_data", lambda arguments: pytest.fail("the data were read first"))
    with mounted(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputError, match="disk cannot be written: Read-only file system"):
            run(disk, *SHORT)


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_what_was_written(tmp_path):
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    run(tmp_path / "sizes", *SHORT)
    size = sum(path.stat().st_size for path in (tmp_path / "sizes" / "checkpoint-1").iterdir())
    for share, left in ((1.5, ["checkpoint-1"]), (0.5, [])):
        with mounted(tmp_path / f"disk{share}", f"{int(share * size) // 1024}k") as disk:
            with pytest.raises(OutputError, match=rf"written to .*disk{share}, where .* MB are free.*(resume from|no complete)"):
                run(disk, *SHORT)
            assert [path.name for path in checkpoints(disk) if is_complete(path)] == left
    # The model of an earlier run stays as it was when there is no room for the next.
    with mounted(tmp_path / "final", f"{size * 3 // 1024}k") as disk:
        last = ("--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no")
        run(disk, *last)
        before = (disk / "model.safetensors").read_bytes()
        (disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(disk).free - 200_000))
        with pytest.raises(OutputError, match="the model could not be written"):
            run(disk, *last, "--seed", "5", "--overwrite_output_dir")
        assert (disk / "model.safetensors").read_bytes() == before
