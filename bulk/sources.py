"""Where the posts of bulk tagging come from: which files are read, how Ray reads them, and their ids."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mner_data.images import default_image_dir
from mner_data.readers import (
    JSONL_SUFFIXES,
    POST_SUFFIXES,
    REGIONS_FILE,
    SPLIT_NAMES,
    DataError,
    has_posts,
    open_label_file,
    read_posts,
    read_regions,
    recognise_format,
    replace_surrogates,
    split_name,
)
from mner_data.readers.rows import check_column_names, match_fields, standard_row
from processors import REGION_FIELDS

# The columns of a post in Arrow. JSONL is not among the forms that get them: a line may hold anything in any field, and one
# wrong line is an error of its own post.
POST_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("text", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("box_labels", pa.list_(pa.string())),
        ("box_scores", pa.list_(pa.float64())),
    ]
)
JSON_LINES = pa.schema([("id", pa.string()), ("json", pa.binary())])
# Suffixes of files that may hold posts, JSON apart: many folders have JSON that is something else.
DATA_SUFFIXES = (".parquet", *(suffix for suffix in POST_SUFFIXES if suffix != ".json"))
FORM_NAMES = {"jsonl": "JSONL", "conll": "CoNLL", "json": "JSON", "csv": "CSV", "mnre": "MNRE", "spacy": "spaCy"}
READ_FORMS = "parquet, JSONL, JSON, CSV, TSV, CoNLL (.txt, .conll, .bio) or .spacy, text files also with .gz"
ROWS_PER_READ, ROWS_PER_TABLE, BYTES_PER_TABLE = 10_000, 1000, 64_000_000
FOOTERS_AT_ONCE = 16
NAMES_LISTED = 10
# Functions that yield the posts' tables; with `ids_only=True`, tables of which only the ids are read.
Parts = Sequence[Callable[..., Iterable[pa.Table]]]


class DataFile(NamedTuple):
    """A file below the data: where it lies, its name below the folder of the data, and what changes when it is changed."""

    path: str
    name: str
    size: int
    mtime: int


class ArrowDatasource(Datasource):
    """Lets Ray read functions that yield Arrow tables, one read task for each function."""

    def __init__(self, parts: Parts):
        self.parts = parts

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit=None, data_context=None) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(part, metadata, per_task_row_limit=per_task_row_limit) for part in self.parts]


class Reading(NamedTuple):
    """How files are read, where a person says it; see `mner_data.readers.read_posts`."""

    format: str | None = None
    columns: str | None = None
    column_names: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class PostSource:
    """The posts of `--data`.

    Attributes:
        parts: functions that yield the posts' tables.
        fingerprint: changes when the data change, so that a run does not go on with other posts.
        notes: what is read and what is not, in sentences for people.
        images: the folder of the posts' images, if there is one.
        regions: the files `regions.jsonl` beside the data.
        folder: the folder of the data; None for data that lie elsewhere.
        column_names: the fields of columns that are not called as usual.
    """

    parts: Parts
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    images: Path | None = None
    regions: tuple[str, ...] = ()
    folder: Path | None = None
    column_names: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> ray.data.Dataset:
        """The posts as Ray reads them, a block for each part."""
        return ray.data.read_datasource(ArrowDatasource(self.parts), override_num_blocks=len(self.parts))

    def ids(self) -> pa.ChunkedArray:
        """The ids of all posts, read here."""
        tables = [table.select(["id"]) for part in self.parts for table in part(ids_only=True)]
        return pa.concat_tables(tables)["id"] if tables else pa.chunked_array([], pa.string())


def open_data(
    name: str,
    split: str | None = None,
    images: Path | None = None,
    output: Path | None = None,
    format: str | None = None,
    columns: str | None = None,
    column_names: Mapping[str, str] | None = None,
) -> PostSource:
    """Find the posts of `--data`.

    Args:
        name: a file, a folder, an address such as s3://bucket/posts, or the name of a data set on the Hub.
        split: the split to read; all posts if None.
        images: the folder of the images; None for the one beside the data, if there is one.
        output: the folder of the results. Neither of these two is searched for posts.
        format, columns, column_names: see `mner_data.readers.read_posts`; column_names is for parquet and data sets as well.

    Raises:
        DataError: there is no such data or split, or the columns are not those of a post.
    """
    if "://" in name:
        _refuse_reading(Reading(format, columns), name, "an address of parquet files")
        return replace(_open_address(name, split, column_names or {}), images=images)
    path = Path(name).absolute()  # Ray's workers may run in another folder
    if not path.exists():
        if path.suffix.lower() in (*DATA_SUFFIXES, ".json", ".gz") or name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise DataError(f"--data: there is no file or folder {name}")
        _refuse_reading(Reading(format, columns), name, "a data set of the Hub")
        return replace(_open_hub(name, split, column_names or {}), images=images)
    folder = path if path.is_dir() else path.parent
    if images is None:
        try:
            images = default_image_dir(folder)
        except DataError as error:
            raise DataError(f"--images: {error}") from error
    is_saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if path.is_dir():
        not_data = [folder for folder in (images, output) if folder]
        files = [_data_file(file, str(file.relative_to(path))) for file in walk_files(path, not_data) if file.is_file()]
        regions = [file for file in files if _is_regions(file) and not _is_hidden(file)]
    else:
        files = [_data_file(path, path.name)]
        beside = folder / REGIONS_FILE
        regions = [_data_file(beside, beside.name)] if beside.is_file() and beside != path else []
    files = [file for file in files if file not in regions]
    if is_saved:
        _refuse_reading(Reading(format, columns), name, "a saved data set")
        try:
            data = datasets.load_from_disk(str(path))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"--data: {name} cannot be read as a saved data set: {error!r:.300}") from error
        source = _open_datasets(data, split, name, fingerprint_of(_stats(files)), column_names or {})
        source.notes.extend(_unread_note([file.name for file in files if _suffix(file.name) in DATA_SUFFIXES]))
    else:
        reading = Reading(format, columns, column_names or {})
        source = _open_files(files, split, name, pyarrow.fs.LocalFileSystem(), is_file=path.is_file(), reading=reading)
    if path.is_dir() and images and path.resolve() in images.resolve().parents:
        labels = [str(file.relative_to(images)) for file in walk_files(images) if _suffix(file.name) in DATA_SUFFIXES]
        source.notes.extend(_unread_note([f"{images.name}/{label}" for label in labels]))
    regions_of: dict[str, str] = {}
    for file in regions:
        for post in read_regions(Path(file.path)):  # an error in it is better said now than by every tagger
            if (first := regions_of.setdefault(post, file.path)) != file.path:
                raise DataError(f"--data: post {post:.80}: expected its regions in one file, got {first} and {file.path}")
        source.notes.append(f"regions: {file.path}")
    fingerprint = fingerprint_of(source.fingerprint, _stats(regions))
    regions_files = tuple(file.path for file in regions)
    return replace(
        source, fingerprint=fingerprint, images=images, regions=regions_files, folder=folder, column_names=column_names or {}
    )


def walk_files(folder: Path, skipped: Iterable[Path] = ()) -> Iterator[Path]:
    """Every file below a folder, but for those in the skipped folders. Links are followed, and each folder is read once.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError):
        raise error

    top = os.path.realpath(folder)
    seen = {os.path.realpath(path) for path in skipped} - {top}
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # skipped, or reached again by a link
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(parent, file) for file in sorted(files))


