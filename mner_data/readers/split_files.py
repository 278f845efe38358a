"""Which files of a folder hold the posts of which split."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .mnre import is_mnre
from .tables import is_table
from .text import DataError, json_or_python, listed, name_and_suffix, start_of_file

logger = logging.getLogger(__name__)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
CONLL_SUFFIXES = (".txt", ".conll", ".bio", ".iob", ".iob2")
TABLE_SUFFIXES = (".csv", ".tsv")
POST_SUFFIXES = (*JSONL_SUFFIXES, *CONLL_SUFFIXES, *TABLE_SUFFIXES, ".json", ".spacy")
# A reader of lines would take what is in these files for words.
NOT_POSTS = (".parquet", ".arrow", ".zip", ".tar", ".xz", ".bz2", ".zst", ".xlsx", ".md")
# All formats that `processors.load_image` opens.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo")
REGIONS_FILE, ENTITY_BOXES_FILE = "regions.jsonl", "entity_boxes.jsonl"
# Folders in which published data sets have their label files, beside the images.
LABEL_FOLDER_NAMES = ("txt", "text", "labels", "annotations")
FORMATS = ("conll", "jsonl", "json", "csv", "spacy", "mnre")


class SplitFiles(NamedTuple):
    """The label files of a folder.

    Attributes:
        splits: the file of every split, by the split's name.
        others: label files whose names are no split's, and those in sub-folders.
        unused: all other files that have a suffix, without images and Markdown.
    """

    splits: dict[str, Path]
    others: list[Path]
    unused: list[Path]


def find_split_files(folder: str | Path) -> SplitFiles:
    """List the label files of a folder and its sub-folders.

    Label files are those with one of `POST_SUFFIXES`, also with `.gz` behind. Suffixes and names of splits are read without
    regard to case. A file is of a split that is its name (`train.txt`), or else a word of it (`ours_train.txt`). One that
    is named after no split is a label file if `has_posts` says so. If the folder has no splits, those of a sub-folder
    `txt` (or another of `LABEL_FOLDER_NAMES`) are taken. Hidden files, names that begin with an underscore and the
    folder's `regions.jsonl` and `entity_boxes.jsonl` are left out.

    Raises:
        DataError: two files are of the same split.
    """
    folder = Path(folder)
    files = [path for path in _files_below(folder) if path not in (folder / REGIONS_FILE, folder / ENTITY_BOXES_FILE)]
    files = [path for path in files if name_and_suffix(path)[1] not in (*IMAGE_SUFFIXES, ".md", "")]
    splits = _splits(folder, files)
    if not splits:
        below = [path for path in sorted(folder.iterdir()) if path.name.lower() in LABEL_FOLDER_NAMES and path.is_dir()]
        splits = next((found for path in below if (found := _splits(path, files))), {})
    rest = [path for path in files if path not in splits.values()]
    others = [path for path in rest if name_and_suffix(path)[1] in POST_SUFFIXES and has_posts(path)]
    unused = [path for path in rest if path not in others]
    order = list(dict.fromkeys(SPLIT_NAMES.values()))
    return SplitFiles(dict(sorted(splits.items(), key=lambda item: order.index(item[0]))), others, unused)


def _splits(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The files of a folder's splits, without its sub-folders."""
    candidates = [path for path in files if path.parent == folder and name_and_suffix(path)[1] in POST_SUFFIXES]
    exact = [(SPLIT_NAMES.get(name_and_suffix(path)[0].lower()), path) for path in candidates]
    by_word = [(split_name(path.name), path) for path in candidates if has_posts(path)]
    splits: dict[str, Path] = {}
    for found in (exact, by_word):
        taken = set(splits)
        for split, path in found:
            if split is None or split in taken or path in splits.values() or split not in SPLIT_NAMES.values():
                continue
            if split in splits:
                raise DataError(f"{folder}: expected one file of the split {split}, got {splits[split].name} and {path.name}")
            splits[split] = path
    return splits


