"""Rows to batches: what does not fit is named by its post, and what cannot be read is counted."""

from __future__ import annotations

import pytest
from PIL import Image

from processors import HamLearningImageProcessor, HamLearningProcessor
from tests.tiny import tiny_tokenizer
from training.collator import ImagesLostError, MnerCollator


@pytest.fixture
def collator() -> MnerCollator:
    return MnerCollator(HamLearningProcessor(tokenizer=tiny_tokenizer("bert"), image_processor=HamLearningImageProcessor()))


def test_an_error_names_the_post_and_its_field(collator):
    rows = [{"id": "a", "tokens": ["x", "y"], "ner_tags": [0]}, {"id": "b", "tokens": ["x"], "ner_tags": [0, 0]}]
    with pytest.raises(ValueError, match="post a, field ner_tags: expected 2 labels, one for each word, got 1"):
        collator(rows)
    image = Image.new("RGB", (9, 9))
    rows = [{"id": "t17", "tokens": ["x"], "ner_tags": [0], "image": image, "boxes": [[0, 0, 90, 9]]}]
    with pytest.raises(ValueError, match="post t17, field boxes, box 0"):
        collator(rows)


def row(place: int, image) -> dict:
    return {"id": f"p{place}", "tokens": ["x"], "ner_tags": [0], "image": image}


def test_labels_are_padded_by_minus_100(collator):
    batch = collator([row(0, None), row(1, None) | {"tokens": ["x", "y"], "ner_tags": [1, 2]}])
    assert batch["labels"].tolist() == [[0, -100], [1, 2]] and batch["ids"] == ["p0", "p1"]


def test_an_image_that_cannot_be_read_is_left_out_and_counted(collator, caplog):
    batch = collator([row(0, b"no image"), row(1, Image.new("RGB", (9, 9))), row(2, None)])
    assert batch["has_image"].tolist() == [False, True, False]
    assert collator.image_counts.tolist() == [1, 1] and "post p0 is read without its image" in caplog.text


def test_large_images_are_reduced_and_their_sizes_are_the_originals(collator, monkeypatch):
    """Four photos of a phone would take hundreds of megabytes before the model's 224 pixels."""
    seen, encode = [], collator.processor.encode
    monkeypatch.setattr(collator.processor, "encode", lambda *posts, images: seen.extend(images) or encode(*posts, images=images))
    batch = collator([row(0, Image.new("RGB", (3000, 2000)))])
    assert batch["image_sizes"].tolist() == [[2000, 3000]] and max(seen[0].size) < 900


def test_half_of_the_latest_images_may_be_unreadable_and_not_more(collator):
    image = Image.new("RGB", (9, 9))
    for place in range(200):
        collator([row(place, b"no image" if place % 3 == 0 else image)])
    assert collator.image_counts.tolist() == [133, 67]
    with pytest.raises(ImagesLostError, match=r"post p\d+, field image: 25 of the latest 50 images cannot be read"):
        for place in range(200, 250):
            collator([row(place, b"no image")])


def test_overlaps_of_regions_and_entities(collator):
    image = Image.new("RGB", (9, 9))
    boxes = {"boxes": [[0, 0, 0.5, 1], [0, 0, 1, 1]], "box_labels": ["", ""], "box_scores": [1.0, 1.0]}
    rows = [
        row(0, image) | boxes | {"entity_boxes": [[[0, 0, 0.5, 1], [0, 0, 1, 0.5]], [], None]},
        row(1, image) | boxes | {"boxes": [[0, 0, 1, 1]], "box_labels": None, "box_scores": None, "entity_boxes": None},
    ]
    overlaps = collator(rows)["region_overlaps"]
    assert overlaps[0].tolist() == [[1, 0.5, 0], [0, 0, 1], [-100] * 3] and overlaps[1].eq(-100).all()
    assert "region_overlaps" not in collator([row(0, image)])
    rows[0]["entity_boxes"] = [[[0, 0, 9, 9]]]
    with pytest.raises(ValueError, match="post p0, field entity_boxes, entity 0, field boxes, box 0: expected fractions"):
        collator(rows)
