"""Images of posts are found as a person would find them, and never outside their folder."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from mner_data import images as images_module
from mner_data.images import ImageFinder, ImageFolder, default_image_dir
from mner_data.loading import load_splits
from mner_data.readers import IMAGE_SUFFIXES, DataError
from processors import load_image


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_found_in_every_case(suffix, spell, tmp_path):
    path = touch(tmp_path / f"a.b{spell(suffix)}")
    folder = ImageFolder(tmp_path)
    for name in ("a.b", "A.B", f"a.b{suffix}", f"./a.b{suffix}", str(path)):
        assert folder.find(name) == path
    assert folder.find("a") is None and folder.find("b") is None


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPG", ".jpeg", ".jfif", ".png", ".PNG", ".webp", ".gif", ".bmp", ".tif", ".TIFF", ".avif"]
)
def test_the_usual_suffixes_are_among_those_that_are_found(suffix, tmp_path):
    assert ImageFolder(tmp_path).find(touch(tmp_path / f"16_05_01_6{suffix}").stem) == tmp_path / f"16_05_01_6{suffix}"


def test_every_suffix_is_one_that_is_read(tmp_path):
    """`.jfif` and `.mpo` are JPEG; the others are named after their format."""
    image = Image.new("RGB", (9, 9))
    for suffix in IMAGE_SUFFIXES:
        kind = {".jfif": "JPEG", ".mpo": "MPO"}.get(suffix)
        if suffix != ".avif" or "avif" in {name[1:] for name in Image.registered_extensions()}:
            image.save(tmp_path / f"a{suffix}", kind)
            assert load_image(tmp_path / f"a{suffix}").size == (9, 9)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
@pytest.mark.parametrize("name", ["Zoë", "Ångström", "한국", "İstanbul", "STRASSE"])
def test_unicode_forms_are_alike(name, forms, tmp_path):
    path = touch(tmp_path / f"{unicodedata.normalize(forms[0], name)}.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.find(unicodedata.normalize(forms[1], name)) == path
    assert folder.find(unicodedata.normalize(forms[1], name) + ".jpg") == path


def test_the_best_match_wins(tmp_path):
    for name in ("x.png", "x.jpg", "X.jpg", "y.PNG", "Y.jpg", "z", "z.jpg", "w.jpg"):
        touch(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert folder.find("x") == tmp_path / "x.jpg"
    assert folder.find("X") == tmp_path / "X.jpg"
    assert folder.find("x.png") == tmp_path / "x.png"
    assert folder.find("y") == tmp_path / "y.PNG", "the same case is closer than an earlier suffix"
    assert folder.find("z") == tmp_path / "z"
    assert folder.find("w.png") == tmp_path / "w.jpg", "the image was saved in another format"
    assert folder.find("w.txt") is None


def test_two_names_that_differ_by_case_alone_are_refused(tmp_path):
    for name in ("aB.jpg", "AB.png"):
        touch(tmp_path / name)
    folder = ImageFolder(tmp_path)
    assert folder.find("aB") == tmp_path / "aB.jpg"
    with pytest.raises(DataError, match="'ab': AB.png and aB.jpg .* differ from it by case alone"):
        folder.find("ab")


def test_names_in_sub_folders(tmp_path):
    path = touch(tmp_path / "Part1" / "a.JPG")
    folder = ImageFolder(tmp_path)
    for name in ("Part1/a", "part1/A.jpg", "part1\\a.jpg", "./part1//a", str(path), str(tmp_path / "part1" / "a")):
        assert folder.find(name) == path
    assert folder.find("part2/a") is None and folder.find("Part1") is None and folder.find("Part1/a/b") is None


@pytest.mark.parametrize("name", ["../s", "a/../../s", "..", "..\\s", "/etc/hostname", "{tmp}/s.jpg", "{tmp}/images/../s.jpg",
                                  "{tmp}/images-more/s"])  # fmt: skip
def test_a_name_cannot_leave_the_folder(name, tmp_path):
    for path in ("s.jpg", "images-more/s.jpg", "images/a/b.jpg"):
        touch(tmp_path / path)
    with pytest.raises(DataError, match="leads out of the image folder"):
        ImageFolder(tmp_path / "images").find(name.replace("{tmp}", str(tmp_path)))


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "b/" + "a" * 300, "é" * 200, "", "/", "."])
def test_what_no_file_can_be_named_is_refused(name, tmp_path):
    with pytest.raises(DataError, match="cannot be the name of an image|leads out"):
        ImageFolder(tmp_path).find(name)


def test_the_folder_and_folders_in_it_may_be_links(tmp_path):
    touch(tmp_path / "disk" / "a.jpg")
    touch(tmp_path / "disk" / "part" / "b.jpg")
    (tmp_path / "disk" / "c.jpg").symlink_to("part/b.jpg")
    (tmp_path / "disk" / "again").symlink_to("part")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    folder = ImageFolder(tmp_path / "images")
    assert folder.find("a") == tmp_path / "images" / "a.jpg"
    assert folder.find("c") == tmp_path / "images" / "c.jpg"
    assert folder.find("again/b") == tmp_path / "images" / "again" / "b.jpg"
    assert folder.find(str(tmp_path / "disk" / "a.jpg")) == tmp_path / "images" / "a.jpg"


@pytest.mark.parametrize("target", ["../secret.jpg", "{tmp}/secret.jpg", "/etc/hostname", "../images-more/secret.jpg"])
def test_a_link_cannot_leave_the_folder(target, tmp_path):
    for path in ("secret.jpg", "images-more/secret.jpg", "images/b.jpg"):
        touch(tmp_path / path)
    (tmp_path / "images" / "a.jpg").symlink_to(target.replace("{tmp}", str(tmp_path)))
    (tmp_path / "images" / "up").symlink_to("..")
    folder = ImageFolder(tmp_path / "images")
    with pytest.raises(DataError, match=r"leads out of the image folder .*: a\.jpg is a link to /.*copy the file"):
        folder.find("a")
    with pytest.raises(DataError, match="up is a link to"):
        folder.find("up/secret")
    assert folder.find("b")


def test_links_to_themselves_and_to_nothing(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nothing.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.find("gone") is None
    with pytest.raises(DataError, match="cannot be the name of an image"):
        folder.find("loop")


def hub_snapshot(cache: Path) -> Path:
    """A data set in the Hub's cache, whose files are links to blobs."""
    repo = cache / "datasets--someone--posts"
    blob = repo / "blobs" / "5f3a"
    blob.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(blob, "PNG")
    snapshot = repo / "snapshots" / "0123"
    (snapshot / "images").mkdir(parents=True)
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/5f3a")
    (snapshot / "train.txt").write_text("IMGID:a\nx\tO\n")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    return snapshot


