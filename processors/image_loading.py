"""Images as the model sees them: upright, in RGB, whatever the file holds."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import os
import threading
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from .fetching import FetchError, fetch

# The only formats that are opened: others start programs (EPS) or are read by code that few people test.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF")
# How files of these formats begin; by this, base64 is told from a file's name.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# A photo of a large camera has 60 million pixels; a bomb has billions.
MAX_PIXELS = 100_000_000
# Threads decode images with more pixels one after another, so that a batch of them does not fill the memory.
LARGE_PIXELS = 10_000_000
_one_at_a_time = threading.Lock()
_one_file_object_at_a_time = threading.Lock()
# glibc keeps freed blocks of up to 32 MiB for the thread that had them; larger ones go back to the system.
_LARGE_BLOCK = 64 * 2**20
# An image is reduced by whole factors, by averaging, to no less than this many times the target size. Pillow's own
# `thumbnail` does so too: a tweet's photo of 1200 x 900 is decoded at half its size for a model of 224 px.
REDUCING_GAP = 2
# Images are converted in strips of about this many pixels: what is large for a moment is small then.
STRIP_PIXELS = 1_000_000
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_SAMPLE_FORMAT, _TIFF_UNSIGNED = 339, (1,)


class ImageError(ValueError):
    """An image that cannot be read, and why."""


def load_image(
    source: Any,
    max_pixels: int = MAX_PIXELS,
    allow_urls: bool = False,
    target_size: tuple[int, int] | None = None,
) -> Image.Image:
    """Open an image.

    Args:
        source: a path, bytes, a file object, a `data:` URI, a base64 string, a dict with `path` or `bytes` (as `datasets`
            keeps them), a PIL image, or an array (height, width), (height, width, 1 | 3 | 4) or (3, height, width).
        max_pixels: an image with more is refused before it is decoded.
        allow_urls: take a URL as well; see `fetching.fetch` for which.
        target_size: height and width that the image will be resized to. A much larger one is reduced while it is decoded;
            `load_reduced` also tells its original size.

    Returns:
        A PIL image in RGB: turned upright by its EXIF orientation, the first frame if it is animated, on white if
        transparent. Values of more than 8 bits and floats are scaled to the range that the image uses. Its box coordinates
        are those of the image as people see it.

    Raises:
        ImageError: what is wrong with it.
    """
    return load_reduced(source, target_size, max_pixels, allow_urls)[0]


def load_reduced(
    source: Any,
    target_size: tuple[int, int] | None,
    max_pixels: int = MAX_PIXELS,
    allow_urls: bool = False,
) -> tuple[Image.Image, tuple[int, int]]:
    """An image as `load_image` gives it, and height and width of its original, upright.

    Raises:
        ImageError: what is wrong with it.
    """
    source = read_source(source, allow_urls)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(source) as image:
                width, height = image.size
                if width == 0 or height == 0:
                    raise ImageError(f"has no pixels: {width} x {height}")
                if width * height > max_pixels:
                    raise ImageError(f"has {width} x {height} pixels; at most {max_pixels:,} are read")
                with _large_images() if width * height > LARGE_PIXELS else contextlib.nullcontext():
                    return _to_rgb(image, target_size, may_draft=image is not source)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"is not an image in a known format: expected one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise errors of a dozen classes for broken files
        raise ImageError(f"is broken: {error} ({type(error).__name__})") from error


@contextlib.contextmanager
def _large_images() -> Iterator[None]:
    """One large image is decoded at a time, in blocks of memory that no thread keeps (Pillow's block allocator)."""
    with _one_at_a_time:
        usual = Image.core.get_block_size()
        Image.core.set_block_size(_LARGE_BLOCK)
        try:
            yield
        finally:
            Image.core.set_block_size(usual)


def content_key(source: Any) -> str:
    """A hash of what an image's file holds, or of a PIL image's or an array's pixels: what is equal has equal keys.

    Raises:
        ImageError: where there is no such file, or a PIL image cannot be read.
    """
    source = read_source(source, allow_urls=False)
    if isinstance(source, Image.Image):
        image = load_image(source)
        digest = hashlib.sha256(repr(image.size).encode())
        for top, bottom in _strips(image):
            digest.update(image.crop((0, top, image.width, bottom)).tobytes())
        return digest.hexdigest()
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"cannot be read: {error}") from error


