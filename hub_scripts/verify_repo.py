"""Check a repo as a stranger would meet it: `python -m hub_scripts.verify_repo DIR|user/repo [--revision R]`.

A table says what holds; the exit code is the number of checks that failed, at most 100.

The repo is downloaded here. Its own code runs in another process (`stranger.py`) on a copy of the files, with an empty home and
an empty cache, offline, without any token and without this project. It returns raw entities and tensors; the verdicts are made
here. In the end, or after the time-out, that process and its children are ended. Where Linux allows it (`unshare`), the process
has no network and sees no other process.

What this cannot prove: that a repo is harmless or honest. Code that wants to deceive can return the entities of `reference.json`
and the tensors of the weights' file without computing anything, and it can read and change what your user can. The check
finds mistakes in a repo that you trust. Check a stranger's repo in a container without secrets, and read its code.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, snapshot_download
from safetensors import safe_open

from modeling_hamlearning.crf import bio_constraints

from .push_to_hub import NEEDED, REFERENCE, reference_image, reference_posts
from .stranger import PROJECT

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~])/(?:home|root|tmp|work|Users|mnt|data|var|opt|srv|scratch)/[\w./-]+")
# A fast tokenizer's file, or that of one that is not, such as BERTweet's.
TOKENIZERS = ("tokenizer.json", "vocab.txt")
PLAIN_FILES = "plain files only"
STEPS = ("config", "model", "head", "processor", "pipeline")
TIMEOUT_SECONDS = 600
MAX_REPORT_BYTES = 50 * 2**20
# A stranger's machine may add up in another order.
TOLERANCE = 1e-4
# A new user, process and network namespace: no network, no other process in sight, and no process left when the first ends.
ISOLATION = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


class Check(NamedTuple):
    """One line of the table: `result` is "ok", "FAILED" or "skipped", `detail` says why."""

    name: str
    result: str
    detail: str = ""


class Skipped(Exception):
    """A check that does not apply to this repo or this machine, and why."""


class _Table(list[Check]):
    """The checks so far."""

    def check(self, name: str, find_problem: Callable[..., str | None], *arguments) -> bool:
        """Add a line: what the function returns or raises is the problem, `None` is none. Returns whether to go on."""
        try:
            problem = find_problem(*arguments)
        except Skipped as reason:
            self.append(Check(name, "skipped", str(reason)))
        except Exception as error:
            self.append(Check(name, "FAILED", f"{type(error).__name__}: {error}"))
        else:
            self.append(Check(name, "ok" if problem is None else "FAILED", problem or ""))
        return self[-1].result != "FAILED"


def verify(source: str, revision: str | None = None, timeout: float = TIMEOUT_SECONDS) -> list[Check]:
    """Check a folder or a repo on the Hub.

    Args:
        source: a folder, or `user/repo`.
        revision: branch, tag or commit of a repo on the Hub.
        timeout: seconds that the repo's own code may run.

    Returns:
        The checks in the order of the table. Whatever goes wrong is a failed check and raises nothing.
    """
    table = _Table()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(scratch, "download")
            if not table.check("downloads", _download, source, revision, folder):
                return table
        table += check_files(folder)
        if table[-1].name != PLAIN_FILES:
            table += check_code(folder, Path(scratch, "room"), timeout)
    return table


def check_files(folder: Path) -> list[Check]:
    """The checks that run none of the repo's code."""
    table = _Table()
    # What is not a plain file could hold up every check that follows.
    if table.check(PLAIN_FILES, _irregular_files, folder):
        table.check("every needed file", _missing_files, folder)
        table.check("no pickle", _pickles, folder)
        table.check("weights are complete", _broken_weights, folder)
        table.check("no absolute path", _absolute_paths, folder)
        table.check("every imported file", _missing_imports, folder)
        table.check("card metadata", _card_problem, folder)
    return table


def check_code(folder: Path, room: Path, timeout: float) -> list[Check]:
    """The checks that load the repo, with its own code.

    Args:
        folder: the repo; its code gets a copy, so that it cannot change what its outputs are compared with.
        room: a new folder, where the code runs.
        timeout: seconds that it may run.
    """
    table = _Table()
    if not table.check("can be copied", _prepare_room, folder, room):
        return table
    is_isolated = _can_isolate()
    report, end = _run_as_a_stranger(room, is_isolated, timeout)
    return table + judge(report, end, folder, room) + [_isolation(is_isolated)]


def judge(report: dict[str, Any], end: str, folder: Path, room: Path) -> list[Check]:
    """What the report of `stranger.py` and the tensors beside it say about the repo.

    Args:
        report: step → its value or its error.
        end: how the process ended.
        folder: the repo.
        room: where the code ran and left the tensors.
    """
    table = _Table()
    for step in STEPS:
        table.check(f"{step} loads and runs", _step_problem, report, step, end)
    table.check("weights as in the file", _changed_weights, report, folder, room)
    table.check("without this project", _project_modules, report, end)
    table.check("same outputs as when pushed", _changed_outputs, report, folder)
    return table


