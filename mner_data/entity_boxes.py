"""Where in its image each entity of a post is seen: `entity_boxes`, from JSONL or from Pascal VOC XML as in Twitter-GMNER.

A post's `entity_boxes` has an item for each of its entities, in order, as default seqeval finds them: the list of the boxes
that show it, `[x1, y1, x2, y2]` in [0, 1]; `[]` where it was looked for and is not there; `None` where nobody looked.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities

from processors.region_extraction import check_regions

from .readers import ENTITY_BOXES_FILE, DataError
from .readers.text import as_text, check_first_place, json_lines

logger = logging.getLogger(__name__)
XML_FOLDER = "xml"
EntityBoxes = list[list[list[float]] | None]
MOST_NAMED = 50


def find_entity_boxes(folder: Path) -> Path | None:
    """The file or folder of entity boxes of label files: `entity_boxes.jsonl` or `xml/` beside them, or `xml/` beside their
    folder, where the published Twitter-GMNER has it.
    """
    places = (folder / ENTITY_BOXES_FILE, folder / XML_FOLDER, folder.parent / XML_FOLDER)
    return next((place for place in places if place.is_file() or any(place.glob("*.xml"))), None)


def read_entity_boxes(source: str | Path, posts: list[dict]) -> dict[str, EntityBoxes]:
    """Entity boxes of posts by id. A post that the JSONL lacks is left out: its entities are not annotated.

    Args:
        source: JSONL of `{"id", "entities": [{"start", "end", "type", "boxes"}]}`, in which `end` is the word after the
            entity, or a folder of `ID.xml` in Pascal VOC form, whose objects are named after the words of the entities.
        posts: as `readers` has read them, with BIO labels.

    Raises:
        DataError: naming the file and the post, or all XML files that cannot be read.
    """
    source = Path(source)
    if source.is_dir():
        return _read_xml(source, posts)
    if not source.is_file():
        raise DataError(f"{source}: expected a JSONL file of entity boxes, or a folder of XML files; there is neither")
    return _read_jsonl(source, posts)


def check_entity_boxes(entity_boxes: Any, num_entities: int, where: str) -> EntityBoxes | None:
    """A post's entity boxes, checked and clipped to the image; `None` where none of its entities is annotated.

    Raises:
        ValueError: naming the entity and what is wrong with its boxes.
    """
    if entity_boxes is None:
        return None
    where = f"{where}, field entity_boxes"
    if not isinstance(entity_boxes, list | tuple) or len(entity_boxes) != num_entities:
        got = f"{len(entity_boxes)} items" if isinstance(entity_boxes, list | tuple) else f"{entity_boxes!r:.60}"
        raise ValueError(f"{where}: expected one item for each of the {num_entities} entities, got {got}")
    return [
        None if boxes is None else check_regions(boxes, None, None, f"{where}, entity {index}")["boxes"]
        for index, boxes in enumerate(entity_boxes)
    ]


def check_rows(rows: Dataset, name: str):
    """The `entity_boxes` of a data set, if it has the column, fit its labels.

    Raises:
        DataError: naming the post and its entity.
    """
    if "entity_boxes" not in rows.column_names:
        return
    labels = rows.features["ner_tags"].feature.names
    for post_id, tags, entity_boxes in zip(rows["id"], rows["ner_tags"], rows["entity_boxes"], strict=True):
        num_entities = len(get_entities([labels[tag] for tag in tags]))
        try:
            check_entity_boxes(entity_boxes, num_entities, f"{name}, post {post_id}")
        except ValueError as error:
            raise DataError(str(error)) from error


def _posts_by_id(posts: list[dict]) -> dict[str, list[dict]]:
    by_id: dict[str, list[dict]] = {}
    for post in posts:
        by_id.setdefault(post["id"], []).append(post)
    return by_id


def _only_post(same_id: list[dict], source: Path) -> dict:
    """The post that stands for all that share its id.

    Raises:
        DataError: their words or labels differ, so that the boxes of one would be taken for another's.
    """
    post = same_id[0]
    for other in same_id[1:]:
        if (other["tokens"], other["labels"]) != (post["tokens"], post["labels"]):
            texts = " and ".join(repr(" ".join(one["tokens"])[:40]) for one in (post, other))
            raise DataError(
                f"{source}, post {post['id']}: expected one post of this id, got several with other words or labels, {texts}; "
                "give every post an id of its own"
            )
    return post


def _read_jsonl(path: Path, posts: list[dict]) -> dict[str, EntityBoxes]:
    by_id = _posts_by_id(posts)
    places: dict[str, str] = {}
    entity_boxes, unknown = {}, []
    for where, row in json_lines(path, "id and entities"):
        try:
            post_id = as_text(row["id"])
            boxes = {(item["start"], item["end"], item["type"]): item["boxes"] for item in row["entities"]}
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: expected id, and entities with start, end, type and boxes: {error!r:.200}") from error
        check_first_place(post_id, where, places)
        if post_id not in by_id:
            unknown.append(post_id)
            continue
        where = f"{where}, post {post_id}"
        if len(boxes) < len(row["entities"]):
            raise DataError(f"{where}, field entities: expected every entity once, got {len(row['entities'])} of which "
                            f"{len(row['entities']) - len(boxes)} are there again")  # fmt: skip
        post = _only_post(by_id[post_id], path)
        entities = [(first, last + 1, kind) for kind, first, last in get_entities(post["labels"])]
        for missing, has, lacks in ((set(boxes) - set(entities), "boxes", "label file"),
                                    (set(entities) - set(boxes), "label file", "boxes")):  # fmt: skip
            if missing:
                start, end, kind = min(missing, key=str)
                raise DataError(
                    f"{where}, field entities: the {has} have the {kind} of words {start} to {end}, which the {lacks} lack: "
                    "expected the same entities in both"
                )
        try:
            entity_boxes[post_id] = check_entity_boxes([boxes[entity] for entity in entities], len(entities), where)
        except ValueError as error:
            raise DataError(str(error)) from error
    if unknown:
        logger.warning("%s: the boxes of %d ids are not used, no post has them: %s", path, len(unknown), _named(unknown))
    return {post_id: boxes for post_id, boxes in entity_boxes.items() if boxes is not None}


def _read_xml(folder: Path, posts: list[dict]) -> dict[str, EntityBoxes]:
    """Every post counts as annotated: an entity that no object is named after is not seen."""
    entity_boxes: dict[str, EntityBoxes] = {}
    malformed, without, unknown, outside = [], [], [], []
    by_id = _posts_by_id(posts)
    for same in by_id.values():
        post = _only_post(same, folder)
        path = folder / f"{post['id']}.xml"
        entities = [" ".join(post["tokens"][first : last + 1]) for _, first, last in get_entities(post["labels"])]
        if not path.is_file():
            without.append(post["id"])
            entity_boxes[post["id"]] = [[] for _ in entities]
            continue
        try:
            boxes, is_outside = _boxes_by_name(path)
        except (ValueError, ElementTree.ParseError) as error:
            malformed.append(f"{path.name} ({error})")
            continue
        names = {_plain(entity) for entity in entities}
        unknown += [f"{path.name} ({name})" for name in boxes if name not in names]
        outside += [path.name] if is_outside else []
        entity_boxes[post["id"]] = [boxes[_plain(entity)] if _plain(entity) in boxes else [] for entity in entities]
    if malformed:
        raise DataError(f"{folder}: {len(malformed)} files cannot be read: {'; '.join(malformed)}")
    if posts and len(without) == len(by_id):
        raise DataError(f"{folder}: expected files named after the posts, such as {posts[0]['id']}.xml, got none of them")
    for files, what in ((unknown, "names of objects are no entity of their post, and are not used"),
                        (outside, "files have boxes that reach out of the image, which are cut"),
                        (without, "posts have no file: their entities count as not shown")):  # fmt: skip
        if files:
            logger.warning("%s: %d %s: %s", folder, len(files), what, _named(files))
    return entity_boxes


def _boxes_by_name(path: Path) -> tuple[dict[str, list[list[float]]], bool]:
    """The boxes of an XML file in [0, 1] by the name of their object, and whether any reached out of the image.

    An object without a box stands for an entity that is not seen.

    Raises:
        ValueError: what is missing in the file, or wrong.
    """
    root = ElementTree.parse(path).getroot()
    width, height = (_number(root.find("size"), side) for side in ("width", "height"))
    if width <= 0 or height <= 0:
        raise ValueError(f"expected a size of at least one pixel, got {width:g} x {height:g}")
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    is_outside = False
    for item in root.iter("object"):
        name = _plain(item.findtext("name") or "")
        if not name:
            raise ValueError("an object has no name")
        found = boxes[name]
        for bndbox in item.iter("bndbox"):
            x1, y1, x2, y2 = (_number(bndbox, side) for side in ("xmin", "ymin", "xmax", "ymax"))
            box = [x1 / width, y1 / height, x2 / width, y2 / height]
            inside = [min(max(side, 0.0), 1.0) for side in box]
            is_outside |= inside != box
            if inside[0] >= inside[2] or inside[1] >= inside[3]:
                raise ValueError(f"expected a box with xmin < xmax and ymin < ymax inside {width:g} x {height:g}, "
                                 f"got {x1:g}, {y1:g}, {x2:g}, {y2:g} of {name}")  # fmt: skip
            found.append(inside)
    return dict(boxes), is_outside


def _number(parent: ElementTree.Element | None, tag: str) -> float:
    text = parent.findtext(tag) if parent is not None else None
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise ValueError(f"expected a number as {tag}, got {text!r:.40}")
    return value


def _plain(name: str) -> str:
    """A name as it is compared: blanks and case differ between the text files and the XML files."""
    return "".join(name.split()).casefold()


def _named(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
