"""`torch.compile` takes each stage as one graph, and the model gives the same with it; bf16 autocast gives nearly the same."""

from __future__ import annotations

import random

import pytest
import torch

from tests.tiny_model import random_batch, tiny_model

SIDE = ("image_sizes", "region_boxes", "region_label_ids", "region_mask")


def mixed_batch(num_windows: int = 1):
    batch = random_batch(4, num_regions=3, num_windows=num_windows)
    batch["attention_mask"][1, 1:] = 0
    batch["word_positions"][1] %= batch["input_ids"].shape[-1]
    batch["has_image"][1] = False
    batch["region_mask"][2, 1:] = False
    batch["word_mask"][3, 2:] = False
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@torch.no_grad()
def test_the_stages_are_one_graph_each():
    """Stage 1 text, stage 1 image with stages 2 and 3, and the backbone: `fullgraph` refuses any break."""
    model, batch = tiny_model().model, random_batch(4)
    words, _ = model.encode_text(batch["input_ids"], batch["attention_mask"], batch["word_positions"])
    feature_maps = model.get_image_features(batch["pixel_values"])
    side = model.prepare_image_inputs(batch["has_image"], feature_maps, *(batch[name] for name in SIDE))

    def text(batch):
        return model.encode_text(batch["input_ids"], batch["attention_mask"], batch["word_positions"])[0]

    def image(side, words, word_mask):
        return model.image_branch(words, word_mask, side)

    for stage, given in (
        (text, (batch,)),
        (model.get_image_features, (batch["pixel_values"],)),
        (image, (side, words, batch["word_mask"])),
    ):
        compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), stage(*given), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("num_windows", [1, 2])
def test_the_whole_model_is_one_graph(num_windows):
    model, batch = tiny_model(), mixed_batch(num_windows)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, actual = model(**batch), compiled(**batch)
    for name in ("logits", "relevance", "word_region_attention"):
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("with_images", [True, False])
def test_training_is_one_graph(with_images):
    model, batch = tiny_model().train(), mixed_batch()
    model.freeze_vision()
    if not with_images:
        batch = {name: tensor for name, tensor in batch.items() if name not in ("pixel_values", "has_image", *SIDE)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert (compiled(**batch).relevance_loss > 0) == with_images


@pytest.mark.slow
@torch.no_grad()
def test_batches_of_other_sizes_are_few_compilations():
    """Sizes marked as free: two or three graphs for 50 batches, not one a batch."""
    model, compilations = tiny_model(), []

    def backend(graph, inputs):
        compilations.append(len(inputs))
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for seed in range(50):
        sizes = random.Random(seed)
        batch = random_batch(sizes.randint(2, 6), sizes.randint(3, 9), sizes.randint(8, 16), sizes.randint(2, 5), seed=seed)
        del batch["labels"]
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)
    assert len(compilations) <= 3


@torch.no_grad()
def test_export_of_forward():
    model, batch = tiny_model(), mixed_batch()
    program = torch.export.export(model, (), batch)
    torch.testing.assert_close(program.module()(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_bf16_autocast_changes_no_label():
    model, batch = tiny_model(), mixed_batch()
    exact = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**batch)
    words = batch["word_mask"]
    spread = exact.logits[words].std()
    assert 0 < (rounded.logits.float() - exact.logits)[words].abs().max() < 0.1 * spread
    assert model.decode(rounded, words) == model.decode(exact, words)