def folder_fingerprint(folder: Path, skipped: Iterable[Path] = ()) -> tuple[str, int]:
    """A fingerprint that changes when a file below the folder comes, goes or is changed, and the number of files."""
    digest, count = hashlib.sha256(), 0
    for file in walk_files(folder, skipped):
        if file.exists():  # a link may lead nowhere
            stat = file.stat()
            digest.update(repr((str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns)).encode())
            count += 1
    return digest.hexdigest(), count


def fingerprint_of(*parts: Any) -> str:
    """A hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _data_file(path: Path, name: str) -> DataFile:
    stat = path.stat()
    return DataFile(str(path), name, stat.st_size, stat.st_mtime_ns)


def _is_hidden(file: DataFile) -> bool:
    """Is it a file that readers of data folders pass over by convention, in .git, .cache or a run's _run-… folder?"""
    return any(part.startswith((".", "_")) for part in Path(file.name).parts)


def _is_regions(file: DataFile) -> bool:
    """Is it a file of regions, whatever its case and compression?"""
    name = Path(file.name).name.lower()
    return name.startswith("regions.") and _suffix(name) in JSONL_SUFFIXES


def _unread_note(names: list[str]) -> list[str]:
    """A sentence that names files that are not read, if there are any; those that look like data come first."""
    names = sorted(names, key=lambda name: (_suffix(name) not in DATA_SUFFIXES, name))
    return [f"files not read: {_listed(names)}"] if names else []