@pytest.mark.parametrize("is_default_cache", [True, False])
def test_a_snapshot_in_the_cache_of_the_hub(is_default_cache, tmp_path, monkeypatch):
    if is_default_cache:
        monkeypatch.setattr(images_module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = hub_snapshot(tmp_path / "hub")
    data, _ = load_splits(str(snapshot))
    assert data["train"][0]["image"]["path"] == str(snapshot / "images" / "a.png")
    # Only blobs: not what else lies in the cache, and not other links out of it.
    (snapshot / "images" / "ref.png").symlink_to("../../../refs/main")
    (snapshot / "images" / "out.png").symlink_to("/etc/hostname")
    for name in ("ref", "out"):
        with pytest.raises(DataError, match="leads out"):
            ImageFolder(snapshot / "images").find(name)


def test_a_folder_of_links_to_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = hub_snapshot(tmp_path / "hub")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "a.png").symlink_to(snapshot / "images" / "a.png")
    assert ImageFolder(tmp_path / "local").find("a") == tmp_path / "local" / "a.png"


def test_a_large_folder_is_listed_once(tmp_path, monkeypatch):
    for number in range(20_000):
        (tmp_path / f"{number}.JPG").touch()
    calls = []
    monkeypatch.setattr(images_module.os, "scandir", lambda folder, scandir=os.scandir: calls.append(folder) or scandir(folder))
    folder, start = ImageFolder(tmp_path), time.perf_counter()
    assert all(folder.find(str(number)) for number in range(20_000))
    assert not any(folder.find(f"x{number}") for number in range(20_000))
    assert len(calls) == 1 and time.perf_counter() - start < 20


