"""Label files as people have them: the field's CoNLL form and JSONL, and JSONL of regions.

A post that is read is `{"id", "tokens", "labels"}`, with `image` where its file names one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from processors.region_extraction import check_regions

SPLIT_FILES = {
    "train": ("train.txt", "train.jsonl"),
    "validation": ("valid.txt", "dev.txt", "validation.txt", "valid.jsonl", "dev.jsonl"),
    "test": ("test.txt", "test.jsonl"),
}
# Files that would otherwise be read as lines of words.
NOT_CONLL = (".json", ".parquet", ".csv", ".arrow", ".zip", ".gz")
# Halves of a character, which JSON can hold and UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """A data file that cannot be read as it is: where, what was expected."""


def read_conll(path: str | Path) -> list[dict]:
    """PostSource of a CoNLL file as `{"id", "tokens", "labels"}`.

    A post is a line `IMGID:…`, then a word and its BIO label a line, parted by a tab or a blank, then a blank line.

    Raises:
        DataError: naming the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; convert it: iconv -f latin1 -t utf-8") from error
    posts: list[dict] = []
    post: dict | None = None
    # Words may hold other line separators of Unicode: only \n ends a line.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        where = f"{path}, line {number}"
        if line.startswith("IMGID:"):
            if not (name := line.removeprefix("IMGID:").strip()):
                raise DataError(f"{where}: IMGID: without a name")
            post = {"id": name, "tokens": [], "labels": []}
            posts.append(post)
        elif not line.strip(" \t"):
            post = None if post is not None and post["tokens"] else post
        elif post is None:
            raise DataError(f"{where}: {line!r:.60} belongs to no post; a line IMGID:… comes first")
        else:
            word, label = _word_and_label(line, where)
            post["tokens"].append(word)
            post["labels"].append(label)
    if not posts:
        raise DataError(f"{path}: has no line IMGID:…, so no posts")
    return posts


def read_jsonl(path: str | Path) -> list[dict]:
    """PostSource of a JSONL file with `id`, `tokens`, `labels` (or `ner_tags` as strings) and maybe `image`, its file's name."""
    posts = []
    for where, row in _json_lines(Path(path), "id, tokens and labels"):
        try:
            post = {"id": _text(row["id"]), "tokens": row["tokens"], "labels": row.get("labels", row.get("ner_tags"))}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: wants an object with id, tokens and labels: {error!r:.200}") from error
        for field in ("tokens", "labels"):
            if not isinstance(post[field], list) or not all(isinstance(item, str) for item in post[field]):
                raise DataError(f"{where}, field {field}: a list of strings is wanted")
        if len(post["tokens"]) != len(post["labels"]):
            raise DataError(f"{where}: {len(post['tokens'])} tokens but {len(post['labels'])} labels")
        for label in post["labels"]:
            _check_label(label, where)
        post["tokens"] = [_text(word) for word in post["tokens"]]
        if isinstance(row.get("image"), str):
            post["image"] = row["image"]
        posts.append(post)
    if not posts:
        raise DataError(f"{path}: has no posts")
    return posts


def read_regions(path: Path) -> dict[str, dict]:
    """Regions by post id from a JSONL file of `{"id", "boxes", "box_labels", "box_scores"}`."""
    regions = {}
    for where, row in _json_lines(path, "id, boxes, box_labels and box_scores"):
        try:
            name, given = _text(row["id"]), [row[field] for field in ("boxes", "box_labels", "box_scores")]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: wants id, boxes, box_labels and box_scores: {error!r:.200}") from error
        try:
            found = check_regions(*given, f"{where}, post {name:.80}")
        except ValueError as error:
            raise DataError(str(error)) from error
        regions[name] = found | {"box_labels": [_text(label) for label in found["box_labels"]]}
    return regions


def find_splits(path: Path) -> dict[str, Path]:
    """Files of the splits: the file itself, as train, or those of a folder."""
    if path.is_file():
        return {"train": path}
    found = [(split, path / name) for split, names in SPLIT_FILES.items() for name in names]
    return {split: file for split, file in found if file.is_file()}


def read_splits(text: str | Path) -> tuple[dict[str, list[dict]], dict[str, Path]]:
    """PostSource of every split of a CoNLL or JSONL file, or of a folder of such files; and the files.

    Raises:
        DataError: when there are none.
    """
    files = find_splits(Path(text))
    if not files:
        raise DataError(f"{text}: there is no such file, and no folder with train.txt, valid.txt (dev.txt) or test.txt")
    for file in files.values():
        if file.suffix.lower() in NOT_CONLL:
            raise DataError(f"{file}: is no CoNLL and no .jsonl file, which are what is read here")
    return {split: (read_jsonl if file.suffix == ".jsonl" else read_conll)(file) for split, file in files.items()}, files


def bio_labels(labels: Iterator[str]) -> list[str]:
    """Labels of a data set in a fixed order: O, then B-X and I-X of every type seen."""
    kinds = sorted({label[2:] for label in labels if label != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def replace_surrogates(text: str) -> str:
    """Text that can be written."""
    return _SURROGATE.sub("\ufffd", text)


def _json_lines(path: Path, wanted: str) -> Iterator[tuple[str, dict]]:
    """The objects of a JSONL file, each with the file and line it stands in; blank lines and a BOM are skipped."""
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is not JSON in UTF-8: {error!r:.200}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: wants an object with {wanted}, not {row!r:.60}")
        yield where, row


def _text(value: str | int) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"a string is wanted, not {value!r:.60}")
    return replace_surrogates(str(value))


def _word_and_label(line: str, where: str) -> tuple[str, str]:
    separator = "\t" if "\t" in line else " "
    word, _, label = line.rstrip(" \t").rpartition(separator)
    label, word = label.strip(), word.strip(" \t")
    if not _:
        raise DataError(f"{where}: {line!r:.60} has no label; a word, a tab or a blank, and a label are wanted")
    if separator in word:
        count = len(line.split(separator))
        raise DataError(f"{where}: {line!r:.60} has {count} fields; a word and a label are wanted")
    _check_label(label, where)
    return word, label


def _check_label(label: str, where: str):
    if not re.fullmatch(r"O|[BI]-[^\t\r\n]+", label):
        raise DataError(f"{where}: label {label!r} is not O, B-TYPE or I-TYPE")
