"""MnerTrainer with a tiny model: what it optimises, in which order it reads, what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from torch import nn
from transformers.trainer_utils import HubStrategy

from mner_data.synthetic_posts import synthetic_dataset
from processors import HamLearningImageProcessor, HamLearningProcessor
from tests.tiny import tiny_tokenizer
from tests.tiny_model import LABELS, tiny_model
from training.arguments import MnerTrainingArguments
from training.checkpoints import checkpoints
from training.collator import MnerCollator
from training.metric import ComputeMnerMetrics
from training.trainer import MnerTrainer, NotFiniteError

WORDS, TAGS = ["Jordan", "in", "New", "York"], [1, 0, 3, 4]


def text_rows(count: int) -> Dataset:
    """Posts of one to four words, without images and without a length column."""
    features = Features({"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=LABELS))})
    lengths = [1 + place % 4 for place in range(count)]
    return Dataset.from_dict(
        {
            "id": [f"p{place}" for place in range(count)],
            "tokens": [WORDS[:length] for length in lengths],
            "ner_tags": [TAGS[:length] for length in lengths],
        },
        features=features,
    )


@pytest.fixture(scope="module")
def processor() -> HamLearningProcessor:
    image_processor = HamLearningImageProcessor(size={"height": 64, "width": 64})
    return HamLearningProcessor(tokenizer=tiny_tokenizer("bert"), image_processor=image_processor)


@pytest.fixture
def make_trainer(tmp_path, processor, tiny_text_config):
    def make(train: Dataset | None = None, evaluation=None, options: dict | None = None, **arguments) -> MnerTrainer:
        args = MnerTrainingArguments(
            output_dir=str(tmp_path / "out"), **{"use_cpu": True, "report_to": "none", "disable_tqdm": True} | arguments
        )
        model = tiny_model(text_config=tiny_text_config)
        return MnerTrainer(
            model=model, args=args, train_dataset=train, eval_dataset=evaluation, processing_class=processor, **(options or {})
        )

    return make


@pytest.mark.parametrize(
    "bf16, capabilities, warns",
    [
        (True, {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        (True, {"avx2": True, "avx512_bf16": True, "amx_bf16": False}, False),
        (True, {"neon": True, "bf16": True}, False),
        (False, {"avx2": True}, False),
    ],
)
def test_bf16_on_a_processor_without_it_is_warned_about(bf16, capabilities, warns, make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    make_trainer(bf16=bf16)
    assert ("bf16: this processor has no instructions for it" in caplog.text) == warns


def test_learning_rates_by_part(make_trainer):
    trainer = make_trainer(learning_rate=1e-5, head_learning_rate=1e-3, vision_learning_rate=1e-4, weight_decay=0.5)
    groups = {}
    for group in trainer.create_optimizer().param_groups:
        groups |= dict.fromkeys(group["params"], (group["lr"], group["weight_decay"]))
    for name, parameter in trainer.model.named_parameters():
        expected = 1e-5 if "text_encoder." in name else 1e-4 if "vision_encoder." in name else 1e-3
        assert groups[parameter][0] == expected, name
        if "crf." in name:
            assert groups[parameter][1] == 0
    assert groups[trainer.model.classifier.weight][1] == 0.5


def test_the_callers_optimizer_is_used_with_the_parts_own_rates(make_trainer):
    options = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.25, "momentum": 0.5})}
    optimizer = make_trainer(options=options, head_learning_rate=1e-3).create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["lr"], group["momentum"]) for group in optimizer.param_groups} == {(0.25, 0.5), (1e-3, 0.5)}


def test_an_optimizer_that_makes_its_own_groups_is_refused(make_trainer):
    trainer = make_trainer(options={"optimizer_cls_and_kwargs": (lambda model: None, {})})
    with pytest.raises(ValueError, match="optimizer: expected a torch.optim.Optimizer class"):
        trainer.create_optimizer()


def test_the_order_of_the_posts_follows_from_seed_and_epoch_alone(make_trainer):
    data = synthetic_dataset(900, 0, "global").remove_columns(["image", "ner_tags"])
    orders = {}
    for name, arguments, epoch in (
        ("one", {"per_device_train_batch_size": 8}, 0.0),
        ("gathered", {"gradient_accumulation_steps": 8, "per_device_train_batch_size": 1}, 0.0),
        ("later", {"per_device_train_batch_size": 8}, 1.0),
        ("resumed", {"per_device_train_batch_size": 8}, 1.37),
    ):
        trainer = make_trainer(data, seed=1, **arguments)
        torch.manual_seed(len(orders))
        trainer.state.epoch = epoch
        orders[name] = list(trainer._get_train_sampler())
    assert orders["one"] == orders["gathered"] and sorted(orders["one"]) == list(range(900))
    assert orders["later"] == orders["resumed"] != orders["one"]


def test_data_without_a_length_column_are_grouped_by_their_words(make_trainer):
    rows = text_rows(200)
    by_words = list(make_trainer(rows, seed=1)._get_train_sampler())
    by_column = list(
        make_trainer(rows.add_column("length", [len(words) for words in rows["tokens"]]), seed=1)._get_train_sampler()
    )
    in_a_list = list(make_trainer(list(rows), seed=1)._get_train_sampler())
    assert by_words == by_column == in_a_list
    lengths = [len(rows[place]["tokens"]) for place in by_words[:8]]
    assert len(set(lengths)) == 1


def test_ten_lines_of_python_train_and_evaluate(make_trainer):
    trainer = make_trainer(text_rows(8), text_rows(6), max_steps=2, learning_rate=1e-3)
    trainer.train()
    scores = trainer.evaluate()
    assert scores["eval_gold_total"] == 8 and scores["eval_num_labelled_words"] == 13


def test_every_post_is_evaluated_though_training_drops_the_last_batch(make_trainer):
    rows = text_rows(7)
    trainer = make_trainer(rows, rows, dataloader_drop_last=True, per_device_eval_batch_size=4, per_device_train_batch_size=4)
    assert trainer.evaluate()["eval_num_labelled_words"] == sum(map(len, rows["tokens"]))
    assert len(trainer.predict(rows).predictions) == 7
    assert len(trainer.get_train_dataloader()) == 1


def test_metrics_of_batches_are_those_of_all_posts(make_trainer):
    rows = text_rows(7)
    whole = make_trainer(None, rows, per_device_eval_batch_size=2).evaluate()
    batches = make_trainer(None, rows, per_device_eval_batch_size=2, batch_eval_metrics=True)
    for _ in range(2):  # the posts of one evaluation are not counted in the next
        scores = batches.evaluate()
        assert {name: scores[name] for name in ("eval_f1", "eval_gold_total", "eval_num_labelled_words")} == {
            name: whole[name] for name in ("eval_f1", "eval_gold_total", "eval_num_labelled_words")
        }


def test_several_evaluation_sets(make_trainer):
    sets = {"first": text_rows(4), "second": text_rows(6)}
    trainer = make_trainer(text_rows(8), sets, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="no")
    trainer.train()
    assert {"eval_first_f1", "eval_second_f1"} <= {name for log in trainer.state.log_history for name in log}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    with pytest.raises(ValueError, match="expected one of first_f1, second_f1 .* got f1"):
        make_trainer(text_rows(8), sets, **best)
    make_trainer(text_rows(8), sets, metric_for_best_model="second_f1", **best)


def test_arguments_that_were_changed_later_are_checked_before_training(make_trainer):
    trainer = make_trainer(text_rows(2))
    trainer.args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        MnerTrainer(model=trainer.model, args=trainer.args, processing_class=trainer.processing_class)


def test_other_arguments_than_ours_and_no_processor_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(ValueError, match="args: expected MnerTrainingArguments.*, got TrainingArguments"):
        MnerTrainer(model=tiny_model(), args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="expected a processing_class"):
        MnerTrainer(model=tiny_model(), args=MnerTrainingArguments(output_dir=str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("ahead", [10**6, -(10**6)])
def test_checkpoints_rotate_by_step_whatever_their_times_are(make_trainer, ahead, monkeypatch):
    trainer = make_trainer(text_rows(8), max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    save = MnerTrainer._save_rng_state

    def save_with_other_times(self, output_dir):
        save(self, output_dir)
        for path in checkpoints(self.args.output_dir):
            time = path.stat().st_mtime + ahead / int(path.name.split("-")[1])
            os.utime(path, (time, time))

    monkeypatch.setattr(MnerTrainer, "_save_rng_state", save_with_other_times)
    trainer.train()
    assert [path.name for path in checkpoints(trainer.args.output_dir)] == ["checkpoint-4", "checkpoint-3"]


def test_a_new_run_keeps_its_checkpoints_beside_later_ones_of_an_earlier_run(make_trainer):
    trainer = make_trainer(text_rows(8), max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1)
    Path(trainer.args.output_dir, "checkpoint-600").mkdir(parents=True)
    trainer.train()
    assert [path.name for path in checkpoints(trainer.args.output_dir)] == ["checkpoint-600", "checkpoint-2"]


def test_an_overflow_in_fp16_is_left_to_the_scaler(make_trainer, monkeypatch):
    trainer = make_trainer()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(1))
    trainer.state.global_step, trainer.accelerator.scaler = 4, scaler
    model = trainer.model

    def overflow(self, model, inputs, num_items_in_batch=None):
        model.classifier.weight.grad = torch.full_like(model.classifier.weight, torch.inf)
        return torch.tensor(inputs["loss"])

    monkeypatch.setattr("transformers.Trainer.training_step", overflow)
    assert trainer.training_step(model, {"ids": ["a"], "loss": 1.0}) == 1
    with pytest.raises(NotFiniteError, match="the loss of step 5 is not finite; its posts: a"):
        trainer.training_step(model, {"ids": ["a"], "loss": torch.nan})
    scaler.update(1.0)  # no scale is left to halve: the gradient itself is broken
    with pytest.raises(NotFiniteError, match="the gradient of step 5 is not finite; its posts: a"):
        trainer.training_step(model, {"ids": ["a"], "loss": 1.0})
    trainer.accelerator.scaler = None
    with pytest.raises(NotFiniteError, match="the gradient"):
        trainer.training_step(model, {"ids": ["a"], "loss": 1.0})


def test_a_push_has_what_a_model_repo_needs_and_nothing_else(make_trainer, monkeypatch):
    trainer = make_trainer(text_rows(4))
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("predictions.txt", ".env", "notes.md", "trainer_state.json"):
        (folder / name).write_text("private")
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            pushed[repo_id] = None

        def upload_folder(self, repo_id, folder_path, **options):
            pushed[repo_id] = {path.name for path in Path(folder_path).rglob("*")}
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr("hub_scripts.push_to_hub.HfApi", Api)
    trainer.hub_model_id = "user/tiny"
    trainer.args.push_to_hub = True
    trainer.save_model()  # saving pushes nothing
    assert not pushed
    assert trainer.push_to_hub() == "https://hub/commit"
    names = pushed["user/tiny"]
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md", "crf.py", "reference.json"} <= names
    assert not names & {"predictions.txt", ".env", "notes.md", "trainer_state.json"}
    pushed.clear()
    trainer.args.hub_strategy = HubStrategy.EVERY_SAVE  # after the arguments were checked
    trainer._push_from_checkpoint(str(folder))  # during training: nothing
    assert not pushed and not (folder / "training_args.bin").exists()


def test_images_are_counted_over_the_workers_of_a_loader(make_trainer, tmp_path):
    rows = [{"id": str(place), "tokens": ["x"], "ner_tags": [0], "image": str(tmp_path / "gone.jpg")} for place in range(6)]
    trainer = make_trainer(None, rows, dataloader_num_workers=2, per_device_eval_batch_size=2)
    trainer.evaluate()
    assert trainer.image_counts() == {"images_read": 0, "images_unreadable": 6}


EVERY_STEP = {"eval_strategy": "steps", "save_strategy": "steps", "metric_for_best_model": "f1"}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        EVERY_STEP | {"load_best_model_at_end": True},
        EVERY_STEP | {"early_stopping_patience": 9},
        EVERY_STEP | {"save_strategy": "best"},
    ],
)
def test_images_are_left_out_in_the_second_half_of_training(arguments, make_trainer):
    keeps_the_best = bool(arguments)
    rows = [row | {"image": Image.new("RGB", (64, 64))} for row in text_rows(6)]
    trainer = make_trainer(rows, rows, per_device_train_batch_size=2, num_train_epochs=2, **arguments)
    trainer.model.config.image_dropout = 1.0
    read: list[bool] = []

    def count(model, _args, output):
        if model.training:
            read.append(bool(output.relevance.any()))
        if len(read) > 6:
            raise KeyboardInterrupt

    hook = trainer.model.register_forward_hook(count)
    trainer.train()
    assert read == [not keeps_the_best] * 3 + [False] * 3
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    hook.remove()
    # A training loop of one's own leaves out what the config says, also after a run that was interrupted.
    model = trainer.model.train()
    batch = MnerCollator(trainer.processing_class)(rows[:2])
    assert not model(**{name: tensor for name, tensor in batch.items() if name != "ids"}).relevance.any()


def test_the_trainer_stops_early_by_its_arguments(make_trainer):
    rows = text_rows(4)
    arguments = EVERY_STEP | {
        "eval_steps": 1,
        "save_strategy": "no",
        "metric_for_best_model": "loss",
        "early_stopping_patience": 2,
    }
    trainer = make_trainer(rows, rows, max_steps=9, learning_rate=0.0, head_learning_rate=0.0, **arguments)
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_damaged_checkpoint_is_not_resumed_from(make_trainer):
    trainer = make_trainer(text_rows(8), max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    contents = json.loads(Path(trainer.args.output_dir, "checkpoint-1", "contents.json").read_text())
    assert contents["num_processes"] == 1 and set(contents["crc32"]) == {"model.safetensors"}


def test_predictions_are_the_best_paths(make_trainer):
    rows = text_rows(5)
    trainer = make_trainer(None, rows, per_device_eval_batch_size=2)
    output = trainer.predict(rows)
    batch = MnerCollator(trainer.processing_class)(list(rows))
    inputs = {name: value for name, value in batch.items() if name not in ("ids", "labels")}
    with torch.no_grad():
        paths = trainer.model.eval().decode(trainer.model(**inputs), inputs["word_mask"])
    assert [ids[ids != -100].tolist() for ids in np.asarray(output.predictions)] == paths
    assert isinstance(trainer.model, nn.Module) and isinstance(trainer.compute_metrics, ComputeMnerMetrics)


def test_a_batch_without_images_is_evaluated_with_those_that_have_some(make_trainer):
    image, nowhere = Image.new("RGB", (64, 64)), []
    rows = [
        row | {"image": image, "entity_boxes": [nowhere] * entities}
        for row, entities in zip(text_rows(3), (1, 1, 2), strict=True)
    ]
    rows[2]["image"] = None
    scores = make_trainer(None, rows, per_device_eval_batch_size=2).evaluate()
    assert scores["eval_gold_total"] == scores["eval_grounding_gold_total"] == 4


def test_evaluation_says_how_many_regions_are_right(make_trainer):
    # Posts of one, two, three and four words, with one, one, two and two entities: of the last post one is not annotated.
    rows = [row | {"image": Image.new("RGB", (64, 64))} for row in text_rows(4)]
    whole, nowhere = [[0.0, 0.0, 1.0, 1.0]], []
    for row, boxes in zip(rows, ([whole], [nowhere], [whole, whole], [whole, None]), strict=True):
        row["entity_boxes"] = boxes
    trainer = make_trainer(None, rows, per_device_eval_batch_size=3)
    output = trainer.predict(rows)
    # The first anchor is the whole image, and this model names it for every entity.
    trainer.model.ground = lambda outputs, spans: torch.eye(15)[:1].expand(len(spans), -1)
    trainer.model.decode = lambda outputs, mask: [TAGS[: int(words.sum())] for words in mask]
    scores = trainer.evaluate()
    assert (scores["eval_grounding_gold_total"], scores["eval_grounding_accuracy_total"]) == (5, 5)
    assert (scores["eval_grounding_accuracy"], scores["eval_gmner_f1"], scores["eval_eeg_f1"]) == (0.8, 0.8, 0.8)
    assert [part.shape for part in output.predictions] == [(4, 4), (4, 4)]
    assert "eval_gmner_f1" not in make_trainer(None, text_rows(3)).evaluate()
