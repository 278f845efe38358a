"""Words of a raw post, the way tweets need it, with exact character offsets."""

from __future__ import annotations

import re

_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Signs that belong to the letter before them, which Python's \w leaves out.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0971-\u0df3"
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0f71-\u0f87\u1000-\u103f\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20dc"
)
_LETTER = rf"(?:[^\W{_CJK}]|[{_MARKS}])"
_EMOJI = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
)
# Variation selectors, skin tones and the tags of regional flags.
_MODIFIER = "[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"

_WORD = re.compile(
    "|".join(
        [
            r"(?:https?://|www\.)\S*[^\s.,;:!?\"'()\[\]…]",  # a URL without the punctuation that ends its sentence
            r"@\w+",
            r"\$[A-Za-z]{1,6}\b",  # a cashtag; any other currency sign is a word of its own
            r"[0-9#*]\ufe0f?\u20e3",  # a keycap
            r"[\U0001f1e6-\U0001f1ff]{2}",  # a flag is two regional letters
            rf"{_EMOJI}{_MODIFIER}(?:\u200d{_EMOJI}{_MODIFIER})*",
            rf"[{_CJK}]",
            r"\d+(?:[.,:/]\d+)*(?![\w])",
            rf"{_LETTER}+(?:-{_LETTER}+)*",
            r"\.{2,}",
            r"\S",
        ]
    )
)


def split_words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Split a post into words.

    Handles, URLs, cashtags and emoji with their modifiers stay whole; a hash, an apostrophe and other punctuation are
    words of their own, as in the field's data sets; Chinese and Japanese characters are a word each.

    Returns:
        The words and, for each, its start and end in `text`: `text[start:end] == word`. In linear time.
    """
    matches = list(_WORD.finditer(text))
    return [match.group() for match in matches], [match.span() for match in matches]