def _stats(files: Iterable[DataFile]) -> list[tuple[str, int, int]]:
    return [(file.path, file.size, file.mtime) for file in files]


def _form(path: str, is_file: bool, format: str | None) -> str | None:
    """The form of a file of posts, or None for a file that holds something else.

    A text file in a folder may be a README or a license: it holds posts if its name is that of a split or if `has_posts` says
    so. A file that is the data itself is read in any case.
    """
    name = Path(path).name.lower()
    suffix = _suffix(name)
    if suffix == ".parquet":
        return None if name.endswith(".gz") else "parquet"
    if not is_file and suffix not in POST_SUFFIXES:
        return None
    form = format or recognise_format(Path(path))
    if is_file or suffix in JSONL_SUFFIXES or form == "conll" and split_name(name) is not None or has_posts(Path(path)):
        return form
    return None


def _chosen_split(names: Iterable[str], split: str, where: str) -> str:
    """The name of the split that is asked for, among those of the data.

    Raises:
        DataError: naming those that there are.
    """
    names = list(names)
    for name in (split, SPLIT_NAMES.get(split.lower())):
        if name in names:
            return name
    there = ", ".join(names) or "no splits: no name of a file or folder says train, validation or test"
    raise DataError(f"--split: {where} has {there}; expected one of its splits, got {split!r}")


def _open_files(
    files: list[DataFile], split: str | None, where: str, filesystem: pyarrow.fs.FileSystem, is_file: bool, reading: Reading
) -> PostSource:
    """PostSource of the files of a folder, or of a single file."""
    is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    hidden = set() if is_file else {file for file in files if _is_hidden(file)}
    files = [file for file in files if file not in hidden or _suffix(file.name) in DATA_SUFFIXES]
    forms = {
        file: _form(file.path, is_file, reading.format) if is_local else _remote_form(file)
        for file in files
        if file not in hidden
    }
    posts = [file for file, form in forms.items() if form]
    if not posts:
        holds = f"; it holds {_listed([file.name for file in files])}" if files and not is_file else ""
        raise DataError(f"--data: {where}: expected posts as {READ_FORMS if is_local else 'parquet'}{holds}")
    if split is not None:
        splits = {file: split_name(file.name) for file in posts}
        chosen = _chosen_split(sorted({name for name in splits.values() if name}), split, where)
        posts = [file for file in posts if splits[file] == chosen]
    examples = {forms[file]: file.name for file in posts}
    if len(examples) > 1:
        holds = " and ".join(sorted(f"{FORM_NAMES.get(form, form)} ({name})" for form, name in examples.items()))
        raise DataError(f"--data: {where} holds posts as {holds}: expected one form; name a file, or a folder of one form")
    form = forms[posts[0]]
    form_name = FORM_NAMES.get(form, form)
    read_files = set(posts)
    unread = [file.name for file in files if file not in read_files]
    notes = [
        f"data: {len(posts):,} {form_name} file{'s' * (len(posts) > 1)} of {where}: {_listed([file.name for file in posts])}"
    ]
    notes += _unread_note(unread)
    parts: Parts
    if form == "parquet":
        _refuse_reading(reading, where, "which is parquet")
        parts, columns = _parquet_parts(posts, filesystem, reading.column_names)
    elif form == "jsonl":
        if reading.columns:
            raise DataError(f"--columns: {where} is read as JSONL; it is for CoNLL files; --column_names is for JSONL")
        if reading.column_names:
            _check_json_names(posts, reading.column_names, where)
        parts = [partial(_json_lines, file.path, file.name, reading.column_names) for file in posts]
        columns = _json_fields(posts, reading.column_names)
    else:
        tables = [_table(read_posts(file.path, form, *reading[1:], name=file.name)) for file in posts]
        parts = [partial(_slices, table) for table in tables]
        present = [name for name in tables[0].column_names if any(len(table) > table[name].null_count for table in tables)]
        columns = f"columns: {', '.join(present)}"
    return PostSource(parts, fingerprint_of(_stats(posts)), [*notes, columns])


