"""A tagged post as HTML: regions marked on the image and entities highlighted in the text, in one colour a type."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

from PIL import Image

from .drawing import MIN_WIDTH, RELEVANCE_TITLE, SIDES, color_of, entities_by_region, region_name, text_pieces

# Longest side of the image inside the HTML, in pixels. A tweet's photo, of 1200 at most, is not resized, which would take longer
# than all else that drawing does.
HTML_IMAGE_SIZE = 1280
MAX_HTML_HEIGHT = 560


def draw_html(text: str, image: Image.Image | None, entities: list[dict[str, Any]]) -> str:
    """Mark a post, as [`draw`] does, in HTML that stands alone: no script, no file, nothing fetched; everything in it escaped.

    With the pipeline's `return_attention=True`, pointing at an entity (mouse, finger or Tab key) shows how much its words
    attend each region.

    Args:
        text: the post's text, which the entities' `start` and `end` index.
        image: the post's image, or `None`.
        entities: what the pipeline returned for it, with boxes in pixels of the image.
    """
    style = f"<style>{STYLE}{''.join(map(_pointing, range(len(entities))))}</style>"
    return f'<div class="hamlearning">{style}{post_html(text, image, entities)}</div>'


def post_html(text: str, image: Image.Image | None, entities: list[dict[str, Any]]) -> str:
    """The inside of what [`draw_html`] makes, for a page that has `STYLE` once and many posts. The arguments are the same."""
    groups = sorted({entity["entity_group"] for entity in entities})
    ordered = sorted(entities, key=lambda entity: entity["start"])
    parts = []
    marks = (
        escape(piece)
        if entity is None
        else f'<mark class="e{ordered.index(entity)}" tabindex="0" style="--c: {color_of(entity["entity_group"], groups)}" '
        f'title="{entity["score"]:.2f}">{escape(piece)}<b>{escape(entity["entity_group"])}</b></mark>'
        for piece, entity in text_pieces(text, ordered)
    )
    parts.append(f'<p class="text" dir="auto">{"".join(marks)}</p>')
    if image is not None:
        style = f"width: {_displayed_width(image):.0f}px"
        parts.append(f'<div class="photo"><img alt="the photo" style="{style}" src="{_data_url(image)}">')
        for box, region_entities in entities_by_region(ordered):
            color = color_of(region_entities[0]["entity_group"], groups)
            parts.append(_frame("region", box, image.size, color, region_name(region_entities)))
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
            f"<td>{escape(_region_cell(entity['region'], image))}</td></tr>"
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
            parts.append(f'<table class="levels"><caption>{RELEVANCE_TITLE}</caption><tbody>{"".join(bars)}</tbody></table>')
    return "".join(parts)


def _region_cell(region: dict[str, Any] | None, image: Image.Image | None) -> str:
    """What the region is and, from a model with a grounding head, how probable it is that the region shows the entity."""
    if region is None:
        return "–"
    is_whole = image is not None and [region["box"][side] for side in SIDES] == [0, 0, *image.size]
    name = region["label"] or ("the whole photo" if is_whole else "a part of the photo")
    return f"{name}, {region['probability']:.0%} likely" if "probability" in region else name


def _displayed_width(image: Image.Image) -> float:
    """Small images are shown larger and large ones smaller, and neither a banner nor a tower runs off the page."""
    width = min(max(image.width, MIN_WIDTH), 720)
    return max(1, min(width, MAX_HTML_HEIGHT * image.width / image.height))


def _data_url(image: Image.Image) -> str:
    copy = image.convert("RGB")
    copy.thumbnail((HTML_IMAGE_SIZE, HTML_IMAGE_SIZE))
    file = io.BytesIO()
    copy.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _frame(kind: str, box, size: tuple[int, int], color: str, name: str, share: float = 0.0) -> str:
    """A box over the image, in shares of its size, so that it fits at any width; its name lies where it is not cut off."""
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


STYLE = """
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
