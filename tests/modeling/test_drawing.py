"""A tagged post as an image: every script and emoji drawn, in the order in which it is read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from modeling_hamlearning import drawing_text
from modeling_hamlearning.drawing import COLORS, _cut, _lines, _piece_width, _words, draw
from modeling_hamlearning.drawing_html import draw_html
from modeling_hamlearning.drawing_text import (
    clusters,
    direction_class,
    draw_text,
    find_fonts,
    levels,
    read_font,
    text_runs,
    visual_order,
)

# A word in each script, with the character that a machine without fonts for it cannot draw.
SCRIPTS = {
    "Latin": "İstanbul", "Greek": "Αθήνα", "Cyrillic": "Київ", "Hebrew": "שלום", "Arabic": "باريس", "Devanagari": "दिल्ली",
    "Bengali": "ঢাকা", "Tamil": "சென்னை", "Telugu": "తెలుగు", "Thai": "ไทย", "Khmer": "ខ្មែរ", "Burmese": "မြန်မာ",
    "Tibetan": "བོད", "Georgian": "თბილისი", "Armenian": "Երևան", "Ethiopic": "አዲስ", "Chinese": "北京", "Japanese": "とうきょう",
    "Korean": "서울", "emoji": "🎉", "flag": "🇫🇷", "family": "👨‍👩‍👧", "sign": "✓",
}  # fmt: skip


def entity(text: str, word: str, group: str = "LOC", box=None) -> dict:
    start = text.index(word)
    region = box and {"box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)), "label": "", "score": 0.5}
    return {"entity_group": group, "score": 0.9, "word": word, "start": start, "end": start + len(word),
            "relevance": {"global": 0.5}, "region": region}  # fmt: skip


def has_font(text: str) -> bool:
    codes = {ord(character) for character in text if character not in "\u200d\ufe0f"}
    return any(read_font(path).characters.issuperset(codes) for path in find_fonts())


def ink(text: str, size: int = 40) -> np.ndarray:
    page = Image.new("RGB", (300, 80), "white")
    draw_text(page, 10, 55, text, size, "black")
    return np.asarray(page)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_drawn_and_not_as_boxes(script):
    text = SCRIPTS[script]
    if not has_font(text):
        pytest.skip(f"no font for {script} is installed")
    page, runs = ink(text), text_runs(text, 40)
    assert (page < 128).any()
    for run in runs:
        missing = run.font.getmask("\U000e1234")
        for cluster in clusters(run.text):
            assert bytes(run.font.getmask(cluster[0])) != bytes(missing), f"{cluster!r} is drawn as a box"


@pytest.mark.skipif(not has_font("🎉"), reason="no emoji font is installed")
def test_an_emoji_is_drawn_in_colour_at_the_size_of_the_letters():
    page = ink("🎉").astype(int)
    coloured = np.ptp(page, axis=2) > 60
    assert coloured.sum() > 100
    rows, columns = np.nonzero(coloured)
    assert 25 < np.ptp(rows) < 55 and 25 < np.ptp(columns) < 60


def test_a_post_in_several_scripts_differs_from_one_with_boxes():
    text = "Київ και Αθήνα"
    if not has_font("Київ") or not has_font("Αθήνα"):
        pytest.skip("no font is installed")
    font = ImageFont.load_default(18)
    boxes = {bytes(font.getmask("\U000e1234")), bytes(font.getmask("К"))}
    assert len(boxes) == 1, "the built-in font has Cyrillic now: this test needs another script"
    pixels = np.asarray(draw(text, None, []))
    other = np.asarray(draw("Ки\u0457в και Αθήνα".replace("К", "Б"), None, []))
    assert (pixels != other).any()


def test_what_no_font_has_is_said_once_with_the_package_that_has_it(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(drawing_text.logger, "warning_once", said.append)
    monkeypatch.setattr(drawing_text, "find_fonts", lambda fonts=None: ())
    for text, package in (("東京", "fonts-noto-cjk"), ("🎉", "fonts-noto-color-emoji"), ("दिल्ली", "fonts-noto-core")):
        said.clear()
        draw(text, None, [])
        assert said and all(f"apt install {package}." in line and "HAMLEARNING_FONTS" in line for line in said)
    said.clear()
    draw("plain text, tea", None, [])
    assert not said


def test_a_folder_of_fonts_comes_first(monkeypatch, tmp_path):
    path = find_fonts()[0] if find_fonts() else None
    if path is None:
        pytest.skip("no font is installed")
    (tmp_path / "mine.ttf").write_bytes(open(path, "rb").read())
    (tmp_path / "broken.ttf").write_bytes(b"\0\1\0\0 no font")
    assert str(tmp_path / "mine.ttf") in find_fonts(str(tmp_path))[:2]
    assert text_runs("a", 20, str(tmp_path))[0].font.path == str(tmp_path / "mine.ttf")
    monkeypatch.setenv("HAMLEARNING_FONTS", str(tmp_path))
    find_fonts.cache_clear()
    assert text_runs("a", 20)[0].font.path == str(tmp_path / "mine.ttf")
    find_fonts.cache_clear()
    with pytest.raises(ValueError, match="fonts: expected a folder with font files, got '/nowhere'"):
        draw("a", None, [], fonts="/nowhere")


def test_the_characters_of_a_font_are_those_of_fonttools():
    ttlib = pytest.importorskip("fontTools.ttLib")
    for path in [
        path for path in find_fonts() if path.endswith(("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansAdlam-Regular.ttf"))
    ]:
        with ttlib.TTFont(path, fontNumber=0) as font:
            expected = {
                code for table in font["cmap"].tables if table.isUnicode() and table.format in (4, 12) for code in table.cmap
            }
        assert read_font(path).characters == expected


ORDERS = {
    # Capitals stand for right-to-left letters, as in the examples of Unicode's annex 9.
    "abc DEF ghi": "abc FED ghi",
    "abc DEF GHI jkl": "abc IHG FED jkl",
    "ABC def": "def CBA",
    "ABC 123": "123 CBA",
    "abc DEF 123": "abc 123 FED",
    "abc 123 DEF": "abc 123 FED",
    "ABC (def)": ")def( CBA",
    "abc (DEF)!": "abc (FED)!",
    "ABC 12,345 DEF": "FED 12,345 CBA",
    "abc DEF 45%": "abc 45% FED",
    "abc ... DEF": "abc ... FED",
    "car is THE CAR in arabic": "car is RAC EHT in arabic",
}  # fmt: skip


@pytest.mark.parametrize("text", ORDERS)
def test_the_order_of_left_to_right_and_right_to_left(text):
    kinds = ["R" if c.isupper() else "L" if c.isalpha() else "EN" if c.isdigit() else "CS" if c == "," else "ET" if c == "%"
             else "WS" if c == " " else "ON" for c in text]  # fmt: skip
    first = next(kind for kind in kinds if kind in ("L", "R"))
    order = visual_order(levels(kinds, first == "R"))
    assert "".join(text[place] for place in order) == ORDERS[text]


def test_runs_of_two_directions_come_in_the_order_of_reading():
    letters = [run.text.strip() for run in text_runs("abc שלום עולם def", 20)]
    letters = [text for text in letters if text]
    assert letters[0] == "abc" and letters[-1] == "def" and direction_class(letters[1]) == "R"
    first, *_, last = [run.text for run in text_runs("שלום abc", 20)]
    assert "abc" in first and direction_class(last) == "R"


def test_a_right_to_left_text_starts_at_the_right():
    left = np.asarray(draw("abc", None, [])) < 128
    right = np.asarray(draw("שלום", None, [])) < 128
    assert np.nonzero(left)[1].max() < left.shape[1] / 2 < np.nonzero(right)[1].min()


@pytest.mark.parametrize("text, expected", [
    ("e\u0301a", ["e\u0301", "a"]),
    ("👍🏽a", ["👍🏽", "a"]),
    ("👨‍👩‍👧x", ["👨‍👩‍👧", "x"]),
    ("🇫🇷🇩🇪", ["🇫🇷", "🇩🇪"]),
    ("1️⃣2", ["1️⃣", "2"]),
    ("\u0301a", ["\u0301", "a"]),
])  # fmt: skip
def test_what_belongs_together_stays_together(text, expected):
    assert clusters(text) == expected


@pytest.mark.parametrize("text, word", [
    ("a game of New York\nKnicks' fans", "New York\nKnicks"),
    ("New\r\nYork", "New\r\nYork"),
    ("in\tNew \u2028 York", "New \u2028 York"),
    ("\n\nParis\n\n", "Paris"),
])  # fmt: skip
def test_an_entity_over_a_line_end_is_drawn(text, word):
    image = Image.new("RGB", (60, 40), "white")
    pixels = np.asarray(draw(text, image, [entity(text, word, box=(0, 0, 30, 20))]))
    assert (pixels == [int(COLORS[1][place : place + 2], 16) for place in (1, 3, 5)]).all(-1).sum() > 500
    html = draw_html(text, image, [entity(text, word, box=(0, 0, 30, 20))])
    assert html.count("<mark") == 1


def test_every_form_of_text_can_be_drawn():
    for text in ("", " ", "\n", "\ud800 x", "\x00\x07", "\u202eabc", "a" * 500, "東" * 300, "🎉" * 100, "\u0301", "x\U000e1234"):
        assert draw(text, None, []).mode == "RGB"


def test_no_line_is_wider_than_the_page_and_no_letter_is_lost():
    text = "東京" * 80 + " and https://t.co/" + "a" * 300 + " Lincoln, the river's"
    entities = [entity(text, "東京" * 40), entity(text, "Lincoln")]
    lines = _lines(text, entities, 480, None)
    written = "".join(piece.text for line in lines for piece in line)
    assert written == "".join(text.split())
    for line in lines:
        assert sum(_piece_width(piece, None) for piece in line) <= 480
    assert sum(piece.has_tag for line in lines for piece in line) == 2


def test_spaces_are_where_the_text_has_them():
    text = "the Knicks' game (Paris) x\ny"
    words = _words(text, [entity(text, "Knicks"), entity(text, "Paris")])
    assert [(piece.text, piece.has_space) if piece else None for piece in words] == [
        ("the", False), ("Knicks", True), ("'", False), ("game", True), ("(", True), ("Paris", False), (")", False), ("x", True),
        None, ("y", False),
    ]  # fmt: skip
    (whole,) = _words("東京" * 50, [])
    assert "".join(part.text for part in _cut(whole, 200, None)) == "東京" * 50


def test_the_legend_names_each_type_in_its_colour():
    text = "Ann in Paris"
    both = np.asarray(draw(text, None, [entity(text, "Ann", "PER"), entity(text, "Paris", "LOC")]))
    none = np.asarray(draw(text, None, []))
    assert both.shape[0] > none.shape[0]
    legend = both[none.shape[0] - 16 :]
    for color in (COLORS[0], COLORS[1]):
        rgb = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        assert (legend == rgb).all(-1).sum() > 100


@pytest.mark.parametrize("color", COLORS)
def test_white_letters_on_a_types_color_can_be_read(color):
    """Contrast of at least 4.5, as the accessibility guidelines (WCAG 2.2, 1.4.3) want for small text."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 4.5


def test_without_raqm_right_to_left_letters_are_still_in_order(monkeypatch):
    monkeypatch.setattr(drawing_text, "_shapes", lambda font: False)
    drawing_text._open.cache_clear()
    (run,) = text_runs("שלום (א)", 20)
    assert run.text == "(א) םולש" and run.is_rtl
    page = Image.new("RGB", (200, 50), "white")
    ImageDraw.Draw(page)
    assert draw_text(page, 0, 30, "שלום", 20, "black") > 0
