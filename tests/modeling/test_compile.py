"""`torch.compile` takes each stage as one graph, and the model gives the same with it; bf16 autocast gives nearly the same."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_model import random_batch, tiny_model

SIDE = ("image_sizes", "region_boxes", "region_label_ids", "region_mask")


def mixed_batch():
    batch = random_batch(4, num_regions=3)
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
    posts = torch.arange(4)
    words, _ = model.encode_text(batch["input_ids"], batch["attention_mask"], batch["word_positions"])
    side = model.prepare_image_inputs(posts, batch["pixel_values"], True, *(batch[name] for name in SIDE))

    def text(batch):
        return model.encode_text(batch["input_ids"], batch["attention_mask"], batch["word_positions"])[0]

    def image(side, words, word_mask):
        return model.image_branch(words, word_mask, model.image_branch.memories(**side), True)

    for stage, given in (
        (text, (batch,)),
        (model.get_image_features, (batch["pixel_values"],)),
        (image, (side, words, batch["word_mask"])),
    ):
        compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), stage(*given), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_whole_model_breaks_only_where_posts_with_an_image_are_picked():
    model, batch = tiny_model(), mixed_batch()
    found = torch._dynamo.explain(model)(**batch)
    broken = [reason.user_stack[-1].line for reason in found.break_reasons]
    assert broken == ["posts = has_image.nonzero().squeeze(1)"]
    compiled = torch.compile(model, backend="aot_eager")
    ours, theirs = model(**batch), compiled(**batch)
    for name in ("logits", "relevance", "word_region_attention"):
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-5, rtol=1e-4)


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
