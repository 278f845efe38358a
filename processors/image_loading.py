"""Pictures as the model sees them: upright, in RGB, whatever the file holds."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .fetching import FetchError, fetch

# A photo of a large camera has 60 million pixels; a bomb has billions.
MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """A picture that cannot be read, and why."""


def load_image(source: Any, max_pixels: int = MAX_PIXELS, allow_urls: bool = False) -> Image.Image:
    """Open a picture.

    Args:
        source: a path, bytes, a dict with `path` or `bytes` (as `datasets` keeps them), or a PIL image.
        max_pixels: a file with more is refused before it is decoded.
        allow_urls: take a URL as well; see `fetching.fetch` for which.

    Returns:
        A PIL image in RGB: turned upright by its EXIF tag, the first frame if it is animated, on white if transparent,
        16 bits scaled to 8. Its box coordinates are those of the picture as people see it.

    Raises:
        ImageError: what is wrong with it.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not allow_urls:
            raise ImageError(f"is a URL, which is not fetched here: {source:.200}")
        try:
            source = fetch(source)
        except FetchError as error:
            raise ImageError(str(error)) from error
    if isinstance(source, Image.Image):
        try:
            return _to_rgb(source)
        except (OSError, SyntaxError, EOFError) as error:  # opened lazily: its pixels are only read now
            raise ImageError(f"is broken: {error}") from error
    if not isinstance(source, str | Path | bytes):
        raise ImageError(f"a path, bytes or a PIL image is wanted, not {type(source).__name__}")
    if isinstance(source, bytes):
        if not source:
            raise ImageError("is empty: 0 bytes")
        file: Any = io.BytesIO(source)
    else:
        path = Path(source)
        if len(path.name.encode("utf-8", "replace")) > 255 or not path.is_file():
            raise ImageError(f"there is no file {str(path):.200}")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty: 0 bytes")
        file = path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(f"has {image.width} x {image.height} pixels; at most {max_pixels:,} are read")
                return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError("is not a picture in a known format (PNG, JPEG, WebP, GIF …)") from error
    except (OSError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        # What PIL's decoders raise for broken files.
        raise ImageError(f"is broken: {error}") from error
    except ImageError:
        raise
    except (ValueError, TypeError, KeyError, MemoryError, OverflowError) as error:
        raise ImageError(f"is broken: {type(error).__name__} {error}") from error


def content_key(source: Any) -> str:
    """A hash of what a picture's file holds, or of a PIL image's pixels: what is equal has equal keys.

    Raises:
        ImageError: where there is no such file, or a PIL image cannot be read.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, Image.Image):
        image = load_image(source)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    if isinstance(source, str | Path):
        try:
            source = Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise ImageError(f"there is no file {str(source):.200}") from error
    if not isinstance(source, bytes):
        raise ImageError(f"a path, bytes or a PIL image is wanted, not {type(source).__name__}")
    return hashlib.sha256(source).hexdigest()


def _to_rgb(image: Image.Image) -> Image.Image:
    if getattr(image, "is_animated", False):
        image.seek(0)
    if image.width == 0 or image.height == 0:
        raise ImageError(f"has no pixels: {image.width} x {image.height}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
