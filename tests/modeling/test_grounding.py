"""Grounding: which region shows an entity, or that none does; what counts in its loss; and what the pipeline makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modeling_hamlearning import HamLearningForTokenClassification
from modeling_hamlearning.grounding import entity_overlaps, entity_scores, grounding_loss
from tests.tiny_model import LABELS, random_batch, tiny_model

GROUNDED = {"grounding_loss_weight": 1.0}
# Two entities in the first post, one in the second, none in the third.
TAGS = torch.tensor([[1, 2, 0, 3, 4, 4], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
SPANS = torch.tensor([[0, 0, 1], [0, 3, 5], [1, 1, 1]])


def overlaps(*rows) -> torch.Tensor:
    """Of two entities a post with three regions; −100 fills up."""
    filled = torch.full((3, 2, 4), -100.0)
    for post, entity, values in rows:
        filled[post, entity] = torch.tensor(values)
    return filled


def test_weight_0_is_the_model_without_grounding():
    batch = random_batch()
    without, grounded = tiny_model(), tiny_model(**GROUNDED)
    assert not [name for name in without.state_dict() if "grounding" in name]
    assert without(**batch).grounding_scores is None
    added = set(grounded.state_dict()) - set(without.state_dict())
    assert added and all("image_branch.grounding." in name for name in added)
    grounded.load_state_dict(without.state_dict(), strict=False)
    assert torch.equal(without(**batch).logits, grounded(**batch).logits)


def test_a_model_without_regions_has_no_head():
    assert not tiny_model(use_objects=False, use_spatial=False, use_semantic=False, **GROUNDED).config.has_grounding


def test_a_weight_below_0_is_refused():
    with pytest.raises(ValueError, match="grounding_loss_weight: expected 0 or more, got -1"):
        tiny_model(grounding_loss_weight=-1)


def test_an_entity_has_the_mean_of_its_words_scores():
    scores = torch.randn(3, 6, 4)
    expected = [scores[0, :2].mean(0), scores[0, 3:].mean(0), scores[1, 1]]
    torch.testing.assert_close(entity_scores(scores, SPANS), torch.stack(expected))


def test_overlaps_go_to_the_gold_entities_in_order():
    given = overlaps((0, 0, [0.6, 0.1, 0.0, 0]), (1, 0, [0, 0, 0, 1]))
    crf = tiny_model().crf
    orphan = TAGS.clone()
    orphan[1, 1] = 2  # I-PER that follows no PER is read as B-PER
    for tags in (TAGS, orphan):
        spans = crf.gold_spans(tags, torch.ones_like(tags).bool())
        assert spans[:, :3].tolist() == SPANS.tolist()
        assert torch.equal(entity_overlaps(given, spans), given[[0, 0, 1], [0, 1, 0]])
    # Posts that are not annotated need no rows.
    assert entity_overlaps(torch.zeros(3, 0, 4), SPANS).eq(-100).all()


def test_the_loss_is_that_of_the_formula():
    scores = torch.randn(6, 4)
    scores[5, 0] = -1e4
    given = torch.tensor([
        [0.6, 0.9, 0.1, 0.0],  # two regions share the target
        [0.4, 0.7, 0.0, 0.0],  # the first misses by little and is left out
        [0.0, 0.0, 0.4, 1.0],  # not shown
        [-100.0] * 4,  # not annotated
        [0.2, 0.4, 0.3, 0.0],  # shown, but by no region
        [0.8, 0.0, 0.0, 0.0],  # shown by a region that is not there: its post was read without the image
    ])  # fmt: skip
    expected = -scores[0].log_softmax(0)[:2].mean() - scores[1, 1:].log_softmax(0)[0] - scores[2, [0, 1, 3]].log_softmax(0)[2]
    torch.testing.assert_close(grounding_loss(scores, given), expected)


def test_only_annotated_entities_teach_and_they_teach_until_they_are_right():
    model = tiny_model(**GROUNDED)
    model.training = True  # of the head alone: nothing is dropped out
    head = model.model.image_branch.grounding
    batch = random_batch() | {"labels": TAGS}
    batch["vision_features"] = model.get_image_features(batch.pop("pixel_values")).detach()
    plain = model(**batch).loss
    torch.testing.assert_close(model(**batch, region_overlaps=overlaps()).loss, plain)
    given = overlaps((0, 0, [0.0, 0.9, 0.1, 0]), (0, 1, [0, 0, 0, 1]), (1, 0, [0.0, 0.0, 0.7, 0]))
    assert model(**batch, region_overlaps=given).loss > plain
    optimizer = torch.optim.Adam(model.model.image_branch.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch, region_overlaps=given).loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in head.parameters())
    model.eval()
    assert model.ground(model(**batch), SPANS).argmax(1).tolist() == [1, 3, 2]
    # Evaluation reports the loss of the tags alone.
    torch.testing.assert_close(model(**batch, region_overlaps=given).loss, model(**batch).loss)


def test_company_order_and_padding_change_nothing():
    model, batch = tiny_model(**GROUNDED), random_batch()
    alone = model.ground(model(**batch), SPANS)
    assert alone.sum(1).allclose(torch.ones(3)) and alone.shape == (3, 4)
    order = [2, 0, 1]
    permuted = batch | {name: batch[name][:, order] for name in ("region_boxes", "region_label_ids", "region_mask")}
    torch.testing.assert_close(model.ground(model(**permuted), SPANS), alone[:, [*order, 3]], atol=1e-5, rtol=0)
    padded = batch | {
        "region_boxes": nn.functional.pad(batch["region_boxes"], (0, 0, 0, 2), value=0.7),
        "region_label_ids": nn.functional.pad(batch["region_label_ids"], (0, 0, 0, 2)),
        "region_mask": nn.functional.pad(batch["region_mask"], (0, 2)),
    }
    wide = model.ground(model(**padded), SPANS)
    torch.testing.assert_close(wide[:, [0, 1, 2, 5]], alone, atol=1e-5, rtol=0)
    assert wide[:, 3:5].eq(0).all()


def test_without_an_image_nothing_is_shown():
    model, batch = tiny_model(**GROUNDED), random_batch()
    batch["has_image"] = torch.tensor([True, False, True])
    probabilities = model.ground(model(**batch), SPANS)
    assert probabilities[2].tolist() == [0, 0, 0, 1] and probabilities[0, :3].gt(0).all()
    batch["has_image"] = torch.zeros(3, dtype=torch.bool)
    assert model.ground(model(**batch), SPANS).argmax(1).tolist() == [3, 3, 3]


def test_a_saved_model_grounds_as_before(tmp_path):
    model, batch = tiny_model(**GROUNDED), random_batch()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "grounding.py").is_file()
    loaded = HamLearningForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).grounding_scores, model(**batch).grounding_scores)
    assert len(LABELS) == loaded.config.num_labels
