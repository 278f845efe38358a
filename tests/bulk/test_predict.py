"""Bulk tagging: the tagger on its own, the folder of results, and whole runs on a Ray that the tests share."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from tests.tiny_model import saved_tiny_model

ray = pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
from ray.data.checkpoint import CheckpointConfig  # noqa: E402
from ray.data.checkpoint.checkpoint_writer import CheckpointWriter, PendingCheckpoint  # noqa: E402

import predict  # noqa: E402
from bulk import sources  # noqa: E402
from bulk.output import adopt_run_folder, claim, drop_incomplete  # noqa: E402
from bulk.sources import count_posts, open_data  # noqa: E402
from bulk.tagger import Tagger  # noqa: E402
from mner_data.readers import DataError  # noqa: E402
from predict import main  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def picture(color: str = "white", size=(40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ner(model):
    return pipeline("mner", model=str(model), trust_remote_code=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A picture with the name of a post, a broken one, a way out of the folder, and something to find there."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    (folder / "images" / "photo.png").write_bytes(picture())
    (folder / "images" / "broken.jpg").write_bytes(picture()[:40])
    (folder / "secret.png").write_bytes(picture())
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    return folder / "images"


@pytest.fixture(scope="module")
def tagger(model, images):
    return Tagger(str(model), None, str(images), allow_urls=False, batch_size=4)


GOOD = [
    {"text": "Jordan scores again in Amazon park"},
    {"text": "New York Knicks' game #NBA @joe", "image": {"bytes": picture("red"), "path": None}},
    {"tokens": ["New", "York"], "image": {"bytes": None, "path": "photo.png"}},
    {"text": "", "image": "photo"},
    {"text": "a person with a trophy", "image": picture(), "boxes": [[0.1, 0.2, 0.5, 0.6]], "box_labels": ["dog"]},
    {"text": "the river Amazon " * 40},
    {"text": "lone \ud800 surrogate in Lincoln"},
]
BAD = {
    "no text": ({"text": None}, "field text: a string or a list of words is wanted"),
    "number as text": ({"text": 7}, "field text"),
    "words of numbers": ({"tokens": [1, 2]}, "field text"),
    "broken bytes": ({"text": "a", "image": b"\xff\xd8\xff"}, "field image: is not an image"),
    "cut bytes": ({"text": "a", "image": picture()[:45]}, "field image: is broken"),
    "no bytes": ({"text": "a", "image": {"bytes": b"", "path": None}}, "field image: is empty"),
    "page as picture": ({"text": "a", "image": b"<html>"}, "field image: is not an image"),
    "broken file": ({"text": "a", "image": "broken.jpg"}, "field image: is not an image|field image: is broken"),
    "broken file of its id": ({"id": "broken", "text": "a"}, "field image: is"),
    "number as image": ({"text": "a", "image": 5}, "field image: expected a path, bytes"),
    "missing file": ({"text": "a", "image": "nowhere.png"}, "field image: there is no file 'nowhere.png'"),
    "outside": ({"text": "a", "image": "../secret.png"}, "leads out of the image folder"),
    "absolute": ({"text": "a", "image": "/etc/hostname"}, "leads out of the image folder"),
    "link": ({"text": "a", "image": "link.png"}, "leads out of the image folder"),
    "saved data set's path": ({"text": "a", "image": {"bytes": None, "path": "/etc/hostname"}}, "leads out"),
    "id as path": ({"id": "../secret", "text": "a"}, "leads out"),
    "NUL": ({"text": "a", "image": "a\0b"}, "null byte"),
    "long name": ({"text": "a", "image": "x" * 5000}, "File name too long"),
    "URL": ({"text": "a", "image": "http://127.0.0.1/x.png"}, "a URL, which is fetched only with --allow_urls"),
    "other address": ({"text": "a", "image": "file:///etc/hostname"}, "there is no file"),
    "three sides": ({"text": "a", "image": picture(), "boxes": [[0, 0, 1]]}, "field boxes, box 0: four numbers"),
    "no number": ({"text": "a", "image": picture(), "boxes": [[0, 0, float("nan"), 1]]}, "not finite"),
    "pixels": ({"text": "a", "image": picture(), "boxes": [[0, 0, 40, 30]]}, "looks like pixels"),
    "labels without boxes": ({"text": "a", "image": picture(), "box_labels": ["dog"]}, "field boxes"),
}


def as_json(rows: list[dict]) -> pa.Table:
    """Rows as JSONL brings them: any type in any field."""
    ids = [row.get("id", f"post {place}") for place, row in enumerate(rows)]
    lines = [json.dumps(row).encode() for row in rows]
    return pa.table({"id": ids, "json": lines}, schema=sources.JSON_LINES)


def tagged(tagger: Tagger, rows: list[dict]) -> list[dict]:
    """Rows through the tagger's table, around Arrow where a column cannot hold them all."""

    class Rows:
        def to_pylist(self):
            return [{"id": f"post {place}"} | row for place, row in enumerate(rows)]

        def __getitem__(self, name):
            return pa.array([row[name] for row in self.to_pylist()])

    return tagger(Rows()).to_pylist()