def _refuse_reading(reading: Reading, where: str, what: str):
    """Raises `DataError` for options of label files with data that are none."""
    if options := [f"--{name}" for name in ("format", "columns") if getattr(reading, name)]:
        raise DataError(f"{' and '.join(options)}: expected label files beside such an option, got {where}, {what}; leave it out")


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _remote_form(file: DataFile) -> str | None:
    return "parquet" if file.name.lower().endswith(".parquet") else None


def _open_address(name: str, split: str | None, column_names: Mapping[str, str]) -> PostSource:
    """PostSource of parquet at an address, a file or a folder."""
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(name)
    except ValueError as error:
        raise DataError(f"--data: {name} is no address that can be read: {error}") from error
    info = filesystem.get_file_info(path)
    if info.type == pyarrow.fs.FileType.NotFound:
        raise DataError(f"--data: there is nothing at {name}")
    infos = [info] if info.is_file else filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    names = {info.path: Path(info.path).name if info.path == path else info.path.removeprefix(path).lstrip("/") for info in infos}
    files = [DataFile(info.path, names[info.path], info.size, info.mtime_ns) for info in infos if info.is_file]
    reading = Reading(column_names=column_names)
    return _open_files(sorted(files), split, name, filesystem, is_file=info.is_file, reading=reading)


def _open_hub(name: str, split: str | None, column_names: Mapping[str, str]) -> PostSource:
    try:
        data = datasets.load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        reason = f"there is no file or folder {name} here, and no such data set on the Hub"
        raise DataError(f"--data: {reason}: {error!s:.300}") from error
    except ValueError as error:
        raise DataError(f"--data: {name} cannot be read: {error}") from error
    return _open_datasets(data, split, name, None, column_names)


