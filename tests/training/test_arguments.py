"""Arguments of train.py: the YAML file, the command line over it, and what is refused before training."""

from __future__ import annotations

import re

import pytest
import torch

from training.arguments import MnerTrainingArguments, check_supported, parse_arguments


def test_learning_rates_are_numbers_or_unset():
    _, _, arguments = parse_arguments(["--learning_rate", "1e-5", "--head_learning_rate=1e-3", "--output_dir", "/tmp/x"])
    rates = (arguments.learning_rate, arguments.head_learning_rate, arguments.vision_learning_rate)
    assert rates == (1e-5, 1e-3, None)


def test_the_command_line_goes_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("text: x\nlearning_rate: 3e-5\nmodel_config: {fusion_size: 64, use_crf: true}\n")
    model, data, training = parse_arguments(
        [str(tmp_path / "a.yaml"), "--model_config", "{use_crf: false}", "--max_train_samples", "5", "--do_eval"]
    )
    assert model.text == "x" and model.model_config == {"fusion_size": 64, "use_crf": False}
    assert training.learning_rate == 3e-5 and data.max_train_samples == 5 and training.do_eval is True
    assert parse_arguments([str(tmp_path / "a.yaml")])[0].text == "x"
    with pytest.raises(ValueError, match="no_such"):
        parse_arguments(["--no_such", "1"])
    with pytest.raises(ValueError, match="there is no config"):
        parse_arguments(["nowhere.yaml"])


def test_text_stays_text_and_numbers_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("text: 2017\nlearning_rate: 3e-5\nmodel_config: {initializer_range: 2e-2, a: [1E3, x1e5]}\n")
    model, data, training = parse_arguments(
        [
            str(tmp_path / "a.yaml"),
            "--output_dir",
            "1e5",
            "--data_path",
            "7",
            "--model_config",
            "{fusion_dropout: 1e-1}",
        ]
    )
    assert model.model_config == {"initializer_range": 0.02, "a": [1000.0, "x1e5"], "fusion_dropout": 0.1}
    assert (training.output_dir, data.data_path, model.text) == ("1e5", "7", "2017")
    assert parse_arguments(["--output_dir", "inf", "--text", "nan", "--image_dir", "null"])[1].image_dir is None


@pytest.mark.parametrize("arguments, message", [
    (["--num_train_epochs", "many"], "num_train_epochs: expected a number, got 'many'"),
    (["--max_steps", "1.5"], "max_steps: expected a whole number, got 1.5"),
    (["--use_images", "nope"], "use_images: expected true or false, got 'nope'"),
    (["--seed", "true"], "seed: expected a whole number, got True"),
    (["--freeze_visoin"], "unknown key 'freeze_visoin'; did you mean 'freeze_vision'?"),
    (["--do_eval", "1"], "do_eval: expected true or false, got 1"),
    (["--synthetic_posts", "100"], "synthetic_posts: expected a list, got 100"),
    (["--text_config", "[1]"], "text_config: expected a dictionary, got [1]"),
    (["--column_names", "words"], "column_names: expected a dictionary, got 'words'"),
])  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(arguments)


def test_a_list_of_the_file_gives_way_to_what_is_said_on_the_command_line(tmp_path):
    """A value alone is a list of one; nothing, and the options of an extractor, are what they are."""
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: x\nseeds: [1, 2]\nregion_config: [precomputed, anchors]\nsynthetic_posts: [9, 2]\n")
    extractor = {"name": "grid", "max_regions": 36}
    more = ["--seeds", "null", "--region_config", "{name: grid, max_regions: 36}", "--synthetic_posts", "7"]
    model, data, training = parse_arguments([str(path), *more])
    assert (training.seeds, model.region_config, data.synthetic_posts) == (None, extractor, [7])
    assert parse_arguments([str(path)])[0].region_config == ["precomputed", "anchors"]


REFUSED = {
    "label_smoothing_factor": ({"label_smoothing_factor": 0.1}, "leaves the CRF out of the loss"),
    "galore": ({"optim": "galore_adamw", "optim_target_modules": ["query"]}, "optim galore_adamw: .* use adamw_torch"),
    "galore layerwise": ({"optim": "galore_adafactor_layerwise", "optim_target_modules": ["query"]}, "optim galore_adafactor"),
    "apollo": ({"optim": "apollo_adamw", "optim_target_modules": ["query"]}, "optim apollo_adamw"),
    "lomo": ({"optim": "lomo"}, "optim lomo"),
    "adalomo": ({"optim": "adalomo"}, "optim adalomo"),
    "neftune": ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
    "prediction_loss_only": ({"prediction_loss_only": True}, "prediction_loss_only: it leaves no predictions"),
    "eval_do_concat_batches": ({"eval_do_concat_batches": False}, "eval_do_concat_batches.*expected true"),
    "include_for_metrics": ({"include_for_metrics": ["inputs"]}, "include_for_metrics.*expected loss"),
    "early stopping": ({"early_stopping_patience": 2}, "early_stopping_patience.*eval_strategy is no"),
    **{
        strategy: ({"push_to_hub": True, "hub_strategy": strategy}, f"hub_strategy {strategy}: .*expected end")
        for strategy in ("every_save", "checkpoint", "all_checkpoints")
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_the_model_does_not_support_are_refused_before_training(name, tmp_path):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        MnerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_options_set_later_are_seen_by_the_trainers_check(tmp_path):
    arguments = MnerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, include_for_metrics=["loss"])
    check_supported(arguments)
    arguments.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        check_supported(arguments)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_reentrant_checkpointing_is_refused_on_several_processes_only(name, tmp_path, monkeypatch):
    if name not in MnerTrainingArguments.__dataclass_fields__:
        pytest.skip(f"this version of transformers has no {name}")
    options = {name: True, f"{name}_kwargs": {"use_reentrant": True}}
    MnerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    monkeypatch.setattr(MnerTrainingArguments, "world_size", property(lambda self: 2))
    MnerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: True})
    with pytest.raises(ValueError, match="use_reentrant fails on several processes"):
        MnerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 0), (4, 1, 1), (64, 1, 4), (64, 8, 2), (None, 1, 0)])
def test_posts_are_read_by_other_processes_where_there_are_cores(cores, processes, workers, monkeypatch, tmp_path):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert MnerTrainingArguments(output_dir=str(tmp_path)).dataloader_num_workers == workers
    assert MnerTrainingArguments(output_dir=str(tmp_path), dataloader_num_workers=3).dataloader_num_workers == 3


def test_memory_is_pinned_for_a_device_only(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: False)
    assert not MnerTrainingArguments(output_dir=str(tmp_path)).dataloader_pin_memory
