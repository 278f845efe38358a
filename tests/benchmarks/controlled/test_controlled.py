"""The machinery of the controlled experiments, with a few posts and steps each: runs, baselines, measures and tables."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from safetensors.torch import save_file
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoConfig, AutoModelForTokenClassification, pipeline

from benchmarks.controlled import __main__ as controlled
from benchmarks.controlled import measures, runner
from benchmarks.controlled.baselines import PlainTagger
from benchmarks.controlled.experiments import experiments_for, load_data
from benchmarks.controlled.measures import (
    calibration_error_by_chance,
    expected_calibration_error,
    f1_by_group,
    post_counts,
    scores_of_entities,
)
from benchmarks.controlled.perturbations import with_another_posts_images
from benchmarks.controlled.pretrained_weights import VISION_BACKBONE
from mner_data.synthetic_posts import synthetic_dataset
from modeling_hamlearning import HamLearningForTokenClassification
from processors import HamLearningImageProcessor, HamLearningProcessor
from tests.tiny import tiny_tokenizer
from tests.tiny_model import LABELS, saved_tiny_model
from training.collator import MnerCollator


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results in a folder of the test, random weights in place of those from the registry."""
    weights = timm.create_model(VISION_BACKBONE).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "vision.safetensors")
    monkeypatch.setattr("benchmarks.controlled.experiments.vision_weights", lambda: str(tmp_path / "vision.safetensors"))
    monkeypatch.setattr(runner, "VISION_CACHE", tmp_path / "features")
    monkeypatch.setattr(controlled, "QUICK_RESULTS", tmp_path / "results")
    monkeypatch.setattr("benchmarks.controlled.experiments.text_encoder", lambda: "not needed here")
    monkeypatch.setattr("benchmarks.controlled.experiments.SYNTHETIC_TRAIN", 24)
    monkeypatch.setattr("benchmarks.controlled.experiments.SYNTHETIC_TEST", 24)
    return tmp_path


def test_experiments_are_run_once_and_the_table_has_them_all(folder, monkeypatch):
    call = ["levels", "--quick", "--seeds", "0", "--only", "figure1b"]
    controlled.main([*call, "--models", str(folder / "models")])
    done = {result["model"]: result for result in runner.read_runs(folder / "results")}
    assert set(done) == {"full model", "text alone", "pooled image"}
    assert all(0 <= run["scores"]["test"]["f1"] <= 1 and run["scores"]["test"]["gold_total"] for run in done.values())
    assert {run["command"] for run in done.values()} == {
        f"python -m benchmarks.controlled levels --quick --seeds 0 --only figure1b --models {folder / 'models'}"
    }
    kept = {path.name for path in (folder / "models").iterdir()}
    assert kept == {"levels-figure1b-full-model-0", "levels-figure1b-text-alone-0"}
    tagger = pipeline("mner", model=str(folder / "models" / "levels-figure1b-full-model-0"), trust_remote_code=True)
    assert tagger.model.config.levels == ("global", "object", "spatial", "semantic")
    assert 0 <= done["full model"]["measures"]["grounding"] <= 1
    table = (folder / "results" / "table.md").read_text()
    assert all(f"| figure1b | {name} | 62.5 |" in table for name in ("full model", "text alone", "pooled image"))
    monkeypatch.setattr(runner, "run", lambda *_, **__: pytest.fail("a finished experiment was run again"))
    controlled.main(call)


def test_no_two_experiments_have_one_name(folder):
    for section in ("levels", "relevance"):
        names = [experiment.name for experiment in experiments_for(section, [0, 1, 2])]
        assert len(set(names)) == len(names)


def test_only_the_grounding_experiments_learn_from_boxes(folder):
    for section, learns in (("levels", False), ("grounding", True)):
        experiment = next(experiment for experiment in experiments_for(section, [0]) if experiment.data == "object")
        data, scored = load_data(experiment)
        assert ("entity_boxes" in data["train"].column_names) is learns
        assert "entity_boxes" in scored["test"].column_names


def test_another_posts_image_is_never_the_own_one_and_brings_its_regions():
    boxes = [[[0, 0, 1, index]] for index in range(50)]
    rows = Dataset.from_dict(
        {"id": range(50), "image": list(map(str, range(50))), "boxes": boxes, "entity_boxes": [[b] for b in boxes]}
    )
    moved = with_another_posts_images(rows, seed=3)
    assert moved["id"] == rows["id"]
    assert sorted(moved["image"]) == sorted(rows["image"])
    assert all(own != other for own, other in zip(rows["image"], moved["image"], strict=True))
    assert [boxes[0][3] for boxes in moved["boxes"]] == [int(image) for image in moved["image"]]
    # Where the other image shows this post's entities, nobody knows.
    assert list(moved["entity_boxes"]) == [None] * 50


def test_calibration_error_by_hand():
    # Two bins: three entities at 0.9 of which two are right, one at 0.2 that is right.
    found = expected_calibration_error(np.array([0.9, 0.9, 0.9, 0.2]), np.array([True, True, False, True]))
    assert found["ece"] == pytest.approx((3 * abs(0.9 - 2 / 3) + abs(0.2 - 1)) / 4)
    assert [bin["count"] for bin in found["bins"]] == [1, 3]
    # Exact scores, by every way it can come out: one entity at 0.2 and three at 0.9.
    away = 0.8 * abs(0 - 0.2) + 0.2 * abs(1 - 0.2)
    for right in itertools.product([0, 1], repeat=3):
        away += 0.9 ** sum(right) * 0.1 ** (3 - sum(right)) * abs(sum(right) - 3 * 0.9)
    assert calibration_error_by_chance(found["bins"]) == pytest.approx(away / 4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "deberta-v2", "modernbert"])
