"""What a model gets wrong, with a tiny model of random weights: its errors, their page and their table."""

from __future__ import annotations

import io
import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline

from training import errors
from training.errors import (
    Entity,
    confusion,
    confusion_markdown,
    gold_entities,
    gold_scores,
    kind_of_error,
    pair_entities,
    predicted_entities,
    tag_rows,
    write_errors,
)

TOKENS = ["Jordan", "<script>alert(1)</script>", "New", "York", "&amp;", "#NBA"]


@pytest.fixture(scope="module")
def rows(label_names) -> Dataset:
    """Four posts: with an image, with one that cannot be read, and two without."""
    png = io.BytesIO()
    Image.new("RGB", (900, 300), "teal").save(png, "PNG")
    features = Features({
        "id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=label_names)),
        "image": ImageFeature(decode=False),
    })  # fmt: skip
    images = [{"bytes": png.getvalue(), "path": None}, {"bytes": b"broken", "path": "x.jpg"}, None, None]
    tags = [label_names.index(name) for name in ("B-PER", "O", "B-LOC", "I-LOC", "O", "O")]
    columns = {"id": ["a", "b", "<i>", "d"], "tokens": [TOKENS] * 4, "ner_tags": [tags] * 4, "image": images}
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def ner(saved_model):
    return pipeline("mner", model=str(saved_model), trust_remote_code=True)


@pytest.mark.parametrize("gold, predicted, kinds", [
    ([("PER", 0, 2)], [("PER", 0, 2)], [None]),
    ([("PER", 0, 2)], [("LOC", 0, 2)], ["mistyped"]),
    ([("PER", 0, 2)], [("PER", 0, 1)], ["cut"]),
    ([("PER", 0, 2)], [("LOC", 1, 3)], ["cut"]),
    ([("PER", 0, 2)], [("PER", 2, 3)], ["missed", "invented"]),
    # Of two halves, one stands for the entity and the other for none.
    ([("PER", 0, 3)], [("PER", 0, 1), ("PER", 1, 3)], ["cut", "invented"]),
    ([("PER", 0, 1), ("LOC", 1, 4)], [("PER", 0, 4)], ["cut", "missed"]),
    ([], [], []),
])  # fmt: skip
def test_the_kinds_of_errors(gold, predicted, kinds):
    gold, predicted = [Entity(*entity) for entity in gold], [Entity(*entity) for entity in predicted]
    pairs = pair_entities(gold, predicted)
    found = [kind_of_error(None if i is None else gold[i], None if j is None else predicted[j]) for i, j in pairs]
    assert found == kinds
    if kinds == ["cut", "missed"]:
        assert pairs[0] == (1, 0)


def test_every_error_is_told_with_its_post(ner, rows, tmp_path, label_names):
    report = write_errors(ner, rows, tmp_path, "validation", batch_size=3)
    errors = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert errors and {error["id"] for error in errors} <= {"a", "b", "<i>", "d"}
    for error in errors:
        entity = error["predicted"] or error["gold"]
        assert error["text"][entity["start"] : entity["end"]] == entity["word"]
        assert error["confidence"] == (1 - entity["score"] if error["kind"] == "missed" else entity["score"])
        # What cannot be read is not shown, and the post is told by its text.
        assert error["image"] == ("in the row" if error["id"] == "a" else None)
    assert [error["confidence"] for error in errors] == sorted((error["confidence"] for error in errors), reverse=True)
    page = (tmp_path / "errors.html").read_text(encoding="utf-8")
    assert page.count("<article ") == len(errors) == sum(report["errors"].values())
    assert page.count("data:image/jpeg;base64,") == sum(error["id"] == "a" for error in errors) > 0
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;i&gt;" in page and 'src="http' not in page
    assert Image.open(tmp_path / "confusion.png").width > 200
    assert report["by_image"].keys() == {"with image", "without image"} and report["by_length"].keys() >= {"1", "2"}
    assert report["by_image"]["with image"]["gold_total"] == 2 and report["by_image"]["without image"]["gold_total"] == 6


def test_a_gold_entity_has_the_score_that_it_would_have_if_it_were_found(ner, rows, label_names):
    """The labels are those that the model itself predicts, so every gold entity is a predicted one."""
    posts, results = tag_rows(ner, rows, 2)
    tags = [[label_names.index(name) for name in ner.to_bio(result, len(TOKENS))] for result in results]
    feature = List(ClassLabel(names=label_names))
    found = rows.remove_columns("ner_tags").add_column("ner_tags", tags, feature=feature)
    assert [gold_entities(row, label_names) for row in found] == [predicted_entities(result) for result in results]
    scores = [[entity["score"] for entity in result] for result in results]
    assert any(scores)
    for actual, expected in zip(gold_scores(ner, found, 3), scores, strict=True):
        assert actual == pytest.approx(expected, abs=1e-5)
    table = confusion(found, results)
    assert all(count == 0 for gold, counts in table.items() for name, count in counts.items() if gold != name)


def test_an_image_is_only_opened_reduced_before_it_is_tagged(ner, rows, monkeypatch):
    jpeg = io.BytesIO()
    Image.new("RGB", (1600, 1200), "teal").save(jpeg, "JPEG")
    sizes, original = [], errors.load_image
    monkeypatch.setattr(errors, "load_image", lambda *a, **b: sizes.append((image := original(*a, **b)).size) or image)
    row = rows[0] | {"image": {"bytes": jpeg.getvalue(), "path": None}}
    posts, _ = tag_rows(ner, Dataset.from_list([row], features=rows.features), 1)
    assert max(sizes[0]) < 250 and posts[0]["image"] == row["image"]


def test_rare_types_of_many_are_taken_together():
    names = ["O", *(f"B-T{place:02}" for place in range(30))]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    tags = [[place + 1] for place in range(30) for _ in range(31 - place)]
    rows = Dataset.from_dict({"tokens": [["x"]] * len(tags), "ner_tags": tags}, features=features)
    table = confusion(rows, [[] for _ in tags])
    assert len(table) == 22 and "T19" in table and "T20" not in table
    assert table["other types"]["missed"] == sum(31 - place for place in range(20, 30))
    assert confusion_markdown(table).splitlines()[-1].endswith("| 0 |  |")
