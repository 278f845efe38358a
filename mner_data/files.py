"""Output files and folders: a file is complete or absent, and a folder belongs to one run at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

UNFINISHED = ".unfinished"
# Held as long as a run writes to its folder. The underscore hides the file from readers of parquet folders and from pushes.
LOCK_FILE = "_lock"


class OutputError(OSError):
    """An output folder that cannot be used. The message says which folder, why, and what to do."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file so that a killed process leaves the earlier file, or none, and never a part of the new one.

    Yields:
        The path to write to. It is renamed to `path` when the block ends without an error.
    """
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    yield unfinished
    unfinished.replace(path)


@contextmanager
def reserve_output_dir(
    folder: str | Path,
    settings: dict[str, Any],
    *,
    settings_file: str,
    results: Iterable[str] = ("*",),
    overwrite: bool = False,
    clear: Callable[[Path], None] | None = None,
    option: str = "--output",
    overwrite_option: str = "--overwrite",
    is_main_process: bool = True,
) -> Iterator[None]:
    """Reserve an output folder for one run: a new folder, or one where a run of equal settings was interrupted.

    The settings are written to the folder, so that a later run can see whether it continues this one. While the block
    runs, no other process can reserve the folder.

    Args:
        folder: the output folder. It is created.
        settings: everything that makes another result: model, data, seed and so on. Must be JSON.
        settings_file: name of the file in the folder that keeps the settings.
        results: glob patterns of what counts as a result. A folder with results and other settings is refused.
        overwrite: start over. Calls `clear` where the folder has results, also those of equal settings.
        clear: removes the results. It must leave what the program itself did not write. Without it, nothing is overwritten.
        option: the command-line option that names the folder, for messages.
        overwrite_option: the command-line option that sets `overwrite`, for messages.
        is_main_process: only the main process of several locks, clears and writes. The others check alone.

    Raises:
        OutputError: the folder holds another run's results or other files, another process writes to it, or it is not
            writable.
    """
    folder, settings = Path(folder), json.loads(json.dumps(settings))
    settings_path, patterns = folder / settings_file, list(results)
    # Where every file counts as a result, some may be the user's own: without the settings of a run, none is removed.
    can_clear = clear is not None and ("*" not in patterns or settings_path.is_file())
    advice = f"choose another {option}" + (f", or give {overwrite_option} to remove its results" if can_clear else "")
    if not is_main_process:
        if not overwrite:
            _check_settings(settings_path, settings, _results(settings_path, patterns), advice)
        yield
        return
    lock = _lock(folder, option)
    try:
        present = _results(settings_path, patterns)
        if present and overwrite and can_clear:
            clear(folder)
        else:
            _check_settings(settings_path, settings, present, advice)
        with atomic_write(settings_path) as path:
            path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        yield
    finally:
        lock.release()


def _lock(folder: Path, option: str) -> FileLock:
    """Create the folder and lock it against other processes, until `release()` or the end of this process."""
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{folder}: another process writes to this folder; wait for it, or choose another {option}") from error
    except OSError as error:
        raise OutputError(f"{option} {folder} cannot be written: {error.strerror or error}") from error
    return lock


def _results(settings_path: Path, patterns: Iterable[str]) -> list[Path]:
    """What earlier runs, or other programs, left in the folder."""
    paths = {path for pattern in patterns for path in settings_path.parent.glob(pattern)}
    return sorted(
        path for path in paths if path.name not in (settings_path.name, LOCK_FILE) and not path.name.endswith(UNFINISHED)
    )


def _check_settings(settings_path: Path, settings: dict[str, Any], results: list[Path], advice: str):
    """Raises `OutputError` for a folder whose results are of other settings, or of no run at all."""
    if not results:
        return
    folder = settings_path.parent
    if not settings_path.is_file():
        raise OutputError(
            f"{folder} is not empty: it holds {results[0].name}, but no {settings_path.name}, which every run writes; {advice}"
        )
    try:
        earlier = json.loads(settings_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{settings_path} is not JSON, so the run that wrote {folder} is not known; {advice}") from error
    if earlier != settings:
        names = sorted(name for name in settings | earlier if settings.get(name) != earlier.get(name))
        raise OutputError(f"{folder} holds another run ({', '.join(names)} differ): {advice}")


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown. Integers get a comma every three digits; None is an empty cell."""
    lines = [list(header), *(list(row) for row in rows)]
    written = ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(lines[0]), *written[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return " ".join(text.replace("|", "\\|").split())
