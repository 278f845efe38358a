from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou
from transformers import (
    AutoConfig,
    AutoModelForObjectDetection,
    BertTokenizer,
    DetrConfig,
    DetrImageProcessor,
    ResNetConfig,
    RTDetrConfig,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    YolosConfig,
    YolosImageProcessor,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from mner_data.synthetic_images import pure_noise
from processors import REGION_FIELDS, AnchorRegionExtractor, HamLearningImageProcessor, HamLearningProcessor
from processors.region_extraction import _join
from tests.tiny import FAMILIES, tiny_tokenizer
from tests.tiny_model import detector_with_large_weights

REAL = os.environ.get("HAMLEARNING_DATA")
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


MIXED = [long_post(40), long_post(3, 1), [], ["\u200d"], ["unbelievable" * 12, "Jordan"], long_post(90, 2), long_post(14, 3)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [None, 16])
def test_word_for_word_equals_what_a_fast_tokenizer_aligns(family, max_length, monkeypatch):
    processor = make_processor(family, max_length=max_length)
    expected = processor(text=MIXED, is_split_into_words=True)
    tokenizer = processor.tokenizer
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    monkeypatch.setattr(
        tokenizer, "build_inputs_with_special_tokens",
        lambda ids: [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id], raising=False,
    )  # fmt: skip
    actual = processor(text=MIXED, is_split_into_words=True)
    assert expected["input_ids"].shape[1] > 1
    assert all(torch.equal(actual[name], expected[name]) for name in expected) and actual.keys() == expected.keys()


def test_a_slow_tokenizer_equals_its_fast_one(tmp_path):
    tokens = sorted(tiny_tokenizer("bert").get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(token for token, _ in tokens), encoding="utf-8")
    image_processor = HamLearningImageProcessor(size={"height": 32, "width": 32})
    features = []
    for kind in (BertTokenizerLegacy, BertTokenizer):
        tokenizer = kind(str(tmp_path / "vocab.txt"), do_lower_case=False, model_max_length=20)
        assert tokenizer.is_fast == (kind is BertTokenizer)
        features.append(HamLearningProcessor(tokenizer=tokenizer, image_processor=image_processor)(text=MIXED))
    assert all(torch.equal(features[0][name], features[1][name]) for name in features[1])
    assert features[0]["input_ids"].shape[1] > 1


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
    processor = make_processor(region_config={"name": "grid"})
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


def test_the_best_regions_are_kept_in_their_order(caplog):
    processor = make_processor(region_config={"name": "precomputed", "max_regions": 2})
    boxes = [[0, 0, 0.1, 0.1], [0, 0, 0.2, 0.2], [0, 0, 0.3, 0.3]]
    processor.extract_regions([Image.new("RGB", (4, 4))], [boxes[:2]])
    assert not caplog.text
    (regions,) = processor.extract_regions([Image.new("RGB", (4, 4))], [boxes], None, [[0.5, 0.1, 0.9]])
    assert regions == {"boxes": [boxes[0], boxes[2]], "box_labels": ["", ""], "box_scores": [0.5, 0.9]}
    many = processor.extract_regions([Image.new("RGB", (4, 4))], [[[0, 0, 1, 1]] * 10_000])
    assert len(many[0]["boxes"]) == 2
    assert caplog.text.count("a post comes with more boxes than max_regions of region_config (2)") == 1


def test_the_default_regions_are_anchors_that_cover_the_boxes_of_people():
    processor = make_processor()
    assert processor.region_config == {"name": "anchors", "max_regions": 16}
    (regions,) = processor.extract_regions([Image.new("RGB", (4, 4))])
    boxes = torch.tensor(regions["boxes"], dtype=torch.float64)
    assert len(boxes) == 14 and boxes[0].tolist() == [0, 0, 1, 1] and len({tuple(box) for box in regions["boxes"]}) == 14
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 1).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    # As many to the left as to the right: each box's mirror image is one, too.
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)
    assert torch.cdist(mirrored, boxes).min(1).values.max() < 1e-5
    assert regions["box_scores"] == [0.0] * 14 and regions["box_labels"] == [""] * 14


