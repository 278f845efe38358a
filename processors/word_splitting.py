"""Words of a raw post, the way tweets need it, with exact character offsets."""

from __future__ import annotations

import re
import unicodedata


def _character_class(codes: list[int]) -> str:
    """The inside of a regex's `[…]` that matches these characters: neighbours become one range."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


# Characters that belong to the one before them: Unicode's category M (accents, vowel signs, variation selectors), which
# lies in planes 0, 1 and 14, and the two joiners of letters and emoji.
_MARKS = _character_class(
    [
        code
        for code in (*range(0x300, 0x20000), *range(0xE0000, 0xE1000))
        if code in (0x200C, 0x200D) or unicodedata.category(chr(code)).startswith("M")
    ]
)
# Signs without a shape (soft hyphen, word joiner, marks of direction): part of a word where letters stand on both sides.
_INVISIBLE = "\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Other scripts that are written without spaces, or with particles joined to a link: they end it, as Chinese does.
_GLUED_TO_LINKS = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3100-\u31ff\ua960-\ua97f\uac00-\ud7ff\uff00-\uffef"
_EMOJI = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
)
# Variation selectors, skin tones and the tags of regional flags.
_EMOJI_MODIFIER = "[\u200d\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"

_LINK_LETTER = rf"[^\W{_CJK}{_GLUED_TO_LINKS}]"
_LINK_BEGIN = rf"(?i:https?://){_LINK_LETTER}"
# A link goes on with letters and the signs of addresses. It stops at quotes, brackets, emoji and other scripts' marks, and
# at the next link, but for one inside a path or a query. The punctuation that ends its sentence is not part of it.
_LINK_SIGNS = r"/#=&%+$@\-"
_LINK_PIECE = rf"[.,;:!?~*]*(?:(?<=[/=])|(?!{_LINK_BEGIN}))(?:{_LINK_LETTER}|[{_LINK_SIGNS}{_MARKS}])"
_LINK = rf"(?:{_LINK_PIECE}|\((?:{_LINK_PIECE})*\))*"
# A letter or digit with its marks; a link may follow a word without a space.
_LETTER = rf"(?!{_LINK_BEGIN})[^\W{_CJK}][{_MARKS}]*"
_ALTERNATIVES = [
    rf"(?i:https?://t\.co/)(?:(?!{_LINK_BEGIN})[A-Za-z0-9])+(?:[?&][A-Za-z0-9_]+=[A-Za-z0-9_]*)*",  # Twitter's short links
    rf"(?:(?i:https?://)|(?i:www\.))(?={_LINK_LETTER}){_LINK}",
    rf"@(?:(?:{_LETTER})+|[\w{_MARKS}]+)",  # a handle
    r"\$[A-Za-z]{1,6}\b",  # a cashtag; any other currency sign is a word of its own
    r"[0-9#*]\ufe0f?\u20e3",  # a keycap
    r"[\U0001f1e6-\U0001f1ff]{2}",  # a flag is two regional letters
    rf"{_EMOJI}(?:\u200d{_EMOJI}|{_EMOJI_MODIFIER})*",
    rf"[{_CJK}]",
    rf"\d+(?:[.,:/]\d+)*(?![{_MARKS}]*[^\W{_CJK}])",
    rf"(?:{_LETTER})+(?:(?:-|[{_INVISIBLE}]+)(?:{_LETTER})+)*",
    r"\.{2,}",
    r"\S",
]
_WORD = re.compile(f"(?:{'|'.join(_ALTERNATIVES)})[{_MARKS}]*")


def split_words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Split a post into words.

    Links, handles, cashtags and emoji with their modifiers stay whole. A hash, an apostrophe and other punctuation are words
    of their own, as in the field's data sets. Chinese and Japanese characters are a word each. A combining mark always
    belongs to the character before it. Nothing but white space is left out.

    Returns:
        The words and, for each, its start and end in `text`: `text[start:end] == word`. In linear time.
    """
    matches = list(_WORD.finditer(text))
    return [match.group() for match in matches], [match.span() for match in matches]
