"""Which files bulk tagging reads, what their posts become, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, Dataset, DatasetDict, Features, Image, Value

from tests.bulk.images import image_bytes

pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
from ray import cloudpickle  # noqa: E402

from bulk.sources import PostSource, count_posts, folder_fingerprint, open_data  # noqa: E402
from hub_scripts import prepare_dataset  # noqa: E402
from mner_data.readers import DataError, split_name  # noqa: E402

CONLL = "IMGID:{}\nJordan\tB-PER\nscores\tO\n\n"


def write_parquet(path: Path, **columns: pa.Array | list):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_jsonl(path: Path, *ids: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"id": name, "text": "Jordan"}) + "\n" for name in ids).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def rows(posts: PostSource) -> dict[str, dict]:
    """The posts as Ray would get them, by id; every part yields the same columns."""
    tables = [table for part in posts.parts for table in part()]
    assert len({str(table.schema) for table in tables}) == 1
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def ids(posts: PostSource) -> list[str]:
    return sorted(posts.ids().to_pylist())


# Columns


def test_files_with_other_columns_lose_nothing(tmp_path):
    """Whichever file comes first, its columns are not those of the others."""
    image = {"bytes": image_bytes(), "path": "b.png"}
    write_parquet(tmp_path / "1.parquet", id=["a"], tokens=[["Jordan"]])
    write_parquet(tmp_path / "2.parquet", id=["b"], text=["Jordan"], image=[image], boxes=[[[0.0, 0.0, 1.0, 1.0]]])
    found = rows(open_data(str(tmp_path), None))
    assert found["a"] == {"id": "a", "tokens": ["Jordan"], "text": None, "image": None, "boxes": None}
    assert found["b"] == {"id": "b", "tokens": None, "text": "Jordan", "image": image, "boxes": [[0, 0, 1, 1]]}


STORED = {
    "image": [
        (pa.array([b"xy", None]), {"bytes": b"xy", "path": None}),
        (pa.array([b"xy", None], pa.large_binary()), {"bytes": b"xy", "path": None}),
        (pa.array([b"xy", None], pa.binary(2)), {"bytes": b"xy", "path": None}),
        (pa.array(["p.png", None]), {"bytes": None, "path": "p.png"}),
        (pa.array(["p.png", None], pa.large_string()), {"bytes": None, "path": "p.png"}),
        (pa.array(["p.png", None]).dictionary_encode(), {"bytes": None, "path": "p.png"}),
        (pa.array([{"path": "p.png", "bytes": b"xy", "height": 3}, None]), {"bytes": b"xy", "path": "p.png"}),
        (pa.array([{"bytes": b"xy"}, None]), {"bytes": b"xy", "path": None}),
        (pa.array([{"path": "p.png"}, None]), {"bytes": None, "path": "p.png"}),
        (pa.array([{"path": "p.png", "bytes": None}, None]), {"bytes": None, "path": "p.png"}),
        (pa.array([None, None]), None),
    ],
    "text": [
        (pa.array(["a b", None], pa.large_string()), "a b"),
        (pa.array(["a b", None]).dictionary_encode(), "a b"),
    ],
    "tokens": [
        (pa.array([["a", "b"], None], pa.large_list(pa.large_string())), ["a", "b"]),
        (pa.array([["a", "b"], None], pa.list_(pa.dictionary(pa.int8(), pa.string()))), ["a", "b"]),
        (pa.array([[], None], pa.list_(pa.null())), []),
    ],
    "boxes": [
        (pa.array([[[0, 0, 1, 1]], None], pa.list_(pa.list_(pa.float32(), 4))), [[0, 0, 1, 1]]),
        (pa.array([[[0, 0, 1, 1]], None], pa.large_list(pa.list_(pa.int8()))), [[0, 0, 1, 1]]),
        (pa.array([[], None], pa.list_(pa.null())), []),
        (pa.array([None, None]), None),
    ],
    "box_scores": [(pa.array([[1.0], None], pa.list_(pa.float16())), [1.0])],
    "box_labels": [(pa.array([["dog"], None], pa.large_list(pa.string())), ["dog"])],
}


@pytest.mark.parametrize(("name", "index"), [(name, index) for name in STORED for index in range(len(STORED[name]))])
def test_every_way_to_store_a_column_is_read(name, index, tmp_path):
    """The file comes last or first, beside one where all columns are stored as usual."""
    values, expected = STORED[name][index]
    usual = {
        "text": ["Jordan"], "tokens": [["Jordan"]], "image": [{"bytes": b"usual", "path": "usual.png"}],
        "boxes": [[[0.0, 0.0, 0.5, 0.5]]], "box_scores": [[0.5]], "box_labels": [["usual"]],
    }  # fmt: skip
    for number, unusual in enumerate(("a.parquet", "z.parquet")):
        folder = tmp_path / str(number)
        text = {} if name in ("text", "tokens") else {"text": ["a", "b"]}
        write_parquet(folder / unusual, id=["1", "2"], **{name: values}, **text)
        write_parquet(folder / "m.parquet", id=["usual"], **usual)
        found = rows(open_data(str(folder), None))
        assert found["1"][name] == expected and found["2"][name] is None
        assert {column: [found["usual"][column]] for column in usual} == usual


def test_ids_keep_their_type_where_all_files_have_the_same(tmp_path):
    write_parquet(tmp_path / "a.parquet", id=[1, 2], text=["a", "b"])
    assert ids(open_data(str(tmp_path), None)) == [1, 2]
    write_parquet(tmp_path / "b.parquet", id=pa.array(["x"], pa.large_string()), text=["c"])
    assert ids(open_data(str(tmp_path), None)) == ["1", "2", "x"]


WRONG_COLUMNS = {
    "list ids": ({"id": [["a"]], "text": ["a"]}, "column id: expected strings or integers, got list"),
    "struct ids": ({"id": [{"a": 1}], "text": ["a"]}, "column id: expected strings or integers, got struct"),
    "float ids": ({"id": [1.0], "text": ["a"]}, "column id: expected strings or integers, got double"),
    "bool ids": ({"id": [True], "text": ["a"]}, "column id: expected strings or integers, got bool"),
    "number as text": ({"id": ["a"], "text": [1]}, "column text: expected strings, got int64"),
    "string as tokens": ({"id": ["a"], "tokens": ["a b"]}, "column tokens: expected lists of strings, got string"),
    "list views": (
        {"id": ["a"], "tokens": pa.array([["a"]], pa.list_view(pa.string()))},
        "column tokens: expected lists of strings, got list_view",
    ),
    "images in a list": ({"id": ["a"], "text": ["a"], "image": [[b"x"]]}, "column image: expected bytes, names of files"),
    "image of numbers": ({"id": ["a"], "text": ["a"], "image": [5]}, "column image: expected bytes, .* got int64"),
    "struct without an image": (
        {"id": ["a"], "text": ["a"], "image": [{"url": "http://example.org"}]},
        "column image: expected bytes",
    ),
    "flat boxes": ({"id": ["a"], "text": ["a"], "boxes": [[0.0, 1.0]]}, "column boxes: expected lists of lists of numbers"),
    "no id": ({"text": ["a"]}, "has the columns text; expected id, and tokens or text"),
    "no text": ({"id": ["a"], "image": [b"a"]}, "has the columns id, image; expected id, and tokens or text"),
}


@pytest.mark.parametrize("kind", WRONG_COLUMNS)
def test_error_names_the_file_and_the_column(kind, tmp_path):
    columns, message = WRONG_COLUMNS[kind]
    write_parquet(tmp_path / "a.parquet", id=["good"], text=["a"])
    write_parquet(tmp_path / "b.parquet", **columns)
    with pytest.raises(DataError, match=f"b.parquet.* {message}"):
        open_data(str(tmp_path), None)


def test_a_saved_data_set_is_checked_like_parquet(tmp_path):
    data = Dataset.from_dict({"id": [["a"]], "text": ["a"]})
    DatasetDict({"train": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="saved, train, column id: expected strings or integers, got list"):
        open_data(str(tmp_path / "saved"), None)


def test_boxes_of_a_fixed_shape_are_read(tmp_path):
    """`datasets` stores them as a type of its own."""
    features = Features({"id": Value("string"), "text": Value("string"), "boxes": Array2D((1, 4), "float32")})
    data = Dataset.from_dict({"id": ["a"], "text": ["a"], "boxes": [[[0, 0, 1, 1]]]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "posts.parquet")
    for name in ("saved", "posts.parquet"):
        assert rows(open_data(str(tmp_path / name), None))["a"]["boxes"] == [[0, 0, 1, 1]]


def test_columns_that_are_not_read_are_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", id=["a"], text=["a"], images=[b"x"])
    write_jsonl(tmp_path / "b.jsonl", "b")
    (tmp_path / "b.jsonl").write_text('{"id": "b", "text": "a", "media": "b.png"}\n')
    assert any("not read: images" in note for note in open_data(str(tmp_path / "a.parquet"), None).notes)
    assert any("not read: media" in note for note in open_data(str(tmp_path / "b.jsonl"), None).notes)


def test_rows_with_large_images_are_read_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("bulk.sources.BYTES_PER_TABLE", 10_000)
    images = [os.urandom(3000) for _ in range(20)]
    write_parquet(tmp_path / "a.parquet", id=[str(number) for number in range(20)], text=["a"] * 20, image=images)
    posts = open_data(str(tmp_path), None)
    assert max(len(table) for part in posts.parts for table in part()) <= 4
    assert [rows(posts)[str(number)]["image"]["bytes"] for number in range(20)] == images


# Files


def test_other_files_beside_parquet_are_not_read(tmp_path):
    write_parquet(tmp_path / "data" / "a.PARQUET", id=["a"], text=["a"])
    for name in ("README.md", "prepare.json", "notes.txt", "data/LICENSE", ".git/config", "_SUCCESS"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("This is no parquet file.")
    write_jsonl(tmp_path / ".cache" / "old.jsonl", "old")
    posts = open_data(str(tmp_path), None)
    assert ids(posts) == ["a"]
    (note,) = (note for note in posts.notes if note.startswith("files not read: "))
    assert set(note.removeprefix("files not read: ").split(", ")) == {
        ".cache/old.jsonl", "notes.txt", "README.md", "prepare.json", "data/LICENSE",
    }  # fmt: skip


def test_the_output_of_prepare_dataset_is_read(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}.txt").write_text(CONLL.format(split))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "test.png").write_bytes(image_bytes())
    text, images, output = (str(tmp_path / name) for name in ("text", "images", "prepared"))
    prepare_dataset.main(["--text", text, "--images", images, "--output", output, "--regions", "grid"])
    found = rows(open_data(output, None))
    assert sorted(found) == ["test", "train"] and found["train"]["image"] is None
    assert found["test"]["image"]["bytes"] == image_bytes() and len(found["test"]["boxes"]) > 1
    assert list(rows(open_data(output, "test"))) == ["test"]


def test_sub_folders_and_every_suffix_are_read(tmp_path):
    names = ["a.jsonl", "b.ndjson", "c.JSONL", "d.jsonl.gz", "sub/e.NDJSON", "sub/deeper/f.ndjson.GZ", "2020.jsonl", "test.jsonl"]
    for name in names:
        if name.endswith(".GZ"):
            write_jsonl(tmp_path / name.replace(".GZ", ".gz"), name)
            (tmp_path / name.replace(".GZ", ".gz")).rename(tmp_path / name)
        else:
            write_jsonl(tmp_path / name, name)
    posts = open_data(str(tmp_path), None)
    assert ids(posts) == sorted(names) and set(rows(posts)) == set(names)
    assert all(name in posts.notes[0] for name in names)
    for name in names:
        assert ids(open_data(str(tmp_path / name), None)) == [name]


def test_conll_files_are_read_with_sub_folders(tmp_path):
    names = ["2019.txt.gz", "more.bio", "more.conll", "sub/2020.txt", "train.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = CONLL.format(name).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "requirements.txt").write_text("torch\n")
    posts = open_data(str(tmp_path), None)
    assert rows(posts)["train.txt"]["tokens"] == ["Jordan", "scores"]
    assert ids(posts) == names and "files not read: requirements.txt" in posts.notes


def test_conll_in_another_encoding_is_read(tmp_path):
    (tmp_path / "2020.txt").write_text(CONLL.format("a"), encoding="utf-16")
    assert ids(open_data(str(tmp_path), None)) == ["a"]


def test_files_beside_a_saved_data_set_are_named(tmp_path):
    Dataset.from_dict({"id": ["a"], "text": ["a"]}).save_to_disk(tmp_path)
    write_jsonl(tmp_path / "2020.jsonl", "b")
    assert "files not read: 2020.jsonl" in open_data(str(tmp_path), None).notes


@pytest.mark.parametrize("name", ["regions.jsonl", "Regions.JSONL", "sub/regions.jsonl.gz"])
def test_regions_are_no_posts(name, tmp_path):
    write_jsonl(tmp_path / "posts.jsonl", "a")
    region = json.dumps({"id": "a", "boxes": [[0, 0, 1, 1]], "box_labels": ["dog"], "box_scores": [1.0]}).encode()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(gzip.compress(region) if name.endswith(".gz") else region)
    posts = open_data(str(tmp_path), None)
    assert ids(posts) == ["a"] and posts.regions == (str(tmp_path / name),)


def test_links_are_followed_once(tmp_path):
    write_jsonl(tmp_path / "elsewhere" / "a.jsonl", "a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    assert ids(open_data(str(tmp_path / "data"), None)) == ["a"]


def test_two_forms_in_one_folder_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", id=["a"], text=["a"])
    write_jsonl(tmp_path / "sub" / "b.jsonl", "b")
    with pytest.raises(DataError, match=r"holds posts as JSONL \(sub/b.jsonl\) and parquet \(a.parquet\): expected one form"):
        open_data(str(tmp_path), None)


@pytest.mark.parametrize("name", ["posts.json", "posts.csv", "posts.jsonl.zst", "posts.parquet.gz", "posts.zip"])
def test_a_form_that_is_not_read_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    for data in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=f"{name}|expected posts as parquet, JSONL .* or CoNLL"):
            open_data(str(data), None)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="a.parquet: expected a parquet file"):
        open_data(str(tmp_path), None)
    write_jsonl(tmp_path / "cut.jsonl.gz", "a")
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "cut.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(DataError, match="cut.jsonl.gz cannot be read to its end"):
        ids(open_data(str(tmp_path / "cut.jsonl.gz"), None))


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere.PARQUET", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_data_that_do_not_exist_are_named(name):
    with pytest.raises(DataError, match="there is no file or folder"):
        open_data(name, None)


def test_results_and_images_inside_the_data_are_no_posts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", "a")
    write_jsonl(tmp_path / "images" / "note.jsonl", "b")
    write_parquet(tmp_path / "tagged" / "data" / "a.parquet", id=["a"], entities=["x"])
    posts = open_data(str(tmp_path), output=tmp_path / "tagged")
    assert ids(posts) == ["a"] and posts.images == tmp_path / "images"
    assert "files not read: images/note.jsonl" in posts.notes
    posts = open_data(str(tmp_path / "a.jsonl"))
    assert posts.images == tmp_path / "images"
    (tmp_path / "images" / "note.jsonl").unlink()
    posts = open_data(str(tmp_path), None, tmp_path, tmp_path / "tagged")
    assert ids(posts) == ["a"] and posts.images == tmp_path, "the folder of the images may be that of the data"


def test_an_address_is_listed_like_a_folder(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", id=["a"], text=["a"])
    write_parquet(tmp_path / "test" / "b.parquet", id=["b"], text=["b"])
    (tmp_path / "README.md").write_text("This is no parquet file.")
    address = tmp_path.as_uri()
    assert ids(open_data(address, None)) == ["a", "b"] and ids(open_data(address, "test")) == ["b"]
    with pytest.raises(DataError, match="--split"):
        open_data(address, "nonsense")
    with pytest.raises(DataError, match="there is nothing at"):
        open_data(f"{address}/nowhere", None)
    with pytest.raises(DataError, match="no address that can be read"):
        open_data("nonsense://bucket/posts", None)


# Splits


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "train-00000-of-00005.parquet": "train",
        "data/train-00000-of-00001.parquet": "train",
        "validation-00000-of-00001-0123abcd.parquet": "validation",
        "dev.txt": "validation",
        "val_2.jsonl": "validation",
        "test/posts.jsonl.gz": "test",
        "twitter2015-Test.JSONL": "test",
        "hard-00000-of-00001.parquet": "hard",
        "latest.jsonl": None,
        "contest/training.jsonl": "train",
        "train_dev.jsonl": None,
        "2020.jsonl": None,
    }.items(),
)
def test_names_of_files_say_the_split(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_split_is_read_alone_or_refused(form, tmp_path):
    for name in ("train-00000-of-00001", "test-00000-of-00001", "extra"):
        if form == "parquet":
            write_parquet(tmp_path / f"{name}.parquet", id=[name], text=["a"])
        else:
            write_jsonl(tmp_path / f"{name}.jsonl", name)
    posts = open_data(str(tmp_path), "test")
    assert ids(posts) == ["test-00000-of-00001"] and list(rows(posts)) == ids(posts)
    assert any("extra" in note and "train" in note for note in posts.notes if note.startswith("files not read"))
    assert len(ids(open_data(str(tmp_path), None))) == 3
    for split in ("nonsense", "dev", "validation", "train[:10]", ""):
        with pytest.raises(DataError, match="has test, train; expected one of its splits, got"):
            open_data(str(tmp_path), split)
    assert ids(open_data(str(tmp_path / f"test-00000-of-00001.{form}"), "test")) == ["test-00000-of-00001"]
    with pytest.raises(DataError, match="has test; expected one of its splits, got 'train'"):
        open_data(str(tmp_path / f"test-00000-of-00001.{form}"), "train")
    with pytest.raises(DataError, match="has no splits"):
        open_data(str(tmp_path / f"extra.{form}"), "train")


def test_folders_are_splits(tmp_path):
    for split in ("train", "dev"):
        write_parquet(tmp_path / split / "0.parquet", id=[split], text=["a"])
    assert ids(open_data(str(tmp_path), "dev")) == ids(open_data(str(tmp_path), "validation")) == ["dev"]


def test_a_split_of_a_saved_data_set(tmp_path):
    data = Dataset.from_dict({"id": ["a", "b", "c"], "text": ["a"] * 3})
    DatasetDict({"train": data.select([0, 1]), "test": data.select([2])}).save_to_disk(tmp_path / "saved")
    data.save_to_disk(tmp_path / "one")
    name = str(tmp_path / "saved")
    assert len(open_data(name, "test").ids()) == 1 and len(open_data(name, None).ids()) == 3
    assert open_data(name, "test").fingerprint != open_data(name, "train").fingerprint
    with pytest.raises(DataError, match="--split: .* has train, test; expected one of its splits, got 'dev'"):
        open_data(name, "dev")
    with pytest.raises(DataError, match="has no splits"):
        open_data(str(tmp_path / "one"), "train")


def test_splits_of_a_saved_data_set_may_differ_in_their_columns(tmp_path):
    train = Dataset.from_dict({"id": ["a"], "text": ["a"]})
    image = Dataset.from_dict({"id": ["b"], "tokens": [["b"]], "image": [{"bytes": image_bytes(), "path": None}]})
    saved = DatasetDict({"train": train, "test": image.cast_column("image", Image())})
    saved.save_to_disk(tmp_path / "saved")
    found = rows(open_data(str(tmp_path / "saved"), None))
    assert found["a"]["image"] is None and found["b"]["image"]["bytes"] == image_bytes()


# What a run depends on


def test_changed_data_and_regions_change_the_fingerprint(tmp_path):
    write_jsonl(tmp_path / "posts.jsonl", "a")
    name = str(tmp_path / "posts.jsonl")
    seen = {open_data(name, None).fingerprint}
    assert open_data(name, None).fingerprint in seen
    region = {"id": "a", "boxes": [[0, 0, 1, 1]], "box_labels": ["dog"], "box_scores": [1.0]}
    for changed in (region, region | {"boxes": [[0, 0, 1, 0.5]]}):
        (tmp_path / "regions.jsonl").write_text(json.dumps(changed))
        for data in (name, str(tmp_path)):
            posts = open_data(data, None)
            assert posts.regions == (str(tmp_path / "regions.jsonl"),) and ids(posts) == ["a"]
            assert posts.fingerprint not in seen
        seen.add(open_data(name, None).fingerprint)
    write_jsonl(tmp_path / "posts.jsonl", "b")
    assert open_data(name, None).fingerprint not in seen
    (tmp_path / "regions.jsonl").write_text('{"id": "a"}')
    with pytest.raises(DataError, match="regions.jsonl, line 1"):
        open_data(name, None)


def test_changed_images_change_the_fingerprint(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"22")
    before = folder_fingerprint(tmp_path)
    assert before[1] == 2 and folder_fingerprint(tmp_path) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result").write_bytes(b"")
    assert folder_fingerprint(tmp_path, [tmp_path / "out"]) == before
    seen = [before[0], folder_fingerprint(tmp_path)[0]]
    (tmp_path / "sub" / "a.png").write_bytes(b"333")
    seen.append(folder_fingerprint(tmp_path)[0])
    os.utime(tmp_path / "b.png", ns=(1, 1))
    seen.append(folder_fingerprint(tmp_path)[0])
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    seen.append(folder_fingerprint(tmp_path)[0])
    (tmp_path / "c.png").unlink()
    seen.append(folder_fingerprint(tmp_path)[0])
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("form", ["parquet", "JSONL", "CoNLL", "saved data set"])
def test_parts_reach_rays_workers_whole(form, tmp_path):
    """Ray pickles the functions that read."""
    if form == "parquet":
        write_parquet(tmp_path / "a.parquet", id=["a"], text=["a"])
    elif form == "JSONL":
        write_jsonl(tmp_path / "a.jsonl", "a")
    elif form == "CoNLL":
        (tmp_path / "train.txt").write_text(CONLL.format("a"))
    else:
        Dataset.from_dict({"id": ["a"], "text": ["a"]}).save_to_disk(tmp_path)
    posts = open_data(str(tmp_path), None)
    (part,) = posts.parts
    (table,) = cloudpickle.loads(cloudpickle.dumps(part))()
    assert table["id"].to_pylist() == ["a"] == ids(posts)
    assert open_data(str(tmp_path), None).fingerprint == posts.fingerprint


def test_ids_have_to_be_there_and_unique():
    assert count_posts(pa.chunked_array([["a", "b"], ["c"]])) == 3
    with pytest.raises(DataError, match="1 posts of 3 have no id"):
        count_posts(pa.chunked_array([["a", None, "c"]]))
    with pytest.raises(DataError, match="2 posts of 4 share an id with another, e.g. 'b', which stands 3 times"):
        count_posts(pa.chunked_array([["a", "b", "b"], ["b"]]))
    with pytest.raises(DataError, match="no posts"):
        count_posts(pa.chunked_array([], pa.string()))


# Options that do not fit the data


UNFIT = {
    "columns of parquet": ("posts.parquet", {"columns": "word"}, "--columns: expected label files .*posts.parquet, which is"),
    "form of parquet": ("posts.parquet", {"format": "conll"}, "--format: expected label files"),
    "both at an address": ("file://posts.parquet", {"format": "conll", "columns": "word"}, "--format and --columns: .* address"),
    "columns of JSONL": ("posts.jsonl", {"columns": "word"}, "--columns: .*posts.jsonl is read as JSONL"),
    "form of a saved data set": ("saved", {"format": "conll"}, "--format: .*saved, a saved data set"),
    "columns on the Hub": ("user/posts", {"columns": "word"}, "--columns: .*user/posts, a data set of the Hub"),
    "no such field": ("posts.jsonl", {"column_names": {"nope": "text"}}, "posts.jsonl has no column 'nope'; it has id, text"),
    "no such name": ("posts.jsonl", {"column_names": {"text": "words"}}, "column_names: text: expected one of id, .*'words'"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_options_that_do_not_fit_the_data_are_refused(kind, tmp_path):
    """They were not looked at."""
    name, options, message = UNFIT[kind]
    write_parquet(tmp_path / "posts.parquet", id=["a"], text=["x"])
    (tmp_path / "posts.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y", "when": "2020"}\n')
    Dataset.from_dict({"id": ["a"], "text": ["x"]}).save_to_disk(tmp_path / "saved")
    data = name if name == "user/posts" else name.replace("posts.", f"{tmp_path}/posts.").replace("saved", f"{tmp_path}/saved")
    with pytest.raises(DataError, match=message):
        open_data(data, **options)
    assert len(ids(open_data(str(tmp_path / "posts.jsonl"), column_names={"when": "image"}))) == 2


def test_a_field_that_comes_late_may_be_named(tmp_path):
    lines = [{"id": str(number), "text": "x"} for number in range(1500)] + [{"id": "last", "text": "x", "photo_file": "a.png"}]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len(ids(open_data(str(tmp_path / "posts.jsonl"), column_names={"photo_file": "image"}))) == 1501


def test_regions_of_one_post_stand_in_one_file(tmp_path):
    write_jsonl(tmp_path / "posts.jsonl", "a")
    line = json.dumps({"id": "a", "boxes": [], "box_labels": [], "box_scores": []})
    (tmp_path / "sub").mkdir()
    for name in ("regions.jsonl", "sub/regions.jsonl"):
        (tmp_path / name).write_text(line)
    with pytest.raises(DataError, match="--data: post a: expected its regions in one file, got .* and .*sub/regions.jsonl"):
        open_data(str(tmp_path))


def test_error_names_data_that_are_neither_here_nor_on_the_hub(monkeypatch, tmp_path):
    def fail(name):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr("bulk.sources.datasets.load_dataset", fail)
    with pytest.raises(DataError, match="--data: there is no file or folder nowhere here, and no such data set on the Hub"):
        open_data("nowhere")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="--data: .* cannot be read as a saved data set: FileNotFoundError"):
        open_data(str(tmp_path))
