"""The folder of results: which run may write to it, and which of its files count."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
from ray.data.checkpoint import CheckpointConfig  # noqa: E402
from ray.data.checkpoint.checkpoint_writer import CheckpointWriter, PendingCheckpoint  # noqa: E402

from bulk.output import (  # noqa: E402
    SETTINGS,
    Progress,
    adopt_run_folder,
    clear_results,
    drop_incomplete,
    save_count,
    saved_count,
)
from mner_data.files import OutputError, reserve_output_dir  # noqa: E402


def reserved(folder: Path, settings: dict, overwrite: bool = False):
    """What predict.py does first with its output folder."""
    with reserve_output_dir(folder, settings, settings_file=SETTINGS, overwrite=overwrite, clear=clear_results):
        pass


def test_a_folder_belongs_to_one_model_data_and_settings(tmp_path):
    settings = {"model": ["m", "1"], "data": ["d", None, "2"], "images": None, "allow_urls": False}
    (tmp_path / "_predict.json.unfinished").write_text("{")  # killed as it took the folder
    reserved(tmp_path, settings)
    save_count(adopt_run_folder(tmp_path), 7)
    reserved(tmp_path, settings)
    assert saved_count(tmp_path) == 7
    changes = {"model": ["m", "other"], "data": ["e", None, "2"], "images": ["/", "3"], "allow_urls": True}
    for name, value in changes.items():
        with pytest.raises(OutputError, match=rf"another run \({name} differ\): choose another --output, or give --overwrite"):
            reserved(tmp_path, settings | {name: value})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("a file of the user")
    reserved(tmp_path, settings | {"model": ["m", "other"]}, overwrite=True)
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".unfinished"}
    assert left == {"_predict.json", "_lock", "notes.txt"} and saved_count(tmp_path) is None


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not empty"):
            reserved(tmp_path, {}, overwrite)
    assert (tmp_path / "thesis.tex").is_file()


def test_only_results_with_their_checkpoint_are_kept(tmp_path):
    """After kills at every point of Ray's pending checkpoint, results, renamed checkpoint; the retried write has both."""
    files = {
        "whole_000001": ("data", "checkpoint"), "begun_000002": ("pending",), "written_000003": ("pending", "data"),
        "retried_000004": ("pending", "data", "checkpoint"), "late_000005": ("data",), "lost_000006": ("checkpoint",),
    }  # fmt: skip
    names = {
        "data": "data/{}-0.parquet",
        "checkpoint": "checkpoint/{}.parquet",
        "pending": "checkpoint/{}.pending.parquet",
    }
    for stem, kinds in files.items():
        for kind in kinds:
            path = tmp_path / names[kind].format(stem)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
    drop_incomplete(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert left == ["checkpoint/whole_000001.parquet", "data/whole_000001-0.parquet"]


@pytest.mark.parametrize("written", ["nothing", "pending", "results"])
def test_what_is_left_of_a_killed_run_can_write_no_more(written, tmp_path):
    """A worker outlives its driver and goes on, after the next run has begun, with the steps it had not yet done."""
    before = adopt_run_folder(tmp_path)
    # The three steps of Ray's write tasks.
    writer = CheckpointWriter.create(CheckpointConfig("id", str(before / "checkpoint")))
    steps = {
        "pending": lambda: writer.write_pending_checkpoint(pa.chunked_array([["a"]]), "late_000001"),
        "results": lambda: pyarrow.dataset.write_dataset(
            pa.table({"id": ["a"]}), before / "data", basename_template="late_000001-{i}.parquet", format="parquet",
            existing_data_behavior="overwrite_or_ignore", create_dir=False,
        ),
        "committed": lambda: writer.commit_checkpoint(
            PendingCheckpoint(*(str(before / "checkpoint" / f"late_000001{end}.parquet") for end in (".pending", "")))
        ),
    }  # fmt: skip
    done = list(steps)[: list(steps).index(written) + 1] if written in steps else []
    for step in done:
        steps[step]()
    after = adopt_run_folder(tmp_path)
    drop_incomplete(after)
    for step in steps.keys() - done:
        with pytest.raises(FileNotFoundError):
            steps[step]()
    assert [path.name for path in tmp_path.rglob("*")] == [after.name, *(path.name for path in after.iterdir())]


def test_progress_counts_what_is_safely_written(tmp_path, capsys):
    folder = adopt_run_folder(tmp_path) / "checkpoint"

    def write(name: str, rows: int):
        pq.write_table(pa.table({"id": ["a"] * rows}), folder / name)

    write("before.parquet", 400)
    progress = Progress(folder.parent, 1000)
    assert capsys.readouterr().out.startswith("going on: 400 of 1,000 posts")
    assert progress.before == 400 and progress.count_new() == 0
    write("after.parquet", 100)
    write("under_way.pending.parquet", 300)
    assert progress.count_new() == 100 and progress.count_new() == 0
    write("last.parquet", 200)
    progress.stopped.set()
    progress.run()
    assert "600/1000" in capsys.readouterr().err, "what came after the last look counts as well"