def test_paths_of_posts_are_relative_to_the_images_or_to_the_label_file(tmp_path):
    for path in ("images/a.jpg", "other/b.jpg", "c.jpg"):
        touch(tmp_path / path)
    finder = ImageFinder(tmp_path / "images", tmp_path)
    for name, path in (("a", "images/a.jpg"), ("images/a.jpg", "images/a.jpg"), ("other/b.jpg", "other/b.jpg"), ("c", "c.jpg")):
        assert finder.find({"id": "1", "image": name}) == tmp_path / path
    assert finder.find({"id": "a"}) == tmp_path / "images" / "a.jpg"
    assert finder.find({"id": "c"}) is None, "ids name images of the image folder alone"
    assert finder.find({"id": "1", "image": str(tmp_path / "other" / "b.jpg")}) == tmp_path / "other" / "b.jpg"
    for name in ("../x.jpg", "/etc/hostname"):
        with pytest.raises(DataError, match="leads out"):
            finder.find({"id": "1", "image": name})
    assert finder.open({"id": "1", "image": "https://example.org/z.jpg"})[2] == "a URL, which is not downloaded here"
    assert finder.open({"id": "z"})[2] == "no file"
    assert ImageFinder(None, tmp_path).find({"id": "1", "image": "other/b.jpg"}) == tmp_path / "other" / "b.jpg"
    assert ImageFinder(None).find({"id": "a"}) is None


def test_the_folder_of_images_is_found_under_its_usual_names(tmp_path):
    labels = tmp_path / "twitter2017"
    labels.mkdir()
    assert default_image_dir(labels) is None
    (tmp_path / "twitter2017_images").mkdir()
    assert default_image_dir(labels) == tmp_path / "twitter2017_images"
    (labels / "Images").mkdir()
    assert default_image_dir(labels) == labels / "Images"
    (labels / "photos").mkdir()
    with pytest.raises(DataError, match="expected one folder of images, got Images, photos"):
        default_image_dir(labels)
    (labels / "images").mkdir()
    assert default_image_dir(labels) == labels / "images"


@pytest.mark.parametrize(("labels", "images"), [
    ("data", "data/twitter2017_images"),
    ("NER_data/twitter2017", "NER_data/twitter2017_images"),
    ("RE_data/txt", "RE_data/img_org"),
    ("Twitter10000_v2.0/txt", "Twitter10000_v2.0/images"),
    ("UMT/data/twitter2017", "IJCAI2019_data/twitter2017_images"),
])  # fmt: skip
def test_the_folder_of_images_is_found_where_published_data_have_it(labels, images, tmp_path):
    for folder in (labels, images, f"{images.rpartition('/')[0]}/twitter2017_aux_images"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert default_image_dir(tmp_path / labels) == tmp_path / images


def test_an_image_in_a_sub_folder_and_the_downloaded_file_of_a_url(tmp_path):
    for path in ("train/a.jpg", "val/b.jpg", "train/c.jpg", "val/c.jpg", "d.jpg", "val/d.jpg"):
        touch(tmp_path / path)
    folder = ImageFolder(tmp_path)
    assert folder.find("a.jpg") == tmp_path / "train" / "a.jpg" and folder.find("B") == tmp_path / "val" / "b.jpg"
    assert folder.find("d") == tmp_path / "d.jpg", "the folder itself comes first"
    with pytest.raises(DataError, match=r"'c.jpg': train/c.jpg and val/c.jpg in .* both fit it"):
        folder.find("c.jpg")
    finder = ImageFinder(tmp_path)
    assert finder.find({"id": "1", "image": "https://pbs.example.org/media/d.jpg?name=large"}) == tmp_path / "d.jpg"
    assert finder.open({"id": "1", "image": "https://example.org/e.jpg"})[2] == "a URL, which is not downloaded here"
