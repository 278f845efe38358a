"""Which checkpoint a run may go on from."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint of the Trainer, of one process or of several, was written to its end."""
    try:
        # The Trainer writes its state last.
        json.loads((folder / "trainer_state.json").read_text())
        with safe_open(folder / "model.safetensors", "pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    states = [folder / "optimizer.pt", folder / "scheduler.pt", *folder.glob("rng_state*.pth")]
    return len(states) > 2 and all(zipfile.is_zipfile(path) for path in states)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    found.sort(key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((str(path) for path in found if is_whole(path)), None)
