"""train.py as it is run, on synthetic posts and tiny stand-ins for the encoders that the configs name."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, pipeline

import train
from mner_data.files import OutputError
from mner_data.loading import dataset_labels, row_to_post
from mner_data.readers import read_conll
from mner_data.synthetic_images import pure_noise
from mner_data.synthetic_posts import synthetic_dataset
from modeling_hamlearning import HamLearningForTokenClassification
from tests.tiny import tiny_tokenizer
from training.collator import ImagesLostError
from training.errors import gold_entities
from training.metric import pipeline_f1
from training.trainer import NotFiniteError

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--text_config", "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}",
    "--model_config", "{fusion_size: 32, num_iterations: 2, fusion_attention_heads: 2}",
    "--image_size", "64", "--synthetic_posts", "[32, 8, 8]", "--per_device_train_batch_size", "4", "--seed", "3",
    "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "true",
]  # fmt: skip


def run(folder: Path, *arguments: str, config: str = "demo") -> dict:
    return train.main([f"{ROOT}/configs/{config}.yaml", *SMALL, "--output_dir", str(folder), *arguments])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    rows = tmp_path_factory.mktemp("rows") / "rows.json"
    rows.write_text(json.dumps({"use_spatial off": {"f1": 0.25, "f1_strict": 0.125}}))
    results = run(folder, "--do_predict", "--card_reference_scores", str(rows), "--max_steps", "6",
                  "--eval_strategy", "steps", "--eval_steps", "3",
                  "--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "5")  # fmt: skip
    return folder, results


def test_a_run_leaves_everything(trained):
    folder, results = trained
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "README.md"}
    assert names >= {
        "curves.png",
        "trainer_state.json",
        "all_results.json",
        "predictions.txt",
        "modeling_hamlearning.py",
    }
    assert names >= {f"{split}{name}" for split in ("", "test_") for name in ("errors.html", "errors.jsonl", "confusion.png")}
    assert {"eval_f1", "eval_f1_strict", "eval_f1_LOC", "test_f1", "train_loss"} <= set(results)
    assert json.loads((folder / "all_results.json").read_text())["test_gold_total"] > 0
    assert Image.open(folder / "curves.png").width > 500
    assert not [name for name in names if name.endswith((".bin", ".pkl"))]


def test_the_predictions_file_has_every_word(trained):
    folder, _ = trained
    test = synthetic_dataset(8, 2)
    posts = (folder / "predictions.txt").read_text(encoding="utf-8").split("IMGID:")[1:]
    assert len(posts) == 8
    for row, post in zip(test, posts, strict=True):
        name, *lines = post.rstrip("\n").split("\n")
        assert name == row["id"] and [line.split("\t")[0] for line in lines] == row["tokens"]
        assert all(len(line.split("\t")) == 3 for line in lines)


@pytest.mark.parametrize("split, prefix", [("eval", ""), ("test", "test_")])
def test_the_errors_are_those_that_f1_counts(trained, split, prefix):
    folder, results = trained
    errors = [json.loads(line) for line in (folder / f"{prefix}errors.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [error["kind"] for error in errors]
    assert {kind: kinds.count(kind) for kind in kinds} == results[f"{split}_errors"] and errors
    right = results[f"{split}_gold_total"] - sum(error["gold"] is not None for error in errors)
    num_predicted = right + sum(error["predicted"] is not None for error in errors)
    assert 2 * right / (results[f"{split}_gold_total"] + num_predicted) == pytest.approx(results[f"{split}_f1"])
    confidences = [error["confidence"] for error in errors]
    assert confidences == sorted(confidences, reverse=True) and all(0 <= confidence <= 1 for confidence in confidences)
    table = results[f"{split}_confusion"]
    assert sum(sum(counts.values()) for name, counts in table.items() if name != "invented") == results[f"{split}_gold_total"]
    assert sum(counts["missed"] for counts in table.values()) == kinds.count("missed")
    by_length = results[f"{split}_by_length"]
    assert sum(scores["gold_total"] for scores in by_length.values()) == results[f"{split}_gold_total"]
    page = (folder / f"{prefix}errors.html").read_text(encoding="utf-8")
    assert page.count("<article ") == len(errors) and "<script" not in page and 'src="http' not in page


def test_the_card_is_whole(trained):
    folder, results = trained
    card = ModelCard.load(folder / "README.md")
    card.data.to_yaml()
    assert card.data.library_name == "transformers" and "mner" in card.data.tags
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    names = {"f1": "F1 (default seqeval)", "f1_strict": "F1 (strict IOB2)"}
    other = "the same model without the images"
    assert values == {
        **{f"{name}, test split": round(results[f"test_{key}"], 4) for key, name in names.items()},
        **{name: round(results[f"eval_{key}"], 4) for key, name in names.items()},
        **{f"{name}, {other}": round(results[f"text_only_{key}"], 4) for key, name in names.items()},
        "F1 (default seqeval), use_spatial off": 0.25,
        "F1 (strict IOB2), use_spatial off": 0.125,
    }
    assert f"| *{other}* | {results['text_only_f1']:.4f} |" in card.text and "| *use_spatial off* | 0.2500 |" in card.text
    headings = ["Use", "Scores", "Training", "Limits and risks"]
    assert [line[3:] for line in card.text.split("\n") if line.startswith("## ")] == headings
    assert "On the test split of synthetic" in card.text and f"| all | {results['test_f1']:.4f} |" in card.text
    assert "| gold ↓ predicted → | LOC | MISC | ORG | PER | missed |" in card.text and "(confusion.png)" in card.text
    assert "checkpoint of the last epoch" in card.text and (folder / "curves.png").is_file() and "(curves.png)" in card.text
    assert "seed: 3" in card.text and "fusion_size: 32" in card.text
    assert "$" not in card.text and 'pipeline("mner"' in card.text and "LOC, MISC, ORG, PER" in card.text


@pytest.mark.parametrize("where", ["", "checkpoint-3"])
def test_the_folder_and_its_checkpoints_load_as_a_pipeline(trained, where):
    ner = pipeline("mner", model=str(trained[0] / where), trust_remote_code=True)
    assert ner("everybody talks about Jordan tonight") is not None


def test_resumed_training_ends_where_uninterrupted_training_ends(trained, tmp_path):
    folder, _ = trained
    steps = ("--max_steps", "6", "--eval_strategy", "no", "--save_strategy", "no")
    results = run(tmp_path, *steps, "--resume_from_checkpoint", str(folder / "checkpoint-3"))
    assert results["train_runtime"] >= 0
    expected, actual = weights(folder), weights(tmp_path)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    halfway = weights(folder / "checkpoint-3")
    assert not all(torch.equal(halfway[name], expected[name]) for name in expected)


def test_a_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    steps = ("--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no")
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        run(tmp_path / name, *steps, "--seed", seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, tiny_text_config):
    """A tiny pretrained text encoder in a folder, and posts in CoNLL form with images."""
    folder = tmp_path_factory.mktemp("stand_ins")
    tokenizer = tiny_tokenizer("bert")
    AutoModel.from_config(tiny_text_config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    (folder / "data" / "images").mkdir(parents=True)
    for split, name in enumerate(("train", "valid")):
        lines = []
        for place in range(8):
            lines += [f"IMGID:{name}{place}", "Jordan\tB-PER", "in\tO", "New\tB-LOC", "York\tI-LOC", ""]
            if place:
                pure_noise(Image.new("RGB", (50, 40)), seed=8 * split + place).save(
                    folder / "data" / "images" / f"{name}{place}.jpg"
                )
        (folder / "data" / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("config", ["paper", "modern", "demo"])
def test_two_steps_of_every_config(config, stand_ins, tmp_path, caplog):
    arguments = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--bf16", "false"]
    arguments += ["--vision", "resnet10t", "--vision_pretrained", "false"]
    if config != "demo":
        arguments += ["--text", str(stand_ins / "text"), "--data_path", str(stand_ins / "data")]
        arguments += ["--region_config", "{name: grid}"]
    results = run(tmp_path, *arguments, config=config)
    assert results["train_loss"] > 0 and results["eval_gold_total"] > 0
    assert (tmp_path / "model.safetensors").is_file()
    if config != "demo":
        assert "1 of 8 posts have no readable image" in caplog.text and "train0 (no file)" in caplog.text


@pytest.mark.parametrize("change", ["random text", "frozen vision", "text alone", "early stopping"])
def test_ways_to_train(change, stand_ins, tmp_path):
    arguments = {
        "random text": ["--text_pretrained", "false"],
        "frozen vision": ["--freeze_vision", "true"],
        "text alone": ["--use_images", "false"],
        "early stopping": ["--early_stopping_patience", "1", "--load_best_model_at_end", "true", "--max_steps", "4",
                           "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"],
    }[change]  # fmt: skip
    base = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--vision", "resnet10t"]
    base += [
        "--text",
        str(stand_ins / "text"),
        "--data_path",
        str(stand_ins / "data"),
        "--region_config",
        "{name: grid}",
    ]
    run(tmp_path, *base, *arguments)
    saved = weights(tmp_path)
    assert any("image_branch" in name for name in saved) == (change != "text alone")


def test_the_best_checkpoint_can_be_the_best_one_at_a_type(tmp_path):
    options = ("--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps",
               "--save_steps", "1", "--load_best_model_at_end", "--synthetic_posts", "[16, 8, 8]")  # fmt: skip
    with pytest.raises(ValueError, match="metric_for_best_model: unknown key 'f1_LCO'; did you mean 'f1_LOC'?"):
        run(tmp_path / "refused", *options, "--metric_for_best_model", "f1_LCO")
    (tmp_path / "data").mkdir()
    data = conll(tmp_path / "data", "PER")
    (data / "valid.txt").write_text("IMGID:v\nJordan\tB-PER\n")
    own = (*options, "--data_path", str(data), "--use_images", "false")
    with pytest.raises(ValueError, match="metric_for_best_model: unknown key 'f1_LOC'; did you mean"):  # no score of it at a time
        run(tmp_path / "refused", *own, "--metric_for_best_model", "f1_LOC")
    run(tmp_path, *options, "--metric_for_best_model", "f1_LOC")
    assert "checkpoint with the best f1_LOC there" in (tmp_path / "README.md").read_text()
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry["eval_f1_LOC"] for entry in state["log_history"] if "eval_f1_LOC" in entry)


def test_f1_of_gold_in_another_scheme_is_counted_on_what_it_is_converted_to(tmp_path):
    """As it stands, strict IOB2 counts no entity of IO and few of IOB1."""
    for scheme, labels in (("IO", ["I-PER", "O", "I-LOC", "I-LOC"]), ("IOB1", ["I-PER", "B-PER", "O", "I-LOC"])):
        folder = tmp_path / scheme
        folder.mkdir()
        post = "\n".join(f"{word}\t{label}" for word, label in zip(["Jordan", "x", "New", "York"], labels, strict=True))
        for split in ("train", "valid"):
            (folder / f"{split}.txt").write_text("\n".join(f"IMGID:{place}\n{post}\n" for place in range(4)))
        results = run(folder / "out", "--data_path", str(folder), "--use_images", "false", "--max_steps", "1",
                      "--eval_strategy", "no", "--save_strategy", "no")  # fmt: skip
        assert results["eval_gold_total"] == results["eval_gold_total_strict"] == {"IO": 8, "IOB1": 12}[scheme]


def test_types_by_the_hundred_are_warned_about_and_trained(tmp_path, caplog):
    posts = [f"IMGID:{place}\nx\tB-T{place}\ny\tI-T{place}\n" for place in range(210)]
    for split, part in (("train", posts), ("valid", posts[:4])):
        (tmp_path / f"{split}.txt").write_text("\n".join(part))
    results = run(tmp_path / "out", "--data_path", str(tmp_path), "--use_images", "false", "--max_steps", "2",
                  "--eval_strategy", "no", "--save_strategy", "no")  # fmt: skip
    assert "421 labels: the CRF scores 177,241 pairs of them for each word" in caplog.text
    assert results["eval_gold_total"] == 4 and len(results["eval_confusion"]) <= 22


FAST = ("--eval_strategy", "no", "--save_strategy", "no", "--synthetic_posts", "[16, 4, 4]")


def test_seeds_are_trained_one_by_one_and_reported_in_one_table(tmp_path, capsys):
    report = run(tmp_path, *FAST, "--max_steps", "1", "--seeds", "3", "5")
    of_seeds = [json.loads((tmp_path / f"seed-{seed}" / "all_results.json").read_text())["eval_f1"] for seed in (3, 5)]
    assert [report["seeds"][seed]["eval_f1"] for seed in (3, 5)] == of_seeds
    assert report["mean"]["eval_f1"] == pytest.approx(sum(of_seeds) / 2)
    assert report["std"]["eval_f1"] == pytest.approx(abs(of_seeds[0] - of_seeds[1]) / 2**0.5)
    row = " | ".join(f"{value:.4f}" for value in (*of_seeds, report["mean"]["eval_f1"], report["std"]["eval_f1"]))
    printed = capsys.readouterr().out
    assert "| score | seed 3 | seed 5 | mean | standard deviation |" in printed and f"| eval_f1 | {row} |" in printed
    assert json.loads((tmp_path / "seeds.json").read_text())["mean"] == report["mean"]
    a, b = weights(tmp_path / "seed-3"), weights(tmp_path / "seed-5")
    assert not all(torch.equal(a[name], b[name]) for name in a)


def test_a_search_trains_with_the_best_values(tmp_path, capsys):
    pytest.importorskip("optuna")
    run(tmp_path, *FAST, "--max_steps", "1", "--hyperparameter_search", "2")
    best = json.loads((tmp_path / "hyperparameters.json").read_text())
    assert set(best) == {"learning_rate", "head_learning_rate", "per_device_train_batch_size"}
    assert 1e-5 <= best["learning_rate"] <= 1e-4 <= best["head_learning_rate"] <= 1e-3
    assert f"best of 2 trials: {json.dumps(best)}" in capsys.readouterr().out
    card = (tmp_path / "README.md").read_text()
    assert f"learning_rate: {best['learning_rate']}" in card
    assert f"per_device_train_batch_size: {best['per_device_train_batch_size']}" in card
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("search/**/*.safetensors"))


def test_low_rank_adapters_are_merged_into_the_saved_model(stand_ins, tmp_path):
    pytest.importorskip("peft")
    arguments = ["--text", str(stand_ins / "text"), "--data_path", str(stand_ins / "data"), "--region_config", "{name: grid}",
                 "--vision", "resnet10t", "--learning_rate", "1e-2", "--eval_strategy", "no"]  # fmt: skip
    results = run(tmp_path, *arguments, "--max_steps", "2", "--lora_rank", "2", "--save_strategy", "steps", "--save_steps", "1")
    saved = weights(tmp_path)
    assert not any("lora" in name for name in saved) and any("lora" in name for name in weights(tmp_path / "checkpoint-2"))
    encoder = AutoModel.from_pretrained(stand_ins / "text").state_dict()
    changes = {name: saved[f"model.text_encoder.{name}"] - before for name, before in encoder.items()
               if f"model.text_encoder.{name}" in saved}  # fmt: skip
    changed = {name for name, change in changes.items() if change.abs().max() > 1e-6}
    # The linear layers changed, each by a matrix of rank 2; nothing else of the encoder did.
    assert changed and all(name.endswith(".weight") and changes[name].ndim == 2 and "embed" not in name for name in changed)
    assert all(torch.linalg.matrix_rank(changes[name], rtol=1e-3) <= 2 for name in changed)
    scored = run(tmp_path / "scores", "--do_train", "false", "--model", str(tmp_path), "--data_path", str(stand_ins / "data"))
    assert scored["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-4)
    with pytest.raises(ValueError, match="checkpoint-2 holds low-rank adapters .*--resume_from_checkpoint"):
        run(tmp_path / "other", "--do_train", "false", "--model", str(tmp_path / "checkpoint-2"))


def test_a_loss_that_is_not_finite_stops_with_its_posts(tmp_path, monkeypatch):
    forward = HamLearningForTokenClassification.forward

    def poisoned(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        return output if output.loss is None else type(output)(**{**output, "loss": output.loss * float("nan")})

    monkeypatch.setattr(HamLearningForTokenClassification, "forward", poisoned)
    with pytest.raises(NotFiniteError, match=r"loss of step 1 is not finite; its posts: demo-0-\d+, demo-0-"):
        run(tmp_path, "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no")


def test_accelerate_launch(tmp_path):
    command = [
        Path(sys.executable).with_name("accelerate"),
        "launch",
        "--cpu",
        "train.py",
        "configs/demo.yaml",
        *SMALL,
    ]
    command += ["--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--output_dir", str(tmp_path)]
    run = subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True, text=True)
    assert (tmp_path / "model.safetensors").is_file()
    assert run.stderr.count("the model learns which region shows an entity") == 1


def test_conll_predictions_can_be_read_again(trained, tmp_path):
    """The predictions file with its gold column cut is the field's own form."""
    lines = (trained[0] / "predictions.txt").read_text(encoding="utf-8").split("\n")
    kept = [line if line.startswith("IMGID:") or not line else "\t".join(line.split("\t")[::2]) for line in lines]
    (tmp_path / "again.txt").write_text("\n".join(kept), encoding="utf-8")
    assert len(read_conll(tmp_path / "again.txt")) == 8


