"""What holds for every post: without an image, in any company, under any padding and order of regions."""

from __future__ import annotations

import itertools

import pytest
import torch

from modeling_hamlearning import LEVELS
from tests.tiny_model import random_batch, select, tiny_model

IMAGE_TENSORS = ("pixel_values", "has_image", "image_sizes", "region_boxes", "region_label_ids", "region_mask")
SWITCHES = dict.fromkeys(("use_global", "use_objects", "use_spatial", "use_semantic"), False)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_the_image_speaks_at_all(model):
    """Without this the tests below would pass on a model that never looks."""
    batch = random_batch()
    other = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert (logits(model, batch) - logits(model, other)).abs().max() > 1e-2


def test_a_post_without_an_image_gets_the_text_paths_logits_bit_for_bit(model):
    batch = random_batch()
    text_only = {name: value for name, value in batch.items() if name not in IMAGE_TENSORS}
    mixed = batch | {"has_image": torch.tensor([True, False, True])}
    expected = logits(model, text_only)
    assert torch.equal(logits(model, mixed)[1], expected[1])
    assert not torch.equal(logits(model, mixed)[0], expected[0])
    assert torch.equal(logits(model, batch | {"has_image": torch.zeros(3, dtype=torch.bool)}), expected)


def test_a_missing_image_is_never_read(model):
    batch = random_batch() | {"has_image": torch.tensor([True, False, True])}
    poisoned = {name: value.clone() for name, value in batch.items()}
    for name in ("pixel_values", "image_sizes", "region_boxes"):
        poisoned[name][1] = torch.nan
    assert torch.equal(logits(model, poisoned), logits(model, batch))


def test_every_level_off_is_the_plain_text_tagger(model):
    text_tagger = tiny_model(**SWITCHES)
    weights = model.state_dict()
    text_tagger.load_state_dict({name: weights[name] for name in text_tagger.state_dict()})
    batch = random_batch()
    without = {name: value for name, value in batch.items() if name not in IMAGE_TENSORS}
    assert torch.equal(logits(text_tagger, batch), logits(model, without))
    assert not any("vision" in name or "image" in name for name in text_tagger.state_dict())


def test_relevance_is_zero_without_an_image_and_between_0_and_1_with_one(model):
    batch = random_batch() | {"has_image": torch.tensor([True, False, True])}
    with torch.no_grad():
        output = model(**batch)
    assert output.relevance.shape == (3, len(LEVELS))
    assert (output.relevance[1] == 0).all() and (output.word_region_attention[1] == 0).all()
    assert ((output.relevance[[0, 2]] > 0) & (output.relevance[[0, 2]] < 1)).all()
    batch["region_mask"][0] = False
    with torch.no_grad():
        relevance = model(**batch).relevance
    assert relevance[0, 0] > 0 and (relevance[0, 1:] == 0).all()


def test_a_level_of_relevance_zero_adds_nothing(model):
    """Stage 2 scales the memory: at 0 no picture can change the words."""
    batch = random_batch()
    muted = tiny_model()
    with torch.no_grad():
        for head in muted.model.image_branch.relevance:
            head.log_scale.fill_(0.0)
            head.bias.fill_(-200)
    assert torch.equal(logits(muted, batch), logits(muted, batch | {"pixel_values": batch["pixel_values"].flip(0)}))


def test_the_matching_loss_is_the_cross_entropy_of_own_and_others_images():
    """By hand from the relevance the model reports, of every post with every image; the others count as one together."""
    weight = 0.7
    model = tiny_model(relevance_loss_weight=weight, fusion_dropout=0.0, classifier_dropout=0.0)
    # A post without an image in the middle has no part in it; the levels of regions are absent in one post.
    batch = random_batch(num_posts=5) | {"has_image": torch.tensor([True, True, False, True, True])}
    batch["region_mask"][3] = False
    shown = [0, 1, 3, 4]
    with torch.no_grad():
        tagged = model(**batch)
        assert tagged.relevance_loss is None
        own = tagged.relevance[shown]
        expected = -own[own > 0].log().sum()
        for offset in range(1, len(shown)):
            moved = batch | {name: batch[name].clone() for name in IMAGE_TENSORS}
            for name in IMAGE_TENSORS:
                moved[name][shown] = batch[name][shown].roll(offset, 0)
            other = model(**moved).relevance[shown]
            # A level that is absent from a post's own image is not paired with another image's.
            paired = (own > 0) & (other > 0)
            num_others = (own.roll(offset, 0) > 0).sum(0) - 1
            expected = expected - ((1 - other).log() * paired / num_others).sum()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        model.model.vision_encoder.eval()
        learned = model(**batch)
    close(learned.relevance_loss, expected)
    close(learned.loss, tagged.loss + weight * expected / (batch["labels"] >= 0).sum())


