"""Check a repo as a stranger would meet it: `python -m hub_scripts.verify_repo DIR|user/repo [--revision R]`.

The checks run in a process of their own that has an empty cache and cannot import anything of this project. A table says
what held; the exit code is the number of checks that failed, at most 100.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download
from safetensors import safe_open

from .push_to_hub import REFERENCE, reference_picture, reference_posts

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")
ABSOLUTE = re.compile(r"(?<![\w:/.~])/(?:home|root|tmp|work|Users|mnt|data|var|opt|srv|scratch)/[\w./-]+")
NEEDED = ("config.json", "processor_config.json", "tokenizer.json", "README.md", REFERENCE)

# Runs where only the repo's files are: prints a JSON of what each step gave or why it failed.
STRANGER = """
import json, sys
OURS = ("modeling_hamlearning", "processors", "mner_data", "training", "bulk", "hub_scripts")
class NotHere:
    # The project may be installed in this environment; a stranger has not got it.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not in the repo")
sys.meta_path.insert(0, NotHere())
from PIL import Image
import torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoProcessor, pipeline
source, revision, result, posts = sys.argv[1], sys.argv[2] or None, sys.argv[3], json.loads(sys.argv[4])
options = {"trust_remote_code": True, "revision": revision}
found = {}
def step(name, action):
    try:
        found[name] = {"value": action()}
    except BaseException as error:
        found[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
def loaded(cls):
    def load():
        model, info = cls.from_pretrained(source, output_loading_info=True, **options)
        missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
        assert not missing, f"weights not in the file: {missing[:5]}"
        wrong = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if torch.isnan(t.float()).any()]
        assert not wrong, f"not a number: {wrong[:5]}"
        kept = set(model.state_dict())
        unsaved = [n for n, _ in model.named_buffers() if n not in kept and ".crf." in f".{n}"]
        assert not unsaved, f"buffers that are not saved: {unsaved}"
        return type(model).__name__
    return load
def tag():
    ner = pipeline("mner", model=source, **options)
    picture = Image.open("picture.png")
    given = [post | {"image": picture if post["image"] else None} for post in posts]
    return ner(given)
step("config", lambda: type(AutoConfig.from_pretrained(source, **options)).__name__)
step("model", loaded(AutoModel))
step("head", loaded(AutoModelForTokenClassification))
step("processor", lambda: type(AutoProcessor.from_pretrained(source, **options)).__name__)
step("pipeline", tag)
step("nothing of ours", lambda: sorted(set(OURS) & set(sys.modules)))
json.dump(found, open(result, "w"))
"""


def verify(source: str, revision: str | None = None) -> list[tuple[str, str | None]]:
    """Checks of a folder or a repo on the Hub: (name, what is wrong or `None`)."""
    with tempfile.TemporaryDirectory() as scratch:
        is_folder = Path(source).is_dir()
        folder = Path(source) if is_folder else Path(snapshot_download(source, revision=revision, cache_dir=f"{scratch}/hub"))
        checks = [
            ("every needed file", _missing_files(folder)),
            ("no pickle", _listed(path.name for path in folder.rglob("*") if path.suffix in PICKLES)),
            ("weights are whole", _broken_weights(folder)),
            ("no absolute path", _absolute_paths(folder)),
            ("every imported file", _missing_imports(folder)),
            ("card metadata", _card_problem(folder)),
        ]
        posts = [post | {"image": post["image"] is not None} for post in reference_posts()]
        where = str(folder.resolve()) if is_folder else source
        found = _as_a_stranger(where, revision, posts, Path(scratch))
        for name in ("config", "model", "head", "processor", "pipeline"):
            checks.append((f"{name} loads and runs", found.get(name, {"error": "was not reached"}).get("error")))
        ours = found.get("nothing of ours", {}).get("value")
        checks.append(("without anything of ours", None if ours == [] else f"imported: {ours}"))
        checks.append(("same outputs as when pushed", _differs(folder, found.get("pipeline", {}).get("value"))))
    return checks


def _listed(names) -> str | None:
    names = sorted(names)
    return ", ".join(names[:5]) if names else None


def _missing_files(folder: Path) -> str | None:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return _listed(missing)


def _broken_weights(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    file.get_slice(name).get_shape()
        except Exception as error:  # noqa: BLE001  (safetensors' own errors have no common class)
            return f"{path.name}: {error}"
    return None


def _absolute_paths(folder: Path) -> str | None:
    """Paths of somebody's machine in configs, cards and code."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".md", ".py", ".yaml") and path.name != "tokenizer.json":
            found += [f"{path.name}: {match}" for match in ABSOLUTE.findall(path.read_text(encoding="utf-8"))]
    return _listed(found)


def _missing_imports(folder: Path) -> str | None:
    missing = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                name = f"{node.module}.py" if node.module and node.level == 1 else f"{'.' * node.level}{node.module or ''}"
                if not (folder / name).is_file():
                    missing.append(f"{path.name} imports {name}")
    return _listed(missing)


def _card_problem(folder: Path) -> str | None:
    if not (folder / "README.md").is_file():
        return "there is no README.md"
    try:
        data = ModelCard.load(folder / "README.md").data
        data.to_dict()
    except Exception as error:  # noqa: BLE001  (whatever huggingface_hub or YAML finds wrong is the finding)
        return f"{type(error).__name__}: {error}"
    if data.library_name != "transformers" or "mner" not in (data.tags or []):
        return "library_name is not transformers, or the tag mner is missing"
    return None


def _as_a_stranger(where: str, revision: str | None, posts: list[dict], scratch: Path) -> dict:
    result = scratch / "result.json"
    (scratch / "stranger.py").write_text(STRANGER)
    reference_picture().save(scratch / "picture.png")
    kept = ("PATH", "HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HF_HOME": str(scratch / "cache"), "HF_MODULES_CACHE": str(scratch / "modules")}
    run = subprocess.run(
        [sys.executable, "stranger.py", where, revision or "", str(result), json.dumps(posts)],
        cwd=scratch, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return json.loads(result.read_text()) if result.is_file() else {"config": {"error": run.stderr[-600:]}}


def _differs(folder: Path, actual: list | None) -> str | None:
    """Entities equal and every number within 1e-4: a stranger's processor may sum in another order."""
    if not (folder / REFERENCE).is_file() or actual is None:
        return "there is nothing to compare"
    expected = json.loads((folder / REFERENCE).read_text())
    return _difference(expected, actual, "result")


def _difference(expected, actual, place: str) -> str | None:
    if isinstance(expected, float) or isinstance(actual, float):
        return None if abs(expected - actual) <= 1e-4 else f"{place}: {actual} instead of {expected}"
    if isinstance(expected, list | dict) and isinstance(actual, type(expected)) and len(expected) == len(actual):
        keys = expected.keys() if isinstance(expected, dict) else range(len(expected))
        found = (
            _difference(expected[key], actual[key], f"{place}.{key}")
            if isinstance(expected, list) or key in actual
            else f"{place} lacks {key}"
            for key in keys
        )
        return next((problem for problem in found if problem), None)
    return None if expected == actual else f"{place}: {actual!r:.80} instead of {expected!r:.80}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, or user/repo on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit")
    options = parser.parse_args(arguments)
    checks = verify(options.source, options.revision)
    for name, problem in checks:
        print(f"{'ok' if problem is None else 'FAILED':<8}{name:<32}{problem or ''}")
    return min(sum(problem is not None for _, problem in checks), 100)


if __name__ == "__main__":
    sys.exit(main())