def _join(names: Iterable[str]) -> str | None:
    """The first five names, or `None` without any."""
    names = sorted(names)
    return ", ".join(names[:5]) if names else None


def _download(source: str, revision: str | None, folder: Path) -> None:
    """Fetch the repo with the user's token, which the repo's code never gets."""
    snapshot = snapshot_download(source, revision=revision, cache_dir=folder.with_name("hub"))
    shutil.copytree(snapshot, folder)


def _irregular_files(folder: Path) -> str | None:
    return _join(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_file() and not path.is_dir())


def _missing_files(folder: Path) -> str | None:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append(TOKENIZERS[0])
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return _join(missing)


def _pickles(folder: Path) -> str | None:
    return _join(path.name for path in folder.rglob("*") if path.suffix.lower() in PICKLES)


def _broken_weights(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            not_numbers = [name for name in file.keys() if file.get_tensor(name).isnan().any()]
        if not_numbers:
            return f"{path.name} holds NaN: {_join(not_numbers)}"
    return None


def _absolute_paths(folder: Path) -> str | None:
    """Paths of somebody's machine in configs, cards and code."""
    paths = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".md", ".py", ".yaml") and path.name != "tokenizer.json":
            paths += [f"{path.name}: {match}" for match in ABSOLUTE_PATH.findall(path.read_text(encoding="utf-8"))]
    return _join(paths)


def _missing_imports(folder: Path) -> str | None:
    missing = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path.name)):
            if isinstance(node, ast.ImportFrom) and node.level:
                name = f"{node.module}.py" if node.module and node.level == 1 else f"{'.' * node.level}{node.module or ''}"
                if not (folder / name).is_file():
                    missing.append(f"{path.name} imports {name}")
    return _join(missing)


def _card_problem(folder: Path) -> str | None:
    data = ModelCard.load(folder / "README.md").data
    data.to_dict()
    if data.library_name != "transformers" or "mner" not in (data.tags or []):
        return f"expected library_name transformers and the tag mner, got {data.library_name} and {data.tags}"
    return None


def _prepare_room(folder: Path, room: Path) -> None:
    """All that the repo's code gets: a copy of the repo, the posts, an empty home, and a cache with the detectors it names."""
    shutil.copytree(folder, room / "repo", ignore=shutil.ignore_patterns("checkpoint-*", ".git"))
    (room / "home").mkdir()
    shutil.copyfile(Path(__file__).with_name("stranger.py"), room / "stranger.py")
    posts = [post | {"image": post["image"] is not None} for post in reference_posts()]
    (room / "posts.json").write_text(json.dumps(posts), encoding="utf-8")
    reference_image().save(room / "image.png")
    for detector, revision in _detectors(folder):
        # Public ones only: with a token, a repo could name a private repo of the user and read it.
        snapshot_download(
            detector, revision=revision, cache_dir=room / "home" / "hub", allow_patterns=["*.json", "*.safetensors"], token=False
        )


