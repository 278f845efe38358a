"""A tagged post as a picture or as HTML: regions on the photo and entities in the text, in one colour a type."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# After Okabe and Ito's palette, which colour-blind readers tell apart; darker, so that white letters on it can be read.
COLORS = ("#0072B2", "#B84E00", "#00795A", "#A8487F", "#8A6D00", "#7A2E2E", "#6A3D9A", "#555555")
USUAL_TYPES = ("PER", "LOC", "ORG", "MISC")
MARGIN, FONT_SIZE, MIN_WIDTH, BAR_WIDTH = 16, 18, 480, 120
# Longest side of the photo inside the HTML, in pixels.
HTML_PHOTO_SIZE = 1024
MAX_HTML_HEIGHT = 560
SIDES = ("xmin", "ymin", "xmax", "ymax")


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
    for box, of_region in _regions(entities):
        left, top, right, bottom = (side * scale for side in box)
        color = color_of(of_region[0]["entity_group"], groups)
        pen.rectangle((left, top, right, bottom), outline=color, width=3)
        name = _name(of_region)
        x = max(0, min(left, photo.width - pen.textlength(name, font=font) - 6))
        y = max(0, min(top, photo.height - FONT_SIZE))
        pen.rectangle((x, y, x + pen.textlength(name, font=font) + 6, y + FONT_SIZE), fill=color)
        pen.text((x + 3, y + 1), name, fill="white", font=font)
    return photo


def _regions(entities: list[dict[str, Any]]) -> list[tuple[tuple, list[dict[str, Any]]]]:
    """Every box that an entity attends most, in pixels of the photo, with the entities that do."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for entity in entities:
        if entity["region"] is not None:
            found.setdefault(tuple(entity["region"]["box"][side] for side in SIDES), []).append(entity)
    return list(found.items())


def _name(entities: list[dict[str, Any]]) -> str:
    return ", ".join(f"{entity['word']} · {entity['entity_group']}" for entity in entities)


def _pieces(text: str, entities: list[dict[str, Any]]) -> list[tuple[str, dict | None]]:
    """The text cut at its entities: (piece, its entity or None)."""
    pieces, done = [], 0
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        pieces += [(text[done : entity["start"]], None), (text[entity["start"] : entity["end"]], entity)]
        done = entity["end"]
    return [*pieces, (text[done:], None)]


def _lines(text: str, entities: list[dict[str, Any]], font, width: int) -> list[list[tuple[str, dict | None]]]:
    """The text broken into lines of pieces: (piece, its entity or None), entities kept whole."""
    pieces = [
        part
        for piece, entity in _pieces(text, entities)
        for part in ([(piece, entity)] if entity else [(word, None) for word in piece.split()])
    ]
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


def draw_html(text: str, image: Image.Image | None, entities: list[dict[str, Any]]) -> str:
    """The same as HTML that stands alone: no script, no file, nothing fetched; everything in it escaped.

    With the pipeline's `return_attention=True`, pointing at an entity (mouse, finger or Tab key) shows how much its words
    attend each region.
    """
    groups = sorted({entity["entity_group"] for entity in entities})
    ordered = sorted(entities, key=lambda entity: entity["start"])
    parts = [f"<style>{_STYLE}{''.join(map(_pointing, range(len(ordered))))}</style>"]
    marks = (
        escape(piece)
        if entity is None
        else f'<mark class="e{ordered.index(entity)}" tabindex="0" style="--c: {color_of(entity["entity_group"], groups)}" '
        f'title="{entity["score"]:.2f}">{escape(piece)}<b>{escape(entity["entity_group"])}</b></mark>'
        for piece, entity in _pieces(text, ordered)
    )
    parts.append(f'<p class="text" dir="auto">{"".join(marks)}</p>')
    if image is not None:
        style = f"width: {_shown_width(image):.0f}px"
        parts.append(f'<div class="photo"><img alt="the photo" style="{style}" src="{_data_url(image)}">')
        for box, of_region in _regions(ordered):
            color = color_of(of_region[0]["entity_group"], groups)
            parts.append(_frame("region", box, image.size, color, _name(of_region)))
        for place, entity in enumerate(ordered):
            color = color_of(entity["entity_group"], groups)
            for region in entity.get("region_attention", []):
                box, share = [region["box"][side] for side in SIDES], region["attention"]
                name = f"{region['label']} {share:.0%}".strip()
                parts.append(_frame(f"attended a{place}", box, image.size, color, name, share))
        parts.append("</div>")
        if ordered and ordered[0].get("region_attention"):
            parts.append('<p class="hint">Point at an entity to see how much its words attend each region.</p>')
    if ordered:
        rows = (
            f'<tr><td><i style="--c: {color_of(entity["entity_group"], groups)}"></i>{escape(entity["word"])}</td>'
            f"<td>{escape(entity['entity_group'])}</td><td>{entity['score']:.2f}</td>"
            f"<td>{escape((entity['region'] or {}).get('label') or ('unnamed' if entity['region'] else '–'))}</td></tr>"
            for entity in ordered
        )
        head = "<tr><th>Entity</th><th>Type</th><th>Score</th><th>Region</th></tr>"
        parts.append(f'<table class="entities"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>')
        if image is not None and ordered[0]["relevance"]:
            bars = (
                f'<tr><th>{escape(level)}</th><td><span class="bar"><span style="width: {value:.1%}"></span></span></td>'
                f"<td>{value:.2f}</td></tr>"
                for level, value in ordered[0]["relevance"].items()
            )
            caption = "How far each level of the photo was used"
            parts.append(f'<table class="levels"><caption>{caption}</caption><tbody>{"".join(bars)}</tbody></table>')
    return f'<div class="hamlearning">{"".join(parts)}</div>'


