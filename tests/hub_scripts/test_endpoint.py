"""The handler of a pushed repo, as Inference Endpoints run it: in a process that has the repo's files and nothing of ours."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import pipeline

from hub_scripts.push_to_hub import build_repo
from tests.tiny_model import LABELS, saved_tiny_model
from training.card import write_card

SERVE = """
import json, sys
sys.path.insert(0, "repo")
from handler import EndpointHandler
assert not {"modeling_hamlearning", "processors"} & set(sys.modules)
handler = EndpointHandler("repo")
answers = []
for request in json.load(open("requests.json")):
    try:
        answers.append(handler(request))
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
TEXT = "Jordan scores again on the court"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    saved_tiny_model(folder / "model")
    write_card(folder / "model", "tiny", "synthetic", {}, {}, {"seed": 0}, LABELS, [])
    build_repo(folder / "model", folder / "repo", "user/tiny")
    return folder


def test_requests_are_answered_by_the_repo_alone(folder):
    assert (folder / "repo" / "requirements.txt").is_file()
    image = Image.linear_gradient("L").resize((90, 50)).convert("RGB")
    content = io.BytesIO()
    image.save(content, "PNG")
    (folder / "secret.png").write_bytes(content.getvalue())
    encoded = base64.b64encode(content.getvalue()).decode()
    requests = [
        {"inputs": TEXT},
        {"inputs": {"text": TEXT, "image": encoded}},
        {"inputs": [TEXT, {"text": TEXT, "image": f"data:image/png;base64,{encoded}"}], "parameters": {"return_relevance": True}},
        {"inputs": {"text": TEXT, "image": [encoded]}},
        *[{"inputs": {"text": TEXT, "image": nothing}} for nothing in ("", " ", float("nan"), [], [""], [None])],
        {"inputs": {"text": TEXT, "image": str(folder / "secret.png")}},
        {"inputs": {"text": TEXT, "image": "secret.png"}},
        {"inputs": {"text": TEXT, "image": {"path": "secret.png"}}},
        {"inputs": {"text": TEXT, "image": ["", "secret.png"]}},
        {"inputs": {"text": TEXT, "image": ["secret.png", "secret.png"]}},
        {"inputs": {"text": TEXT, "image": [{"path": "secret.png"}]}},
        {"inputs": {"text": TEXT, "image": "http://127.0.0.1:9/x.png"}},
        {"inputs": {"text": TEXT, "image": encoded[:60]}},
        {"inputs": [3]},
        {"inputs": TEXT, "options": {}},
    ]
    (folder / "requests.json").write_text(json.dumps(requests))
    (folder / "serve.py").write_text(SERVE)
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # the last bit of a score depends on it
    command = [sys.executable, "-P", "serve.py"]
    output = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    answers = json.loads(output.splitlines()[-1])

    ner = pipeline("mner", model=str(folder / "repo"), trust_remote_code=True)
    expected = [ner(TEXT), ner({"text": TEXT, "image": image})]
    expected.append(ner([TEXT, {"text": TEXT, "image": image}], return_relevance=True, batch_size=16))
    assert answers[:2] == json.loads(json.dumps(expected[:2]))
    assert [sorted(answer) for answer in answers[2]] == [["entities", "relevance"]] * 2
    assert [[entity["word"] for entity in answer["entities"]] for answer in answers[2]] == [
        [entity["word"] for entity in answer["entities"]] for answer in expected[2]
    ]
    assert answers[3] == answers[1] and answers[4:10] == [answers[0]] * 6
    reasons = [
        "base64",
        "base64",
        "got dict",
        "base64",
        "got list",
        "got dict",
        "not a public address",
        "image",
        "got int",
        "options",
    ]
    for answer, reason in zip(answers[10:], reasons, strict=True):
        assert isinstance(answer, str) and reason in answer, (answer, reason)
