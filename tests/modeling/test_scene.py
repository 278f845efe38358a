"""Scene scores: what they add to the emissions, what teaches them and what they do not teach, and that they stay with a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modeling_hamlearning import HamLearningForTokenClassification
from tests.tiny_model import LABELS, random_batch, tiny_model
from training.calibration import apply_temperature
from training.labels import add_labels

SCENE = {"scene_loss_weight": 1.0}
# Two entities in the first post, one in the second, none in the third.
TAGS = torch.tensor([[1, 2, 0, 3, 4, 4], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def without_dropout(model: HamLearningForTokenClassification) -> HamLearningForTokenClassification:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_weight_0_is_the_model_without_scene_scores():
    batch = random_batch()
    without, model = tiny_model(), tiny_model(**SCENE)
    assert not [name for name in without.state_dict() if ".scene." in name]
    assert without(**batch).scene_scores is None
    added = set(model.state_dict()) - set(without.state_dict())
    assert added == {f"model.image_branch.scene.{name}" for name in ("linear.weight", "entity_counts")}
    assert not tiny_model(use_global=False, **SCENE).config.has_scene_scores
    # A new model's are 0.
    assert not HamLearningForTokenClassification(model.config).model.image_branch.scene.linear.weight.any()


def test_a_weight_below_0_is_refused():
    with pytest.raises(ValueError, match="scene_loss_weight: expected 0 or more, got -1"):
        tiny_model(scene_loss_weight=-1)


def test_scores_are_added_where_an_entity_begins_as_far_as_the_image_is_relevant():
    batch = random_batch() | {"has_image": torch.tensor([True, False, True])}
    model, without = tiny_model(**SCENE), tiny_model()
    without.load_state_dict(model.state_dict(), strict=False)
    output = model(**batch)
    difference = output.logits - without(**batch).logits
    # By hand: every cell is normalised, the mean of the cells is scored, and any level makes the image relevant.
    cells = model.get_image_features(batch["pixel_values"]).flatten(2).transpose(1, 2)
    normed = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    scores = normed.mean(1) @ model.model.image_branch.scene.linear.weight.T
    relevance = 1 - (1 - output.relevance).prod(1, keepdim=True)
    begins = torch.tensor([float(label.startswith("B-")) for label in LABELS])
    expected = (scores * relevance * begins)[:, None].expand_as(difference)
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=1e-4)
    assert expected[0, 0, 1].abs() > 0.01 and not difference[1].any()


def test_an_irrelevant_image_adds_nothing():
    batch = random_batch()
    model = tiny_model(**SCENE)
    with torch.no_grad():
        for relevance in model.model.image_branch.relevance:
            relevance.log_scale.fill_(0.0)
            relevance.bias.fill_(-200)
    assert torch.equal(model(**batch).logits, model(**batch | {"has_image": torch.zeros(3, dtype=torch.bool)}).logits)


@pytest.mark.parametrize("relevance_loss_weight", [0.0, 0.3])
def test_they_learn_from_their_own_loss_and_teach_nothing_else(relevance_loss_weight):
    batch = random_batch() | {"labels": TAGS, "has_image": torch.tensor([True, True, False])}
    model = without_dropout(tiny_model(relevance_loss_weight=relevance_loss_weight, scene_loss_weight=0.5)).train()
    model.model.vision_encoder.eval()
    scene = model.model.image_branch.scene
    scene.entity_counts.copy_(torch.tensor([0, 5, 0, 2, 0]))
    output = model(**batch)
    # By hand: entities PER, LOC of the first post and PER of the second. They are counted, with one more of each type.
    columns = output.scene_scores[[0, 0, 1]][:, [1, 3]] + torch.tensor([5 + 2 + 1.0, 2 + 1 + 1.0]).log()
    expected = nn.functional.cross_entropy(columns, torch.tensor([0, 1, 0]), reduction="sum")
    assert scene.entity_counts.tolist() == [0, 7, 0, 3, 0]
    (0.5 * expected / TAGS.numel()).backward(retain_graph=True)
    by_hand = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(by_hand) == {"model.image_branch.scene.linear.weight"}
    assert not by_hand["model.image_branch.scene.linear.weight"][[0, 2, 4]].any()
    model.zero_grad()
    output.loss.backward()
    torch.testing.assert_close(scene.linear.weight.grad, by_hand["model.image_branch.scene.linear.weight"])


def test_posts_without_an_image_or_without_entities_do_not_count():
    batch = random_batch() | {"labels": TAGS, "has_image": torch.tensor([False, False, True])}
    model = tiny_model(**SCENE).train()
    model(**batch).loss.backward()
    assert not model.model.image_branch.scene.entity_counts.any()
    assert not model.model.image_branch.scene.linear.weight.grad.any()
    model.eval()(**batch | {"has_image": torch.ones(3, dtype=torch.bool)})
    assert not model.model.image_branch.scene.entity_counts.any()


def test_a_saved_model_has_the_scores_and_counts(tmp_path):
    model, batch = tiny_model(**SCENE), random_batch()
    model.model.image_branch.scene.entity_counts += 3
    model.save_pretrained(tmp_path)
    assert (tmp_path / "scene.py").is_file()
    loaded = HamLearningForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.model.image_branch.scene.entity_counts.tolist() == [3] * len(LABELS)


def test_a_temperature_divides_them_too():
    model, batch = tiny_model(**SCENE), random_batch()
    before = model(**batch).logits
    apply_temperature(model, 2.0)
    torch.testing.assert_close(model(**batch).logits, before / 2)


def test_new_types_start_at_0_and_learn():
    model, batch = tiny_model(**SCENE), random_batch()
    before = model(**batch).logits
    add_labels(model, [*LABELS, "B-ORG", "I-ORG"])
    after = model(**batch)
    torch.testing.assert_close(after.logits[..., : len(LABELS)], before)
    assert not after.scene_scores[:, len(LABELS) :].any()
    model.train()(**batch | {"labels": torch.full((3, 6), len(LABELS))}).loss.backward()
    assert model.model.image_branch.scene.entity_counts[len(LABELS)] == 18
    assert model.model.image_branch.scene.linear.weight.grad[len(LABELS)].any()
