"""A tagged post as an image: regions marked, and entities highlighted in the text, in one colour a type."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from .drawing_text import clusters, direction_class, draw_text, levels, text_width, visual_order

# After Okabe and Ito's palette, which colour-blind readers tell apart; darker, so that white letters on it can be read.
COLORS = ("#0072B2", "#B84E00", "#00795A", "#A8487F", "#8A6D00", "#7A2E2E", "#6A3D9A", "#555555")
USUAL_TYPES = ("PER", "LOC", "ORG", "MISC")
SIDES = ("xmin", "ymin", "xmax", "ymax")
MIN_WIDTH = 480
MARGIN, FONT_SIZE, SMALL_FONT_SIZE, LINE_HEIGHT, BAR_WIDTH = 16, 18, 14, 38, 160
# Inside a highlight: around the text, and between it and its type.
PADDING = 4
RELEVANCE_TITLE = "How far each level of the image was used"


class Piece(NamedTuple):
    """Part of a line that is kept together: a word, or an entity (or part of one that is longer than a line).

    `has_space` says whether blanks come before it, `has_tag` whether the entity's type is written after it.
    """

    text: str
    entity: dict[str, Any] | None
    has_space: bool
    has_tag: bool


def color_of(entity_group: str, entity_groups: list[str]) -> str:
    """The colour of a type: PER, LOC, ORG and MISC have a fixed one, others take one by their place among all types drawn."""
    if entity_group in USUAL_TYPES:
        return COLORS[USUAL_TYPES.index(entity_group)]
    others = [group for group in sorted(entity_groups) if group not in USUAL_TYPES]
    return COLORS[(len(USUAL_TYPES) + others.index(entity_group)) % len(COLORS)]


def draw(
    text: str, image: Image.Image | None, entities: list[dict[str, Any]], fonts: str | os.PathLike | None = None
) -> Image.Image:
    """Mark a post.

    Args:
        text: the post's text, which the entities' `start` and `end` index.
        image: the post's image, or `None`.
        entities: what the pipeline returned for it, with boxes in pixels of the image.
        fonts: a folder with font files to try before those of the system, for scripts that the system has no font for; the
            environment variable HAMLEARNING_FONTS names one as well.

    Returns:
        An RGB image: the post's image with a frame around each entity's region, the text with each entity highlighted and
        its type, a legend of the types, and a bar for the relevance of every level.
    """
    fonts = os.fspath(fonts) if fonts is not None else None
    groups = sorted({entity["entity_group"] for entity in entities})
    framed = _framed(image, entities, groups, fonts) if image is not None else None
    width = max(MIN_WIDTH, framed.width if framed else 0) + 2 * MARGIN
    lines = _lines(text, entities, width - 2 * MARGIN, fonts)
    relevance = entities[0]["relevance"] if entities and image is not None else {}
    legend = _legend_rows(groups, width - 2 * MARGIN, fonts)
    row_height = SMALL_FONT_SIZE + 8
    top = MARGIN + (framed.height + MARGIN if framed else 0)
    legend_top = top + len(lines) * LINE_HEIGHT + (MARGIN // 2 if legend else 0)
    relevance_top = legend_top + len(legend) * row_height + (MARGIN // 2 if relevance else 0)
    height = relevance_top + ((len(relevance) + 1) * row_height if relevance else 0) + MARGIN
    page = Image.new("RGB", (width, height), "white")
    if framed:
        page.paste(framed, ((width - framed.width) // 2, MARGIN))
    is_rtl = direction_class(text) == "R"
    for number, line in enumerate(lines):
        _draw_line(page, line, top + number * LINE_HEIGHT, groups, fonts, is_rtl)
    for number, legend_row in enumerate(legend):
        _draw_legend_row(page, legend_row, legend_top + number * row_height, groups, fonts)
    if relevance:
        _draw_relevance(page, relevance, relevance_top, row_height, fonts)
    return page


def _framed(image: Image.Image, entities: list[dict[str, Any]], groups: list[str], fonts: str | None) -> Image.Image:
    """The image at a readable size, with the regions' frames and the names of their entities."""
    scale = min(max(MIN_WIDTH / image.width, MIN_WIDTH / image.height / 2), 1600 / max(image.size))
    framed = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    pen, name_height = ImageDraw.Draw(framed), SMALL_FONT_SIZE + 6
    for box, region_entities in entities_by_region(entities):
        left, top, right, bottom = (side * scale for side in box)
        color = color_of(region_entities[0]["entity_group"], groups)
        pen.rectangle((left, top, right, bottom), outline=color, width=3)
        name = region_name(region_entities)
        name_width = text_width(name, SMALL_FONT_SIZE, fonts) + 2 * PADDING
        x = max(0, min(left, framed.width - name_width))
        y = max(0, min(top, framed.height - name_height))
        pen.rectangle((x, y, x + name_width, y + name_height), fill=color)
        draw_text(framed, x + PADDING, y + SMALL_FONT_SIZE + 1, name, SMALL_FONT_SIZE, "white", fonts)
    return framed


