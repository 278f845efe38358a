"""Data sets: the field's CoNLL files with a folder of images, or any data set of the Hub with the same rows.

A row is `{"id", "tokens", "ner_tags", "image"}` and, once regions are prepared, `"boxes"`, `"box_labels"`, `"box_scores"`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE
from tqdm.auto import tqdm

from processors import ImageError, load_image
from processors.region_extraction import check_regions

logger = logging.getLogger(__name__)

SPLIT_FILES = {
    "train": ("train.txt", "train.jsonl"),
    "validation": ("valid.txt", "dev.txt", "validation.txt", "valid.jsonl", "dev.jsonl"),
    "test": ("test.txt", "test.jsonl"),
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", "")
# Files that would otherwise be read as lines of words.
NOT_CONLL = (".json", ".parquet", ".csv", ".arrow", ".zip", ".gz")
IDS_LISTED = 50
# Halves of a character, which JSON can hold and UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(ValueError):
    """A data file that cannot be read as it is: where, what was expected."""


def read_conll(path: str | Path) -> list[dict]:
    """Posts of a CoNLL file as `{"id", "tokens", "labels"}`.

    A post is a line `IMGID:…`, then a word and its BIO label a line, parted by a tab or a blank, then a blank line.

    Raises:
        DataError: naming the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; convert it: iconv -f latin1 -t utf-8") from error
    posts: list[dict] = []
    post: dict | None = None
    # Words may hold other line separators of Unicode: only \n ends a line.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        where = f"{path}, line {number}"
        if line.startswith("IMGID:"):
            if not (name := line.removeprefix("IMGID:").strip()):
                raise DataError(f"{where}: IMGID: without a name")
            post = {"id": name, "tokens": [], "labels": []}
            posts.append(post)
        elif not line.strip(" \t"):
            post = None if post is not None and post["tokens"] else post
        elif post is None:
            raise DataError(f"{where}: {line!r:.60} belongs to no post; a line IMGID:… comes first")
        else:
            word, label = _word_and_label(line, where)
            post["tokens"].append(word)
            post["labels"].append(label)
    if not posts:
        raise DataError(f"{path}: has no line IMGID:…, so no posts")
    return posts


def read_jsonl(path: str | Path) -> list[dict]:
    """Posts of a JSONL file with `id`, `tokens`, `labels` (or `ner_tags` as strings) and maybe `image`, its file's name."""
    posts = []
    for where, row in _json_lines(Path(path), "id, tokens and labels"):
        try:
            post = {"id": _text(row["id"]), "tokens": row["tokens"], "labels": row.get("labels", row.get("ner_tags"))}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: wants an object with id, tokens and labels: {error!r:.200}") from error
        for field in ("tokens", "labels"):
            if not isinstance(post[field], list) or not all(isinstance(item, str) for item in post[field]):
                raise DataError(f"{where}, field {field}: a list of strings is wanted")
        if len(post["tokens"]) != len(post["labels"]):
            raise DataError(f"{where}: {len(post['tokens'])} tokens but {len(post['labels'])} labels")
        for label in post["labels"]:
            _check_label(label, where)
        post["tokens"] = [_text(word) for word in post["tokens"]]
        if isinstance(row.get("image"), str):
            post["image"] = row["image"]
        posts.append(post)
    if not posts:
        raise DataError(f"{path}: has no posts")
    return posts


def _json_lines(path: Path, wanted: str) -> Iterator[tuple[str, dict]]:
    """The objects of a JSONL file, each with the file and line it stands in; blank lines and a BOM are skipped."""
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is not JSON in UTF-8: {error!r:.200}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: wants an object with {wanted}, not {row!r:.60}")
        yield where, row


def _text(value: str | int) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"a string is wanted, not {value!r:.60}")
    return clean(str(value))


def clean(text: str) -> str:
    """Text that can be written."""
    return _SURROGATE.sub("\ufffd", text)