@pytest.mark.skipif(not REAL, reason="needs the real tweets: HAMLEARNING_DATA")
def test_recall_of_the_anchors_on_real_tweets_is_what_the_docstring_says():
    lines = (Path(REAL) / "phototweets" / "entity_boxes.jsonl").read_text(encoding="utf-8").splitlines()
    entities = [entity["boxes"] for line in lines for entity in json.loads(line)["entities"] if entity.get("boxes")]

    def recall(config):
        boxes = torch.tensor(make_processor(region_config=config).extract_regions([(1, 1)])[0]["boxes"])
        hits = [(box_iou(boxes, torch.tensor(gold, dtype=boxes.dtype)) >= 0.5).any().item() for gold in entities]
        return sum(hits) / len(hits)

    assert len(entities) == 1848 and f"{len(entities):,}" in AnchorRegionExtractor.__doc__
    assert f"{100 * recall('anchors'):.1f} %" in AnchorRegionExtractor.__doc__ and recall("anchors") > 0.75
    assert recall("grid") == pytest.approx(0.05, abs=0.005)


def test_a_list_of_extractors_joins_their_regions(detector):
    detection = {"name": "object-detection", "model": str(detector), "threshold": 0.0, "max_regions": 3}
    image = pure_noise(Image.new("RGB", (40, 30)))
    processor = make_processor(region_config=["anchors", detection, "grid", {"name": "grid", "rows": 1, "columns": 1}])
    (regions,) = processor.extract_regions([image])
    (detected,) = make_processor(region_config=detection).extract_regions([image])
    assert len(detected["boxes"]) == 3 and all(box in regions["boxes"] for box in detected["boxes"])
    # 14 anchors, 3 detections, 4 cells; the whole image is an anchor already. The default bound is 16.
    assert len(regions["boxes"]) == 16 and sum(score > 0 for score in regions["box_scores"]) == 3
    assert sum(box == [0, 0, 1, 1] for box in regions["boxes"]) == 1
    bounded = make_processor(region_config={"name": "joined", "extractors": ["anchors", detection], "max_regions": 4})
    (few,) = bounded.extract_regions([image])
    assert sorted(few["box_scores"])[1:] == sorted(detected["box_scores"]) and few["boxes"][0] == [0, 0, 1, 1]
    assert processor.needs_image(None) and not make_processor(region_config=["anchors", "grid"]).needs_image(None)


def test_regions_of_a_post_are_joined_with_those_of_other_extractors_where_the_config_says_so(detector):
    own, none = [[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0]], []
    given = {"boxes": [own, none, None, own], "box_labels": [["a", "b"], [], None, ["c", "d"]]}
    images = [(1, 1), (1, 1), (1, 1), None]
    processor = make_processor(region_config=["precomputed", "anchors"])
    with_own, with_none, without, no_image = processor.extract_regions(images, **given)
    (anchors,) = make_processor(region_config="anchors").extract_regions([(1, 1)])
    # The whole image is an anchor too: it keeps the score and the label that came with the post.
    assert with_own["boxes"][:2] == own and with_own["box_labels"][:2] == ["a", "b"] and with_own["box_scores"][:2] == [1.0, 1.0]
    assert with_own["boxes"][2:] == [box for box in anchors["boxes"] if box != own[1]] and not any(with_own["box_scores"][2:])
    assert with_none == without == anchors and no_image["boxes"] == []
    replaced = make_processor(region_config=["grid", "anchors"]).extract_regions(images, **given)
    assert [len(regions["boxes"]) for regions in replaced] == [2, 0, 16, 0]
    bounded = make_processor(region_config=[{"name": "precomputed", "max_regions": 1}, "grid"])
    assert [len(regions["boxes"]) for regions in bounded.extract_regions(images, **given)] == [5, 4, 4, 0]
    detection = {"name": "object-detection", "model": str(detector), "threshold": 0.0, "max_regions": 3}
    looking = make_processor(region_config=["precomputed", detection])
    assert looking.needs_image(own) and not processor.needs_image(None)
    image = pure_noise(Image.new("RGB", (40, 30)))
    assert len(looking.extract_regions([image], boxes=[own])[0]["boxes"]) == 5
    alone = make_processor(region_config=detection)
    for each in (looking, alone):
        each.image_processor.size = {"height": 1, "width": 1}
    assert looking.target_size(own) == looking.target_size(None) == alone.target_size(None) != alone.target_size(own) == (1, 1)
    with pytest.raises(ValueError, match="the image itself to find them in"):
        looking.extract_regions([(1, 1)], boxes=[own])


