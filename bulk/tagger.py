"""The Ray actor of bulk tagging: a table of posts in, a table of results out."""

from __future__ import annotations

import ctypes
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock
from transformers import pipeline
from transformers.utils import HF_MODULES_CACHE

from mner_data.images import ImageFolder
from mner_data.readers import DataError, replace_surrogates
from modeling_hamlearning.configuration_hamlearning import LEVELS
from processors.fetching import fetch

from .sources import FIELDS

REGION = pa.struct(
    [
        ("box", pa.struct([(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")])),
        ("label", pa.string()),
        ("score", pa.float32()),
    ]
)
ENTITY = pa.struct(
    [
        ("entity_group", pa.string()),
        ("score", pa.float32()),
        ("word", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
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
    """A Ray actor that holds the pipeline and turns a table of posts into a table of results."""

    def __init__(self, model: str, revision: str | None, images: str | None, allow_urls: bool, batch_size: int):
        self.images, self.allow_urls, self.batch_size = images and ImageFolder(images), allow_urls, batch_size
        # transformers copies the model's code to a folder that the machine's actors share.
        Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(HF_MODULES_CACHE, ".hamlearning.lock")):
            device = 0 if torch.cuda.is_available() else -1
            options = {"revision": revision, "trust_remote_code": True, "device": device, "return_relevance": True}
            self.ner = pipeline("mner", model=model, model_kwargs={"use_safetensors": True}, **options)
        self.threads = ThreadPoolExecutor(FETCHES_AT_ONCE)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [_parse(row) for row in table.to_pylist()]
        results: list[dict] = [{}] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda place: _length(rows[place]))
        for first in range(0, len(rows), self.batch_size):
            places = by_length[first : first + self.batch_size]
            posts = list(self.threads.map(self._post, [rows[place] for place in places]))
            tagged = iter(self._tag([post for post in posts if not isinstance(post, Exception)]))
            for place, post in zip(places, posts, strict=True):
                results[place] = _row(post if isinstance(post, Exception) else next(tagged))
        _give_back_memory()
        columns = [pa.array([result[name] for result in results], type=kind) for name, kind in COLUMNS.items()]
        return pa.table([table["id"], *columns], names=["id", *COLUMNS])

    def _post(self, row: dict | Exception) -> dict | Exception:
        """A row as the pipeline takes it, its picture as bytes or as a file that may be opened; or what is wrong with it."""
        if isinstance(row, Exception):
            return row
        try:
            text = row["tokens"] if row.get("tokens") is not None else row.get("text")
            given = {name: row[name] for name in FIELDS if row.get(name) is not None}
            return {"text": text} | given | {"image": self._image(given.get("image"), row["id"])}
        except Exception as error:  # whatever a row holds: it becomes the row's own error
            return error

    def _image(self, image: Any, name: str) -> Any:
        """The picture itself or its file. Only here do paths and URLs of posts become something to open."""
        if isinstance(image, dict):
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if isinstance(image, str):
            if image.startswith(("http://", "https://")):
                if not self.allow_urls:
                    raise DataError(f"field image: is a URL, which is fetched only with --allow_urls: {image:.200}")
                return fetch(image)
            if self.images is None:
                raise DataError(f"field image: {image!r:.200} is a file, but no folder was given: --images DIR")
            if (path := self.images.find(image)) is None:
                raise DataError(f"field image: there is no file {image!r:.200} in {self.images.folder}")
            return path
        if image is None and self.images is not None:
            return self.images.find(str(name))
        return image

    def _tag(self, posts: list[dict]) -> list[dict | Exception]:
        """Results of posts; where one raises, the halves are tried apart, down to the post that is at fault."""
        if not posts:
            return []
        try:
            return self.ner(posts, batch_size=len(posts))
        except torch.AcceleratorError:
            raise  # the device is broken, not the post: the run ends, and goes on when the command is given again
        except Exception as error:
            if len(posts) == 1:
                return [error]
            half = len(posts) // 2
            return self._tag(posts[:half]) + self._tag(posts[half:])


def _parse(row: dict) -> dict | Exception:
    """A row's fields: those of its columns, or of its line of JSON."""
    if "json" not in row:
        return row
    try:
        fields = json.loads(row["json"])
        return fields | {"id": row["id"]}
    except (ValueError, TypeError, RecursionError) as error:
        return DataError(f"is no line of JSON with a post: {error}")


def _give_back_memory():
    """Hand freed memory back: batches of ever other shapes leave holes, by which glibc's heap would grow for hours."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _length(row: dict | Exception) -> int:
    text = None if isinstance(row, Exception) else row.get("tokens") or row.get("text")
    return len(text) if isinstance(text, list | str) else 0


def _row(result: dict | Exception) -> dict[str, Any]:
    """A result as a row of the output."""
    if isinstance(result, Exception):
        kind = "" if isinstance(result, ValueError) else f"{type(result).__name__}: "
        # The pipeline names a post by its place in the batch; here the row's id does.
        reason = re.sub(r"^post 0(, |: )", "", str(result))
        return {"entities": None, "relevance": None, "error": replace_surrogates(f"{kind}{reason}"[:500])}
    entities = [entity | {"word": replace_surrogates(entity["word"]), "region": _writable(entity["region"])}
                for entity in result["entities"]]  # fmt: skip
    return {"entities": entities, "relevance": result["relevance"], "error": None}


def _writable(region: dict | None) -> dict | None:
    return region and region | {"label": replace_surrogates(region["label"])}
