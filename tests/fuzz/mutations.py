"""Broken and hostile input, drawn from a seed: text, bytes of files, images, boxes, posts."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from mner_data.synthetic_images import pure_noise

PIECES = (
    "Jordan", "New York", "#NBA", "@joe", "https://t.co/abc", "", " ", "   ", "\n", "\t", "\r\n", "\x00", "\ufeff",
    "\u200d", "\ufe0f", "👨‍👩‍👧", "👍🏽", "\u202e", "\u200f", "\u2066", "a" + "\u0301" * 300, "\ud800", "\udfff", "\u2028",
    "\x85", "مرحبا", "東京", "ß", "İ", "ﷺ", "\U0010ffff", "\u0e01\u0e33", "🇩🇪", "1️⃣", "$TSLA", "...", "-" * 50, "[MASK]", "[PAD]",
)  # fmt: skip
NUMBERS = (0, 1, 0.5, -0.01, 1.02, 2.5, -1, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 10**400, True,
           None, "0.5", [], np.float32(0.3), np.int64(1), 1e999)  # fmt: skip
TOKENS = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\t", b"\n", b"\n\n", b" ", b"\xed\xa0\x80", b"IMGID:", b"IMGID:../x\n",
          b"O", b"I-PER", b"B-", b"\\ud800", b"NaN", b"null", b"1e999", b"[" * 2000, b"{}", b'"', b"9" * 5000, b"\xe2\x80\xa8",
          b"-1", b"true", b"A" * 3000)  # fmt: skip
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def mutated(generator: random.Random, content: bytes) -> bytes:
    """Content with a few bytes changed, cut out, repeated, put in, or cut off."""
    content = bytearray(content)
    for _ in range(generator.choice((0, 0, 1, 1, 2, 5))):
        at = generator.randrange(len(content) + 1)
        to = min(len(content), at + generator.choice((1, 1, 4, 30, 200)))
        kind = generator.randrange(6)
        if kind == 0 and content:
            content[min(at, len(content) - 1)] = generator.randrange(256)
        elif kind == 1:
            del content[at:to]
        elif kind == 2:
            content[at:at] = content[at:to] * generator.choice((1, 2, 20))
        elif kind == 3:
            content[at:at] = generator.choice(TOKENS)
        elif kind == 4 and generator.random() < 0.5:
            del content[at:]
        else:
            content[at:to] = generator.randbytes(to - at)
    return bytes(content)


@cache
def image_files() -> list[bytes]:
    """A small image in every form that posts come with, two forms that are not opened, and files that are no images."""
    base = pure_noise(Image.new("RGB", (40, 30)))
    twelve_bits = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [base.rotate(180)] * 2}
    forms: list[tuple[Image.Image, str, dict]] = [
        (base, "JPEG", {}), (base, "JPEG", {"exif": exif}), (base, "JPEG", {"progressive": True}),
        (base.convert("CMYK"), "JPEG", {}), (base.resize((900, 700)), "JPEG", {}), (base, "MPO", frames),
        (base, "PNG", {}), (base.convert("RGBA"), "PNG", {}), (base.quantize(8), "PNG", {"transparency": 1}),
        (base.convert("I;16"), "PNG", {}), (twelve_bits, "PNG", {}), (base.convert("1"), "PNG", {}),
        (base.convert("LA"), "PNG", {}), (base, "PNG", frames),
        (base, "WEBP", {}), (base.convert("RGBA"), "WEBP", {"lossless": True}), (base, "WEBP", frames),
        (base.quantize(8), "GIF", {}), (base, "GIF", frames), (base, "BMP", {}), (base.quantize(8), "BMP", {}),
        (base, "TIFF", {}), (base, "TIFF", {"compression": "tiff_lzw"}), (base, "TIFF", {"compression": "jpeg"}),
        (base.convert("F"), "TIFF", {}), (base.convert("I"), "TIFF", {}), (twelve_bits, "TIFF", {}),
        (base.convert("CMYK"), "TIFF", {}), (base.convert("L"), "TIFF", {}),
        (base, "AVIF", {"speed": 9}), (base.convert("RGBA"), "AVIF", {"speed": 9}), (base, "AVIF", frames | {"speed": 9}),
        (base, "PPM", {}), (base, "ICO", {}), (Image.new("RGB", (1, 1)), "PNG", {}),
        (Image.new("L", (1, 10_000)), "PNG", {}), (Image.new("1", (11_000, 11_000)), "PNG", {}),
    ]  # fmt: skip
    files = []
    for image, kind, options in forms:
        file = io.BytesIO()
        image.copy().save(file, kind, **options)
        files.append(file.getvalue())
    return [*files, b"", b"<html></html>", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"]


@cache
def _exif_block() -> bytes:
    """An EXIF block with a tag of every kind: numbers, fractions, text, a directory of its own."""
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x0100: 40, 0x011A: 72.5, 0x010E: "a dog", 0x0132: "2017:01:01 00:00:00", 0x0128: 2})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    exif.get_ifd(0x8769).update({0x9000: b"0232", 0x829A: 0.01})
    return exif.tobytes()


def file_with_broken_exif(generator: random.Random) -> bytes:
    """A small intact image with a mutated EXIF block."""
    file = io.BytesIO()
    block = mutated(generator, _exif_block())[:60_000]
    if generator.random() < 0.7 and len(block) > 100:  # a few bytes of the tags' table alone
        block = bytearray(_exif_block())
        for _ in range(generator.choice((1, 2, 4))):
            block[generator.randrange(14, 100)] = generator.choice((0, 1, 2, 5, 7, 10, 12, 255, generator.randrange(256)))
    kind = generator.choice(("JPEG", "JPEG", "PNG", "WEBP", "MPO"))
    Image.new("RGB", (8, 6), "red").save(file, kind, exif=bytes(block))
    return file.getvalue()


def image_file(generator: random.Random) -> bytes:
    """A file of any form, mutated, or one with a mutated EXIF block."""
    if generator.random() < 0.3:
        return file_with_broken_exif(generator)
    return mutated(generator, generator.choice(image_files()))


def image(generator: random.Random) -> Any:
    """Bytes of an image, mostly mutated; or what else someone may give."""
    kind = generator.randrange(12)
    if kind == 0:
        return None
    if kind == 1:
        return generator.choice(("/nowhere.jpg", "", "a" * 5000, "a\x00b", "\ud800", "../..", "/", "/dev/zero", 7, [], {}, b"",
                                 {"bytes": None, "path": None}, {"path": "x", "bytes": 7}, "data:image/png;base64,A",
                                 "data:", "a/" * 3000 + "b", io.BytesIO(), np.zeros((2, 2)), np.zeros((0, 3))))  # fmt: skip
    if kind == 2:
        size = generator.choice(((1, 1), (1, 10_000), (10_000, 1), (7, 9)))
        return Image.new(generator.choice(("RGB", "L", "RGBA", "CMYK", "P", "1", "I", "F", "LAB", "HSV", "YCbCr")), size)
    return image_file(generator) if kind > 4 else generator.choice(image_files())


def text(generator: random.Random) -> Any:
    """Text, a list of words, or what is neither."""
    if generator.random() < 0.03:
        return generator.choice((None, 7, b"x", ["x", 7], [["x"]], {}, [None], ("a", "b")))
    pieces = [generator.choice(PIECES) for _ in range(generator.choice((0, 1, 3, 8, 40)))]
    if generator.random() < 0.004:
        pieces.append(generator.choice(("a" * 100_000, "\u0301" * 50_000, "x " * 20_000, "\u200d" * 50_000)))
    return pieces if generator.random() < 0.3 else generator.choice((" ", "")).join(pieces)


def regions(generator: random.Random) -> dict[str, Any]:
    """Boxes, labels and scores of a post, most of them wrong in some way."""
    count = generator.choice((0, 1, 2, 5))
    boxes: Any = []
    for _ in range(count):
        corners = [sorted(generator.random() for _ in range(2)) for _ in range(2)]
        box: Any = [corners[0][0], corners[1][0], corners[0][1], corners[1][1]]
        if generator.random() < 0.06:
            box[generator.randrange(4)] = generator.choice(NUMBERS)
        if generator.random() < 0.02:
            box = generator.choice((box[:3], box * 2, None, "box", tuple(box), [box], {}))
        boxes.append(box)
    labels: Any = [generator.choice(("dog", "", None, "a b c", generator.choice(PIECES))) for _ in range(count)]
    scores: Any = [generator.choice((0.5, 0.6, 0.7, 0.8, 0.9, generator.choice(NUMBERS))) for _ in range(count)]
    if generator.random() < 0.005:
        boxes, labels, scores = [[0, 0, 1, 1]] * 10_000, None, None
    found = {"boxes": boxes, "box_labels": labels, "box_scores": scores}
    for name in found:
        if generator.random() < 0.03:
            found[name] = generator.choice((None, 5, "x", {}, [[]], [None], np.zeros((2, 4)), np.zeros(3)))
    return found


def post(generator: random.Random) -> Any:
    """A post as the pipeline takes it."""
    if generator.random() < 0.02:
        return generator.choice((7, None, [], {"image": None}, {"text": "a", "picture": None}, {7: 8}))
    made = {"text": text(generator), "image": image(generator)}
    return made | regions(generator) if generator.random() < 0.5 else made


def conll(generator: random.Random, names: list[str]) -> bytes:
    lines = []
    for _ in range(generator.randrange(6)):
        lines.append(f"IMGID:{generator.choice(names)}")
        for _ in range(generator.randrange(5)):
            word = generator.choice(PIECES) if generator.random() < 0.05 else "word"
            lines.append(f"{word}{generator.choice((chr(9), ' '))}{generator.choice(LABELS)}")
        lines.append("")
    return mutated(generator, "\n".join(lines).encode("utf-8", "surrogatepass"))


def json_lines(generator: random.Random, names: list[str], with_regions: bool) -> bytes:
    """Lines of posts, or of regions."""
    lines = []
    for _ in range(generator.randrange(5)):
        row: dict[str, Any] = {"id": generator.choice((*names, 7))}
        if with_regions:
            row |= regions(generator)
        else:
            words = [generator.choice(PIECES) for _ in range(generator.randrange(5))]
            row |= {"tokens": words, "labels": [generator.choice(LABELS) for _ in words]}
        for name in list(row):
            if generator.random() < 0.01:
                row[name] = generator.choice((None, 7, [], {}, "x", [7], [None], 10**400))
        lines.append(json.dumps(row, default=lambda value: value.tolist()))
    return mutated(generator, "\n".join(lines).encode("utf-8", "surrogatepass"))
