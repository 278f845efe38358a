"""What is installed: the version bounds agree with each other, and a wheel works where there is no checkout."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement

from modeling_hamlearning import configuration_hamlearning

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "hamlearning-train",
    "hamlearning-predict",
    "hamlearning-serve",
    "hamlearning-prepare-dataset",
    "hamlearning-push",
    "hamlearning-verify",
    "hamlearning-export-onnx",
    "hamlearning-compare-runs",
}


def git_files(*options: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    output = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return output.split("\0")[:-1]


@pytest.fixture
def setup_arguments(monkeypatch) -> dict:
    """The arguments that setup.py calls `setup` with."""
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: arguments.update(keywords))
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def by_name(requirements: list[str]) -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in map(Requirement, requirements)}


def test_the_model_asks_for_the_transformers_of_setup_py(setup_arguments):
    transformers_bounds = by_name(setup_arguments["install_requires"])["transformers"].specifier
    assert str(transformers_bounds) == f"<6,>={configuration_hamlearning.MIN_TRANSFORMERS}"
    assert "6.0.0" not in transformers_bounds


def test_the_space_asks_for_the_versions_of_setup_py(setup_arguments):
    bounds = by_name(setup_arguments["install_requires"] + setup_arguments["extras_require"]["space"])
    space = by_name((ROOT / "hub_scripts" / "space" / "requirements.txt").read_text().splitlines())
    # The last three are what some tokenizers need.
    assert {"gradio", "timm", "torch", "transformers", "emoji", "protobuf", "sentencepiece"} <= set(space)
    assert space == {name: bounds[name] for name in space}


def test_an_endpoint_asks_for_the_versions_of_setup_py(setup_arguments):
    bounds = by_name(setup_arguments["install_requires"])
    endpoint = by_name((ROOT / "hub_scripts" / "endpoint" / "requirements.txt").read_text().splitlines())
    assert {"timm", "torch", "transformers", "emoji", "protobuf", "sentencepiece"} <= set(endpoint)
    assert endpoint == {name: bounds[name] for name in endpoint}


def test_pre_commit_runs_the_tools_of_setup_py(setup_arguments):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff-check", "ruff-format", "codespell"} == {hook["id"] for hook in hooks}
    for hook in hooks:
        assert set(hook["additional_dependencies"]) <= set(setup_arguments["extras_require"]["dev"]), hook["id"]


def test_the_lowest_versions_are_exact(setup_arguments):
    extras = setup_arguments["extras_require"]
    names = ("space", "bulk", "serve", "spacy", "onnx", "bench", "lora", "search")
    optional = [requirement for name in names for requirement in extras[name]]
    bounds, lowest = by_name(setup_arguments["install_requires"] + optional), by_name(extras["lowest"])
    assert set(lowest) == set(bounds)
    for name, requirement in lowest.items():
        exact = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        assert len(exact) == 1 and exact[0] in bounds[name].specifier, name


def test_versions_agree(setup_arguments):
    version = setup_arguments["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    releases = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert releases[0] == version


def test_every_package_is_typed_and_installed(setup_arguments):
    packages = set(setup_arguments["packages"])
    assert all((ROOT / package.replace(".", "/") / "py.typed").is_file() for package in packages)
    imported = {Path(name).parts[0] for name in git_files() if name.endswith(".py") and len(Path(name).parts) == 2}
    assert imported - packages == {"benchmarks", "examples", "tests"}
    modules = {Path(name).stem for name in git_files() if name.endswith(".py") and len(Path(name).parts) == 1}
    assert modules - {"setup"} == set(setup_arguments["py_modules"])


def test_no_file_of_the_checkout_is_a_symlink():
    """git writes a symlink as a text file on Windows."""
    assert not [line for line in git_files("--stage") if line.startswith("120000")]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel that pip builds of this checkout's files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in git_files("--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "checkout" / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder / "dist")]
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "checkout", cwd=folder)
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """`bin` of a virtual environment with the wheel in it, which sees the other packages that are installed here."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = next(path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.is_file())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # The editable install of this checkout, itself a .pth file, is not followed from there.
    Path(purelib, "others.pth").write_text("\n".join(here))
    return python.parent


def run(*command: object, cwd: Path) -> str:
    """Output of a command that sees nothing of this checkout: pip would take its metadata for an installed package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_holds_what_is_read_beside_the_code(wheel, installed):
    site = next(installed.parent.rglob("modeling_hamlearning")).parent
    assert (site / "training" / "model_card.md").read_text() == (ROOT / "model_card.md").read_text()
    for name in git_files("hub_scripts/space", "hub_scripts/endpoint"):
        assert (site / name).read_bytes() == (ROOT / name).read_bytes()
    assert {path.name for path in installed.iterdir() if path.name.startswith("hamlearning")} == COMMANDS


TAG = """
import sys
import modeling_hamlearning, training.card
from transformers import pipeline

assert modeling_hamlearning.__file__.startswith(sys.prefix), modeling_hamlearning.__file__
import json
print(json.dumps(pipeline("mner", model="trained", trust_remote_code=True)({"text": "Jordan is in Paris"})))
"""

SMALL = (
    "--synthetic_posts", "[16, 4, 4]", "--text", "from_scratch", "--tokenizer_config", "{kind: word, min_count: 1}",
    "--text_config", "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}",
    "--vision", "resnet10t", "--vision_pretrained", "false", "--image_size", "32", "--region_config", "{name: precomputed}",
    "--model_config", "{fusion_size: 32, num_iterations: 1, fusion_attention_heads: 2}", "--seed", "0", "--use_cpu",
)  # fmt: skip


@pytest.mark.slow
def test_the_wheel_trains_and_tags_away_from_the_checkout(installed, tmp_path):
    run(
        installed / "hamlearning-train", "--output_dir", "trained", "--do_train", "--do_eval", "--max_steps", "2", *SMALL,
        cwd=tmp_path,
    )  # fmt: skip
    card = (tmp_path / "trained" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: token-classification" in card and "F1" in card
    entities = json.loads(run(installed / "python", "-c", TAG, cwd=tmp_path).splitlines()[-1])
    assert isinstance(entities, list) and all(entity["word"] in "Jordan is in Paris" for entity in entities)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_of_the_wheel_runs(installed, tmp_path, command):
    assert "usage" in run(installed / command, "--help", cwd=tmp_path).lower()


def test_the_commands_are_those_of_setup_py(setup_arguments):
    names = {line.split(" = ")[0] for line in setup_arguments["entry_points"]["console_scripts"]}
    assert names == COMMANDS
