"""The posts of bulk tagging, wherever they lie: how Ray reads them, and their ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mner_data.loading import dataset_of_posts
from mner_data.readers import DataError, find_splits, read_splits, replace_surrogates

FIELDS = ("image", "boxes", "box_labels", "box_scores")
JSON_LINES = pa.schema([("id", pa.string()), ("json", pa.binary())])
ROWS_A_READ, ROWS_A_TABLE = 10_000, 1000


class ArrowDatasource(Datasource):
    """What Ray has no reader for, as functions that yield Arrow tables: one read task each."""

    def __init__(self, parts: list[Callable[[], Iterable[pa.Table]]]):
        self.parts = parts

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit=None, data_context=None) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(part, metadata, per_task_row_limit=per_task_row_limit) for part in self.parts]


class PostSource(NamedTuple):
    """The posts of `--data`: how Ray reads them, their ids, and a fingerprint by which other data are told from them."""

    read: Callable[[], ray.data.Dataset]
    ids: Callable[[], pa.ChunkedArray]
    fingerprint: str


def open_data(name: str, split: str | None) -> PostSource:
    """Find the posts of `--data`.

    Raises:
        DataError: there is no such data, or it has no posts' columns.
    """
    path = Path(name)
    if path.suffix in (".parquet", ".jsonl", ".txt", ".conll") and "://" not in name and not path.exists():
        raise DataError(f"--data: there is no file {name}")
    splits = find_splits(path) if path.exists() else {}
    if "://" in name or path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        found = pyarrow.dataset.dataset(name, format="parquet")
        columns = _columns(found.schema.names, name)
        infos = found.filesystem.get_file_info(found.files)
        fingerprint = fingerprint_of([(info.path, info.size, info.mtime_ns) for info in infos])
        return PostSource(
            lambda: ray.data.read_parquet(name).select_columns(columns),
            lambda: found.to_table(["id"])["id"],
            fingerprint,
        )
    if path.suffix == ".jsonl" or (path.is_dir() and not splits and any(path.glob("*.jsonl"))):
        files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    elif splits:
        files = list(_of_split(splits, split, name).values())
    elif path.is_dir():
        return _rows(datasets.load_from_disk(name), split, name)
    else:
        return _rows(datasets.load_dataset(name), split, name)
    if all(file.suffix == ".jsonl" for file in files):
        posts = _tables([partial(_json_lines, file) for file in files], "")
    else:
        beside = files[0].parent / "regions.jsonl"
        conll = {file.name: read_splits(file)[0]["train"] for file in files}
        posts = _rows(dataset_of_posts(conll, None, beside if beside.is_file() else None), None, name)
    return posts._replace(fingerprint=fingerprint_of([(str(file), *_stat(file)) for file in files]))


def _rows(data: datasets.Dataset | datasets.DatasetDict, split: str | None, name: str) -> PostSource:
    """PostSource of a data set of `datasets`, whose pictures stay undecoded."""
    splits = _of_split(data, split, name) if isinstance(data, dict) else {"": data}
    parts = []
    for rows in splits.values():
        rows = rows.select_columns(_columns(rows.column_names, name))
        if isinstance(rows.features.get("image"), datasets.Image):
            rows = rows.cast_column("image", datasets.Image(decode=False))
        count = max(1, len(rows) // ROWS_A_READ)
        shards = (rows.shard(count, index, contiguous=True) for index in range(count))
        parts += [partial(_arrow, shard) for shard in shards]
    return _tables(parts, fingerprint_of([rows._fingerprint for rows in splits.values()]))


def _tables(parts: list[Callable[[], Iterable[pa.Table]]], fingerprint: str) -> PostSource:
    return PostSource(
        lambda: ray.data.read_datasource(ArrowDatasource(parts), override_num_blocks=len(parts)),
        lambda: pa.chunked_array([chunk for part in parts for table in part() for chunk in table["id"].chunks]),
        fingerprint,
    )


def _of_split(splits: dict, split: str | None, name: str) -> dict:
    if split is not None and split not in splits:
        raise DataError(f"--split: {name} has {', '.join(splits)}, not {split}")
    return splits if split is None else {split: splits[split]}


def fingerprint_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stat(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


def _columns(names: list[str], where: str) -> list[str]:
    """The columns of a post among those there are."""
    if "id" not in names or not {"text", "tokens"} & set(names):
        raise DataError(f"{where}: has the columns {', '.join(names)}; a post has id, and tokens or text")
    return [name for name in names if name in ("id", "tokens", "text", *FIELDS)]


def _arrow(rows: datasets.Dataset) -> Iterator[pa.Table]:
    yield from rows.with_format("arrow").iter(ROWS_A_TABLE)


def _json_lines(file: Path) -> Iterator[pa.Table]:
    """Lines of a file with their ids. A line without a readable id is named by its place, and judged by the tagger."""
    ids, lines = [], []
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            ids.append(_id_of_line(line) or f"{file.name}, line {number}")
            lines.append(line)
            if len(ids) == ROWS_A_TABLE:
                yield pa.table({"id": ids, "json": lines}, schema=JSON_LINES)
                ids, lines = [], []
    yield pa.table({"id": ids, "json": lines}, schema=JSON_LINES)


def _id_of_line(line: bytes) -> str | None:
    try:
        name = json.loads(line)["id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return replace_surrogates(str(name)) if isinstance(name, str | int) and name != "" else None


def count_posts(ids: pa.ChunkedArray) -> int:
    """Number of posts, each with an id of its own: by it a run that goes on knows what is done.

    Raises:
        DataError: an id is missing or not unique.
    """
    if ids.null_count:
        raise DataError(f"--data: {ids.null_count:,} posts of {len(ids):,} have no id; every post needs one of its own")
    if not len(ids):
        raise DataError("--data: holds no posts")
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        first = next(count for count in counts if count["counts"].as_py() > 1)
        raise DataError(
            f"--data: {len(ids) - len(counts):,} posts of {len(ids):,} share an id with another, "
            f"e.g. {first['values'].as_py()!r} stands {first['counts']} times; ids have to be unique"
        )
    return len(ids)
