"""predict.py: its options, its errors, and whole runs on a Ray that the tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.bulk.images import image_bytes

pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
import predict  # noqa: E402
from bulk.output import adopt_run_folder  # noqa: E402
from mner_data.files import OutputError  # noqa: E402
from mner_data.readers import DataError, read_conll  # noqa: E402
from predict import cli, main  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def test_the_model_is_looked_at_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="without config.json"):
        main(["--model", str(tmp_path), "--data", "x.jsonl", "--output", str(tmp_path / "out")])
    with pytest.raises(DataError, match="--images: there is no folder"):
        main(["--model", str(tmp_path), "--data", "x.jsonl", "--output", str(tmp_path / "out"), "--images", "/nowhere"])
    for share in ("-1", "nan", "inf"):
        with pytest.raises(DataError, match=f"--gpus: expected a share of 0 or more, got {float(share)}"):
            main(["--model", str(tmp_path), "--data", "x.jsonl", "--output", str(tmp_path / "out"), "--gpus", share])
    assert not (tmp_path / "out").exists()


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    run = subprocess.run([sys.executable, ROOT / "predict.py"], env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().endswith("pip install 'ray[data]>=2.60,<2.64'")


def test_an_error_is_one_line(tmp_path, monkeypatch, capsys):
    """As from a console script: no arguments, a line on stderr, a code other than 0."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hamlearning-predict", "--model", str(tmp_path), "--data", "x", "--output", "y"])
    with pytest.raises(SystemExit) as stopped:
        cli()
    assert str(stopped.value.code).startswith("hamlearning-predict: --model: ") and "\n" not in stopped.value.code

    def fail():
        raise ValueError("a fault of the program keeps its traceback")

    monkeypatch.setattr(predict, "main", fail)
    with pytest.raises(ValueError, match="traceback"):
        cli()


