from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForObjectDetection, YolosConfig, YolosImageProcessor

from mner_data.synthetic_images import pure_noise
from processors import HamLearningImageProcessor, HamLearningProcessor
from tests.tiny import FAMILIES, tiny_tokenizer

WORDS = "Jordan scores unbelievable photographs on the court in Amazon park #NBA championships \u200d \ufe0f".split(" ")


def make_processor(family="bert", **options) -> HamLearningProcessor:
    image_processor = HamLearningImageProcessor(size={"height": 32, "width": 32})
    return HamLearningProcessor(tokenizer=tiny_tokenizer(family), image_processor=image_processor, **options)


def long_post(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [WORDS[place] for place in generator.integers(0, len(WORDS), count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [None, 16])
def test_every_word_points_at_its_first_subtoken(family, max_length):
    """Against each word's place in the whole post tokenized without a limit, and the best window found by trying all."""
    processor = make_processor(family, max_length=max_length)
    tokenizer = tiny_tokenizer(family)
    posts = [long_post(40), long_post(3, 1), [], ["\u200d"], ["unbelievable" * 12, "Jordan"], long_post(90, 2)]
    features = processor(text=posts, is_split_into_words=True)
    limit = max_length or 64
    for post, words in enumerate(posts):
        assert features["word_mask"][post].sum() == len(words)
        whole = tokenizer([words], is_split_into_words=True, add_special_tokens=False)
        word_ids = whole.word_ids(0)
        ids = features["input_ids"][post]
        mask = features["attention_mask"][post].bool()
        windows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True) if keep.any()]
        content = [window[1:-1] for window in windows]
        assert all(len(window) <= limit for window in windows)
        starts, done = [], 0
        for index, window in enumerate(content):  # where each window begins in the whole post
            step = (limit - 2) - int((limit - 2) * 0.25)
            starts.append(index * step)
            assert window == whole["input_ids"][0][starts[-1] : starts[-1] + len(window)]
            done = max(done, starts[-1] + len(window))
        assert done == len(word_ids)  # nothing is silently dropped
        for word in range(len(words)):
            position = int(features["word_positions"][post, word])
            if word not in word_ids:
                assert position == -1
                continue
            first = word_ids.index(word)
            window, column = divmod(position, ids.shape[1])
            assert starts[window] + column - 1 == first
            context = {
                index: min(first - start, start + len(content[index]) - 1 - first)
                for index, start in enumerate(starts)
                if start <= first < start + len(content[index])
            }
            assert context[window] == max(context.values())
    assert (features["word_positions"][~features["word_mask"]] == -1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_strings_equal_their_words(family):
    processor = make_processor(family)
    text = "RT @joe: Jordan at #NBA in Amazon park!"
    raw, split = processor(text=text), processor(text=[processor.split_words(text)[0]], is_split_into_words=True)
    assert all(torch.equal(raw[name], split[name]) for name in raw)


def test_forms_of_text():
    processor = make_processor()
    one = processor(text=["Jordan", "scores"], is_split_into_words=True)
    two = processor(text=["Jordan", "scores"])
    assert one["word_mask"].shape == (1, 2) and two["word_mask"].shape == (2, 1)
    assert processor(text=[["Jordan", "scores"], []])["word_mask"].tolist() == [[True, True], [False, False]]
    image = Image.new("RGB", (20, 10))
    single = processor(text="Jordan", images=image, boxes=[[0, 0, 1, 1]], box_labels=["dog"], box_scores=[0.5])
    listed = processor(text=["Jordan"], images=[image], boxes=[[[0, 0, 1, 1]]], box_labels=[["dog"]], box_scores=[[0.5]])
    assert all(torch.equal(single[name], listed[name]) for name in listed)


def test_images_and_regions_of_a_mixed_batch():
    processor = make_processor()
    images = [Image.new("RGB", (90, 50)), None, Image.new("L", (10, 80))]
    features = processor(
        text=["a dog", "no photo", "the park"],
        images=images,
        boxes=[[[0.1, 0.2, 0.5, 0.6]], [[0, 0, 1, 1]], None],
        box_labels=[["dog with a trophy"], ["bridge"], None],
    )
    assert features["has_image"].tolist() == [True, False, True]
    assert features["image_sizes"].tolist() == [[50, 90], [1, 1], [80, 10]]
    assert not features["pixel_values"][1].any()
    assert features["region_mask"].tolist() == [[True] + [False] * 3, [False] * 4, [True] * 4]
    assert features["region_boxes"][0, 0].tolist() == pytest.approx([0.1, 0.2, 0.5, 0.6])
    label = tiny_tokenizer("bert")(["dog", "with", "a", "trophy"], is_split_into_words=True, add_special_tokens=False)
    kept = features["region_label_ids"][0, 0]
    assert kept[kept != tiny_tokenizer("bert").pad_token_id].tolist() == label["input_ids"][:8]
    assert "pixel_values" not in processor(text=["a", "b"], images=[None, None])


def test_the_best_regions_are_kept_in_their_order():
    processor = make_processor(region_config={"name": "precomputed", "max_regions": 2})
    boxes = [[0, 0, 0.1, 0.1], [0, 0, 0.2, 0.2], [0, 0, 0.3, 0.3]]
    (regions,) = processor.extract_regions([Image.new("RGB", (4, 4))], [boxes], None, [[0.5, 0.1, 0.9]])
    assert regions == {"boxes": [boxes[0], boxes[2]], "box_labels": ["", ""], "box_scores": [0.5, 0.9]}
    many = processor.extract_regions([Image.new("RGB", (4, 4))], [[[0, 0, 1, 1]] * 10_000])
    assert len(many[0]["boxes"]) == 2


WRONG = {
    "not a number": ({"boxes": [None, [[0, 0, float("nan"), 1]]]}, "post 1, field boxes, box 0.*finite"),
    "reversed": ({"boxes": [[[0.5, 0, 0.1, 1]], None]}, "post 0, field boxes, box 0.*reversed"),
    "pixels": ({"boxes": [[[5, 0, 100, 100]], None]}, "looks like pixels"),
    "three numbers": ({"boxes": [[[0, 0, 1]], None]}, "four numbers"),
    "words": ({"boxes": [["left"], None]}, "four numbers"),
    "label count": ({"boxes": [[[0, 0, 1, 1]], None], "box_labels": [["a", "b"], None]}, "2 values for 1 boxes"),
    "label type": ({"boxes": [[[0, 0, 1, 1]], None], "box_labels": [[3], None]}, "box_labels, box 0: a string"),
    "score": ({"boxes": [[[0, 0, 1, 1]], None], "box_scores": [["high"], None]}, "box_scores, box 0: a finite"),
    "post count": ({"boxes": [None]}, "boxes: 1 entries for 2 posts"),
    "image": ({"images": [None, "/nowhere.png"]}, "post 1, field image: there is no file"),
    "image count": ({"images": [None]}, "images: 1 entries for 2 posts"),
    "text": ({"text": ["fine", 7]}, "post 1, field text"),
    "no post": ({"text": [], "images": None}, "text: an empty list"),
    "labels alone": ({"box_labels": [["a"], None]}, "post 0, field boxes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_named(kind):
    change, message = WRONG[kind]
    given = {"text": ["a", "b"], "images": [Image.new("RGB", (4, 4))] * 2} | change
    with pytest.raises(ValueError, match=message):
        make_processor()(**given)


def test_boxes_may_be_arrays_or_tensors():
    boxes = [[0.0, 0.25, 0.5, 1.0]]
    images = [Image.new("RGB", (4, 4))] * 4
    given = [np.array(boxes, dtype=np.float32), torch.tensor(boxes), [np.array(boxes[0])], boxes]
    assert all(found["boxes"] == boxes for found in make_processor().extract_regions(images, given))
    with pytest.raises(ValueError, match="post 1, field boxes: a list is wanted, not 5"):
        make_processor().extract_regions(images[:2], [None, 5])


def test_boxes_a_little_outside_are_clipped():
    (regions,) = make_processor().extract_regions([Image.new("RGB", (4, 4))], [[[-0.01, 0.2, 1.02, 0.2]]])
    assert regions["boxes"] == [[0.0, 0.2, 1.0, 0.2]]


def test_an_unknown_extractor_is_named():
    with pytest.raises(ValueError, match='unknown extractor "magic"'):
        make_processor(region_config={"name": "magic"})


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector of a few thousand parameters with random weights."""
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=16, num_detection_tokens=7, id2label={0: "dog", 1: "cat", 2: "park bench"},
        label2id={"dog": 0, "cat": 1, "park bench": 2},
    )  # fmt: skip
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}, do_pad=False).save_pretrained(folder)
    return folder


def test_object_detection(detector):
    config = {"name": "object-detection", "model": str(detector), "threshold": 0.0, "batch_size": 2, "max_regions": 4}
    processor = make_processor(region_config=config)
    assert processor._extract._detector is None, "the weights are loaded when first needed"
    images = [pure_noise(Image.new("RGB", (40 + 9 * place, 30)), seed=place) for place in range(3)]
    features = processor(text=["a", "b", "c", "d"], images=[images[0], None, *images[1:]])
    assert features["region_mask"].sum(1).tolist() == [4, 0, 4, 4]
    assert ((features["region_boxes"] >= 0) & (features["region_boxes"] <= 1)).all()
    alone = processor.extract_regions([images[2]])[0]
    assert set(alone["box_labels"]) <= {"dog", "cat", "park bench"} and len(alone["box_labels"]) == 4
    assert alone["box_scores"] and alone["boxes"] != processor.extract_regions([images[0]])[0]["boxes"]
    given = processor.extract_regions(images[:1], [[[0, 0, 1, 1]]])
    assert given[0]["boxes"] == [[0, 0, 1, 1]], "boxes given take the place of the detector"


def test_a_detector_with_pickled_weights_is_refused(detector, tmp_path):
    torch.save(AutoModelForObjectDetection.from_pretrained(detector).state_dict(), tmp_path / "pytorch_model.bin")
    AutoConfig.from_pretrained(detector).save_pretrained(tmp_path)
    YolosImageProcessor().save_pretrained(tmp_path)
    processor = make_processor(region_config={"name": "object-detection", "model": str(tmp_path)})
    with pytest.raises(OSError, match="safetensors"):
        processor(text=["a"], images=[Image.new("RGB", (40, 30))])


def test_code_that_a_detector_brings_is_not_run(detector, tmp_path):
    shutil.copytree(detector, tmp_path / "detector")
    (tmp_path / "detector" / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    for name, kinds in (("config", ("AutoConfig", "AutoModelForObjectDetection")),
                        ("preprocessor_config", ("AutoImageProcessor",))):  # fmt: skip
        path = tmp_path / "detector" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {kind: "own.Own" for kind in kinds}}))
    config = {"name": "object-detection", "model": str(tmp_path / "detector"), "threshold": 0.0}
    features = make_processor(region_config=config)(text=["a"], images=[Image.new("RGB", (40, 30))])
    assert features["region_mask"].any() and not (tmp_path / "was_run").exists()


LOAD_ELSEWHERE = """
import json, sys
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
folder, again = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert "processors" not in sys.modules, "the project is importable here"
from PIL import Image
features = processor(text=["Jordan in the park"], images=[Image.new("RGB", (90, 50), "red")])
assert image_processor.size["height"] == 32 and len(tokenizer) == len(processor.tokenizer)
processor.save_pretrained(again)
print(json.dumps({name: value.tolist() for name, value in features.items()}))
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_in_a_fresh_process(family, tmp_path):
    processor = make_processor(family, region_config={"name": "grid", "rows": 3, "columns": 1}, max_length=20)
    processor.save_pretrained(tmp_path / "first")
    (tmp_path / "load.py").write_text(LOAD_ELSEWHERE)
    features = processor(text=["Jordan in the park"], images=[Image.new("RGB", (90, 50), "red")])
    expected = {name: value.tolist() for name, value in features.items()}
    assert len(expected["region_mask"][0]) == 3
    folders = [("first", "second"), ("second", "third")] if family == "bert" else [("first", "second")]
    for folder, again in folders:
        environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(
            [sys.executable, "load.py", tmp_path / folder, tmp_path / again],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert json.loads(run.stdout.splitlines()[-1]) == expected
