"""Which checkpoints count as complete, and which ones are removed."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints import checkpoints, is_complete, last_complete_checkpoint, rotate, write_contents

STATES = ["optimizer.pt", "scheduler.pt"]
FILES = ["trainer_state.json", "contents.json", *STATES, "model.safetensors"]


def write_checkpoint(folder, processes: int = 1):
    folder.mkdir()
    save_file({"a": torch.ones(99)}, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text('{"global_step": 9}')
    ranks = [f"rng_state_{rank}.pth" for rank in range(processes)]
    for state in (*STATES, *(ranks if processes > 1 else ["rng_state.pth"])):
        torch.save({"a": torch.arange(999.0)}, folder / state)
    write_contents(folder, processes)


@pytest.mark.parametrize("processes, name", [
    *((1, name) for name in (*FILES, "rng_state.pth")),
    *((3, f"rng_state_{rank}.pth") for rank in range(3)),
])  # fmt: skip
@pytest.mark.parametrize("fault", ["missing", "empty", "cut"])
def test_an_incomplete_checkpoint_is_passed_over(processes, name, fault, tmp_path):
    assert last_complete_checkpoint(tmp_path / "none") is None
    complete, damaged = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    write_checkpoint(complete, processes)
    shutil.copytree(complete, damaged)
    assert last_complete_checkpoint(tmp_path) == str(damaged)
    content = (damaged / name).read_bytes()
    (damaged / name).unlink()
    if fault != "missing":
        (damaged / name).write_bytes(content[: len(content) // 2] if fault == "cut" else b"")
    assert last_complete_checkpoint(tmp_path) == str(complete)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("place", [0.25, 0.5, 0.75])
def test_a_checkpoint_with_changed_bytes_is_passed_over(name, place, tmp_path):
    """Its files have their size, and their first and last bytes."""
    folder = tmp_path / "checkpoint-9"
    write_checkpoint(folder)
    assert is_complete(folder)
    content = bytearray((folder / name).read_bytes())
    middle = int(place * len(content))
    content[middle : middle + 64] = bytes(byte ^ 0x55 for byte in content[middle : middle + 64])
    (folder / name).write_bytes(content)
    assert not is_complete(folder)


@pytest.mark.parametrize("limit, step, best, names", [
    (2, 30, None, [30, 20]),
    (1, 30, None, [30]),
    (None, 30, None, [30, 20, 10]),
    (2, 30, 10, [30, 10]),
    (1, 30, 10, [30, 10]),  # the best one and the latest, as the Trainer keeps them
    (3, 30, 10, [30, 20, 10]),
    (2, 30, 30, [30, 20]),
    (1, 20, None, [30, 20]),  # later ones are another run's
])  # fmt: skip
def test_the_oldest_steps_go_first(limit, step, best, names, tmp_path):
    for number in (10, 20, 30):
        (tmp_path / f"checkpoint-{number}").mkdir()
    rotate(tmp_path, limit, step, best and str(tmp_path / f"checkpoint-{best}"))
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == names
