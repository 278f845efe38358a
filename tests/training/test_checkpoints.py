import shutil

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints import last_complete_checkpoint

STATES = ["optimizer.pt", "scheduler.pt"]
FILES = ["trainer_state.json", "processes.json", *STATES, "model.safetensors"]


@pytest.mark.parametrize("processes, name", [
    *((1, name) for name in (*FILES, "rng_state.pth")),
    *((3, f"rng_state_{rank}.pth") for rank in range(3)),
])  # fmt: skip
@pytest.mark.parametrize("fault", ["missing", "empty", "cut"])
def test_a_half_written_checkpoint_is_passed_over(processes, name, fault, tmp_path):
    assert last_complete_checkpoint(tmp_path / "none") is None
    whole, half = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    whole.mkdir()
    save_file({"a": torch.ones(99)}, whole / "model.safetensors")
    (whole / "trainer_state.json").write_text('{"global_step": 9}')
    (whole / "processes.json").write_text(str(processes))
    ranks = [f"rng_state_{rank}.pth" for rank in range(processes)]
    for state in (*STATES, *(ranks if processes > 1 else ["rng_state.pth"])):
        torch.save({"a": torch.ones(99)}, whole / state)
    shutil.copytree(whole, half)
    assert last_complete_checkpoint(tmp_path) == str(half)
    content = (half / name).read_bytes()
    (half / name).unlink()
    if fault != "missing":
        (half / name).write_bytes(content[: len(content) // 2] if fault == "cut" else b"")
    assert last_complete_checkpoint(tmp_path) == str(whole)
