"""README and docs: code blocks run as pasted, links lead somewhere, tables are those of the results."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import train
from benchmarks.controlled.report import DOCUMENTS, RESULTS, document_tables, fill_tables
from benchmarks.controlled.runner import read_runs
from training.arguments import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Commands of README that are not run here, by how they begin, and why.
NOT_RUN = {
    "git clone": "needs the network",
    "make demo": "installs packages from the network and trains for minutes",
    "source .venv/bin/activate": "needs the environment that make demo makes",
    "make space": "serves until it is stopped; tests/hub_scripts/test_space.py opens the page",
    "accelerate launch train.py": "downloads encoders and needs data with images; its arguments are parsed below",
    "python predict.py": "starts Ray and needs posts.parquet; tests/bulk runs it",
}


def blocks(language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(README) if name == language]


def commands() -> list[str]:
    """README's shell commands, one after the other."""
    lines = [line.partition(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which README's files are, and a model that was trained for seconds in place of the demo's."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shape = "{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}"
    train.main([
        str(ROOT / "configs" / "demo.yaml"), "--output_dir", str(folder / "outputs" / "demo" / "model"),
        "--synthetic_posts", "[64, 4, 4]", "--image_size", "32", "--freeze_vision",
        "--model_config", "{fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}", "--text_config", shape,
        "--num_train_epochs", "2", "--learning_rate", "5e-3", "--eval_strategy", "no", "--save_strategy", "no",
        "--do_eval", "false", "--use_cpu", "--disable_tqdm", "true",
    ])  # fmt: skip
    return folder


def run(command: list[str], folder: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache")}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


def test_readme_fits_a_screen():
    assert README.count("\n") <= 120


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_blocks_run_as_pasted(index, folder):
    (folder / "block.py").write_text(blocks("python")[index], encoding="utf-8")
    run([sys.executable, "block.py"], folder)
    if index == 0:
        assert Image.open(folder / "tagged_post.png").width >= 480
    else:
        assert (folder / "outputs" / "from_python" / "model.safetensors").is_file()


def test_the_training_block_is_the_script():
    script = (ROOT / "examples" / "train_from_python.py").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 20
    assert script.partition("\n\n")[2] in blocks("python")


def test_bash_commands_run_or_say_why_not(folder):
    begun = set()
    for command in commands():
        reasons = [start for start in NOT_RUN if command.startswith(start)]
        begun.update(reasons)
        if not reasons:
            program, *arguments = shlex.split(command)
            run([sys.executable if program == "python" else program, *arguments], folder)
    assert begun == set(NOT_RUN), "an exception of a command that README no longer has"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_modules_and_arguments_that_exist(page):
    code = "\n".join(code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == "bash")
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert importlib.util.find_spec(module) is not None, module
    for path in re.findall(r"(?:python|config_file) ([\w/]+\.(?:py|yaml))", code):
        assert (ROOT / path).is_file(), path
    for line in re.findall(r"^(?:python|accelerate launch.*?) train\.py ([^#\n]*)", code, re.MULTILINE):
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(line)]
        parse_arguments([*words, "--use_cpu"])
    for target in re.findall(r"^make ([\w-]+)", code, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_tables_are_those_of_the_results(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "<!-- table" in text
    assert fill_tables(text, document_tables(read_runs(ROOT / RESULTS))) == text, "run python -m benchmarks.controlled.report"
