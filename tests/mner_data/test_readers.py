"""Label files in the forms people have them: encodings, line ends, compression, names, label schemes."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from mner_data.loading import dataset_labels, load_splits, row_to_post
from mner_data.readers import DataError, find_split_files, read_conll, read_splits

CONLL = "IMGID:a\nJordan\tB-PER\nwins\tO\n\nIMGID:b\nIn\tO\nNew\tB-LOC\nYork\tI-LOC\nCafé\u2028\u0085\tO\n"
POSTS = [
    {"id": "a", "tokens": ["Jordan", "wins"], "labels": ["B-PER", "O"]},
    {"id": "b", "tokens": ["In", "New", "York", "Café\u2028\u0085"], "labels": ["O", "B-LOC", "I-LOC", "O"]},
]
JSONL = "".join(json.dumps(post, ensure_ascii=False) + "\n" for post in POSTS)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with mark", "utf-16-be with mark", "utf-32"]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_and_line_ends(encoding, line_end, is_packed, tmp_path):
    for text in (CONLL, JSONL):
        text = text.replace("\n", line_end)
        text = "\ufeff" + text if "with mark" in encoding else text
        content = text.encode(encoding.split(" ")[0])
        path = write(tmp_path / "a.txt", gzip.compress(content) if is_packed else content)
        assert read_splits(path) == ({"train": POSTS}, {"train": path})


def test_other_encodings_are_refused_with_the_right_advice(tmp_path):
    for encoding, advice in (("utf-16-le", "iconv -f utf-16le"), ("utf-16-be", "iconv -f utf-16be"),
                             ("latin-1", "is not UTF-8.*latin1")):  # fmt: skip
        text = "IMGID:a\nCafé\tO\n\nIMGID:b\nthe\tO\n"
        with pytest.raises(DataError, match=advice):
            read_conll(write(tmp_path / "a.txt", text.encode(encoding)))
    for line_end in (b"\n", b"\r\n", b"\r"):
        content = b"IMGID:a\nx\tO\n\xc3\xa9\tO\n\xff\tO\n".replace(b"\n", line_end)
        with pytest.raises(DataError, match="a.txt, line 4: is not UTF-8"):
            read_conll(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    "content",
    [gzip.compress(CONLL.encode())[:-12], b"\x1f\x8bnot gzip", gzip.compress(b"x" * 99)[:20]],
    ids=["cut at its end", "only a beginning", "cut early"],
)
def test_a_broken_gzip_file_is_named(content, tmp_path):
    with pytest.raises(DataError, match=r"a\.txt\.gz: the gzip file is broken"):
        read_conll(write(tmp_path / "a.txt.gz", content))


def test_words_without_a_text_around_them_may_hold_nul(tmp_path):
    assert read_conll(write(tmp_path / "a.txt", "IMGID:a\n\0\tO\n\0\0\tO\n"))[0]["tokens"] == ["\0", "\0\0"]


# Folders


def names(paths) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("name, split", [
    ("train.jsonl", "train"), ("TRAIN.JSONL", "train"), ("training.ndjson", "train"), ("Dev.conll", "validation"),
    ("val.jsonl.gz", "validation"), ("valid.txt", "validation"), ("validation.TXT.GZ", "validation"), ("test.bio", "test"),
])  # fmt: skip
def test_splits_are_found_whatever_their_case_and_suffix(name, split, tmp_path):
    content = (JSONL if "json" in name.lower() else CONLL).encode()
    path = write(tmp_path / name, gzip.compress(content) if name.lower().endswith("gz") else content)
    assert find_split_files(tmp_path) == ({split: path}, [], [])
    assert read_splits(tmp_path) == ({split: POSTS}, {split: path})
    assert load_splits(str(tmp_path))[0][split]["id"][:] == ["a", "b"]


def test_nothing_in_a_folder_is_left_out_in_silence(tmp_path, caplog):
    for name in ("test.jsonl", "2020.jsonl", "b.ndjson", "c.JSONL", "sub/train.jsonl", "sub/deep/regions.jsonl"):
        write(tmp_path / name, JSONL)
    write(tmp_path / "d.jsonl.gz", gzip.compress(JSONL.encode()))
    write(tmp_path / "more.txt", CONLL)
    write(tmp_path / "broken.jsonl", "{")
    write(tmp_path / "notes.txt", "to do")
    write(tmp_path / "entity_boxes.jsonl", json.dumps({"id": "z", "entities": []}))
    for name in ("old.csv", "old.json", "old.parquet", "train.xlsx", "posts.xml"):
        write(tmp_path / name, "")
    for name in ("README.md", "regions.jsonl", ".hidden.jsonl", "_run.jsonl", "images/a.JPG", "a.jfif", "LICENSE"):
        write(tmp_path / name, "" if name == "regions.jsonl" else "x")
    splits, others, unused = find_split_files(tmp_path)
    assert names(splits.values()) == ["test.jsonl"]
    assert names(others) == [
        "2020.jsonl",
        "b.ndjson",
        "broken.jsonl",
        "c.JSONL",
        "d.jsonl.gz",
        "more.txt",
        "train.jsonl",
        "regions.jsonl",
    ]
    assert names(unused) == ["notes.txt", "old.csv", "old.json", "old.parquet", "posts.xml", "train.xlsx"]
    write(tmp_path / "regions.jsonl", "")
    with caplog.at_level(logging.INFO):
        load_splits(str(tmp_path))
    line = next(record.getMessage() for record in caplog.records if "NOT read" in record.getMessage())
    assert f"reading test from {tmp_path / 'test.jsonl'}" in line
    assert all(str(path) in line for path in [*others, *unused])


def test_a_folder_without_splits_says_what_it_holds(tmp_path):
    write(tmp_path / "2020.jsonl", JSONL)
    write(tmp_path / "sub" / "train.txt", CONLL)
    write(tmp_path / "train.xlsx", "")
    with pytest.raises(DataError, match=r"expected train\.txt.*, got 2020\.jsonl, sub/train\.txt, train\.xlsx$"):
        load_splits(str(tmp_path))


@pytest.mark.parametrize("pair", [("train.txt", "train.jsonl"), ("valid.txt", "dev.txt"), ("test.txt", "TEST.txt.gz")])
def test_two_files_of_one_split_are_refused(pair, tmp_path):
    for name in pair:
        write(tmp_path / name, JSONL if "json" in name else CONLL)
    with pytest.raises(DataError, match="expected one file of the split (train|validation|test), got .* and "):
        load_splits(str(tmp_path))


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "disk" / "a.jsonl", JSONL)
    write(tmp_path / "data" / "train.jsonl", JSONL)
    (tmp_path / "data" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "up").symlink_to("..")
    (tmp_path / "data" / "loop").symlink_to("loop")
    others = find_split_files(tmp_path / "data").others
    assert {path.resolve() for path in others} == {tmp_path / "disk" / "a.jsonl"}


def test_parquet_files_that_datasets_passes_over_are_named(tmp_path, caplog):
    """`datasets` reads the files that a split's name is in, and then no other."""
    data, _ = load_splits(str(write(tmp_path / "a.txt", CONLL)))
    (tmp_path / "data").mkdir()
    for name in ("test.parquet", "2020.parquet"):
        data["train"].to_parquet(tmp_path / "data" / name)
    again, _ = load_splits(str(tmp_path / "data"))
    assert len(again["test"]) == 2 and "NOT read" in caplog.text and "2020.parquet" in caplog.text


