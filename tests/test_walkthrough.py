"""docs/walkthrough.sh as it stands, on a trained model and a Hub on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_hamlearning import HamLearningForTokenClassification
from tests.hub_scripts.hub_server import TOKEN, HubServer
from tests.tiny_model import LABELS, saved_tiny_model
from training.card import write_card

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_model_is_pushed_served_and_asked(tmp_path):
    saved_tiny_model(tmp_path / "model")
    model = HamLearningForTokenClassification.from_pretrained(tmp_path / "model")
    model.classifier.bias.data[LABELS.index("B-PER")] += 50  # every word is a person's name
    model.save_pretrained(tmp_path / "model")
    write_card(tmp_path / "model", "tiny", "synthetic", {}, {}, {"seed": 0}, LABELS, [])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with HubServer() as hub:
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        command = ["bash", "docs/walkthrough.sh", str(tmp_path / "model"), "user/tiny", str(port)]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert "pushed:" in run.stdout and "FAILED" not in run.stdout
    entities = json.loads(lines[-1])
    assert [entity["word"] for entity in entities] == "everybody talks about Jordan tonight".split()
    assert any(entity["region"] for entity in entities), "the photo was read"
    with socket.socket() as left:
        assert left.connect_ex(("127.0.0.1", port)) != 0, "the service has ended"
