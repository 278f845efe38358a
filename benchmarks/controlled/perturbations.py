"""What the experiments do to data sets: other images, no images, noise in the images, one list of labels."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

from datasets import ClassLabel, Dataset, DatasetDict, List
from PIL import Image

from mner_data.loading import dataset_labels
from mner_data.readers import bio_labels
from mner_data.synthetic_images import blur, heavy_jpeg, occlude, pure_noise
from processors import REGION_FIELDS, load_image

NOISES = {"blur": blur, "heavy JPEG": heavy_jpeg, "occlusion": occlude, "pure noise": pure_noise}


def with_images(rows: Dataset, images: list) -> Dataset:
    """The same posts with these images, one per post; `None` for a post without one."""
    return Dataset.from_dict(rows.to_dict() | {"image": images}, features=rows.features)


def without_images(rows: Dataset) -> Dataset:
    """The same posts without their images."""
    return with_images(rows, [None] * len(rows))


def with_another_posts_images(rows: Dataset, seed: int) -> Dataset:
    """The same posts, each with the image of another post and that image's regions. Where it shows an entity is not known.

    Posts without an image take part, so an image can be exchanged for none.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    given_by = dict(zip(order, order[1:] + order[:1], strict=True))
    columns = rows.to_dict()
    for name in ("image", *(name for name in REGION_FIELDS if name in columns)):
        columns[name] = [columns[name][given_by[index]] for index in range(len(rows))]
    if "entity_boxes" in columns:
        columns["entity_boxes"] = [None] * len(rows)
    return Dataset.from_dict(columns, features=rows.features)


def with_unrelated_images(rows: Dataset, images: list, seed: int) -> Dataset:
    """The same posts, each with an image drawn at random from `images`."""
    generator = random.Random(seed)
    return with_images(rows, [generator.choice(images) for _ in range(len(rows))])


def spoiled(rows: Dataset, noise: Callable[[Image.Image], Image.Image]) -> Dataset:
    """The same posts with noise in their images. An image that several posts share is spoiled once."""
    noisy: dict[tuple | None, dict | None] = {None: None}
    images = []
    for image in rows["image"]:
        key = image and (image["path"], image["bytes"])
        if key not in noisy:
            file = io.BytesIO()
            noise(load_image(image)).save(file, "PNG")
            noisy[key] = {"bytes": file.getvalue(), "path": None}
        images.append(noisy[key])
    return with_images(rows, images)


def same_types(sets: dict[str, DatasetDict]) -> dict[str, DatasetDict]:
    """The data sets with one list of labels, so that a model trained on one can be scored on another.

    Twitter2015's files call the fourth type OTHER. The papers' tables call it MISC, and so does the result.
    """
    set_labels = {
        name: [label.replace("OTHER", "MISC") for label in dataset_labels(next(iter(splits.values())))]
        for name, splits in sets.items()
    }
    labels = bio_labels(label for names in set_labels.values() for label in names)
    relabelled = {}
    for name, splits in sets.items():
        new_ids = [labels.index(label) for label in set_labels[name]]
        relabelled[name] = DatasetDict()
        for split, rows in splits.items():
            features = rows.features.copy()
            features["ner_tags"] = List(ClassLabel(names=labels))
            tags = [[new_ids[tag] for tag in post_tags] for post_tags in rows["ner_tags"]]
            relabelled[name][split] = Dataset.from_dict(rows.to_dict() | {"ner_tags": tags}, features=features)
    return relabelled
