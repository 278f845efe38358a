from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mner_data.synthetic_images import pure_noise
from processors import HamLearningImageProcessor, ImageError, load_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(size=(60, 40)) -> Image.Image:
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
    "png": lambda: as_bytes(picture(), "PNG"),
    "jpeg": lambda: as_bytes(picture(), "JPEG", quality=95),
    "palette": lambda: as_bytes(picture().quantize(4), "PNG"),
    "palette gif": lambda: as_bytes(picture().quantize(4), "GIF"),
    "cmyk": lambda: as_bytes(picture().convert("CMYK"), "JPEG", quality=95),
    "rgba": lambda: as_bytes(picture().convert("RGBA"), "PNG"),
    "animated gif": lambda: as_bytes(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))] * 3),
    "animated webp": lambda: as_bytes(picture(), "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 40))] * 3),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_shows_the_same_picture(kind):
    image = load_image(FORMATS[kind]())
    assert image.mode == "RGB" and image.size == (60, 40)
    assert quadrants(image) == ["red", "blue", "blue"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation, tmp_path):
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # the Transpose operations that undo each orientation
    inverse = {2: 4, 4: 2}
    stored = picture()
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
    palette = picture().quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert load_image(as_bytes(palette, "PNG", transparency=palette.getpixel((0, 0)))).getpixel((5, 5)) == (255,) * 3


BROKEN = {
    "no bytes": (b"", "is empty"),
    "text": (b"<html><body>404</body></html>", "not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "truncated": (as_bytes(picture((600, 400)), "JPEG")[:2000], "is broken"),
    "truncated png": (as_bytes(pure_noise(Image.new("RGB", (200, 200))), "PNG")[:3000], "is broken"),
    "url": ("https://example.org/a.jpg", "not fetched"),
    "missing": ("/nowhere/a.jpg", "there is no file"),
    "number": (7, "not int"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_pictures_are_named(kind):
    source, message = BROKEN[kind]
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_a_picture_that_breaks_when_its_pixels_are_read():
    half_read = Image.open(io.BytesIO(as_bytes(picture((600, 400)), "JPEG")[:2000]))
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
    pixels = processor(images=[picture(size)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 48)
    if min(size) > 1:
        # Red fills exactly the first half of both sides, as it does in the picture.
        inner = pixels[0, 0] > 0.5
        assert inner[:15, :23].all() and not inner[17:].any() and not inner[:, 25:].any()
    else:
        assert torch.isfinite(pixels).all()
