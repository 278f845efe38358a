from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from mner_data.synthetic_images import pure_noise
from processors import HamLearningImageProcessor, ImageError, content_key, image_loading, load_image, load_reduced

RED, BLUE = (255, 0, 0), (0, 0, 255)


def sample_image(size=(60, 40)) -> Image.Image:
    """Blue with a red quarter at the top left."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return image


def as_bytes(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quadrants(image: Image.Image) -> list[str]:
    width, height = image.size
    places = [(width // 4, height // 4), (3 * width // 4, height // 4), (width // 4, 3 * height // 4)]
    return ["red" if image.getpixel(place)[0] > 128 else "blue" for place in places]


FORMATS = {
    "png": lambda: as_bytes(sample_image(), "PNG"),
    "jpeg": lambda: as_bytes(sample_image(), "JPEG", quality=95),
    "palette": lambda: as_bytes(sample_image().quantize(4), "PNG"),
    "palette gif": lambda: as_bytes(sample_image().quantize(4), "GIF"),
    "cmyk": lambda: as_bytes(sample_image().convert("CMYK"), "JPEG", quality=95),
    "rgba": lambda: as_bytes(sample_image().convert("RGBA"), "PNG"),
    "animated gif": lambda: as_bytes(sample_image(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))] * 3),
    "animated webp": lambda: as_bytes(sample_image(), "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 40))] * 3),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_shows_the_same_sample_image(kind):
    image = load_image(FORMATS[kind]())
    assert image.mode == "RGB" and image.size == (60, 40)
    assert quadrants(image) == ["red", "blue", "blue"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation, tmp_path):
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # the Transpose operations that undo each orientation
    inverse = {2: 4, 4: 2}
    stored = sample_image()
    if orientation in turned:
        operation = Image.Transpose(turned[orientation])
        stored = stored.transpose(Image.Transpose(inverse.get(operation.value, operation.value)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    stored.save(path, quality=95, exif=exif)
    assert quadrants(load_image(path)) == ["red", "blue", "blue"]
    assert load_image(path).size == (60, 40)


def test_sixteen_bits_are_scaled_and_transparency_is_white():
    values = np.full((10, 10), 65535, dtype=np.uint16)
    values[:5] = 32768
    image = load_image(as_bytes(Image.fromarray(values), "PNG"))
    assert image.getpixel((0, 9)) == (255, 255, 255) and image.getpixel((0, 0)) == (128, 128, 128)
    clear = load_image(as_bytes(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"))
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    palette = sample_image().quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert load_image(as_bytes(palette, "PNG", transparency=palette.getpixel((0, 0)))).getpixel((5, 5)) == (255,) * 3


BROKEN = {
    "no bytes": (b"", "is empty"),
    "text": (b"<html><body>404</body></html>", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "truncated": (as_bytes(sample_image((600, 400)), "JPEG")[:2000], "is broken"),
    "truncated png": (as_bytes(pure_noise(Image.new("RGB", (200, 200))), "PNG")[:3000], "is broken"),
    "url": ("https://example.org/a.jpg", "not fetched"),
    "missing": ("/nowhere/a.jpg", "there is no file"),
    "number": (7, "got int"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_error_says_what_is_wrong_with_the_file(kind):
    source, message = BROKEN[kind]
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_an_image_that_breaks_when_its_pixels_are_read():
    half_read = Image.open(io.BytesIO(as_bytes(sample_image((600, 400)), "JPEG")[:2000]))
    with pytest.raises(ImageError, match="is broken"):
        load_image(half_read)
    with pytest.raises(ImageError, match="there is no file"):
        load_image("A" * 5000)


def test_a_bomb_is_refused_unread():
    bomb = as_bytes(Image.new("1", (40_000, 40_000)), "PNG")
    assert len(bomb) < 1_000_000
    with pytest.raises(ImageError, match="pixels"):
        load_image(bomb)


@pytest.mark.parametrize("size", [(60, 40), (1, 1), (1, 3000), (880, 100)])
def test_the_transform_resizes_and_never_crops(size):
    processor = HamLearningImageProcessor(size={"height": 32, "width": 48}, image_mean=[0] * 3, image_std=[1] * 3)
    pixels = processor(images=[sample_image(size)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 48)
    if min(size) > 1:
        # Red fills exactly the first half of both sides, as it does in the image.
        inner = pixels[0, 0] > 0.5
        assert inner[:15, :23].all() and not inner[17:].any() and not inner[:, 25:].any()
    else:
        assert torch.isfinite(pixels).all()


def gray_levels(source) -> np.ndarray:
    return np.asarray(load_image(source))[:, :, 0].astype(int)


RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))
VALUES = {
    "12 bits in a 16-bit PNG": lambda: as_bytes(Image.fromarray((RAMP * 4095).astype(np.uint16)), "PNG"),
    "12 bits in a 16-bit TIFF": lambda: as_bytes(Image.fromarray((RAMP * 4095).astype(np.uint16)), "TIFF"),
    "16 bits": lambda: as_bytes(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG"),
    "8 bits in a 16-bit file": lambda: as_bytes(Image.fromarray((RAMP * 255).round().astype(np.uint16)), "TIFF"),
    "floats in [0, 1]": lambda: as_bytes(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "floats in [0, 255]": lambda: as_bytes(Image.fromarray((RAMP * 255).astype(np.float32)), "TIFF"),
    "floats in [-1, 1]": lambda: as_bytes(Image.fromarray((RAMP * 2 - 1).astype(np.float32)), "TIFF"),
    "31 bits": lambda: as_bytes(Image.fromarray((RAMP * (2**31 - 1)).astype(np.int32)), "TIFF"),
    "32-bit integers up to 100,000": lambda: Image.fromarray((RAMP * 100_000).astype(np.int32)),
    "an array of 64-bit floats": lambda: RAMP,
    "an array of 16 bits": lambda: (RAMP * 65535).astype(np.uint16),
    "an array with channels first": lambda: np.stack([RAMP] * 3),
    "an array with channels last": lambda: np.stack([RAMP] * 3, axis=2),
    "a tensor": lambda: torch.tensor(RAMP),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_scaled_to_what_the_image_holds(kind):
    assert np.abs(gray_levels(VALUES[kind]()) - RAMP * 255).max() <= 1


@pytest.mark.parametrize("kind, values, white", [
    ("floats in [0, 1]", (RAMP * 0.4).astype(np.float32), 1),
    ("12 bits", (RAMP * 3000).astype(np.uint16), 4095),
    ("16 bits", (RAMP * 30_000).astype(np.uint16), 65535),
])  # fmt: skip
def test_a_dark_image_stays_dark(kind, values, white):
    """White is the largest value that the kind can have, not the largest one in the image."""
    assert np.abs(gray_levels(as_bytes(Image.fromarray(values), "TIFF")) - values / white * 255).max() <= 1


def test_values_that_are_not_finite_and_masks_of_zero_and_one():
    values = RAMP.copy()
    values[0, :3] = np.nan, np.inf, -np.inf
    assert gray_levels(values)[0, :4].tolist() == [0, 255, 0, 12] and gray_levels(values).max() == 255
    assert set(gray_levels((RAMP > 0.5).astype(np.int32)).ravel()) == set(gray_levels(RAMP > 0.5).ravel()) == {0, 255}
    assert not gray_levels(np.zeros((3, 3))).any()


def test_an_unsigned_tiff_of_32_bits():
    content = bytearray(as_bytes(Image.fromarray((RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32)), "TIFF"))
    signed = bytes((0x53, 0x01, 3, 0, 1, 0, 0, 0, 2))  # the tag for the form of the values: 2 is signed, 1 unsigned
    content[content.index(signed) + 8] = 1
    assert np.abs(gray_levels(bytes(content)) - RAMP * 255).max() <= 1


PNG = as_bytes(sample_image(), "PNG")
SOURCES = {
    "data URI": lambda: "data:image/png;base64," + base64.b64encode(PNG).decode(),
    "data URI in capitals without base64": lambda: "DATA:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    "base64": lambda: base64.b64encode(PNG).decode(),
    "base64 in lines without padding": lambda: base64.encodebytes(PNG).decode().rstrip("=\n"),
    "file object": lambda: io.BytesIO(PNG),
    "bytearray": lambda: bytearray(PNG),
    "memoryview": lambda: memoryview(PNG),
    "dict": lambda: {"bytes": PNG, "path": None},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_form_of_an_image_is_read_and_has_its_files_key(kind):
    source = SOURCES[kind]()
    assert quadrants(load_image(source)) == ["red", "blue", "blue"]
    assert content_key(source) == content_key(PNG)
    assert load_image(source).size == (60, 40), "a file object can be read again"


def test_the_key_of_a_file_is_that_of_its_bytes_and_pixels_have_their_own(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert content_key(tmp_path / "a.png") == content_key(str(tmp_path / "a.png")) == content_key(PNG)
    assert content_key(sample_image()) == content_key(np.asarray(sample_image())) != content_key(sample_image((61, 40)))


NO_IMAGES = {
    "NUL": ("a\0b.png", "there is no file"),
    "long name": ("x" * 300 + ".png", "there is no file"),
    "long part of a path": (f"/tmp/{'x' * 300}/a.png", "there is no file"),
    "long path": ("a/" * 5000 + "b.png", "there is no file"),
    "half a character": ("\ud800.png", "there is no file"),
    "folder": ("/tmp", "there is no file"),
    "device": ("/dev/zero", "there is no file"),
    "URL in capitals": ("HTTPS://example.org/a.jpg", "not fetched"),
    "data URI without data": ("data:image/png;base64", "expected a data URI"),
    "data URI that is no base64": ("data:image/png;base64,!!!", "expected base64"),
    "empty data URI": ("data:,", "is empty"),
    "base64 of text": (base64.b64encode(b"no image at all" * 9).decode(), "there is no file"),
    "text file": (io.StringIO("a"), "binary mode"),
    "words as an array": (np.array(["a"]), "expected numbers"),
    "array of two channels": (np.zeros((5, 5, 2)), "expected numbers"),
    "empty array": (np.zeros((0, 5)), "has no pixels"),
    "complex numbers": (np.zeros((5, 5), complex), "expected numbers"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_error_says_what_is_wrong_with_the_source(kind):
    source, message = NO_IMAGES[kind]
    with pytest.raises(ImageError, match=message) as raised:
        load_image(source)
    str(raised.value).encode()
    with pytest.raises(ImageError):
        content_key(source)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "JPEG2000", "EPS", "TGA", "PCX", "SGI", "DDS", "SPIDER", "IM"])
def test_other_formats_are_refused(kind, tmp_path):
    image = sample_image().convert("F" if kind == "SPIDER" else "RGB")
    image.save(tmp_path / "image", kind)
    for source in (tmp_path / "image", (tmp_path / "image").read_bytes()):
        with pytest.raises(ImageError, match="known format: expected one of JPEG, PNG"):
            load_image(source)
    with Image.open(tmp_path / "image") as opened, pytest.raises(ImageError, match="expected one of JPEG, PNG"):
        load_image(opened)


@pytest.mark.parametrize("odd", ["fraction below zero", "text as a width", "text as an orientation", "cut off", "noise"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_tags_do_not_matter_for_the_turn(kind, odd):
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x011A: 72.0, 0x0100: 40})
    block = bytearray(exif.tobytes())
    first = block.index(b"MM\0*" if b"MM\0*" in block else b"II*\0")
    order = "big" if block[first : first + 2] == b"MM" else "little"

    def tag(number: int) -> int:
        """Where a tag's twelve bytes begin: number, type, count, value."""
        return block.index(number.to_bytes(2, order), first + 10)

    if odd == "fraction below zero":
        block[tag(0x011A) + 2 : tag(0x011A) + 4] = (10).to_bytes(2, order)  # a signed fraction
        at = first + int.from_bytes(block[tag(0x011A) + 8 : tag(0x011A) + 12], order)
        block[at : at + 8] = (2**32 - 1).to_bytes(4, order) + bytes(4)
    elif odd == "cut off":
        del block[first + 9 :]
    elif odd == "noise":
        block[first + 8 :] = np.random.default_rng(0).bytes(len(block) - first - 8)
    else:
        place = tag(0x0100 if odd == "text as a width" else 0x0112)
        block[place + 2 : place + 4] = (2).to_bytes(2, order)
    image = load_image(as_bytes(sample_image(), kind, exif=bytes(block)))
    assert image.size == ((40, 60) if odd in ("fraction below zero", "text as a width") else (60, 40))