def test_matching_alone_teaches_relevance_where_it_has_a_weight():
    """In training. In evaluation a gradient tells how the tags depend on the relevance."""
    for weight, training in itertools.product((0.0, 1e-9), (True, False)):
        model = tiny_model(relevance_loss_weight=weight).train(training)
        model(**random_batch()).loss.backward()
        gradients = [float(head.bias.grad.abs()) for head in model.model.image_branch.relevance]
        assert all((gradient < 1e-7) == (weight > 0 and training) for gradient in gradients), (weight, training, gradients)


def test_matching_teaches_the_image_branch_and_not_the_text_encoder():
    model = tiny_model(relevance_loss_weight=1.0).train()
    model(**random_batch()).relevance_loss.backward()
    # But for its vectors of sub-tokens: the labels of the regions are read with them.
    learned = {name for name, parameter in model.model.text_encoder.named_parameters() if parameter.grad is not None}
    assert learned == {"embeddings.word_embeddings.weight"}
    assert model.model.image_branch.text_projection.weight.grad.any()
    assert any(parameter.grad is not None for parameter in model.model.vision_encoder.parameters())


def close_every_gate(model):
    with torch.no_grad():
        for relevance in model.model.image_branch.relevance:
            relevance.bias.fill_(-1e4)


@pytest.mark.parametrize("levels", [{}, {"use_global": False}, {"use_objects": False, "use_spatial": False}])
def test_an_irrelevant_image_is_no_image(levels):
    """Relevance 0 at every level: the logits of the text, bit for bit, whatever the image branch computes."""
    model, batch = tiny_model(**levels), random_batch()
    text = {name: tensor for name, tensor in batch.items() if name not in IMAGE_TENSORS}
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**text).logits)
        close_every_gate(model)
        output = model(**batch)
        assert not output.relevance.any()
        assert torch.equal(output.logits, model(**text).logits)


def test_what_the_image_adds_shrinks_with_the_relevance():
    model, batch = tiny_model(), random_batch()
    text = {name: tensor for name, tensor in batch.items() if name not in IMAGE_TENSORS}
    close_every_gate(model)
    steps = []
    with torch.no_grad():
        words = model(**text).logits
        for bias in (2.0, -2.0, -6.0, -10.0):
            for relevance in model.model.image_branch.relevance:
                relevance.bias.fill_(bias)
            steps.append((model(**batch).logits - words).abs().max())
    assert steps == sorted(steps, reverse=True) and steps[-1] < 1e-3 < steps[0]


def test_training_leaves_out_a_share_of_the_images():
    model, batch = tiny_model(image_dropout=0.3), random_batch(num_posts=200)
    model.train()
    torch.manual_seed(0)
    output = model(**batch)
    read = (output.relevance > 0).all(1)
    assert torch.equal(read, (output.relevance > 0).any(1))
    assert 0.6 < read.float().mean() < 0.8
    model.eval()
    assert (model(**batch).relevance > 0).all()


def test_every_parameter_has_a_gradient_in_training_without_an_image():
    """A process whose posts have no image takes part in distributed training like the others."""
    batch = random_batch()
    text = {name: tensor for name, tensor in batch.items() if name not in IMAGE_TENSORS}
    for inputs in (text, batch | {"has_image": torch.zeros(3, dtype=torch.bool)}):
        model = tiny_model(relevance_loss_weight=1.0).train()
        model(**inputs).loss.backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        # The learned vector of words without a sub-token, and label embeddings without a label, have none either.
        assert not without
        assert not any(p.grad.any() for name, p in model.named_parameters() if "image_branch" in name or "vision" in name)


@pytest.mark.parametrize("has_image", [[True, False, False], [False, False, False]])
def test_a_post_without_a_neighbour_has_no_matching_loss(has_image):
    model = tiny_model(relevance_loss_weight=1.0).train()
    output = model(**random_batch() | {"has_image": torch.tensor(has_image)})
    assert not output.relevance_loss
    output.loss.backward()