def _open_datasets(
    data: datasets.Dataset | datasets.DatasetDict,
    split: str | None,
    where: str,
    fingerprint: str | None,
    column_names: Mapping[str, str],
) -> PostSource:
    """PostSource of a data set of `datasets`, whose images stay undecoded."""
    splits = data if isinstance(data, dict) else {}
    if split is not None:
        chosen = _chosen_split(splits, split, where)
        splits = {chosen: data[chosen]}
    rows_by_name = {f"{where}, {name}": rows for name, rows in splits.items()} or {where: data}
    schemas = {name: rows.features.arrow_schema for name, rows in rows_by_name.items()}
    schema, columns = _unified(schemas, column_names)
    parts = []
    for name, rows in rows_by_name.items():
        fields = _columns_of_fields(rows.column_names, column_names)
        rows = rows.select_columns([fields[field] for field in schema.names if field in fields])
        rows = rows.rename_columns({column: field for field, column in fields.items() if column in rows.column_names})
        count = max(1, len(rows) // ROWS_PER_READ)
        parts += [partial(_dataset_rows, rows.shard(count, index, contiguous=True), schema, name) for index in range(count)]
    if fingerprint is None or split is not None:
        fingerprint = fingerprint_of(fingerprint, [rows._fingerprint for rows in rows_by_name.values()])
    notes = [f"data: {', '.join(f'{name} ({len(rows):,} posts)' for name, rows in rows_by_name.items())}", columns]
    return PostSource(parts, fingerprint, notes)


def _dataset_rows(rows: datasets.Dataset, schema: pa.Schema, where: str, ids_only: bool = False) -> Iterator[pa.Table]:
    rows = rows.select_columns(["id"]) if ids_only else rows
    schema = pa.schema([schema.field("id")]) if ids_only else schema
    for table in rows.with_format("arrow").iter(ROWS_PER_TABLE):
        yield _post_table(table, schema, where)


def _parquet_parts(
    files: list[DataFile], filesystem: pyarrow.fs.FileSystem, column_names: Mapping[str, str]
) -> tuple[Parts, str]:
    """Functions that read the files, and a sentence on their columns. Every part yields the same columns of the same types."""

    def open_footer(file: DataFile) -> tuple[pa.Schema, pq.FileMetaData]:
        try:
            with pq.ParquetFile(file.path, filesystem=filesystem) as opened:
                return opened.schema_arrow, opened.metadata
        except (pa.ArrowInvalid, EOFError) as error:
            raise DataError(f"{file.path}: expected a parquet file: {error}") from error

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(open_footer, files))
    schema, columns = _unified({file.path: footer for file, (footer, _) in zip(files, footers, strict=True)}, column_names)
    parts = []
    for file, (_, metadata) in zip(files, footers, strict=True):
        groups: list[int] = []
        num_rows = num_bytes = 0
        for group in range(metadata.num_row_groups):
            groups.append(group)
            num_rows += metadata.row_group(group).num_rows
            num_bytes += metadata.row_group(group).total_byte_size
            if num_rows >= ROWS_PER_READ or group == metadata.num_row_groups - 1:
                batch_size = max(1, min(ROWS_PER_TABLE, BYTES_PER_TABLE * num_rows // max(1, num_bytes)))
                parts.append(partial(_parquet_rows, file.path, filesystem, groups, batch_size, schema, column_names))
                groups, num_rows, num_bytes = [], 0, 0
    return parts, columns


def _parquet_rows(
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    groups: list[int],
    batch_size: int,
    schema: pa.Schema,
    column_names: Mapping[str, str],
    ids_only: bool = False,
) -> Iterator[pa.Table]:
    schema = pa.schema([schema.field("id")]) if ids_only else schema
    with pq.ParquetFile(path, filesystem=filesystem) as opened:
        fields = _columns_of_fields(opened.schema_arrow.names, column_names)
        names = [fields[field] for field in schema.names if field in fields]
        field_by_column = {column: field for field, column in fields.items()}
        batches = opened.iter_batches(ROWS_PER_TABLE if ids_only else batch_size, row_groups=groups, columns=names)
        for batch in batches:
            table = pa.Table.from_batches([batch])
            yield _post_table(table.rename_columns([field_by_column[column] for column in table.column_names]), schema, path)


def _columns_of_fields(names: Iterable[str], column_names: Mapping[str, str]) -> dict[str, str]:
    """The column of every field of a post that is read."""
    names = list(names)
    fields = match_fields(names, column_names) | {name: name for name in REGION_FIELDS if name in names}
    return {field: column for field, column in fields.items() if field in POST_COLUMNS.names}


def _unified(schemas: dict[str, pa.Schema], column_names: Mapping[str, str]) -> tuple[pa.Schema, str]:
    """The columns that posts of all schemas fit, and a sentence that says which are read and which are not.

    Raises:
        DataError: naming the file and the column that is no post's.
    """
    present, unread, id_types = set(), set(), set()
    for where, schema in schemas.items():
        names = schema.names
        check_column_names(column_names, names, where)
        fields = _columns_of_fields(names, column_names)
        if "id" not in fields or not {"text", "tokens"} & set(fields):
            raise DataError(f"--data: {where} has the columns {', '.join(names)}; expected id, and tokens or text")
        unread.update(set(names) - set(fields.values()))
        for name, column in fields.items():
            if names.count(column) > 1:
                raise DataError(f"--data: {where}, column {column}: expected one column of that name, got {names.count(column)}")
            present.add(name)
            type = _plain(schema.field(column).type)
            expected, fits = COLUMN_TYPES[name]
            if not (fits(type) or pa.types.is_null(type)):
                raise DataError(f"--data: {where}, column {column}: expected {expected}, got {type}")
            if name == "id" and not pa.types.is_null(type):
                id_types.add(type)
    unified = [POST_COLUMNS.field(name) for name in POST_COLUMNS.names if name in present]
    if len(id_types) == 1 and pa.types.is_integer(next(iter(id_types))):
        unified[0] = pa.field("id", id_types.pop())
    return pa.schema(unified), _column_note([column.name for column in unified], unread)


def _column_note(read: Iterable[str], unread: Iterable[str]) -> str:
    note = f"columns: {', '.join(read)}"
    return f"{note}; not read: {_listed(sorted(unread))}" if unread else note


def _plain(type: pa.DataType) -> pa.DataType:
    """The type of what a column stores, without an extension's name or a dictionary."""
    while isinstance(type, pa.BaseExtensionType) or pa.types.is_dictionary(type):
        type = type.value_type if pa.types.is_dictionary(type) else type.storage_type
    return type


def _is_text(type: pa.DataType) -> bool:
    type = _plain(type)
    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _is_bytes(type: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(type) for check in checks)


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type)


def _is_list(type: pa.DataType, fits: Callable[[pa.DataType], bool]) -> bool:
    # List views are not among them: Arrow casts one of string views to empty lists.
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(type) for check in checks) and (fits(type.value_type) or pa.types.is_null(type.value_type))