def test_rows_are_the_pipelines_own_results(tagger, ner, images):
    found = tagged(tagger, GOOD)
    assert [row["id"] for row in found] == [f"post {place}" for place in range(len(GOOD))]
    posts = [
        {"text": row.get("tokens", row.get("text"))} | {name: row[name] for name in ("boxes", "box_labels") if name in row}
        for row in GOOD
    ]
    opened = [None, picture("red"), *[str(images / "photo.png")] * 2, picture(), None, None]
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


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_post_is_a_row_with_an_error_and_its_neighbours_are_tagged(tagger, kind):
    row, message = BAD[kind]
    before, found, after = tagged(tagger, [GOOD[0], row, GOOD[0]])
    assert found["entities"] is None and found["relevance"] is None
    with pytest.raises(ValueError, match=message):
        raise ValueError(found["error"])
    assert before["error"] is None and before["entities"] == after["entities"]


def test_many_bad_posts_in_one_batch(tagger):
    rows = [row for row, _ in BAD.values()]
    mixed = [row for pair in zip(rows, [GOOD[0]] * len(rows), strict=True) for row in pair]
    found = tagged(tagger, mixed)
    assert [row["error"] is None for row in found] == [False, True] * len(rows)


def test_nothing_is_opened_without_an_image_folder(model):
    tagger = Tagger(str(model), None, None, allow_urls=False, batch_size=4)
    (found,) = tagged(tagger, [{"text": "a", "image": str(ROOT / "README.md")}])
    assert "is a file, but no folder was given: --images" in found["error"]
    (found,) = tagged(tagger, [{"text": "a"}])
    assert found["error"] is None


def test_weights_are_safetensors(model, tmp_path):
    for file in model.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no file named model.safetensors"):
        Tagger(str(tmp_path), None, None, allow_urls=False, batch_size=4)


def test_urls_are_fetched_when_told_to(tagger, monkeypatch):
    monkeypatch.setattr(tagger, "allow_urls", True)
    asked = []
    monkeypatch.setattr(predict, "fetch", lambda url: asked.append(url) or picture())
    (found,) = tagged(tagger, [{"text": "a", "image": "https://example.org/a.png"}])
    assert found["error"] is None and found["relevance"] is not None and asked == ["https://example.org/a.png"]
    monkeypatch.undo()
    monkeypatch.setattr(tagger, "allow_urls", True)
    (found,) = tagged(tagger, [{"text": "a", "image": "http://127.0.0.1:1/a.png"}])
    assert "not a public address" in found["error"]


LINES = {
    b'{"id": "a", "text": "Jordan"}': ("a", None),
    b'{"id": 7, "text": "Jordan", "image": null, "labels": 5}': ("7", None),
    b'{"text": "no id"}': ("posts.jsonl, line 3", None),
    b'{"id": "cut", "te': ("posts.jsonl, line 4", "no line of JSON"),
    b"[1, 2]": ("posts.jsonl, line 5", "no line of JSON"),
    b"\xff\xfe{}": ("posts.jsonl, line 6", "no line of JSON"),
    b'{"id": {}, "text": "a"}': ("posts.jsonl, line 7", None),
    b'{"id": "\\ud800", "text": "\\ud800 \\u0000"}': ("\ufffd", None),
    b'{"id": "deep", "text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": ("posts.jsonl, line 9", "no line of JSON"),
    b'{"id": "wrong", "tokens": {"a": 1}}': ("wrong", "field text"),
    b'{"id": "boxes", "text": "a", "image": "photo.png", "boxes": "all"}': ("boxes", "field boxes: expected a list"),
}


