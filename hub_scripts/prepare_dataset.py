"""From label files and images to a data set for the Hub.

`python -m hub_scripts.prepare_dataset --text posts.txt --images DIR --output DIR [--regions grid] [--push user/repo]`
reads label files in every form of docs/data.md (one file, or a folder with one file per split), stores the images in the
rows, adds regions and writes parquet files with a card. An interrupted run continues with the same command: finished shards are
kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from string import Template

import yaml
from datasets import Dataset, Features, Image
from huggingface_hub import DatasetCardData, HfApi
from seqeval.metrics.sequence_labeling import get_entities
from tqdm.auto import tqdm

from mner_data.entity_boxes import find_entity_boxes, read_entity_boxes
from mner_data.files import atomic_write, markdown_table, reserve_output_dir
from mner_data.images import ImageFinder, default_image_dir
from mner_data.loading import any_have_regions, row_features, warn_of_unknown_ids
from mner_data.options import add_reading_options, parse_column_names
from mner_data.readers import REGIONS_FILE, DataError, bio_labels, read_regions, read_splits, sha256
from processors.region_extraction import (
    REGION_FIELDS,
    build_region_extractor,
    complete_region_config,
    keep_best,
)

# A photo of 12 megapixels takes 36 MB where it is open.
ROWS_PER_SHARD, IMAGES_AT_ONCE = 256, 16
# Readers of data folders skip names with an underscore.
SETTINGS_FILE, MISSING_FOLDER = "_prepare.json", "_missing"
# Goes up where the same command writes other rows than before: shards of an earlier form are not gone on with.
FORM_OF_ROWS = 3
# A model asks its own extractor for the regions of such a post. Empty lists would say that there are none.
NOT_PREPARED = dict.fromkeys(REGION_FIELDS)
ENTITY_BOXES_NOTE = (
    " `entity_boxes` holds for\neach entity in order the boxes that show it: none where the image does not show it, null where "
    "nobody looked."
)
CARD = Template("""---
$metadata
---

# $name

Posts with named entities and, where a post has one, its image. A row holds `id`, `tokens`, `ner_tags`, `image` and the
regions of the image as `boxes` (x1, y1, x2, y2 in [0, 1]), `box_labels`, `box_scores`. These are empty where no region was
found, and null where nobody looked: a model then finds regions of its own.$entity_boxes

$counts

Entities are counted as seqeval does by default: an orphan `I-` tag, which continues no entity of its type, begins one.

## Label files

$files

## Regions

$regions

## Posts without a readable image

