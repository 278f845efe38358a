"""The card that is written beside a model."""

from __future__ import annotations

import importlib.resources

import pytest
from huggingface_hub import ModelCard

from training import card
from training.card import WITHOUT_IMAGES, read_reference_scores, template_path, write_card

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SCORES = {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "gold_total": 4}
METRICS = {
    "f1": 0.5, "f1_strict": 0.25, "gold_total": 1234, "gold_total_strict": 5, "per_type": {"PER": SCORES}, "per_type_strict": {},
}  # fmt: skip


def test_scores_are_in_the_table_and_in_the_metadata(tmp_path):
    references = {"use_crf off": {"f1": 0.125, "f1_strict": 0.0625}}
    write_card(tmp_path, "user/tiny", "My posts", {"train": "abc"}, METRICS, {"seed": 0}, LABELS, ["a/b"], references)
    loaded = ModelCard.load(tmp_path / "README.md")
    values = {result.metric_name: (result.metric_value, result.dataset_name) for result in loaded.data.eval_results}
    assert values == {
        "F1 (default seqeval)": (0.5, "My posts"),
        "F1 (strict IOB2)": (0.25, "My posts"),
        "F1 (default seqeval), use_crf off": (0.125, "My posts"),
        "F1 (strict IOB2), use_crf off": (0.0625, "My posts"),
    }
    assert loaded.data.base_model == ["a/b"] and loaded.data.model_name == "user/tiny"
    assert "| PER | 0.6667 | 0.0000 | 4 / 0 |" in loaded.text and "| *use_crf off* | 0.1250 | 0.0625 |" in loaded.text
    assert "- train: `abc`" in loaded.text and "seed: 0" in loaded.text and "(LOC, PER)" in loaded.text


def test_the_metadata_say_where_the_model_comes_from(tmp_path):
    write_card(tmp_path, "t", "posts", {}, {}, {}, LABELS, ["a/b"], license="mit", language="en", dataset="user/posts")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language, data.datasets, data.base_model) == ("mit", "en", ["user/posts"], ["a/b"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "token-classification")
    write_card(tmp_path, "t", "posts", {}, {}, {}, LABELS, [])
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language, data.datasets) == ("unknown", None, None)


def test_without_scores_nothing_is_claimed(tmp_path):
    write_card(tmp_path, "tiny", "data", {}, {}, {"seed": 0}, LABELS, [])
    loaded = ModelCard.load(tmp_path / "README.md")
    assert not loaded.data.eval_results and "No validation was run." in loaded.text
    assert "{{" not in loaded.text and "{%" not in loaded.text and "$" not in loaded.text


def test_text_in_names_stays_as_it_is(tmp_path):
    notes = ["3 of 9 times an image could not be read"]
    write_card(tmp_path, "t", "a {{ 7 * 7 }} $b: <c>", {}, METRICS, {"data": "x: {y}"}, LABELS, [], notes=notes)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.eval_results[0].dataset_name == "a {{ 7 * 7 }} $b: <c>" and "a {{ 7 * 7 }} $b: <c>" in loaded.text
    assert notes[0] in loaded.text


def test_rows_for_the_card_are_checked(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"no CRF": {"f1": 0.5}}')
    with pytest.raises(ValueError, match="row 'no CRF': expected numbers f1 and f1_strict, got"):
        read_reference_scores(path)
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_reference_scores(tmp_path / "none.json")
    assert read_reference_scores(None) == {}


def test_the_template_of_an_installed_package_comes_first(tmp_path, monkeypatch):
    assert template_path().name == "model_card.md" and template_path().is_file()
    (tmp_path / "model_card.md").write_text("---\n{{ card_data }}\n---\n# {{ model_name }} from the package")
    monkeypatch.setattr(card, "files", lambda package: tmp_path)
    assert importlib.resources.files("training") != tmp_path
    write_card(tmp_path, "tiny", "data", {}, {}, {}, LABELS, [])
    assert "from the package" in (tmp_path / "README.md").read_text()


def test_a_model_of_the_text_alone_claims_nothing_of_images(tmp_path):
    write_card(tmp_path, "tiny", "data", {}, METRICS, {}, LABELS, [], levels=())
    text = (tmp_path / "README.md").read_text()
    assert 'ner("Jordan is back' in text and "an image that comes with a post is not read" in text
    assert not any(claim in text for claim in ("region", "relevan", "without the images", '"image":', "mislead", "italics"))
    write_card(tmp_path, "tiny", "data", {}, METRICS, {}, LABELS, [], {WITHOUT_IMAGES: METRICS}, levels=("global",))
    text = (tmp_path / "README.md").read_text()
    assert "region" not in text and "how relevant each level" in text
    assert "The row without the images is this model" in text and "italics" not in text
    assert "\n\n\n\n" not in text, "what is left out leaves no hole"


def test_grounding_scores_are_in_the_card_of_a_grounded_model(tmp_path):
    names = ("gmner_f1", "eeg_f1", "grounding_accuracy", "grounding_gold_total", "grounding_accuracy_total")
    metrics = METRICS | dict(zip(names, (0.25, 0.5, 0.75, 90, 80), strict=True))
    write_card(tmp_path, "tiny", "data", {}, metrics, {}, LABELS, [], is_grounded=True)
    text = ModelCard.load(tmp_path / "README.md").text
    assert "| GMNER F1: span, type and region | 0.2500 | 90 |" in text and "| EEG F1: span and region | 0.5000 | 90 |" in text
    assert "| grounding accuracy given the right span | 0.7500 | 80 |" in text and "attended" not in text
