"""Which checkpoint a run may go on from, and which folder it may write to."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mner_data.files import atomic_write

# What a checkpoint of the Trainer has, whatever wraps the model, beside one rng_state a process.
PARTS = (("model", "pytorch_model"), ("optimizer",), ("scheduler",))
# Says of how many processes.
PROCESSES = "processes.json"
# Hidden from a push to the Hub by its underscore.
SETTINGS = "_run.json"
# What makes a model another one. Dropout and the like may change from run to run.
IDENTITY = (
    "id2label", "fusion_size", "num_iterations", "use_global", "use_objects", "use_spatial", "use_semantic",
    "use_relevance", "use_crf",
)  # fmt: skip
TEXT_IDENTITY = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


class OutputError(OSError):
    """An output folder that cannot be written, or that holds something else: which, why, what to do."""


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint of the Trainer, of one process or of several, was written to its end."""
    try:
        # The Trainer writes its state last.
        json.loads((folder / "trainer_state.json").read_text())
        processes = json.loads((folder / PROCESSES).read_text())
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
        pickled = [path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
        names = [path.name for path in (*pickled, *folder.glob("*.safetensors"))]
    except (OSError, ValueError, SafetensorError):
        return False
    random_states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    return (
        all(any(name.startswith(part) for name in names) for part in PARTS)
        and set(random_states) <= set(names)
        and all(map(zipfile.is_zipfile, pickled))
    )


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints of a folder, whole or not, the latest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    return next((str(path) for path in checkpoints(output_dir) if is_complete(path)), None)


def check_writable(folder: Path):
    """Raises `OutputError` now rather than after hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OutputError(f"output_dir {folder} cannot be written: {error.strerror or error}") from error


def claim(folder: Path, settings: dict[str, Any], overwrite: bool, is_first: bool):
    """Take a folder for a run of these settings. One that holds a run of others is refused, or cleared if so told.

    Only the first process writes; what it clears are checkpoints, which no later run may go on from.
    """
    mark, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if (folder / "config.json").exists() or checkpoints(folder):
        there = json.loads(mark.read_text()) if mark.is_file() else None
        if there != settings and not overwrite:
            names = sorted(name for name in settings | (there or {}) if (there or {}).get(name) != settings.get(name))
            what = f"another run ({', '.join(names)} differ)" if there else "a model that no such run has made"
            raise OutputError(
                f"output_dir {folder} holds {what}: choose another --output_dir, or give --overwrite_output_dir, which "
                "removes its checkpoints"
            )
        if there != settings and is_first:
            for path in checkpoints(folder):
                shutil.rmtree(path)
    if is_first:
        with atomic_write(mark) as path:
            path.write_text(json.dumps(settings, indent=1))


def check_resumable(checkpoint: str, config) -> None:
    """Raises `OutputError` for a checkpoint that is not whole, or is another model's."""
    folder = Path(checkpoint)
    if not is_complete(folder):
        whole = last_complete_checkpoint(folder.parent)
        raise OutputError(f"{folder} is no whole checkpoint; the last whole one beside it: {whole or 'none'}")
    there, here = json.loads((folder / "config.json").read_text()), json.loads(config.to_json_string(use_diff=False))
    # A config is saved without the values that are the defaults.
    there = type(config)(**there).to_dict() if "model_type" in there else there
    there = json.loads(json.dumps(there, default=str))
    differing = [name for name in IDENTITY if there.get(name) != here.get(name)]
    differing += [f"text_config.{name}" for name in TEXT_IDENTITY
                  if there["text_config"].get(name) != here["text_config"].get(name)]  # fmt: skip
    if there["vision_config"].get("backbone") != here["vision_config"].get("backbone"):
        differing.append("vision_config.backbone")
    if differing:
        raise OutputError(f"{folder} is a checkpoint of another model: {', '.join(differing)} differ")


@contextmanager
def explain_write_errors(what: str, folder: str | Path) -> Iterator[None]:
    """A failed write, on a full disk above all, says what, where, how much room there is and what is left."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        free, whole = shutil.disk_usage(folder).free, last_complete_checkpoint(folder)
        after = f"go on from {whole} with --resume_from_checkpoint auto" if whole else "there is no whole checkpoint"
        raise OutputError(f"{what} could not be written to {folder}, where {free / 1e6:.1f} MB are free: {error!s:.300}; "
                          f"{after}") from error  # fmt: skip
