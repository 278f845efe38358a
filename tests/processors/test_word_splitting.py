from __future__ import annotations

import random
import time

import pytest

from processors import split_words

CASES = {
    "RT @joe_b: I'm at #NBA!": ["RT", "@joe_b", ":", "I", "'", "m", "at", "#", "NBA", "!"],
    "see https://t.co/aB1?x=2, ok": ["see", "https://t.co/aB1?x=2", ",", "ok"],
    "👨‍👩‍👧👍🏽🇺🇸🇩🇪1️⃣❤️": ["👨‍👩‍👧", "👍🏽", "🇺🇸", "🇩🇪", "1️⃣", "❤️"],
    "$5 €3.50 $AAPL 1,000%": ["$", "5", "€", "3.50", "$AAPL", "1,000", "%"],
    "徐悲鸿绘 in 1943年": ["徐", "悲", "鸿", "绘", "in", "1943", "年"],
    "co-op नमस्ते सभी café naïve": ["co-op", "नमस्ते", "सभी", "café", "naïve"],
    " \t\n": [],
    "": [],
    "a\x00b \ud800": ["a", "\x00", "b", "\ud800"],
    "\u200fשלום\u200e": ["\u200f", "שלום", "\u200e"],
}


@pytest.mark.parametrize("text", CASES)
def test_words(text):
    assert split_words(text)[0] == CASES[text]


def test_offsets_are_exact_and_nothing_but_space_is_lost():
    generator = random.Random(0)
    alphabet = "ab Z9@#$.,'’-_:/\n\t\u200d\ufe0f👍🏽👨🇺🇸徐カ한नि\u0301\u200f\ud800\x00https://www."
    for _ in range(2000):
        text = "".join(generator.choice(alphabet) for _ in range(generator.randrange(40)))
        words, offsets = split_words(text)
        assert [text[start:end] for start, end in offsets] == words
        kept = {place for start, end in offsets for place in range(start, end)}
        assert sum(end - start for start, end in offsets) == len(kept)
        assert all(text[place].isspace() for place in set(range(len(text))) - kept)


@pytest.mark.parametrize("piece", ["a", "word ", "http://", "@", "1,", "👍\u200d", "\u0301", "-a", ".", "www.a.", "🇺", "徐", "'"])
def test_time_is_linear(piece):
    def seconds(count):
        start = time.process_time()
        split_words(piece * count)
        return time.process_time() - start

    assert seconds(100_000) < 3


def test_a_word_with_a_hundred_thousand_characters():
    assert [len(word) for word in split_words("x" * 100_000)[0]] == [100_000]