$missing
""")


def main(arguments: list[str] | None = None) -> Path:
    """Prepare a data set; returns its folder.

    Raises:
        DataError: the label files, images or regions cannot be read.
        OutputError: the output folder holds something else.
    """
    options = _parse(arguments)
    output = Path(options.output)
    column_names = parse_column_names(options.column_names)
    posts, files = read_splits(options.text, options.label_scheme, options.format, options.columns, column_names)
    names = bio_labels(label for split_posts in posts.values() for post in split_posts for label in post["labels"])
    label_dir = next(iter(files.values())).parent
    image_dir = options.images or default_image_dir(label_dir)
    regions = options.regions
    if regions is None and (label_dir / REGIONS_FILE).is_file():
        regions = str(label_dir / REGIONS_FILE)
    settings = {
        "label_files": {split: sha256(path) for split, path in files.items()},
        "label_scheme": options.label_scheme,
        "reading": [options.format, options.columns, column_names],
        "images": image_dir and str(Path(image_dir).resolve()),
        "regions": regions,
        "form_of_rows": FORM_OF_ROWS,
    }
    extract = _region_extractor(regions, {post["id"] for split_posts in posts.values() for post in split_posts})
    if regions and _is_file(regions):
        # A file of the same name with other regions makes another data set.
        settings["regions_file"] = sha256(Path(regions))
    boxes_source = Path(options.entity_boxes) if options.entity_boxes else find_entity_boxes(label_dir)
    boxes = None
    if boxes_source is not None:
        boxes = read_entity_boxes(boxes_source, [post for split_posts in posts.values() for post in split_posts])
        settings["entity_boxes"] = hashlib.sha256(json.dumps(boxes, sort_keys=True).encode()).hexdigest()
        posts = {split: [post | {"entity_boxes": boxes.get(post["id"])} for post in part] for split, part in posts.items()}
    with reserve_output_dir(output, settings, settings_file=SETTINGS_FILE, overwrite=options.overwrite, clear=_clear):
        for split, path in files.items():
            print(f"{split}: {len(posts[split]):,} posts of {path}")
        print(f"images: {image_dir or f'only those that {label_dir} names'}")
        print(f"regions: {_regions_note(regions, any_have_regions(posts))}")
        images = ImageFinder(image_dir, label_dir)
        missing = {
            split: prepare_split(split, split_posts, names, images, extract, output / "data")
            for split, split_posts in posts.items()
        }
        write_card(output, posts, files, names, settings, missing)
        for split, notes in missing.items():
            print(f"{split}: {len(notes):,} of {len(posts[split]):,} posts have no readable image")
        if options.push:
            api = HfApi()
            api.create_repo(options.push, repo_type="dataset", exist_ok=True)
            api.upload_folder(
                repo_id=options.push,
                repo_type="dataset",
                folder_path=output,
                allow_patterns=["README.md", "data/*.parquet"],
            )
            print(f"pushed: {options.push}")
    print(f"prepared: {output}")
    return output


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="label file, or a folder with train, valid (or dev) and test")
    parser.add_argument("--images", help="folder of the images, named by IMGID; by default `images` beside the label files")
    parser.add_argument("--label_scheme", help="scheme of the labels, such as BIOES; by default it is recognised")
    add_reading_options(parser)
    parser.add_argument("--output", required=True, help="folder of the data set")
    parser.add_argument(
        "--regions",
        help="grid, a region_config as YAML, e.g. '{name: object-detection, model: …}', or a JSONL file; by default "
        "regions.jsonl beside the label files, if there is one",
    )
    parser.add_argument(
        "--entity_boxes", help="JSONL or a folder of XML with each entity's boxes; by default entity_boxes.jsonl or xml/ beside"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run wrote to --output")
    parser.add_argument("--push", help="user/repo on the Hub")
    options = parser.parse_args(arguments)
    if options.images and not Path(options.images).is_dir():
        raise DataError(f"--images: there is no folder {options.images}")
    return options


def _clear(output: Path):
    """Remove what an earlier run wrote."""
    (output / "README.md").unlink(missing_ok=True)
    for folder in (output / MISSING_FOLDER, output / "data"):
        if folder.is_dir():
            shutil.rmtree(folder)


def _is_file(regions: str) -> bool:
    """Whether `--regions` names a file."""
    return regions.lower().endswith(".jsonl")


def _region_extractor(regions: str | None, post_ids: set[str]) -> Callable[[list, list[str]], list[dict]]:
    """A function from images and post ids to the regions of each image.

    Raises:
        DataError: there is no such extractor or file.
    """
    if regions is None:
        return lambda images, ids: [NOT_PREPARED for _ in images]
    if _is_file(regions):
        if not Path(regions).is_file():
            raise DataError(f"--regions: there is no file {regions}")
        regions_by_id = read_regions(regions)
        warn_of_unknown_ids(regions_by_id, post_ids, regions)
        return lambda images, ids: [regions_by_id.get(post_id, NOT_PREPARED) for post_id in ids]
    try:
        config = complete_region_config(yaml.safe_load(regions))
        max_regions = config.pop("max_regions")
        extractor = build_region_extractor(**config)
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(
            f"--regions: expected a JSONL file, an extractor's name or a region_config, got {regions!r}: {error}"
        ) from error
    if extractor.reads_given:
        raise DataError(f"--regions: expected a JSONL file for regions that come with the posts, got {regions!r}")
    return lambda images, ids: [keep_best(image_regions, max_regions) for image_regions in extractor(images)]


def prepare_split(
    split: str, posts: list[dict], names: list[str], images: ImageFinder, extract: Callable[..., list[dict]], folder: Path
) -> list[str]:
    """Write the shards of a split; returns the posts without a readable image, with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / MISSING_FOLDER).mkdir(exist_ok=True)
    starts = range(0, len(posts), ROWS_PER_SHARD)
    with_boxes = any("entity_boxes" in post for post in posts)
    features = Features(row_features(names, with_regions=True, with_entity_boxes=with_boxes) | {"image": Image()})
    missing = []
    for shard, start in enumerate(tqdm(starts, desc=f"{split}: shards of {ROWS_PER_SHARD} posts")):
        path = folder / f"{split}-{shard:05d}-of-{len(starts):05d}.parquet"
        notes = folder.parent / MISSING_FOLDER / f"{path.stem}.json"
        # The notes are written first: a shard that is there has its notes.
        if not (path.is_file() and notes.is_file()):
            columns, shard_missing = _columns(posts[start : start + ROWS_PER_SHARD], images, extract)
            with atomic_write(notes) as unfinished:
                unfinished.write_text(json.dumps(shard_missing), encoding="utf-8")
            with atomic_write(path) as unfinished:
                Dataset.from_dict(columns, features=features).to_parquet(str(unfinished))
        missing += json.loads(notes.read_text(encoding="utf-8"))
    return missing


