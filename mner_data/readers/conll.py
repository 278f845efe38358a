"""CoNLL: a word a line with its label, and an empty line behind each post."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from .rows import Notes
from .text import DataError, read_lines

# `# id = 7` (CoNLL-U), `# id 7	domain=en` (MultiCoNER), `# image = a.jpg`. A word may be a hash, but has one label behind it.
_COMMENT = re.compile(r"#\s*(?:([\w ]+?)\s*=\s*(.*)|(id)\s+(\S+).*)")
_COLUMNS = ("word", "label", "id", "image")


def read_conll_posts(path: Path, columns: str | None, notes: Notes, name: str) -> list[dict[str, Any]]:
    """Posts of a CoNLL file. A post begins with a line `IMGID:…`, or, in a file without such lines, behind an empty line.

    Fields are separated by tabs, or else by blanks. Of several columns the first is the word and the last the label, unless
    `columns` names them; in a file with one column the words have no labels. `-DOCSTART-` separates posts. The comments
    `# id = …` and `# image = …` before a post say what they name; other comments `# … = …` are passed over.

    Args:
        columns: names of the columns, with commas between them: word, label, id and image are read, any other is not.
        name: what stands before the number of a post without an id.

    Raises:
        DataError: naming the file and the line.
    """
    lines = read_lines(path)
    has_ids = any(line.startswith("IMGID:") for line in lines)
    posts: list[dict[str, Any]] = []
    post: dict[str, Any] | None = None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if line.startswith("IMGID:"):
            if not (imgid := line.removeprefix("IMGID:").strip()):
                raise DataError(f"{where}: IMGID: without a name")
            post = {"id": imgid, "fields": [], "lines": []}
            posts.append(post)
        elif not line.strip(" \t") or line.startswith("-DOCSTART-"):
            post = None if post is not None and post["fields"] else post
        elif post is None and (comment := _COMMENT.fullmatch(line)):
            found[(comment[1] or comment[3]).strip().lower()] = (comment[2] or comment[4] or "").strip()
        elif post is None and has_ids:
            raise DataError(f"{where}: {line!r:.60} belongs to no post; a line IMGID:… comes first")
        else:
            if post is None:
                post = {"id": found.get("id") or found.get("sent_id") or f"{name}-{len(posts) + 1}", "fields": [], "lines": []}
                post |= {"image": found["image"]} if found.get("image") else {}
                posts.append(post)
                found = {}
            post["fields"].append(_fields(line))
            post["lines"].append(where)
    if not any(post["fields"] for post in posts) and not has_ids:
        raise DataError(f"{path}: expected posts, each with a word a line, got none")
    names = _column_names(posts, columns, path)
    for post in posts:
        fields = post.pop("fields")
        values = {column: [word[place] for word in fields] for place, column in enumerate(names)}
        post["tokens"] = values["word"]
        post["labels"] = values.get("label")
        for field in ("id", "image"):
            if values.get(field):
                post[field] = values[field][0]
    if unused := [str(place + 1) for place, column in enumerate(names) if column not in _COLUMNS]:
        word, label = (names.index(column) + 1 if column in names else "none" for column in ("word", "label"))
        notes.add(f"of {len(names)} columns, {word} is read as the word and {label} as the label; not used", ", ".join(unused))
    return posts


def _fields(line: str) -> list[str]:
    if "\t" in line:
        return [field.strip(" ") for field in line.strip(" ").rstrip("\t ").split("\t")]
    return re.split(" +", line.strip(" "))


def _column_names(posts: list[dict[str, Any]], columns: str | None, path: Path) -> list[str]:
    """A name for each column of a file, all of whose lines have to have the same.

    Raises:
        DataError: naming the first line with another number of columns.
    """
    counts = Counter(len(fields) for post in posts for fields in post["fields"])
    names = columns.split(",") if columns else None
    if names is not None:
        names = [column.strip() for column in names]
        if "word" not in names or len(set(_COLUMNS).intersection(names)) < sum(column in _COLUMNS for column in names):
            raise DataError(f"columns: expected word, and label, id and image at most once each, got {columns!r}")
    expected = len(names) if names else max(counts, key=lambda count: (counts[count], -count), default=2)
    if len(counts) > 1 or names and counts and expected not in counts:
        # With words that have a label among them, a word alone lacks it; whole files without labels are to be tagged.
        expected = max(expected, 2)
        for post in posts:
            for fields, where in zip(post["fields"], post["lines"], strict=True):
                if len(fields) != expected:
                    got = f"got {len(fields)} fields: {' '.join(fields)!r:.60}" + ", which has no label" * (len(fields) == 1)
                    raise DataError(
                        f"{where}: expected a word and a label, in {expected} columns as elsewhere in the file, {got}"
                    )
    return names or (["word"] if expected == 1 else ["word", *["_"] * (expected - 2), "label"])
