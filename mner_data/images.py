"""The image of a post, found in a folder by the post's id or by the name that its file gives."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from processors import ImageError, load_image

from .readers import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", "")


def find_image(image_dir: Path, name: str) -> Path | None:
    """The image of a post, which may not lie outside its folder.

    Raises:
        DataError: a name that leads out of the folder.
    """
    root = image_dir.resolve()
    try:
        for suffix in IMAGE_SUFFIXES:
            path = image_dir / f"{name}{suffix}"
            if not path.resolve().is_relative_to(root):
                raise DataError(f"IMGID {name!r:.80} leads out of the image folder {image_dir}")
            if path.is_file():
                return path
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a link to itself
        raise DataError(f"IMGID {name!r:.80} cannot be the name of an image: {error!s:.80}") from error
    return None


def open_image(image_dir: Path | None, post: dict) -> tuple[Path | None, PIL.Image.Image | None, str | None]:
    """A post's image file, its picture, and why there is no picture if there is none."""
    path = find_image(image_dir, post.get("image") or post["id"]) if image_dir else None
    if path is None:
        return None, None, "no file"
    try:
        return path, load_image(path), None
    except ImageError as error:
        return path, None, str(error)