def _is_image(type: pa.DataType) -> bool:
    if not pa.types.is_struct(type):
        return _is_text(type) or _is_bytes(type)
    fields = {child.name: child.type for child in type}
    bytes_type, path_type = (_plain(fields.get(name, pa.null())) for name in ("bytes", "path"))
    return (
        bool({"bytes", "path"} & fields.keys())
        and (_is_bytes(bytes_type) or pa.types.is_null(bytes_type))
        and (_is_text(path_type) or pa.types.is_null(path_type))
    )


# What each column may be stored as: in words, and a check.
COLUMN_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "id": ("strings or integers", lambda type: _is_text(type) or pa.types.is_integer(type)),
    "tokens": ("lists of strings", lambda type: _is_list(type, _is_text)),
    "text": ("strings", _is_text),
    "image": ("bytes, names of files, or structs of bytes and path", _is_image),
    "boxes": ("lists of lists of numbers", lambda type: _is_list(type, lambda inner: _is_list(inner, _is_number))),
    "box_labels": ("lists of strings", lambda type: _is_list(type, _is_text)),
    "box_scores": ("lists of numbers", lambda type: _is_list(type, _is_number)),
}


def _post_table(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """A table with exactly the columns of a schema; what it lacks is null.

    Raises:
        DataError: a value does not fit its column.
    """
    columns = []
    for column in schema:
        try:
            columns.append(_cast(table[column.name], column) if column.name in table.column_names else
                           pa.nulls(len(table), column.type))  # fmt: skip
        except pa.ArrowInvalid as error:
            raise DataError(f"--data: {where}, column {column.name}: expected {column.type}: {error}") from error
    return pa.table(columns, schema=schema)


def _cast(values: pa.ChunkedArray, column: pa.Field) -> pa.ChunkedArray:
    while isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    if column.name != "image" or pa.types.is_null(values.type):
        return values.cast(column.type)
    if not pa.types.is_struct(values.type):
        part = "bytes" if _is_bytes(_plain(values.type)) else "path"
        valid = pc.is_valid(values)
        parts = {part: values}
    else:
        names = {child.name for child in values.type}
        valid = pc.is_valid(values)
        parts = {name: pc.struct_field(values, name) for name in ("bytes", "path") if name in names}
    children = [
        parts[child.name].cast(child.type).combine_chunks() if child.name in parts else pa.nulls(len(values), child.type)
        for child in column.type
    ]
    invalid = pc.invert(valid).combine_chunks()
    return pa.chunked_array([pa.StructArray.from_arrays(children, fields=list(column.type), mask=invalid)])


def _table(posts: list[dict[str, Any]]) -> pa.Table:
    """Posts that `mner_data.readers` has read; their labels are not used. Where a post has a text, it is tagged and not its
    words, so that results count its characters.
    """
    rows = [
        {
            "id": post["id"],
            "tokens": None if "text" in post else post["tokens"],
            "text": post.get("text"),
            "image": post.get("image") and {"path": post["image"]},
            **post.get("regions", {}),
        }
        for post in posts
    ]
    return pa.Table.from_pylist(rows, schema=POST_COLUMNS)


def _slices(table: pa.Table, ids_only: bool = False) -> Iterator[pa.Table]:
    for first in range(0, len(table), ROWS_PER_TABLE):
        part = table.slice(first, ROWS_PER_TABLE)
        yield part.select(["id"]) if ids_only else part


def _json_lines(path: str, name: str, column_names: Mapping[str, str], ids_only: bool = False) -> Iterator[pa.Table]:
    """Lines of a file with their ids. A line without a readable id is named by its place, and judged by the tagger."""
    ids, lines = [], []
    try:
        with open_label_file(path) as opened:
            for number, line in enumerate(opened, start=1):
                if not line.strip():
                    continue
                ids.append(_id_of_line(line, column_names) or f"{name}, line {number}")
                lines.append(b"" if ids_only else line)
                if len(ids) == ROWS_PER_TABLE:
                    yield pa.table({"id": ids, "json": lines}, schema=JSON_LINES)
                    ids, lines = [], []
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"--data: {path} cannot be read to its end: {error}") from error
    yield pa.table({"id": ids, "json": lines}, schema=JSON_LINES)


