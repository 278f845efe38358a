"""Rows of JSON or of a table as posts, whatever their columns are called."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from processors import REGION_FIELDS
from processors.region_extraction import Regions, check_regions

from .spans import annotated_spans, entity_label, is_span, labels_of_spans, words_and_labels
from .text import DataError, as_text

logger = logging.getLogger(__name__)
# The fields of a post, each with the names that are understood, in the order in which they are looked for. `entities` are
# spans of characters; `ner_tags` may hold them as well, as doccano writes them.
FIELDS = {
    "id": ("id", "post_id", "tweet_id", "sentence_id", "sentence_idx", "sent_id", "sentence #", "guid"),
    "tokens": ("tokens", "words", "token", "word"),
    "text": ("text", "sentence", "tweet", "content"),
    "ner_tags": ("ner_tags", "labels", "tags", "label", "tag", "ner"),
    "entities": ("entities", "spans", "ents", "annotations"),
    "image": ("image", "image_path", "img", "img_path", "image_file", "image_name", "img_id", "image_id", "picture", "photo"),
}
# What else is read of a row: its regions, and what annotation tools write beside a post.
_KNOWN = {"answer", *REGION_FIELDS}
_PLACES_LISTED = 5


class Notes:
    """What a reader changes or leaves out, collected to be said in one line for each kind."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, what: str, where: str):
        """Note a kind of change and one place of it."""
        self.places.setdefault(what, []).append(where)

    def log(self, path: Path | str):
        """Say each kind of change, how often it was made, and the first places."""
        for what, places in self.places.items():
            more = f" and {len(places) - _PLACES_LISTED} more" if len(places) > _PLACES_LISTED else ""
            logger.warning("%s: %d times %s: %s%s", path, len(places), what, "; ".join(places[:_PLACES_LISTED]), more)


def check_column_names(column_names: Mapping[str, str], columns: Iterable[str], where: str):
    """Raises `DataError` for a column that is not there, or a field that no post has."""
    columns = list(columns)
    for theirs, ours in column_names.items():
        if ours not in FIELDS:
            raise DataError(f"column_names: {theirs}: expected one of {', '.join(FIELDS)}, got {ours!r}")
        if theirs not in columns:
            raise DataError(f"column_names: {where} has no column {theirs!r}; it has {', '.join(map(str, columns))}")


def match_fields(columns: Iterable[str], column_names: Mapping[str, str]) -> dict[str, str]:
    """The column of every field that the columns hold, by the field's name.

    Args:
        column_names: the field of a column, by the column's name, where a person says it. The others are recognised.
    """
    columns = list(columns)
    found = {ours: theirs for theirs, ours in column_names.items() if theirs in columns}
    others = {str(column).strip().casefold(): column for column in reversed(columns) if column not in column_names}
    for field, usual_names in FIELDS.items():
        match = next((others[name] for name in usual_names if name in others), None)
        if match is not None and field not in found:
            found[field] = match
    return found


def standard_row(row: dict[str, Any], column_names: Mapping[str, str]) -> dict[str, Any]:
    """A row with the fields of a post under their own names. What is no field stays."""
    if isinstance(row.get("data"), dict):  # a task of Label Studio
        row = row["data"] | {name: value for name, value in row.items() if name != "data"}
        # Without annotations nobody has looked at it; one without results says that there are no entities.
        row["annotations"] = row.get("annotations") or [{"was_cancelled": True, "result": []}]
    found = match_fields(row, column_names)
    taken = {*found.values(), *found}
    row = {name: value for name, value in row.items() if name not in taken} | {
        name: row[column] for name, column in found.items()
    }
    words = row.get("tokens")
    if "text" in row and isinstance(words, list) and any(isinstance(word, dict) for word in words):
        del row["tokens"]  # spaCy and Prodigy write the places of words beside the text
    return row


def posts_of_rows(
    rows: Sequence[tuple[str, dict[str, Any]]], path: Path, column_names: Mapping[str, str], notes: Notes, name: str
) -> list[dict[str, Any]]:
    """Posts of rows, each of which comes with its place for messages. Columns that are not used are named in the log.

    Args:
        name: what stands before the number of a post without an id.

    Raises:
        DataError: naming the place and the field.
    """
    # The columns of a task of Label Studio are those of its data as well.
    parts = (part for _, row in rows for part in (row, row.get("data")) if isinstance(part, dict))
    check_column_names(column_names, dict.fromkeys(column for part in parts for column in part), str(path))
    posts, unused = [], {}
    for number, (where, row) in enumerate(rows, start=1):
        row = standard_row(row, column_names)
        unused |= dict.fromkeys(set(row) - set(FIELDS) - _KNOWN)
        posts.append(post_of_row(row, where, f"{name}-{number}", notes))
    if unused:
        logger.warning("%s: these columns are not used: %s", path, ", ".join(sorted(map(str, unused))))
    return posts