def test_interrupted_it_says_how_to_go_on(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "main", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli()
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_wrong_ids_leave_nothing_that_stands_in_the_way(tmp_path, model):
    """Once the data are mended, the same command runs."""
    (tmp_path / "posts.jsonl").write_text('{"id": "a", "text": "a"}\n' * 2)
    command = ["--model", str(model), "--data", str(tmp_path / "posts.jsonl"), "--output", str(tmp_path / "out")]
    with pytest.raises(DataError, match="share an id"):
        main(command)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_lock", "_predict.json"]
    (tmp_path / "posts.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no posts"):
        main(command)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.onnx", "model.onnx.data", "bpe.codes"])
def test_a_run_does_not_go_on_with_a_model_whose_files_were_replaced(tmp_path, monkeypatch, capsys, name):
    """As an export with --int8 into the folder of one without does; a new card changes nothing."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(b"one")
    (tmp_path / "posts.jsonl").write_text('{"id": "a", "text": "a"}\n')
    command = ["--model", str(folder), "--data", str(tmp_path / "posts.jsonl"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(predict, "_ray", nullcontext)
    monkeypatch.setattr(predict, "_run", lambda options, output, *_: (output / "data").mkdir())
    main(command)
    (folder / "README.md").write_text("A card")
    (folder / "training_args.bin").write_bytes(b"of the training")
    main(command)
    assert "nothing to do" in capsys.readouterr().out
    (folder / name).write_bytes(b"two")
    with pytest.raises(OutputError, match=r"another run \(model differ\)"):
        main(command)


# On Ray


POSTS = [
    {"id": f"post {place}", "tokens": ["Jordan", "scores", str(place)], "image": {"bytes": image_bytes(), "path": None}}
    for place in range(6)
]


@pytest.mark.ray
def test_a_run_that_is_stopped_at_its_end_goes_on_with_what_is_missing(tmp_path, model, on_ray, monkeypatch, capsys):
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
    printed = capsys.readouterr().out
    assert "going on: 4 of 6 posts are done" in printed
    assert "6 posts" in printed and "1 of them without an image, 1 with an error" in printed
    assert (output / "data" / whole[0].name).stat().st_mtime_ns == kept
    assert not (output / "data" / whole[1].name).exists()
    results = {row["id"]: row for row in pq.read_table(output).to_pylist()}
    assert sorted(results) == [row["id"] for row in rows] and pq.read_table(output).num_rows == 6
    assert list(results["post 0"]) == ["id", "entities", "relevance", "error"]
    assert [name for name, row in results.items() if row["error"]] == ["post 2"]
    assert "field image" in results["post 2"]["error"] and results["post 2"]["relevance"] is None
    assert results["post 2"]["entities"] is not None, "its text was tagged"
    assert sorted(path.name for path in output.iterdir()) == ["_lock", "_predict.json", "data"]
    adopt_run_folder(output)  # as a kill at the very end leaves it
    main(command)
    assert "nothing to do" in capsys.readouterr().out and not list(output.glob("_run-*"))
    (tmp_path / "other.jsonl").write_text('{"id": "a", "text": "Jordan"}')
    with pytest.raises(OutputError, match="another run .*data"):
        main([*command, "--data", str(tmp_path / "other.jsonl")])


@pytest.mark.ray
def test_a_folder_as_people_have_it(tmp_path, model, on_ray, capsys):
    """Files with other columns, a card, images and regions beside; then the same command after a change of each."""
    data, output = tmp_path / "posts", tmp_path / "out"
    (data / "images").mkdir(parents=True)
    (data / "README.md").write_text("The data set's card")
    (data / "images" / "2.png").write_bytes(image_bytes())
    pq.write_table(pa.table({"id": [1, 2], "tokens": [["Jordan", "scores"]] * 2}), data / "test-00000-of-00002.parquet")
    rows = {"id": [3], "text": ["Jordan scores"], "image": [image_bytes("red")]}
    pq.write_table(pa.table(rows), data / "test-00001-of-00002.parquet")
    pq.write_table(pa.table({"id": [4], "text": ["Jordan"]}), data / "train-00000-of-00001.parquet")
    command = ["--model", str(model), "--data", str(data), "--output", str(output), "--split", "test", "--workers", "1"]
    main(command)
    results = {row["id"]: row for row in pq.read_table(output).to_pylist()}
    assert {name: (row["error"], row["relevance"] is None) for name, row in results.items()} == {
        1: (None, True), 2: (None, False), 3: (None, False),
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "test-00001-of-00002.parquet" in printed and f"images: {data / 'images'} (1 files)" in printed
    assert "not read: train-00000-of-00001.parquet, README.md" in printed
    assert "3 posts" in printed and "1 of them without an image, 0 with an error" in printed
    main(command)
    assert "nothing to do" in capsys.readouterr().out
    (data / "images" / "1.png").write_bytes(image_bytes())
    with pytest.raises(OutputError, match=r"another run \(images differ\)"):
        main(command)
    (data / "images" / "1.png").unlink()
    (data / "regions.jsonl").write_text(json.dumps({"id": "2", "boxes": [], "box_labels": [], "box_scores": []}))
    with pytest.raises(OutputError, match="another run .*data"):
        main(command)


@pytest.mark.ray
def test_results_as_one_file(on_ray, model, ner, tmp_path):
    """As CoNLL they are read by the project's own reader, as JSONL they are the rows."""
    lines = [{"id": "a b", "text": "Jordan scores again in Amazon park"}, {"id": "words", "tokens": ["New", "York City", ""]}]
    lines += [{"id": "none", "text": ""}, {"id": "broken", "text": 3}]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["--model", str(model), "--data", str(tmp_path / "posts.jsonl"), "--workers", "1", "--gpus", "0"]
    conll = main([*command, "--output", str(tmp_path / "conll"), "--output_format", "conll"]) / "tagged.conll"
    posts = {post["id"]: post for post in read_conll(conll)}
    assert posts["words"]["tokens"] == ["New", "York\ufffdCity", "\ufffd"] and "broken" not in posts
    expected = ner.to_bio(ner(lines[0]["text"]), 6)
    assert posts["a b"]["labels"] == expected and set(expected) != {"O"}

    jsonl = main([*command, "--output", str(tmp_path / "jsonl"), "--output_format", "jsonl"]) / "tagged.jsonl"
    rows = {row["id"]: row for row in map(json.loads, jsonl.read_text(encoding="utf-8").splitlines())}
    assert set(rows) == {"a b", "words", "none", "broken"} and rows["broken"]["error"]
    assert [entity["word"] for entity in rows["a b"]["entities"]] == [entity["word"] for entity in ner(lines[0]["text"])]
    # What was lost after the run is written again.
    jsonl.unlink()
    assert main([*command, "--output", str(tmp_path / "jsonl"), "--output_format", "jsonl"]) and jsonl.is_file()
