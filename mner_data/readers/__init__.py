"""Label files in the forms that people have them, each read by one file of this folder, and JSONL of regions.

A post is read as `{"id", "tokens", "labels"}`, with `image` where its file names one. Labels are converted to BIO.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from processors import REGION_FIELDS

from ..label_schemes import LabelSchemeError, to_bio
from .conll import read_conll_posts
from .json_rows import read_json_posts, read_jsonl_posts
from .mnre import read_mnre_posts
from .rows import Notes, read_regions_of_row
from .spacy_docs import read_spacy_posts
from .split_files import (
    ENTITY_BOXES_FILE,
    FORMATS,
    IMAGE_SUFFIXES,
    JSONL_SUFFIXES,
    LABEL_FOLDER_NAMES,
    POST_SUFFIXES,
    REGIONS_FILE,
    SPLIT_NAMES,
    find_split_files,
    has_posts,
    log_label_files,
    recognise_format,
    split_name,
)
from .tables import read_table_posts
from .text import (
    DataError,
    as_text,
    check_first_place,
    json_lines,
    listed,
    name_and_suffix,
    open_label_file,
    replace_surrogates,
    sha256,
)

__all__ = [
    "ENTITY_BOXES_FILE", "FORMATS", "IMAGE_SUFFIXES", "JSONL_SUFFIXES", "LABEL_FOLDER_NAMES", "POST_SUFFIXES", "REGIONS_FILE",
    "SPLIT_NAMES", "DataError", "bio_labels", "find_split_files", "has_posts", "open_label_file", "read_conll", "read_posts",
    "read_regions", "read_splits", "recognise_format", "replace_surrogates", "sha256", "split_name",
]  # fmt: skip
logger = logging.getLogger(__name__)


def read_posts(
    path: str | Path,
    format: str | None = None,
    columns: str | None = None,
    column_names: Mapping[str, str] | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Posts of a label file of any form, with their labels as they stand in it.

    Args:
        format: one of `FORMATS`; `None` to recognise it.
        columns: for CoNLL, the names of its columns with commas between them: `word,_,label`.
        column_names: for JSON and tables, the field of a column by the column's name: `{"sentence_words": "tokens"}`.
        name: what stands before the number of a post without an id; by default the file's name.

    Returns:
        `{"id", "tokens", "labels", "lines"}`; `labels` is None where the file has none, `lines` are the places of the words.
        Also `text`, which the words were split from, `image`, and `left_out`, the reason why an annotator left it out.

    Raises:
        DataError: naming the file and the line.
        ValueError: there is no such format.
    """
    path, notes = Path(path), Notes()
    format = format or recognise_format(path)
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if columns and format != "conll":
        raise DataError(f"columns: {path} is read as {format}; it is for CoNLL files; column_names is for those with names")
    if column_names and format not in ("jsonl", "json", "csv"):
        raise DataError(f"column_names: {path} is read as {format}, which has no column names")
    names, name = column_names or {}, name or name_and_suffix(path)[0]
    readers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "conll": lambda: read_conll_posts(path, columns, notes, name),
        "jsonl": lambda: read_jsonl_posts(path, names, notes, name),
        "json": lambda: read_json_posts(path, names, notes, name),
        "csv": lambda: read_table_posts(path, names, notes, name),
        "spacy": lambda: read_spacy_posts(path, notes, name),
        "mnre": lambda: read_mnre_posts(path, notes, name),
    }
    posts = readers[format]()
    notes.log(path)
    return posts


def read_conll(path: str | Path, label_scheme: str | None = None) -> list[dict]:
    """Labelled posts of a CoNLL file as `{"id", "tokens", "labels"}`; see `conll.read_conll_posts`.

    Args:
        label_scheme: one of `label_schemes.SCHEMES`; `None` to recognise it.

    Raises:
        DataError: naming the file and the line.
    """
    return _in_bio({str(path): _labelled(read_posts(path, "conll"), Path(path))}, label_scheme)[str(path)]