def test_of_equal_boxes_the_best_score_stays():
    def part(*regions):
        return dict(zip(REGION_FIELDS, map(list, zip(*regions, strict=True)), strict=True))

    box, other = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]
    joined = _join((part((box, "a", 0.2), (other, "b", 0.1)), part((box, "c", 0.9)), part((other, "d", 0.1))))
    assert joined == part((box, "c", 0.9), (other, "b", 0.1))


WRONG_CONFIGS = {
    "below zero": ({"max_regions": -1}, "expected a whole number from 0 to 1024 as max_regions, got -1"),
    "a billion": ({"max_regions": 10**9}, "from 0 to 1024 as max_regions, got 1000000000"),
    "a fraction": ({"max_regions": 2.5}, "expected a whole number"),
    "true": ({"max_regions": True}, "expected a whole number"),
    "none": ({"max_regions": None}, "expected a whole number"),
    "no rows": ({"name": "grid", "rows": 0}, "expected a whole number ≥ 1 as rows, got 0"),
    "columns below zero": ({"name": "grid", "columns": -3}, "as columns, got -3"),
    "a large grid": ({"name": "grid", "rows": 3_000, "columns": 3_000}, "at most 1024 cells in the grid, got 3000 x 3000"),
    "an unknown option": ({"name": "grid", "row": 2}, r"unknown options \['row'\] of \"grid\", known are"),
    "no model": ({"name": "object-detection"}, "needs model"),
    "no batch": ({"name": "object-detection", "model": "x", "batch_size": 0}, "≥ 1 as batch_size, got 0"),
    "a threshold in words": ({"name": "object-detection", "model": "x", "threshold": "high"}, "expected a number as threshold"),
    "a name that is none": ({"name": ["grid"]}, "unknown extractor"),
    "a number": (7, "expected a dict, a name or a list of those, got 7"),
    "nothing to join": ([], "expected a list of extractors to join"),
    "a wrong part": (["grid", {"name": "grid", "rows": 9_999}], "at most 1024 cells"),
    "a wrong bound of a part": (["grid", {"name": "grid", "max_regions": -1}], "as max_regions, got -1"),
}


@pytest.mark.parametrize("kind", WRONG_CONFIGS)
def test_error_says_what_is_wrong_in_the_region_config(kind):
    config, message = WRONG_CONFIGS[kind]
    with pytest.raises(ValueError, match=f"^region_config: .*{message}"):
        make_processor(region_config=config)


def test_no_regions_may_be_asked_for():
    (regions,) = make_processor(region_config={"max_regions": 0}).extract_regions([Image.new("RGB", (4, 4))])
    assert regions == {field: [] for field in REGION_FIELDS}


def test_encode_is_the_second_half_of_a_call():
    processor = make_processor()
    images = [Image.new("RGB", (90, 50), "red"), None]
    whole = processor(text=["Jordan scores", "a"], images=images)
    opened, sizes = processor.load_reduced_images(images)
    words = [["Jordan", "scores"], ["a"]]
    halves = processor.encode(words, processor.extract_regions(opened), sizes, opened)
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)
    without_pixels = processor.encode(words, processor.extract_regions(sizes), sizes)
    assert whole.keys() - without_pixels.keys() == {"pixel_values"}


def test_large_images_are_reduced_and_their_sizes_are_the_originals():
    processor = make_processor()
    large = Image.new("RGB", (1000, 3000), "red")
    features = processor(text=["a"], images=[large])
    assert features["image_sizes"].tolist() == [[3000, 1000]]
    (image,), (size,) = processor.load_reduced_images([large])
    assert size == (3000, 1000) and image.width < 200 and image.height < 200
    assert processor.load_images([large])[0].size == (1000, 3000)


