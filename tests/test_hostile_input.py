"""What strangers may post, through the processor, the pipeline and the data set: a result, or one error that says where."""

from __future__ import annotations

import math

import pytest
from PIL import Image
from transformers import BertConfig, pipeline

from hub_scripts import prepare_dataset
from processors import HamLearningImageProcessor, HamLearningProcessor
from training.data import DataError, load_splits

from .fuzz.mutations import pictures
from .modeling.tiny_model import tiny_model
from .tiny import tiny_tokenizer

TEXTS = {
    "empty": "",
    "only spaces": " \t\n ",
    "only emoji": "👨‍👩‍👧👍🏽🇩🇪1️⃣",
    "only joiners": "\u200d\ufe0f\u200d",
    "right-to-left marks": "\u202eJordan\u202c \u200fمرحبا\u2066 x",
    "combining storm": "J" + "\u0301" * 20_000 + "ordan",
    "NUL": "Jor\x00dan \x00",
    "lone surrogates": "Jordan \ud800 \udfff\ud83d",
    "one word of 100,000 characters": "a" * 100_000,
    "no word a tokenizer knows": "\u0e01\u0e33 ﷺ \U0010ffff",
}


@pytest.fixture(scope="module")
def ner(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer("bert")
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    tiny_model(text_config=config, num_iterations=1).save_pretrained(folder)
    image_processor = HamLearningImageProcessor(size={"height": 32, "width": 32})
    HamLearningProcessor(tokenizer=tokenizer, image_processor=image_processor).save_pretrained(folder)
    return pipeline("mner", model=str(folder), trust_remote_code=True)


def tagged(ner, text: str, **post) -> list[dict]:
    (entities,) = ner([{"text": text, **post}])
    words = len(ner.processor.split_words(text)[0])
    assert ner.processor(text=[text])["word_mask"].sum() == words
    assert all(text[entity["start"] : entity["end"]] == entity["word"] for entity in entities)
    assert all(math.isfinite(entity["score"]) for entity in entities)
    return entities


@pytest.mark.parametrize("kind", TEXTS)
def test_any_text_is_tagged(kind, ner):
    tagged(ner, TEXTS[kind])
    tagged(ner, TEXTS[kind], image=Image.new("RGB", (9, 9)))


@pytest.mark.slow
def test_a_hundred_thousand_words_are_tagged(ner):
    tagged(ner, "Jordan scores " * 50_000)


def test_any_picture_is_read_or_named(ner):
    """Every form, the bomb and the files that are no pictures among them."""
    for number, content in enumerate(pictures()):
        try:
            (entities,) = ner([{"text": "Jordan in Amazon park", "image": content}])
            assert all(math.isfinite(entity["score"]) for entity in entities)
        except ValueError as error:
            assert str(error).startswith("post 0, field image: "), number
            assert len(content) < 200 or "pixels" in str(error), number


BOXES = {
    "zero area": [[0.5, 0.5, 0.5, 0.5]] * 3,
    "outside": [[-0.5, -0.5, 1.5, 1.5], [1.2, 1.2, 1.3, 1.3]],
    "ten thousand": [[0, 0, 1, 1]] * 10_000,
    "none": [],
}


@pytest.mark.parametrize("kind", BOXES)
def test_any_boxes_are_used(kind, ner):
    for entity in tagged(ner, "Jordan in Amazon park", image=Image.new("RGB", (1, 10_000)), boxes=BOXES[kind]):
        if entity["region"]:
            box = entity["region"]["box"]
            assert 0 <= box["xmin"] <= box["xmax"] <= 1 and 0 <= box["ymin"] <= box["ymax"] <= 10_000


def test_any_text_is_read_and_prepared(tmp_path):
    """As words of a label file: what a line can hold comes back word for word."""
    words = [text for text in TEXTS.values() if text.strip() and not set("\n\t") & set(text)]
    words = [word.encode("utf-8", "replace").decode() for word in words if " " not in word] * 2_000
    lines = "".join(f"{word[:200]}\tI-PER\n" for word in words)
    (tmp_path / "train.txt").write_text(f"IMGID:a\n{lines}", encoding="utf-8")
    assert list(load_splits(str(tmp_path))[0]["train"][0]["tokens"]) == [word[:200] for word in words]
    prepare_dataset.main(["--text", str(tmp_path / "train.txt"), "--output", str(tmp_path / "out")])
    assert list(load_splits(str(tmp_path / "out"))[0]["train"][0]["tokens"]) == [word[:200] for word in words]
    (tmp_path / "train.txt").write_bytes("IMGID:a\n\ud800\tO\n".encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="line 2: is not UTF-8"):
        load_splits(str(tmp_path))
