"""Text in any script and emoji for PIL: which installed font has a character, and in which order a line is drawn.

PIL draws a string with one font and prints a box for what that font lacks. Here a line is cut into runs that one font can draw,
and the runs are put in the order in which right-to-left and left-to-right text is read (a short form of Unicode's annex 9).
"""

from __future__ import annotations

import importlib.util
import os
import struct
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from transformers.utils import logging

logger = logging.get_logger(__name__)

FONTS_VARIABLE = "HAMLEARNING_FONTS"
SYSTEM_FONTS = (
    "~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts",
    "~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts",
    "$LOCALAPPDATA/Microsoft/Windows/Fonts", "$WINDIR/Fonts",
)  # fmt: skip
# Fonts for text, the usual ones first; a font's other weights and forms come last.
USUAL_FONTS = ("notosans-regular", "notosans", "dejavusans", "segoeui", "arial", "helvetica")
OTHER_FORMS = ("bold", "italic", "oblique", "light", "thin", "black", "medium", "cond", "mono", "slanted", "display", "looped")
# Colour fonts that hold bitmaps have them at one of these sizes only, in pixels.
BITMAP_SIZES = (109, 128, 136, 160, 96, 64)
# Characters outside U+1F000 and above that are emoji unless a text variation selector follows (Unicode's Emoji_Presentation).
_EMOJI = frozenset(
    "⌚⌛⏩⏪⏫⏬⏰⏳◽◾☔☕♈♉♊♋♌♍♎♏♐♑♒♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓❔❕❗➕➖➗➰➿⬛⬜⭐⭕"
)
_JOINER, _EMOJI_FORM, _TEXT_FORM, _KEYCAP = "\u200d", "\ufe0f", "\ufe0e", "\u20e3"
_MIRRORED = str.maketrans("()[]{}<>«»‹›", ")(][}{><»«›‹")


class Run(NamedTuple):
    """Characters that one font draws in one direction, and how much larger that font is than the text around it."""

    text: str
    font: ImageFont.FreeTypeFont
    is_rtl: bool
    scale: float
    width: float


