"""From the field's raw form to a data set for the Hub.

`python -m hub_scripts.prepare_dataset --text posts.txt --images DIR --output DIR [--regions grid] [--push user/repo]`
reads CoNLL files (one, or a folder with one a split) or JSONL, embeds the images, adds regions and writes parquet with a
card. Killed, it goes on where it was: a finished shard is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from string import Template

import yaml
from datasets import Dataset, Features, Image
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from mner_data.files import UNFINISHED, atomic_write
from mner_data.images import open_image
from mner_data.loading import row_features
from mner_data.readers import DataError, bio_labels, read_regions, read_splits, sha256
from processors.region_extraction import build_region_extractor, complete_region_config, keep_best, no_regions
from training.metric import MnerMetric

ROWS_A_SHARD = 256
CARD = Template("""---
$metadata
---

# $name

PostSource with named entities and, where there is one, the picture posted with them. A row holds `id`, `tokens`, `ner_tags`,
`image` and the picture's regions as `boxes` (x1, y1, x2, y2 in [0, 1]), `box_labels`, `box_scores`.

$counts

Entities are counted as default seqeval does: an orphan `I-` tag, one that follows no entity of its type, is one too.

## Label files

$files

## Regions

$regions

## PostSource without a readable image

$missing
""")


def main(arguments: list[str] | None = None) -> Path:
    options = _parse(arguments)
    output = Path(options.output)
    posts, files = read_splits(options.text)
    names = bio_labels(label for of_split in posts.values() for post in of_split for label in post["labels"])
    settings = {
        "label_files": {split: sha256(path) for split, path in files.items()},
        "images": options.images and str(Path(options.images).resolve()),
        "regions": options.regions,
    }
    if (options.regions or "").endswith(".jsonl") and Path(options.regions).is_file():
        # The same name with other regions in it is another data set.
        settings["regions_file"] = sha256(options.regions)
    _claim(output, settings)
    extract = _extractor(options.regions)
    missing: dict[str, list[str]] = {}
    for split, of_split in posts.items():
        missing[split] = prepare_split(split, of_split, names, options.images, extract, output / "data")
    write_card(output, posts, files, names, settings, missing)
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
    parser.add_argument("--text", required=True, help="CoNLL or JSONL file, or a folder with train, valid (dev), test")
    parser.add_argument("--images", help="folder with the posts' images, named by their IMGID")
    parser.add_argument("--output", required=True, help="folder of the data set")
    parser.add_argument(
        "--regions", help="grid, a region_config as YAML, e.g. '{name: object-detection, model: …}', or a JSONL file"
    )
    parser.add_argument("--push", help="user/repo on the Hub")
    options = parser.parse_args(arguments)
    if options.images and not Path(options.images).is_dir():
        raise DataError(f"--images: there is no folder {options.images}")
    return options


def _claim(output: Path, settings: dict):
    """Take an empty folder, or go on in one of the same data and settings."""
    output.mkdir(parents=True, exist_ok=True)
    mark = output / "prepare.json"
    if mark.is_file():
        if json.loads(mark.read_text()) != settings:
            raise DataError(f"{output} holds a data set of other files or settings: choose another --output or remove it")
    elif any(path.suffix != UNFINISHED for path in output.iterdir()):
        raise DataError(f"{output} is not empty: choose another --output")
    else:
        with atomic_write(mark) as path:
            path.write_text(json.dumps(settings, indent=1))


def _extractor(regions: str | None):
    """A function of pictures and ids to their regions."""
    if regions is None:
        return lambda images, ids: [no_regions() for _ in images]
    if regions.endswith(".jsonl"):
        given = read_regions(Path(regions))
        return lambda images, ids: [given.get(name, no_regions()) for name in ids]
    config = complete_region_config(yaml.safe_load(regions))
    most = config.pop("max_regions")
    extractor = build_region_extractor(**config)
    return lambda images, ids: [keep_best(found, most) for found in extractor(images)]


def prepare_split(split: str, posts: list[dict], names: list[str], images: str | None, extract, folder: Path) -> list[str]:
    """Write the split's shards; returns the posts without a readable image, with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(posts), ROWS_A_SHARD)
    features = Features(row_features(names, with_regions=True) | {"image": Image()})
    missing = []
    for shard, start in enumerate(tqdm(starts, desc=f"{split}: shards of {ROWS_A_SHARD} posts")):
        path = folder / f"{split}-{shard:05d}-of-{len(starts):05d}.parquet"
        notes = folder.parent / ".missing" / f"{path.stem}.json"
        if not (path.is_file() and notes.is_file()):
            rows, without = _rows(posts[start : start + ROWS_A_SHARD], images, extract)
            notes.parent.mkdir(exist_ok=True)
            notes.write_text(json.dumps(without))
            with atomic_write(path) as unfinished:
                Dataset.from_dict(rows, features=features).to_parquet(str(unfinished))
        missing += json.loads(notes.read_text())
    return missing


