"""Two gloo processes, one of which has no image in its batch: DistributedDataParallel and FSDP2 train as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_model import random_batch, select, tiny_model
from training.calibration import apply_temperature

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3


def batches() -> list[dict[str, torch.Tensor]]:
    """One batch of four posts a step. The second process gets the last two, which never have an image."""
    result = [random_batch(num_posts=4, seed=seed) for seed in range(STEPS)]
    for batch in result:
        batch["has_image"][2:] = False
    return result


def make_model():
    model = tiny_model(fusion_dropout=0.0, classifier_dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    # The statistics of a batch norm would differ with the number of posts a process has.
    model.model.vision_encoder.eval()
    return model


def train(model, batches_of_a_process, reduce) -> list[float]:
    """Losses of each step, summed over the processes; gradients are means over the processes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for batch, num_words, scale in batches_of_a_process:
        loss = scale * model(**batch, num_items_in_batch=num_words).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(reduce(loss.detach() / scale))
    return losses


def worker(kind: str, result: str):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    assert torch.distributed.get_world_size() == 2
    model = make_model()
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for unit in [*model.model.text_encoder.encoder.layer, model.model.image_branch]:
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def reduce(loss):
        torch.distributed.all_reduce(loss)
        return loss.item()

    posts = slice(0, 2) if rank == 0 else slice(2, 4)
    parts = [(select(batch, posts), (batch["labels"] >= 0).sum(), 2.0) for batch in batches()]
    if rank == 1:
        parts = [({name: x for name, x in part.items() if name != "pixel_values"}, *rest) for part, *rest in parts]
    losses = train(model, parts, reduce)
    halved = None
    if kind == "fsdp2":
        before = model.classifier.weight.full_tensor()
        with torch.no_grad():
            outputs = model(**parts[0][0])
        model.decode(outputs, parts[0][0]["word_mask"])
        apply_temperature(model, 2.0)
        model.reshard()
        halved = torch.equal(model.classifier.weight.full_tensor(), before / 2)
    if rank == 0:
        Path(result).write_text(json.dumps({"losses": losses, "temperature halves the weights": halved}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # On a busy machine one of torch's threads is now and then still there when Python ends, and ends it with an abort.
    os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_process_without_an_image_trains_with_the_others(kind, tmp_path):
    result = tmp_path / "losses.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    run = subprocess.run(
        [*command, kind, str(result)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    alone = train(make_model(), [(batch, (batch["labels"] >= 0).sum(), 1.0) for batch in batches()], torch.Tensor.item)
    found = json.loads(result.read_text())
    assert found["losses"] == pytest.approx(alone, rel=1e-4)
    assert kind != "fsdp2" or found["temperature halves the weights"]


if __name__ == "__main__":
    worker(*sys.argv[1:])