def entities_by_region(entities: list[dict[str, Any]]) -> list[tuple[tuple, list[dict[str, Any]]]]:
    """Every box in which an entity is seen, in pixels of the image, with its entities."""
    regions: dict[tuple, list[dict[str, Any]]] = {}
    for entity in entities:
        if entity["region"] is not None:
            regions.setdefault(tuple(entity["region"]["box"][side] for side in SIDES), []).append(entity)
    return list(regions.items())


def region_name(entities: list[dict[str, Any]]) -> str:
    """What is written on a region: its entities and their types."""
    return ", ".join(f"{' '.join(entity['word'].split())} · {entity['entity_group']}" for entity in entities)


def text_pieces(text: str, entities: list[dict[str, Any]]) -> list[tuple[str, dict | None]]:
    """The text cut at its entities: (part, its entity or None)."""
    pieces, done = [], 0
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        pieces += [(text[done : entity["start"]], None), (text[entity["start"] : entity["end"]], entity)]
        done = entity["end"]
    return [*pieces, (text[done:], None)]


def _lines(text: str, entities: list[dict[str, Any]], width: float, fonts: str | None) -> list[list[Piece]]:
    """The text broken into lines: at its own line ends outside entities, and where the next piece has no room."""
    blank, lines, used = _blank(fonts), [[]], 0.0
    for piece in _words(text, entities):
        if piece is None:
            lines, used = [*lines, []] if lines[-1] else lines, 0.0
            continue
        parts = [piece] if _piece_width(piece, fonts) <= width else _cut(piece, width, fonts)
        for number, part in enumerate(parts):
            needed = _piece_width(part, fonts) + (blank if part.has_space else 0)
            if lines[-1] and (number > 0 or used + needed > width):
                lines.append([])
                used = 0.0
            lines[-1].append(part)
            used += needed
    return [line for line in lines if line]


def _words(text: str, entities: list[dict[str, Any]]) -> list[Piece | None]:
    """Words and entities in the order of the text, `None` for a line end."""
    words: list[Piece | None] = []
    has_space = False
    for part, entity in text_pieces(text, entities):
        if entity is not None:
            words.append(Piece(" ".join(part.split()), entity, has_space, True))
            has_space = False
            continue
        for number, line in enumerate(part.splitlines() or [""]):
            if number > 0:
                words.append(None)
            for place, word in enumerate(line.split()):
                words.append(Piece(word, None, place > 0 or has_space or line[:1].isspace(), False))
            has_space = line[-1:].isspace() or (has_space and not line)
        if part.endswith(("\n", "\r")):
            words.append(None)
    return words


def _cut(piece: Piece, width: float, fonts: str | None) -> list[Piece]:
    """A piece that is longer than a line, cut to fit: many scripts write without blanks."""
    parts, current = [], ""
    for cluster in clusters(piece.text):
        if current and _piece_width(piece._replace(text=current + cluster), fonts) > width:
            parts.append(current)
            current = ""
        current += cluster
    parts.append(current)
    return [
        Piece(part, piece.entity, piece.has_space and number == 0, piece.has_tag and number == len(parts) - 1)
        for number, part in enumerate(parts)
    ]


def _piece_width(piece: Piece, fonts: str | None) -> float:
    width = text_width(piece.text, FONT_SIZE, fonts)
    if piece.entity is not None:
        width += 2 * PADDING
    if piece.has_tag:
        width += text_width(piece.entity["entity_group"], SMALL_FONT_SIZE, fonts) + 2 * PADDING
    return width


def _blank(fonts: str | None) -> float:
    return max(text_width(" ", FONT_SIZE, fonts), FONT_SIZE / 4)


