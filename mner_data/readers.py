"""Label files as people have them: CoNLL and JSONL, and JSONL of regions.

A post is read as `{"id", "tokens", "labels"}`, with `image` where its file names one. Labels are converted to BIO.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from processors.region_extraction import check_regions

from .label_schemes import LabelSchemeError, to_bio

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
# A reader of lines would take what is in these files for words.
NOT_CONLL = (".json", ".parquet", ".csv", ".tsv", ".arrow", ".zip", ".tar", ".xz", ".bz2", ".zst", ".xlsx", ".spacy", ".md")
# All formats that `processors.load_image` opens.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo")
REGIONS_FILE, ENTITY_BOXES_FILE = "regions.jsonl", "entity_boxes.jsonl"
_BYTE_ORDER_MARKS = {
    # UTF-32 first: its mark begins with the one of UTF-16.
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Unix, Windows and old Mac line ends, and the double ones of a file converted twice. Words may hold any other separator
# of Unicode.
_LINE_END = re.compile(r"\r*\n|\r")
# Halves of a character, which JSON can hold and UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """Data that cannot be read. The message says where, what was expected and what was found."""


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

    Label files are JSONL (`.jsonl`, `.ndjson`) and CoNLL (`.txt`, `.conll`, `.bio`, `.iob`, `.iob2`), each also with `.gz`
    behind. Suffixes and names of splits are read without regard to case. A file that is named after no split is a label
    file if it has a line `IMGID:…`, or if its first row has `tokens` or `text`. Hidden files, names that begin with an
    underscore and the folder's `regions.jsonl` and `entity_boxes.jsonl` are left out.

    Raises:
        DataError: two files are of the same split.
    """
    folder = Path(folder)
    splits: dict[str, Path] = {}
    others, unused = [], []
    for path in _files_below(folder):
        name, suffix = _name_and_suffix(path)
        split = SPLIT_NAMES.get(name.lower()) if path.parent == folder else None
        if path in (folder / REGIONS_FILE, folder / ENTITY_BOXES_FILE) or suffix in (*IMAGE_SUFFIXES, ".md", ""):
            continue
        if suffix not in JSONL_SUFFIXES + CONLL_SUFFIXES or split is None and not _has_posts(path):
            unused.append(path)
        elif split is None:
            others.append(path)
        elif split in splits:
            raise DataError(f"{folder}: expected one file of the split {split}, got {splits[split].name} and {path.name}")
        else:
            splits[split] = path
    order = list(dict.fromkeys(SPLIT_NAMES.values()))
    return SplitFiles(dict(sorted(splits.items(), key=lambda item: order.index(item[0]))), others, unused)


def log_label_files(files: dict[str, Path], not_read: Sequence[Path] = ()):
    """Say which files are read, and warn of files beside them that are not."""
    read = ", ".join(f"{split} from {path}" for split, path in files.items())
    if not_read:
        logger.warning("reading %s. These files are NOT read: %s", read, _listed(not_read))
    else:
        logger.info("reading %s", read)


def read_conll(path: str | Path, label_scheme: str | None = None) -> list[dict]:
    """Posts of a CoNLL file as `{"id", "tokens", "labels"}`.

    A post is a line `IMGID:…`, then one line per word with the word and its label, separated by a tab or a space, then an
    empty line. The file may be compressed by gzip, and be UTF-16 or UTF-32 if it begins with a byte-order mark.

    Args:
        label_scheme: one of `label_schemes.SCHEMES`; `None` to recognise it.

    Raises:
        DataError: naming the file and the line.
    """
    return _in_bio({str(path): _read_conll(Path(path))}, label_scheme)[str(path)]


def read_jsonl(path: str | Path, label_scheme: str | None = None) -> list[dict]:
    """Posts of a JSONL file with `id`, `tokens`, `labels` (or `ner_tags` as strings) and optionally `image`, a file's name.

    Args:
        label_scheme: one of `label_schemes.SCHEMES`; `None` to recognise it.

    Raises:
        DataError: naming the file and the line.
    """
    return _in_bio({str(path): _read_jsonl(Path(path))}, label_scheme)[str(path)]