def test_every_line_of_a_jsonl_file_becomes_a_row(tagger, tmp_path):
    file = tmp_path / "posts.jsonl"
    file.write_bytes(b"\n".join(LINES) + b"\n\n")
    (table,) = sources._json_lines(file)
    found = tagger(table).to_pylist()
    for row, (name, error) in zip(found, LINES.values(), strict=True):
        assert row["id"] == name
        assert (row["error"] is None) == (error is None) and (error or "") in (row["error"] or ""), row


def test_ids_have_to_be_there_and_unique():
    assert count_posts(pa.chunked_array([["a", "b"], ["c"]])) == 3
    with pytest.raises(DataError, match="1 posts of 3 have no id"):
        count_posts(pa.chunked_array([["a", None, "c"]]))
    with pytest.raises(DataError, match="2 posts of 4 share an id with another, e.g. 'b' stands 3 times"):
        count_posts(pa.chunked_array([["a", "b", "b"], ["b"]]))
    with pytest.raises(DataError, match="no posts"):
        count_posts(pa.chunked_array([], pa.string()))


# The folder of results


def test_a_folder_belongs_to_one_model_data_and_settings(tmp_path):
    settings = {"model": ["m", "1"], "data": ["d", None, "2"], "images": None, "allow_urls": False}
    (tmp_path / "_predict.json.unfinished").write_text("{")  # killed as it took the folder
    known = claim(tmp_path, settings, overwrite=False)
    assert known == claim(tmp_path, settings, overwrite=False)
    for name, value in {"model": ["m", "other"], "data": ["e", None, "2"], "images": "/", "allow_urls": True}.items():
        with pytest.raises(DataError, match=f"another {name}: choose another --output, or --overwrite"):
            claim(tmp_path, settings | {name: value}, overwrite=False)
    adopt_run_folder(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"")
    assert claim(tmp_path, settings | {"model": ["m", "other"]}, overwrite=True)["settings"]["model"] == ["m", "other"]
    assert [path.name for path in tmp_path.iterdir()] == ["_predict.json"]


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"not empty and not from predict\.py"):
            claim(tmp_path, {}, overwrite)
    assert (tmp_path / "thesis.tex").is_file()


