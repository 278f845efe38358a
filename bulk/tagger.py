"""The Ray actor of bulk tagging: a table of posts in, a table of results out."""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock
from transformers import pipeline
from transformers.utils import HF_MODULES_CACHE

from mner_data.images import ImageFinder
from mner_data.readers import DataError, read_regions, replace_surrogates
from mner_data.readers.rows import Notes, first_image, is_missing, standard_row
from modeling_hamlearning.configuration_hamlearning import LEVELS
from processors import REGION_FIELDS
from processors.fetching import fetch

from .sources import is_id

REGION = pa.struct(
    [
        ("box", pa.struct([(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")])),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
    ]
)
ENTITY = pa.struct(
    [
        ("entity_group", pa.string()),
        ("score", pa.float32()),
        ("word", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("word_start", pa.int32()),
        ("word_end", pa.int32()),
        ("region", REGION),
    ]
)
COLUMNS = {
    "entities": pa.list_(ENTITY),
    "relevance": pa.struct([(level, pa.float32()) for level in LEVELS]),
    "error": pa.string(),
}
FETCHES_AT_ONCE = 8


class Tagger:
    """A Ray actor that holds the pipeline and turns a table of posts into a table of results.

    Args:
        model: folder or Hub repo of the model.
        revision: commit of a model on the Hub.
        images: folder of the posts' images.
        allow_urls: whether to fetch images that posts name by URL.
        batch_size: posts in one call of the model.
        regions: JSONL files with the regions of posts that bring none themselves.
        with_tokens: whether the result has a column with the words of each post.
        data_dir: folder of the data; a post's image may be a path relative to it, such as `images/a.jpg`.
        column_names: the fields of a line of JSON that are not called as usual, by their names in it.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        images: str | None,
        allow_urls: bool,
        batch_size: int,
        regions: Sequence[str] = (),
        with_tokens: bool = False,
        data_dir: str | None = None,
        column_names: Mapping[str, str] | None = None,
    ):
        if batch_size < 1:
            raise DataError(f"--batch_size: expected at least 1 post in a call of the model, got {batch_size}")
        self.with_tokens = with_tokens
        self.column_names = column_names or {}
        self.images = ImageFinder(images, data_dir)
        self.allow_urls, self.batch_size = allow_urls, batch_size
        self.regions = {post: post_regions for file in regions for post, post_regions in read_regions(Path(file)).items()}
        # transformers copies the model's code to a folder that the machine's actors share.
        Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(HF_MODULES_CACHE, ".hamlearning.lock")):
            device = 0 if torch.cuda.is_available() else -1
            options = {"revision": revision, "trust_remote_code": True, "device": device, "return_relevance": True}
            self.ner = pipeline("mner", model=model, model_kwargs={"use_safetensors": True}, **options)
        self.ner.keep_images = True
        self.threads = ThreadPoolExecutor(FETCHES_AT_ONCE)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Tag a table of posts, as `sources` yields them: columns of a post, or ids with lines of JSON.

        Returns:
            A table with a row for each post: its id and `COLUMNS`. A post with an error has the entities of its text, if that
            can be tagged, and no relevance.
        """
        rows = [_parse(row, self.column_names) for row in table.to_pylist()]
        notes = Notes()
        results: list[dict] = [{}] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda place: _length(rows[place]))
        for first in range(0, len(rows), self.batch_size):
            places = by_length[first : first + self.batch_size]
            batch = [rows[place] for place in places]
            posts, errors = zip(*self.threads.map(self._post, batch, repeat(notes)), strict=True)
            tagged = iter(self._tag([post for post in posts if post is not None]))
            for place, post, error in zip(places, posts, errors, strict=True):
                result, tagging_error = (None, None) if post is None else next(tagged)
                results[place] = _row(result, [error, tagging_error])
        _release_memory()
        notes.log("--data")
        columns = [pa.array([result[name] for result in results], type=kind) for name, kind in COLUMNS.items()]
        tagged = pa.table([table["id"], *columns], names=["id", *COLUMNS])
        if self.with_tokens:
            words = [
                self._words(row) if result["entities"] is not None else None for row, result in zip(rows, results, strict=True)
            ]
            tagged = tagged.append_column("tokens", pa.array(words, type=pa.list_(pa.string())))
        return tagged

    def _words(self, row: Any) -> list[str]:
        """The words of a post that was tagged."""
        words = row["tokens"] if row.get("tokens") is not None else row["text"]
        words = self.ner.processor.split_words(words)[0] if isinstance(words, str) else words
        return [replace_surrogates(word) for word in words]

    def _post(self, row: dict | Exception, notes: Notes) -> tuple[dict | None, Exception | None]:
        """A row as the pipeline takes it, its image as bytes or as a file that may be opened, and what is wrong with it.

        A row whose image cannot be had becomes a post of its text alone.
        """
        if isinstance(row, Exception):
            return None, row
        text = row["tokens"] if row.get("tokens") is not None else row.get("text")
        try:
            if not is_id(row.get("json_id", row["id"])):
                raise DataError(f"field id: expected a string or an integer, got {row['json_id']!r:.80}")
            image = self._image(first_image(row.get("image"), f"post {row['id']}", notes), row["id"])
        except Exception as error:  # whatever a row holds: it becomes the row's own error
            return {"text": text}, error
        fields = {"image": image} | {name: row.get(name) for name in REGION_FIELDS}
        post = {"text": text} | {name: value for name, value in fields.items() if value is not None}
        if image is not None and not post.keys() & set(REGION_FIELDS):
            post |= self.regions.get(str(row["id"]), {})
        return post, None

    def _image(self, image: Any, name: str | int) -> bytes | Path | None:
        """The image itself or its file. Only here do paths and URLs of posts become something to open."""
        if isinstance(image, dict):
            if not {"bytes", "path"} & set(image):
                got = ", ".join(image) or "none"
                raise DataError(f"field image: expected an object with bytes or path, got the fields {got:.200}")
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if is_missing(image):
            return self.images.find({"id": str(name)})
        if isinstance(image, bytes):
            return image
        if not isinstance(image, str):
            raise DataError(f"field image: expected bytes or the name of a file, got {type(image).__name__}")
        is_url = image[:8].lower().startswith(("http://", "https://"))
        if is_url and self.allow_urls:
            return fetch(image)
        if path := self.images.find({"id": str(name), "image": image}):
            return path
        if is_url:
            raise DataError(f"field image: is a URL, which is fetched only with --allow_urls: {image:.200}")
        if not self.images.folders:
            raise DataError(f"field image: {image!r:.200} is a file, but there is no folder of images: give --images DIR")
        folders = " or ".join(str(folder.folder) for folder in self.images.folders)
        raise DataError(f"field image: there is no file {image!r:.200} in {folders}")

    def _tag(self, posts: list[dict]) -> list[tuple[dict | None, Exception | None]]:
        """Result and error of each post. Where a call fails, its halves are tried apart, down to the post that is at fault.

        Of that one the text is tried alone: a broken image or a wrong box does not cost the entities of the text.
        """
        if not posts:
            return []
        try:
            return [(result, None) for result in self.ner(posts, batch_size=len(posts))]
        except torch.AcceleratorError:
            raise  # the device is broken, not the post: the run ends, and goes on when the command is repeated
        except Exception as error:
            if len(posts) > 1:
                half = len(posts) // 2
                return self._tag(posts[:half]) + self._tag(posts[half:])
            (post,) = posts
            if post.keys() == {"text"}:
                return [(None, error)]
            ((result, _),) = self._tag([{"text": post["text"]}])
            return [(result, error)]


def _parse(row: dict, column_names: Mapping[str, str]) -> dict | Exception:
    """The fields of a post: those of its columns, or of its line of JSON."""
    if "json" not in row:
        return row
    try:
        fields = json.loads(row["json"])
        if not isinstance(fields, dict):
            raise TypeError(f"expected an object, got {type(fields).__name__}")
        fields = standard_row(fields, column_names)
        # A post without an id goes by its place; an id that is neither text nor a number is an error.
        wrong_id = {} if fields.get("id") is None else {"json_id": fields["id"]}
        return fields | {"id": row["id"]} | wrong_id
    except (ValueError, TypeError, RecursionError) as error:
        return DataError(f"expected a line of JSON with a post: {error}")


def _release_memory():
    """Return freed memory to the system: batches of always other shapes leave holes, by which glibc's heap grows for hours."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)


def _length(row: dict | Exception) -> int:
    text = None if isinstance(row, Exception) else row.get("tokens") or row.get("text")
    return len(text) if isinstance(text, list | str) else 0


def _row(result: dict | None, errors: list[Exception | None]) -> dict[str, Any]:
    """A post's result and errors as a row of the output."""
    reasons = dict.fromkeys(_reason(error) for error in errors if error is not None)
    row: dict[str, Any] = {"entities": None, "relevance": None, "error": "; ".join(reasons) or None}
    if result is not None:
        row["relevance"] = result["relevance"]
        row["entities"] = [
            entity | {"word": replace_surrogates(entity["word"]), "region": _writable(entity["region"])}
            for entity in result["entities"]
        ]
    return row


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    # The pipeline names a post by its place in the batch; here the row's id does.
    reason = re.sub(r"^post 0(, |: )", "", str(error))
    return replace_surrogates(f"{kind}{reason}"[:500])


def _writable(region: dict | None) -> dict | None:
    return region and region | {"label": replace_surrogates(region["label"])}