@pytest.mark.parametrize("error", [struct.error, AttributeError, KeyError, SyntaxError])
def test_an_exif_block_that_cannot_be_read_costs_no_image(error, monkeypatch):
    def read(_):
        raise error("odd")

    monkeypatch.setattr("PIL.Image.Image.getexif", read)
    for kind in ("png", "jpeg"):
        assert quadrants(load_image(FORMATS[kind]())) == ["red", "blue", "blue"]


@pytest.mark.parametrize("error", [AttributeError, KeyError, RecursionError, MemoryError, AssertionError, NotImplementedError])
def test_any_error_of_a_decoder_is_an_image_error(error, monkeypatch):
    def load(*_):
        raise error("odd")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageError, match=f"is broken: .*odd.*{error.__name__}"):
        load_image(PNG)


REDUCED = {
    "jpeg": lambda image: as_bytes(image, "JPEG", quality=95),
    "png": lambda image: as_bytes(image, "PNG"),
    "palette": lambda image: as_bytes(image.quantize(4), "PNG"),
    "transparent": lambda image: as_bytes(image.convert("RGBA"), "WEBP", lossless=True),
    "cmyk": lambda image: as_bytes(image.convert("CMYK"), "JPEG", quality=95),
    "pil": lambda image: image,
    "array": np.asarray,
}