def _shown_width(image: Image.Image) -> float:
    """Small photos larger and large ones smaller, and neither a banner nor a tower off the page."""
    width = min(max(image.width, MIN_WIDTH), 720)
    return max(1, min(width, MAX_HTML_HEIGHT * image.width / image.height))


def _data_url(image: Image.Image) -> str:
    photo = image.convert("RGB")
    photo.thumbnail((HTML_PHOTO_SIZE, HTML_PHOTO_SIZE))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _frame(kind: str, box, size: tuple[int, int], color: str, name: str, share: float = 0.0) -> str:
    """A box over the photo, in shares of it, so that it fits at any width; its name lies where it is not cut off."""
    (left, top, right, bottom), (width, height) = box, size
    place = f"left: {left / width:.2%}; top: {top / height:.2%}; width: {(right - left) / width:.2%}"
    style = f"{place}; height: {(bottom - top) / height:.2%}; --c: {color}; --share: {share:.3f}"
    side = "right" if left + right > width else "left"
    return f'<div class="{kind}" style="{style}"><span class="{side}">{escape(name)}</span></div>'


def _pointing(entity: int) -> str:
    """The rules that show one entity's attention, of the one under the pointer before the one with the focus."""
    return f"""
.hamlearning:has(.e{entity}:hover) .a{entity},
.hamlearning:has(.e{entity}:focus):not(:has(mark:hover)) .a{entity} {{ display: block; }}"""


_STYLE = """
.hamlearning { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 720px; }
.hamlearning .text { font-size: 1.2rem; line-height: 2; margin: 0 0 .75rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.hamlearning mark { background: var(--c); color: white !important; border-radius: .35rem; padding: .15rem .4rem; cursor: pointer;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.hamlearning mark:focus { outline: 3px solid var(--c); outline-offset: 2px; }
.hamlearning mark b { font-size: .65rem; margin-inline-start: .4rem; letter-spacing: .03em; color: inherit; }
.hamlearning .photo { position: relative; display: inline-block; max-width: 100%; line-height: 0; overflow: hidden; }
.hamlearning .photo img { max-width: 100%; height: auto; margin: 0; }
.hamlearning .photo div { position: absolute; box-sizing: border-box; border: 3px solid var(--c); }
.hamlearning .photo span { position: absolute; top: 0; background: var(--c); color: white; font-size: .75rem; line-height: 1.4;
  padding: 0 .3rem; white-space: nowrap; }
.hamlearning .photo .left { left: 0; }
.hamlearning .photo .right { right: 0; }
.hamlearning .photo .attended { display: none; border-width: 1px; }
.hamlearning .photo .attended::before { content: ""; position: absolute; inset: 0; background: var(--c);
  opacity: calc(var(--share) * .65); }
.hamlearning:has(mark:hover) .region, .hamlearning:has(mark:focus) .region { display: none; }
.hamlearning .hint { font-size: .8rem; opacity: .75; margin: .25rem 0 0; }
.hamlearning table { border-collapse: collapse; margin: 1rem 0 0; width: 100%; font-size: .9rem; }
.hamlearning th, .hamlearning td { text-align: start; padding: .2rem .6rem .2rem 0; border: 0; }
.hamlearning th { font-weight: 600; }
.hamlearning .entities td:first-child { overflow-wrap: anywhere; }
.hamlearning .entities thead th { border-bottom: 1px solid #8886; }
.hamlearning .entities i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; background: var(--c);
  margin-inline-end: .4rem; }
.hamlearning caption { text-align: start; font-weight: 600; padding-bottom: .2rem; }
.hamlearning .levels th { width: 5.5rem; font-weight: 400; }
.hamlearning .levels td:last-child { width: 3rem; }
.hamlearning .bar { display: block; height: .7rem; border-radius: .35rem; background: #8883; overflow: hidden; }
.hamlearning .bar span { display: block; height: 100%; background: #0072B2; }
"""
