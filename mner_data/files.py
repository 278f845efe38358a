"""Files that are there as a whole or not at all, wherever a run is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Another name to write under, which becomes `path` once the block is through."""
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    yield unfinished
    unfinished.replace(path)
