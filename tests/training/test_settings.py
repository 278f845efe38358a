"""What makes a run another one: every argument that changes its result, its images and its regions."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mner_data.loading import dataset_labels, load_splits
from training.arguments import DataArguments, MnerTrainingArguments, ModelArguments
from training.settings import run_settings


@pytest.fixture
def posts(tmp_path):
    folder = tmp_path / "posts"
    (folder / "images").mkdir(parents=True)
    (folder / "train.txt").write_text("IMGID:a\nJordan\tB-PER\n\nIMGID:b\nx\tO\n")
    for place, name in enumerate("ab"):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(folder / "images" / f"{name}.png")
    write_regions(folder, 0.5)
    return folder


def write_regions(folder, corner: float):
    region = {"boxes": [[0.0, 0.0, corner, 1.0]], "box_labels": ["dog"], "box_scores": [0.5]}
    (folder / "regions.jsonl").write_text("\n".join(json.dumps({"id": name} | region) for name in "ab"))


def settings(folder, model=None, data=None, **arguments) -> dict:
    training = MnerTrainingArguments(output_dir=str(folder.parent / "out"), use_cpu=True, **arguments)
    splits, hashes = load_splits(str(folder))
    model, data = ModelArguments(**model or {}), DataArguments(data_path=str(folder), **data or {})
    return run_settings(model, data, training, hashes, splits, dataset_labels(splits["train"]))


def differing(one: dict, other: dict) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


@pytest.mark.parametrize("name, value", [
    ("seed", 7), ("data_seed", 3), ("learning_rate", 1e-3), ("head_learning_rate", 1e-3), ("vision_learning_rate", 1e-3),
    ("per_device_train_batch_size", 3), ("gradient_accumulation_steps", 2), ("num_train_epochs", 9), ("max_steps", 5),
    ("weight_decay", 0.5), ("lr_scheduler_type", "cosine"), ("warmup_steps", 0.2), ("max_grad_norm", 5.0), ("optim", "sgd"),
    ("train_sampling_strategy", "random"), ("calibrate", True), ("bf16", True), ("dataloader_drop_last", True),
    ("save_strategy", "best"),
])  # fmt: skip
def test_what_changes_the_weights_is_part_of_a_run(posts, name, value):
    assert name in differing(settings(posts), settings(posts, **{name: value}))


@pytest.mark.parametrize("name, value", [
    ("logging_steps", 3), ("save_total_limit", 2), ("run_name", "x"), ("hub_model_id", "a/b"), ("hub_token", "secret"),
    ("per_device_eval_batch_size", 3), ("do_predict", True), ("disable_tqdm", True), ("dataloader_num_workers", 2),
])  # fmt: skip
def test_what_changes_no_weight_is_not(posts, name, value):
    assert not differing(settings(posts), settings(posts, **{name: value}))


def test_images_and_regions_count_by_their_content(posts, tmp_path):
    before = settings(posts)
    copy = posts.rename(tmp_path / "elsewhere")
    assert not differing(before, settings(copy))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(copy / "images" / "b.png")
    assert differing(before, settings(copy)) == {"images"}
    (copy / "images" / "b.png").unlink()
    assert differing(before, settings(copy)) == {"images"}
    Image.new("RGB", (8, 8), (1, 0, 0)).save(copy / "images" / "b.png")
    write_regions(copy, 0.75)
    assert differing(before, settings(copy)) == {"regions"}
    (copy / "train.txt").write_text("IMGID:a\nJordan\tO\n\nIMGID:b\nx\tB-PER\n")
    assert "hashes" in differing(before, settings(copy))


def test_settings_are_json_and_hold_no_token(posts):
    text = json.dumps(settings(posts, hub_token="secret"))
    assert "secret" not in text
