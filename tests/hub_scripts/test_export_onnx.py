"""An exported model beside the one it was made of: same emissions, same entities, whatever the shapes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hub_scripts import quantize_onnx
from hub_scripts.export_onnx import cli, export, main
from hub_scripts.quantize_onnx import quantize
from mner_data.synthetic_images import pure_noise
from modeling_hamlearning import HamLearningForTokenClassification, HamLearningOnnxForTokenClassification, onnx_hamlearning
from tests.tiny import tiny_tokenizer
from tests.tiny_model import random_batch, saved_tiny_model

FIELDS = ("logits", "relevance", "word_region_attention", "grounding_scores")
# Models whose graph or class differs from that of the model with every level.
VARIANTS = {
    "without a CRF": {"use_crf": False, "use_spatial": False, "use_semantic": False},
    "global level only": {"use_objects": False, "use_spatial": False, "use_semantic": False},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The model, its export, and its export in int8."""
    folder = tmp_path_factory.mktemp("onnx")
    saved_tiny_model(folder / "model", grounding_loss_weight=1.0)
    export(folder / "model", folder / "exported")
    shutil.copytree(folder / "exported", folder / "int8")
    (folder / "images").mkdir()
    for seed in range(3):
        pure_noise(Image.new("RGB", (90, 50)), seed=seed).save(folder / "images" / f"{seed}.png")
    quantize(folder / "int8", folder / "images")
    return folder


@pytest.fixture(scope="module", params=VARIANTS)
def variant_folder(request, tmp_path_factory):
    """A model with some parts switched off, and its export."""
    folder = tmp_path_factory.mktemp("variant")
    saved_tiny_model(folder / "model", num_iterations=2, **VARIANTS[request.param])
    export(folder / "model", folder / "exported")
    return folder


@pytest.fixture(scope="module")
def eager(folders):
    return HamLearningForTokenClassification.from_pretrained(folders / "model").eval()


@pytest.fixture(scope="module")
def exported(folders):
    return HamLearningOnnxForTokenClassification.from_pretrained(folders / "exported")


def padded(batch):
    """The first post is shorter than the others in every dimension."""
    batch["attention_mask"][0, 1:] = 0
    batch["attention_mask"][0, :, 4:] = 0
    batch["word_positions"][0] %= 4
    batch["word_positions"][0, 1:] = -1
    batch["word_mask"][0, 1:] = False
    batch["region_mask"][0, 1:] = False
    batch["region_label_ids"][0, :, 1:] = 0
    return batch


@torch.no_grad()
def differences(eager, exported, batch):
    batch = {name: tensor for name, tensor in batch.items() if name != "labels"}
    ours, theirs = eager(**batch), exported(**batch)
    words = batch["word_mask"][..., None]
    for name in FIELDS:
        expected, actual = getattr(ours, name), getattr(theirs, name)
        if name == "grounding_scores" and not eager.config.has_grounding:
            assert expected is None and actual is None
            continue
        if name == "grounding_scores" and expected is None:  # no post is read with an image: nothing is shown
            assert actual.argmax(-1).eq(actual.shape[-1] - 1).all()
            continue
        if name == "grounding_scores":  # of a post without an image only the probabilities are the same, all for "not shown"
            expected, actual = expected.softmax(-1), actual.softmax(-1)
        assert expected.shape == actual.shape, name
        if name != "relevance":
            expected, actual = expected * words, actual * words
        yield float((expected - actual).abs().max()) if expected.numel() else 0.0
    # Words at one place have equal emissions, so several paths may be best: theirs is as likely as ours.
    costs = [path_costs(eager, ours.logits, path, batch["word_mask"]) for path in (
        eager.decode(ours, batch["word_mask"]), exported.decode(theirs, batch["word_mask"]))]  # fmt: skip
    torch.testing.assert_close(*costs, rtol=0, atol=1e-3)


def path_costs(model, logits, paths, mask):
    """The negative log-likelihood of each post's path under the model."""
    labels = torch.full(mask.shape, -100)
    for post, path in enumerate(paths):
        labels[post, : len(path)] = torch.tensor(path, dtype=torch.long)
    return model.crf(logits, labels, mask)


SHAPES = list(product((1, 2, 5), (1, 3), (0, 1, 7), (0, 1, 4), (5, 12), ("all", "none", "some")))


def worst_difference(eager, exported, shapes):
    worst = 0.0
    for posts, windows, words, regions, length, pictures in shapes:
        batch = padded(random_batch(posts, words, length, regions, windows, seed=posts + words))
        batch["has_image"] &= torch.tensor(pictures == "all") | (torch.arange(posts) % 2 == (pictures == "some"))
        if pictures == "none":
            batch["has_image"][:] = False
        worst = max(worst, *differences(eager, exported, batch))
    return worst


def test_emissions_are_the_models_own(eager, exported):
    assert 0 < worst_difference(eager, exported, SHAPES) < 1e-4, "0: nothing was compared"