WRONG = {
    "not a number": ({"boxes": [None, [[0, 0, float("nan"), 1]]]}, "post 1, field boxes, box 0.*finite"),
    "reversed": ({"boxes": [[[0.5, 0, 0.1, 1]], None]}, "post 0, field boxes, box 0.*reversed"),
    "pixels": ({"boxes": [[[5, 0, 100, 100]], None]}, "looks like pixels"),
    "three numbers": ({"boxes": [[[0, 0, 1]], None]}, "expected four numbers"),
    "words": ({"boxes": [["left"], None]}, "expected four numbers"),
    "label count": ({"boxes": [[[0, 0, 1, 1]], None], "box_labels": [["a", "b"], None]}, "got 2 values for 1 boxes"),
    "label type": ({"boxes": [[[0, 0, 1, 1]], None], "box_labels": [[3], None]}, "box_labels, box 0: expected a string"),
    "score": ({"boxes": [[[0, 0, 1, 1]], None], "box_scores": [["high"], None]}, "box_scores, box 0: expected a finite"),
    "post count": ({"boxes": [None]}, "boxes: expected one entry a post, got 1 entries for 2 posts"),
    "image": ({"images": [None, "/nowhere.png"]}, "post 1, field image: there is no file"),
    "image count": ({"images": [None]}, "images: expected one entry a post, got 1 entries for 2 posts"),
    "text": ({"text": ["fine", 7]}, "post 1, field text"),
    "no post": ({"text": [], "images": None}, "text: expected at least one post, got an empty list"),
    "labels alone": ({"box_labels": [["a"], None]}, "post 0, field boxes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_error_names_post_and_field(kind):
    change, message = WRONG[kind]
    given = {"text": ["a", "b"], "images": [Image.new("RGB", (4, 4))] * 2} | change
    with pytest.raises(ValueError, match=message):
        make_processor()(**given)


def test_boxes_may_be_arrays_or_tensors():
    boxes = [[0.0, 0.25, 0.5, 1.0]]
    images = [Image.new("RGB", (4, 4))] * 4
    given = [np.array(boxes, dtype=np.float32), torch.tensor(boxes), [np.array(boxes[0])], boxes]
    assert all(found["boxes"] == boxes for found in make_processor().extract_regions(images, given))
    with pytest.raises(ValueError, match="post 1, field boxes: expected a list, got 5"):
        make_processor().extract_regions(images[:2], [None, 5])


def test_boxes_a_little_outside_are_clipped():
    (regions,) = make_processor().extract_regions([Image.new("RGB", (4, 4))], [[[-0.01, 0.2, 1.02, 0.2]]])
    assert regions["boxes"] == [[0.0, 0.2, 1.0, 0.2]]


def test_error_names_the_unknown_extractor():
    with pytest.raises(ValueError, match='unknown extractor "magic"'):
        make_processor(region_config={"name": "magic"})


def test_object_detection(detector):
    config = {"name": "object-detection", "model": str(detector), "threshold": 0.0, "batch_size": 2, "max_regions": 4}
    processor = make_processor(region_config=config)
    assert not processor._extract._detectors, "the weights are loaded when first needed"
    images = [pure_noise(Image.new("RGB", (40 + 9 * place, 30)), seed=place) for place in range(3)]
    features = processor(text=["a", "b", "c", "d"], images=[images[0], None, *images[1:]])
    assert features["region_mask"].sum(1).tolist() == [4, 0, 4, 4]
    assert ((features["region_boxes"] >= 0) & (features["region_boxes"] <= 1)).all()
    alone = processor.extract_regions([images[2]])[0]
    assert set(alone["box_labels"]) <= {"dog", "cat", "park bench"} and len(alone["box_labels"]) == 4
    assert alone["box_scores"] and alone["boxes"] != processor.extract_regions([images[0]])[0]["boxes"]
    given = processor.extract_regions(images[:1], [[[0, 0, 1, 1]]])
    assert given[0]["boxes"] == [[0, 0, 1, 1]], "boxes given take the place of the detector"


@pytest.mark.parametrize("joined", [False, True])
def test_the_detector_runs_where_it_is_told_unless_the_config_says_where(detector, joined):
    """No value can be read from the device `meta`."""
    image = Image.new("RGB", (40, 30))

    def regions(asked, **options):
        config = {"name": "object-detection", "model": str(detector), "threshold": 0.0} | options
        processor = make_processor(region_config=["grid", ["anchors", config]] if joined else config)
        return processor.extract_regions([image], device=asked)

    expected = regions("cpu")
    assert expected == regions(None) == regions(torch.device("cpu")) == regions("meta", device="cpu")
    for asked, options in (("meta", {}), ("cpu", {"device": "meta"})):
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            regions(asked, **options)


def test_the_detector_leaves_the_gpu_alone_in_a_worker_of_a_data_loader(detector, monkeypatch):
    """CUDA cannot be used in a forked process."""
    processor = make_processor(region_config={"name": "object-detection", "model": str(detector), "threshold": 0.0})
    images = [Image.new("RGB", (40, 30))]
    expected = processor.extract_regions(images, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = {"num_workers": 1, "multiprocessing_context": "fork", "batch_size": None}
    (found,) = torch.utils.data.DataLoader([images], collate_fn=processor.extract_regions, **options)
    assert found == expected


SIDES = {
    "grid": ("grid", (32, 32)),
    "a square": ({"height": 90, "width": 64}, (90, 90)),
    "the shorter side": ({"shortest_edge": 64, "longest_edge": 128}, (64, 64)),
    "bounds alone": ({"max_height": 64, "max_width": 64}, None),
}


@pytest.mark.parametrize("kind", SIDES)
def test_images_are_decoded_as_large_as_the_detector_needs(detector, tmp_path, kind):
    size, expected = SIDES[kind]
    if kind != "grid":
        shutil.copytree(detector, tmp_path / "detector")
        YolosImageProcessor(size=size).save_pretrained(tmp_path / "detector")
    detection = {"name": "object-detection", "model": str(tmp_path / "detector")}
    processor = make_processor(region_config="grid" if kind == "grid" else ["grid", detection])
    assert processor.target_size(None) == expected
    assert processor.target_size([[0, 0, 1, 1]]) == (32, 32), "with boxes the detector is not asked"
    photo = Image.new("RGB", (3200, 1600))
    images, sizes = processor.load_reduced_images([photo, photo, None], boxes=[None, [[0, 0, 1, 1]], None])
    assert sizes == [(1600, 3200), (1600, 3200), None]
    side = 2 * expected[0] if expected else 1600
    assert side <= images[0].height < 2 * side and 64 <= images[1].height < 128


DETECTORS = {
    "yolos": (
        lambda: YolosConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
            patch_size=16, num_detection_tokens=7,
        ),
        lambda **options: YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, **options),
    ),
    "detr": (
        lambda: DetrConfig(
            backbone_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
                                         out_features=["stage2"]),
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=7,
        ),
        lambda **options: DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, **options),
    ),
    "rt-detr": (
        lambda: RTDetrConfig(
            backbone_config=RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
                                               layer_type="basic", out_features=["stage2", "stage3", "stage4"]),
            encoder_in_channels=[8, 16, 16], feat_strides=[8, 16, 32], encoder_hidden_dim=16, encoder_ffn_dim=16,
            encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_layers=1,
            decoder_attention_heads=2, num_queries=7, anchor_image_size=None,
        ),
        lambda **options: RTDetrImageProcessor(size={"height": 64, "width": 64}, **options),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DETECTORS)