def post_of_row(row: dict[str, Any], where: str, default_id: str, notes: Notes) -> dict[str, Any]:
    """A row with the names of `FIELDS` as a post: `id`, `tokens`, `labels` (None without any) and `lines`, the words' places
    for messages; `text` where it has one, `image` where it names one, `regions` where it has boxes, `left_out` where an
    annotator left it out.

    Raises:
        DataError: naming the place and the field.
    """
    try:
        post: dict[str, Any] = {"id": default_id if is_missing(row.get("id")) else as_text(row["id"])}
    except TypeError as error:
        raise DataError(f"{where}: expected an object with id, tokens and labels: {error!r:.200}") from error
    words, text = row.get("tokens"), row.get("text")
    if is_missing(words) and isinstance(text, list):
        words = text
    labels = None if is_missing(row.get("ner_tags")) else row["ner_tags"]
    entities = None if is_missing(row.get("entities")) else row["entities"]
    if not is_missing(words):
        post["tokens"], post["labels"] = _strings(words, where, "tokens"), labels
    elif not isinstance(text, str):
        got = ", ".join(map(str, row)) or "nothing"
        raise DataError(f"{where}: expected tokens (a list of words) or text (a string), got {got:.200}")
    elif isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels):
        # A label for each word, so that the words have to be those between the blanks.
        post["tokens"], post["labels"] = [as_text(word) for word in text.split()], labels
    else:
        post["text"] = text = as_text(text)
        entities = labels if entities is None else entities
        spans = None if entities is None else annotated_spans(entities, text, where, notes)
        post["tokens"], post["labels"] = words_and_labels(text, spans, where, notes)
        if row.get("answer", "accept") != "accept":
            post["labels"], post["left_out"] = None, f"a post is left out, its answer is {row['answer']}"
        elif entities is not None and spans is None:
            post["left_out"] = "a post is left out, it was not annotated"
    if post["labels"] is not None and "text" not in post:
        post["labels"] = _strings(post["labels"], where, "labels")
        if len(post["tokens"]) != len(post["labels"]):
            raise DataError(f"{where}: expected as many labels as tokens, got {len(post['tokens'])} tokens but "
                            f"{len(post['labels'])} labels")  # fmt: skip
    elif post["labels"] is None and entities is not None and "text" not in post:
        post["labels"] = labels_of_spans(len(post["tokens"]), _word_spans(entities, where), where, notes)
    if (image := image_name(row.get("image"), where, notes)) is not None:
        post["image"] = image
    if any(not is_missing(row.get(field)) for field in REGION_FIELDS):
        post["regions"] = read_regions_of_row(row, where)
    return post | {"lines": [where] * len(post["tokens"])}


def read_regions_of_row(row: Mapping[str, Any], where: str) -> Regions:
    """The regions of a row's `boxes`, `box_labels` and `box_scores`, checked.

    Raises:
        DataError: naming the place and the field.
    """
    boxes, labels, scores = (None if is_missing(row.get(field)) else row[field] for field in REGION_FIELDS)
    try:
        regions = check_regions(boxes, labels, scores, where)
    except ValueError as error:
        raise DataError(str(error)) from error
    return regions | {"box_labels": [as_text(label) for label in regions["box_labels"]]}


def image_name(image: Any, where: str, notes: Notes) -> str | None:
    """The name of a post's image, or `None`. pandas writes a missing one as NaN or as an empty string."""
    image = first_image(image, where, notes)
    if isinstance(image, dict):
        if "path" not in image:
            got = ", ".join(map(str, image)) or "no field"
            raise DataError(f"{where}, field image: expected the name of a file, or an object with path, got {got:.60}")
        image = image["path"]
    if is_missing(image):
        return None
    if not isinstance(image, str):
        raise DataError(f"{where}, field image: expected the name of a file, got {image!r:.60}")
    return image


def first_image(image: Any, where: str, notes: Notes) -> Any:
    """What a post's field holds, or the first image of the list that it holds; `None` for a list of none."""
    if not isinstance(image, list | tuple):
        return image
    images = [item for item in image if not is_missing(item)]
    if len(images) > 1:
        notes.add("a post has several images, of which the first is used", where)
    return images[0] if images else None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: `None`, NaN or blank."""
    return value is None or (isinstance(value, float) and value != value) or (isinstance(value, str) and not value.strip())


def _strings(values: Any, where: str, field: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise DataError(f"{where}, field {field}: expected a list of strings, got {values!r:.60}")
    return [as_text(value) for value in values] if field == "tokens" else values


def _word_spans(entities: Any, where: str) -> list[tuple[int, int, str]]:
    """Entities of a post with words, which count words: `{"word_start", "word_end", "label"}`, as `predict.py` writes them."""
    spans = []
    for entity in entities if isinstance(entities, list) else [entities]:
        if not isinstance(entity, dict) or not {"word_start", "word_end"} <= set(entity):
            raise DataError(
                f"{where}, field entities: expected word_start and word_end in every entity of a post with tokens (spans of "
                f"characters need a text), got {entity!r:.60}"
            )
        start, end, label = entity["word_start"], entity["word_end"], entity_label(entity)
        if not is_span(start, end, label):
            raise DataError(
                f"{where}, field entities: expected whole numbers as word_start and word_end, and a label, got {entity!r:.80}"
            )
        spans.append((start, end, label.strip()))
    return spans
