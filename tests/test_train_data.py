"""train.py and predict.py on the posts that people have: where images are found, and what stops a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import predict
import train
from mner_data.loading import check_images, load_splits
from mner_data.readers import DataError
from tests.processors.test_processing import make_processor
from tests.test_train import run
from training.arguments import ModelArguments, parse_arguments
from training.build import load_trained

ROOT = Path(__file__).resolve().parents[1]
CONLL = "IMGID:a\nJordan\tB-PER\nwins\tO\n\nIMGID:b\nIn\tO\nYork\tB-LOC\n"
WITHOUT_EVALUATION = ("--do_eval", "false", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false")


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def with_images(*images) -> str:
    rows = ({"id": str(place), "tokens": ["York"], "labels": ["B-LOC"], "image": image} for place, image in enumerate(images))
    return "\n".join(map(json.dumps, rows))


WITHOUT_IMAGES = {
    "no folder": ("train.txt", CONLL, None),
    "all missing": ("train.txt", CONLL, "images/x.jpg"),
    "another folder": ("train.txt", CONLL, "media/a.jpg"),
    "URLs": ("train.jsonl", with_images("https://example.org/a.jpg", "https://example.org/b.jpg"), "images/x.jpg"),
    "empty": ("train.jsonl", with_images("", float("nan"), None), None),
    "wrong names": ("train.jsonl", with_images("img/a.jpg"), None),
}


@pytest.mark.parametrize("kind", WITHOUT_IMAGES)
def test_training_stops_when_no_image_is_found(kind, tmp_path):
    name, content, image = WITHOUT_IMAGES[kind]
    write(tmp_path / "data" / name, content)
    if image:
        (tmp_path / "data" / image).parent.mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / "data" / image)
    with pytest.raises(DataError, match=r"train: none of the \d posts has an image that can be found.*--use_images false"):
        run(tmp_path / "out", "--data_path", str(tmp_path / "data"), *WITHOUT_EVALUATION)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    with pytest.raises(DataError, match="--do_eval needs a validation split"):
        run(tmp_path / "out", "--data_path", str(tmp_path / "data"), "--use_images", "false")


def test_training_stops_for_a_split_without_images(tmp_path):
    write(tmp_path / "train.jsonl", with_images("a.jpg"))
    write(tmp_path / "dev.jsonl", with_images("b.jpg"))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(DataError, match="validation: none of the 1 posts"):
        run(tmp_path / "out", "--data_path", str(tmp_path))
    data, _ = load_splits(str(tmp_path))
    for split in data:
        data[split].save_to_disk(tmp_path / split)
    check_images(load_splits(str(tmp_path / "train"))[0])
    with pytest.raises(DataError, match="train: none of the 1 posts"):
        run(tmp_path / "out", "--data_path", str(tmp_path / "validation"), *WITHOUT_EVALUATION)


def test_the_form_of_the_data_is_said_on_the_command_line(tmp_path):
    path = write(tmp_path / "train.txt", "B-LOC York x\n")
    arguments = ["--data_path", str(path), "--use_images", "false", "--columns", "label,word,_"]
    data, _ = train._load_data(parse_arguments(arguments)[1])
    assert data["train"][0]["tokens"] == ["York"]
    path = write(tmp_path / "posts.txt", json.dumps({"w": ["York"], "gold": ["B-LOC"]}))
    arguments = ["--data_path", str(path), "--use_images", "false", "--format", "jsonl"]
    data, _ = train._load_data(parse_arguments([*arguments, "--column_names", "{w: tokens, gold: ner_tags}"])[1])
    assert data["train"][0]["tokens"] == ["York"] and data["train"][0]["id"] == "posts-1"


def test_options_that_synthetic_posts_do_not_use_are_named(caplog):
    arguments = ["--synthetic_posts", "[2, 2, 2]", "--format", "csv", "--image_dir", "x", "--column_names", "{w: tokens}"]
    train._load_data(parse_arguments(arguments)[1])
    assert "--image_dir, --format, --column_names: not used, --data_path synthetic makes posts of its own" in caplog.text
    caplog.clear()
    train._load_data(parse_arguments(["--synthetic_posts", "[2, 2, 2]"])[1])
    assert "not used" not in caplog.text


def test_options_that_own_posts_do_not_use_are_named(tmp_path, caplog):
    path = write(tmp_path / "train.txt", CONLL)
    train._load_data(parse_arguments(["--synthetic_posts", "[2, 2, 2]", "--data_path", str(path)])[1])
    assert f"--synthetic_posts: not used, the posts are those of --data_path {path}" in caplog.text


def test_training_posts_without_regions_are_counted(saved_model, tmp_path, caplog):
    """A model that finds no regions itself was trained without any, and nobody said so."""
    model, _ = load_trained(ModelArguments(model=str(saved_model)))
    precomputed = make_processor(region_config="precomputed")
    rows = [
        {"id": "a", "image": "a.png", "boxes": [[0, 0, 1, 1]]}, {"id": "b", "image": "b.png"}, {"id": "c"},
        {"id": "d", "image": "d.png", "boxes": []},
    ]  # fmt: skip
    for kept, count in ((rows, 1), ([rows[0]], 0), ([rows[1], rows[2]], 1)):
        path = write(tmp_path / "train.jsonl", "\n".join(json.dumps(row | {"tokens": ["a"], "ner_tags": ["O"]}) for row in kept))
        for name in ("a", "b", "d"):
            Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        data = load_splits(str(path))[0]["train"]
        caplog.clear()
        train._warn_of_missing_regions(model, precomputed, data)
        assert (f"{count} of {len(kept)} training posts have an image but bring no boxes" in caplog.text) == bool(count)
        caplog.clear()
        train._warn_of_missing_regions(model, make_processor(region_config="anchors"), data)
        assert not caplog.text
        detector = make_processor(region_config=["precomputed", {"name": "object-detection", "model": "user/repo"}])
        train._warn_of_missing_regions(model, detector, data)
        assert (f"a detector looks at {count} images in every epoch" in caplog.text) == bool(count)


def test_texts_alone_are_scored_without_a_word_of_options_that_nobody_gave(saved_model, tmp_path, caplog):
    for split in ("train", "valid"):
        write(tmp_path / "data" / f"{split}.txt", CONLL)
    options = ["--do_eval", "--use_images", "false", "--use_cpu", "--output_dir", str(tmp_path / "out")]
    train.main(["--model", str(saved_model), "--data_path", str(tmp_path / "data"), *options])
    assert "model_config" not in caplog.text


def test_the_files_that_are_read_are_named_in_the_log(tmp_path):
    """The levels are those of the process, so it has one of its own."""
    for split in ("train", "valid"):
        write(tmp_path / "data" / f"{split}.jsonl", with_images("b.jpg"))
    (tmp_path / "data" / "images").mkdir()
    command = [sys.executable, "train.py", "--do_train", "--data_path", tmp_path / "data", "--output_dir", tmp_path / "out"]
    done = subprocess.run([*map(str, command), "--use_cpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "train: none of the 1 posts has an image" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("INFO mner_data") == 2, done.stderr
    assert "train.jsonl (jsonl)" in done.stderr and f"images from {tmp_path / 'data' / 'images'}" in done.stderr


@pytest.mark.parametrize("option", ["batch_size", "workers", "block_rows"])
def test_bulk_tagging_refuses_numbers_below_1(option):
    with pytest.raises(DataError, match=f"--{option}: expected a whole number above 0, got 0"):
        predict._options(["--model", "m", "--data", "d", "--output", "o", f"--{option}", "0"])


def test_a_model_is_trained_on_an_export_of_doccano_with_images(tmp_path):
    rows = [
        {"text": f"{name} wins", "label": [[0, len(name), "PER"]], "image": f"images/{name}.jpg"} for name in ("Carl", "Rosa")
    ]
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.jsonl", "\n".join(map(json.dumps, rows)))
    (tmp_path / "images").mkdir()
    for name in ("CARL.JPG", "Rosa.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / name)
    results = run(tmp_path / "out", "--data_path", str(tmp_path), "--max_steps", "1", *WITHOUT_EVALUATION[2:])
    assert results["eval_gold_total"] == 2 and results["images_read"] > 0 and results["images_unreadable"] == 0
