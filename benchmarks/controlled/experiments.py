"""The rows of the controlled experiments: what is trained on what, and what it is scored on, with every setting."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, List, concatenate_datasets
from PIL import Image

from mner_data.loading import dataset_labels, load_splits
from mner_data.readers import bio_labels
from mner_data.synthetic_images import blur, heavy_jpeg, occlude, pure_noise
from mner_data.synthetic_posts import mixed_relevance_dataset, synthetic_dataset, synthetic_splits
from processors import load_image
from training.arguments import NO_LEVELS

from .pretrained_weights import VISION_BACKBONE, text_encoder, vision_weights
from .runner import Row, Splits

# What every row of a section shares: a row is these with its own on top.
SMALL_TEXT = {
    "model_type": "modernbert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 128, "initializer_range": 0.05,
}  # fmt: skip
SMALL_MODEL = {"fusion_size": 128, "num_iterations": 2, "fusion_attention_heads": 4}
ONLY_SCENE = NO_LEVELS | {"use_global": True}


def _backbone() -> dict[str, str]:
    return {"vision": VISION_BACKBONE, "vision_weights": vision_weights()}


# Synthetic levels: posts in which one level alone tells the type


# Relations and bindings are learned later than looks and words, and only behind a long warm-up.
BINDING = ("spatial", "alignment", "iterations")
STEPS = {"semantic": 150, "spatial": 900, "alignment": 1000, "iterations": 800}
SYNTHETIC_TRAIN, SYNTHETIC_TEST = 2000, 500
# What is switched off, by level; several where other levels could stand in.
WITHOUT = {
    "global": {"without the scene": {"use_global": False}},
    "object": {
        "without objects": {"use_objects": False},
        "scene alone": ONLY_SCENE,
    },
    "semantic": {"without meaning": {"use_semantic": False}},
    "spatial": {
        "without relations": {"use_spatial": False},
        "scene alone": ONLY_SCENE,
    },
    "alignment": {},
    "figure1b": {},
    "iterations": {
        "one round": {"num_iterations": 1},
        "without relations, one round": {"use_spatial": False, "num_iterations": 1},
    },
}


def _synthetic_settings(level: str) -> dict:
    settings = {
        **_backbone(),
        "freeze_vision": True,
        "image_size": 160,
        "region_config": {"name": "precomputed"},
        "per_device_train_batch_size": 32,
        "max_steps": STEPS.get(level, 400),
        "learning_rate": 1e-3,
        "warmup_steps": 150 if level in BINDING else 0.1,
        "weight_decay": 0.01,
        "text": "from_scratch",
        "text_config": SMALL_TEXT,
        "tokenizer_config": {"kind": "word", "min_count": 1},
        "model_config": SMALL_MODEL,
    }
    if level == "semantic":
        # Label words that training never shows can only go the right way in a space that already knows them.
        settings |= {"text": text_encoder(), "learning_rate": 1e-4, "head_learning_rate": 1e-3}
        settings |= {"per_device_train_batch_size": 16}
    if level == "iterations":
        # Two attentions that have to find each other do so in large batches, from weights near 1/√d, without dropout.
        found = {"fusion_dropout": 0.0}
        settings |= {"per_device_train_batch_size": 128, "model_config": SMALL_MODEL | found}
    return settings


def level_rows(seed: int) -> Iterator[Row]:
    for level, without in WITHOUT.items():
        settings = _synthetic_settings(level)
        switches = {"full model": {}} | without | {"text alone": NO_LEVELS}
        for name, switch in switches.items():
            own = settings | {"model_config": settings["model_config"] | switch}
            yield Row("levels", level, name, seed, own)
        yield Row("levels", level, "pooled image", seed, settings, rival="pooled")


def synthetic_data(level: str, seed: int) -> Splits:
    count = SYNTHETIC_TRAIN * (2 if level == "iterations" else 1)
    data = synthetic_splits([count, 0, SYNTHETIC_TEST], level, seed + 1)
    scored = {"test": data["test"]}
    if level == "iterations":
        # PostSource of one hop as well, which teach the first of the two.
        one_hop = synthetic_dataset(SYNTHETIC_TRAIN, 1000 * (seed + 1), "alignment")
        data["train"] = concatenate_datasets([data["train"], one_hop])
    if level == "semantic":
        scored["unseen label words"] = synthetic_dataset(SYNTHETIC_TEST, 1000 * (seed + 1) + 3, "semantic-unseen")
    return data, scored


# Relevance: half of the posts carry another post's picture


# Where nothing tells, a type is a guess among four: many posts, so that two guesses differ by little.
RELEVANCE_TRAIN, RELEVANCE_TEST = 12_000, 10_000


def relevance_rows(seed: int) -> Iterator[Row]:
    settings = _synthetic_settings("alignment") | {"max_steps": 1500}
    switches = {
        "full model": {"relevance_loss_weight": 1.0},
        "relevance from the tagging loss alone": {},
        "text alone": NO_LEVELS,
    }
    for name, switch in switches.items():
        yield Row("relevance", "mixed", name, seed, settings | {"model_config": SMALL_MODEL | switch})


@cache
def relevance_data(seed: int) -> Splits:
    train, test = (
        mixed_relevance_dataset(count, 1000 * (seed + 1) + place) for place, count in enumerate((RELEVANCE_TRAIN, RELEVANCE_TEST))
    )
    own = test.filter(lambda row: row["own_image"])
    scored = {"own": own, "swapped": test.filter(lambda row: not row["own_image"])}
    scored |= {name: spoiled(own, spoil) for name, spoil in NOISES.items()}
    return DatasetDict({"train": train}), scored


# Real text, without photos of its own


REAL_TEXT = ("twitter2017", "twitter2015")
# The best for both sets together on a third of their train that the model had not seen: scores are too sure of themselves,
# so that an entity at 0.6 is right about as often as not. Once they are calibrated, that is at 0.5.
LIKELY, LIKELY_CALIBRATED = {"min_entity_score": 0.6}, {"min_entity_score": 0.5}


def text_rows(seed: int) -> Iterator[Row]:
    shared = {
        "text": text_encoder(),
        **_backbone(),
        "per_device_train_batch_size": 16,
        "num_train_epochs": 6,
        "learning_rate": 1e-4,
        "head_learning_rate": 1e-3,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        # Two thirds of the time of fp32, for every row alike.
        "bf16": True,
        "use_cpu": True,
    }
    alone = shared | {"model_config": NO_LEVELS | LIKELY}
    calibrated = shared | {"model_config": NO_LEVELS | LIKELY_CALIBRATED}
    with_images = shared | {"model_config": LIKELY, "freeze_vision": True, "image_size": 160}
    for data in REAL_TEXT:
        yield Row("text", data, "plain recipe", seed, shared, rival="plain", pictures="none")
        yield Row("text", data, "text alone", seed, alone, pictures="none")
        yield Row("text", data, "unrelated images", seed, with_images, pictures="unrelated")
        yield Row("text", data, "text alone, calibrated", seed, calibrated, pictures="none", calibrated=True)
    if seed == 0:
        # The plain recipe is given the best of three learning rates.
        for data in REAL_TEXT:
            for rate in (2e-4, 3e-4):
                settings = shared | {"learning_rate": rate}
                yield Row("text", data, f"plain recipe {rate:.0e}", seed, settings, rival="plain", pictures="none")


def text_data(data: str, pictures: str, seed: int) -> Splits:
    sets = _twitter()
    if pictures == "unrelated":
        sets = {
            name: DatasetDict({split: with_unrelated_pictures(rows, seed) for split, rows in of_set.items()})
            for name, of_set in sets.items()
        }
    other = next(name for name in REAL_TEXT if name != data)
    return sets[data], {"valid": sets[data]["validation"], f"valid of {other}": sets[other]["validation"]}


@cache
def _twitter() -> dict[str, DatasetDict]:
    return same_types({name: load_splits(str(data_folder() / name))[0] for name in REAL_TEXT})


def same_types(sets: dict[str, DatasetDict]) -> dict[str, DatasetDict]:
    """Data sets with one list of labels, so that a model of one can be scored on another. The fourth type is called MISC, as
    in the field's tables (Twitter2015's file says OTHER)."""
    own = {
        name: [label.replace("OTHER", "MISC") for label in dataset_labels(next(iter(splits.values())))]
        for name, splits in sets.items()
    }
    ordered = bio_labels(label for names in own.values() for label in names)
    moved = {}
    for name, splits in sets.items():
        place = [ordered.index(label) for label in own[name]]
        moved[name] = DatasetDict()
        for split, rows in splits.items():
            features = rows.features.copy()
            features["ner_tags"] = List(ClassLabel(names=ordered))
            tags = [[place[tag] for tag in of_post] for of_post in rows["ner_tags"]]
            moved[name][split] = Dataset.from_dict(rows.to_dict() | {"ner_tags": tags}, features=features)
    return moved


# Real text with real photos


LEFT_OUT = {
    "without the scene": {"use_global": False},
    "without objects": {"use_objects": False},
    "without relations": {"use_spatial": False},
    "without meaning": {"use_semantic": False},
    "one round": {"num_iterations": 1},
}
# Every so many training posts one is read without its picture, so that a post without one is nothing new.
WITHOUT_PICTURE_EVERY = 5


def paintings_rows(seed: int) -> Iterator[Row]:
    text = {
        "text": "from_scratch",
        "text_config": SMALL_TEXT | {"max_position_embeddings": 512},
        "tokenizer_config": {"kind": "char", "min_count": 2},
        **_backbone(),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 6,
        "learning_rate": 1e-3,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
    }
    rounds = SMALL_MODEL | {"num_iterations": 3}
    ours = text | {"freeze_vision": True, "image_size": 160, "model_config": rounds}
    yield Row("paintings", "paintings", "plain recipe", seed, text, rival="plain", pictures="none")
    alone = ours | {"model_config": rounds | NO_LEVELS}
    yield Row("paintings", "paintings", "text alone", seed, alone, pictures="none", curve=True)
    yield Row("paintings", "paintings", "full model", seed, ours, curve=True)
    yield Row("paintings", "paintings", "another post's pictures", seed, ours, pictures="another", curve=True)
    for name, switch in LEFT_OUT.items():
        yield Row("paintings", "paintings", name, seed, ours | {"model_config": rounds | switch}, curve=True)
    yield Row("paintings", "paintings", "pooled image", seed, ours, rival="pooled")
    if seed == 0:
        trained = ours | {"freeze_vision": False, "vision_learning_rate": 1e-4}
        yield Row("paintings", "paintings", "backbone trained", seed, trained, curve=True)


def paintings_data(pictures: str, seed: int) -> Splits:
    data = load_splits(str(data_folder() / "paintings"))[0]
    train, valid = data["train"], data["validation"]
    without = with_pictures(valid, [None] * len(valid))
    if pictures == "none":
        data = DatasetDict({"train": with_pictures(train, [None] * len(train)), "validation": without})
        return data, {"none": without}
    swapped = with_pictures(valid, another_posts(valid["image"], seed))
    images = another_posts(train["image"], seed) if pictures == "another" else train["image"]
    images = [None if place % WITHOUT_PICTURE_EVERY == 0 else image for place, image in enumerate(images)]
    scored = {"swapped": swapped, "none": without} | ({"own": valid} if pictures == "own" else {})
    return DatasetDict({"train": with_pictures(train, images), "validation": valid}), scored


# What a post is shown


def data_folder() -> Path:
    """Where the real sets lie.

    Raises:
        RuntimeError: `HAMLEARNING_DATA` does not name a folder.
    """
    folder = os.environ.get("HAMLEARNING_DATA")
    if not folder or not Path(folder).is_dir():
        raise RuntimeError("real text and photos are read from the folder that HAMLEARNING_DATA names: set it")
    return Path(folder)


def with_pictures(rows: Dataset, images: list) -> Dataset:
    """The same posts with other pictures."""
    return Dataset.from_dict(rows.to_dict() | {"image": images}, features=rows.features)


def another_posts(images: list, seed: int) -> list:
    """Every post's picture given to another post; a post without one takes part."""
    order = random.Random(seed).sample(range(len(images)), len(images))
    moved = list(images)
    for place, following in zip(order, order[1:] + order[:1], strict=True):
        moved[place] = images[following]
    return moved


