"""MNRE, the data set of relations: a dictionary a line for each pair of entities of a post."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .rows import Notes
from .spans import labels_of_spans
from .text import DataError, as_text, json_or_python, read_lines


def read_mnre_posts(path: Path, notes: Notes, name: str) -> list[dict[str, Any]]:
    """Posts of `{'token': […], 'h': {'name', 'pos'}, 't': …, 'img_id', 'relation': '/per/org/member_of'}`, JSON or Python.

    The lines of one post become one, with the entities of all. The relation says the types of its two entities; an entity
    whose every relation is `None` has no type, and is left out and noted.

    Raises:
        DataError: naming the file and the line.
    """
    posts: dict[tuple, dict[str, Any]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = json_or_python(line)
        try:
            words, image = tuple(as_text(word) for word in row["token"]), row["img_id"]
            post = posts.setdefault((image, words), {"image": image, "tokens": list(words), "where": where, "types": {}})
            _, *types = row["relation"].upper().split("/")
            for entity, entity_type in zip((row["h"], row["t"]), [*types, "", ""], strict=False):
                place = (int(entity["pos"][0]), int(entity["pos"][1]))
                post["types"][place] = post["types"].get(place) or entity_type
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(f"{where}: expected token, h, t, img_id and relation: {error!r:.200}") from error
    if not posts:
        raise DataError(f"{path}: has no posts")
    found: list[dict[str, Any]] = []
    ids: dict[str, int] = {}
    for post in posts.values():
        where, types = post.pop("where"), post.pop("types")
        for start, end in (place for place, entity_type in types.items() if not entity_type):
            words = " ".join(post["tokens"][start:end])
            notes.add("an entity has no type, as it has no relation, and is left out", f"{where}, {words!r:.60}")
        spans = [(start, end, entity_type) for (start, end), entity_type in types.items() if entity_type]
        stem = post["image"].rpartition(".")[0] or post["image"]
        ids[stem] = ids.get(stem, 0) + 1
        post["id"] = stem if ids[stem] == 1 else f"{stem}-{ids[stem]}"
        post["labels"] = labels_of_spans(len(post["tokens"]), spans, where, notes)
        found.append(post | {"lines": [where] * len(post["tokens"])})
    return found


def is_mnre(row: Any) -> bool:
    """Whether a line's dictionary is one of MNRE's."""
    return isinstance(row, dict) and {"token", "h", "t", "img_id", "relation"} <= set(row)
