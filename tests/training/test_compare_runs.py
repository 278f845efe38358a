"""Two models on the same posts, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mner_data.readers import DataError
from modeling_hamlearning import HamLearningForTokenClassification
from training.compare_runs import cli, main, paired_bootstrap
from training.errors import Counts


@pytest.fixture
def data(tmp_path):
    lines = [f"IMGID:{place}\nJordan\tB-PER\nin\tO\nNew\tB-LOC\nYork\tI-LOC\n" for place in range(6)]
    (tmp_path / "valid.txt").write_text("\n".join(lines))
    return tmp_path


def model_that_says(label: str, saved_model: Path, folder: Path) -> Path:
    """The saved model, which gives every word this label."""
    model = HamLearningForTokenClassification.from_pretrained(saved_model)
    with torch.no_grad():
        model.classifier.bias[model.config.label2id[label]] = 1e3
    model.save_pretrained(folder)
    for path in saved_model.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_entities_on_which_two_models_differ(saved_model, data, tmp_path, capsys):
    one, other = (model_that_says(label, saved_model, tmp_path / label) for label in ("B-PER", "O"))
    comparison = main([str(one), str(other), "--data_path", str(data), "--output", str(tmp_path / "c.json")])
    assert json.loads((tmp_path / "c.json").read_text()) == comparison
    printed = capsys.readouterr().out
    assert f"B less A: {comparison['difference']:+.4f}, 95 % interval" in printed and "F1 on 6 posts" in printed
    assert comparison["f1"]["B"] == 0 and comparison["difference"] == -comparison["f1"]["A"] < 0
    assert comparison["differing"] and {entity["found_by"] for entity in comparison["differing"]} == {"A"}
    for entity in comparison["differing"]:
        words = entity["text"].split()[entity["word_start"] : entity["word_end"]]
        assert " ".join(words) == entity["word"]
        gold = {("PER", "Jordan"), ("LOC", "New York")}
        assert entity["is_gold"] == ((entity["entity_group"], entity["word"]) in gold)
    same = main([str(one), str(one), "--data_path", str(data)])
    assert (same["difference"], same["interval"], same["differing"]) == (0, [0, 0], [])
    assert "do not tell the models apart" in capsys.readouterr().out
    (data / "valid.txt").write_text((data / "valid.txt").read_text().replace("\t", "\tX\t").replace("IMGID:", "# id = "))
    columns = main([str(one), str(other), "--data_path", str(data), "--columns", "word,_,label"])
    assert columns["f1"] == comparison["f1"]
    with pytest.raises(DataError, match="--split test: the data has validation"):
        main([str(one), str(other), "--data_path", str(data), "--split", "test"])


@pytest.mark.parametrize("wrong, message", [
    (("{data}/nomodel", "{model}"), "nomodel"),
    (("{model}", "{data}/nomodel"), "nomodel"),
    (("{model}", "{model}", "--batch_size", "0"), "--batch_size: expected a number above 0, got 0"),
    (("{model}", "{model}", "--output", "{data}"), "--output: expected a file, got the folder"),
    (("{model}", "{model}", "--output", "{data}/valid.txt/c.json"), "--output: the folder .*valid.txt cannot be written"),
    (("{model}", "{model}", "--regions_file", "{data}/nope.jsonl"), "nope.jsonl"),
    (("{model}", "{model}", "--label_scheme", "FOO"), "FOO"),
])  # fmt: skip
def test_a_wrong_call_is_one_line_before_anything_is_tagged(saved_model, data, wrong, message, monkeypatch):
    monkeypatch.setattr("training.compare_runs.tag_rows", lambda *arguments: pytest.fail("posts were tagged first"))
    arguments = [argument.format(model=saved_model, data=data) for argument in wrong]
    monkeypatch.setattr("sys.argv", ["compare_runs", *arguments, "--data_path", str(data)])
    with pytest.raises(SystemExit, match=f"^compare_runs: .*{message}") as error:
        cli()
    assert "\n" not in error.value.code


def test_the_folder_of_the_comparison_is_made(saved_model, data, tmp_path):
    main([str(saved_model), str(saved_model), "--data_path", str(data), "--output", str(tmp_path / "new" / "c.json")])
    assert json.loads((tmp_path / "new" / "c.json").read_text())["difference"] == 0


def test_the_interval_is_that_of_pairs():
    """One post in two is right in both or in neither: single samples differ much, and pairs not at all."""
    counts = [Counts(place % 2, 1, 1) for place in range(40)]
    assert paired_bootstrap(counts, counts) == (0, 0, 0)
    wrong, right = [Counts(0, 1, 1)] * 40, [Counts(1, 1, 1)] * 40
    assert paired_bootstrap(wrong, right) == (1, 1, 1)
    one_better = [Counts(1, 1, 1), *counts[1:]]
    difference, low, high = paired_bootstrap(counts, one_better)
    assert difference == pytest.approx(1 / 40) and low == 0 and 1 / 40 < high < 0.1


def test_models_trained_with_several_seeds_are_compared_over_seeds_and_posts():
    generator = np.random.default_rng(0)
    gold = np.ones((3, 400), int)
    found, better = generator.random((3, 400)) < 0.5, generator.random((3, 400)) < 0.6
    counts, other = (np.stack([hits, gold, gold], -1).astype(int) for hits in (better, found))
    difference, low, high = paired_bootstrap(other, counts)
    assert difference == pytest.approx(better.mean() - found.mean())
    assert low < difference < high
    # F1 is a share here: the difference of the means of 400 posts, in each of which three seeds were right or not.
    by_post = (better.astype(int) - found).mean(0).std() / 20
    assert 3 * by_post < high - low < 6 * by_post
    assert paired_bootstrap(counts, counts) == (0.0, 0.0, 0.0)
    # Posts that are hard for both models move both: the difference hardly moves.
    hard = generator.random(400) < 0.5
    counts, other = (np.stack([np.broadcast_to(hard & mask, (3, 400)), gold, gold], -1).astype(int)
                     for mask in (np.ones(400, bool), np.arange(400) > 3))  # fmt: skip
    difference, low, high = paired_bootstrap(other, counts)
    assert 0 <= low <= high < 0.02
