from __future__ import annotations

import random
import sys
import time
import timeit
import unicodedata

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
    "New\u00adYork Jor\u2060dan so\u00ad": ["New\u00adYork", "Jor\u2060dan", "so", "\u00ad"],
    "か\u3099き 葛\U000e0100 #\ufe0f\u20e3 \u0301x": ["か\u3099", "き", "葛\U000e0100", "#\ufe0f\u20e3", "\u0301", "x"],
    "កម្ពុជា བོད ދިވެހި ߒߞߏ 𞤀𞤣𞤤𞤢𞤥 ܣܘܪܝܳܝܳܐ": ["កម្ពុជា", "བོད", "ދިވެހި", "ߒߞߏ", "𞤀𞤣𞤤𞤢𞤥", "ܣܘܪܝܳܝܳܐ"],
    "3.5万 @joeさん": ["3.5", "万", "@joe", "さ", "ん"],
}


LINKS = {
    "https://t.co/abc😀Paris": ["https://t.co/abc", "😀", "Paris"],
    "https://t.co/abc、 https://t.co/abc）": ["https://t.co/abc", "、", "https://t.co/abc", "）"],
    'https://t.co/abc"x https://t.co/abc—x': ["https://t.co/abc", '"', "x", "https://t.co/abc", "—", "x"],
    "https://t.co/abc東京 https://t.co/abc…": ["https://t.co/abc", "東", "京", "https://t.co/abc", "…"],
    "https://t.co/ahttps://t.co/b": ["https://t.co/a", "https://t.co/b"],
    "HTTPS://T.CO/ABC Http://x.org/a. WWW.bbc.co.uk!": ["HTTPS://T.CO/ABC", "Http://x.org/a", ".", "WWW.bbc.co.uk", "!"],
    "Parishttps://t.co/abc": ["Paris", "https://t.co/abc"],
    "“https://x.com/abc”, 'http://x.com'": ["“", "https://x.com/abc", "”", ",", "'", "http://x.com", "'"],
    '<a href="http://x.org/a?b=c&d=e">x': ["<", "a", "href", "=", '"', "http://x.org/a?b=c&d=e", '"', ">", "x"],
    "http://a.org/Paris_(band) (http://a.org/c)": ["http://a.org/Paris_(band)", "(", "http://a.org/c", ")"],
    "https://youtu.be/x-y에서 https://x.org/東": ["https://youtu.be/x-y", "에서", "https://x.org/", "東"],
    "https://ru.wikipedia.org/wiki/Москва!": ["https://ru.wikipedia.org/wiki/Москва", "!"],
    "http://a.org,http://b.org/http://c.org": ["http://a.org", ",", "http://b.org/http://c.org"],
    "http:// x": ["http", ":", "/", "/", "x"],
    "https://t.co/abcПривет https://t.co/abcé": ["https://t.co/abc", "Привет", "https://t.co/abc", "é"],
    "https://x.org/a😀Paris https://x.org/a—b": ["https://x.org/a", "😀", "Paris", "https://x.org/a", "—", "b"],
    "https://x.org/a、b https://x.org/a）": ["https://x.org/a", "、", "b", "https://x.org/a", "）"],
    'https://x.org/a"b https://x.org/a>': ["https://x.org/a", '"', "b", "https://x.org/a", ">"],
    "https://x.org/a… https://x.org/a“b”": ["https://x.org/a", "…", "https://x.org/a", "“", "b", "”"],
}


@pytest.mark.parametrize("text", CASES)
def test_words(text):
    assert split_words(text)[0] == CASES[text]


@pytest.mark.parametrize("text", LINKS)
def test_links(text):
    assert split_words(text)[0] == LINKS[text]


@pytest.mark.parametrize("before", ["a", "ب", "か", "한", "7", "!", "#", "👍", "https://t.co/a", "@joe", "..."])
def test_every_mark_belongs_to_the_character_before_it(before):
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M")]
    assert len(marks) > 2000
    assert [mark for mark in marks if split_words(f"{before}{mark}")[0] != [before + mark]] == []
    if before.isalpha() and before != "か":
        assert [mark for mark in marks if split_words(f"{before}{mark}a")[0] != [f"{before}{mark}a"]] == []


def test_offsets_are_exact_and_nothing_but_space_is_lost():
    generator = random.Random(0)
    alphabet = "ab Z9@#$.,'’-_:/\n\t\u200d\ufe0f👍🏽👨🇺🇸徐カ한नि\u0301\u200f\u00ad\u3099()…\ud800\x00https://www."
    for _ in range(2000):
        text = "".join(generator.choice(alphabet) for _ in range(generator.randrange(40)))
        words, offsets = split_words(text)
        assert [text[start:end] for start, end in offsets] == words
        kept = {place for start, end in offsets for place in range(start, end)}
        assert sum(end - start for start, end in offsets) == len(kept)
        assert all(text[place].isspace() for place in set(range(len(text))) - kept)


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "word ",
        "http://",
        "@",
        "1,",
        "👍\u200d",
        "\u0301",
        "-a",
        ".",
        "www.a.",
        "🇺",
        "徐",
        "'",
        "http://a",
        "http://(",
        "https://t.co/a",
        "a\u00ad",
        "\u00ad",
        "a\u0301",
        "1\u0301a",
        "www.!",
    ],
)
def test_time_is_linear(piece):
    def seconds(count):
        """Least of three runs without the garbage collector, which walks over everything that the tests have made."""
        return min(timeit.repeat(lambda: split_words(piece * count), timer=time.process_time, number=1, repeat=3))

    # Eight times the text; a quadratic splitter would need 64 times as long.
    assert seconds(400_000) < 30 * max(seconds(50_000), 0.02)


def test_a_word_with_a_hundred_thousand_characters():
    assert [len(word) for word in split_words("x" * 100_000)[0]] == [100_000]
