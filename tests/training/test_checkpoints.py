import shutil

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints import last_whole_checkpoint

FILES = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["missing", "empty", "cut"])
def test_a_half_written_checkpoint_is_passed_over(name, fault, tmp_path):
    assert last_whole_checkpoint(tmp_path / "none") is None
    whole, half = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    whole.mkdir()
    save_file({"a": torch.ones(99)}, whole / "model.safetensors")
    (whole / "trainer_state.json").write_text('{"global_step": 9}')
    for state in FILES[1:4]:
        torch.save({"a": torch.ones(99)}, whole / state)
    shutil.copytree(whole, half)
    assert last_whole_checkpoint(tmp_path) == str(half)
    content = (half / name).read_bytes()
    (half / name).unlink()
    if fault != "missing":
        (half / name).write_bytes(content[: len(content) // 2] if fault == "cut" else b"")
    assert last_whole_checkpoint(tmp_path) == str(whole)
