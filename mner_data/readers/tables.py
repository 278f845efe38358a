"""CSV and TSV with a line of column names: a post a row, or a word a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from processors import REGION_FIELDS

from .rows import Notes, check_column_names, image_name, is_missing, logger, match_fields, posts_of_rows
from .text import DataError, json_or_python, read_lines

# Names of a column that holds a word in each row.
WORD_A_ROW = ("word", "token")
_LISTS = ("tokens", "ner_tags", "entities")


def read_table_posts(path: Path, column_names: Mapping[str, str], notes: Notes, name: str) -> list[dict[str, Any]]:
    """Posts of a table. It has a word a row if its words are in a column `word` or `token`, or if rows share an id.

    In a table of words a post goes on as long as its id is the same or empty, or, without ids, until an empty row.
    In a table of posts, lists are JSON, Python's lists or words with blanks between them; spans are JSON.

    Raises:
        DataError: naming the file and the line.
    """
    header, rows = _read_rows(path)
    check_column_names(column_names, header, str(path))
    found = match_fields(header, column_names)
    if not {"tokens", "text"} & set(found):
        raise DataError(f"{path}: expected a column tokens, word or text, got {', '.join(header)}")
    filled = [row for _, row in rows if any(row.values())]
    ids = [row[found["id"]] for row in filled] if "id" in found else []
    is_word_a_row = "tokens" in found and (
        found["tokens"].strip().casefold() in WORD_A_ROW
        or any(not after or before == after for before, after in pairwise(ids))
        and not all(isinstance(json_or_python(row[found["tokens"]]), list) for row in filled)
    )
    if is_word_a_row:
        if unused := [column for column in header if column not in found.values()]:
            logger.warning("%s: these columns are not used: %s", path, ", ".join(unused))
        if not filled:
            raise DataError(f"{path}: expected a row for each word, got none below the column names {', '.join(header)}")
        return _posts_of_words(rows, found, notes, name)
    parsed = [
        (where, {column: _value(cell, column, found) for column, cell in row.items()}) for where, row in rows if any(row.values())
    ]
    if not parsed:
        raise DataError(f"{path}: has no posts")
    return posts_of_rows(parsed, path, column_names, notes, name)


def is_table(first_line: str) -> bool:
    """Whether a file's first line names the columns of posts, with commas, semicolons or tabs between them."""
    names = next(csv.reader([first_line], delimiter=_delimiter(first_line)), [])
    found = match_fields(names, {})
    return (
        len(found) > 1
        and bool({"tokens", "text"} & set(found))
        or [name.strip().casefold() for name in names] in (["text"], ["word"])
    )


def _delimiter(header: str) -> str:
    return max("\t,;", key=header.count)


def _read_rows(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The names of the columns, and every row with its place.

    Raises:
        DataError: a row has more or fewer cells than there are columns.
    """
    lines = read_lines(path)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise DataError(f"{path}: has no posts")
    delimiter = _delimiter(first)
    content = "\n".join(lines)
    # In a table of words a quote is often a word, and nothing is quoted.
    if first.strip().casefold() in WORD_A_ROW:
        is_quoted = False
    elif delimiter in first:
        is_quoted = not (delimiter == "\t" and all(line.count("\t") in (first.count("\t"), 0) for line in lines))
    else:
        is_quoted = _is_quoted_column(content)
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    )
    header: list[str] = []
    rows = []
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not header:
                header = [cell.strip() for cell in cells]
                continue
            if cells and len(cells) != len(header) and any(cells):
                raise DataError(f"{where}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}")
            rows.append((where, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    return header, rows


def _is_quoted_column(content: str) -> bool:
    """Whether a table of one column is quoted as CSV is: every quote that opens a cell is closed at its end."""
    try:
        for _ in csv.reader(io.StringIO(content, newline=""), delimiter="\t", strict=True):
            pass
    except csv.Error:
        return False
    return True


def _posts_of_words(
    rows: list[tuple[str, dict[str, str]]], found: dict[str, str], notes: Notes, name: str
) -> list[dict[str, Any]]:
    posts: list[dict[str, Any]] = []
    current = None
    is_open = False
    for where, row in rows:
        cells = {field: row.get(column, "") for field, column in found.items()}
        if not any(row.values()):
            is_open = False
            continue
        post_id = cells.get("id", "").strip()
        if not is_open or post_id and post_id != current:
            current, is_open = post_id, True
            posts.append({"id": post_id or f"{name}-{len(posts) + 1}", "tokens": [], "labels": [], "lines": []})
            if (image := image_name(cells.get("image"), where, notes)) is not None:
                posts[-1]["image"] = image
        posts[-1]["tokens"].append(cells["tokens"])
        posts[-1]["labels"].append(cells.get("ner_tags", "").strip())
        posts[-1]["lines"].append(where)
    if "ner_tags" not in found:
        for post in posts:
            post["labels"] = None
    return posts


def _value(cell: str, column: str, found: dict[str, str]) -> Any:
    """A cell of a table of posts: a list where the column holds lists."""
    field = next((field for field, name in found.items() if name == column), None)
    if is_missing(cell):
        return None
    if field not in _LISTS and column not in REGION_FIELDS:
        return cell
    if cell.lstrip().startswith("[") and (value := json_or_python(cell)) is not None:
        return value
    return cell.split() if field in ("tokens", "ner_tags") else cell
