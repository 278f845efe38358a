"""A tagged post as a picture: the regions on the photo and the entities in the text, in one colour a type."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette: told apart by colour-blind readers, dark enough on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#6A3D9A", "#555555")
USUAL_TYPES = ("PER", "LOC", "ORG", "MISC")
MARGIN, FONT_SIZE, MIN_WIDTH, BAR_WIDTH = 16, 18, 480, 120


def color_of(entity_group: str, entity_groups: list[str]) -> str:
    """The colour of a type: the field's four have their own, others one among all types of the picture."""
    if entity_group in USUAL_TYPES:
        return COLORS[USUAL_TYPES.index(entity_group)]
    others = [group for group in sorted(entity_groups) if group not in USUAL_TYPES]
    return COLORS[(len(USUAL_TYPES) + others.index(entity_group)) % len(COLORS)]


def draw(text: str, image: Image.Image | None, entities: list[dict[str, Any]]) -> Image.Image:
    """Mark a post.

    Args:
        text: the post's text, which the entities' `start` and `end` index.
        image: its photo, or `None`.
        entities: what the pipeline returned for it, with boxes in pixels of the photo.

    Returns:
        An RGB picture: the photo with a frame around each entity's region, the text with each entity underlined and
        named, and a bar for the relevance of every level.
    """
    groups = sorted({entity["entity_group"] for entity in entities})
    photo = _photo(image, entities, groups) if image is not None else None
    width = max(MIN_WIDTH, photo.width if photo else 0) + 2 * MARGIN
    font, small = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(FONT_SIZE * 0.65)
    lines = _lines(text, entities, font, width - 2 * MARGIN)
    relevance = entities[0]["relevance"] if entities and image is not None else {}
    line_height = 2 * FONT_SIZE
    top = MARGIN + (photo.height + MARGIN if photo else 0)
    height = top + len(lines) * line_height + (len(relevance) * FONT_SIZE + MARGIN if relevance else 0) + MARGIN
    page = Image.new("RGB", (width, height), "white")
    if photo:
        page.paste(photo, ((width - photo.width) // 2, MARGIN))
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        _write_line(pen, line, top + row * line_height, groups, font, small)
    for row, (level, value) in enumerate(relevance.items()):
        y = top + len(lines) * line_height + MARGIN // 2 + row * FONT_SIZE
        pen.text((MARGIN, y), level, fill="#444444", font=small)
        left = MARGIN + 80
        pen.rectangle((left, y + 2, left + BAR_WIDTH, y + 11), outline="#BBBBBB")
        pen.rectangle((left, y + 2, left + BAR_WIDTH * value, y + 11), fill="#777777")
        pen.text((left + BAR_WIDTH + 8, y), f"{value:.2f}", fill="#444444", font=small)
    return page


def _photo(image: Image.Image, entities: list[dict[str, Any]], groups: list[str]) -> Image.Image:
    """The photo at a readable size, with the regions' frames and the names of their entities."""
    scale = min(max(MIN_WIDTH / image.width, MIN_WIDTH / image.height / 2), 1600 / max(image.size))
    photo = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size])
    pen, font = ImageDraw.Draw(photo), ImageFont.load_default(FONT_SIZE * 0.8)
    named: dict[tuple, list[dict[str, Any]]] = {}
    for entity in entities:
        if entity["region"] is not None:
            box = entity["region"]["box"]
            named.setdefault(tuple(box[side] * scale for side in ("xmin", "ymin", "xmax", "ymax")), []).append(entity)
    for (left, top, right, bottom), of_region in named.items():
        color = color_of(of_region[0]["entity_group"], groups)
        pen.rectangle((left, top, right, bottom), outline=color, width=3)
        name = ", ".join(f"{entity['word']} · {entity['entity_group']}" for entity in of_region)
        x = max(0, min(left, photo.width - pen.textlength(name, font=font) - 6))
        y = max(0, min(top, photo.height - FONT_SIZE))
        pen.rectangle((x, y, x + pen.textlength(name, font=font) + 6, y + FONT_SIZE), fill=color)
        pen.text((x + 3, y + 1), name, fill="white", font=font)
    return photo


def _lines(text: str, entities: list[dict[str, Any]], font, width: int) -> list[list[tuple[str, dict | None]]]:
    """The text broken into lines of pieces: (piece, its entity or None), entities kept whole."""
    pieces, done = [], 0
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        pieces += [(word, None) for word in text[done : entity["start"]].split()]
        pieces.append((text[entity["start"] : entity["end"]], entity))
        done = entity["end"]
    pieces += [(word, None) for word in text[done:].split()]
    lines, used = [[]], 0.0
    for piece, entity in pieces:
        shown = piece + (f"  {entity['entity_group']}" if entity else "")
        length = font.getlength(shown + " ")
        if lines[-1] and used + length > width:
            lines.append([])
            used = 0.0
        lines[-1].append((piece, entity))
        used += length
    return lines


def _write_line(pen: ImageDraw.ImageDraw, line: list, y: int, groups: list[str], font, small):
    x = float(MARGIN)
    for piece, entity in line:
        length = pen.textlength(piece, font=font)
        if entity is not None:
            color = color_of(entity["entity_group"], groups)
            tag = pen.textlength(entity["entity_group"], font=small) + 8
            pen.rounded_rectangle((x - 3, y - 3, x + length + tag, y + FONT_SIZE + 7), 5, fill=color)
            pen.text((x + length + 4, y + 5), entity["entity_group"], fill="white", font=small)
            pen.text((x, y), piece, fill="white", font=font)
            length += tag
        else:
            pen.text((x, y), piece, fill="black", font=font)
        x += length + pen.textlength(" ", font=font) + 2