@lru_cache(maxsize=8)
def find_fonts(folder: str | None = None) -> tuple[str, ...]:
    """Font files in the order in which they are tried: those of `folder`, of the folder that the environment variable
    `HAMLEARNING_FONTS` names, and of the system.

    Raises:
        ValueError: a folder that was named does not exist.
    """
    paths: list[Path] = []
    for named in filter(None, (folder, os.environ.get(FONTS_VARIABLE))):
        if not Path(named).is_dir():
            raise ValueError(f"fonts: expected a folder with font files, got {named!r}, which is no folder")
        paths += sorted(_font_files(Path(named)), key=_rank)
    system = [path for name in SYSTEM_FONTS for path in _font_files(Path(os.path.expandvars(name)).expanduser())]
    if spec := importlib.util.find_spec("matplotlib"):
        # Many have it installed, and its font has Latin, Greek, Cyrillic, Arabic, Hebrew and many signs.
        system.append(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    return tuple(dict.fromkeys(str(path) for path in [*paths, *sorted(system, key=_rank)]))


def _font_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")] if folder.is_dir() else []


def _rank(path: Path) -> tuple:
    name = path.stem.lower()
    usual = USUAL_FONTS.index(name) if name in USUAL_FONTS else len(USUAL_FONTS)
    return any(form in name for form in OTHER_FORMS), usual, "serif" in name, not name.startswith("notosans"), name


class FontFile(NamedTuple):
    """What a font file can draw."""

    characters: frozenset[int]
    has_color: bool


@lru_cache(maxsize=4096)
def read_font(path: str) -> FontFile:
    """The characters of a font file, by its `cmap` table (formats 4 and 12); none for a file that is not a font."""
    try:
        data = Path(path).read_bytes()
        start = struct.unpack_from(">I", data, 12)[0] if data[:4] == b"ttcf" else 0
        tables = {}
        for number in range(struct.unpack_from(">H", data, start + 4)[0]):
            tag, _, offset, _ = struct.unpack_from(">4sIII", data, start + 12 + 16 * number)
            tables[tag] = offset
        characters: set[int] = set()
        cmap = tables[b"cmap"]
        for number in range(struct.unpack_from(">H", data, cmap + 2)[0]):
            platform, encoding, offset = struct.unpack_from(">HHI", data, cmap + 4 + 8 * number)
            if platform == 0 or (platform, encoding) in ((3, 1), (3, 10)):
                characters |= _subtable(data, cmap + offset)
    except (OSError, struct.error, KeyError, IndexError):
        return FontFile(frozenset(), False)
    return FontFile(frozenset(characters), not tables.keys().isdisjoint((b"CBDT", b"sbix", b"COLR")))


def _subtable(data: bytes, at: int) -> set[int]:
    kind = struct.unpack_from(">H", data, at)[0]
    if kind == 12:
        count = struct.unpack_from(">I", data, at + 12)[0]
        groups = struct.iter_unpack(">III", data[at + 16 : at + 16 + 12 * count])
        return {code for first, last, _ in groups if last <= 0x10FFFF for code in range(first, last + 1)}
    if kind != 4:
        return set()
    count = struct.unpack_from(">H", data, at + 6)[0] // 2
    arrays = [
        struct.unpack_from(f">{count}H", data, at + 14 + place) for place in (0, 2 * count + 2, 4 * count + 2, 6 * count + 2)
    ]
    characters = set()
    for place, (last, first, delta, offset) in enumerate(zip(*arrays, strict=True)):
        for code in range(first, min(last, 0xFFFE) + 1):
            glyph = code
            if offset:
                glyph_at = at + 14 + 6 * count + 2 + 2 * place + offset + 2 * (code - first)
                glyph = struct.unpack_from(">H", data, glyph_at)[0] if glyph_at + 2 <= len(data) else 0
            if glyph and (glyph + delta) & 0xFFFF:
                characters.add(code)
    return characters


@lru_cache(maxsize=256)
def _open(path: str | None, size: float) -> tuple[ImageFont.FreeTypeFont, float]:
    """A font, and how much larger than asked for it is: a bitmap font is scaled when drawn."""
    if path is None:
        return ImageFont.load_default(size), 1.0
    for pixels in (size, *BITMAP_SIZES):
        try:
            return ImageFont.truetype(path, pixels), pixels / size
        except OSError:
            continue  # a bitmap font without this size
    return ImageFont.load_default(size), 1.0


def clusters(text: str) -> list[str]:
    """The text in pieces that are drawn as one: a letter with its marks, an emoji with all that is joined to it, a flag."""
    pieces: list[str] = []
    for character in text:
        code, previous = ord(character), pieces[-1] if pieces else ""
        joins = (
            unicodedata.category(character).startswith("M")
            or character == _JOINER
            or 0x1F3FB <= code <= 0x1F3FF
            or 0xE0020 <= code <= 0xE007F
            or (previous.endswith(_JOINER) and _is_emoji(previous))
            or (0x1F1E6 <= code <= 0x1F1FF and len(previous) == 1 and 0x1F1E6 <= ord(previous) <= 0x1F1FF)
        )
        if joins and pieces:
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _is_emoji(cluster: str) -> bool:
    if _TEXT_FORM in cluster:
        return False
    return ord(cluster[0]) >= 0x1F000 and ord(cluster[0]) < 0x20000 or cluster[0] in _EMOJI or _EMOJI_FORM in cluster


def _find_font(cluster: str, paths: tuple[str, ...], previous: str | None) -> str | None:
    """The first font that has the cluster; the one of the text before it where it can go on, so that letters join."""
    codes = [ord(character) for character in cluster if character not in (_JOINER, _EMOJI_FORM, _TEXT_FORM)]
    codes = [code for code in codes if not 0xE0020 <= code <= 0xE007F] or [ord(" ")]
    wants_color = _is_emoji(cluster)

    def has(path: str) -> bool:
        return read_font(path).characters.issuperset(codes)

    if previous is not None and read_font(previous).has_color == wants_color and has(previous):
        return previous
    fits = None
    for path in paths:
        if has(path):
            if read_font(path).has_color == wants_color:
                return path
            fits = fits or path
    if fits is None:
        # A letter whose mark no font has is better than a box.
        if len(codes) > 1 and not wants_color:
            return _find_font(cluster[0], paths, previous)
        if not _default_font_has(cluster):
            _warn_of_missing(cluster)
    return fits


@lru_cache(maxsize=4096)
def _default_font_has(cluster: str) -> bool:
    """Whether PIL's built-in font, which has Latin letters only, has it: what it lacks looks as an unassigned character does."""
    font = ImageFont.load_default(20.0)
    return cluster.isspace() or bytes(font.getmask(cluster)) != bytes(font.getmask("\U000e1234" * len(cluster)))


def _warn_of_missing(cluster: str):
    name = unicodedata.name(cluster[0], "")
    if _is_emoji(cluster):
        package = "fonts-noto-color-emoji"
    elif name.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")):
        package = "fonts-noto-cjk"
    else:
        package = "fonts-noto-core"
    logger.warning_once(
        "some characters are drawn as boxes, because no font on this machine has them. "
        f"On Debian and Ubuntu: apt install {package}. "
        f"Elsewhere put Noto fonts in a folder and name it in {FONTS_VARIABLE} or in draw(…, fonts=FOLDER)."
    )


def printable(text: str) -> str:
    """Without what has no form: control characters and direction marks go, lone surrogates become U+FFFD."""
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs":
            kept.append("\ufffd")
        elif character.isspace():
            kept.append(" ")
        elif category not in ("Cc", "Cf") or character in "\u200c\u200d" or 0xE0020 <= ord(character) <= 0xE007F:
            kept.append(character)
    return "".join(kept)


# Order


def direction_class(text: str) -> str:
    """`L`, `R`, `EN` (digits), `AN` (Arabic digits) or `ON`: the first letter's direction, else the digits', else neither."""
    classes = [unicodedata.bidirectional(character) for character in text]
    strong = next((kind for kind in classes if kind in ("L", "R", "AL")), None)
    if strong:
        return "L" if strong == "L" else "R"
    return next((kind for kind in classes if kind in ("EN", "AN")), "ON")


def levels(classes: list[str], is_rtl: bool) -> list[int]:
    """How deep each item is embedded: even for left to right, odd for right to left.

    A short form of Unicode's annex 9 without explicit marks. Takes the classes of `unicodedata.bidirectional`.
    """
    base = "R" if is_rtl else "L"
    kinds, previous, strong = [], base, base
    for kind in classes:
        kind = previous if kind in ("NSM", "BN") else "R" if kind == "AL" else kind
        strong = kind if kind in ("L", "R") else strong
        kinds.append(kind)
        previous = kind
    for place, kind in enumerate(kinds):  # a sign between digits, or beside them, belongs to them
        before = kinds[place - 1] if place else None
        after = kinds[place + 1] if place + 1 < len(kinds) else None
        if (kind in ("CS", "ES") and before == after and before in ("EN", "AN")) or (kind == "ET" and "EN" in (before, after)):
            kinds[place] = before if before in ("EN", "AN") else after
    strong = base
    for place, kind in enumerate(kinds):  # digits after a left-to-right letter go on with it
        strong = kind if kind in ("L", "R") else strong
        if kind == "EN" and strong == "L":
            kinds[place] = "L"
    place = 0
    while place < len(kinds):  # what has no direction takes that of both its neighbours, else the line's
        if kinds[place] in ("L", "R", "EN", "AN"):
            place += 1
            continue
        end = next((after for after in range(place, len(kinds)) if kinds[after] in ("L", "R", "EN", "AN")), len(kinds))
        before = base if place == 0 else "L" if kinds[place - 1] == "L" else "R"
        after = base if end == len(kinds) else "L" if kinds[end] == "L" else "R"
        kinds[place:end] = [before if before == after else base] * (end - place)
        place = end
    if is_rtl:
        return [1 if kind == "R" else 2 for kind in kinds]
    return [0 if kind == "L" else 1 if kind == "R" else 2 for kind in kinds]


def visual_order(item_levels: list[int]) -> list[int]:
    """The places of a line's items from left to right (rule L2 of the annex)."""
    order = list(range(len(item_levels)))
    for level in range(max(item_levels, default=0), 0, -1):
        first = 0
        while first < len(order):
            if item_levels[order[first]] < level:
                first += 1
                continue
            end = first
            while end < len(order) and item_levels[order[end]] >= level:
                end += 1
            order[first:end] = order[first:end][::-1]
            first = end
    return order


# Drawing


def text_runs(text: str, size: float, fonts: str | None = None, is_rtl: bool | None = None) -> list[Run]:
    """The text as it is drawn from left to right.

    Args:
        text: one line.
        size: of the letters, in pixels.
        fonts: a folder with fonts to try first.
        is_rtl: the line's direction; that of its first letter if not set.
    """
    paths = find_fonts(fonts)
    pieces = clusters(printable(text))
    is_rtl = direction_class(text) == "R" if is_rtl is None else is_rtl
    piece_levels = levels([unicodedata.bidirectional(piece[0]) for piece in pieces], is_rtl)
    chosen, previous = [], None
    for piece in pieces:
        previous = _find_font(piece, paths, previous)
        chosen.append(previous)
    # Neighbours of one font and direction make a run, which is kept in the order of reading.
    groups: list[list[int]] = []
    for place in range(len(pieces)):
        last = groups[-1][-1] if groups else None
        if last is not None and (chosen[last], piece_levels[last]) == (chosen[place], piece_levels[place]):
            groups[-1].append(place)
        else:
            groups.append([place])
    runs = []
    for place in visual_order([piece_levels[group[0]] for group in groups]):
        group, backwards = groups[place], bool(piece_levels[groups[place][0]] % 2)
        font, scale = _open(chosen[group[0]], size)
        if backwards and not _shapes(font):
            run_text = "".join(pieces[index].translate(_MIRRORED) for index in reversed(group))
        else:
            run_text = "".join(pieces[index] for index in group)
        runs.append(Run(run_text, font, backwards, scale, font.getlength(run_text, **_direction(font, backwards)) / scale))
    return runs


def text_width(text: str, size: float, fonts: str | None = None) -> float:
    return sum(run.width for run in text_runs(text, size, fonts))


def draw_text(
    page: Image.Image,
    x: float,
    baseline: float,
    text: str,
    size: float,
    fill: str,
    fonts: str | None = None,
    is_rtl: bool | None = None,
) -> float:
    """Draw one line with its left end at `x`, and return its width."""
    pen, start = ImageDraw.Draw(page), x
    for run in text_runs(text, size, fonts, is_rtl):
        options = {"font": run.font, "anchor": "ls", "embedded_color": True} | _direction(run.font, run.is_rtl)
        if run.scale == 1:
            pen.text((x, baseline), run.text, fill=fill, **options)
        elif run.width > 0:
            ascent, descent = run.font.getmetrics()
            tile = Image.new("RGBA", (round(run.width * run.scale) + 1, ascent + descent), (0, 0, 0, 0))
            ImageDraw.Draw(tile).text((0, ascent), run.text, fill=fill, **options)
            tile = tile.resize([max(1, round(side / run.scale)) for side in tile.size], Image.Resampling.LANCZOS)
            page.paste(tile, (round(x), round(baseline - ascent / run.scale)), tile)
        x += run.width
    return x - start


def _shapes(font: ImageFont.FreeTypeFont) -> bool:
    """Whether PIL joins and orders the letters of this font by itself, which it does where libraqm is installed."""
    return font.layout_engine == ImageFont.Layout.RAQM


def _direction(font: ImageFont.FreeTypeFont, is_rtl: bool) -> dict[str, str]:
    return {"direction": "rtl" if is_rtl else "ltr"} if _shapes(font) else {}