def _json_fields(files: list[DataFile], column_names: Mapping[str, str]) -> str:
    """A sentence on the fields of a file's first posts: which are read and which are not."""
    names: set[str] = set()
    for file in files:
        for table in islice(_json_lines(file.path, file.name, column_names), 1):
            for line in table["json"].to_pylist():
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # the tagger names it
                names |= standard_row(fields, column_names).keys() if isinstance(fields, dict) else set()
    columns = [name for name in POST_COLUMNS.names if name in names]
    return _column_note(columns, {replace_surrogates(name) for name in names.difference(columns)})


def _check_json_names(files: list[DataFile], column_names: Mapping[str, str], where: str):
    """Raises `DataError` for a name that no line of the files has. Files are read as far as it takes to find all names."""
    names: set[str] = set()
    tables = (table for file in files for table in _json_lines(file.path, file.name, column_names))
    for line in (line for table in tables for line in table["json"].to_pylist()):
        if column_names.keys() <= names:
            break
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the tagger names it
        for part in (fields, fields.get("data")) if isinstance(fields, dict) else ():
            names |= part.keys() if isinstance(part, dict) else set()
    check_column_names(column_names, sorted(names), where)


def _id_of_line(line: bytes, column_names: Mapping[str, str]) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = standard_row(row, column_names).get("id") if isinstance(row, dict) else None
    return replace_surrogates(str(name)) if is_id(name) and name != "" else None


def is_id(value: Any) -> bool:
    """May a value of JSON be the id of a post? True and false, which Python takes for integers, may not."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def count_posts(ids: pa.ChunkedArray) -> int:
    """Number of posts, each with an id that no other has: by the ids a run that goes on knows which posts are done.

    Raises:
        DataError: an id is missing or not unique.
    """
    if ids.null_count:
        raise DataError(f"--data: {ids.null_count:,} posts of {len(ids):,} have no id; expected an id for every post")
    if not len(ids):
        raise DataError("--data: holds no posts")
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        first = next(count for count in counts if count["counts"].as_py() > 1)
        raise DataError(
            f"--data: {len(ids) - len(counts):,} posts of {len(ids):,} share an id with another, "
            f"e.g. {first['values'].as_py()!r}, which stands {first['counts']} times; ids have to be unique"
        )
    return len(ids)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_LISTED:,} more" if len(names) > NAMES_LISTED else ""
    return ", ".join(names[:NAMES_LISTED]) + more
