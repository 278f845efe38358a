from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from PIL import Image
from transformers import AutoProcessor

from hub_scripts import prepare_dataset
from hub_scripts.prepare_dataset import count_orphans, main
from mner_data.files import OutputError, reserve_output_dir
from mner_data.loading import load_splits
from mner_data.readers import DataError, read_conll
from mner_data.synthetic_images import pure_noise
from training.collator import MnerCollator

REAL = os.environ.get("HAMLEARNING_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="HAMLEARNING_DATA names no folder with the real posts")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def raw(tmp_path):
    """Twelve posts with images in two splits; of train one image is missing and one broken; one orphan tag."""
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for split, count in (("train", 9), ("valid", 3)):
        lines = []
        for place in range(count):
            tag = "I-LOC" if place == 2 else "B-LOC"
            lines += [f"IMGID:{split}{place}", "Jordan\tB-PER", "in\tO", f"York\t{tag}", ""]
            if place != 1:
                pure_noise(Image.new("RGB", (40 + place, 30)), seed=100 * count + place).save(
                    tmp_path / f"raw/images/{split}{place}.jpg"
                )
        (tmp_path / "raw" / f"{split}.txt").write_text("\n".join(lines))
    (tmp_path / "raw/images/train3.jpg").write_text("<html>")
    return tmp_path / "raw"


def arguments(raw: Path, output: Path, *more: str) -> list[str]:
    return ["--text", str(raw), "--images", str(raw / "images"), "--output", str(output), *more]


def hashes(folder: Path) -> dict[str, str]:
    """Of every file; the card without the data set's own name, which is the folder's."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.glob("data/*.parquet"))}
    contents["README.md"] = (folder / "README.md").read_bytes().replace(f"# {folder.name}\n".encode(), b"")
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_a_prepared_data_set_loads_with_its_images_and_regions(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_dataset, "ROWS_PER_SHARD", 4)
    output = main(arguments(raw, tmp_path / "out", "--regions", "{name: grid, rows: 1, columns: 2}"))
    data = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 9, "validation": 3}
    posts = read_conll(raw / "train.txt")
    names = data["train"].features["ner_tags"].feature.names
    for row, post in zip(data["train"], posts, strict=True):
        assert (row["id"], row["tokens"]) == (post["id"], post["tokens"])
        assert [names[label] for label in row["ner_tags"]] == post["labels"], "labels stay as the file has them"
        if row["id"] in ("train1", "train3"):
            assert row["image"] is None and row["boxes"] is None, "nobody looked"
        else:
            assert row["boxes"] == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    stored = data["train"].cast_column("image", prepare_dataset.row_features(names, True)["image"])[0]["image"]["bytes"]
    assert stored == (raw / "images/train0.jpg").read_bytes()


def test_a_prepared_data_set_is_read_like_the_files_it_was_made_from(raw, tmp_path):
    """The images beside the label files are found, and labels in another scheme are converted."""
    for path in raw.glob("*.txt"):
        path.write_text(path.read_text().replace("B-PER", "S-PER").replace("I-LOC", "S-LOC").replace("B-LOC", "S-LOC"))
    output = main(["--text", str(raw), "--output", str(tmp_path / "out")])
    prepared, expected = load_splits(str(output))[0], load_splits(str(raw))[0]
    for split, rows in expected.items():
        assert rows.features["ner_tags"] == prepared[split].features["ner_tags"]
        for row, prepared_row in zip(rows, prepared[split], strict=True):
            assert {name: row[name] for name in ("id", "tokens", "ner_tags")} == {
                name: prepared_row[name] for name in ("id", "tokens", "ner_tags")
            }
            assert (row["image"] is None) == (prepared_row["image"] is None)
        assert sum(row["image"] is not None for row in prepared[split]) == {"train": 7, "validation": 2}[split]
    other = main(["--text", str(raw), "--output", str(tmp_path / "plain"), "--label_scheme", "plain"])
    assert "B-S-PER" in load_splits(str(other))[0]["train"].features["ner_tags"].feature.names


@pytest.mark.parametrize("given", ["nothing", "beside", "named"])
def test_a_prepared_post_has_the_regions_that_its_label_file_gives_it(raw, tmp_path, saved_model, given, caplog):
    """Where nobody looked, the model's own extractor is asked; where nothing was found, it is not."""
    rows = [
        {"id": "train0", "boxes": [[0, 0, 1, 0.5]], "box_labels": ["person"], "box_scores": [0.5]},
        {"id": "train2", "boxes": [], "box_labels": [], "box_scores": []},
        {"id": "nobody", "boxes": [], "box_labels": [], "box_scores": []},
    ]
    path = raw / ("regions.jsonl" if given == "beside" else "others.jsonl")
    if given != "nothing":
        path.write_text("\n".join(map(json.dumps, rows)))
    named = str(path) if given == "named" else None
    output = main(arguments(raw, tmp_path / "out", *(["--regions", named] if named else [])))
    warned = f"{path}: the regions of 1 ids are not used, no post has them: nobody" in caplog.text
    prepared, expected = load_splits(str(output))[0]["train"], load_splits(str(raw), regions_file=named)[0]["train"]
    boxes = dict(zip(prepared["id"], prepared["boxes"], strict=True))
    known = {"train0": [[0, 0, 1, 0.5]], "train2": []} if given != "nothing" else {}
    assert warned == bool(known) and boxes == dict.fromkeys(boxes) | known
    collate = MnerCollator(AutoProcessor.from_pretrained(saved_model, trust_remote_code=True))
    batches = [collate(list(split)) for split in (prepared, expected)]
    for name in ("region_boxes", "region_mask", "region_label_ids"):
        assert batches[0][name].equal(batches[1][name]), name
    assert batches[0]["region_mask"].sum(1).tolist() == ([1, 0, 0] if known else [4, 0, 4]) + [0, 4, 4, 4, 4, 4]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "null where nobody looked" in card
    assert (f"From the file `{path.name}`." if known else "None were prepared: they are null in every row.") in card


def test_a_folder_of_an_earlier_form_is_not_gone_on_with(raw, tmp_path):
    """Its shards have empty lists where nobody looked."""
    output = main(arguments(raw, tmp_path / "out"))
    settings = json.loads((output / "_prepare.json").read_text())
    del settings["form_of_rows"]
    (output / "_prepare.json").write_text(json.dumps(settings))
    with pytest.raises(OutputError, match=r"holds another run \(form_of_rows differ\)"):
        main(arguments(raw, output))


@pytest.mark.parametrize("regions, message", [
    ("nope.jsonl", "--regions: there is no file nope.jsonl"),
    ("nope.JSONL", "--regions: there is no file nope.JSONL"),
    ("nosuch", "got 'nosuch': region_config: unknown extractor"),
    ("{name: grid", "got '{name: grid'"),
    ("{name: grid, rows: 0}", "as rows, got 0"),
    ("precomputed", "expected a JSONL file for regions that come with the posts"),
])  # fmt: skip
def test_wrong_regions_are_one_line_and_leave_nothing(raw, tmp_path, monkeypatch, regions, message):
    monkeypatch.setattr("sys.argv", ["prepare_dataset", *arguments(raw, tmp_path / "out", "--regions", regions)])
    with pytest.raises(SystemExit) as error:
        prepare_dataset.cli()
    assert error.value.code.startswith("prepare_dataset: ") and message in error.value.code and "\n" not in error.value.code
    assert not (tmp_path / "out").exists()


def test_a_large_split_has_several_shards(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_dataset, "ROWS_PER_SHARD", 4)
    output = main(arguments(raw, tmp_path / "out"))
    assert len(list(output.glob("data/*.parquet"))) == 4
    assert load_splits(str(output))[0]["train"]["id"][:] == [f"train{place}" for place in range(9)]


def test_two_runs_cannot_write_to_one_folder(raw, tmp_path):
    with (
        reserve_output_dir(tmp_path / "out", {}, settings_file="_prepare.json"),
        pytest.raises(OutputError, match="another process"),
    ):
        main(arguments(raw, tmp_path / "out"))


@pytest.mark.parametrize(
    "extractor", ["grid", "{name: grid, rows: 1}", "{name: object-detection, model: facebook/detr-resnet-50}"]
)
def test_the_card_names_the_extractor_as_the_command_does(extractor):
    assert prepare_dataset._regions_note(extractor, False) == f"Extractor: `{extractor}`."
    assert prepare_dataset._regions_note("a/b/regions.jsonl", False) == "From the file `regions.jsonl`."


def test_the_card_counts(raw, tmp_path):
    output = main(arguments(raw, tmp_path / "out"))
    card = DatasetCard.load(output / "README.md")
    assert card.data.tags and [file["split"] for file in card.data.configs[0]["data_files"]] == ["train", "validation"]
    assert "| train | 9 | 27 | 18 | 9 | 9 | 1 |" in card.text
    assert hashlib.sha256((raw / "valid.txt").read_bytes()).hexdigest() in card.text
    assert re.search(r"train: 2: train1 \(no file\), train3 \(is not an image", card.text)


def test_twice_gives_the_same_bytes(raw, tmp_path):
    first, second = (main(arguments(raw, tmp_path / name, "--regions", "grid")) for name in ("out1", "out2"))
    assert hashes(first).values() and list(hashes(first).values()) == list(hashes(second).values())


def test_killed_at_any_point_it_goes_on(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_dataset, "ROWS_PER_SHARD", 2)
    expected = hashes(main(arguments(raw, tmp_path / "whole")))
    calls = {"count": 0, "stop_at": 0}
    write = prepare_dataset.Dataset.to_parquet

    class Killed(BaseException):
        """Stands for a kill: nothing catches it."""

    def dying(self, path, *args, **kwargs):
        calls["count"] += 1
        result = write(self, path, *args, **kwargs)
        if calls["count"] == calls["stop_at"]:
            Path(path).write_bytes(Path(path).read_bytes()[:50])  # half a shard, under its unfinished name
            raise Killed
        return result

    monkeypatch.setattr(prepare_dataset.Dataset, "to_parquet", dying)
    for stop_at in range(1, 8):
        output = tmp_path / f"killed{stop_at}"
        output.mkdir()
        (output / "_prepare.json.unfinished").write_text("{")  # killed as it took the folder
        calls.update(count=0, stop_at=stop_at)
        with pytest.raises(Killed):
            main(arguments(raw, output))
        calls.update(count=0, stop_at=0)
        assert list(hashes(main(arguments(raw, output))).values()) == list(expected.values())
        assert calls["count"] == 7 - (stop_at - 1), "finished shards are not made again"


@pytest.mark.slow
def test_a_real_kill(raw, tmp_path):
    command = [sys.executable, "-m", "hub_scripts.prepare_dataset", *arguments(raw, tmp_path / "out")]
    for delay in (2, 4, 6):
        process = subprocess.Popen(command, cwd=ROOT)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    expected = main(arguments(raw, tmp_path / "whole"))
    assert list(hashes(tmp_path / "out").values()) == list(hashes(expected).values())


def test_jsonl_and_given_regions(raw, tmp_path):
    posts = [
        {"id": "a", "tokens": ["Jordan"], "labels": ["B-PER"], "image": "train0"},
        {"id": "b", "tokens": [], "labels": []},
    ]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)))
    regions = {"id": "a", "boxes": [[0, 0, 1, 0.5]], "box_labels": ["person"], "box_scores": [0.5]}
    (tmp_path / "regions.jsonl").write_text(json.dumps(regions))
    output = main(["--text", str(tmp_path / "posts.jsonl"), "--images", str(raw / "images"), "--output", str(tmp_path / "out"),
                   "--regions", str(tmp_path / "regions.jsonl")])  # fmt: skip
    rows = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows[0]["box_labels"] == ["person"] and rows[0]["image"].size == (40, 30) and rows[1]["image"] is None