def test_only_results_with_their_checkpoint_are_kept(tmp_path):
    """After kills at every point of Ray's pending checkpoint, results, renamed checkpoint; the retried write has both."""
    files = {
        "whole_000001": ("data", "checkpoint"), "begun_000002": ("pending",), "written_000003": ("pending", "data"),
        "retried_000004": ("pending", "data", "checkpoint"), "late_000005": ("data",), "lost_000006": ("checkpoint",),
    }  # fmt: skip
    names = {
        "data": "data/{}-0.parquet",
        "checkpoint": "checkpoint/{}.parquet",
        "pending": "checkpoint/{}.pending.parquet",
    }
    for stem, kinds in files.items():
        for kind in kinds:
            path = tmp_path / names[kind].format(stem)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
    drop_incomplete(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert left == ["checkpoint/whole_000001.parquet", "data/whole_000001-0.parquet"]


@pytest.mark.parametrize("written", ["nothing", "pending", "results"])
def test_what_is_left_of_a_killed_run_can_write_no_more(written, tmp_path):
    """A worker outlives its driver and goes on, after the next run has begun, with the steps it had not yet done."""
    before = adopt_run_folder(tmp_path)
    # The three steps of Ray's write tasks.
    writer = CheckpointWriter.create(CheckpointConfig("id", str(before / "checkpoint")))
    steps = {
        "pending": lambda: writer.write_pending_checkpoint(pa.chunked_array([["a"]]), "late_000001"),
        "results": lambda: pyarrow.dataset.write_dataset(
            pa.table({"id": ["a"]}), before / "data", basename_template="late_000001-{i}.parquet", format="parquet",
            existing_data_behavior="overwrite_or_ignore", create_dir=False,
        ),
        "committed": lambda: writer.commit_checkpoint(
            PendingCheckpoint(*(str(before / "checkpoint" / f"late_000001{end}.parquet") for end in (".pending", "")))
        ),
    }  # fmt: skip
    done = list(steps)[: list(steps).index(written) + 1] if written in steps else []
    for step in done:
        steps[step]()
    after = adopt_run_folder(tmp_path)
    drop_incomplete(after)
    for step in steps.keys() - done:
        with pytest.raises(FileNotFoundError):
            steps[step]()
    assert [path.name for path in tmp_path.rglob("*")] == [after.name, *(path.name for path in after.iterdir())]


def test_progress_is_of_this_run_and_counts_what_is_safely_written(tmp_path, capsys):
    folder = adopt_run_folder(tmp_path) / "checkpoint"

    def write(name: str, rows: int):
        pq.write_table(pa.table({"id": ["a"] * rows}), folder / name)

    write("before.parquet", 400)
    progress = predict.Progress(folder.parent, 1000)
    assert capsys.readouterr().out == "going on: 400 of 1,000 posts are done\n"
    assert progress.line() == "400 of 1,000 posts (40.0%), 0.0 a second, …"
    write("after.parquet", 100)
    write("under_way.pending.parquet", 300)
    progress.begun -= 10
    progress.done += progress.count()
    assert progress.line() == "500 of 1,000 posts (50.0%), 10.0 a second, 0 min 50 s left"
    assert progress.count() == 0


def test_the_model_is_looked_at_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="no config.json"):
        main(["--model", str(tmp_path), "--data", "x.jsonl", "--output", str(tmp_path / "out")])
    with pytest.raises(DataError, match="--images: there is no folder"):
        main(["--model", str(tmp_path), "--data", "x.jsonl", "--output", str(tmp_path / "out"), "--images", "/nowhere"])
    assert not (tmp_path / "out").exists()


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    run = subprocess.run([sys.executable, ROOT / "predict.py"], env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().endswith("pip install 'hamlearning[bulk]'")


# On Ray


@pytest.fixture(scope="session")
def on_ray():
    """One Ray for all tests: starting it takes seconds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    os.environ |= {"PYTHONPATH": before} if before else {}


POSTS = [
    {"id": f"post {place}", "tokens": ["Jordan", "scores", str(place)], "image": {"bytes": picture(), "path": None}}
    for place in range(6)
]
CONLL = "IMGID:photo\nJordan\tB-PER\nscores\tO\n\nIMGID:other\nAmazon\tB-LOC\n"


def write_form(form: str, folder: Path) -> tuple[str, list[str]]:
    """PostSource in one of the forms that are read, and their ids."""
    ids = [row["id"] for row in POSTS]
    rows = Dataset.from_list(POSTS)
    if form == "parquet folder":
        (folder / "data").mkdir()
        for part in range(2):
            rows.shard(2, part, contiguous=True).to_parquet(folder / "data" / f"part{part}.parquet")
        return str(folder), ids
    if form == "saved data set":
        DatasetDict({"train": rows.select(range(4)), "test": rows.select(range(4, 6))}).save_to_disk(folder / "saved")
        return str(folder / "saved"), ids
    if form == "JSONL folder":
        for part in range(2):
            lines = [json.dumps({"id": row["id"], "text": "Jordan"}) for row in POSTS[3 * part : 3 * part + 3]]
            (folder / f"part{part}.jsonl").write_text("\n".join(lines))
        return str(folder), ids
    (folder / "train.txt").write_text(CONLL)
    (folder / "regions.jsonl").write_text(
        json.dumps({"id": "photo", "boxes": [[0, 0, 1, 1]], "box_labels": ["dog"], "box_scores": [1.0]})
    )
    return str(folder), ["photo", "other"]


@pytest.mark.parametrize("form", ["parquet folder", "saved data set", "JSONL folder", "CoNLL folder"])
def test_every_form_is_read(form, tmp_path, on_ray):
    name, ids = write_form(form, tmp_path)
    posts = open_data(name, None)
    assert sorted(posts.ids().to_pylist()) == sorted(ids)
    rows = {row["id"]: row for row in posts.read().take_all()}
    assert sorted(rows) == sorted(ids)
    if form == "CoNLL folder":
        assert rows["photo"]["tokens"] == ["Jordan", "scores"] and rows["photo"]["boxes"] == [[0, 0, 1, 1]]
    elif form == "JSONL folder":
        assert json.loads(rows["post 5"]["json"])["text"] == "Jordan"
    else:
        assert rows["post 5"]["image"]["bytes"] == picture() and rows["post 5"]["tokens"][2] == "5"
    again = open_data(name, None).fingerprint
    assert again == posts.fingerprint


def test_splits_and_changed_data(tmp_path):
    name, _ = write_form("saved data set", tmp_path)
    assert len(open_data(name, "test").ids()) == 2
    assert open_data(name, "test").fingerprint != open_data(name, "train").fingerprint
    with pytest.raises(DataError, match="--split: .* has train, test, not dev"):
        open_data(name, "dev")
    (tmp_path / "texts.jsonl").write_text('{"id": "a", "text": "a"}')
    before = open_data(str(tmp_path / "texts.jsonl"), None).fingerprint
    (tmp_path / "texts.jsonl").write_text('{"id": "b", "text": "longer"}')
    assert open_data(str(tmp_path / "texts.jsonl"), None).fingerprint != before
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match="there is no file"):
        open_data(str(tmp_path / "nowhere.jsonl"), None)
    with pytest.raises(DataError, match="has the columns name; a post has id"):
        open_data(str(tmp_path / "wrong.parquet"), None)


def test_a_run_stopped_at_its_end_goes_on_with_what_is_missing(tmp_path, model, on_ray, monkeypatch, capsys):
    rows = [row | {"image": {"bytes": b"broken", "path": None}} if place == 2 else row for place, row in enumerate(POSTS)]
    Dataset.from_list(rows).to_parquet(tmp_path / "posts.parquet")
    output = tmp_path / "out"
    command = ["--model", str(model), "--data", str(tmp_path / "posts.parquet"), "--output", str(output)]
    command += ["--workers", "1", "--block_rows", "2"]

    class Killed(BaseException):
        """Stands for a kill: nothing catches it."""

    def dying(folder):
        if any((folder / "data").iterdir()):
            raise Killed

    monkeypatch.setattr(predict, "drop_incomplete", dying)
    with pytest.raises(Killed):
        main(command)
    monkeypatch.undo()
    assert not (output / "data").exists(), "results are in their place when they are all there"
    (folder,) = output.glob("_run-*")
    whole = sorted((folder / "data").iterdir())
    assert len(whole) == 3
    whole[1].write_bytes(whole[1].read_bytes()[:100])  # as a kill leaves it: half written, its checkpoint pending
    (checkpoint,) = (folder / "checkpoint").glob(f"{whole[1].name.removesuffix('-0.parquet')}.parquet")
    checkpoint.rename(checkpoint.with_suffix(".pending.parquet"))
    kept = whole[0].stat().st_mtime_ns
    main(command)
    assert "going on: 4 of 6 posts are done" in capsys.readouterr().out
    assert (output / "data" / whole[0].name).stat().st_mtime_ns == kept
    assert not (output / "data" / whole[1].name).exists()
    results = {row["id"]: row for row in pq.read_table(output).to_pylist()}
    assert sorted(results) == [row["id"] for row in rows] and pq.read_table(output).num_rows == 6
    assert list(results["post 0"]) == ["id", "entities", "relevance", "error"]
    assert [name for name, row in results.items() if row["error"]] == ["post 2"]
    assert results["post 2"]["error"].startswith("field image: is not an image in a known format: expected one of JPEG, PNG")
    assert sorted(path.name for path in output.iterdir()) == ["_lock", "_predict.json", "data"]
    adopt_run_folder(output)  # as a kill at the very end leaves it
    main(command)
    assert "nothing to do" in capsys.readouterr().out and not list(output.glob("_run-*"))
    (tmp_path / "other.jsonl").write_text('{"id": "a", "text": "Jordan"}')
    with pytest.raises(DataError, match="another data"):
        main([*command, "--data", str(tmp_path / "other.jsonl")])