def _draw_line(page: Image.Image, line: list[Piece], top: float, groups: list[str], fonts: str | None, is_rtl: bool):
    """Draw a line, its pieces in the order in which they are read; a right-to-left text starts at the right."""
    blank = _blank(fonts)
    order = visual_order(piece_levels := levels([direction_class(piece.text) for piece in line], is_rtl))
    # The space between two pieces belongs to the later one in the text; a highlight keeps a little distance anyway.
    gaps = [0.0] + [
        blank if line[max(place, previous)].has_space or abs(place - previous) > 1 else PADDING / 2
        for previous, place in zip(order, order[1:], strict=False)
    ]
    widths = [_piece_width(line[place], fonts) for place in order]
    x = page.width - MARGIN - sum(widths) - sum(gaps) if is_rtl else float(MARGIN)
    pen, baseline = ImageDraw.Draw(page), top + FONT_SIZE + 2
    for place, gap, width in zip(order, gaps, widths, strict=True):
        piece, piece_is_rtl = line[place], bool(piece_levels[place] % 2)
        x += gap
        if piece.entity is None:
            draw_text(page, x, baseline, piece.text, FONT_SIZE, "black", fonts, piece_is_rtl)
        else:
            color = color_of(piece.entity["entity_group"], groups)
            pen.rounded_rectangle((x, top - 4, x + width, top + FONT_SIZE + 10), 5, fill=color)
            words_width = text_width(piece.text, FONT_SIZE, fonts)
            tag = piece.entity["entity_group"] if piece.has_tag else ""
            tag_width = text_width(tag, SMALL_FONT_SIZE, fonts)
            words_x, tag_x = x + PADDING, x + words_width + 3 * PADDING
            if piece_is_rtl and tag:
                words_x, tag_x = x + tag_width + 3 * PADDING, x + PADDING
            draw_text(page, words_x, baseline, piece.text, FONT_SIZE, "white", fonts, piece_is_rtl)
            draw_text(page, tag_x, baseline, tag, SMALL_FONT_SIZE, "white", fonts)
        x += width


def _legend_rows(groups: list[str], width: float, fonts: str | None) -> list[list[str]]:
    """The types, as many in a row as there is room for."""
    rows, used = [], width + 1.0
    for group in groups:
        needed = _legend_width(group, fonts)
        if used + needed > width:
            rows.append([])
            used = 0.0
        rows[-1].append(group)
        used += needed
    return rows


def _legend_width(group: str, fonts: str | None) -> float:
    return SMALL_FONT_SIZE + PADDING + text_width(group, SMALL_FONT_SIZE, fonts) + MARGIN


def _draw_legend_row(page: Image.Image, row: list[str], top: float, groups: list[str], fonts: str | None):
    x = float(MARGIN)
    for group in row:
        square = (x, top, x + SMALL_FONT_SIZE, top + SMALL_FONT_SIZE)
        ImageDraw.Draw(page).rounded_rectangle(square, 3, fill=color_of(group, groups))
        text_x = x + SMALL_FONT_SIZE + PADDING
        draw_text(page, text_x, top + SMALL_FONT_SIZE - 2, group, SMALL_FONT_SIZE, "#222222", fonts)
        x += _legend_width(group, fonts)


def _draw_relevance(page: Image.Image, relevance: dict[str, float], top: float, row_height: int, fonts: str | None):
    pen = ImageDraw.Draw(page)
    draw_text(page, MARGIN, top + SMALL_FONT_SIZE - 2, RELEVANCE_TITLE, SMALL_FONT_SIZE, "#222222", fonts)
    left = MARGIN + max(text_width(level, SMALL_FONT_SIZE, fonts) for level in relevance) + 12
    for number, (level, value) in enumerate(relevance.items(), start=1):
        y = top + number * row_height
        baseline = y + SMALL_FONT_SIZE - 2
        draw_text(page, MARGIN, baseline, level, SMALL_FONT_SIZE, "#222222", fonts)
        pen.rectangle((left, y, left + BAR_WIDTH, y + SMALL_FONT_SIZE - 1), fill="#E4E4E4")
        pen.rectangle((left, y, left + BAR_WIDTH * value, y + SMALL_FONT_SIZE - 1), fill=COLORS[0])
        draw_text(page, left + BAR_WIDTH + 8, baseline, f"{value:.2f}", SMALL_FONT_SIZE, "#222222", fonts)