def score_loss(folder: Path) -> float:
    """Mean log-loss of the scores of a model's entities in the posts that the runs are validated on."""
    rows = synthetic_dataset(8, 1)
    tagged = pipeline("mner", model=str(folder), trust_remote_code=True)([row_to_post(row) for row in rows])
    losses = []
    for row, entities in zip(rows, tagged, strict=True):
        gold = {
            (kind, " ".join(row["tokens"][first:end]), len(" ".join([*row["tokens"][:first], ""])))
            for kind, first, end in gold_entities(row, dataset_labels(rows))
        }
        for entity in entities:
            right = (entity["entity_group"], entity["word"], entity["start"]) in gold
            losses.append(-math.log(entity["score"] if right else 1 - entity["score"]))
    return sum(losses) / len(losses)


def test_calibration_scales_the_scores_and_nothing_else(trained, tmp_path):
    folder, plain = trained
    # Evaluation draws from the random state: both runs evaluate at the same steps.
    steps = ["--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "no"]
    calibrated = run(tmp_path, *steps, "--calibrate", "true")
    temperature, expected = calibrated["temperature"], weights(folder)
    assert abs(temperature - 1) > 0.01 and calibrated["eval_f1"] == plain["eval_f1"]
    assert score_loss(tmp_path) < score_loss(folder)
    scaled, grounding = weights(tmp_path), "model.image_branch.grounding.word_outer."
    # The grounding head has a temperature of its own.
    grounding_temperature = (expected[f"{grounding}weight"] / scaled[f"{grounding}weight"]).median()
    assert abs(grounding_temperature - 1) > 0.01
    for name, weight in scaled.items():
        factor = temperature if name.startswith(("classifier.", "crf.")) else 1
        factor = grounding_temperature if name.startswith(grounding) else factor
        torch.testing.assert_close(
            weight * factor, expected[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_training_without_a_train_split_is_refused(tmp_path):
    (tmp_path / "test.txt").write_text("IMGID:a\nx\tO\n")
    with pytest.raises(ValueError, match="--do_train needs a train split; the data has test"):
        run(tmp_path / "out", "--data_path", str(tmp_path), "--do_eval", "false")


def test_posts_without_a_word_can_be_trained_on(tmp_path):
    """Their batch had a loss of 0 / 0, and no gradient."""
    rows = [
        {"id": f"p{place}", "tokens": [] if place % 4 < 2 else ["x"], "labels": [] if place % 4 < 2 else ["B-A"]}
        for place in range(8)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    results = run(tmp_path / "out", "--data_path", str(tmp_path), "--do_eval", "false", "--max_steps", "4",
                  "--use_images", "false", "--per_device_train_batch_size", "2", "--eval_strategy", "no",
                  "--save_strategy", "no")  # fmt: skip
    losses = [
        entry["loss"]
        for entry in json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
        if "loss" in entry
    ]
    assert 0 in losses and results["train_loss"] > 0


def test_the_text_only_row_is_the_model_without_the_images(trained):
    """The posts without an image score alike, whichever way the image is left out."""
    folder, results = trained
    rows = synthetic_dataset(8, 1)
    ner = pipeline("mner", model=str(folder), trust_remote_code=True)
    tagged = ner([{"text": row["tokens"], "image": None} for row in rows])
    assert results["text_only_f1"] == pytest.approx(pipeline_f1(rows, tagged, dataset_labels(rows)))


@pytest.mark.parametrize("asked, message", [
    ((), "nothing to do"),
    (("--do_eval", "true"), "nothing is trained"),
    (("--do_train", "true", "--overwrite_output_dir", "--resume_from_checkpoint", "auto"), "expected one of the two"),
    (("--do_eval", "true", "--model", "x", "--calibrate"), "--calibrate changes the model"),
    (("--do_eval", "true", "--model", "x", "--push_to_hub"), "--push_to_hub: expected --do_train"),
    (("--do_train", "true", "--seeds", "1"), "--seeds: expected two different ones or more, got"),
    (("--do_eval", "true", "--model", "x", "--seeds", "1", "2"), "--seeds trains a model a seed"),
    (("--do_train", "true", "--hyperparameter_search", "0"), "a number of trials above 0, and --do_train beside it, got 0"),
    (("--do_eval", "true", "--model", "x", "--hyperparameter_search", "2"), "and --do_train false"),
    (("--do_train", "true", "--lora_rank", "4"), "--lora_rank keeps the text encoder's own weights"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_at_once(asked, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "--do_train", "false", "--do_eval", "false", "--eval_strategy", "no", *asked)


def test_a_trained_model_is_scored_as_it_was(trained, tmp_path):
    folder, results = trained
    scored = run(tmp_path, "--do_train", "false", "--do_predict", "--model", str(folder), "--vision", "none")
    for name in ("eval_f1", "eval_f1_strict", "eval_gold_total", "test_f1", "text_only_f1"):
        assert scored[name] == results[name], name
    assert scored["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-5)
    assert (tmp_path / "predictions.txt").read_text() == (folder / "predictions.txt").read_text()
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "README.md").exists()
    alone = ("--do_train", "false", "--model", str(folder), "--vision", "none")
    run(tmp_path, *alone)  # the same scores again
    with pytest.raises(OutputError, match=r"holds another run \(.*max_eval_samples.* differ\).*--overwrite_output_dir"):
        run(tmp_path, *alone, "--max_eval_samples", "4")
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_f1"] == results["eval_f1"]
    run(tmp_path, *alone, "--max_eval_samples", "4", "--overwrite_output_dir")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OutputError, match="holds another run .*: choose another --output_dir$"):
        run(folder, "--do_train", "false", "--model", str(folder), "--overwrite_output_dir")
    assert sorted(path.name for path in folder.iterdir()) == before


def conll(folder: Path, label: str) -> Path:
    for split in ("train", "valid"):
        posts = [f"IMGID:{split}{place}\nJordan\tB-{label}\nin\tO\nYork\tB-LOC\n" for place in range(8)]
        (folder / f"{split}.txt").write_text("\n".join(posts))
    return folder


def test_a_trained_model_goes_on_training_on_other_data(trained, tmp_path):
    """Their labels have other ids: LOC and PER here, four types there."""
    folder, _ = trained
    data = conll(tmp_path, "PER")
    steps = (
        "--max_steps",
        "2",
        "--eval_strategy",
        "no",
        "--save_strategy",
        "no",
        "--model",
        str(folder),
        "--use_images",
        "false",
    )
    results = run(tmp_path / "out", *steps, "--data_path", str(data), "--learning_rate", "1e-2")
    assert results["eval_gold_total"] == 16 and set(results["eval_per_type"]) >= {"PER", "LOC"}
    before, after = weights(folder), weights(tmp_path / "out")
    assert set(before) == set(after) and any(not torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"]["B-ORG"] >= 0


def test_a_trained_model_learns_a_new_type_beside_those_that_it_has(trained, tmp_path, caplog):
    """At learning rate 0 the scores of its own labels stay bit for bit, wherever the new ones stand in the data."""
    folder, _ = trained
    data = conll(tmp_path, "FOOD")
    steps = ("--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--use_images", "false")
    results = run(tmp_path / "out", *steps, "--model", str(folder), "--data_path", str(data), "--learning_rate", "0")
    assert results["eval_gold_total"] == 16 and "FOOD" in results["eval_per_type"]
    known = json.loads((folder / "config.json").read_text())["label2id"]
    now = json.loads((tmp_path / "out" / "config.json").read_text())["label2id"]
    assert {name: now[name] for name in known} == known and set(now) - set(known) == {"B-FOOD", "I-FOOD"}
    before, after, rows = weights(folder), weights(tmp_path / "out"), len(known)
    for name in before:
        assert torch.equal(after[name][tuple(slice(size) for size in before[name].shape)], before[name]), name
    assert after["classifier.weight"].shape[0] == rows + 2 and after["classifier.weight"][rows:].abs().sum() > 0
    assert after["crf.transition_scores.transitions"].shape == (rows + 2, rows + 2)
    for line in ("go on with the trained model's scores: LOC", "start anew: FOOD", "learn not to find: MISC, ORG, PER"):
        assert line in caplog.text
    assert pipeline("mner", model=str(tmp_path / "out"), trust_remote_code=True)("Jordan in York") is not None
    # Scoring alone teaches nothing: what the model cannot know is refused.
    with pytest.raises(ValueError, match="split train, field ner_tags: the model does not have the labels B-FOOD"):
        run(tmp_path / "other", "--do_train", "false", "--use_images", "false", "--model", str(folder), "--data_path", str(data))


def test_the_model_is_saved_before_anything_is_scored(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no space for predictions")

    monkeypatch.setattr(train, "write_predictions", fail)
    with pytest.raises(RuntimeError, match="no space"):
        run(tmp_path, "--do_predict", "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no")
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "processor_config.json").is_file()
    assert "eval_f1" in json.loads((tmp_path / "all_results.json").read_text())


def test_images_that_vanish_end_the_run_or_are_counted(stand_ins, tmp_path, monkeypatch):
    """Seven images a split; they are gone once training begins."""
    data = tmp_path / "data"
    shutil.copytree(stand_ins / "data", data)
    original = train.MnerTrainer.train

    def unmounted(self, *arguments, **options):
        shutil.rmtree(data / "images")
        return original(self, *arguments, **options)

    monkeypatch.setattr(train.MnerTrainer, "train", unmounted)
    arguments = ["--text", str(stand_ins / "text"), "--data_path", str(data), "--region_config", "{name: grid}",
                 "--vision", "resnet10t", "--eval_strategy", "no", "--save_strategy", "no"]  # fmt: skip
    results = run(tmp_path / "short", *arguments, "--max_steps", "1")
    assert results["images_unreadable"] > 7 and results["images_read"] == 0
    card = (tmp_path / "short" / "README.md").read_text()
    assert f"{results['images_unreadable']} of {results['images_unreadable']} times an image could not be read" in card
    shutil.copytree(stand_ins / "data" / "images", data / "images")
    with pytest.raises(ImagesLostError, match=r"post .*, field image: 25 of the latest 25 images cannot be read"):
        run(tmp_path / "long", *arguments, "--max_steps", "20")


def test_texts_alone_need_no_image_column(tmp_path):
    results = run(tmp_path, "--use_images", "false", "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no")
    assert "text_only_f1" not in results and results["images_read"] == 0


def test_the_command_line_tells_unusable_data_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--do_train", "--data_path", str(tmp_path), "--output_dir", str(tmp_path / "o")])
    with pytest.raises(SystemExit, match="^train: "):
        train.cli()


@pytest.mark.parametrize("wrong, message", [
    (("nope.yaml",), "there is no config nope.yaml"),
    (("--nosuch", "3"), "unknown key 'nosuch'"),
    (("--model_config", "{{a"), "flow mapping"),
    (("--data_path", "{data}", "--label_scheme", "FOO"), "FOO"),
    (("--data_path", "{data}", "--regions_file", "{data}/nope.jsonl"), "nope.jsonl"),
    (("--model", "{data}/nomodel"), "nomodel"),
    (("--max_eval_samples", "0"), "--max_eval_samples: expected a number of posts above 0, got 0"),
    (("--max_train_samples", "-1"), "--max_train_samples: expected a number of posts above 0, got -1"),
])  # fmt: skip
def test_a_wrong_option_is_one_line(wrong, message, stand_ins, tmp_path, monkeypatch):
    arguments = [argument.format(data=stand_ins / "data") for argument in wrong]
    options = ["--do_train", "--use_cpu", "--synthetic_posts", "[4, 2, 2]", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, *options])
    with pytest.raises(SystemExit, match=f"^train: .*{message}") as error:
        train.cli()
    assert "\n" not in error.value.code


def test_a_blank_or_a_line_end_inside_a_word_does_not_break_its_line_of_the_predictions(tmp_path):
    rows = [{"id": "a\nb", "tokens": ["Jor\tdan", "in\r\n\nIMGID:b", "\u2028"], "ner_tags": [1, 0, 0]}]
    train.write_predictions(tmp_path / "predictions.txt", rows, [[1, 0, 0]], ["O", "B-PER"])
    lines = (tmp_path / "predictions.txt").read_text(encoding="utf-8").split("\n")
    assert lines == ["IMGID:a b", "Jor\ufffddan\tB-PER\tB-PER", "in\ufffd\ufffd\ufffdIMGID:b\tO\tO", "\ufffd\tO\tO", "", ""]
    (post,) = read_conll(tmp_path / "predictions.txt")
    assert len(post["tokens"]) == 3
