"""Output files and folders: complete or absent, and of one run at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mner_data.files import OutputError, atomic_write, markdown_table, reserve_output_dir

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"model": "m", "seed": 1, "images": None}


def reserve(folder: Path, settings: dict | None = None, **options):
    return reserve_output_dir(folder, SETTINGS if settings is None else settings, settings_file="_run.json", **options)


def remove_results(folder: Path):
    shutil.rmtree(folder / "results")


def run(folder: Path, settings: dict | None = None, **options):
    """A run that writes one result."""
    with reserve(folder, settings, **options):
        (folder / "results").mkdir(exist_ok=True)
        (folder / "results" / "a").write_text("a")


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    for content in ("first", "second"):
        with atomic_write(path) as unfinished:
            unfinished.write_text(content)
            assert not path.is_file() or path.read_text() == "first"
    with pytest.raises(KeyError), atomic_write(path) as unfinished:
        unfinished.write_text("half")
        raise KeyError
    assert path.read_text() == "second"


def test_equal_settings_continue_and_others_are_refused(tmp_path):
    run(tmp_path / "new" / "out")
    folder = tmp_path / "new" / "out"
    run(folder, {"images": None, "seed": 1, "model": "m"})
    assert (folder / "results" / "a").is_file()
    for settings, names in (
        (SETTINGS | {"seed": 2}, "seed"),
        (SETTINGS | {"seed": 2, "rate": 0.1}, "rate, seed"),
        ({"model": "m"}, "seed"),
    ):
        with pytest.raises(OutputError, match=rf"holds another run \({names} differ\): choose another --output$"):
            run(folder, settings)
    with pytest.raises(OutputError, match="or give --overwrite_output_dir to remove its results"):
        run(folder, {}, clear=remove_results, overwrite_option="--overwrite_output_dir")
    # Tuples and lists are the same JSON.
    run(tmp_path / "tuple", {"sizes": (1, 2)})
    run(tmp_path / "tuple", {"sizes": [1, 2]})


def test_a_run_that_left_no_result_takes_no_folder(tmp_path):
    for seed in range(2):
        with reserve(tmp_path, SETTINGS | {"seed": seed}):
            pass
    (tmp_path / "_run.json.unfinished").write_text("{")  # killed while it wrote its settings
    run(tmp_path)


def test_overwriting_clears_what_the_program_wrote(tmp_path):
    run(tmp_path)
    for settings in (SETTINGS, SETTINGS | {"seed": 2}):
        (tmp_path / "results" / "old").write_text("")
        run(tmp_path, settings, overwrite=True, clear=remove_results)
        assert not (tmp_path / "results" / "old").exists() and (tmp_path / "results" / "a").is_file()
    with pytest.raises(OutputError, match="another run"):
        run(tmp_path)
    with pytest.raises(OutputError, match="another run"):
        run(tmp_path, overwrite=True)  # nothing says how to clear the folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_left_alone(overwrite, tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(OutputError, match="is not empty.*choose another --output$"):
        run(tmp_path, overwrite=overwrite, clear=shutil.rmtree)
    assert (tmp_path / "thesis.tex").is_file()
    # Where the program names its results, other files beside them are no matter.
    run(tmp_path, results=("results",), overwrite=overwrite, clear=remove_results)
    (tmp_path / "_run.json").unlink()
    if overwrite:
        run(tmp_path, results=("results",), overwrite=overwrite, clear=remove_results)
    else:
        with pytest.raises(OutputError, match="it holds results, but no _run.json.*choose another --output$"):
            run(tmp_path, results=("results",))


def test_settings_that_are_not_json_are_named(tmp_path):
    run(tmp_path)
    (tmp_path / "_run.json").write_text("{")
    with pytest.raises(OutputError, match=r"_run\.json is not JSON"):
        run(tmp_path)


def test_a_folder_is_locked_while_a_run_writes_to_it(tmp_path):
    code = (
        "import sys; from mner_data.files import reserve_output_dir\n"
        "with reserve_output_dir(sys.argv[1], {}, settings_file='_run.json'): print('ready', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match="another process writes to this folder"):
            run(tmp_path, {})
        # The other processes of a distributed run only check.
        run(tmp_path, {}, is_main_process=False)
    finally:
        process.kill()  # a killed run leaves the folder free
        process.wait()
    run(tmp_path, {})
    # An error in the run frees it too.
    with pytest.raises(KeyError), reserve(tmp_path, {}):
        raise KeyError
    run(tmp_path, {})


def test_other_processes_check_and_write_nothing(tmp_path):
    with reserve(tmp_path, is_main_process=False):
        assert list(tmp_path.iterdir()) == []
    run(tmp_path)
    with pytest.raises(OutputError, match="another run"):
        run(tmp_path, {}, is_main_process=False)
    run(tmp_path, {}, is_main_process=False, overwrite=True, clear=shutil.rmtree)
    assert {path.name for path in tmp_path.iterdir()} >= {"results", "_run.json"}


@pytest.mark.parametrize("place", ["file", pytest.param("read-only", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root"))])
def test_a_folder_that_cannot_be_written_is_named(place, tmp_path):
    if place == "file":
        (tmp_path / "file").write_text("")
    else:
        (tmp_path / "read-only").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="--output_dir .* cannot be written: "):
        run(tmp_path / place / "out", option="--output_dir")


def test_a_table_keeps_bars_and_line_breaks_within_their_cell():
    assert markdown_table(["name", "posts"], [["a|b", 1234567], ["c\nd", None]]) == (
        "| name | posts |\n|---|---|\n| a\\|b | 1,234,567 |\n| c d |  |"
    )
