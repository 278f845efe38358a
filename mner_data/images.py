"""The image of a post, found in a folder by the post's id or by the file name that the post gives."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import PIL.Image
from huggingface_hub.constants import HF_HUB_CACHE

from processors import ImageError, load_image

from .readers import IMAGE_SUFFIXES, LABEL_FOLDER_NAMES, DataError

FOLDER_NAMES = ("images", "image", "imgs", "img", "pictures", "photos", "img_org")
# UMT's and RpBERT's code expects the images of `data/twitter2017` in this folder, which lies somewhere above.
PUBLISHED_IMAGES = "IJCAI2019_data"
LABEL_STUDIO = ("/data/upload/", "/data/local-files/")
_MAX_NAME_BYTES = 255


class _Listing(NamedTuple):
    """What a folder holds, by the key under which it is looked up: (the name that is compared, the entry's full name)."""

    folders: dict[str, list[tuple[str, str]]]
    files: dict[str, list[tuple[str, str]]]
    # Image files without their suffixes.
    stems: dict[str, list[tuple[str, str]]]
    links: set[str]


class ImageFolder:
    """The images of a folder, found by name without regard to case, to the suffix or to the Unicode form (NFC, NFD).

    Every folder is listed once, when a name in it is looked up first: files that are added later are not found. A name may
    lead to a sub-folder, but not out of the folder. The folder itself may be a link. A link in it may lead to a file
    within the folder or to the Hub's cache, whose snapshots are made of links.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        root = self.folder.resolve()
        self.roots = [root]
        # In the Hub's cache `<repo>/snapshots/<commit>/a.jpg` is a link to `<repo>/blobs/<hash>`.
        self.roots += [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
        self.hub_cache = Path(HF_HUB_CACHE).resolve()
        self._listings: dict[Path, _Listing] = {}

    def find(self, name: str) -> Path | None:
        """The image with this name, or `None`.

        An exact match comes first, then one that differs by case, Unicode form or suffix alone, by the order of
        `IMAGE_SUFFIXES`. The name may have a suffix or not; it may be a path within the folder, also an absolute one. A name
        alone that is not found in the folder may lie in one of its sub-folders (`images/train/a.jpg`).

        Raises:
            DataError: the name leads out of the folder, cannot be a file name, or files fit it equally well.
        """
        parts = self._parts(name)
        path = self._find_below(self.folder, parts, name)
        if path is not None or len(parts) > 1:
            return path
        listing = self._listing(self.folder)
        below = [entry for entries in listing.folders.values() for _, entry in entries if entry not in listing.links]
        found = [path for entry in sorted(below) if (path := self._find_below(self.folder / entry, parts, name))]
        if len(found) > 1:
            paths = " and ".join(str(path.relative_to(self.folder)) for path in found)
            raise DataError(f"image {name!r:.80}: {paths} in {self.folder} both fit it; write the folder before the name")
        return found[0] if found else None

    def _find_below(self, folder: Path, parts: list[str], name: str) -> Path | None:
        """The image at these parts of a path below a folder."""
        *folders, file_name = parts
        for part in folders:
            if (match := _best_match(part, self._listing(folder).folders, folder)) is None:
                return None
            folder = folder / match
            self._check_link(name, folder)
        listing = self._listing(folder)
        stem, suffix = os.path.splitext(file_name)
        match = _best_match(file_name, listing.files, folder) or _best_match(file_name, listing.stems, folder)
        if match is None and suffix.lower() in IMAGE_SUFFIXES:
            match = _best_match(stem, listing.stems, folder)
        if match is None:
            return None
        path = folder / match
        if match in listing.links:
            self._check_link(name, path)
        return path if path.is_file() else None

    def _parts(self, name: str) -> list[str]:
        """A name as the names of folders and a file."""
        if os.path.isabs(name):
            for root in (str(self.folder.absolute()), str(self.roots[0])):
                if name.startswith(root + os.sep):
                    name = name[len(root) + 1 :]
                    break
            else:
                raise DataError(f"image {name!r:.80} leads out of the image folder {self.folder}: it is an absolute path")
        parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
        if ".." in parts:
            raise DataError(f"image {name!r:.80} leads out of the image folder {self.folder}")
        if not parts or "\0" in name or any(len(part.encode("utf-8", "replace")) > _MAX_NAME_BYTES for part in parts):
            raise DataError(f"image {name!r:.80} cannot be the name of an image")
        return parts

    def _listing(self, folder: Path) -> _Listing:
        if folder in self._listings:
            return self._listings[folder]
        listing = _Listing({}, {}, {}, set())
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise DataError(f"the image folder {folder} cannot be listed: {error.strerror}") from error
        for entry in entries:
            if is_link := entry.is_symlink():
                listing.links.add(entry.name)
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                listing.folders.setdefault(_key(entry.name), []).append((entry.name, entry.name))
                continue
            listing.files.setdefault(_key(entry.name), []).append((entry.name, entry.name))
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in IMAGE_SUFFIXES:
                listing.stems.setdefault(_key(stem), []).append((stem, entry.name))
        self._listings[folder] = listing
        return listing

    def _check_link(self, name: str, path: Path):
        """Raises `DataError` if the path leads out of the folder."""
        try:
            target = path.resolve(strict=True)  # from Python 3.13 on, a link to itself is found by this alone
        except FileNotFoundError:  # a link to nothing
            target = path.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise DataError(f"image {name!r:.80} cannot be the name of an image: {error!s:.80}") from error
        inside = any(target.is_relative_to(root) for root in self.roots)
        in_cache = target.is_relative_to(self.hub_cache) and "blobs" in target.relative_to(self.hub_cache).parts
        if not inside and not in_cache:
            raise DataError(
                f"image {name!r:.80} leads out of the image folder {self.folder}: {path.name} is a link to {target}; "
                "copy the file into the folder, or name the folder that the links lead to"
            )


class ImageFinder:
    """The images of posts in one or more folders. A post without an image says why.

    Args:
        image_dir: folder of the images, which are found by the post's `image` or, if it has none, by its `id`.
        label_dir: folder of the label file. A post's `image` may be a path relative to it, such as `images/a.jpg`.
    """

    def __init__(self, image_dir: str | Path | None, label_dir: str | Path | None = None):
        self.images = ImageFolder(image_dir) if image_dir else None
        self.beside_labels = ImageFolder(label_dir) if label_dir else None
        self.folders = [folder for folder in (self.images, self.beside_labels) if folder]

    def find(self, post: dict[str, Any]) -> Path | None:
        """The file of a post's image, or `None`.

        Raises:
            DataError: the name leads out of the folders.
        """
        name = post.get("image")
        if name is None:
            return self.images.find(post["id"]) if self.images else None
        if _is_url(name) or name.startswith(LABEL_STUDIO):
            names = _names_of_files(name)
            return next((path for file in names if self.images and (path := self.images.find(file))), None)
        errors = []
        for folder in self.folders:
            try:
                if path := folder.find(name):
                    return path
            except DataError as error:
                errors.append(error)
        if errors and len(errors) == len(self.folders):
            raise errors[0]
        return None

    def open(self, post: dict[str, Any]) -> tuple[Path | None, PIL.Image.Image | None, str | None]:
        """A post's image file, its image in RGB, and why there is no image if there is none.

        Raises:
            DataError: naming the post, whose image's name leads out of the folders.
        """
        try:
            path = self.find(post)
        except DataError as error:
            raise DataError(f"post {post['id']}: {error}") from error
        if path is None:
            is_url = post.get("image") is not None and _is_url(post["image"])
            return None, None, "a URL, which is not downloaded here" if is_url else "no file"
        try:
            return path, load_image(path), None
        except ImageError as error:
            return path, None, str(error)


def default_image_dir(folder: str | Path) -> Path | None:
    """The folder of the images that belong to the label files of a folder, or `None`.

    It is looked for in this order: `images` in the folder; a usual other name or `…_images` there; `NAME_images` beside a
    folder NAME, as published data sets have it; the usual names beside a folder of label files alone (`txt`); and
    `IJCAI2019_data/NAME_images` somewhere above.

    Raises:
        DataError: there is no `images`, but several of the others.
    """
    folder = Path(folder).absolute()
    if (folder / "images").is_dir():
        return folder / "images"
    matches = _image_folders(folder)
    beside = folder.parent / f"{folder.name}_images"
    if not matches and beside.is_dir():
        return beside
    if not matches and folder.name.lower() in LABEL_FOLDER_NAMES:
        matches = _image_folders(folder.parent)
    published = (parent / PUBLISHED_IMAGES / f"{folder.name}_images" for parent in list(folder.parents)[:3])
    matches = matches or [path for path in published if path.is_dir()][:1]
    if len(matches) > 1:
        raise DataError(
            f"{folder}: expected one folder of images, got {', '.join(path.name for path in matches)}; name it (image_dir)"
        )
    return matches[0] if matches else None


def _image_folders(folder: Path) -> list[Path]:
    """Folders with the usual names of image folders, or else those that end with `_images`, by name.

    `…_aux_images` holds cut-outs of the images, which several published codes make.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    usual = [path for path in folders if path.name.lower() in FOLDER_NAMES]
    return usual or [path for path in folders if re.search("(?<!_aux)[_-]images$", path.name.lower())]


def _best_match(name: str, entries: dict[str, list[tuple[str, str]]], folder: Path) -> str | None:
    """The entry whose name is equal, or else in another Unicode form, or else in another case.

    Raises:
        DataError: several names differ from it by case alone.
    """

    def rank(entry_name: str) -> int:
        return 0 if entry_name == name else 1 if _nfc(entry_name) == _nfc(name) else 2

    matches = entries.get(_key(name), [])
    least = min((rank(entry_name) for entry_name, _ in matches), default=0)
    best = [match for match in matches if rank(match[0]) == least]
    if least == 2 and len({_nfc(entry_name) for entry_name, _ in best}) > 1:
        names = " and ".join(sorted(full_name for _, full_name in best))
        raise DataError(f"image {name!r:.80}: {names} in {folder} all differ from it by case alone; rename one of them")
    return min((full_name for _, full_name in best), key=lambda full_name: (_suffix_order(full_name), full_name), default=None)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    return _nfc(_nfc(name).casefold())


def _names_of_files(address: str) -> list[str]:
    """Names that the file at a web address, or in Label Studio's own folders, will have where someone has downloaded it."""
    if address.startswith(LABEL_STUDIO[1]):
        path = unquote(address.partition("?d=")[2])
        return [path, path.rpartition("/")[2]] if path else []
    name = unquote(re.split(r"[?#]", address)[0].rpartition("/")[2])
    # Label Studio puts eight hexadecimal digits before the name of an uploaded file.
    names = [name, re.sub(r"^[0-9a-f]{8}-", "", name)] if address.startswith(LABEL_STUDIO) else [name]
    return [name for name in names if name]


def _is_url(name: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", name) is not None


def _suffix_order(name: str) -> int:
    suffix = os.path.splitext(name)[1].lower()
    return IMAGE_SUFFIXES.index(suffix) if suffix in IMAGE_SUFFIXES else len(IMAGE_SUFFIXES)
