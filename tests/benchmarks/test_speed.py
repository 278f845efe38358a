"""The model's cost above its encoders, counted in operations, which are the same on every run and machine."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import image_branch_inputs
from benchmarks.timing import SUB_TOKENS, WORDS, base_model, posts_like_tweets

# Twice what was counted when this was written: 8 posts of the middle of the distribution, all levels, three rounds.
MOST_FLOPS_ABOVE, MOST_CALLS_ABOVE = 0.0521, 2.91


class CallCounter(TorchDispatchMode):
    """Counts calls of operators."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def counted(action) -> tuple[int, int]:
    flops, calls = FlopCounterMode(display=False), CallCounter()
    with flops, calls:
        action()
    return flops.get_total_flops(), calls.calls


@pytest.fixture(scope="module")
def model_and_batch():
    return base_model().eval(), posts_like_tweets(WORDS[16:24], SUB_TOKENS[16:24])


@pytest.fixture(scope="module")
def above(model_and_batch):
    """Operations and calls of tagging, over those of the two encoders on the same posts, less 1."""
    model, batch = model_and_batch
    inner = model.model

    def encoders():
        inner.text_encoder(input_ids=batch["input_ids"][:, 0], attention_mask=batch["attention_mask"][:, 0])
        inner.get_image_features(batch["pixel_values"])

    whole = counted(lambda: model.decode(model(**batch), batch["word_mask"]))
    return [total / own - 1 for total, own in zip(whole, counted(encoders), strict=True)]


def test_operations_above_the_encoders(above):
    assert 0 < above[0] <= MOST_FLOPS_ABOVE


def test_calls_above_the_encoders(above):
    assert 0 < above[1] <= MOST_CALLS_ABOVE


@torch.no_grad()
def test_the_image_branch_is_measured_on_what_the_model_gives_it(model_and_batch):
    model, batch = model_and_batch
    inputs, words, word_mask = image_branch_inputs(model.model, batch)
    fused = model.model.image_branch(words, word_mask, inputs)[0]
    torch.testing.assert_close(fused, model.model(**batch).last_hidden_state)
