"""Keys of a config that no part of the model reads are refused with the nearest one that is."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from mner_data.loading import dataset_labels
from mner_data.synthetic_posts import synthetic_splits
from training.arguments import NO_LEVELS, ModelArguments
from training.build import build

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_FUSION = {"fusion_size": 32, "fusion_attention_heads": 2}


@pytest.fixture(scope="module")
def data():
    return synthetic_splits([8, 2, 2])


def build_with(data, **arguments):
    options = {"text": "from_scratch", "text_config": SMALL, "vision": "resnet10t", "vision_pretrained": False,
               "model_config": SMALL_FUSION, "image_size": 32}  # fmt: skip
    return build(ModelArguments(**options | arguments), data, dataset_labels(data["train"]))


@pytest.mark.parametrize("name, keys, nearest", [
    ("model_config", {"use_globl": False}, "use_global"),
    ("model_config", {"num_iteration": 2}, "num_iterations"),
    ("model_config", {"fusion_dropuot": 0.1}, "fusion_dropout"),
    ("text_config", {"hiden_size": 32}, "hidden_size"),
    ("text_config", {"model_type": "modernbert", "num_hidden_layer": 1}, "num_hidden_layers"),
    ("tokenizer_config", {"min_cuont": 1}, "min_count"),
    ("tokenizer_config", {"lower_case": True}, "lowercase"),
    ("model_config", {"attn_implementaton": "sdpa"}, "attn_implementation"),
])  # fmt: skip
def test_an_unknown_key_is_refused_with_the_nearest_one(data, name, keys, nearest):
    with pytest.raises(ValueError, match=f"^{name}: unknown key .*; did you mean '{nearest}'?"):
        build_with(data, **{name: keys})


def test_a_key_that_is_like_no_other_gets_the_list(data):
    with pytest.raises(ValueError, match="tokenizer_config: unknown key 'zzz'; expected one of kind, lowercase"):
        build_with(data, tokenizer_config={"zzz": 1})
    with pytest.raises(ValueError, match="text_config.model_type: unknown key 'brt'; did you mean 'bert'"):
        build_with(data, text_config={"model_type": "brt"})


def test_an_unknown_backbone_is_refused_with_the_nearest_one(data):
    with pytest.raises(ValueError, match="^vision: unknown key 'resnt10t'; did you mean 'resnet10t'?"):
        build_with(data, vision="resnt10t.a1_in1k")


def test_what_the_labels_and_encoders_determine_is_no_key(data):
    with pytest.raises(ValueError, match="model_config: unknown key 'id2label'"):
        build_with(data, model_config={"id2label": {0: "O"}})


def test_known_keys_reach_the_model(data):
    model, _ = build_with(
        data,
        model_config=SMALL_FUSION | {"use_crf": False, "min_entity_score": 0.25},
        text_config={"model_type": "modernbert", **SMALL, "num_hidden_layers": 2},
        tokenizer_config={"kind": "char", "min_count": 1},
    )
    assert model.config.use_crf is False and model.config.min_entity_score == 0.25
    assert (model.config.text_config.model_type, model.config.text_config.num_hidden_layers) == ("modernbert", 2)


SHORT = SMALL | {"max_position_embeddings": 32}


@pytest.mark.parametrize("model_type, positions", [("bert", 32), ("roberta", 31)])
def test_a_window_of_text_fits_the_encoder(data, model_type, positions):
    """The first positions of RoBERTa are those of the padding: a longer post ended training in the middle of an epoch."""
    model, processor = build_with(data, text_config=SHORT | {"model_type": model_type})
    assert processor.tokenizer.model_max_length == positions
    inputs = processor(text=[["word"] * 100], return_tensors="pt")
    assert inputs["input_ids"].shape[-1] == positions and model(**inputs).logits.shape[1] == 100
    with pytest.raises(ValueError, match=f"max_length: expected at most the {positions} positions of the encoder, got 64"):
        build_with(data, text_config=SHORT | {"model_type": model_type}, max_length=64)


def test_a_tokenizer_that_is_not_used_is_said(data, caplog):
    build_with(data, tokenizer="user/repo")
    assert "tokenizer is not used: text: from_scratch makes its own" in caplog.text


@pytest.mark.parametrize("frozen", [False, True])
def test_a_new_model_has_seen_no_image(data, frozen):
    """What is tried on the backbone while it is built must not stay in its statistics of batch normalisation."""
    model, _ = build_with(data, freeze_vision=frozen)
    statistics = {name: value for name, value in model.named_buffers() if name.endswith(("running_mean", "num_batches_tracked"))}
    assert statistics and not any(value.any() for value in statistics.values())
    assert model.model.vision_encoder.training is not frozen


def without_annotation(data):
    """The same data set; for no entity of a training post it is known what shows it."""
    columns = data["train"].to_dict()
    columns["entity_boxes"] = [[None] * len(boxes or []) for boxes in columns["entity_boxes"]]
    return DatasetDict(data | {"train": Dataset.from_dict(columns, features=data["train"].features)})


def test_a_model_learns_what_shows_an_entity_where_its_training_posts_say_so(data, caplog):
    with caplog.at_level("INFO", logger="training.build"):
        model, _ = build_with(data)
    assert model.config.grounding_loss_weight == 1 and model.config.has_grounding
    assert "learns which region shows an entity" in caplog.text
    assert build_with(data, model_config=SMALL_FUSION | {"grounding_loss_weight": 0.5})[0].config.grounding_loss_weight == 0.5
    assert not build_with(data, model_config=SMALL_FUSION | {"grounding_loss_weight": 0})[0].config.has_grounding


def test_without_annotated_boxes_there_is_no_grounding_head(data):
    columns = [name for name in data["train"].column_names if name != "entity_boxes"]
    for unannotated in (data.select_columns(columns), without_annotation(data)):
        assert not build_with(unannotated)[0].config.has_grounding


def test_a_trained_model_without_the_head_says_that_it_does_not_learn_boxes(data, tmp_path, caplog):
    for part in build_with(data, model_config=SMALL_FUSION | {"grounding_loss_weight": 0}):
        part.save_pretrained(tmp_path)
    trained, labels = ModelArguments(model=str(tmp_path)), dataset_labels(data["train"])
    assert not build(trained, data, labels)[0].config.has_grounding
    assert f"the model of {tmp_path} has no grounding head: it does not learn from entity_boxes" in caplog.text
    caplog.clear()
    build(trained, without_annotation(data), labels)
    build(trained, DatasetDict({"test": data["test"]}), labels)
    assert not caplog.text


def test_a_text_tagger_says_nothing_of_boxes(data, caplog):
    with caplog.at_level("INFO", logger="training.build"):
        model, _ = build_with(data, model_config=SMALL_FUSION | NO_LEVELS)
    assert not model.config.has_grounding and "region" not in caplog.text
