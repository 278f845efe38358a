"""Data sets: label files with a folder of images, or any data set of the Hub with the same rows.

A row is `{"id", "tokens", "ner_tags", "image"}` and, once regions are prepared, `"boxes"`, `"box_labels"`, `"box_scores"`.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

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

from .images import open_image
from .readers import DataError, bio_labels, find_splits, read_regions, read_splits, sha256

logger = logging.getLogger(__name__)
IDS_LISTED = 50


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
    first, names = next((split, dataset_labels(of_split)) for split, of_split in data.items())
    for split, of_split in data.items():
        if dataset_labels(of_split) != names:
            raise DataError(
                f"{data_path}: ner_tags of {split} are named {dataset_labels(of_split)}, of {first} {names}; "
                "every split wants the same names in the same order"
            )
    return data, {split: known_as or of_split._fingerprint for split, of_split in data.items()}


def dataset_of_posts(
    posts: dict[str, list[dict]], image_dir: str | Path | None = None, regions_file: str | Path | None = None
) -> DatasetDict:
    """Data set of read posts, by split. A post whose image is missing or unreadable is kept without one and logged."""
    names = bio_labels(label for of_split in posts.values() for post in of_split for label in post["labels"])
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


def dataset_labels(data: Dataset) -> list[str]:
    """Label names of a data set, in the order of their ids."""
    return data.features["ner_tags"].feature.names


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
    count = len(dataset_labels(data))
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