def test_regions_do_not_depend_on_the_images_beside(kind, tmp_path):
    """Wide and tall images share no canvas: padding would make a detector's boxes fractions of it."""
    config, image_processor = DETECTORS[kind]
    torch.manual_seed(0)
    detector_with_large_weights(config()).save_pretrained(tmp_path)
    image_processor().save_pretrained(tmp_path)
    config = {"name": "object-detection", "model": str(tmp_path), "threshold": 0.0, "max_regions": 100}
    processor = make_processor(region_config=config)
    images = [pure_noise(Image.new("RGB", size), seed=seed) for seed, size in enumerate([(96, 48), (40, 90), (96, 48), (50, 50)])]
    together = processor.extract_regions(images)
    alone = [processor.extract_regions([image])[0] for image in images]
    assert alone[0]["boxes"] != alone[2]["boxes"] and all(
        len(regions["boxes"]) == len(alone[0]["boxes"]) > 0 for regions in alone
    )
    for regions, expected in zip(together, alone, strict=True):
        assert regions["box_labels"] == expected["box_labels"]
        assert torch.allclose(torch.tensor(regions["boxes"]), torch.tensor(expected["boxes"]), atol=1e-5)
        assert torch.allclose(torch.tensor(regions["box_scores"]), torch.tensor(expected["box_scores"]), atol=1e-5)
    # Nor on a canvas that the detector's own settings ask for.
    if kind != "rt-detr":
        image_processor(pad_size={"height": 256, "width": 256}).save_pretrained(tmp_path)
        (padded,) = make_processor(region_config=config).extract_regions(images[:1])
        assert torch.allclose(torch.tensor(padded["boxes"]), torch.tensor(alone[0]["boxes"]), atol=1e-5)


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