@pytest.mark.parametrize("kind", REDUCED)
@pytest.mark.parametrize("size", [(1500, 900), (100, 2000), (3000, 7)])
def test_large_images_are_reduced_and_look_the_same(kind, size):
    source = REDUCED[kind](sample_image(size))
    image, (height, width) = load_reduced(source, (32, 48))
    assert (width, height) == size
    for side, original, target in ((image.width, width, 48), (image.height, height, 32)):
        assert min(original, 2 * target) <= side <= max(4 * target, original // 2) and side <= original
    processor = HamLearningImageProcessor(size={"height": 32, "width": 48}, do_normalize=False)
    pixels = processor(images=[load_image(source), image], return_tensors="pt")["pixel_values"]
    assert (pixels[0] - pixels[1]).abs().max() < 0.15 and (pixels[0] - pixels[1]).abs().mean() < 0.005
    assert load_reduced(source, None)[0].size == load_image(source).size == size


def test_a_photo_is_decoded_as_small_as_its_format_allows(monkeypatch):
    """JPEG has a half, a quarter and an eighth; what is decoded at full size takes the memory before it is reduced."""
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size) or load(self))
    image, size = load_reduced(as_bytes(sample_image((1600, 1200)), "JPEG"), (100, 100))
    assert decoded[0] == (400, 300) and size == (1200, 1600) and quadrants(image) == ["red", "blue", "blue"]


