from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_from_disk
from datasets import Image as DatasetImage
from PIL import Image

from hub_scripts import prepare_dataset
from mner_data.loading import dataset_labels, load_splits
from mner_data.readers import DataError, read_conll, read_regions
from training.metric import MnerMetric

REAL = os.environ.get("HAMLEARNING_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="HAMLEARNING_DATA names no folder with the real posts")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = "IMGID:a\nJordan\tB-PER\nwins\tO\n\nIMGID:b\nIn\tO\nNew\tB-LOC\nYork\tI-LOC\n"


@pytest.mark.parametrize(
    "content",
    [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("\t", " "), GOOD + "\n\n", GOOD.rstrip("\n")],
)
def test_forms_of_a_file(content, tmp_path):
    assert read_conll(write(tmp_path / "a.txt", content)) == [
        {"id": "a", "tokens": ["Jordan", "wins"], "labels": ["B-PER", "O"]},
        {"id": "b", "tokens": ["In", "New", "York"], "labels": ["O", "B-LOC", "I-LOC"]},
    ]


def test_words_may_hold_any_unicode(tmp_path):
    words = ["\u2028", "\x85", "\ufe0f", "\u200d", "x y", "\x0c", "👨‍👩‍👧", "\x00"]
    content = "IMGID:a\n" + "".join(f"{word}\tO\n" for word in words)
    assert read_conll(write(tmp_path / "a.txt", content))[0]["tokens"] == words


WRONG = {
    "no label": ("IMGID:a\nJordan\n", "line 2.*no label"),
    "unknown label": ("IMGID:a\nJordan\tPERSON\n", "line 2, label: expected O, B-TYPE and I-TYPE .*, got 'PERSON'"),
    "prefix alone": ("IMGID:a\nJordan\tB-\n", "line 2, label: expected O, .*, got 'B-'"),
    "tab in a word": ("IMGID:a\nJor\tdan\tB-PER\nwins\tO\n", "line 2.*3 fields"),
    "three fields": ("IMGID:a\nJordan\tNNP\tB-PER\nwins\tO\n", "line 2.*3 fields"),
    "three fields and blanks": ("IMGID:a\nwins O\nJordan NNP B-PER\n", "line 3.*3 fields"),
    "a word without a label": ("IMGID:a\nJordan\tB-PER\nwins\n", "line 3.*no label"),
    "label first": ("IMGID:a\nB-PER\tJordan\n", "line 2, label: expected O, .*, got 'Jordan'"),
    "no IMGID": ("IMGID:a\nJordan\tB-PER\n\nwins\tO\n", "line 4.*belongs to no post"),
    "no name": ("IMGID:\nJordan\tO\n", "line 1.*without a name"),
    "empty": ("", "expected posts"),
    "latin-1": ("IMGID:a\ncafé\tO\n".encode("latin-1"), "line 2: is not UTF-8"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_error_names_the_file_and_line(kind, tmp_path):
    content, message = WRONG[kind]
    with pytest.raises(DataError, match=message) as error:
        read_conll(write(tmp_path / "bad.txt", content))
    assert "bad.txt" in str(error.value)


def test_images_beside_the_posts(tmp_path, caplog):
    write(tmp_path / "train.txt", GOOD + "\nIMGID:c\nx\tO\n\nIMGID:d\nx\tB-ORG\n")
    write(tmp_path / "valid.txt", GOOD)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "b.jpg", "PNG")  # a PNG file named .jpg
    write(tmp_path / "images" / "c.jpg", "<html>")
    regions = {"id": "a", "boxes": [[0, 0, 1, 1]], "box_labels": ["dog"], "box_scores": [0.5]}
    write(tmp_path / "regions.jsonl", json.dumps(regions) + "\n")
    data, hashes = load_splits(str(tmp_path))
    assert [row["image"] is not None for row in data["train"]] == [True, True, False, False]
    assert dataset_labels(data["train"]) == ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    assert dataset_labels(data["validation"]) == dataset_labels(data["train"])
    assert data["train"][0]["boxes"] == [[0, 0, 1, 1]] and data["train"][1]["boxes"] is None
    assert hashes["validation"] == hashlib.sha256(GOOD.encode()).hexdigest()
    assert "2 of 4 posts" in caplog.text and "c (is not an image" in caplog.text and "d (no file)" in caplog.text

    data.save_to_disk(tmp_path / "saved")
    again, _ = load_splits(str(tmp_path / "saved"))
    for split in data:
        assert list(again[split].remove_columns("image")) == list(data[split].remove_columns("image"))
        assert [row["image"] is None for row in again[split]] == [row["image"] is None for row in data[split]]
    assert load_from_disk(str(tmp_path / "saved"))["train"].column_names == again["train"].column_names


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_name_cannot_leave_the_image_folder(name, tmp_path):
    write(tmp_path / "train.txt", f"IMGID:{name}\nx\tO\n")
    write(tmp_path / "secret.jpg", "x")
    (tmp_path / "images" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="leads out of the image folder"):
        load_splits(str(tmp_path))


def test_a_link_cannot_leave_the_image_folder(tmp_path):
    write(tmp_path / "data" / "train.txt", "IMGID:a\nx\tO\n")
    (tmp_path / "data" / "images").mkdir()
    (tmp_path / "data" / "images" / "a.jpg").symlink_to(write(tmp_path / "secret.jpg", "x"))
    with pytest.raises(DataError, match="leads out"):
        load_splits(str(tmp_path / "data"))


def rows_with(images: list, feature) -> Dataset:
    rows = {"id": [f"p{place}" for place in range(len(images))], "tokens": [["x"]] * len(images)}
    features = {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O"]))}
    return Dataset.from_dict(
        rows | {"ner_tags": [[0]] * len(images), "image": images}, features=Features(features | {"image": feature})
    )


WRONG_ROWS = {
    "no tokens": (None, [0], "tokens: expected a list of strings, got None"),
    "a missing word": (["x", None], [0, 0], r"tokens: expected a list of strings, got \['x', None\]"),
    "no labels": (["x"], None, "ner_tags: expected one label per word, got 0 labels for 1 words"),
    "a label too few": (["x", "y"], [0], "ner_tags: expected one label per word, got 1 labels for 2 words"),
    "a label too many": (["x"], [0, 0], "ner_tags: expected one label per word, got 2 labels for 1 words"),
    "a missing label": (["x"], [None], r"ner_tags: expected one of the 3 labels for every word, got \[None\]"),
    "a label of none": (["x"], [-1], r"ner_tags: expected one of the 3 labels for every word, got \[-1\]"),
}


@pytest.mark.parametrize("kind", WRONG_ROWS)
def test_error_names_the_post_of_a_saved_data_set(kind, tmp_path):
    tokens, tags, message = WRONG_ROWS[kind]
    features = {
        "id": Value("string"),
        "tokens": List(Value("string")),
        "ner_tags": List(ClassLabel(names=["O", "B-A", "I-A"])),
    }
    rows = {"id": ["fine", "wrong"], "tokens": [["x"], tokens], "ner_tags": [[1], tags]}
    Dataset.from_dict(rows, features=Features(features)).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=f"saved, post wrong, field {message}"):
        load_splits(str(tmp_path / "saved"))


@pytest.mark.parametrize("feature", ["image", "text"])
@pytest.mark.parametrize("path", ["{}/secret.png", "../secret.png", "secret.png", "{}/data/../secret.png", "{}/data/link.png",
                                  "https://example.org/a.png", "file://{}/secret.png", "/a\x00b", "/" + "a" * 5000])  # fmt: skip
def test_a_row_cannot_name_a_file_outside_its_data_set(path, feature, tmp_path, monkeypatch):
    secret = write(tmp_path / "secret.png", b"")
    Image.new("RGB", (9, 9)).save(secret)
    path, held = path.format(tmp_path), {"bytes": secret.read_bytes(), "path": "held.png"}
    images = [None, held, {"bytes": None, "path": path}] if feature == "image" else [None, None, path]
    rows = rows_with(images, DatasetImage(decode=False) if feature == "image" else Value("string"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(secret)
    pq.write_table(rows.data.table, tmp_path / "data" / "train.parquet")
    monkeypatch.chdir(tmp_path / "data")
    for name in (tmp_path / "data", tmp_path / "data" / "train.parquet"):
        with pytest.raises(DataError, match=r"post p2, field image: '.* is no file of this data set"):
            load_splits(str(name))
    if feature == "text":  # saving an image would store its file
        rows.save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match="post p2, field image"):
            load_splits(str(tmp_path / "saved"))


def test_the_files_of_an_image_folder_are_its_own(tmp_path):
    path = tmp_path / "folder" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (9, 9)).save(path)
    rows = rows_with([{"bytes": None, "path": str(path)}], DatasetImage(decode=False))
    rows.to_parquet(path.parent / "train.parquet")
    assert load_splits(str(path.parent))[0]["train"][0]["image"]["path"] == str(path)


def test_error_names_a_folder_without_data(tmp_path):
    with pytest.raises(DataError, match=r"expected train\.txt, valid\.txt \(or dev\.txt\) or test\.txt.*, got none of them"):
        load_splits(str(tmp_path))
    with pytest.raises(DataError, match="no folder"):
        load_splits(str(write(tmp_path / "train.txt", GOOD)), image_dir=str(tmp_path / "nowhere"))


def test_both_conventions_of_the_metric():
    references = [["O", "I-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    predictions = [["O", "B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    result = MnerMetric().compute(predictions=predictions, references=references, label_sha256="abc")
    # Default seqeval counts the orphan I-PER I-PER as an entity, strict IOB2 does not.
    assert (result["gold_total"], result["gold_total_strict"]) == (3, 2)
    assert result["f1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert result["f1_strict"] == pytest.approx(2 * (1 / 2) * (1 / 2) / (1 / 2 + 1 / 2))
    assert result["per_type"]["PER"]["f1"] == 1 and result["per_type_strict"].get("PER", {"f1": 0})["f1"] == 0
    assert result["per_type"]["ORG"]["gold_total"] == 1 and result["label_sha256"] == "abc"


COUNTS = {
    ("twitter2015", "train"): (4000, 64439, 6352),
    ("twitter2015", "validation"): (1000, 16178, 1594),
    ("twitter2017", "train"): (3373, 53007, 6049),
    ("twitter2017", "validation"): (723, 11309, 1324),
    ("paintings", "train"): (950, 266192, 26080),
    ("paintings", "validation"): (119, 32304, 3204),
}


@needs_data
@pytest.mark.parametrize("name, split", COUNTS)
def test_real_files_have_their_known_counts(name, split):
    posts = read_conll(Path(REAL, name, {"train": "train.txt", "validation": "valid.txt"}[split]))
    labels = [post["labels"] for post in posts]
    gold = MnerMetric().compute(predictions=labels, references=labels)["gold_total"]
    assert (len(posts), sum(map(len, labels)), gold) == COUNTS[name, split]


def test_splits_with_labels_in_another_order_are_refused(tmp_path):
    """They were scored by train's names without an error."""
    splits = {}
    for split, names in (("train", ["O", "B-A", "I-A"]), ("validation", ["O", "I-A", "B-A"])):
        features = Features({"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
        splits[split] = Dataset.from_dict({"id": ["a"], "tokens": [["x"]], "ner_tags": [[1]]}, features=features)
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"expected the same ner_tags.* and \['O', 'I-A', 'B-A'\] in validation"):
        load_splits(str(tmp_path / "saved"))


def test_a_parquet_file_is_read_and_other_files_are_refused(tmp_path):
    """They were read as lines of words."""
    data, _ = load_splits(str(write(tmp_path / "train.txt", GOOD)))
    data["train"].to_parquet(tmp_path / "posts.parquet")
    again, hashes = load_splits(str(tmp_path / "posts.parquet"))
    assert list(again["train"]["tokens"]) == list(data["train"]["tokens"]) and "train" in hashes
    assert dataset_labels(again["train"]) == dataset_labels(data["train"])
    with pytest.raises(DataError, match=r"posts\.json: has no posts"):
        load_splits(str(write(tmp_path / "posts.json", "[]")))
    with pytest.raises(DataError, match=r"posts\.xlsx: expected a file of posts \(\.jsonl, .*, got \.xlsx"):
        load_splits(str(write(tmp_path / "posts.xlsx", "[]")))


def test_folders_of_one_name_and_a_folder_that_changed_are_told_apart(tmp_path):
    """The cache of `datasets` took each for the first."""
    found, hashes = [], []
    for folder, word in (("a", "first"), ("b", "second"), ("b", "third")):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        text = write(tmp_path / folder / "train.txt", f"IMGID:p\n{word}\tO\n")
        prepare_dataset.main(["--text", str(text), "--output", str(tmp_path / folder / "prepared")])
        data, of_split = load_splits(str(tmp_path / folder / "prepared"))
        found.append(data["train"][0]["tokens"])
        hashes.append(of_split["train"])
    assert found == [["first"], ["second"], ["third"]] and len(set(hashes)) == 3


NAMES = {"NUL": "a\x00b", "5,000 characters": "a" * 5000, "a link to itself": "loop"}


@pytest.mark.parametrize("kind", NAMES)
def test_error_names_an_id_that_no_file_can_have(kind, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "loop.jpg").symlink_to(tmp_path / "images" / "loop.jpg")
    write(tmp_path / "train.txt", f"IMGID:{NAMES[kind]}\nx\tO\n")
    with pytest.raises(DataError, match=r"image '.{4,90} cannot be the name of an image"):
        load_splits(str(tmp_path))


REGION = '"boxes": [[0, 0, 1, 1]], "box_labels": ["a\u2028b"], "box_scores": [0.5]'


def test_regions_of_every_form(tmp_path):
    """U+2028 within a line, blank lines, a BOM, ids as numbers, half characters: each broke or lost a post's regions."""
    lines = f'\ufeff{{"id": 7, {REGION}}}\r\n\n  \n{{"id": "b\\ud800", {REGION}}}\n'
    regions = read_regions(write(tmp_path / "regions.jsonl", lines))
    assert list(regions) == ["7", "b\ufffd"] and regions["7"]["box_labels"] == ["a\u2028b"]


WRONG_REGIONS = {
    "not json": ("{", "line 1: is not JSON"),
    "deep": ("[" * 100_000, "line 1: is not JSON"),
    "latin-1": (b'{"id": "\xe9"}', "line 1: is not UTF-8"),
    "a list": ("[]", "line 1: expected an object with id, boxes"),
    "no boxes": ('{"id": "a"}', "line 1: expected id, boxes"),
    "id of a list": ('{"id": [], "boxes": [], "box_labels": [], "box_scores": []}', "line 1: expected id"),
    "null": (
        '{"id": "a", "boxes": null, "box_labels": [], "box_scores": []}',
        "post a, field boxes: expected a list",
    ),
    "pixels": (
        '{"id": "a", "boxes": [[0, 0, 50, 9]], "box_labels": ["x"], "box_scores": [1]}',
        "post a, field boxes, box 0",
    ),
    "NaN": ('{"id": "a", "boxes": [[0, 0, NaN, 9]], "box_labels": ["x"], "box_scores": [1]}', "post a.*not finite"),
    "huge": (
        '{"id": "a", "boxes": [[0, 0, 1' + "0" * 400 + ', 1]], "box_labels": ["x"], "box_scores": [1]}',
        "post a",
    ),
}


@pytest.mark.parametrize("kind", WRONG_REGIONS)
def test_error_names_wrong_regions(kind, tmp_path):
    content, message = WRONG_REGIONS[kind]
    with pytest.raises(DataError, match=message):
        read_regions(write(tmp_path / "regions.jsonl", content))


WRONG_JSON = {
    "deep": ("[" * 100_000, "line 1: is not JSON"),
    "a string": ('"x"', "line 1: expected an object"),
    "tokens of numbers": ('{"id": "a", "tokens": [1], "labels": ["O"]}', "line 1, field tokens"),
    "no labels": ('{"id": "a", "tokens": ["x"]}', "line 1, field labels"),
    "unknown label": ('{"id": "a", "tokens": ["x"], "labels": ["PER"]}', "line 1, label: expected O, .*, got 'PER'"),
    "tab in a label": ('{"id": "a", "tokens": ["x"], "labels": ["B-P\\tX"]}', r"line 1, label: expected O, .*, got 'B-P\\tX'"),
    "line in a label": ('{"id": "a", "tokens": ["x"], "labels": ["B-P\\n"]}', r"line 1, label: expected O, .*, got 'B-P\\n'"),
    "a label too few": (
        '{"id": "a", "tokens": ["x", "y"], "labels": ["O"]}',
        "line 1: expected as many labels as tokens, got 2 tokens but 1 labels",
    ),
    "id of a list": ('{"id": [], "tokens": ["x"], "labels": ["O"]}', "line 1: expected an object"),
}


@pytest.mark.parametrize("kind", WRONG_JSON)
def test_error_names_wrong_json(kind, tmp_path):
    content, message = WRONG_JSON[kind]
    with pytest.raises(DataError, match=message):
        load_splits(str(write(tmp_path / "train.jsonl", content)))


def test_half_characters_of_json_become_a_data_set(tmp_path):
    row = '{"id": "a\\udc00", "tokens": ["x\\ud83d", "\\u0000"], "labels": ["O", "I-PER"]}'
    data, _ = load_splits(str(write(tmp_path / "train.jsonl", "\ufeff" + row + "\r\n\r\n")))
    assert data["train"][0]["id"] == "a\ufffd" and data["train"][0]["tokens"] == ["x\ufffd", "\x00"]


def region_line(post_id: str, label: str = "dog") -> str:
    return json.dumps({"id": post_id, "boxes": [[0, 0, 1, 1]], "box_labels": [label], "box_scores": [1]}) + "\n"


def test_an_id_stands_once_in_a_file_of_regions(tmp_path):
    path = write(tmp_path / "regions.jsonl", region_line("a") + "\n" + region_line("b") + region_line("a", "cat"))
    with pytest.raises(DataError, match=r"regions.jsonl, line 4, field id: .*'a' again, after .*regions.jsonl, line 1"):
        read_regions(path)


def test_posts_with_one_id_and_other_images_are_refused_where_it_has_regions(tmp_path):
    """The second got the boxes of the first one's image."""
    posts = [{"id": "a", "tokens": ["x"], "labels": ["O"], "image": f"{name}.png"} for name in "pq"]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, posts)))
    assert len(load_splits(str(tmp_path))[0]["train"]) == 2
    write(tmp_path / "regions.jsonl", region_line("a"))
    with pytest.raises(DataError, match=r"regions.jsonl, post a: expected one post of this id.*, got the images p.png and q.png"):
        load_splits(str(tmp_path))
    write(tmp_path / "train.jsonl", "\n".join(json.dumps(post | {"image": "p.png"}) for post in posts))
    assert all(load_splits(str(tmp_path))[0]["train"]["boxes"]), "the regions are those of the image"


def test_error_names_a_file_of_regions_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="regions_file: there is no file .*nowhere.jsonl"):
        load_splits(str(write(tmp_path / "train.txt", GOOD)), regions_file=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="nowhere.jsonl: expected a JSONL file of regions"):
        read_regions(tmp_path / "nowhere.jsonl")


NAN = float("nan")
WRONG_COLUMNS = {
    "NaN": ({"boxes": [[0.0, 0.0, NAN, 1.0]]}, "boxes, box 0: expected finite numbers"),
    "pixels": ({"boxes": [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 40.0, 30.0]]}, "boxes, box 1: .*looks like pixels"),
    "reversed": ({"boxes": [[0.5, 0.0, 0.1, 1.0]]}, "boxes, box 0: expected x1 ≤ x2"),
    "three numbers": ({"boxes": [[0.0, 0.0, 1.0]]}, "boxes, box 0: expected four numbers"),
    "a box of null": ({"boxes": [None, [0.0, 0.0, 1.0, 1.0]]}, "boxes, box 0: expected four numbers"),
    "a side of null": ({"boxes": [[0.0, None, 1.0, 1.0]]}, "boxes, box 0: expected four numbers"),
    "labels alone": ({"box_labels": ["dog"]}, "boxes: expected a list, got None"),
    "labels without boxes": ({"boxes": None, "box_labels": ["dog"]}, "boxes: expected a list, got None"),
    "a label too many": ({"boxes": [[0.0, 0.0, 1.0, 1.0]], "box_labels": ["dog", "cat"]}, "box_labels: expected one value a box"),
    "labels of numbers": ({"boxes": [[0.0, 0.0, 1.0, 1.0]], "box_labels": [1]}, "box_labels, box 0: expected a string, got 1"),
    "a score of NaN": ({"boxes": [[0.0, 0.0, 1.0, 1.0]], "box_scores": [NAN]}, "box_scores, box 0: expected a finite number"),
    "no lists": ({"boxes": 5}, "boxes: expected a list, got 5"),
    "a flat box": ({"boxes": [0.0, 0.0, 1.0, 1.0]}, "boxes, box 0: expected four numbers"),
}


@pytest.mark.parametrize("kind", WRONG_COLUMNS)
def test_wrong_regions_of_a_data_set_are_named_as_it_is_loaded(kind, tmp_path):
    """They ended a run in the middle of an epoch."""
    regions, message = WRONG_COLUMNS[kind]
    rows = {"id": ["fine", "wrong"], "tokens": [["x"]] * 2, "ner_tags": [["O"]] * 2}
    pq.write_table(pa.table(rows | {name: [None, value] for name, value in regions.items()}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"train.parquet, post wrong, field {message}"):
        load_splits(str(tmp_path / "train.parquet"))


GOOD_COLUMNS = [
    {"boxes": [[-0.1, 0.0, 1.1, 1.0]], "box_labels": [None], "box_scores": [0.5]},
    {"boxes": [], "box_labels": [], "box_scores": []},
    {"boxes": None, "box_labels": None, "box_scores": None},
    {"boxes": [[0, 0, 1, 1]]},
]


@pytest.mark.parametrize("regions", GOOD_COLUMNS)
def test_good_regions_of_a_data_set_are_loaded(regions, tmp_path):
    rows = {"id": ["a"], "tokens": [["x"]], "ner_tags": [["O"]]} | {name: [value] for name, value in regions.items()}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    row = load_splits(str(tmp_path / "train.parquet"))[0]["train"][0]
    assert row["boxes"] == (regions["boxes"] and [pytest.approx(box) for box in regions["boxes"]])


@pytest.mark.parametrize("image", [5, True, ["a.png"], {"url": "a.png"}])
def test_error_names_a_column_that_holds_no_images(image, tmp_path):
    rows = {"id": ["a"], "tokens": [["x"]], "ner_tags": [["O"]], "image": [image]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet, column image: expected images, bytes, .*, got "):
        load_splits(str(tmp_path / "train.parquet"))


@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"splits": ["train"]}'])
def test_error_names_a_broken_saved_data_set(file, content, tmp_path):
    write(tmp_path / "saved" / file, content)
    with pytest.raises(DataError, match="saved: expected a data set saved by `datasets`"):
        load_splits(str(tmp_path / "saved"))


@pytest.mark.parametrize("error", [FileNotFoundError("Couldn't find any data file"), ConnectionError("Couldn't reach it")])
def test_error_names_data_that_are_neither_here_nor_on_the_hub(error, tmp_path, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr("mner_data.loading.load_dataset", fail)
    for name in (str(tmp_path / "nowhere"), "nowhere"):
        message = f"there is no file or folder {name} here, and no such data set on the Hub: {error}"
        with pytest.raises(DataError, match=re.escape(message)) as raised:
            load_splits(name)
        assert raised.value.__cause__ is error


def test_labels_that_stay_as_they_are_need_no_warning(tmp_path, caplog):
    rows = {"id": ["a"], "tokens": [["x", "y", "z"]], "ner_tags": [["B-PER", "I-PER", "O"]]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    assert dataset_labels(load_splits(str(tmp_path / "train.parquet"))[0]["train"]) == ["O", "B-PER", "I-PER"]
    assert "converted to BIO" not in caplog.text


def test_error_names_the_post_whose_image_leads_out(tmp_path):
    rows = [{"id": name, "tokens": ["x"], "labels": ["O"], "image": image} for name, image in (("a", "a.png"), ("b", "../a.png"))]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="post b: image '../a.png' leads out of the image folder"):
        load_splits(str(tmp_path))
