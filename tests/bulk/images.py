"""Images for the tests of bulk tagging."""

from __future__ import annotations

import io

from PIL import Image


def image_bytes(color: str = "white", size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG file of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()