def _columns(posts: list[dict], images: ImageFinder, extract: Callable[..., list[dict]]) -> tuple[dict[str, list], list[str]]:
    """The columns of a shard, and its posts without a readable image."""
    missing, stored, regions = [], [], {}
    for start in range(0, len(posts), IMAGES_AT_ONCE):
        opened = {}
        for index, post in enumerate(posts[start : start + IMAGES_AT_ONCE], start=start):
            path, image, problem = images.open(post)
            if problem:
                missing.append(f"{post['id']} ({problem})")
            elif "regions" in post:
                regions[index] = post["regions"]
            else:
                opened[index] = image
            stored.append(None if problem else {"bytes": path.read_bytes(), "path": path.name})
        found = extract(list(opened.values()), [posts[index]["id"] for index in opened])
        regions |= dict(zip(opened, found, strict=True))
    columns: dict[str, list] = {
        "id": [post["id"] for post in posts],
        "tokens": [post["tokens"] for post in posts],
        "ner_tags": [post["labels"] for post in posts],
        "image": stored,
    }
    for name in REGION_FIELDS:
        columns[name] = [regions.get(index, NOT_PREPARED)[name] for index in range(len(posts))]
    if any("entity_boxes" in post for post in posts):
        columns["entity_boxes"] = [post["entity_boxes"] for post in posts]
    return columns, missing


def write_card(output: Path, posts: dict, files: dict, names: list[str], settings: dict, missing: dict[str, list[str]]):
    """Write the card of the data set: counts by split and type, hashes, orphan tags, missing images."""
    types = sorted({name[2:] for name in names if name != "O"})
    counts = []
    for split, split_posts in posts.items():
        labels = [post["labels"] for post in split_posts]
        by_type = Counter(entity_type for entity_type, _, _ in get_entities(labels))
        per_type = [by_type[entity_type] for entity_type in types]
        counts.append([split, len(labels), sum(map(len, labels)), by_type.total(), *per_type, count_orphans(labels)])
    metadata = DatasetCardData(
        task_categories=["token-classification"],
        tags=["multimodal-named-entity-recognition", "mner"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in posts],
            }
        ],
    )
    without_image = [f"- {split}: {len(notes)}: {', '.join(notes)}" for split, notes in missing.items() if notes]
    card = CARD.substitute(
        metadata=metadata.to_yaml().strip(),
        name=output.name,
        entity_boxes=ENTITY_BOXES_NOTE if "entity_boxes" in settings else "",
        counts=markdown_table(["split", "posts", "words", "entities", *types, "orphan I- tags"], counts),
        files="\n".join(f"- {split}: `{path.name}`, SHA-256 `{sha256(path)}`" for split, path in files.items()),
        regions=_regions_note(settings["regions"], any_have_regions(posts)),
        missing="\n".join(without_image) or "None.",
    )
    with atomic_write(output / "README.md") as unfinished:
        unfinished.write_text(card, encoding="utf-8")


def _regions_note(regions: str | None, posts_bring_some: bool) -> str:
    """Where the regions are from: an extractor as the command named it, or a file without its folder."""
    if regions:
        note = f"From the file `{Path(regions).name}`." if _is_file(regions) else f"Extractor: `{regions}`."
        return f"{note} Posts that came with boxes keep their own." if posts_bring_some else note
    if posts_bring_some:
        return "Those that came with the posts; null where a post came with none."
    return "None were prepared: they are null in every row."


def count_orphans(labels: list[list[str]]) -> int:
    """Number of I-TYPE labels that follow neither B-TYPE nor I-TYPE."""
    return sum(
        label.startswith("I-") and before[2:] != label[2:]
        for post_labels in labels
        for before, label in zip(["O", *post_labels], post_labels, strict=False)
    )


def cli():
    """Entry point of the command line: one line for each error that the user can mend."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("mner_data").setLevel(logging.INFO)
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_dataset: {' '.join(str(error).split())}")


if __name__ == "__main__":
    cli()