def test_company_and_order_do_not_matter(model):
    batch = random_batch(num_posts=5)
    together = logits(model, batch)
    order = torch.tensor([3, 0, 4, 2, 1])
    close(logits(model, select(batch, order)), together[order])
    for post in range(5):
        close(logits(model, select(batch, [post])), together[[post]])


@pytest.mark.parametrize("num_windows", [1, 2])
def test_padding_does_not_matter(model, num_windows):
    batch = random_batch(num_windows=num_windows)
    with torch.no_grad():
        expected = model(**batch)
        padded = _pad(batch)
        actual = model(**padded)
    close(actual.logits[:, :6], expected.logits)
    close(actual.relevance, expected.relevance)
    close(actual.word_region_attention[:, :6, :3], expected.word_region_attention)
    assert (actual.word_region_attention[..., 3:] == 0).all()
    close(actual.loss, expected.loss)
    assert model.decode(actual, padded["word_mask"]) == model.decode(expected, batch["word_mask"])


def _pad(batch):
    """More sub-tokens, words, windows, regions and label tokens, all padding, filled with what must not matter."""
    posts, windows, length = batch["input_ids"].shape
    pad = torch.nn.functional.pad
    positions = batch["word_positions"]
    return batch | {
        "input_ids": pad(batch["input_ids"], (0, 5, 0, 2), value=7),
        "attention_mask": pad(batch["attention_mask"], (0, 5, 0, 2)),
        "word_positions": pad(positions // length * (length + 5) + positions % length, (0, 4), value=-1),
        "word_mask": pad(batch["word_mask"], (0, 4)),
        "region_boxes": pad(batch["region_boxes"], (0, 0, 0, 2), value=torch.nan),
        "region_label_ids": pad(pad(batch["region_label_ids"], (0, 3), value=0), (0, 0, 0, 2), value=9),
        "region_mask": pad(batch["region_mask"], (0, 2)),
        "labels": pad(batch["labels"], (0, 4), value=-100),
    }


def test_permuting_regions_permutes_the_attention_and_nothing_else(model):
    batch = random_batch(num_regions=4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = batch | {name: value[:, order] for name, value in batch.items() if name.startswith("region_")}
    with torch.no_grad():
        expected, actual = model(**batch), model(**permuted)
    close(actual.logits, expected.logits)
    close(actual.word_region_attention, expected.word_region_attention[..., order])
    assert (expected.word_region_attention.diff(dim=-1).abs() > 1e-4).any()


def test_a_two_dimensional_input_is_one_window(model):
    batch = random_batch()
    flat = batch | {name: batch[name].squeeze(1) for name in ("input_ids", "attention_mask")}
    assert torch.equal(logits(model, flat), logits(model, batch))


def test_a_window_of_padding_is_not_encoded(model):
    batch = random_batch(num_windows=3)
    batch["attention_mask"][0, 1:] = 0
    seen = []
    hook = model.model.text_encoder.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    logits(model, batch)
    hook.remove()
    assert seen == [7]


def test_words_without_a_subtoken_share_one_vector(model):
    batch = random_batch()
    batch["word_positions"][:, 2:4] = -1
    with torch.no_grad():
        output = model(**batch)
        text = logits(model, batch | {"has_image": torch.zeros(3, dtype=torch.bool)})
    assert torch.equal(text[0, 2], text[1, 3])
    assert [len(path) for path in model.decode(output, batch["word_mask"])] == [6, 6, 6]


def test_posts_without_words_or_regions(model):
    for changes in ({"num_words": 0}, {"num_regions": 0}):
        batch = random_batch(**changes)
        output = model(**batch)
        assert output.loss.isfinite()
        assert [len(path) for path in model.decode(output, batch["word_mask"])] == [batch["word_mask"].shape[1]] * 3


def test_every_tensor_splits_by_post(model):
    """As DataParallel, DistributedDataParallel and gathering do: the first dimension is the post everywhere."""
    batch = random_batch(num_posts=4, num_windows=2)
    assert {len(value) for value in batch.values()} == {4}
    with torch.no_grad():
        output = model(**batch)
    assert {len(value) for name, value in output.items() if name != "loss"} == {4}
    halves = torch.cat([logits(model, select(batch, slice(0, 2))), logits(model, select(batch, slice(2, 4)))])
    close(halves, output.logits)
