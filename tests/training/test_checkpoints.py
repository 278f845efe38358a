"""Which checkpoints count as complete, and which ones are removed."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from mner_data.files import OutputError
from training.checkpoints import (
    checkpoints,
    explain_write_errors,
    is_complete,
    last_complete_checkpoint,
    reserve,
    rotate,
    write_contents,
)

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


@pytest.mark.parametrize("name", ["config.json", "all_results.json", "hyperparameters.json"])
def test_the_results_of_another_run_are_refused_and_overwritten_when_asked(name, tmp_path):
    with reserve(tmp_path, {"model": "a"}, overwrite=False, is_main_process=True):
        (tmp_path / name).write_text("{}")
    with reserve(tmp_path, {"model": "a"}, overwrite=False, is_main_process=True):
        pass  # the same run again
    with (
        pytest.raises(OutputError, match=r"holds another run \(model differ\).*--overwrite_output_dir"),
        reserve(tmp_path, {"model": "b"}, overwrite=False, is_main_process=True),
    ):
        pass
    with reserve(tmp_path, {"model": "b"}, overwrite=True, is_main_process=True):
        assert (tmp_path / name).exists() == (name == "config.json")


def test_scoring_alone_overwrites_scores_and_no_model(tmp_path):
    (tmp_path / "scores").mkdir()
    with reserve(tmp_path / "scores", {"model": "a"}, overwrite=False, is_main_process=True, do_train=False):
        (tmp_path / "scores" / "all_results.json").write_text("{}")
    with reserve(tmp_path / "scores", {"model": "b"}, overwrite=True, is_main_process=True, do_train=False):
        assert not (tmp_path / "scores" / "all_results.json").exists()
        (tmp_path / "scores" / "config.json").write_text("{}")
    with (
        pytest.raises(OutputError, match="choose another --output_dir$"),
        reserve(tmp_path / "scores", {"model": "a"}, overwrite=True, is_main_process=True, do_train=False),
    ):
        pass
    assert (tmp_path / "scores" / "config.json").exists()


def test_only_an_error_of_writing_is_called_one(tmp_path):
    for path in ("/dev/full", tmp_path / "nothing" / "a.pt"):
        with (
            pytest.raises(OutputError, match="the model could not be written to .* MB are free"),
            explain_write_errors("the model", tmp_path),
        ):
            torch.save({"a": torch.ones(99_999)}, path)
    for text in ("Attempted to access the data pointer on an invalid python storage", "[enforce fail at alloc_cpu.cpp:117]"):
        with pytest.raises(RuntimeError, match=re.escape(text)), explain_write_errors("the model", tmp_path):
            raise RuntimeError(text)