def read_regions(path: str | Path) -> dict[str, dict]:
    """Regions by post id from a JSONL file of `{"id", "boxes", "box_labels", "box_scores"}`, an id a line.

    Raises:
        DataError: naming the line and the post, or there is no such file.
    """
    path, regions = Path(path), {}
    if not path.is_file():
        raise DataError(f"{path}: expected a JSONL file of regions; there is no such file")
    places: dict[str, str] = {}
    for where, row in json_lines(path, "id, boxes, box_labels and box_scores"):
        try:
            post_id, values = as_text(row["id"]), {field: row[field] for field in REGION_FIELDS}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: expected id, boxes, box_labels and box_scores: {error!r:.200}") from error
        check_first_place(post_id, where, places)
        regions[post_id] = read_regions_of_row(values, f"{where}, post {post_id:.80}")
    return regions


def read_splits(
    path: str | Path,
    label_scheme: str | None = None,
    format: str | None = None,
    columns: str | None = None,
    column_names: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[dict]], dict[str, Path]]:
    """Posts of every split of a label file, or of a folder of label files; and the files.

    Args:
        path: a label file, which is read as train, or a folder with train, valid (or dev, val) and test.
        label_scheme: one of `label_schemes.SCHEMES`; `None` to recognise it, from all splits together.
        format, columns, column_names: see `read_posts`.

    Raises:
        DataError: there are none, or a file cannot be read.
    """
    path, not_read = Path(path), []
    if path.is_dir():
        files, others, unused = find_split_files(path)
        not_read = [*others, *unused]
        if not files:
            seen = listed([file.relative_to(path) for file in not_read]) or "none of them"
            raise DataError(f"{path}: expected train.txt, valid.txt (or dev.txt) or test.txt, or the same as .jsonl, got {seen}")
    elif path.is_file():
        files = {"train": path}
    else:
        raise DataError(f"{path}: there is no such file or folder")
    formats = {file: format or recognise_format(file) for file in files.values()}
    log_label_files(files, not_read, formats)
    posts = {split: _labelled(read_posts(file, formats[file], columns, column_names), file) for split, file in files.items()}
    return _in_bio(posts, label_scheme), files


def bio_labels(labels: Iterable[str]) -> list[str]:
    """Label names of a data set in a fixed order: O, then B-TYPE and I-TYPE of every type among the BIO labels."""
    types = sorted({label[2:] for label in labels if label != "O"})
    return ["O", *(f"{prefix}-{entity_type}" for entity_type in types for prefix in "BI")]


def _labelled(posts: list[dict], path: Path) -> list[dict]:
    """The posts that have labels, without those that an annotator left out.

    Raises:
        DataError: a post has no labels, or none is left.
    """
    notes, labelled = Notes(), []
    for post in posts:
        post = {name: value for name, value in post.items() if name != "text"}
        if reason := post.pop("left_out", None):
            notes.add(reason, f"post {post['id']}")
        elif post["labels"] is None:
            where = post["lines"][0] if post["lines"] else f"{path}, post {post['id']}"
            raise DataError(
                f"{where}, field labels: expected a label for every word, got {' '.join(post['tokens'])!r:.60}, which has no "
                "label; words without labels can be tagged (predict.py), not learned from"
            )
        else:
            labelled.append(post)
    notes.log(path)
    if not labelled:
        raise DataError(f"{path}: has no posts with labels")
    return labelled


def _in_bio(posts: dict[str, list[dict]], label_scheme: str | None) -> dict[str, list[dict]]:
    """The posts of all splits with their labels in BIO, and without the lines of their words.

    Raises:
        DataError: naming the line of a label that is in no scheme.
    """
    flat = [post for split_posts in posts.values() for post in split_posts]
    try:
        bio = to_bio([post["labels"] for post in flat], label_scheme)
    except LabelSchemeError as error:
        places = (
            where for post in flat for label, where in zip(post["labels"], post["lines"], strict=True) if label == error.label
        )
        raise DataError(f"{next(places, ', '.join(posts))}, label: {error}") from error
    if bio.num_changed:
        logger.warning("%s", bio)
    for post, labels in zip(flat, bio.labels, strict=True):
        post["labels"] = labels
        del post["lines"]
    return posts
