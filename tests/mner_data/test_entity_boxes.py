"""Boxes of entities: read from JSONL and from Pascal VOC XML, checked, and kept by every way a data set goes."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, load_from_disk
from PIL import Image

from hub_scripts.prepare_dataset import main as prepare_dataset
from mner_data.entity_boxes import check_entity_boxes
from mner_data.loading import load_splits
from mner_data.readers import DataError

POSTS = """IMGID:p1
Jordan\tB-PER
in\tO
New\tB-LOC
York\tI-LOC

IMGID:p2
Paris\tI-LOC

IMGID:p3
hello\tO
"""
BOX = [0.25, 0.5, 0.75, 1.0]
ENTITIES = [
    {"start": 0, "end": 1, "type": "PER", "boxes": [BOX, [0, 0, 0.5, 0.5]]},
    {"start": 2, "end": 4, "type": "LOC", "boxes": []},
]


def folder(path, lines=None):
    path.mkdir(exist_ok=True)
    (path / "train.txt").write_text(POSTS)
    (path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (40, 20)).save(path / "images" / "p1.jpg")
    if lines is not None:
        (path / "entity_boxes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def boxes_of(path):
    rows = load_splits(str(path))[0]["train"]
    return dict(zip(rows["id"], rows["entity_boxes"], strict=True))


def test_jsonl_beside_the_labels_is_read_and_not_taken_for_posts(tmp_path, caplog):
    lines = [
        {"id": "p1", "entities": ENTITIES},
        {"id": "p2", "entities": [{"start": 0, "end": 1, "type": "LOC", "boxes": None}]},
        {"id": "gone", "entities": []},
    ]
    assert boxes_of(folder(tmp_path / "a", lines)) == {"p1": [[BOX, [0, 0, 0.5, 0.5]], []], "p2": [None], "p3": None}
    assert "the boxes of 1 ids are not used, no post has them: gone" in caplog.text
    assert "NOT read" not in caplog.text


def test_without_boxes_a_row_is_as_before(tmp_path):
    assert load_splits(str(folder(tmp_path / "a")))[0]["train"].column_names == ["id", "tokens", "ner_tags", "image"]


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        (ENTITIES[:1], "the label file have the LOC of words 2 to 4, which the boxes lack"),
        ([*ENTITIES, {"start": 3, "end": 4, "type": "LOC", "boxes": []}], "the boxes have the LOC of words 3 to 4"),
        ([ENTITIES[0] | {"type": "ORG"}, ENTITIES[1]], "the boxes have the ORG of words 0 to 1"),
        ([ENTITIES[0] | {"boxes": [[0, 0, 40, 20]]}, ENTITIES[1]], "entity 0, field boxes, box 0: expected fractions"),
        ([ENTITIES[0] | {"boxes": [[0, 0, 1, float("nan")]]}, ENTITIES[1]], "entity 0, field boxes, box 0: expected finite"),
        ([{"start": 0}], "expected id, and entities with start, end, type and boxes"),
    ],
)
def test_what_does_not_fit_the_labels_is_named(tmp_path, entities, message):
    with pytest.raises(DataError, match="entity_boxes.jsonl, line 1") as error:
        load_splits(str(folder(tmp_path / "a", [{"id": "p1", "entities": entities}])))
    assert message in str(error.value)


def test_map_disk_parquet_and_prepare_dataset_keep_them(tmp_path):
    source = folder(tmp_path / "a", [{"id": "p1", "entities": ENTITIES}])
    rows = load_splits(str(source))[0]["train"]
    expected = boxes_of(source)
    mapped = rows.map(lambda row: {"count": len(row["entity_boxes"] or [])})
    assert mapped["entity_boxes"][:] == rows["entity_boxes"][:] and mapped["count"][:] == [2, 0, 0]
    rows.save_to_disk(tmp_path / "disk")
    assert load_from_disk(tmp_path / "disk")["entity_boxes"][:] == rows["entity_boxes"][:]
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    assert Dataset.from_parquet(str(tmp_path / "rows.parquet"))["entity_boxes"][:] == rows["entity_boxes"][:]
    prepare_dataset(["--text", str(source), "--output", str(tmp_path / "prepared")])
    assert boxes_of(tmp_path / "prepared") == expected


def test_boxes_of_a_data_set_have_to_fit_its_labels(tmp_path):
    rows = load_splits(str(folder(tmp_path / "a", [{"id": "p1", "entities": ENTITIES}])))[0]["train"]
    rows.map(lambda row: {"entity_boxes": row["entity_boxes"] and row["entity_boxes"][:1]}).save_to_disk(tmp_path / "disk")
    with pytest.raises(DataError, match="post p1, field entity_boxes: expected one item for each of the 2 entities, got 1 items"):
        load_splits(str(tmp_path / "disk"))


def test_a_box_that_reaches_out_of_the_image_is_cut():
    assert check_entity_boxes([[[-0.1, 0, 0.5, 1.2]], None], 2, "post a") == [[[0, 0, 0.5, 1]], None]


# Twitter-GMNER: XML in Pascal VOC form


def xml(*objects, size="<size><width>40</width><height>20</height></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def thing(name, *boxes):
    sides = ("xmin", "ymin", "xmax", "ymax")
    inner = ("".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True)) for box in boxes)
    return f"<object><name>{name}</name>{''.join(f'<bndbox>{box}</bndbox>' for box in inner)}</object>"


def gmner(path, **files):
    """The published layout: the text files in one folder, the XML files in another beside it."""
    path.mkdir()
    text = folder(path / "txt")
    (path / "xml").mkdir()
    for name, content in files.items():
        (path / "xml" / f"{name}.xml").write_text(content)
    return text


def test_twitter_gmner_is_read(tmp_path, caplog):
    first = xml(
        thing("Jordan", (10, 10, 30, 20)), thing("Jordan", (0, 0, 20, 10)), thing("new york"), thing("Chicago", (0, 0, 9, 9))
    )
    second = xml(thing("Paris", (-4, 0, 20, 30)))
    text = gmner(tmp_path / "set", p1=first, p2=second)
    assert boxes_of(text) == {"p1": [[BOX, [0, 0, 0.5, 0.5]], []], "p2": [[[0, 0, 0.5, 1]]], "p3": []}
    assert "1 names of objects are no entity of their post, and are not used: p1.xml (chicago)" in caplog.text
    assert "1 files have boxes that reach out of the image, which are cut: p2.xml" in caplog.text
    assert "1 posts have no file: their entities count as not shown: p3" in caplog.text


MALFORMED = [
    "", "<annotation>", "no xml", xml(size=""), xml(size="<size><width>0</width><height>9</height></size>"), xml(thing("")),
    xml(thing("Paris", ("a", 0, 9, 9))), xml(thing("Paris", (9, 0, 3, 9))), xml(thing("Paris", (50, 0, 60, 9))),
    xml("<object><name>Paris</name><bndbox><xmin>1</xmin></bndbox></object>"),
]  # fmt: skip


def test_every_malformed_file_is_named(tmp_path):
    text = gmner(tmp_path / "set", **{f"q{place}": content for place, content in enumerate(MALFORMED)})
    (text / "train.txt").write_text("".join(f"IMGID:q{place}\nParis\tB-LOC\n\n" for place in range(len(MALFORMED))))
    with pytest.raises(DataError, match="10 files cannot be read") as error:
        load_splits(str(text))
    assert all(f"q{place}.xml (" in str(error.value) for place in range(len(MALFORMED)))


def test_a_folder_of_other_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected files named after the posts, such as p1.xml, got none of them"):
        load_splits(str(gmner(tmp_path / "set", other=xml())))


def test_an_id_and_an_entity_stand_once_in_the_file(tmp_path):
    """The last one won."""
    line = {"id": "p1", "entities": ENTITIES}
    with pytest.raises(DataError, match="jsonl, line 2, field id: .*'p1' again, after .*jsonl, line 1"):
        load_splits(str(folder(tmp_path / "a", [line, line])))
    line["entities"] = [*ENTITIES, ENTITIES[0] | {"boxes": []}]
    with pytest.raises(DataError, match="jsonl, line 1, post p1, field entities: expected every entity once"):
        load_splits(str(folder(tmp_path / "b", [line])))


@pytest.mark.parametrize("form", ["jsonl", "xml"])
def test_posts_with_one_id_and_other_words_are_refused(form, tmp_path):
    """Each got the boxes of the other."""
    source = folder(tmp_path / "a", [{"id": "p1", "entities": ENTITIES}] if form == "jsonl" else None)
    if form == "xml":
        (source / "xml").mkdir()
        (source / "xml" / "p1.xml").write_text("<annotation><size><width>9</width><height>9</height></size></annotation>")
    (source / "valid.txt").write_text(POSTS)
    assert len(load_splits(str(source))[0]) == 2, "the same post may be in two splits"
    (source / "valid.txt").write_text("IMGID:p1\nParis\tB-LOC\n")
    with pytest.raises(DataError, match="post p1: expected one post of this id, got .*'Jordan in New York' and 'Paris'"):
        load_splits(str(source))
