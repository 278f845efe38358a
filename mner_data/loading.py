"""Data sets: label files with a folder of images, or any data set of the Hub with the same rows.

A row is `{"id", "tokens", "ner_tags", "image"}`, where regions are prepared also `"boxes"`, `"box_labels"`, `"box_scores"`, and
where it is annotated what shows each entity, `"entity_boxes"`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
    load_dataset_builder,
    load_from_disk,
)
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from seqeval.metrics.sequence_labeling import get_entities
from tqdm.auto import tqdm

from processors import REGION_FIELDS
from processors.region_extraction import check_regions

from .entity_boxes import check_rows, find_entity_boxes, read_entity_boxes
from .images import ImageFinder, default_image_dir
from .label_schemes import LabelSchemeError, is_bio_label, to_bio
from .readers import (
    REGIONS_FILE,
    SPLIT_NAMES,
    DataError,
    bio_labels,
    find_split_files,
    read_regions,
    read_splits,
    sha256,
)
from .readers.rows import Notes, check_column_names, is_missing, match_fields, post_of_row
from .readers.split_files import log_label_files

logger = logging.getLogger(__name__)
IDS_LISTED = 50
ROWS_AT_ONCE, ROWS_CHECKED_AT_ONCE = 100, 1000


def load_splits(
    data_path: str,
    image_dir: str | None = None,
    regions_file: str | None = None,
    label_scheme: str | None = None,
    entity_boxes: str | None = None,
    format: str | None = None,
    columns: str | None = None,
    column_names: Mapping[str, str] | None = None,
) -> tuple[DatasetDict, dict[str, str]]:
    """Load the splits of a data set, and one fingerprint per split, which tells it from other data.

    Args:
        data_path: a label file of any form that `readers` has, a folder with train.txt, valid.txt (or dev.txt) and test.txt,
            or the same in another form; a parquet file, a folder saved by `datasets`, or the name of a data set on the Hub.
        image_dir: folder of the images, for label files; by default what `default_image_dir` finds beside them.
        regions_file: JSONL with the posts' regions, for label files; by default `regions.jsonl` beside them, if there is one.
        label_scheme: one of `label_schemes.SCHEMES`; by default it is recognised. The labels of the result are BIO.
        entity_boxes: JSONL or a folder of XML with the boxes of the entities, for label files; by default what
            `find_entity_boxes` finds beside them.
        format: form of the label files, one of `readers.FORMATS`; by default it is recognised.
        columns: columns of CoNLL files, such as `word,_,label`; by default the first is the word and the last the label.
        column_names: what columns are, by their names, where they are not the usual ones: `{"sentence_words": "tokens"}`.

    Returns:
        The splits train, validation and test as far as they exist, and by split the SHA-256 of the label file, or the data
        set's own fingerprint.

    Raises:
        DataError: there is no such data, a column is missing, or a row is not what the columns promise.
    """
    path = Path(data_path)
    if path.is_file() and path.suffix.lower() != ".parquet" or path.is_dir() and find_split_files(path).splits:
        posts, files = read_splits(path, label_scheme, format, columns, column_names)
        data = _load_label_files(path, posts, next(iter(files.values())).parent, image_dir, regions_file, entity_boxes)
        fingerprints = {split: sha256(file) for split, file in files.items()}
    elif image_dir or regions_file or entity_boxes or format or columns:
        raise DataError(
            f"{data_path}: image_dir, regions_file and entity_boxes are for label files, as are format and columns; a row of a "
            "data set holds all that belongs to a post"
        )
    else:
        data, fingerprints = _load_dataset(data_path, label_scheme, column_names or {})
    _warn_of_types_in_one_split(data)
    return data, fingerprints


def _load_label_files(
    path: Path,
    posts: dict[str, list[dict]],
    folder: Path,
    image_dir: str | None,
    regions_file: str | None,
    entity_boxes: str | None,
) -> DatasetDict:
    """The data set of the posts of label files in a folder."""
    if image_dir and not Path(image_dir).is_dir():
        raise DataError(f"image_dir: there is no folder {image_dir}")
    if regions_file and not Path(regions_file).is_file():
        raise DataError(f"regions_file: there is no file {regions_file}")
    images = image_dir or default_image_dir(folder)
    regions_beside = folder / REGIONS_FILE
    regions = regions_file or (regions_beside if regions_beside.is_file() else None)
    if images is None and not any("image" in post for split_posts in posts.values() for post in split_posts):
        logger.warning("%s: posts are read WITHOUT images: there is no folder %s, and no image_dir", path, folder / "images")
    elif not image_dir:
        logger.info("images from %s", images or folder)
    boxes = entity_boxes or find_entity_boxes(folder)
    return dataset_of_posts(posts, images, regions, label_dir=folder, entity_boxes=boxes)


def _load_dataset(name: str, label_scheme: str | None, column_names: Mapping[str, str]) -> tuple[DatasetDict, dict[str, str]]:
    path, fingerprint = Path(name), None
    try:
        if path.is_file():
            data = load_dataset("parquet", data_files={"train": name})
            fingerprint = sha256(path)
        elif path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
            data = _load_saved(name)
        elif path.is_dir():
            data, fingerprint = _load_parquet_folder(path)
        else:
            data = _load_from_hub(name)
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        raise DataError(f"{name}: `datasets` cannot read it: {error.__cause__ or error}") from error
    data = data if isinstance(data, dict) else DatasetDict({"train": data})
    splits = [SPLIT_NAMES.get(split.lower(), split) for split in data]
    if len(set(splits)) < len(splits):
        raise DataError(f"{name}: expected one split of each name, got {', '.join(data)}")
    data = DatasetDict(
        {
            split: _check_columns(_find_images(_standard_columns(rows, name, split, column_names), path), name)
            for split, rows in zip(splits, data.values(), strict=True)
        }
    )
    for rows in data.values():
        _check_labels(rows, name)
        _check_paths(rows, name)
        _check_regions(rows, name)
    data = _with_bio_labels(data, name, label_scheme)
    for rows in data.values():
        check_rows(rows, name)
    first = next(iter(data), None)
    for split, rows in data.items():
        if dataset_labels(rows) != dataset_labels(data[first]):
            raise DataError(
                f"{name}: expected the same ner_tags in the same order in every split, "
                f"got {dataset_labels(data[first])} in {first} and {dataset_labels(rows)} in {split}"
            )
    return data, {split: fingerprint or rows._fingerprint for split, rows in data.items()}


def _load_saved(name: str) -> Dataset | DatasetDict:
    try:
        return load_from_disk(name)
    except (OSError, ValueError, LookupError, TypeError) as error:  # by what is missing in its JSON files, or wrong
        raise DataError(f"{name}: expected a data set saved by `datasets`, which cannot read it: {error!r:.300}") from error


def _load_from_hub(name: str) -> Dataset | DatasetDict:
    try:
        return load_dataset(name)
    except (FileNotFoundError, ConnectionError, HFValidationError) as error:
        raise DataError(f"there is no file or folder {name} here, and no such data set on the Hub: {error!s:.300}") from error


def _load_parquet_folder(folder: Path) -> tuple[DatasetDict, str]:
    """The data set of a folder of parquet files, and a hash of the files' names, sizes and times."""
    files, other_labels = sorted(folder.rglob("*.parquet")), find_split_files(folder).others
    if not files:
        read_splits(folder)  # raises, with what the folder holds
    # `datasets` caches a folder that has a card under the folder's name. Without a cache of its own, the folder would be
    # taken for another one of that name, or for what it was before.
    state = repr([(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    fingerprint = hashlib.sha256(state.encode()).hexdigest()
    builder = load_dataset_builder(str(folder), cache_dir=str(Path(HF_DATASETS_CACHE, fingerprint[:32])))
    read = {Path(file).resolve() for split_files in (builder.config.data_files or {}).values() for file in split_files}
    log_label_files({"data": folder}, [*(file for file in files if file.resolve() not in read), *other_labels])
    builder.download_and_prepare()
    return builder.as_dataset(), fingerprint


def dataset_of_posts(
    posts: dict[str, list[dict]],
    image_dir: str | Path | None = None,
    regions_file: str | Path | None = None,
    label_dir: str | Path | None = None,
    entity_boxes: str | Path | None = None,
) -> DatasetDict:
    """Data set of posts that `readers` has read, by split.

    A post whose image is missing or unreadable is kept without it; how many there are, and which, is logged.

    Args:
        posts: with BIO labels.
        image_dir: folder of the images, which are found by the post's `image` or, if it has none, by its `id`.
        regions_file: JSONL with the regions of posts that bring none of their own.
        label_dir: folder of the label file. A post's `image` may be a path relative to it.
        entity_boxes: JSONL or a folder of XML with the boxes of the entities.

    Raises:
        DataError: the regions or the entities' boxes cannot be read, or an image's name leads out of the folders.
    """
    names = bio_labels(label for split_posts in posts.values() for post in split_posts for label in post["labels"])
    images = ImageFinder(image_dir, label_dir)
    all_posts = [post for split_posts in posts.values() for post in split_posts]
    regions = read_regions(regions_file) if regions_file else {}
    _check_images_of_regions(all_posts, regions, str(regions_file))
    boxes = read_entity_boxes(entity_boxes, all_posts) if entity_boxes else {}
    splits = {}
    for split, split_posts in posts.items():
        columns: dict[str, list] = {name: [] for name in ("id", "tokens", "ner_tags", "image", *REGION_FIELDS, "entity_boxes")}
        missing = []
        for post in tqdm(split_posts, desc=f"{split}: images", disable=image_dir is None):
            path, _, problem = images.open(post)
            if problem and (image_dir or "image" in post):
                missing.append(f"{post['id']} ({problem})")
            post_regions = post.get("regions") or regions.get(post["id"]) or dict.fromkeys(REGION_FIELDS)
            columns["id"].append(post["id"])
            columns["tokens"].append(post["tokens"])
            columns["ner_tags"].append(post["labels"])
            columns["image"].append(None if problem else {"path": str(path), "bytes": None})
            for name in REGION_FIELDS:
                columns[name].append(post_regions[name])
            columns["entity_boxes"].append(boxes.get(post["id"]))
        if missing:
            more = f" and {len(missing) - IDS_LISTED} more" if len(missing) > IDS_LISTED else ""
            logger.warning(
                "%s: %d of %d posts have no readable image and are read without one: %s%s",
                split, len(missing), len(split_posts), ", ".join(missing[:IDS_LISTED]), more,
            )  # fmt: skip
        with_regions = bool(regions) or any_have_regions(posts)
        features = row_features(names, with_regions, with_entity_boxes=bool(boxes))
        splits[split] = Dataset.from_dict({name: columns[name] for name in features}, features=features)
    warn_of_unknown_ids(regions, {post["id"] for post in all_posts}, str(regions_file))
    return DatasetDict(splits)


def any_have_regions(posts: Mapping[str, list[dict]]) -> bool:
    """Whether a post of any split brings its own regions."""
    return any("regions" in post for split_posts in posts.values() for post in split_posts)


def warn_of_unknown_ids(regions: Mapping[str, dict], post_ids: set[str], source: str):
    """Say of how many ids the regions are not used, since no post has them."""
    if unknown := set(regions) - post_ids:
        logger.warning("%s: the regions of %d ids are not used, no post has them: %s …", source, len(unknown), min(unknown))


def _check_images_of_regions(posts: list[dict], regions: dict[str, dict], source: str):
    """Posts that share an id, and so its regions, show the same image.

    Raises:
        DataError: naming the id and two images.
    """
    images: dict[str, str | None] = {}
    for post in posts:
        if post["id"] in regions and (first := images.setdefault(post["id"], post.get("image"))) != post.get("image"):
            raise DataError(
                f"{source}, post {post['id']}: expected one post of this id, or several with one image, got the images "
                f"{first or 'none'!s:.80} and {post.get('image') or 'none'!s:.80}; give every post an id of its own"
            )


def check_images(data: DatasetDict):
    """See that every split has images: without any, a model learns from the text alone.

    Raises:
        DataError: no post of a split has an image.
    """
    for split, rows in data.items():
        images = rows.select_columns([name for name in ("image",) if name in rows.column_names])
        if not any(map(_has_images, images.with_format("arrow").iter(ROWS_AT_ONCE))):
            raise DataError(
                f"{split}: none of the {len(rows):,} posts has an image that can be found. Put the images into a folder `images` "
                "beside the posts, or name their folder with --image_dir; for a model of the text alone give --use_images false"
            )


def count_images_without_regions(rows: Dataset) -> int:
    """How many posts have an image and bring no regions; an empty list of boxes brings that there are none."""
    if "image" not in rows.column_names:
        return 0
    columns = [name for name in ("image", "boxes") if name in rows.column_names]
    count = 0
    for batch in rows.select_columns(columns).with_format("arrow").iter(ROWS_AT_ONCE):
        has_image = pc.is_valid(batch["image"])
        without = pc.and_(has_image, pc.is_null(batch["boxes"])) if "boxes" in columns else has_image
        count += pc.sum(without).as_py() or 0
    return count


def _has_images(batch: pa.Table) -> bool:
    """Whether a row of the batch holds or names an image."""
    if not batch.column_names:
        return False
    fields = (pc.struct_field(batch["image"], field) for field in ("bytes", "path"))
    return any(field.null_count < len(field) for field in fields)


def row_features(names: list[str], with_regions: bool, with_entity_boxes: bool = False) -> Features:
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
    if with_entity_boxes:
        features["entity_boxes"] = List(List(List(Value("float32"))))
    return Features(features)


def dataset_labels(data: Dataset) -> list[str]:
    """Label names of a data set, in the order of their ids."""
    return data.features["ner_tags"].feature.names


def row_to_post(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a data set as a post for the pipeline: `text`, `image` and, where the row has them, its regions."""
    post = {"text": row["tokens"], "image": row.get("image")}
    if post["image"] is not None:
        post |= {name: row[name] for name in REGION_FIELDS if row.get(name) is not None}
    return post


def _warn_of_types_in_one_split(data: DatasetDict):
    """Warn of entity types that only one of several splits has: often they are typing errors."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in data.items():
        names = dataset_labels(rows)
        entities = get_entities([[names[tag] for tag in tags] for tags in rows["ner_tags"]])
        for entity_type, count in Counter(entity_type for entity_type, _, _ in entities).items():
            counts.setdefault(entity_type, {})[split] = count
    for entity_type, by_split in sorted(counts.items()):
        if len(by_split) == 1 < len(data):
            split, count = next(iter(by_split.items()))
            times = {1: "once", 2: "twice"}.get(count, f"{count:,} times")
            logger.warning("type %s: %s, in %s only", entity_type, times, split)


def _standard_columns(data: Dataset, name: str, split: str, column_names: Mapping[str, str]) -> Dataset:
    """The data set with the columns `id`, `tokens`, `ner_tags` and `image`, whatever they are called in it.

    Ids are numbered where there are none. Where there is a text in place of words, its words and labels are made from it.
    Columns that are not used are named in the log.
    """
    check_column_names(column_names, data.column_names, f"{name}, {split}")
    found = match_fields(data.column_names, column_names)
    where = f"{name}, {split}"
    if displaced := [field for field, column in found.items() if column != field and field in data.column_names]:
        data = data.remove_columns(displaced)
    data = data.rename_columns({column: field for field, column in found.items() if column != field})
    if "id" not in found:
        data = data.add_column("id", [f"{split}-{number}" for number in range(1, len(data) + 1)])
    elif "int" in getattr(data.features["id"], "dtype", ""):
        data = data.cast_column("id", Value("string"))
    # Where a row has both, labels of words go before spans, as in label files.
    has_spans_of_words = "tokens" in found and "entities" in found and "ner_tags" not in found
    if "tokens" not in found and "text" in found or has_spans_of_words:
        notes = Notes()
        words = "tokens" if has_spans_of_words else "text"
        fields = [column for column in ("id", words, "ner_tags", "entities") if column in data.column_names]
        posts = [post_of_row(row, f"{where}, post {row['id']}", "", notes) for row in data.select_columns(fields)]
        notes.log(where)
        if all(post["labels"] is not None for post in posts):
            data = data.remove_columns([column for column in fields if column != "id"])
            data = data.add_column("tokens", [post["tokens"] for post in posts], feature=List(Value("string")))
            data = data.add_column("ner_tags", [post["labels"] for post in posts], feature=List(Value("string")))
    used = {"id", "tokens", "ner_tags", "image", "entity_boxes", *REGION_FIELDS}
    if unused := [column for column in data.column_names if column not in used]:
        logger.warning("%s: these columns are not used: %s", where, ", ".join(unused))
    return data


def _find_images(data: Dataset, path: Path) -> Dataset:
    """The data set of a local file or folder with the paths of the images that its rows name, or that have their ids as names,
    as in label files.

    A name that is not found stays, and is refused by `_check_paths`. pandas writes a missing image as an empty string.
    """
    feature = data.features.get("image")
    names_files = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    if not path.exists() or not (feature is None or names_files):
        return data
    folder = path.parent if path.is_file() else path
    finder = ImageFinder(default_image_dir(folder), folder)
    if feature is None and finder.images is None:
        return data

    def find(post_id: str, name: str | None) -> str | None:
        name = None if is_missing(name) else name
        try:
            found = finder.find({"id": post_id, "image": name})
        except DataError:  # said by `_check_paths`, with the post
            found = None
        return name if found is None else str(found.absolute())

    names = [None] * len(data) if feature is None else data["image"]
    images = [find(str(post_id), name) for post_id, name in zip(data["id"], names, strict=True)]
    if feature is None and not any(images):
        return data
    data = data if feature is None else data.remove_columns("image")
    return data.add_column("image", images, feature=Value("string"))


def _check_columns(data: Dataset, name: str) -> Dataset:
    if missing := {"id", "tokens", "ner_tags"} - set(data.column_names):
        raise DataError(
            f"{name}: expected the columns id, tokens, ner_tags and optionally image, got {', '.join(data.column_names)}; "
            f"missing: {', '.join(sorted(missing))}"
        )
    tags = getattr(data.features["ner_tags"], "feature", None)
    if not isinstance(tags, ClassLabel) and not (isinstance(tags, Value) and tags.dtype in ("string", "large_string")):
        raise DataError(f"{name}: expected ner_tags as a sequence of ClassLabel or string, got {data.features['ner_tags']}")
    if "image" in data.column_names:
        feature = data.features["image"]
        expected = f"{name}, column image: expected images, bytes, names of files, or structs of bytes and path, got {feature}"
        if isinstance(feature, dict) and not {"bytes", "path"} & set(feature):
            raise DataError(expected)
        try:
            data = data.cast_column("image", Image(decode=False))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"{expected}: {error!s:.200}") from error
    return data


def _with_bio_labels(data: DatasetDict, name: str, label_scheme: str | None) -> DatasetDict:
    """The data set with the labels of all splits in BIO. Splits that are in BIO stay as they are.

    Raises:
        DataError: naming a post whose labels are in no known scheme.
    """
    features = [rows.features["ner_tags"].feature for rows in data.values()]
    names = {label for feature in features if isinstance(feature, ClassLabel) for label in feature.names}
    ids, labels = [], []
    for rows, feature in zip(data.values(), features, strict=True):
        ids += rows["id"]
        labels += [feature.int2str(tags) for tags in rows["ner_tags"]] if isinstance(feature, ClassLabel) else rows["ner_tags"]
    try:
        bio = to_bio(labels, label_scheme, names)
    except LabelSchemeError as error:
        posts = (f", post {post_id}" for post_id, post_labels in zip(ids, labels, strict=True) if error.label in post_labels)
        raise DataError(f"{name}{next(posts, '')}, field ner_tags: {error}") from error
    is_bio = all(isinstance(feature, ClassLabel) for feature in features) and all(map(is_bio_label, names))
    if bio.num_changed:
        logger.warning("%s", bio)
    if bio.num_changed or not is_bio:
        unused = to_bio([[label] for label in sorted(names)], bio.scheme).labels
        feature = List(ClassLabel(names=bio_labels(label for post_labels in [*bio.labels, *unused] for label in post_labels)))
        remaining = iter(bio.labels)
        for split, rows in data.items():
            column = [feature.feature.str2int(next(remaining)) for _ in range(len(rows))]
            order = rows.column_names
            data[split] = rows.remove_columns("ner_tags").add_column("ner_tags", column, feature=feature).select_columns(order)
        return data
    for split, rows in data.items():
        # The model needs O, and of every type the label that begins an entity, also where no post has it.
        known = dataset_labels(rows)
        required = ["O", *(f"B-{label[2:]}" for label in known if label.startswith("I-"))]
        if missing := [label for label in required if label not in known]:
            data[split] = rows.cast_column("ner_tags", List(ClassLabel(names=[*known, *missing])))
    return data


def _check_labels(data: Dataset, name: str):
    """Every word of every row has a label.

    Raises:
        DataError: naming the post.
    """
    feature = data.features["ner_tags"].feature
    for post_id, tokens, tags in zip(data["id"], data["tokens"], data["ner_tags"], strict=True):
        where = f"{name}, post {post_id}, field"
        if not isinstance(tokens, list) or not all(isinstance(word, str) for word in tokens):
            raise DataError(f"{where} tokens: expected a list of strings, got {tokens!r:.80}")
        if not isinstance(tags, list) or len(tags) != len(tokens):
            raise DataError(
                f"{where} ner_tags: expected one label per word, got {len(tags or ())} labels for {len(tokens)} words"
            )
        if isinstance(feature, ClassLabel) and not all(tag is not None and 0 <= tag < feature.num_classes for tag in tags):
            raise DataError(
                f"{where} ner_tags: expected one of the {feature.num_classes} labels for every word, got {tags!r:.80}"
            )
        if not isinstance(feature, ClassLabel) and None in tags:
            raise DataError(f"{where} ner_tags: expected a label for every word, got {tags!r:.80}")


def _check_regions(data: Dataset, name: str):
    """The regions that come with a data set are as the model takes them.

    Raises:
        DataError: naming the post, the field and the box.
    """
    names = [field for field in REGION_FIELDS if field in data.column_names]
    if not names:
        return
    for batch in data.select_columns(["id", *names]).with_format("arrow").iter(ROWS_CHECKED_AT_ONCE):
        if _are_regions(batch):
            continue
        for row in batch.to_pylist():
            boxes, labels, scores = (row.get(field) for field in REGION_FIELDS)
            if any(values is not None for values in (boxes, labels, scores)):
                try:
                    check_regions(boxes, labels, scores, f"{name}, post {row['id']}")
                except ValueError as error:
                    raise DataError(str(error)) from error


def _are_regions(batch: pa.Table) -> bool:
    """Whether all regions of a batch are what `check_regions` lets pass, seen at once: a loop over the boxes takes long.

    It says no as well where it cannot tell, as with columns of other types.
    """
    if "boxes" not in batch.column_names:
        return False
    try:
        columns = {field: batch[field] for field in REGION_FIELDS if field in batch.column_names}
        counts = {field: _list_lengths(column) for field, column in columns.items()}
        values = {field: pc.list_flatten(column) for field, column in columns.items()}
        lengths, sides = _list_lengths(values["boxes"]), pc.list_flatten(values["boxes"])
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    labels, scores = values.get("box_labels"), values.get("box_scores")
    numbers = [sides] if scores is None else [sides, scores]
    if not all(pa.types.is_floating(column.type) or pa.types.is_integer(column.type) for column in numbers):
        return False
    if labels is not None and not (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
        return False
    if not all(((count == -1) | (count == counts["boxes"])).all() for count in counts.values()) or not (lengths == 4).all():
        return False
    boxes = sides.to_numpy().reshape(-1, 4)
    in_order = (boxes[:, :2] <= boxes[:, 2:]).all() and (abs(boxes) <= 2).all()  # false for nan and null
    return bool(in_order and (scores is None or (abs(scores.to_numpy()) < 1e30).all()))


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """The length of every list of a column, −1 for null."""
    return pc.fill_null(pc.list_value_length(column), -1).to_numpy()


def _check_paths(data: Dataset, name: str):
    """A row holds its image. The only files that it may name are those that `datasets` finds as the images of an image
    folder: below the folder itself, in the folder of images beside it, or in the caches of downloads.

    Raises:
        DataError: naming the post.
    """
    if "image" not in data.column_names:
        return
    folder = Path(name).parent if Path(name).is_file() else Path(name)
    beside = default_image_dir(folder) if folder.is_dir() else None
    roots = [Path(root).resolve() for root in (folder, beside or folder, HF_DATASETS_CACHE, HF_HUB_CACHE)]
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
                    f"{name}, post {post}, field image: {file!r:.200} is no file of this data set. Its rows have to hold "
                    "their images; save_to_disk and push_to_hub of `datasets` store them there"
                )
