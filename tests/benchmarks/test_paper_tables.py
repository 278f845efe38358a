"""The paper's tables on two small synthetic data sets, whose fourth type has another name in one of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from datasets import ClassLabel, DatasetDict, Features, List

from benchmarks import paper_tables
from benchmarks.controlled.report import provenance
from benchmarks.controlled.runner import read_runs
from mner_data.loading import dataset_labels
from mner_data.readers import DataError
from mner_data.synthetic_posts import synthetic_splits

DOCS = Path(__file__).resolve().parents[2] / "docs" / "paper_tables"
CONFIG = """
text: from_scratch
text_config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}
tokenizer_config: {kind: word, min_count: 1}
vision: resnet10t
vision_pretrained: false
image_size: 64
region_config: {name: precomputed}
model_config: {fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}
output_dir: nowhere
do_train: true
max_steps: 2
logging_steps: 1
eval_strategy: epoch
save_strategy: epoch
use_cpu: true
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    for seed, name in enumerate(("first", "second")):
        data = synthetic_splits([12, 6, 6], seed=seed)
        if name == "second":
            other = [label.replace("MISC", "OTHER") for label in dataset_labels(data["train"])]
            data = DatasetDict(
                {
                    split: rows.cast(Features(rows.features | {"ner_tags": List(ClassLabel(names=other))}))
                    for split, rows in data.items()
                }
            )
        data.save_to_disk(tmp_path / "sets" / name)
    return tmp_path


def test_tables_and_curves(folder, monkeypatch):
    call = [str(folder / "config.yaml"), "--data", str(folder / "sets"), "--output", str(folder / "out")]
    call += ["--seeds", "0", "--tables", "cross", "noise", "--learning_rate", "1e-3"]
    paper_tables.main(call)
    runs = {(run["data"], run["model"]): run for run in read_runs(folder / "out")}
    assert set(runs) == {(data, model) for data in ("first", "second") for model in ("full model", "text alone")}
    scores = runs["first", "full model"]["scores"]
    assert set(scores) == {
        "validation", "its own", "second", "another post's", "no image", "blur", "heavy JPEG", "occlusion", "pure noise",
    }  # fmt: skip
    totals = {name: score["gold_total"] for name, score in scores.items()}
    assert totals["its own"] == totals["blur"] == runs["second", "text alone"]["scores"]["first"]["gold_total"]
    tables = (folder / "out" / "tables.md").read_text()
    assert "first → second" in tables and "| full model | occlusion |" in tables and "--learning_rate 1e-3" in tables
    assert tables.count("| text alone |") == 2 and "Ablation" not in tables
    assert all((folder / "out" / f"curves-{name}.png").stat().st_size > 5000 for name in ("first", "second"))
    monkeypatch.setattr("benchmarks.controlled.runner.run", lambda *_: pytest.fail("a finished experiment was run again"))
    paper_tables.main(call)


def test_every_model_of_the_tables_runs(folder):
    """With the settings of training that the configs have: checkpoints are saved, and the best is loaded at the end."""
    (folder / "one").mkdir()
    (folder / "sets" / "first").rename(folder / "one" / "first")
    call = [str(folder / "config.yaml"), "--data", str(folder / "one"), "--output", str(folder / "out"), "--seeds", "0"]
    paper_tables.main([*call, "--load_best_model_at_end", "--metric_for_best_model", "f1"])
    runs = {run["model"] for run in read_runs(folder / "out")}
    assert runs == {model for models in paper_tables.TABLES.values() for model in models}
    lines = (folder / "out" / "tables.md").read_text().splitlines()
    assert "## Ablation" in lines and not any("scored on the others" in line for line in lines)
    assert all(any(line.startswith(f"| {model} |") for line in lines) for model in runs)


def test_the_tables_in_docs_are_those_of_their_runs(tmp_path):
    shutil.copy(DOCS / "runs.jsonl", tmp_path)
    shown = (DOCS / "tables.md").read_text(encoding="utf-8")
    paper_tables.write_tables(tmp_path, list(paper_tables.TABLES), shown.splitlines()[-1].strip("`"))
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == shown, "run the command on the last line of tables.md"


def test_the_fourth_type_has_one_name(folder):
    sets = paper_tables.load_sets(folder / "sets", ("first", "second"))
    assert len({tuple(dataset_labels(splits["test"])) for splits in sets.values()}) == 1
    assert "B-MISC" in dataset_labels(sets["second"]["test"])


def test_no_data_is_named(tmp_path):
    with pytest.raises(DataError, match="--data: .* which has no folders"):
        paper_tables.main(["configs/paper.yaml", "--data", str(tmp_path)])


def test_runs_that_do_not_say_their_precision_are_counted_too():
    run = {"seed": 0, "date": "2026-11-30", "cpu_seconds": 36, "versions": {"torch": "2.14.1"}}
    assert provenance([run, run | {"precision": "fp32"}]).startswith("2 runs (1 in fp32, 1 in unknown precision), seeds 0, ")
