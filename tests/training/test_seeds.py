"""The table of several seeds."""

from __future__ import annotations

import json

import pytest

from training.seeds import run_seeds


def test_mean_and_spread_are_those_of_the_scores_that_every_seed_has(tmp_path, capsys):
    asked = []

    def run(arguments: list[str]) -> dict:
        asked.append(arguments)
        seed = int(arguments[arguments.index("--seed") + 1])
        scores = {"eval_f1": 0.4 + seed / 10, "test_f1_strict": 0.5, "eval_loss": 3.0, "eval_f1_by": {"x": 1}}
        return scores | ({"eval_f1_LOC": 0.25} if seed > 1 else {})

    run_seeds(run, ["c.yaml", "--seeds", "1", "2", "3"], [1, 2, 3], tmp_path, is_main_process=True)
    report = json.loads((tmp_path / "seeds.json").read_text())
    assert report["mean"] == pytest.approx({"eval_f1": 0.6, "test_f1_strict": 0.5})
    assert report["std"] == pytest.approx({"eval_f1": 0.1, "test_f1_strict": 0.0})
    assert "| eval_f1 | 0.5000 | 0.6000 | 0.7000 | 0.6000 | 0.1000 |" in capsys.readouterr().out
    folders = [arguments[arguments.index("--output_dir") + 1] for arguments in asked]
    assert folders == [str(tmp_path / f"seed-{seed}") for seed in (1, 2, 3)]
