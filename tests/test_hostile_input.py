"""What strangers may post, through the processor, the pipeline and the data set: a result, or one error that says where."""

from __future__ import annotations

import importlib
import io
import math
import resource
import zlib

import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import BertConfig, pipeline

from hub_scripts import prepare_dataset
from mner_data.loading import load_splits
from mner_data.readers import DataError
from mner_data.synthetic_images import pure_noise
from processors import HamLearningImageProcessor, HamLearningProcessor
from tests.tiny import tiny_tokenizer
from tests.tiny_model import tiny_model
from training.collator import MnerCollator

from .fuzz.mutations import image_files

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
def test_a_hundred_thousand_words_are_tagged_and_learned_from(ner):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = ["Jordan", "scores"] * 50_000
    tagged(ner, " ".join(words))
    predict = pytest.importorskip("ray", reason="predict.py needs Ray") and importlib.import_module("predict")
    tagger = predict.Tagger(ner.model.name_or_path, None, None, False, 4)
    (row,) = tagger(pa.table({"id": ["a"], "tokens": [words]})).to_pylist()
    assert row["error"] is None and row["entities"][-1]["end"] > 600_000
    batch = MnerCollator(ner.processor)([{"id": "a", "tokens": words, "ner_tags": [1, 0] * 50_000}])
    loss = ner.model(**{name: value for name, value in batch.items() if name != "ids"}).loss
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is None or torch.isfinite(p.grad).all() for p in ner.model.parameters())
    ner.model.zero_grad()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 3_000_000, f"{grown / 1e6:.1f} GB"


def png(width: int, height: int) -> bytes:
    """A white image of one bit a pixel, without holding it in memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    packer, row = zlib.compressobj(9), b"\0" + b"\xff" * ((width + 7) // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = pure_noise(Image.new("RGB", (90, 60)))
TURNED = Image.Exif()
TURNED[0x0112] = 6
SVG = b"""<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink"
width="9" height="9"><image x:href="file:///etc/passwd" width="9" height="9"/></svg>"""
# What a file named .jpg holds: its size as people see it, or what is said of it.
FILES = {
    "a JPEG": (lambda: saved(NOISE, "JPEG"), (90, 60)),
    "another suffix's": (lambda: saved(NOISE, "PNG"), (90, 60)),
    "CMYK": (lambda: saved(NOISE.convert("CMYK"), "JPEG"), (90, 60)),
    "palette with transparency": (lambda: saved(NOISE.quantize(8), "PNG", transparency=1), (90, 60)),
    "16-bit": (lambda: saved(NOISE.convert("I;16"), "PNG"), (90, 60)),
    "animated GIF": (lambda: saved(NOISE.quantize(8), "GIF", save_all=True, append_images=[NOISE] * 3), (90, 60)),
    "animated WebP": (lambda: saved(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(9)] * 3), (90, 60)),
    "EXIF-rotated": (lambda: saved(NOISE, "JPEG", exif=TURNED), (60, 90)),
    "1 x 1": (lambda: png(1, 1), (1, 1)),
    "1 x 10,000": (lambda: png(1, 10_000), (1, 10_000)),
    "truncated": (lambda: saved(NOISE, "JPEG")[:900], "is broken"),
    "zero bytes": (lambda: b"", "is empty: 0 bytes"),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "is not an image in a known format"),
    "SVG": (lambda: SVG, "is not an image in a known format"),
    "a bomb": (lambda: png(50_000, 50_000), "2500000000 pixels"),
}


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A post for each of the files, in a folder as train.py takes it."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "images").mkdir()
    for name, (content, _) in FILES.items():
        (folder / "images" / f"{name}.jpg").write_bytes(content())
    posts = (f"IMGID:{name}\nJordan\tB-PER\nin\tO\nAmazon\tB-LOC\n\n" for name in FILES)
    (folder / "train.txt").write_text("".join(posts))
    assert (folder / "images" / "a bomb.jpg").stat().st_size < 500_000
    return folder


BROKEN = {name: reason for name, (_, reason) in FILES.items() if isinstance(reason, str)}
LARGEST_GROWTH = 300_000  # kB; the bomb's pixels would take 2.5 GB


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_the_pipeline(name, ner, album):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    post = {"text": "Jordan in Amazon park", "image": str(album / "images" / f"{name}.jpg")}
    if name in BROKEN:
        with pytest.raises(ValueError, match=f"^post 1, field image: .*{BROKEN[name]}"):
            ner(["fine", post])
    else:
        tagged(ner, **post)
        assert ner.processor.load_image(post["image"]).size == FILES[name][1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LARGEST_GROWTH


def test_the_files_in_training(ner, album, caplog):
    rows = load_splits(str(album))[0]["train"]
    assert [row["id"] for row in rows if row["image"] is None] == list(BROKEN)
    for name, reason in BROKEN.items():
        assert f"{name} (" in caplog.text and reason in caplog.text
    batch = MnerCollator(ner.processor)(list(rows))
    assert batch["has_image"].tolist() == [name not in BROKEN for name in FILES]
    assert torch.isfinite(ner.model(**{k: v for k, v in batch.items() if k != "ids"}).loss)


def test_the_files_in_a_prepared_data_set(album, tmp_path):
    arguments = ["--text", str(album), "--images", str(album / "images"), "--regions", "grid"]
    prepare_dataset.main([*arguments, "--output", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    rows = load_splits(str(tmp_path / "out"))[0]["train"]
    assert [row["id"] for row in rows if row["image"] is None] == list(BROKEN)
    assert all(f"{name} (" in card and reason in card for name, reason in BROKEN.items())


def test_the_files_in_bulk(ner, album):
    predict = pytest.importorskip("ray", reason="predict.py needs Ray") and importlib.import_module("predict")
    tagger = predict.Tagger(ner.model.name_or_path, None, str(album / "images"), False, 4)
    found = tagger(pa.table({"id": list(FILES), "text": ["Jordan in Amazon park"] * len(FILES)})).to_pylist()
    for row in found:
        assert (row["error"] is None) == (row["id"] not in BROKEN)
        assert BROKEN.get(row["id"], "") in (row["error"] or "")
        assert row["entities"] is not None, "a broken image costs no entity of the text"


def test_any_image_is_read_or_its_error_names_the_post(ner):
    """Every form, the bomb and the files that are no images among them."""
    for number, content in enumerate(image_files()):
        try:
            (entities,) = ner([{"text": "Jordan in Amazon park", "image": content}])
            assert all(math.isfinite(entity["score"]) for entity in entities)
        except ValueError as error:
            assert str(error).startswith("post 0, field image: "), number
            assert len(content) < 200 or "pixels" in str(error) or "known format" in str(error), number


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