def _rows(posts: list[dict], images: str | None, extract) -> tuple[dict[str, list], list[str]]:
    missing, pictures, files = [], [], []
    for post in posts:
        path, picture, problem = open_image(Path(images) if images else None, post)
        if images and problem:
            missing.append(f"{post['id']} ({problem})")
        pictures.append(picture)
        files.append(None if problem else {"bytes": path.read_bytes(), "path": path.name})
    present = [place for place, picture in enumerate(pictures) if picture is not None]
    found = extract([pictures[place] for place in present], [posts[place]["id"] for place in present])
    regions = dict(zip(present, found, strict=True))
    rows: dict[str, list] = {
        "id": [post["id"] for post in posts],
        "tokens": [post["tokens"] for post in posts],
        "ner_tags": [post["labels"] for post in posts],
        "image": files,
    }
    for name in ("boxes", "box_labels", "box_scores"):
        rows[name] = [regions.get(place, no_regions())[name] for place in range(len(posts))]
    return rows, missing


def write_card(output: Path, posts: dict, files: dict, names: list[str], settings: dict, missing: dict[str, list[str]]):
    """The data set's card: counts by split and type, hashes, orphan tags, missing images."""
    kinds = sorted({name[2:] for name in names if name != "O"})
    lines = ["| split | posts | words | entities | " + " | ".join(kinds) + " | orphan I- tags |"]
    lines.append("|---" * (len(kinds) + 5) + "|")
    for split, of_split in posts.items():
        labels = [post["labels"] for post in of_split]
        scores = MnerMetric().compute(predictions=labels, references=labels)
        per_type = [scores["per_type"].get(kind, {"gold_total": 0})["gold_total"] for kind in kinds]
        counts = [len(of_split), sum(map(len, labels)), scores["gold_total"], *per_type, count_orphans(labels)]
        lines.append(f"| {split} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    metadata = {
        "task_categories": ["token-classification"],
        "tags": ["multimodal-named-entity-recognition", "mner"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in posts],
            }
        ],
    }
    listed = [f"- {split}: {len(ids)}: {', '.join(ids)}" for split, ids in missing.items() if ids]
    regions = Path(settings["regions"]).name if settings["regions"] else "none were prepared"
    card = CARD.substitute(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(),
        name=output.name,
        counts="\n".join(lines),
        files="\n".join(f"- {split}: `{path.name}`, sha256 `{sha256(path)}`" for split, path in files.items()),
        regions=f"Extractor: {regions}.",
        missing="\n".join(listed) or ("None." if settings["images"] else "No image folder was given."),
    )
    (output / "README.md").write_text(card, encoding="utf-8")


def count_orphans(labels: list[list[str]]) -> int:
    """I-X tags that follow neither B-X nor I-X."""
    counts: Counter[bool] = Counter()
    for of_post in labels:
        for before, label in zip(["O", *of_post], of_post, strict=False):
            counts[label.startswith("I-") and before[2:] != label[2:]] += 1
    return counts[True]


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"prepare_dataset: {error}")