def test_the_plain_recipe_is_token_classification_on_first_sub_tokens(kind, tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
    config = AutoConfig.for_model(kind, **sizes, **(special if kind == "modernbert" else {}))
    config.num_labels = 5
    tagger = AutoModelForTokenClassification.from_config(config).eval()
    ids = torch.randint(1, 50, (2, 7))
    positions, labels = torch.tensor([[1, 3, 4], [1, 2, -1]]), torch.tensor([[0, 1, 2], [3, 4, -100]])
    at_tokens = torch.full((2, 7), -100)
    at_tokens[0, [1, 3, 4]], at_tokens[1, [1, 2]] = labels[0], labels[1, :2]
    ours = PlainTagger(tagger)(ids[:, None], torch.ones_like(ids)[:, None], positions, labels)
    theirs = tagger(input_ids=ids, attention_mask=torch.ones_like(ids), labels=at_tokens)
    assert torch.allclose(ours.loss, theirs.loss)
    assert PlainTagger(tagger).decode(ours, labels >= 0) == [
        theirs.logits[0, [1, 3, 4]].argmax(-1).tolist(), theirs.logits[1, [1, 2]].argmax(-1).tolist()
    ]  # fmt: skip
    # As the Trainer saves it: no weight is held twice.
    save_file(PlainTagger(tagger).state_dict(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_the_scores_of_entities_say_what_decoding_gives(least, tmp_path):
    model = HamLearningForTokenClassification.from_pretrained(saved_tiny_model(tmp_path)).eval()
    processor = HamLearningProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    model.config.min_entity_score = least
    generator = random.Random(0)
    words = "Jordan scores again in Amazon park New York Knicks game a person with a trophy".split()
    posts = [generator.choices(words, k=9) for _ in range(60)]
    # Nine tags in ten are those of the model's best path, so that most of its entities are right.
    features = processor(text=posts, is_split_into_words=True)
    with torch.no_grad():
        outputs = model(**features)
    guesses = [[label if generator.random() < 0.9 else 0 for label in path]
               for path in model.crf.decode(outputs.logits, features["word_mask"])]  # fmt: skip
    tags = model.crf.orphans_to_begin(torch.tensor(guesses), features["word_mask"]).tolist()
    rows = Dataset.from_dict(
        {"tokens": posts, "ner_tags": tags, "image": [None] * 60},
        features=Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=LABELS)),
                           "image": Value("string")}),
    )  # fmt: skip
    found = scores_of_entities(model, processor, rows)
    counts = post_counts(model, MnerCollator(processor), rows.add_column("id", [str(place) for place in range(60)]))
    names = [[[LABELS[tag] for tag in post_tags] for post_tags in all_tags]
             for all_tags in (tags, model.decode(outputs, features["word_mask"]))]  # fmt: skip
    assert found["f1_by_min_score"][str(least)] == pytest.approx(f1_score(*names))
    assert sum(bin["count"] for bin in found["calibration"]["bins"]) == len(get_entities(names[1]))
    assert model.config.min_entity_score == least and 0.2 < f1_score(*names) < 1
    assert f1_by_group(counts, [0] * 60) == {"0": pytest.approx(f1_score(*names))} and len(counts) == 60
    halves = f1_by_group(counts, [0] * 20 + [1] * 40)
    assert halves == {
        str(group): pytest.approx(f1_score(*(labels[posts] for labels in names)))
        for group, posts in enumerate((slice(0, 20), slice(20, 60)))
    }


def test_rules_ground_the_models_entities(monkeypatch):
    rows = synthetic_dataset(8, 0, "not-shown")
    names = rows.features["ner_tags"].feature.names
    whole = {"box": {"xmin": 0, "ymin": 0, "xmax": 160, "ymax": 160}}

    def tag(model, processor, rows):
        for row in rows:
            ((kind, first, last),) = get_entities([names[tag] for tag in row["ner_tags"]])
            (boxes,) = row["entity_boxes"]
            yield [{"entity_group": kind, "word_start": first, "word_end": last + 1, "region": None if boxes == [] else whole}]

    monkeypatch.setattr(measures, "_tag", tag)
    scores = measures.grounding_of_rules(
        None, HamLearningProcessor(HamLearningImageProcessor(), tiny_tokenizer("bert"), "precomputed"), rows
    )
    absent = sum(post == [[]] for post in rows["entity_boxes"])
    assert 0 < absent < 8 and scores["region_recall"] == 1
    assert scores["never shown"]["grounding_accuracy"] == scores["never shown"]["gmner_f1"] == pytest.approx(absent / 8)
    # No thing fills half of the image.
    assert scores["whole image"]["grounding_accuracy"] == scores["person"]["shown"] == 0
    assert (scores["model"]["not_shown"], scores["model"]["shown"], scores["model"]["grounding_gold_total"]) == (1, 0, 8)