def _word_and_label(line: str, where: str) -> tuple[str, str]:
    separator = "\t" if "\t" in line else " "
    word, _, label = line.rstrip(" \t").rpartition(separator)
    label, word = label.strip(), word.strip(" \t")
    if not _:
        raise DataError(f"{where}: {line!r:.60} has no label; a word, a tab or a blank, and a label are wanted")
    if separator in word:
        count = len(line.split(separator))
        raise DataError(f"{where}: {line!r:.60} has {count} fields; a word and a label are wanted")
    _check_label(label, where)
    return word, label


def _check_label(label: str, where: str):
    if not re.fullmatch(r"O|[BI]-[^\t\r\n]+", label):
        raise DataError(f"{where}: label {label!r} is not O, B-TYPE or I-TYPE")


def find_splits(path: Path) -> dict[str, Path]:
    """Files of the splits: the file itself, as train, or those of a folder."""
    if path.is_file():
        return {"train": path}
    found = [(split, path / name) for split, names in SPLIT_FILES.items() for name in names]
    return {split: file for split, file in found if file.is_file()}


def read_splits(text: str | Path) -> tuple[dict[str, list[dict]], dict[str, Path]]:
    """Posts of every split of a CoNLL or JSONL file, or of a folder of such files; and the files.

    Raises:
        DataError: when there are none.
    """
    files = find_splits(Path(text))
    if not files:
        raise DataError(
            f"{text}: there is no such file, and no folder with train.txt, valid.txt (dev.txt) or test.txt"
        )
    for file in files.values():
        if file.suffix.lower() in NOT_CONLL:
            raise DataError(f"{file}: is no CoNLL and no .jsonl file, which are what is read here")
    return {
        split: (read_jsonl if file.suffix == ".jsonl" else read_conll)(file) for split, file in files.items()
    }, files


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def label_names(labels: Iterator[str]) -> list[str]:
    """Labels of a data set in a fixed order: O, then B-X and I-X of every type seen."""
    kinds = sorted({label[2:] for label in labels if label != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def find_image(image_dir: Path, name: str) -> Path | None:
    """The image of a post, which may not lie outside its folder.

    Raises:
        DataError: a name that leads out of the folder.
    """
    root = image_dir.resolve()
    try:
        for suffix in IMAGE_SUFFIXES:
            path = image_dir / f"{name}{suffix}"
            if not path.resolve().is_relative_to(root):
                raise DataError(f"IMGID {name!r:.80} leads out of the image folder {image_dir}")
            if path.is_file():
                return path
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a link to itself
        raise DataError(f"IMGID {name!r:.80} cannot be the name of an image: {error!s:.80}") from error
    return None


def read_regions(path: Path) -> dict[str, dict]:
    """Regions by post id from a JSONL file of `{"id", "boxes", "box_labels", "box_scores"}`."""
    regions = {}
    for where, row in _json_lines(path, "id, boxes, box_labels and box_scores"):
        try:
            name, given = _text(row["id"]), [row[field] for field in ("boxes", "box_labels", "box_scores")]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: wants id, boxes, box_labels and box_scores: {error!r:.200}") from error
        try:
            found = check_regions(*given, f"{where}, post {name:.80}")
        except ValueError as error:
            raise DataError(str(error)) from error
        regions[name] = found | {"box_labels": [_text(label) for label in found["box_labels"]]}
    return regions


def dataset_of_posts(
    posts: dict[str, list[dict]], image_dir: str | Path | None = None, regions_file: str | Path | None = None
) -> DatasetDict:
    """Data set of read posts, by split. A post whose image is missing or unreadable is kept without one and logged."""
    names = label_names(label for of_split in posts.values() for post in of_split for label in post["labels"])
    image_dir = Path(image_dir) if image_dir else None
    regions = read_regions(Path(regions_file)) if regions_file else {}
    splits = {}
    for split, of_split in posts.items():
        names_of_columns = ("id", "tokens", "ner_tags", "image", "boxes", "box_labels", "box_scores")
        columns: dict[str, list] = {name: [] for name in names_of_columns}
        missing = []
        for post in tqdm(of_split, desc=f"{split}: images", disable=image_dir is None):
            path, _, problem = open_image(image_dir, post)
            if image_dir and problem:
                missing.append(f"{post['id']} ({problem})")
            of_post = regions.get(post["id"])
            columns["id"].append(post["id"])
            columns["tokens"].append(post["tokens"])
            columns["ner_tags"].append(post["labels"])
            columns["image"].append(None if problem else {"path": str(path), "bytes": None})
            for name in ("boxes", "box_labels", "box_scores"):
                columns[name].append(of_post[name] if of_post else None)
        if missing:
            more = f" and {len(missing) - IDS_LISTED} more" if len(missing) > IDS_LISTED else ""
            logger.warning(
                "%s: %d of %d posts have no readable image and are read without one: %s%s",
                split, len(missing), len(of_split), ", ".join(missing[:IDS_LISTED]), more,
            )  # fmt: skip
        if not regions:
            for name in ("boxes", "box_labels", "box_scores"):
                del columns[name]
        splits[split] = Dataset.from_dict(columns, features=row_features(names, with_regions=bool(regions)))
    return DatasetDict(splits)


def open_image(image_dir: Path | None, post: dict) -> tuple[Path | None, PIL.Image.Image | None, str | None]:
    """A post's image file, its picture, and why there is no picture if there is none."""
    path = find_image(image_dir, post.get("image") or post["id"]) if image_dir else None
    if path is None:
        return None, None, "no file"
    try:
        return path, load_image(path), None
    except ImageError as error:
        return path, None, str(error)


def row_features(names: list[str], with_regions: bool) -> Features:
    """Features of a row. Images stay undecoded: the processor opens them."""
    features = {
        "id": Value("string"),
        "tokens": List(Value("string")),
        "ner_tags": List(ClassLabel(names=names)),
        "image": Image(decode=False),
    }
    if with_regions:
        features |= {
            "boxes": List(List(Value("float32"))),
            "box_labels": List(Value("string")),
            "box_scores": List(Value("float32")),
        }
    return Features(features)


def load_splits(
    data_path: str, image_dir: str | None = None, regions_file: str | None = None
) -> tuple[DatasetDict, dict[str, str]]:
    """Splits train, validation and test, as far as there are, and of each a hash by which other data are told from them: of
    a label file the sha256.

    Args:
        data_path: a CoNLL, JSONL or parquet file, a folder with train.txt, valid.txt (or dev.txt) and test.txt, a folder saved by
            `datasets`, or the name of a data set on the Hub.
        image_dir: where the images of CoNLL posts lie; `images` beside the files if that exists.
        regions_file: JSONL with the posts' regions; `regions.jsonl` beside the files if that exists.

    Raises:
        DataError: when there is no such data, or a column is missing.
    """
    path = Path(data_path)
    known_as = None
    is_parquet = path.is_file() and path.suffix.lower() == ".parquet"
    files = find_splits(path) if path.exists() and not is_parquet else {}
    folder = path.parent if path.is_file() else path
    if files:
        image_dir = image_dir or (str(folder / "images") if (folder / "images").is_dir() else None)
        if image_dir and not Path(image_dir).is_dir():
            raise DataError(f"image_dir: there is no folder {image_dir}")
        beside = folder / "regions.jsonl"
        regions_file = regions_file or (str(beside) if beside.is_file() else None)
        data = dataset_of_posts(read_splits(path)[0], image_dir, regions_file)
        return data, {split: sha256(file) for split, file in files.items()}
    if is_parquet:
        data = load_dataset("parquet", data_files={"train": data_path})
    elif path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        data = load_from_disk(str(path))
    elif path.is_dir() and not any(path.rglob("*.parquet")):
        raise DataError(f"{path}: has no train.txt, valid.txt or test.txt, no parquet and no saved data set")
    elif path.is_dir():
        # In its cache `datasets` knows a folder that has a card by its name alone: it would take another of that name, or
        # the same as it was before, for this one.
        files = sorted(path.rglob("*.parquet"))
        state = repr([(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
        known_as = hashlib.sha256(state.encode()).hexdigest()
        data = load_dataset(data_path, cache_dir=str(Path(HF_DATASETS_CACHE, known_as[:32])))
    else:
        data = load_dataset(data_path)
    data = data if isinstance(data, dict) else DatasetDict({"train": data})
    data = DatasetDict({split: _checked(of_split, data_path) for split, of_split in data.items()})
    for of_split in data.values():
        _check_labels(of_split, data_path)
        _check_paths(of_split, data_path)
    first, names = next((split, labels_of(of_split)) for split, of_split in data.items())
    for split, of_split in data.items():
        if labels_of(of_split) != names:
            raise DataError(
                f"{data_path}: ner_tags of {split} are named {labels_of(of_split)}, of {first} {names}; "
                "every split wants the same names in the same order"
            )
    return data, {split: known_as or of_split._fingerprint for split, of_split in data.items()}


def _checked(data: Dataset, name: str) -> Dataset:
    wanted = {"id", "tokens", "ner_tags"}
    if missing := wanted - set(data.column_names):
        raise DataError(f"{name}: has no column {sorted(missing)}; a row is id, tokens, ner_tags, image")
    if not isinstance(getattr(data.features["ner_tags"], "feature", None), ClassLabel):
        raise DataError(f"{name}: ner_tags must be a sequence of ClassLabel, which names the labels")
    if "image" in data.column_names:
        data = data.cast_column("image", Image(decode=False))
    return data


def _check_labels(data: Dataset, name: str):
    """Every word of every row has a label.

    Raises:
        DataError: naming the post.
    """
    count = len(labels_of(data))
    for post, tokens, tags in zip(data["id"], data["tokens"], data["ner_tags"], strict=True):
        where = f"{name}, post {post}, field"
        if not isinstance(tokens, list) or not all(isinstance(word, str) for word in tokens):
            raise DataError(f"{where} tokens: a list of strings is wanted, not {tokens!r:.80}")
        if not isinstance(tags, list) or len(tags) != len(tokens):
            raise DataError(f"{where} ner_tags: {len(tags or ())} labels for {len(tokens)} words")
        if not all(tag is not None and 0 <= tag < count for tag in tags):
            raise DataError(f"{where} ner_tags: {tags!r:.80} has a word without one of the {count} labels")


def _check_paths(data: Dataset, name: str):
    """A row holds its picture. The only files it may name are those that `datasets` found as the pictures of an image
    folder: below the folder itself, or where it keeps what it downloads.

    Raises:
        DataError: naming the post.
    """
    if "image" not in data.column_names:
        return
    roots = [Path(root).resolve() for root in (name, HF_DATASETS_CACHE, HF_HUB_CACHE)]
    for batch in data.data.table.select(["id", "image"]).to_batches():
        content, path = (pc.struct_field(batch["image"], field) for field in ("bytes", "path"))
        without = pc.and_(pc.is_null(content), pc.is_valid(path))
        for post, file in zip(*(column.filter(without).to_pylist() for column in (batch["id"], path)), strict=True):
            try:
                inside = Path(file).is_absolute() and any(Path(file).resolve().is_relative_to(root) for root in roots)
            except (OSError, ValueError, RuntimeError):  # too long, a NUL, a link to itself
                inside = False
            if not inside:
                raise DataError(
                    f"{name}, post {post}, field image: {file!r:.200} is no file of this data set, whose rows have to "
                    "hold their pictures: save_to_disk and push_to_hub of datasets put them in"
                )


def labels_of(data: Dataset) -> list[str]:
    """Label names of a data set, in the order of their ids."""
    return data.features["ner_tags"].feature.names
