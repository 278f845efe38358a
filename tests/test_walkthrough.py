"""docs/walkthrough.sh as it stands, on sixty annotated posts and a Hub on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities

from mner_data.loading import dataset_labels
from mner_data.synthetic_posts import synthetic_splits
from tests.hub_scripts.hub_server import TOKEN, HubServer

ROOT = Path(__file__).resolve().parents[1]


def doccano_export(rows: Dataset, path: Path, renamed: dict[str, str]):
    """Write posts as doccano exports them, spans by characters, and their images beside them."""
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    names, lines = dataset_labels(rows), []
    for row in rows:
        starts = [sum(len(token) + 1 for token in row["tokens"][:place]) for place in range(len(row["tokens"]))]
        spans = [
            [starts[first], starts[last] + len(row["tokens"][last]), renamed.get(kind, kind)]
            for kind, first, last in get_entities([names[tag] for tag in row["ner_tags"]])
        ]
        post = {"id": row["id"], "text": " ".join(row["tokens"]), "label": spans, "Comments": []}
        if row["image"] is not None:
            post["image"] = f"images/{row['id']}.png"
            (path.parent / post["image"]).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps(post))
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.slow
def test_from_an_export_to_entities_over_http(tmp_path):
    posts = synthetic_splits([50, 10])
    for folder, renamed in (("annotated", {}), ("more", {"ORG": "TEAM"})):
        for split, name in (("train", "train"), ("validation", "valid")):
            doccano_export(posts[split], tmp_path / folder / f"{name}.jsonl", renamed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with HubServer() as hub:
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "WALKTHROUGH": str(tmp_path / "models")}
        command = ["bash", "docs/walkthrough.sh", str(tmp_path / "annotated"), str(tmp_path / "more"), "user/tiny", str(port)]
        command += ["--num_train_epochs", "30", "--learning_rate", "2e-3", "--save_strategy", "no"]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1500)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "pushed:" in run.stdout and "FAILED" not in run.stdout
    models = tmp_path / "models"
    assert "<html" in (models / "scores" / "errors.html").read_text(encoding="utf-8").lower()
    labels = [json.loads((models / name / "config.json").read_text())["id2label"].values() for name in ("first", "model")]
    assert "B-ORG" in labels[0] and "B-TEAM" not in labels[0] and {"B-ORG", "B-TEAM"} <= set(labels[1])
    entities = json.loads(run.stdout.splitlines()[-1])
    assert "Jordan" in [entity["word"] for entity in entities]
    assert any(entity["region"] for entity in entities), "the photo was read"
    with socket.socket() as left:
        assert left.connect_ex(("127.0.0.1", port)) != 0, "the service has ended"
