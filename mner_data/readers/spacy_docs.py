"""spaCy's binary files of annotated documents (`.spacy`). They need spaCy: `pip install -e '.[spacy]'`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .rows import Notes, post_of_row
from .text import DataError


def read_spacy_posts(path: Path, notes: Notes, name: str) -> list[dict[str, Any]]:
    """Posts of a `DocBin`. The words are those of the processor's splitter. A document may say its `id` and `image` in
    `user_data`, which `DocBin(store_user_data=True)` stores.

    Raises:
        DataError: spaCy is not installed, or cannot read the file.
    """
    try:
        import spacy
        from spacy.tokens import DocBin
    except ImportError as error:
        raise DataError(f"{path}: needs spaCy ({error}): pip install spacy, or export the documents as JSONL") from error
    try:
        documents = list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))
    except Exception as error:  # zlib's, msgpack's or spaCy's own, by what is wrong with the file
        raise DataError(f"{path}: expected a DocBin of spaCy: {error!r:.200}") from error
    posts = []
    for number, document in enumerate(documents, start=1):
        spans = [[entity.start_char, entity.end_char, entity.label_] for entity in document.ents]
        row = {"id": document.user_data.get("id"), "image": document.user_data.get("image")}
        where = f"{path}, post {number}"
        posts.append(post_of_row(row | {"text": document.text, "entities": spans}, where, f"{name}-{number}", notes))
    if not posts:
        raise DataError(f"{path}: has no posts")
    return posts
