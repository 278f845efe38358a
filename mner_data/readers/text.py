"""Text files as people have them: encodings, line ends, compression; and lines of JSON."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    encoding = _encoding(content)
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


def start_of_file(path: Path, size: int = 65_536) -> str:
    """The beginning of a text file, to look at; what cannot be decoded is left out, and reading the file says why."""
    with open_label_file(path) as file:
        try:
            content = file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return ""
    return content.decode(_encoding(content), errors="ignore")


def name_and_suffix(path: Path) -> tuple[str, str]:
    """Name and suffix of a file, without `.gz` and the suffix in lower case."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    stem, suffix = os.path.splitext(name)
    return stem, suffix.lower()


def json_lines(path: Path, expected: str) -> Iterator[tuple[str, dict]]:
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


def check_first_place(post_id: str, where: str, places: dict[str, str]):
    """Note the place of a post's id in a file that joins by it.

    Raises:
        DataError: the id has a place already.
    """
    if (first := places.setdefault(post_id, where)) != where:
        raise DataError(f"{where}, field id: expected an id of its own in every line, got {post_id!r:.80} again, after {first}")


def json_or_python(text: str) -> Any:
    """What a text of JSON or of Python says, such as a list that pandas wrote into a cell; `None` if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def as_text(value: str | int) -> str:
    """A string or a number of JSON as text.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, str | int):
        raise TypeError(f"expected a string, got {value!r:.60}")
    return replace_surrogates(str(value))


def listed(paths: Sequence[Path], most: int = 20) -> str:
    """Paths for a message."""
    return ", ".join(map(str, paths[:most])) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _encoding(content: bytes) -> str:
    return next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")


def _utf16_without_mark(content: bytes) -> str | None:
    """The byte order of UTF-16 without a mark, in which every second byte of western text is 0."""
    start = content[:1000]
    for first, name in ((1, "utf-16le"), (0, "utf-16be")):
        if len(start) >= 8 and start[first::2].count(0) > 0.8 * len(start[first::2]) and start[1 - first :: 2].count(0) == 0:
            return name
    return None
