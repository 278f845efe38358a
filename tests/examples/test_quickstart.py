"""The notebook as a reader runs it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert not re.search(r"/(home|root|tmp|work)/", NOTEBOOK.read_text(encoding="utf-8"))


def test_it_runs_to_a_marked_picture(notebook):
    ran = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    outputs = [output for cell in ran.cells for output in cell.get("outputs", [])]
    data = {kind: content for output in outputs for kind, content in output.get("data", {}).items()}
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width >= 480 and "<mark" in data["text/html"] and "Jordan" in data["text/html"]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "IMGID:" in printed and re.search(r"F1 on the validation posts: 0\.\d\d|: 1\.00", printed)