def read_source(source: Any, allow_urls: bool) -> Image.Image | Path | bytes:
    """What a source of `load_image` stands for: a PIL image, the path of a file that exists, or a file's bytes.

    Raises:
        ImageError: what is wrong with it.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, str):
        if source[:8].lower().startswith(("http://", "https://")):
            source = _fetched(source, allow_urls)
        elif source[:5].lower() == "data:":
            source = _data_uri(source)
    elif isinstance(source, bytearray | memoryview):
        source = bytes(source)
    elif hasattr(source, "read") and not isinstance(source, os.PathLike):
        source = _file_content(source)
    elif hasattr(source, "__array__") and not isinstance(source, Image.Image):
        source = _array_image(source)
    if isinstance(source, Image.Image):
        if isinstance(source, ImageFile.ImageFile) and source.format not in FORMATS:
            raise ImageError(f"has the format {source.format}: expected one of {', '.join(FORMATS)}")
        return source
    if isinstance(source, bytes):
        if not source:
            raise ImageError("is empty: 0 bytes")
        return source
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"expected a path, bytes, a file, an array or a PIL image, got {type(source).__name__}")
    try:
        path = Path(source)
        if path.is_file():
            if path.stat().st_size == 0:
                raise ImageError(f"{path} is empty: 0 bytes")
            return path
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        # A name that is too long or holds a NUL is no file's; it may still be base64.
    content = _base64_image(source) if isinstance(source, str) else None
    if content is None:
        raise ImageError(f"there is no file {str(source).encode('utf-8', 'replace').decode():.200}")
    return content


def _fetched(url: str, allow_urls: bool) -> bytes:
    if not allow_urls:
        raise ImageError(f"is a URL, and URLs are not fetched here: {url:.200}")
    try:
        return fetch(url)
    except FetchError as error:
        raise ImageError(str(error)) from error


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"expected a data URI such as data:image/png;base64,…, got {uri:.80}")
    content = urllib.parse.unquote_to_bytes(body)
    if not head.lower().rstrip().endswith(";base64"):
        return content
    try:
        return _decoded_base64(content)
    except binascii.Error as error:
        raise ImageError(f"expected base64 in a data URI: {error}") from error


def _base64_image(text: str) -> bytes | None:
    """The bytes of an image's file that was written as base64; `None` if the text is something else."""
    try:
        content = _decoded_base64(text.encode("ascii"))
    except ValueError:
        return None
    return content if content.startswith(_BEGINNINGS) or content[4:8] == b"ftyp" else None


def _decoded_base64(text: bytes) -> bytes:
    """Line breaks do not count; the padding may be missing."""
    text = b"".join(text.split()).rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def _file_content(file: Any) -> bytes:
    """All that a file object holds, from its beginning as in `PIL.Image.open`; its position is as before afterwards. Threads may
    share one that can be read again.
    """
    try:
        if not file.seekable():
            content = file.read()
        else:
            with _one_file_object_at_a_time:
                position = file.tell()
                file.seek(0)
                content = file.read()
                file.seek(position)
    except Exception as error:  # any object may stand for a file
        raise ImageError(f"cannot be read: {error} ({type(error).__name__})") from error
    if not isinstance(content, bytes):
        raise ImageError(f"expected a file opened in binary mode, got one that reads {type(content).__name__}")
    return content


def _array_image(source: Any) -> Image.Image:
    """The image that an array's values stand for."""
    try:
        array = np.asarray(source)
        if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
            array = np.moveaxis(array, 0, 2)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4):
            raise ImageError(f"expected numbers (height, width) or (height, width, 1 | 3 | 4), got {array.dtype} {array.shape}")
        if array.size == 0:
            raise ImageError(f"has no pixels: an array {array.shape}")
        if array.dtype != np.uint8:
            array = _eight_bits(array, *_value_range([array]))
        return Image.fromarray(np.ascontiguousarray(array))
    except ImageError:
        raise
    except Exception as error:  # any object may stand for an array
        raise ImageError(f"is no array: {error} ({type(error).__name__})") from error