def test_whatever_may_be_left_out(eager, exported):
    batch = random_batch()
    inputs = {name: batch[name] for name in ("input_ids", "word_positions", "word_mask")}
    assert max(differences(eager, exported, inputs)) < 1e-4
    assert max(differences(eager, exported, inputs | {"input_ids": batch["input_ids"][:, 0]})) < 1e-4
    assert max(differences(eager, exported, inputs | {"pixel_values": batch["pixel_values"]})) < 1e-4
    features = eager.get_image_features(batch["pixel_values"])
    inputs |= {"vision_features": features, "region_boxes": batch["region_boxes"], "has_image": batch["has_image"]}
    assert max(differences(eager, exported, inputs)) < 1e-4
    torch.testing.assert_close(exported.get_image_features(batch["pixel_values"]), features, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(exported(**batch).loss, eager(**batch).loss)
    with pytest.raises(ValueError, match="neither attentions nor hidden states"):
        exported(**batch, output_attentions=True)


def posts():
    noise = [pure_noise(Image.new("RGB", (90 + place, 50)), seed=place) for place in range(3)]
    return [
        "Jordan scores  again in Amazon park",
        {"text": "a person with a trophy", "image": noise[0], "boxes": [[0.1, 0.2, 0.5, 0.6]], "box_labels": ["dog"]},
        {"text": "New York Knicks' game #NBA @joe", "image": noise[1]},
        {"text": "the river Amazon " * 40, "image": noise[2]},
        {"text": "", "image": noise[0]},
        {"text": ["New", "York", "Knicks"], "image": None},
    ]


def entities(results):
    return [[(entity["entity_group"], entity["start"], entity["end"]) for entity in post_entities] for post_entities in results]


def check_that_the_pipelines_agree(folder, batch_size):
    """Loaded as a stranger would: the folder's own code, chosen by its config."""
    inputs = posts()
    expected, actual = (
        pipeline("mner", model=str(folder / name), trust_remote_code=True)(inputs, batch_size=batch_size)
        for name in ("model", "exported")
    )
    assert entities(actual) == entities(expected) and sum(map(len, actual)) > 5
    for one, other in zip(sum(actual, []), sum(expected, []), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["relevance"] == pytest.approx(other["relevance"], abs=1e-4)
        region = one["region"]
        if region and "probability" in region:
            region = region | {"probability": pytest.approx(region["probability"], abs=1e-4)}
        assert other["region"] == region


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_gives_the_same_entities(folders, batch_size):
    check_that_the_pipelines_agree(folders, batch_size)


def test_a_model_with_parts_switched_off_is_exported_too(variant_folder):
    """In the pipeline, by its emissions for posts with and without an image, by its loss, and in int8."""
    for batch_size in (1, 3):
        check_that_the_pipelines_agree(variant_folder, batch_size)
    eager = HamLearningForTokenClassification.from_pretrained(variant_folder / "model").eval()
    exported = HamLearningOnnxForTokenClassification.from_pretrained(variant_folder / "exported")
    assert 0 < worst_difference(eager, exported, SHAPES[::5]) < 1e-4
    batch = random_batch(4)
    with torch.no_grad():
        expected = eager(**batch)
        torch.testing.assert_close(exported(**batch).loss, expected.loss)
        shutil.copytree(variant_folder / "exported", variant_folder / "int8")
        quantize(variant_folder / "int8")
        rounded = HamLearningOnnxForTokenClassification.from_pretrained(variant_folder / "int8")(**batch).logits
    assert 0 < (rounded - expected.logits).std() < 0.1 * expected.logits.std()


def test_text_alone_never_runs_the_backbone(exported, monkeypatch):
    monkeypatch.setattr(exported, "vision", None)
    batch = random_batch()
    batch["has_image"][:] = False
    with torch.no_grad():
        expected = exported(**{name: batch[name] for name in ("input_ids", "word_positions", "word_mask")}).logits
        assert torch.equal(exported(**batch).logits, expected)


def test_int8_is_close(folders, eager):
    """Rounding moves the emissions by a few hundredths of their spread, padding windows or not."""
    quantised = HamLearningOnnxForTokenClassification.from_pretrained(folders / "int8")
    for windows in (1, 3):
        batch = padded(random_batch(4, num_windows=windows))
        with torch.no_grad():
            expected, actual = eager(**batch).logits, quantised(**batch).logits
        words = batch["word_mask"]
        assert 0 < (actual - expected)[words].std() < 0.1 * expected[words].std()
    graph = onnx.load(folders / "int8" / "model.onnx").graph
    weights = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def product_of_embeddings(path, num_ids, wide=48, large=100.0):
    """Writes a graph of one product, whose input has a channel of large values that the matrix makes small again."""
    generator = np.random.default_rng(0)
    embeddings, matrix = generator.normal(size=(num_ids, 32)), generator.normal(size=(32, wide))
    embeddings[:, 3] *= large
    matrix[3] /= large
    ids = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["B", "N", "S"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gather", ["embeddings", "input_ids"], ["inputs"]),
            onnx.helper.make_node("MatMul", ["inputs", "matrix"], ["outputs"], name="product"),
        ],
        "product",
        ids,
        [onnx.helper.make_tensor_value_info("outputs", onnx.TensorProto.FLOAT, ["B", "N", "S", wide])],
        [
            onnx.numpy_helper.from_array(values.astype(np.float32), name)
            for name, values in (("embeddings", embeddings), ("matrix", matrix))
        ],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)


def test_a_channel_of_large_values_does_not_spoil_the_others(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    product_of_embeddings(tmp_path / "exact.onnx", len(tokenizer))
    shutil.copy(tmp_path / "exact.onnx", tmp_path / "smooth.onnx")
    quantize_onnx._smooth(tmp_path / "smooth.onnx", tokenizer)
    ids = np.random.default_rng(1).integers(len(tokenizer), size=(2, 1, 16))

    def outputs(name):
        session = onnx_hamlearning._session(str(tmp_path / name))
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]

    for name in ("exact", "smooth"):
        quantize_onnx._quantize_products(tmp_path / f"{name}.onnx", tmp_path / f"{name}-int8.onnx")
    expected = outputs("exact.onnx")
    np.testing.assert_allclose(outputs("smooth.onnx"), expected, atol=1e-4, rtol=1e-4)
    errors = {name: (outputs(f"{name}-int8.onnx") - expected).std() / expected.std() for name in ("exact", "smooth")}
    assert errors["smooth"] < 0.02 < 0.1 < errors["exact"], errors
    assert "matrix" not in {tensor.name for tensor in onnx.load(tmp_path / "smooth.onnx").graph.initializer}


def test_int8_of_the_backbone_is_close_and_by_channel(folders, eager):
    quantised = HamLearningOnnxForTokenClassification.from_pretrained(folders / "int8")
    pixels = random_batch(4)["pixel_values"]
    with torch.no_grad():
        expected, actual = eager.get_image_features(pixels), quantised.get_image_features(pixels)
    assert 0 < (actual - expected).norm() < 0.1 * expected.norm()
    graph = onnx.load(folders / "int8" / "vision.onnx").graph
    made_by, scales = ({}, {tensor.name: tensor.dims for tensor in graph.initializer})
    for node in graph.node:
        made_by |= dict.fromkeys(node.output, node)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in convolutions:
        values, weights = (made_by[name] for name in node.input[:2])
        assert values.op_type == weights.op_type == "DequantizeLinear"
        assert scales[weights.input[1]] == scales[weights.input[0]][:1], "one scale a channel"
    assert convolutions


def test_the_command_quantizes_with_images_and_says_what_it_needs(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hub_scripts.export_onnx.export", lambda model, out: shutil.copytree(folders / "exported", out))
    main([str(folders / "model"), str(tmp_path / "halves"), "--int8"])
    assert "vision.onnx stay in 32 bits: give --calibration_images" in capsys.readouterr().out
    main([str(folders / "model"), str(tmp_path / "both"), "--int8", "--calibration_images", str(folders / "images")])
    assert "32 bits" not in capsys.readouterr().out
    sizes = [(tmp_path / name / "vision.onnx").stat().st_size for name in ("halves", "both")]
    assert sizes[1] < 0.4 * sizes[0]
    with pytest.raises(ValueError, match="calibration_images: expected a folder with images"):
        quantize(tmp_path / "both", tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="calibration_images, a.jpg, field image: is not an image"):
        quantize(tmp_path / "both", tmp_path)
    with pytest.raises(ValueError, match="it is for --int8"):
        main([str(folders / "model"), str(tmp_path / "again"), "--calibration_images", str(folders / "images")])


@pytest.mark.parametrize("wrong", ["nothing", "no image", "broken"])
def test_wrong_calibration_images_are_told_before_the_export(folders, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("hub_scripts.export_onnx.export", lambda *arguments: pytest.fail("exported first"))
    if wrong != "nothing":
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / ("a.jpg" if wrong == "broken" else "a.txt")).write_bytes(b"no image")
    images = ["--calibration_images", str(tmp_path / "images")]
    message = "a.jpg, field image: is not an image" if wrong == "broken" else "expected a folder with images"
    with pytest.raises(ValueError, match=f"calibration_images.*{message}"):
        main([str(folders / "model"), str(tmp_path / "out"), "--int8", *images])


def test_a_folder_without_a_model_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "nomodel").mkdir()
    monkeypatch.setattr("sys.argv", ["export_onnx", str(tmp_path / "nomodel"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="^export_onnx: .*nomodel") as error:
        cli()
    assert "\n" not in error.value.code


def test_no_path_of_this_machine_is_written(folders):
    for file in (folders / "exported").glob("*.onnx"):
        assert b".py" not in file.read_bytes()


def test_a_full_folder_is_named(folders):
    run = subprocess.run(
        [sys.executable, "-m", "hub_scripts.export_onnx", folders / "model", folders / "exported"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1 and "exported is not empty" in run.stderr and "Traceback" not in run.stderr