def log_label_files(files: Mapping[str, Path], not_read: Sequence[Path] = (), formats: Mapping[Path, str] | None = None):
    """Say which files are read, in which form, and warn of files beside them that are not."""
    forms = formats or {}
    read = ", ".join(f"{split} from {path}" + (f" ({forms[path]})" if path in forms else "") for split, path in files.items())
    if not_read:
        logger.warning("reading %s. These files are NOT read: %s", read, listed(not_read))
    else:
        logger.info("reading %s", read)


def split_name(name: str) -> str | None:
    """The split that a file's name or its folders' names say: `data/train-00000-of-00002.parquet`, `test/a.jsonl`, `dev.txt`.

    The nearest name that says one counts. None where none does, or where a name says two.
    """
    path = Path(name.lower())
    stem = path.name.split(".")[0]
    for part in (stem, *reversed(path.parent.parts)):
        splits = {SPLIT_NAMES[word] for word in re.split(r"[\W\d_]+", part) if word in SPLIT_NAMES}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    sharded = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", stem)
    return sharded[1] if sharded else None


def recognise_format(path: Path) -> str:
    """The form of a label file, one of `FORMATS`, by its suffix and its first line.

    Raises:
        DataError: the suffix is that of another kind of file.
    """
    suffix = name_and_suffix(path)[1]
    if suffix in NOT_POSTS:
        raise DataError(f"{path}: expected a file of posts ({', '.join(POST_SUFFIXES)}), got {suffix}")
    if suffix == ".spacy":
        return "spacy"
    start = start_of_file(path)
    first = next((line for line in start.splitlines() if line.strip()), "")
    row = json_or_python(first) if first.lstrip().startswith(("{", "[")) else None
    if is_mnre(row):
        return "mnre"
    if suffix in JSONL_SUFFIXES:
        return "jsonl"
    if isinstance(row, dict):
        return "jsonl"
    if suffix == ".json" or isinstance(row, list) and row and isinstance(row[0], dict | list):
        return "json"
    if suffix == ".csv" or is_table(first):
        return "csv"
    return "conll"


def has_posts(path: Path) -> bool:
    """Whether a label file without the name of a split has posts: notes are text files too, and regions are JSONL.

    A text file has posts if it has a line `IMGID:…` or is of another form than CoNLL; JSON, if it names words or a text;
    a table, if its columns are those of posts. What cannot be read counts as posts: whoever reads it gets the reason.
    """
    start = start_of_file(path, size=1_000_000)
    form = recognise_format(path)
    if form == "conll":
        return re.search(r"(?m)^\ufeff?IMGID:", start) is not None
    if form == "csv":
        return is_table(next((line for line in start.splitlines() if line.strip()), ""))
    if form == "json":
        return re.search(r'"(tokens|text|words|sentence|token)"\s*:', start) is not None
    if form == "jsonl":
        try:
            row = json.loads(next((line for line in start.splitlines() if line.strip()), "{}"))
        except (ValueError, RecursionError):
            return True
        return not isinstance(row, dict) or bool({"tokens", "text", "words", "sentence", "token", "word", "data"} & set(row))
    return True


def _files_below(folder: Path, seen: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files of a folder, then of its sub-folders, by name. Hidden names and those with an underscore are left out."""
    seen |= {os.path.realpath(folder)}  # a link may lead back to a folder above
    paths = [(folder / entry.name, entry) for entry in os.scandir(folder) if not entry.name.startswith((".", "_"))]
    paths.sort(key=lambda item: item[0].name)
    # Asking the entry spares a system call per file; only for a link is that not enough.
    yield from (path for path, entry in paths if (path.is_file() if entry.is_symlink() else entry.is_file()))
    for path, entry in paths:
        if (path.is_dir() if entry.is_symlink() else entry.is_dir()) and os.path.realpath(path) not in seen:
            yield from _files_below(path, seen)
