"""The tagger of bulk tagging on its own, without Ray's scheduling."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from tests.bulk.images import image_bytes

pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
from bulk import tagger as tagger_module  # noqa: E402
from bulk.sources import JSON_LINES, POST_COLUMNS, open_data  # noqa: E402
from bulk.tagger import Tagger  # noqa: E402
from mner_data.readers.rows import Notes, post_of_row  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TEXT = "Jordan scores again in Amazon park"


@pytest.fixture(scope="module")
def tagger(model, images):
    return Tagger(str(model), None, str(images), allow_urls=False, batch_size=4)


GOOD = [
    {"text": TEXT},
    {"text": "New York Knicks' game #NBA @joe", "image": image_bytes("red")},
    {"tokens": ["New", "York"], "image": {"bytes": None, "path": "photo.png"}},
    {"text": "", "image": "photo"},
    {"text": "a person with a trophy", "image": image_bytes(), "boxes": [[0.1, 0.2, 0.5, 0.6]], "box_labels": ["dog"]},
    {"text": "the river Amazon " * 40},
    {"text": "lone \ud800 surrogate in Lincoln"},
]
# Posts of which nothing can be tagged.
BAD_TEXT = {
    "no text": ({"text": None}, "field text"),
    "number as text": ({"text": 7}, "field text"),
    "words of numbers": ({"tokens": [1, 2]}, "field text"),
    "no text, and a broken image": ({"text": None, "image": b"\xff\xd8\xff"}, "field text"),
    "no text, and a missing image": ({"text": None, "image": "nowhere.png"}, "field image: there is no file .*; field text"),
}
# Posts whose text can be tagged, and the error beside.
BAD_IMAGE = {
    "broken bytes": ({"image": b"\xff\xd8\xff"}, "field image"),
    "cut bytes": ({"image": image_bytes()[:45]}, "field image"),
    "no bytes": ({"image": b""}, "field image"),
    "page as image": ({"image": b"<html>"}, "field image"),
    "broken file": ({"image": "broken.jpg"}, "field image"),
    "broken file of its id": ({"id": "broken"}, "field image"),
    "number as image": ({"image": 5}, "field image: expected bytes or the name of a file, got int"),
    "list in a list as image": ({"image": [["photo.png"]]}, "field image: expected bytes or the name of a file, got list"),
    "way to a file in two steps": ({"image": {"bytes": {"path": str(ROOT / "README.md")}}}, "field image: expected bytes"),
    "no image in the object": ({"image": {"url": "x"}}, "field image: expected an object with bytes or path, got the fields url"),
    "missing file": ({"image": "nowhere.png"}, "field image: there is no file 'nowhere.png'"),
    "missing file of a data set": ({"image": {"bytes": None, "path": "nowhere.png"}}, "field image: there is no file"),
    "outside": ({"image": "../secret.png"}, "secret"),
    "absolute": ({"image": "/etc/hostname"}, "hostname"),
    "link": ({"image": "link.png"}, "link"),
    "saved data set's path": ({"image": {"bytes": None, "path": "/etc/hostname"}}, "hostname"),
    "id as path": ({"id": "../secret"}, "secret"),
    "NUL": ({"image": "a\0b"}, "image"),
    "long name": ({"image": "x" * 5000}, "xxx"),
    "URL": ({"image": "http://127.0.0.1/x.png"}, "a URL, which is fetched only with --allow_urls"),
    "URL in capitals": ({"image": "HTTPS://127.0.0.1/x.png"}, "a URL, which is fetched only with --allow_urls"),
    "other address": ({"image": "file:///etc/hostname"}, "there is no file"),
    "three sides": ({"image": image_bytes(), "boxes": [[0.0, 0.0, 1.0]]}, "field boxes, box 0"),
    "no number": ({"image": image_bytes(), "boxes": [[0.0, 0.0, float("nan"), 1.0]]}, "field boxes, box 0"),
    "pixels": ({"image": image_bytes(), "boxes": [[0.0, 0.0, 40.0, 30.0]]}, "field boxes, box 0"),
    "labels without boxes": ({"image": image_bytes(), "box_labels": ["dog"]}, "field boxes"),
    "wrong box and no image": ({"boxes": [[0.0, 0.0, 1.0]]}, "field boxes, box 0"),
    "boxes in words": ({"image": "photo.png", "boxes": "all"}, "field boxes"),
    "labels of numbers": ({"image": "photo.png", "boxes": [[0, 0, 1, 1]], "box_labels": [1]}, "field box_labels"),
}


def is_from_arrow(row: dict) -> bool:
    return isinstance(row.get("image"), bytes)


def tag(tagger: Tagger, rows: list[dict]) -> list[dict]:
    """Results of rows in one table a form: rows with bytes come as from parquet, others as from JSONL."""
    rows = [{"id": f"post {place}"} | row for place, row in enumerate(rows)]
    results = {}
    if arrow := [row | {"image": {"bytes": row["image"], "path": None}} for row in rows if is_from_arrow(row)]:
        results |= {row["id"]: row for row in tagger(pa.Table.from_pylist(arrow, schema=POST_COLUMNS)).to_pylist()}
    if lines := [{"id": row["id"], "json": json.dumps(row).encode()} for row in rows if not is_from_arrow(row)]:
        results |= {row["id"]: row for row in tagger(pa.Table.from_pylist(lines, schema=JSON_LINES)).to_pylist()}
    return [results[row["id"]] for row in rows]


def test_rows_are_the_results_of_the_pipeline(tagger, ner, images):
    found = tag(tagger, GOOD)
    assert [row["id"] for row in found] == [f"post {place}" for place in range(len(GOOD))]
    posts = [
        {"text": row.get("tokens", row.get("text"))} | {name: row[name] for name in ("boxes", "box_labels") if name in row}
        for row in GOOD
    ]
    opened = [None, image_bytes("red"), *[str(images / "photo.png")] * 2, image_bytes(), None, None]
    for row, post, image in zip(found, posts, opened, strict=True):
        (expected,) = ner([post | {"image": image}], return_relevance=True)
        assert row["error"] is None and (row["relevance"] is None) == (image is None)
        if image is not None:
            assert row["relevance"] == pytest.approx(expected["relevance"], abs=1e-5)
        assert len(row["entities"]) == len(expected["entities"])
        for entity, other in zip(row["entities"], expected["entities"], strict=True):
            assert {name: entity[name] for name in ("entity_group", "start", "end")} == {
                name: other[name] for name in ("entity_group", "start", "end")
            }
            assert entity["word"] == other["word"].replace("\ud800", "\ufffd")
            assert entity["score"] == pytest.approx(other["score"], abs=1e-4)
            assert (entity["region"] is None) == (other["region"] is None)
    assert sum(len(row["entities"]) for row in found) > 5, "a model that finds nothing would show nothing"


def test_an_image_of_many_posts_is_encoded_once(tagger, monkeypatch):
    """Though its posts are tagged in several calls of the model, and stand in several tables."""
    encoded = []
    forward = tagger.ner.model.get_image_features
    monkeypatch.setattr(tagger.ner.model, "get_image_features", lambda pixels: encoded.append(len(pixels)) or forward(pixels))
    posts = [{"text": f"{TEXT} {word}", "image": image_bytes("teal")} for word in ("again", "today", "here") * 3]
    first, second = tag(tagger, posts), tag(tagger, posts)
    assert encoded == [1]
    assert first == second and first[0]["relevance"] is not None


def test_every_field_of_an_entity_is_written(tagger, ner):
    """A new field of the pipeline has to come into the schema, where Arrow would leave it out without a word."""
    (row,) = tag(tagger, [{"text": TEXT, "image": image_bytes()}])
    (expected,) = ner([{"text": TEXT, "image": image_bytes()}], return_relevance=True)
    for entity, other in zip(row["entities"], expected["entities"], strict=True):
        # A post's relevance is the same for all its entities: it stands once, beside them.
        assert set(entity) >= set(other) - {"relevance"}
        assert other["region"] is None or set(entity["region"]) >= set(other["region"])


NO_IMAGE = ["", " ", float("nan"), [], [""], [None, float("nan")], {"path": ""}]


@pytest.mark.parametrize("image", [*NO_IMAGE, ["photo.png"], ("", "photo.png"), [{"path": "photo.png"}], "photo.png"])
@pytest.mark.parametrize("name", ["photo", "other"])
def test_a_post_has_the_image_that_it_has_in_training(tagger, name, image):
    """Where it names none, that of its id."""
    row = {"id": name, "text": TEXT, "image": image}
    file = tagger.images.find(post_of_row(row, "", "", Notes()))
    assert (file is None) == (name == "other" and image in NO_IMAGE)
    found, expected = tag(tagger, [row, {"id": "same", "text": TEXT} | ({"image": "photo.png"} if file else {})])
    assert found["error"] is None and (found["relevance"] is None) == (file is None)
    assert found["entities"] == expected["entities"] and found["relevance"] == expected["relevance"]


def test_an_empty_name_in_a_column_is_no_image(tagger):
    for image in ({"bytes": None, "path": ""}, None):
        rows = [{"id": name, "text": TEXT, "image": image} for name in ("photo", "other")]
        found = tagger(pa.Table.from_pylist(rows, schema=POST_COLUMNS)).to_pylist()
        assert [(row["error"], row["relevance"] is None) for row in found] == [(None, False), (None, True)]


def test_of_several_images_the_first_is_used_and_a_line_says_so(tagger, caplog):
    several = ["photo.png", "broken.jpg"]
    found = tag(tagger, [{"text": TEXT, "image": image} for image in (several, several, "photo.png")])
    assert [row["error"] for row in found] == [None] * 3 and found[0]["relevance"] == found[2]["relevance"] is not None
    (said,) = caplog.messages
    assert said.endswith("2 times a post has several images, of which the first is used: post post 0; post post 1")


@pytest.mark.parametrize("kind", BAD_IMAGE)
def test_a_post_with_a_bad_image_or_box_keeps_the_entities_of_its_text(tagger, kind):
    row, message = BAD_IMAGE[kind]
    other = {"text": "the river Amazon", "image": image_bytes()} if is_from_arrow(row) else {"text": "the river Amazon"}
    before, found, after, text_alone = tag(tagger, [other, {"text": TEXT} | row, other, {"text": TEXT}])
    with pytest.raises(ValueError, match=message):
        raise ValueError(found["error"])
    assert found["relevance"] is None, "no image was used"
    assert text_alone["error"] is None and len(text_alone["entities"]) > 0
    assert [entity["word"] for entity in found["entities"]] == [entity["word"] for entity in text_alone["entities"]]
    for entity, expected in zip(found["entities"], text_alone["entities"], strict=True):
        assert entity["region"] is None and entity["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert before["error"] is after["error"] is None
    # The two are not in one batch: the last bit of a score may differ.
    scores = [[entity.pop("score") for entity in row["entities"]] for row in (before, after)]
    assert before["entities"] == after["entities"] and scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("kind", BAD_TEXT)
def test_a_post_whose_text_cannot_be_tagged_has_only_an_error(tagger, kind):
    row, message = BAD_TEXT[kind]
    before, found, after = tag(tagger, [GOOD[0], row, GOOD[0]])
    assert found["entities"] is None and found["relevance"] is None
    with pytest.raises(ValueError, match=message):
        raise ValueError(found["error"])
    assert before["error"] is None and before["entities"] == after["entities"]


def test_many_bad_posts_in_one_batch(tagger):
    bad = [{"text": TEXT} | row for row, _ in BAD_IMAGE.values()] + [row for row, _ in BAD_TEXT.values()]
    good = [GOOD[1] if is_from_arrow(row) else GOOD[0] for row in bad]
    found = tag(tagger, [row for pair in zip(bad, good, strict=True) for row in pair])
    assert [row["error"] is None for row in found] == [False, True] * len(bad)
    assert [row["entities"] is None for row in found[::2]] == [False] * len(BAD_IMAGE) + [True] * len(BAD_TEXT)


def test_nothing_is_opened_without_an_image_folder(model):
    tagger = Tagger(str(model), None, None, allow_urls=False, batch_size=4)
    (found,) = tag(tagger, [{"text": TEXT, "image": str(ROOT / "README.md")}])
    assert "there is no folder of images: give --images" in found["error"] and found["entities"]
    (found,) = tag(tagger, [{"text": "a"}])
    assert found["error"] is None


def test_weights_are_safetensors(model, tmp_path):
    for file in model.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no file named model.safetensors"):
        Tagger(str(tmp_path), None, None, allow_urls=False, batch_size=4)


def test_urls_are_fetched_only_when_allowed(tagger, monkeypatch):
    monkeypatch.setattr(tagger, "allow_urls", True)
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(tagger_module, "fetch", lambda url: asked.append(url) or image_bytes())
        (found,) = tag(tagger, [{"text": "a", "image": "https://example.org/a.png"}])
    assert found["error"] is None and found["relevance"] is not None and asked == ["https://example.org/a.png"]
    (found,) = tag(tagger, [{"text": TEXT, "image": "http://127.0.0.1:1/a.png"}])
    assert "not a public address" in found["error"] and found["entities"], "it cannot be fetched; the text stays"


def test_regions_beside_the_data_are_used(model, images, tmp_path):
    (tmp_path / "regions.jsonl").write_text(
        "".join(
            json.dumps({"id": name, "boxes": [[0, 0, 0.5, 0.5]], "box_labels": ["cat"], "box_scores": [1.0]}) + "\n"
            for name in ("photo", "own", "none")
        )
    )
    tagger = Tagger(str(model), None, str(images), False, 4, [str(tmp_path / "regions.jsonl")])
    tagger.ner.model.classifier.bias.data[tagger.ner.model.config.label2id["B-PER"]] = 50.0  # every word is an entity
    boxes = {"boxes": [[0.5, 0.5, 1, 1]], "box_labels": ["dog"]}
    rows = [{"id": "photo"}, {"id": "own", "image": "photo.png"} | boxes, {"id": "none"}]
    photo, own, none = tag(tagger, [{"text": TEXT} | row for row in rows])
    assert {entity["region"]["label"] for entity in photo["entities"] if entity["region"]} == {"cat"}
    assert {entity["region"]["label"] for entity in own["entities"] if entity["region"]} == {"dog"}
    assert none["error"] is None and all(entity["region"] is None for entity in none["entities"])


LINES = {
    b'{"id": "a", "text": "Jordan"}': ("a", None),
    b'{"id": 7, "text": "Jordan", "image": null, "labels": 5}': ("7", None),
    b'{"text": "no id"}': ("posts.jsonl, line 3", None),
    b'{"id": "cut", "te': ("posts.jsonl, line 4", "expected a line of JSON"),
    b"[1, 2]": ("posts.jsonl, line 5", "expected an object, got list"),
    b"\xff\xfe{}": ("posts.jsonl, line 6", "expected a line of JSON"),
    b'{"id": {}, "text": "a"}': ("posts.jsonl, line 7", "field id: expected a string or an integer, got {}"),
    b'{"id": ["a"], "text": "a"}': ("posts.jsonl, line 8", "field id: expected a string or an integer, got ['a']"),
    b'{"id": true, "text": "a"}': ("posts.jsonl, line 9", "field id"),
    b'{"id": "\\ud800", "text": "\\ud800 \\u0000"}': ("\ufffd", None),
    b'{"id": "deep", "text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": ("posts.jsonl, line 11", "expected a line of JSON"),
    b'{"id": "wrong", "tokens": {"a": 1}}': ("wrong", "field text"),
    b'{"id": "boxes", "text": "a", "image": "photo.png", "boxes": "all"}': ("boxes", "field boxes"),
}


def test_every_line_of_a_jsonl_file_becomes_a_row(tagger, tmp_path):
    (tmp_path / "posts.jsonl").write_bytes(b"\n".join(LINES) + b"\n\n")
    (part,) = open_data(str(tmp_path / "posts.jsonl"), None).parts
    (table,) = part()
    found = tagger(table).to_pylist()
    for row, (name, error) in zip(found, LINES.values(), strict=True):
        assert row["id"] == name
        assert (row["error"] is None) == (error is None) and (error or "") in (row["error"] or ""), row


def test_the_heap_is_trimmed_on_linux_only(monkeypatch):
    """`CDLL(None)` raises on Windows."""
    opened = []
    monkeypatch.setattr(ctypes, "CDLL", opened.append)
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        tagger_module._release_memory()
    assert not opened
    monkeypatch.setattr(sys, "platform", "linux")
    tagger_module._release_memory()
    assert opened == [None]


def test_lines_in_the_forms_of_label_files(model, tmp_path):
    """Other names, tasks of Label Studio, and images named relative to the data."""
    for folder in ("images", "more"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.png").write_bytes(image_bytes())
    lines = [
        {"caption": TEXT, "img": "images/images.png", "label": [[0, 6, "PER"]]},
        {"text": TEXT, "image_path": "more/more.PNG", "tokens": [{"text": "Jordan", "start": 0}]},
        {"id": 7, "data": {"text": TEXT, "image": "/data/upload/2/0123abcd-images.png"}, "annotations": []},
        {"words": TEXT.split(), "image": "../images/images.png"},
    ]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    posts = open_data(str(tmp_path / "posts.jsonl"), column_names={"caption": "text"})
    names = posts.column_names
    tagger = Tagger(str(model), None, str(posts.images), False, 4, data_dir=str(posts.folder), column_names=names)
    rows = [row for part in posts.parts for table in part() for row in tagger(table).to_pylist()]
    assert [row["relevance"] is not None for row in rows] == [True, True, True, False]
    assert [row["error"] and row["error"][:60] for row in rows[:3]] == [None] * 3 and "leads out" in rows[3]["error"]
    assert [row["entities"] for row in rows[1:3]] == [row["entities"] for row in rows[:2]], "the same text and image"


def test_error_names_a_batch_size_of_zero():
    with pytest.raises(ValueError, match="--batch_size: expected at least 1 post in a call of the model, got 0"):
        Tagger("nowhere", None, None, allow_urls=False, batch_size=0)