def test_other_regions_under_the_same_name_are_another_data_set(raw, tmp_path):
    path = tmp_path / "regions.jsonl"
    rows = [{"id": "train0", "boxes": [[0, 0, 1, share]], "box_labels": [""], "box_scores": [1.0]} for share in (0.5, 1)]
    path.write_text(json.dumps(rows[0]))
    main(arguments(raw, tmp_path / "out", "--regions", str(path)))
    path.write_text(json.dumps(rows[1]))
    with pytest.raises(OutputError, match=r"holds another run .*regions.* --overwrite"):
        main(arguments(raw, tmp_path / "out", "--regions", str(path)))


def test_wrong_calls_are_named(raw, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        main(["--text", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")])
    with pytest.raises(DataError, match="there is no folder"):
        main(["--text", str(raw), "--images", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")])
    main(arguments(raw, tmp_path / "out"))
    with pytest.raises(OutputError, match=r"holds another run .*regions.* --overwrite"):
        main(arguments(raw, tmp_path / "out", "--regions", "grid"))
    output = main(arguments(raw, tmp_path / "out", "--regions", "grid", "--overwrite"))
    assert load_splits(str(output))[0]["train"][0]["boxes"], "the shards without regions are replaced"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        main(arguments(raw, tmp_path / "full"))
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "tokens": ["x"], "labels": []}')
    with pytest.raises(DataError, match="line 1: expected as many labels as tokens, got 1 tokens but 0 labels"):
        main(["--text", str(tmp_path / "bad.jsonl"), "--output", str(tmp_path / "out2")])


def test_orphans():
    assert count_orphans([["I-A", "I-A", "B-B", "I-A", "O", "I-B"], ["B-A", "I-A"]]) == 3


COUNTS = {
    "twitter2015": ["train | 4,000 | 64,439 | 6,352", "validation | 1,000 | 16,178 | 1,594", "186 |", "53 |"],
    "twitter2017": ["train | 3,373 | 53,007 | 6,049", "validation | 723 | 11,309 | 1,324"],
    "paintings": ["train | 950 | 266,192 | 26,080", "validation | 119 | 32,304 | 3,204", "142 |", "train: 4:"],
    "tweets20": ["train | 20 | 331 |"],
}


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_the_real_sets_have_their_known_counts(name, tmp_path):
    source = Path(REAL, name)
    text = source / "posts.txt" if name == "tweets20" else source
    images = ["--images", str(source / "images")] if (source / "images").is_dir() else []
    regions = ["--regions", str(source / "regions.jsonl")] if name == "tweets20" else []
    folders = [main(["--text", str(text), "--output", str(tmp_path / out), *images, *regions]) for out in ("once", "again")]
    card = (folders[0] / "README.md").read_text(encoding="utf-8")
    assert all(count in card for count in COUNTS[name])
    assert len({tuple(hashes(folder).values()) for folder in folders}) == 1