def with_unrelated_pictures(rows: Dataset, seed: int) -> Dataset:
    """Every post with a picture that has nothing to do with it: a rendered scene or one of the 20 tweet photos."""
    pool = [image for image in synthetic_dataset(100, 99)["image"] if image]
    pool += [{"path": str(path), "bytes": None} for path in sorted((data_folder() / "tweets20" / "images").iterdir())]
    generator = random.Random(seed)
    return with_pictures(rows, [generator.choice(pool) for _ in range(len(rows))])


def spoiled(rows: Dataset, spoil: Callable[[Image.Image], Image.Image]) -> Dataset:
    """The same posts after a noise; a picture that several share is spoiled once."""
    noisy: dict[tuple | None, dict | None] = {None: None}
    images = []
    for image in rows["image"]:
        key = image and (image["path"], image["bytes"])
        if key not in noisy:
            file = io.BytesIO()
            spoil(load_image(image)).save(file, "PNG")
            noisy[key] = {"bytes": file.getvalue(), "path": None}
        images.append(noisy[key])
    return with_pictures(rows, images)


NOISES = {"blur": blur, "heavy JPEG": heavy_jpeg, "occlusion": occlude, "pure noise": pure_noise}


def rows_of(section: str, seeds: list[int]) -> list[Row]:
    """A section's rows, all of one seed before the next."""
    of_seed = {
        "levels": level_rows, "relevance": relevance_rows, "text": text_rows, "paintings": paintings_rows
    }  # fmt: skip
    if section not in of_seed:
        raise ValueError(f"there is no section {section!r}: one of {', '.join(of_seed)}")
    return [row for seed in seeds for row in of_seed[section](seed)]


def data_of(row: Row) -> Splits:
    """What the row is trained on, and the sets it is scored on by their names."""
    if row.section == "levels":
        return synthetic_data(row.data, row.seed)
    if row.section == "relevance":
        return relevance_data(row.seed)
    if row.section == "text":
        return text_data(row.data, row.pictures, row.seed)
    return paintings_data(row.pictures, row.seed)