def _detectors(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Name and revision of every object detector on the Hub that the processor's config names."""
    path = folder / "processor_config.json"
    stack = [json.loads(path.read_text(encoding="utf-8")).get("region_config")] if path.is_file() else []
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
            if isinstance(value.get("model"), str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value["model"]):
                yield value["model"], value.get("revision")


def _can_isolate() -> bool:
    try:
        return subprocess.run([*ISOLATION, "true"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run_as_a_stranger(room: Path, is_isolated: bool, timeout: float) -> tuple[dict[str, Any], str]:
    """Run `stranger.py` and end every process it started.

    Returns:
        Its report by step, empty if it wrote none, and how the process ended.
    """
    environment = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SYSTEMROOT") if name in os.environ
    }
    home = str(room / "home")
    environment |= {"HOME": home, "USERPROFILE": home, "TMPDIR": home, "HF_HOME": home, "PYTHONUSERBASE": site.getuserbase()}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [*(ISOLATION if is_isolated else ()), sys.executable, "-P", "stranger.py"]
    with open(room.with_name("stderr"), "wb") as stderr:
        process = subprocess.Popen(
            command, cwd=room, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip
        try:
            end = f"ended with exit code {process.wait(timeout)}"
        except subprocess.TimeoutExpired:
            end = f"ended by the time-out of {timeout:.0f} seconds"
        finally:
            _end_group(process)
    report = _read_report(room / "report.json")
    if not report:
        with open(room.with_name("stderr"), "rb") as stderr:
            stderr.seek(max(0, os.fstat(stderr.fileno()).st_size - 600))
            end += f", without a report: {stderr.read(600).decode(errors='replace')}"
    return report, end


def _end_group(process: subprocess.Popen):
    """End the process and all that it started, however it went."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _read_report(path: Path) -> dict[str, Any]:
    """The report, or an empty one if the repo's code left none: no file, a link, a pipe, another format."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_REPORT_BYTES:
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _value(report: dict[str, Any], step: str) -> Any:
    """What the step returned.

    Raises:
        Skipped: it returned nothing, which has a line of its own.
    """
    outcome = report.get(step)
    if not isinstance(outcome, dict) or "value" not in outcome:
        raise Skipped(f"needs the step {step}")
    return outcome["value"]


def _step_problem(report: dict[str, Any], step: str, end: str) -> str | None:
    outcome = report.get(step)
    if not isinstance(outcome, dict):
        return f"was not reached: the process {end}"
    if "value" not in outcome:
        return str(outcome.get("error"))
    value = outcome["value"]
    if step == "pipeline":
        expected = len(reference_posts())
        if not isinstance(value, list) or len(value) != expected:
            return f"expected a list of the entities of {expected} posts, got {value!r:.80}"
    if step in ("model", "head") and (value["missing"] or value["mismatched"]):
        return f"weights that are not in the file: {_join(map(str, value['missing'] + value['mismatched']))}"
    return None


def _changed_weights(report: dict[str, Any], folder: Path, room: Path) -> str | None:
    """Every tensor as loaded, by both classes, against the file's: equal bit for bit, in the precision that was loaded."""
    id2label = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    constraints = bio_constraints([id2label[str(index)] for index in range(len(id2label))])
    for step, prefix in (("head", ""), ("model", "model.")):
        saved = set(_value(report, step)["saved"])
        path = room / f"{step}.safetensors"
        if path.is_symlink() or not path.is_file():
            return f"{step}: the loaded tensors were not written"
        with _open_weights(folder) as (stored, read_stored), safe_open(path, framework="pt") as loaded:
            names = {name: prefix + name for name in loaded.keys()}
            # The CRF's constraints are not saved: they follow from the names of the labels.
            for name in set(names) - saved:
                expected = constraints.get(name.removeprefix("crf.")) if name.startswith("crf.") else None
                if name.startswith("crf.") and (expected is None or not torch.equal(loaded.get_tensor(name), expected)):
                    return f"{step}: {name} is not what the names of the labels ask for"
            if unused := [name for name in stored if name.startswith(prefix) and name.removeprefix(prefix) not in names]:
                return f"{step}: in the file and not in the model: {_join(unused)}"
            for name, stored_name in names.items():
                tensor = loaded.get_tensor(name)
                if tensor.isnan().any():
                    return f"{step}: NaN in {name}"
                if stored_name in stored and not torch.equal(tensor, read_stored(stored_name).to(tensor.dtype)):
                    return f"{step}: {name} is not what the file holds"
    return None


@contextmanager
def _open_weights(folder: Path) -> Iterator[tuple[set[str], Callable[[str], torch.Tensor]]]:
    """The names of all tensors in the folder's safetensors files, and a function that reads one."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        files |= dict.fromkeys(file.keys(), file)
    yield set(files), lambda name: files[name].get_tensor(name)


def _project_modules(report: dict[str, Any], end: str) -> str | None:
    modules = report.get("modules")
    if not isinstance(modules, dict) or "value" not in modules:
        return f"was not reached: the process {end}"
    return _join({name.partition(".")[0] for name in modules["value"]} & set(PROJECT))


def _changed_outputs(report: dict[str, Any], folder: Path) -> str | None:
    if not (folder / REFERENCE).is_file():
        raise Skipped(f"there is no {REFERENCE}: the folder was not made by push_to_hub")
    expected = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
    return _difference(expected, _value(report, "pipeline"), "result")


def _difference(expected, actual, place: str) -> str | None:
    """Where the two differ: numbers by more than `TOLERANCE`, everything else at all."""
    if isinstance(expected, float) or isinstance(actual, float):
        return None if abs(expected - actual) <= TOLERANCE else f"{place}: expected {expected}, got {actual}"
    if isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        keys = expected.keys()
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        keys = range(len(expected))
    else:
        return None if expected == actual else f"{place}: expected {expected!r:.80}, got {actual!r:.80}"
    differences = (_difference(expected[key], actual[key], f"{place}.{key}") for key in keys)
    return next((difference for difference in differences if difference), None)


def _isolation(is_isolated: bool) -> Check:
    name = "code ran isolated"
    if is_isolated:
        return Check(name, "ok")
    return Check(name, "skipped", "no namespaces on this machine: the code had your network, and may still be running")


def _printable(text: str) -> str:
    """One line without control characters: a repo's error message could forge lines of the table."""
    return "".join(character if character.isprintable() else " " for character in text)[:300]


def main(arguments: list[str] | None = None) -> int:
    """Print the table and return the number of failed checks, at most 100."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, or user/repo on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds that the repo's own code may run")
    options = parser.parse_args(arguments)
    checks = verify(options.source, options.revision, options.timeout)
    for check in checks:
        print(f"{check.result:<8}{check.name:<32}{_printable(check.detail)}".rstrip())
    return min(sum(check.result == "FAILED" for check in checks), 100)


def cli():
    """Entry point of the command line."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
