"""Data sets: the field's CoNLL files with a folder of images, or any data set of the Hub with the same rows.

A row is `{"id", "tokens", "ner_tags", "image"}` and, once regions are prepared, `"boxes"`, `"box_labels"`, `"box_scores"`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
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
from tqdm.auto import tqdm

from processors import ImageError, load_image

logger = logging.getLogger(__name__)

SPLIT_FILES = {
    "train": ("train.txt", "train.jsonl"),
    "validation": ("valid.txt", "dev.txt", "validation.txt", "valid.jsonl", "dev.jsonl"),
    "test": ("test.txt", "test.jsonl"),
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", "")
IDS_LISTED = 50


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
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            post = {"id": str(row["id"]), "tokens": row["tokens"], "labels": row.get("labels", row.get("ner_tags"))}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: wants an object with id, tokens and labels: {error!r}") from error
        for field in ("tokens", "labels"):
            if not isinstance(post[field], list) or not all(isinstance(item, str) for item in post[field]):
                raise DataError(f"{where}, field {field}: a list of strings is wanted")
        if len(post["tokens"]) != len(post["labels"]):
            raise DataError(f"{where}: {len(post['tokens'])} tokens but {len(post['labels'])} labels")
        for label in post["labels"]:
            _check_label(label, where)
        if isinstance(row.get("image"), str):
            post["image"] = row["image"]
        posts.append(post)
    if not posts:
        raise DataError(f"{path}: has no posts")
    return posts


def _word_and_label(line: str, where: str) -> tuple[str, str]:
    separator = "\t" if "\t" in line else " "
    word, _, label = line.rstrip(" \t").rpartition(separator)
    label, word = label.strip(), word.strip(" \t")
    if not _:
        raise DataError(f"{where}: {line!r:.60} has no label; a word, a tab or a blank, and a label are wanted")
    if "\t" in word:
        raise DataError(f"{where}: {line!r:.60} has {line.count(chr(9)) + 1} fields; a word and a label are wanted")
    _check_label(label, where)
    return word, label


def _check_label(label: str, where: str):
    if label != "O" and not (label[:2] in ("B-", "I-") and len(label) > 2):
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
    for suffix in IMAGE_SUFFIXES:
        path = image_dir / f"{name}{suffix}"
        if not path.resolve().is_relative_to(root):
            raise DataError(f"IMGID {name!r} leads out of the image folder {image_dir}")
        if path.is_file():
            return path
    return None


def read_regions(path: Path) -> dict[str, dict]:
    """Regions by post id from a JSONL file of `{"id", "boxes", "box_labels", "box_scores"}`."""
    regions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            regions[row["id"]] = {name: row[name] for name in ("boxes", "box_labels", "box_scores")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: wants id, boxes, box_labels and box_scores: {error!r}") from error
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
    """Splits train, validation and test, as far as there are, and the sha256 of each label file.

    Args:
        data_path: a CoNLL file, a folder with train.txt, valid.txt (or dev.txt) and test.txt, a folder saved by
            `datasets`, or the name of a data set on the Hub.
        image_dir: where the images of CoNLL posts lie; `images` beside the files if that exists.
        regions_file: JSONL with the posts' regions; `regions.jsonl` beside the files if that exists.

    Raises:
        DataError: when there is no such data, or a column is missing.
    """
    path = Path(data_path)
    files = find_splits(path) if path.exists() else {}
    folder = path.parent if path.is_file() else path
    if files:
        image_dir = image_dir or (str(folder / "images") if (folder / "images").is_dir() else None)
        if image_dir and not Path(image_dir).is_dir():
            raise DataError(f"image_dir: there is no folder {image_dir}")
        beside = folder / "regions.jsonl"
        regions_file = regions_file or (str(beside) if beside.is_file() else None)
        data = dataset_of_posts(read_splits(path)[0], image_dir, regions_file)
        return data, {split: sha256(file) for split, file in files.items()}
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        data = load_from_disk(str(path))
    elif path.is_dir() and not any(path.rglob("*.parquet")):
        raise DataError(f"{path}: has no train.txt, valid.txt or test.txt, no parquet and no saved data set")
    else:
        data = load_dataset(data_path)
    data = data if isinstance(data, dict) else DatasetDict({"train": data})
    return DatasetDict({split: _checked(of_split, data_path) for split, of_split in data.items()}), {
        split: of_split._fingerprint for split, of_split in data.items()
    }


def _checked(data: Dataset, name: str) -> Dataset:
    wanted = {"id", "tokens", "ner_tags"}
    if missing := wanted - set(data.column_names):
        raise DataError(f"{name}: has no column {sorted(missing)}; a row is id, tokens, ner_tags, image")
    if not isinstance(getattr(data.features["ner_tags"], "feature", None), ClassLabel):
        raise DataError(f"{name}: ner_tags must be a sequence of ClassLabel, which names the labels")
    if "image" in data.column_names:
        data = data.cast_column("image", Image(decode=False))
    return data


def labels_of(data: Dataset) -> list[str]:
    """Label names of a data set, in the order of their ids."""
    return data.features["ner_tags"].feature.names