def test_parquet_files_that_do_not_fit_are_named(tmp_path):
    data, _ = load_splits(str(write(tmp_path / "a.txt", CONLL)))
    (tmp_path / "data").mkdir()
    data["train"].to_parquet(tmp_path / "data" / "train-0.parquet")
    data["train"].rename_column("tokens", "words").to_parquet(tmp_path / "data" / "train-1.parquet")
    with pytest.raises(DataError, match="data: `datasets` cannot read it: "):
        load_splits(str(tmp_path / "data"))
    write(tmp_path / "broken.parquet", "x")
    with pytest.raises(DataError, match="broken.parquet: `datasets` cannot read it: "):
        load_splits(str(tmp_path / "broken.parquet"))


def test_label_files_beside_parquet_are_named(tmp_path, caplog):
    data, _ = load_splits(str(write(tmp_path / "a.txt", CONLL)))
    write(tmp_path / "data" / "2020.jsonl", JSONL)
    data["train"].to_parquet(tmp_path / "data" / "posts.parquet")
    assert len(load_splits(str(tmp_path / "data"))[0]["train"]) == 2
    assert "NOT read" in caplog.text and "2020.jsonl" in caplog.text


def test_types_in_one_split_alone_are_warned_of(tmp_path, caplog):
    write(tmp_path / "train.txt", CONLL)
    write(tmp_path / "valid.txt", CONLL.replace("B-PER", "B-PRE"))
    write(tmp_path / "test.txt", CONLL)
    load_splits(str(tmp_path))
    assert "type PRE: once, in validation only" in caplog.text and "type PER" not in caplog.text
    assert "type LOC" not in caplog.text