def test_a_turned_image_is_reduced_by_its_upright_sides():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.new("RGB", (200, 4000), "red")
    stored = as_bytes(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    image, size = load_reduced(stored, (100, 60))
    assert size == (4000, 200) and 120 <= image.width <= 200 and 200 <= image.height < 500


def test_large_images_are_decoded_one_after_another(monkeypatch):
    """However many threads open them; what that saves is measured by the slow test below."""
    load, running, at_once = ImageFile.ImageFile.load, [], []

    def slow_load(self):
        running.append(self)
        at_once.append(len(running))
        time.sleep(0.02)
        result = load(self)
        running.pop()
        return result

    monkeypatch.setattr(ImageFile.ImageFile, "load", slow_load)
    monkeypatch.setattr(image_loading, "LARGE_PIXELS", 60 * 40 - 1)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(load_image, [PNG] * 4))
    assert set(at_once) == {1}


def png_of_zeros(side: int, color: int, bits: int, channels: int) -> bytes:
    """A black image whose file is small."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    packer, line = zlib.compressobj(9), bytes(1 + (side * channels * bits + 7) // 8)
    packed = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    header = side.to_bytes(4, "big") * 2 + bytes((bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


MEASURE = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from processors import load_reduced
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(4) as threads:
    images = list(threads.map(lambda path: load_reduced(path, (224, 224)), sys.argv[1:]))
assert all(size == (9_999, 9_999) and image.width < 1400 for image, size in images)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [("one bit", 0, 1, 1), ("gray", 0, 8, 1), ("16 bits", 0, 16, 1), ("color", 2, 8, 3)])
def test_small_files_of_many_pixels_need_little_memory(kind, tmp_path):
    """Four at once, as the pipeline's threads open them."""
    (tmp_path / "large.png").write_bytes(png_of_zeros(9_999, *kind[1:]))
    assert (tmp_path / "large.png").stat().st_size < 1_500_000
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *[str(tmp_path / "large.png")] * 4], check=True, capture_output=True, text=True
    )
    assert int(run.stdout) < 500