def read_regions(path: str | Path) -> dict[str, dict]:
    """Regions by post id from a JSONL file of `{"id", "boxes", "box_labels", "box_scores"}`.

    Raises:
        DataError: naming the line and the post.
    """
    regions = {}
    for where, row in _json_lines(Path(path), "id, boxes, box_labels and box_scores"):
        try:
            post_id, values = _text(row["id"]), (row["boxes"], row["box_labels"], row["box_scores"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: expected id, boxes, box_labels and box_scores: {error!r:.200}") from error
        try:
            checked = check_regions(*values, f"{where}, post {post_id:.80}")
        except ValueError as error:
            raise DataError(str(error)) from error
        regions[post_id] = checked | {"box_labels": [_text(label) for label in checked["box_labels"]]}
    return regions


def find_splits(path: str | Path) -> dict[str, Path]:
    """Files of the splits: the file itself, as train, or those of a folder."""
    path = Path(path)
    return {"train": path} if path.is_file() else find_split_files(path).splits


def read_splits(path: str | Path, label_scheme: str | None = None) -> tuple[dict[str, list[dict]], dict[str, Path]]:
    """Posts of every split of a label file, or of a folder of label files; and the files.

    Args:
        path: a CoNLL or JSONL file, which is read as train, or a folder with train, valid (or dev, val) and test.
        label_scheme: one of `label_schemes.SCHEMES`; `None` to recognise it, from all splits together.

    Raises:
        DataError: there are none, or a file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files, others, unused = find_split_files(path)
        if not files:
            seen = _listed([file.relative_to(path) for file in [*others, *unused]]) or "none of them"
            raise DataError(f"{path}: expected train.txt, valid.txt (or dev.txt) or test.txt, or the same as .jsonl, got {seen}")
        log_label_files(files, [*others, *unused])
    elif path.is_file():
        files = {"train": path}
        log_label_files(files)
    else:
        raise DataError(f"{path}: there is no such file or folder")
    posts = {}
    for split, file in files.items():
        suffix = _name_and_suffix(file)[1]
        if suffix in NOT_CONLL:
            raise DataError(f"{file}: expected a CoNLL file or JSONL, got {suffix}")
        posts[split] = (_read_jsonl if suffix in JSONL_SUFFIXES else _read_conll)(file)
    return _in_bio(posts, label_scheme), files


def bio_labels(labels: Iterable[str]) -> list[str]:
    """Label names of a data set in a fixed order: O, then B-TYPE and I-TYPE of every type among the BIO labels."""
    types = sorted({label[2:] for label in labels if label != "O"})
    return ["O", *(f"{prefix}-{entity_type}" for entity_type in types for prefix in "BI")]


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return _SURROGATE.sub("\ufffd", text)


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file without their ends: UTF-8, or UTF-16 or UTF-32 with a byte-order mark; gzip is unpacked.

    Raises:
        DataError: the file is in another encoding, or its compression is broken.
    """
    path = Path(path)
    with open_label_file(path) as file:
        try:
            content = file.read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: the gzip file is broken: {error}") from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and (guess := _utf16_without_mark(content)):
        raise DataError(f"{path}: expected UTF-8, got what looks like UTF-16; convert it: iconv -f {guess} -t utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(_LINE_END.split(content[: error.start].decode(encoding, "replace")))
        advice = "convert it: iconv -f ENCODING -t utf-8, with the file's ENCODING, often latin1 or windows-1252"
        raise DataError(f"{path}, line {line}: is not UTF-8; {advice}") from error
    return _LINE_END.split(text)


def open_label_file(path: str | Path):
    """Open a file for reading bytes; what gzip has packed is unpacked, whatever the file's name."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")


def _utf16_without_mark(content: bytes) -> str | None:
    """The byte order of UTF-16 without a mark, in which every second byte of western text is 0."""
    start = content[:1000]
    for first, name in ((1, "utf-16le"), (0, "utf-16be")):
        if len(start) >= 8 and start[first::2].count(0) > 0.8 * len(start[first::2]) and start[1 - first :: 2].count(0) == 0:
            return name
    return None


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


def _name_and_suffix(path: Path) -> tuple[str, str]:
    """Name and suffix of a file, without `.gz` and the suffix in lower case."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    stem, suffix = os.path.splitext(name)
    return stem, suffix.lower()


def _has_posts(path: Path) -> bool:
    """Whether a file without the name of a split has posts: notes are text files too, and regions are JSONL.

    What cannot be read counts as posts: whoever reads it gets the reason.
    """
    with open_label_file(path) as file:
        try:
            start = file.read(1_000_000)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return True
    if _name_and_suffix(path)[1] in CONLL_SUFFIXES:
        return b"IMGID:" in start.replace(b"\x00", b"")
    try:
        row = json.loads(next((line for line in start.splitlines() if line.strip()), b"{}").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return True
    return not isinstance(row, dict) or bool({"tokens", "text", "words"} & set(row))


def _read_conll(path: Path) -> list[dict]:
    posts: list[dict] = []
    post: dict | None = None
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        if line.startswith("IMGID:"):
            if not (name := line.removeprefix("IMGID:").strip()):
                raise DataError(f"{where}: IMGID: without a name")
            post = {"id": name, "tokens": [], "labels": [], "lines": []}
            posts.append(post)
        elif not line.strip(" \t"):
            post = None if post is not None and post["tokens"] else post
        elif post is None:
            raise DataError(f"{where}: {line!r:.60} belongs to no post; a line IMGID:… comes first")
        else:
            word, label = _word_and_label(line, where)
            post["tokens"].append(word)
            post["labels"].append(label)
            post["lines"].append(where)
    if not posts:
        raise DataError(f"{path}: expected posts, each after a line IMGID:…, got none")
    return posts


def _read_jsonl(path: Path) -> list[dict]:
    posts = []
    for where, row in _json_lines(path, "id, tokens and labels"):
        try:
            post = {"id": _text(row["id"]), "tokens": row["tokens"], "labels": row.get("labels", row.get("ner_tags"))}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: expected an object with id, tokens and labels: {error!r:.200}") from error
        for field in ("tokens", "labels"):
            if not isinstance(post[field], list) or not all(isinstance(item, str) for item in post[field]):
                raise DataError(f"{where}, field {field}: expected a list of strings, got {post[field]!r:.60}")
        if len(post["tokens"]) != len(post["labels"]):
            raise DataError(f"{where}: expected as many labels as tokens, got {len(post['tokens'])} tokens but "
                            f"{len(post['labels'])} labels")  # fmt: skip
        post["tokens"] = [_text(word) for word in post["tokens"]]
        image = row.get("image")
        image = image.get("path") if isinstance(image, dict) else image
        # pandas writes a missing image as NaN or as an empty string.
        if image not in (None, "") and image == image:
            if not isinstance(image, str):
                raise DataError(f"{where}, field image: expected the name of a file, got {image!r:.60}")
            post["image"] = image
        posts.append(post | {"lines": [where] * len(post["tokens"])})
    if not posts:
        raise DataError(f"{path}: has no posts")
    return posts


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


def _json_lines(path: Path, expected: str) -> Iterator[tuple[str, dict]]:
    """The objects of a JSONL file, each with its file and line. Empty lines are skipped."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is not JSON: {error!r:.200}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with {expected}, got {row!r:.60}")
        yield where, row


def _text(value: str | int) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"expected a string, got {value!r:.60}")
    return replace_surrogates(str(value))


def _word_and_label(line: str, where: str) -> tuple[str, str]:
    separator = "\t" if "\t" in line else " "
    word, found, label = line.rstrip(" \t").rpartition(separator)
    label, word = label.strip(), word.strip(" \t")
    if not found:
        raise DataError(f"{where}: expected a word, a tab or a space, and a label, got {line!r:.60}, which has no label")
    if separator in word:
        raise DataError(f"{where}: expected a word and a label, got {len(line.split(separator))} fields: {line!r:.60}")
    return word, label


def _listed(paths: Sequence[Path], most: int = 20) -> str:
    """Paths for a message."""
    return ", ".join(map(str, paths[:most])) + (f" and {len(paths) - most} more" if len(paths) > most else "")
