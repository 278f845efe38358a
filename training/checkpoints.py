"""Which checkpoint a run may resume from, and which output folder it may write to."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mner_data.files import OutputError, reserve_output_dir

logger = logging.getLogger(__name__)

# What every checkpoint of the Trainer holds, whatever wraps the model, beside one rng_state file per process.
PARTS = (("model", "pytorch_model"), ("optimizer",), ("scheduler",))
# Holds the number of processes and the CRC-32 of each weight file, which safetensors itself has not.
CONTENTS = "contents.json"
# The settings of the run that writes to a folder. The underscore keeps the file out of a push to the Hub.
SETTINGS = "_run.json"
# Fields of the config that make it another model. Dropout and the like may change from run to run.
IDENTITY = (
    "id2label", "fusion_size", "num_iterations", "use_global", "use_objects", "use_spatial", "use_semantic",
    "use_relevance", "use_crf",
)  # fmt: skip
TEXT_IDENTITY = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")

# What a training leaves in its folder, and what it leaves beside that is replaced without a loss: the scores.
TRAINED, SCORES = ("config.json", "checkpoint-*", "hyperparameters.json"), "all_results.json"
# What torch says where it cannot write a file. Its other errors have the same class.
WRITE_ERROR = re.compile(
    r"PytorchStreamWriter|inline_container|unexpected pos|write\(\)|iostream|I/O|no space|parent directory", re.IGNORECASE
)


def write_contents(folder: Path, num_processes: int):
    """Record what a checkpoint holds, so that a damaged one is recognised later."""
    sums = {path.name: _crc32(path) for path in sorted(folder.glob("*.safetensors"))}
    (folder / CONTENTS).write_text(json.dumps({"num_processes": num_processes, "crc32": sums}))


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end, by every process, and no file of it is damaged.

    All of its files are read: pickled ones carry a sum for each part, and the sums of weights are in `contents.json`.
    """
    try:
        # The Trainer writes its state last.
        json.loads((folder / "trainer_state.json").read_text())
        contents = json.loads((folder / CONTENTS).read_text())
        num_processes, sums = contents["num_processes"], contents["crc32"]
        weights = sorted(folder.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, "pt"):
                pass
        archives = [path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
        names = {path.name for path in (*archives, *weights)}
        random_states = [f"rng_state_{rank}.pth" for rank in range(num_processes)] if num_processes > 1 else ["rng_state.pth"]
        return (
            all(any(name.startswith(part) for name in names) for part in PARTS)
            and names.issuperset(random_states)
            and names.issuperset(sums)
            and all(_crc32(path) == sums.get(path.name) for path in weights)
            and all(map(_is_sound_archive, archives))
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _is_sound_archive(path: Path) -> bool:
    """Whether every part of a file that torch saved has the sum that the archive gives for it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return False


def checkpoint_step(path: Path) -> int:
    """The step after which a checkpoint was written, by its folder's name."""
    return int(path.name.split("-")[1])


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints of a folder, complete or not, the latest step first."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(paths, key=checkpoint_step, reverse=True)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The complete checkpoint with the latest step; None without one."""
    return next((str(path) for path in checkpoints(output_dir) if is_complete(path)), None)


def rotate(output_dir: str | Path, limit: int | None, step: int, best: str | None = None):
    """Remove the oldest checkpoints beyond `limit`, by their steps and not by file times, which a clock can turn around.

    Args:
        step: the step of the checkpoint that was just written. It is kept, and so are later ones: an earlier run left them.
        best: the checkpoint with the best score, which is kept too.
    """
    if not limit or limit < 1:
        return
    earlier = [path for path in checkpoints(output_dir) if checkpoint_step(path) < step]
    kept = limit - 1
    if best is not None and any(path.name == Path(best).name for path in earlier):
        earlier = [path for path in earlier if path.name != Path(best).name]
        kept = max(0, kept - 1)
    for path in earlier[kept:]:
        shutil.rmtree(path, ignore_errors=True)


def check_writable(folder: Path, option: str = "output_dir"):
    """Raises `OutputError` now rather than after hours of training or tagging. The folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OutputError(f"{option} {folder} cannot be written: {error.strerror or error}") from error


def reserve(
    folder: Path, settings: dict[str, Any], overwrite: bool, is_main_process: bool, do_train: bool = True
) -> AbstractContextManager[None]:
    """Reserve an output folder for one run; see [`reserve_output_dir`].

    A folder with a model, checkpoints, scores or values of a search of other settings is refused. With `overwrite` all of these
    but the model are removed, so that no later run takes them for its own. Scoring alone (`do_train` false) removes scores and
    never what was trained.
    """
    can_overwrite = do_train or not any(path for pattern in TRAINED for path in folder.glob(pattern))

    def remove_results(output_dir: Path):
        for path in checkpoints(output_dir):
            shutil.rmtree(path)
        for name in (SCORES, "hyperparameters.json"):
            (output_dir / name).unlink(missing_ok=True)

    return reserve_output_dir(
        folder,
        settings,
        settings_file=SETTINGS,
        results=(*TRAINED, SCORES),
        overwrite=overwrite and can_overwrite,
        clear=remove_results if can_overwrite else None,
        option="--output_dir",
        overwrite_option="--overwrite_output_dir",
        is_main_process=is_main_process,
    )


def check_resumable(checkpoint: str, config, settings: dict[str, Any] | None = None) -> None:
    """Check the checkpoint that a run resumes from.

    Args:
        config: the model's config in this run.
        settings: settings of this run. Where the checkpoint lies in another run's folder, differences are logged: the weights
            will not be those of an uninterrupted run.

    Raises:
        OutputError: the checkpoint is not complete, or is another model's.
    """
    folder = Path(checkpoint)
    if not is_complete(folder):
        complete = last_complete_checkpoint(folder.parent)
        raise OutputError(
            f"{folder} is not a complete checkpoint: a file is missing or damaged; "
            f"the last complete one in {folder.parent}: {complete or 'none'}"
        )
    saved, current = json.loads((folder / "config.json").read_text()), json.loads(config.to_json_string(use_diff=False))
    # A config is saved without the values that are the defaults.
    saved = type(config)(**saved).to_dict() if "model_type" in saved else saved
    saved = json.loads(json.dumps(saved, default=str))
    differing = [name for name in IDENTITY if saved.get(name) != current.get(name)]
    differing += [
        f"text_config.{name}" for name in TEXT_IDENTITY if saved["text_config"].get(name) != current["text_config"].get(name)
    ]
    if saved["vision_config"].get("backbone") != current["vision_config"].get("backbone"):
        differing.append("vision_config.backbone")
    if differing:
        raise OutputError(f"{folder} is a checkpoint of another model: {', '.join(differing)} differ")
    run = folder.parent / SETTINGS
    if settings is not None and run.is_file():
        earlier, settings = json.loads(run.read_text()), json.loads(json.dumps(settings))
        if names := sorted(name for name in settings | earlier if settings.get(name) != earlier.get(name)):
            logger.warning("%s is a checkpoint of a run with other settings: %s differ", folder, ", ".join(names))


@contextmanager
def explain_write_errors(what: str, folder: str | Path) -> Iterator[None]:
    """Turn a failed write, most often on a full disk, into an error that says what, where, the space left and what to do."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not WRITE_ERROR.search(str(error)):
            raise
        free, complete = shutil.disk_usage(folder).free, last_complete_checkpoint(folder)
        advice = f"resume from {complete} with --resume_from_checkpoint auto" if complete else "there is no complete checkpoint"
        raise OutputError(
            f"{what} could not be written to {folder}, where {free / 1e6:.1f} MB are free: {error!s:.300}; {advice}"
        ) from error