def _open(source: Image.Image | Path | bytes) -> contextlib.AbstractContextManager[Image.Image]:
    """A PIL image whose pixels need not be decoded yet."""
    if isinstance(source, Image.Image):
        if source.tell():
            source.seek(0)
        return contextlib.nullcontext(source)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # not every build of Pillow has AVIF
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def _to_rgb(image: Image.Image, target_size: tuple[int, int] | None, may_draft: bool) -> tuple[Image.Image, tuple[int, int]]:
    """An opened image upright and in RGB, reduced where the target size allows, and the original's height and width."""
    turn = _TURNS.get(_orientation(image))
    lies_on_its_side = turn is not None and turn.value >= Image.Transpose.ROTATE_90 and turn != Image.Transpose.ROTATE_180
    size = image.size if lies_on_its_side else image.size[::-1]
    factors = (1, 1)
    if target_size is not None:
        height, width = (max(1, side) * REDUCING_GAP for side in (target_size[::-1] if lies_on_its_side else target_size))
        if may_draft:
            image.draft(image.mode, (width, height))  # a JPEG is decoded at a half, a quarter or an eighth
        factors = (max(1, image.width // width), max(1, image.height // height))
    image.load()
    values = _value_range(_arrays(image)) if _needs_scaling(image) else None
    across, down = factors
    rgb = Image.new("RGB", (-(-image.width // across), -(-image.height // down)))
    for top, bottom in _strips(image, down):
        strip = _strip_to_rgb(image, top, bottom, values)
        rgb.paste(strip.reduce(factors) if factors != (1, 1) else strip, (0, top // down))
    return (rgb if turn is None else rgb.transpose(turn)), size


def _orientation(image: Image.Image) -> Any:
    """What the EXIF tag says about which side is up. A block that cannot be read says nothing, as in a browser."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # the block is any bytes, and Pillow's reader of it raises errors of many classes
        return None
    return orientation if isinstance(orientation, int) else None


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """First row and end of every strip; all but the last have a number of rows that `multiple` divides."""
    rows = multiple * max(1, STRIP_PIXELS // (image.width * multiple))
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)


def _strip_to_rgb(image: Image.Image, top: int, bottom: int, values: tuple[float, float] | None) -> Image.Image:
    strip = image.crop((0, top, image.width, bottom))
    if values is not None:
        return Image.fromarray(_eight_bits(_array(image, strip), *values)).convert("RGB")
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")
    return strip.convert("RGB")


def _needs_scaling(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _arrays(image: Image.Image) -> Iterator[np.ndarray]:
    for top, bottom in _strips(image):
        yield _array(image, image.crop((0, top, image.width, bottom)))


def _array(image: Image.Image, strip: Image.Image) -> np.ndarray:
    """A strip's values. Pillow reads a TIFF's unsigned 32 bits as signed ones."""
    array = np.asarray(strip)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and tags.get(_TIFF_SAMPLE_FORMAT, _TIFF_UNSIGNED) == _TIFF_UNSIGNED:
        return array.view(np.uint32)
    return array


def _value_range(arrays: Any) -> tuple[float, float]:
    """The values that are black and white.

    Black is 0, or the least value if that is negative. White is the largest value of the fewest bits of 8, 10, 12, 14, 16, 24,
    31, 32 that hold the image, and 1 for floats in [0, 1]. Where an image uses less than a sixteenth of that, and where
    black is negative, white is the largest value itself.
    """
    low, high, floats = 0.0, 0.0, False
    for array in arrays:
        floats = array.dtype.kind == "f"
        finite = array[np.isfinite(array)] if floats else array
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low < 0:
        return low, high
    if floats and high <= 1:
        return 0.0, 1.0
    white = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 31, 32) if high < 2**bits), high)
    return 0.0, high if 0 < high < white / 16 else white


def _eight_bits(array: np.ndarray, black: float, white: float) -> np.ndarray:
    """Values scaled to 0 to 255; those that are not finite become black or white."""
    scale = 255 / (white - black) if white > black else 0.0
    scaled = (np.asarray(array, dtype=np.float64) - black) * scale
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round().astype(np.uint8)
