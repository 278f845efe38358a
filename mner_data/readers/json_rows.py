"""JSON: an object a line (JSONL), or a list of objects, with words and labels or with a text and spans of characters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .rows import Notes, posts_of_rows
from .text import DataError, json_lines, read_lines


def read_jsonl_posts(path: Path, column_names: Mapping[str, str], notes: Notes, name: str) -> list[dict[str, Any]]:
    """Posts of a JSONL file: `tokens` and `labels`, or the exports of doccano, Prodigy and spaCy.

    Raises:
        DataError: naming the file and the line.
    """
    rows = list(json_lines(path, "id, tokens and labels"))
    if not rows:
        raise DataError(f"{path}: has no posts")
    return posts_of_rows(rows, path, column_names, notes, name)


def read_json_posts(path: Path, column_names: Mapping[str, str], notes: Notes, name: str) -> list[dict[str, Any]]:
    """Posts of a JSON file: a list of objects as in JSONL, Label Studio's export, or spaCy's pairs of a text and annotations.

    Raises:
        DataError: naming the file and the post.
    """
    try:
        content = json.loads("\n".join(read_lines(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error!r:.200}") from error
    content = [content] if isinstance(content, dict) else content
    rows = []
    for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
        where = f"{path}, post {number}"
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], dict):
            row = {"text": row[0]} | row[1]
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with text or tokens, got {row!r:.60}")
        rows.append((where, row))
    if not rows:
        raise DataError(f"{path}: has no posts")
    return posts_of_rows(rows, path, column_names, notes, name)
