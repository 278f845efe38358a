"""Features of a frozen backbone from disk: the same training as with pixels, and each image encoded once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mner_data.synthetic_posts import synthetic_dataset
from modeling_hamlearning import HamLearningModel
from processors import HamLearningImageProcessor, HamLearningProcessor, ImageError
from tests.tiny import tiny_tokenizer
from tests.tiny_model import tiny_model
from training.vision_cache import VisionCache

from ..test_train import run

STEPS = ("--max_steps", "4", "--eval_strategy", "no", "--save_strategy", "no", "--freeze_vision", "true")


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def tiny_processor() -> HamLearningProcessor:
    image_processor = HamLearningImageProcessor(size={"height": 64, "width": 64})
    return HamLearningProcessor(tokenizer=tiny_tokenizer("bert"), image_processor=image_processor)


def count_encoded(monkeypatch) -> list[int]:
    counts: list[int] = []
    own = HamLearningModel.get_image_features

    def counted(self, pixel_values):
        counts.append(len(pixel_values))
        return own(self, pixel_values)

    monkeypatch.setattr(HamLearningModel, "get_image_features", counted)
    return counts


def test_training_from_the_cache_has_the_same_losses_and_encodes_each_image_once(tmp_path, monkeypatch):
    run(tmp_path / "pixels", *STEPS)
    counts = count_encoded(monkeypatch)
    # The report on errors, which --do_eval writes, opens the images themselves.
    cached = ("--vision_cache", str(tmp_path / "cache"), "--do_eval", "false")
    run(tmp_path / "first", *STEPS, *cached)
    encoded = sum(counts)
    kept = len(list((tmp_path / "cache").rglob("*.safetensors")))
    counts.clear()
    run(tmp_path / "again", *STEPS, *cached)
    assert losses(tmp_path / "first") == pytest.approx(losses(tmp_path / "pixels"), rel=1e-4)
    assert losses(tmp_path / "again") == losses(tmp_path / "first")
    assert encoded == kept > 0 and counts == []


def test_the_cache_of_a_backbone_that_trains_is_refused(tmp_path):
    with pytest.raises(ValueError, match="freeze_vision"):
        run(tmp_path, "--max_steps", "1", "--vision_cache", str(tmp_path / "cache"))


def test_other_weights_are_another_cache_and_equal_images_are_one(tmp_path):
    model, processor = tiny_model().model.eval(), tiny_processor()
    cache = VisionCache.of_backbone(tmp_path, model, processor.image_processor)
    images = synthetic_dataset(6, 3, "global")["image"]
    cache.fill([*images, *images, None], model, processor.image_processor)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len({image["bytes"] for image in images})
    feature_map, size = cache.get(images[0])
    pixels = processor.image_processor(images=[processor.load_image(images[0])], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert torch.allclose(feature_map, model.get_image_features(pixels)[0], atol=1e-5)
    width, height = processor.load_image(images[0]).size
    assert size == (height, width)
    assert VisionCache.of_backbone(tmp_path, model, processor.image_processor).folder == cache.folder
    next(model.vision_encoder.parameters()).data.add_(1)
    assert VisionCache.of_backbone(tmp_path, model, processor.image_processor).folder != cache.folder


def test_another_way_to_decode_images_is_another_cache(tmp_path, monkeypatch):
    model, image_processor = tiny_model().model, tiny_processor().image_processor
    folder = VisionCache.of_backbone(tmp_path, model, image_processor).folder
    monkeypatch.setattr("processors.image_loading.REDUCING_GAP", 3)
    assert VisionCache.of_backbone(tmp_path, model, image_processor).folder != folder


def test_a_broken_image_is_left_out_and_named_when_it_is_asked_for(tmp_path):
    model, processor = tiny_model().model.eval(), tiny_processor()
    cache = VisionCache.of_backbone(tmp_path, model, processor.image_processor)
    cache.fill([b"no image"], model, processor.image_processor)
    with pytest.raises(ImageError, match="not an image"):
        cache.get(b"no image")
    with pytest.raises(FileNotFoundError, match="start again"):
        cache.get(Image.new("RGB", (8, 8)))