def test_options_for_label_files_are_refused_for_data_sets(tmp_path):
    data, _ = load_splits(str(write(tmp_path / "a.txt", CONLL)))
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="image_dir, regions_file and entity_boxes are for label files"):
        load_splits(str(tmp_path / "saved"), image_dir=str(tmp_path))


# Images and regions of label files


def test_images_that_the_posts_name(tmp_path, caplog):
    for name in ("pictures/x.JPG", "images/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    images = ["pictures/x.JPG", "images/y.png", "y", "", float("nan"), None, {"path": "y.png"}, str(tmp_path / "images/y.png")]
    rows = [{"id": str(place), "tokens": ["x"], "labels": ["O"], "image": image} for place, image in enumerate(images)]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)))
    data, _ = load_splits(str(tmp_path))
    paths = [row["image"] and os.path.relpath(row["image"]["path"], tmp_path) for row in data["train"]]
    assert paths == ["pictures/x.JPG", *["images/y.png"] * 2, None, None, None, *["images/y.png"] * 2]
    assert "3 of 8 posts have no readable image" in caplog.text
    images = [["y.png"], [None, "y.png"], [], ["y.png", "b.jpg"]]
    write(tmp_path / "train.jsonl", "\n".join(json.dumps(rows[0] | {"image": image}) for image in images))
    data, _ = load_splits(str(tmp_path), image_dir=str(tmp_path / "images"))
    assert [row["image"] is not None for row in data["train"]] == [True, True, False, True]
    assert "1 times a post has several images, of which the first is used: " in caplog.text
    write(tmp_path / "train.jsonl", json.dumps(rows[0] | {"image": 5}))
    with pytest.raises(DataError, match=r"train\.jsonl, line 1, field image: expected the name of a file, got 5"):
        load_splits(str(tmp_path), image_dir=str(tmp_path / "images"))


def test_posts_without_any_image_are_named(tmp_path, caplog):
    load_splits(str(write(tmp_path / "train.txt", CONLL)))
    assert "WITHOUT images: there is no folder" in caplog.text
    caplog.clear()
    (tmp_path / "images").mkdir()
    load_splits(str(tmp_path))
    assert "2 of 2 posts have no readable image" in caplog.text


def test_regions_of_no_post_are_named(tmp_path, caplog):
    region = {"id": "c", "boxes": [[0, 0, 1, 1]], "box_labels": ["x"], "box_scores": [1]}
    write(tmp_path / "regions.jsonl", json.dumps(region))
    load_splits(str(write(tmp_path / "train.txt", CONLL)))
    assert "the regions of 1 ids are not used, no post has them: c" in caplog.text


def test_a_row_becomes_a_post_of_the_pipeline(tmp_path):
    regions = {"boxes": [[0, 0, 1, 1]], "box_labels": ["x"], "box_scores": [1.0]}
    row = {"id": "a", "tokens": ["x"], "ner_tags": [0], "image": {"bytes": b"x", "path": None}} | regions
    assert row_to_post(row) == {"text": ["x"], "image": row["image"]} | regions
    assert row_to_post(row | {"boxes": None, "box_labels": None, "box_scores": None}) == {"text": ["x"], "image": row["image"]}
    assert row_to_post(row | {"image": None}) == {"text": ["x"], "image": None}
    assert row_to_post({"id": "a", "tokens": ["x"]}) == {"text": ["x"], "image": None}


# Label schemes


WORDS = ["Carl", "Meyer", "met", "Rosa", "in", "New", "York"]
BIO = ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC", "I-LOC"]
WRITTEN = {
    "BIOES": ["B-PER", "E-PER", "O", "S-PER", "O", "B-LOC", "E-LOC"],
    "BILOU": ["B-PER", "L-PER", "O", "U-PER", "O", "B-LOC", "L-LOC"],
    "IOB1": ["I-PER", "I-PER", "O", "I-PER", "O", "I-LOC", "I-LOC"],
    "lower case": ["b-PER", "i-PER", "o", "b-PER", "o", "b-LOC", "i-LOC"],
    "underscore": ["B_PER", "I_PER", "O", "B_PER", "O", "B_LOC", "I_LOC"],
    "plain": ["PER", "PER", "O", "PER", "O", "LOC", "LOC"],
}
REFUSED = {
    "two schemes": ["B-PER", "E-PER", "O", "U-PER", "O", "B-LOC", "L-LOC"],
    "some without a prefix": ["PER", "PER", "O", "B-PER", "O", "LOC", "LOC"],
    "no types": ["B", "I", "O", "B", "O", "B", "I"],
    "the prefix behind": ["PER-B", "PER-I", "O", "PER-B", "O", "LOC-B", "LOC-I"],
    "no O": ["PROPN", "PROPN", "VERB", "PROPN", "ADP", "PROPN", "PROPN"],
}


