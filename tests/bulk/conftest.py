"""What the tests of bulk tagging share: a saved model, a folder of images and a Ray."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import pipeline

from tests.bulk.images import image_bytes
from tests.tiny_model import saved_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return saved_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def ner(model):
    return pipeline("mner", model=str(model), trust_remote_code=True)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """An image with the name of a post, a broken one, a link out of the folder, and an image outside."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "images").mkdir()
    (folder / "images" / "photo.png").write_bytes(image_bytes())
    (folder / "images" / "broken.jpg").write_bytes(image_bytes()[:40])
    (folder / "secret.png").write_bytes(image_bytes())
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    return folder / "images"


@pytest.fixture(scope="session")
def on_ray():
    """One Ray for all tests: starting it takes seconds."""
    ray = pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    os.environ |= {"PYTHONPATH": before} if before else {}
