"""Two real processes (gloo) against one: the same losses, every post counted once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Nothing is left to chance, and nothing depends on which posts share a process, as the pairs of the matching loss do.
NO_DROPOUT = [
    "--text_config", "{model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 64, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
    "--model_config", "{fusion_size: 32, num_iterations: 2, fusion_attention_heads: 2, fusion_dropout: 0.0, "
    "classifier_dropout: 0.0, image_dropout: 0.0, relevance_loss_weight: 0.0, grounding_loss_weight: 0.0}",
    "--freeze_vision", "true", "--image_size", "32", "--learning_rate", "3e-3", "--max_steps", "50",
    "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--use_cpu", "--disable_tqdm", "true",
]  # fmt: skip
# Each process leaves the world's size and the loss of its last step's posts behind.
SCRIPT = """
import os, sys
from pathlib import Path
import torch.distributed
import train
results = train.main(sys.argv[2:])
assert torch.distributed.get_backend() == "gloo"
Path(sys.argv[1], "rank" + os.environ["RANK"]).write_text(str(torch.distributed.get_world_size()))
"""


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def on_one_and_on_two(folder: Path, posts_a_step: int, *arguments: str) -> list[tuple[list[float], dict, str]]:
    """Losses, results and predictions of the same run on one process and on two."""
    (folder / "script.py").write_text(SCRIPT)
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", free_port(), str(folder / "script.py"), str(folder)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    results = []
    for count, command in ((1, [sys.executable, "train.py"]), (2, launch)):
        output = folder / f"on{count}"
        command += ["configs/demo.yaml", *NO_DROPOUT, *arguments, "--output_dir", str(output)]
        command += ["--per_device_train_batch_size", str(posts_a_step // count)]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        predictions = output / "predictions.txt"
        results.append((
            [entry["loss"] for entry in history if "loss" in entry],
            json.loads((output / "all_results.json").read_text()),
            predictions.read_text(encoding="utf-8") if predictions.exists() else "",
        ))  # fmt: skip
    assert [(folder / name).read_text() for name in ("rank0", "rank1")] == ["2", "2"]
    return results


def compare(one, two):
    assert len(one[0]) == len(two[0]) == 50
    assert max(abs(a - b) / abs(a) for a, b in zip(one[0], two[0], strict=True)) < 1e-4
    assert one[0][-1] < 0.8 * one[0][0], "nothing was learned, so nothing was compared"
    for name in ("eval_gold_total", "eval_num_labelled_words", "eval_f1", "eval_f1_strict"):
        assert one[1][name] == two[1][name], name


@pytest.mark.slow
def test_synthetic_posts(tmp_path):
    # 820 posts: enough that groups made for the batch of one process would differ.
    # 31 and 13 to score, which no batch divides; some batches have no image.
    one, two = on_one_and_on_two(tmp_path, 4, "--synthetic_posts", "[820, 31, 13]", "--do_predict",
                                 "--per_device_eval_batch_size", "4")  # fmt: skip
    compare(one, two)
    assert one[2] == two[2] and one[2].count("IMGID:") == 13
    assert one[1]["test_f1"] == two[1]["test_f1"]


@pytest.mark.slow
def test_the_real_text_set(tmp_path, real_data):
    one, two = on_one_and_on_two(tmp_path, 16, "--data_path", str(real_data / "twitter2017"), "--use_images", "false",
                                 "--tokenizer_config", "{kind: word, min_count: 2}")  # fmt: skip
    compare(one, two)
    assert one[1]["eval_num_labelled_words"] == 11_309 and one[1]["eval_gold_total"] == 1_324