def as_conll(folder: Path, labels: list[str]) -> Path:
    lines = (f"{word}\t{label}\n" for word, label in zip(WORDS, labels, strict=True))
    return write(folder / "train.txt", "IMGID:p\n" + "".join(lines))


def as_jsonl(folder: Path, labels: list[str]) -> Path:
    return write(folder / "train.jsonl", json.dumps({"id": "p", "tokens": WORDS, "labels": labels}))


def saved(folder: Path, labels: list[str], feature) -> Path:
    columns = {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(feature), "likes": Value("int64")}
    features = Features(columns)
    rows = Dataset.from_dict({"id": ["p"], "tokens": [WORDS], "ner_tags": [labels], "likes": [7]}, features=features)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "saved")
    return folder / "saved"


def as_class_labels(folder: Path, labels: list[str]) -> Path:
    return saved(folder, labels, ClassLabel(names=sorted({*labels, *labels})))


def as_strings(folder: Path, labels: list[str]) -> Path:
    return saved(folder, labels, Value("string"))


def as_parquet(folder: Path, labels: list[str]) -> Path:
    names = sorted(set(labels))
    features = Features({"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    rows = Dataset.from_dict({"id": ["p"], "tokens": [WORDS], "ner_tags": [labels]}, features=features)
    rows.to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


FORMS = [as_conll, as_jsonl, as_class_labels, as_strings, as_parquet]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_every_form_of_data_is_converted_to_bio(kind, form, tmp_path, caplog):
    data, fingerprints = load_splits(str(form(tmp_path, WRITTEN[kind])))
    assert dataset_labels(data["train"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    for rows in data.values():
        assert [dataset_labels(rows)[tag] for tag in rows[0]["ner_tags"]] == BIO and rows[0]["tokens"] == WORDS
    changed = sum(before != after for before, after in zip(WRITTEN[kind], BIO, strict=True)) * len(data)
    assert f"converted to BIO, {changed} of {len(data) * len(BIO)} labels changed" in caplog.text
    assert fingerprints == load_splits(str(form(tmp_path, WRITTEN[kind])))[1], "the same data have the same fingerprint"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_not_clear_are_refused_in_every_form_of_data(kind, form, tmp_path):
    with pytest.raises(DataError, match="expected .*, got .*"):
        load_splits(str(form(tmp_path, REFUSED[kind])))


@pytest.mark.parametrize("form", FORMS)
def test_one_may_insist_on_a_scheme(form, tmp_path):
    path = str(form(tmp_path, WRITTEN["BIOES"]))
    data, _ = load_splits(path, label_scheme="plain")
    assert "B-S-PER" in dataset_labels(data["train"])
    with pytest.raises(DataError, match="expected labels in BILOU, got '[ES]-"):
        load_splits(path, label_scheme="BILOU")


def test_bio_class_labels_keep_their_names_and_ids(tmp_path):
    names = ["I-PER", "O", "B-PER", "I-LOC"]
    features = Features({"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    tags = [0, 1, 2, 0, 1, 1, 1]  # an orphan first, which stays
    Dataset.from_dict({"id": ["p"], "tokens": [WORDS], "ner_tags": [tags]}, features=features).save_to_disk(tmp_path / "saved")
    data, _ = load_splits(str(tmp_path / "saved"))
    # I-LOC can never begin an entity: its B-LOC is added behind.
    assert dataset_labels(data["train"]) == [*names, "B-LOC"] and data["train"][0]["ner_tags"] == tags


def test_the_scheme_is_recognised_from_all_splits_together(tmp_path):
    """The test set alone could be BIO."""
    write(tmp_path / "train.jsonl", json.dumps({"id": "p", "tokens": WORDS, "labels": WRITTEN["BIOES"]}))
    write(tmp_path / "test.jsonl", json.dumps({"id": "q", "tokens": ["a", "b"], "labels": ["S-PER", "O"]}))
    data, _ = load_splits(str(tmp_path))
    assert [dataset_labels(data["test"])[tag] for tag in data["test"][0]["ner_tags"]] == ["B-PER", "O"]
