"""How much the model costs above its own two encoders: `python -m benchmarks.speed [--rounds 15] [--device cuda]`.

BERT-base and ResNet-50 at 224 px with random weights, 5 regions, batches of 8 posts of like length, as the pipeline and
the Trainer make them. Everything is measured in turn on the same batches in one process; a figure is the median over
the rounds of the ratio to what stands beside it in the same round, in CPU seconds. `speed_pipeline.py` has the parts that
tag files with the pipeline.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import onnxruntime
import PIL
import timm
import torch
import torchcrf
import torchvision
import transformers
from datasets import Dataset
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import BertConfig, BertForTokenClassification, pipeline

from hub_scripts.export_onnx import export
from hub_scripts.quantize_onnx import quantize
from mner_data.loading import dataset_labels, load_splits, row_to_post
from modeling_hamlearning import (
    HamLearningCRF,
    HamLearningForTokenClassification,
    HamLearningModel,
    HamLearningOnnxForTokenClassification,
)
from processors import HamLearningProcessor
from training.metric import pipeline_f1

from .controlled.experiments import data_folder
from .speed_pipeline import PHOTO_SIZES, latency, memory, peer, photo_files, photos, real_batches, streams
from .timing import (
    BATCH_SIZE,
    LABELS,
    NUM_REGIONS,
    base_model,
    bert_32_batch,
    in_turn,
    posts_like_tweets,
    ratio,
    tag,
    tweet_batches,
    word_processor,
)

RESULTS = Path("benchmarks/results")
CRF_SHAPES = ((32, 32, 9), (64, 128, 9))
REAL_BATCHES = 50


def tagging(device: str, rounds: int) -> dict[str, float]:
    model, batches = base_model().to(device).eval(), tweet_batches(device)
    plain = BertForTokenClassification(BertConfig(num_labels=len(LABELS))).to(device).eval()
    bert_32 = bert_32_batch(device)
    inner = model.model

    @torch.no_grad()
    def text():
        for batch in batches:
            inner.text_encoder(input_ids=batch["input_ids"][:, 0], attention_mask=batch["attention_mask"][:, 0])

    @torch.no_grad()
    def vision():
        for batch in batches:
            inner.get_image_features(batch["pixel_values"])

    @torch.no_grad()
    def bert():
        for _ in batches:
            plain(**bert_32)

    @torch.no_grad()
    def image_branch():
        for side, words, mask in sides:
            inner.image_branch(words, mask, side)

    @torch.no_grad()
    def decode():
        for batch, logits in zip(batches, emissions, strict=True):
            model.crf.decode(logits, batch["word_mask"])

    with torch.no_grad():
        emissions = [model(**batch).logits for batch in batches]
        sides = [image_branch_inputs(inner, batch) for batch in batches]
    actions = {
        "tag": tag(model, batches),
        "text": text,
        "vision": vision,
        "image side": image_branch,
        "bert": bert,
        "decode": decode,
    }
    taken = in_turn(actions, rounds, device)
    return {
        "tagging / its bare encoders": ratio(taken, "tag", "text", "vision", device=device),
        "tagging / BERT-32": ratio(taken, "tag", "bert", device=device),
        "bare text encoder / BERT-32": ratio(taken, "text", "bert", device=device),
        "bare vision encoder / BERT-32": ratio(taken, "vision", "bert", device=device),
        "text encoder / tagging": ratio(taken, "text", "tag", device=device),
        "vision encoder / tagging": ratio(taken, "vision", "tag", device=device),
        "image side / tagging": ratio(taken, "image side", "tag", device=device),
        "CRF decode / tagging": ratio(taken, "decode", "tag", device=device),
    }


def image_branch_inputs(model: HamLearningModel, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The inputs of the image branch for a batch."""
    names = ("image_sizes", "region_boxes", "region_label_ids", "region_mask")
    feature_maps = model.get_image_features(batch["pixel_values"])
    side = model.prepare_image_inputs(batch["has_image"], feature_maps, *(batch[name] for name in names))
    words, _ = model.encode_text(batch["input_ids"], batch["attention_mask"], batch["word_positions"])
    return side, words, batch["word_mask"]


def training(device: str, rounds: int) -> dict[str, float]:
    model, batches = base_model().to(device).train(), tweet_batches(device)
    model.freeze_vision()
    plain = BertForTokenClassification(BertConfig(num_labels=len(LABELS))).to(device).train()
    bert_32 = bert_32_batch(device) | {"labels": torch.zeros(BATCH_SIZE, 32, dtype=torch.long, device=device)}
    for batch in batches:
        batch["labels"] = torch.zeros_like(batch["word_positions"]).masked_fill(~batch["word_mask"], -100)
    with torch.no_grad():
        features = [model.model.get_image_features(batch["pixel_values"]) for batch in batches]
        logits = [model(**batch).logits for batch in batches]
    cached = [
        {name: tensor for name, tensor in batch.items() if name != "pixel_values"} | {"vision_features": feature_maps}
        for batch, feature_maps in zip(batches, features, strict=True)
    ]
    for batch_logits in logits:
        batch_logits.requires_grad_()

    def steps(trained: nn.Module, batches: list[dict[str, Tensor]]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-5, fused=True)

        def action():
            for batch in batches:
                trained(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return action

    def crf():
        for batch, batch_logits in zip(batches, logits, strict=True):
            model.crf(batch_logits, batch["labels"], batch["word_mask"]).sum().backward()

    actions = {
        "step": steps(model, batches),
        "cached": steps(model, cached),
        "bert": steps(plain, [bert_32] * len(batches)),
        "crf": crf,
    }
    taken = in_turn(actions, rounds, device)
    return {
        "train step, frozen vision / BERT-32 step": ratio(taken, "step", "bert", device=device),
        "train step, cached features / BERT-32 step": ratio(taken, "cached", "bert", device=device),
        "CRF loss + backward / train step": ratio(taken, "crf", "step", device=device),
    }


def crf(device: str, rounds: int) -> dict[str, float]:
    """Ours over `pytorch-crf`'s, at the same emissions, labels and lengths."""
    found = {}
    for shape in CRF_SHAPES:
        size, words, labels = shape
        torch.manual_seed(0)
        emissions = torch.randn(shape, device=device, requires_grad=True)
        tags = torch.zeros(size, words, dtype=torch.long, device=device)
        mask = torch.arange(words, device=device) < torch.randint(words // 2, words + 1, (size, 1), device=device)
        mask[0] = True
        ours, theirs = HamLearningCRF(LABELS).to(device), torchcrf.CRF(labels, batch_first=True).to(device)

        def ours_loss(crf=ours, emissions=emissions, tags=tags, mask=mask):
            crf(emissions, tags, mask).sum().backward()

        def theirs_loss(crf=theirs, emissions=emissions, tags=tags, mask=mask):
            (-crf(emissions, tags, mask=mask, reduction="sum")).backward()

        def ours_decode(crf=ours, emissions=emissions, mask=mask):
            with torch.no_grad():
                crf.decode(emissions, mask)

        def theirs_decode(crf=theirs, emissions=emissions, mask=mask):
            with torch.no_grad():
                crf.decode(emissions, mask=mask)

        actions = {"ours": ours_loss, "theirs": theirs_loss, "our decode": ours_decode, "their decode": theirs_decode}
        taken = in_turn(actions, 3 * rounds, device)
        found[f"CRF loss + backward / pytorch-crf at {shape}"] = ratio(taken, "ours", "theirs", device=device)
        found[f"CRF decode / pytorch-crf at {shape}"] = ratio(taken, "our decode", "their decode", device=device)
    return found


def growth(device: str, rounds: int) -> dict[str, float]:
    """Cost of tagging when one thing is doubled, over the cost before: 8 posts of 16 words, 5 regions, 3 rounds."""

    def posts(size: int = BATCH_SIZE, words: int = 16, regions: int = NUM_REGIONS):
        return [posts_like_tweets([words] * size, [words * 3 // 2 + 2] * size, regions, device)]

    model = base_model().to(device).eval()
    deeper = base_model(num_iterations=6).to(device).eval()
    actions = {
        "base": tag(model, posts()),
        "twice the posts": tag(model, posts(size=2 * BATCH_SIZE)),
        "twice the words": tag(model, posts(words=32)),
        "twice the regions": tag(model, posts(regions=2 * NUM_REGIONS)),
        "twice the rounds": tag(deeper, posts()),
    }
    taken = in_turn(actions, rounds, device)
    return {f"{name} / base": ratio(taken, name, "base", device=device) for name in actions if name != "base"}


def compiled(device: str, rounds: int) -> dict[str, float]:
    """Graphs that `torch.compile` makes of real batches, whose sizes all differ, and what they gain once they are made."""
    model, batches = base_model().to(device).eval(), []
    for batch in real_batches(REAL_BATCHES):
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    torch._dynamo.reset()
    counters.clear()
    faster = torch.compile(model, dynamic=True)
    tag(faster, batches)()
    found = {
        f"graph breaks in {REAL_BATCHES} real batches": float(sum(counters["graph_break"].values())),
        f"compilations in {REAL_BATCHES} real batches": float(counters["stats"]["unique_graphs"]),
    }
    some = batches[:: len(batches) // 5]
    taken = in_turn({"eager": tag(model, some), "compiled": tag(faster, some)}, rounds, device)
    return found | {"compiled / eager, posts a second": ratio(taken, "eager", "compiled", device=device)}


def onnx(device: str, rounds: int, trained_models: Sequence[tuple[str, str]] = ()) -> dict[str, float]:
    """Exported models beside the model itself and a plain BERT at length 32; F1 of trained ones, each on its own data set."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos_folder = Path(scratch, "photos")
        photos_folder.mkdir()
        photo_files(photos_folder, PHOTO_SIZES[0], BATCH_SIZE)
        base_model().save_pretrained(f"{scratch}/base")
        word_processor(["none"]).save_pretrained(f"{scratch}/base")
        models = _exported(f"{scratch}/base", f"{scratch}/base", photos_folder)
        batches = tweet_batches("cpu")
        text_only = ("input_ids", "attention_mask", "word_positions", "word_mask")
        texts = [{name: batch[name] for name in text_only} for batch in batches]
        plain, bert_32 = BertForTokenClassification(BertConfig(num_labels=len(LABELS))).eval(), bert_32_batch("cpu")

        @torch.no_grad()
        def bert():
            for _ in batches:
                plain(**bert_32)

        for what, some in (("text", texts), ("text and image", batches)):
            taken = in_turn({"BERT-32": bert} | {name: tag(model, some) for name, model in models.items()}, rounds, "cpu")
            for name in models:
                found[f"{name}, {what} / BERT-32"] = ratio(taken, name, "BERT-32")
                if name != "eager":
                    found[f"{name} / eager, {what}, posts a second"] = ratio(taken, "eager", name)
        for number, (name, trained) in enumerate(trained_models):
            models = _exported(trained, f"{scratch}/trained{number}", data_folder() / "phototweets" / "images")
            processor = HamLearningProcessor.from_pretrained(trained, trust_remote_code=True)
            rows = load_splits(str(data_folder() / name))[0]["validation"]
            found |= _f1(f"{name}, {Path(trained).name}", rows, models, processor)
    return found


def _f1(what: str, rows: Dataset, models: dict, processor: HamLearningProcessor) -> dict[str, float]:
    names = [name.replace("OTHER", "MISC") for name in dataset_labels(rows)]
    posts = [row_to_post(row) for row in rows]
    found = {}
    for name, model in models.items():
        tagged = pipeline("mner", model=model, processor=processor)(posts, batch_size=16)
        found[f"F1 on {what}: {name}"] = 100 * pipeline_f1(rows, tagged, names)
    return found


def _exported(source: str, folder: str, calibration_images: Path) -> dict[str, HamLearningForTokenClassification]:
    export(source, f"{folder}-onnx")
    shutil.copytree(f"{folder}-onnx", f"{folder}-int8")
    quantize(f"{folder}-int8", calibration_images)
    return {
        "eager": HamLearningForTokenClassification.from_pretrained(source).eval(),
        "ONNX": HamLearningOnnxForTokenClassification.from_pretrained(f"{folder}-onnx"),
        "ONNX int8": HamLearningOnnxForTokenClassification.from_pretrained(f"{folder}-int8"),
    }


def _data_and_model(argument: str) -> tuple[str, str]:
    """Read with the command line: a wrong folder must not end a run of half an hour."""
    data, _, folder = argument.partition("=")
    if not Path(folder, "config.json").is_file():
        raise argparse.ArgumentTypeError(f"expected DATA=DIR with the folder of a trained model, got {argument!r}")
    return data, folder


def main(arguments: list[str] | None = None):
    parts = {
        "tagging": tagging, "training": training, "crf": crf, "growth": growth, "photos": photos, "latency": latency,
        "streams": streams, "peer": peer, "memory": memory, "compiled": compiled, "onnx": onnx,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument(
        "--trained_models", nargs="+", type=_data_and_model, default=[], metavar="DATA=DIR",
        help="models trained on real posts, for the F1 of int8",
    )  # fmt: skip
    parser.add_argument("--autogluon", metavar="PYTHON", help="of an environment with autogluon.multimodal, for the peer")
    options = parser.parse_args(arguments)
    parts["peer"] = partial(peer, autogluon=options.autogluon)
    parts["onnx"] = partial(onnx, trained_models=options.trained_models)
    figures = {}
    for part in options.parts:
        for name, value in parts[part](options.device, options.rounds).items():
            figures[name] = round(value, 4)
            print(f"{name:<75} {value:.3f}", flush=True)
    modules = (torch, torchvision, timm, transformers, onnxruntime, PIL)
    versions = {module.__name__: module.__version__ for module in modules}
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.speed " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "versions": versions | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "figures": figures,
    }
    whole = options.parts == list(parts)
    name = "-".join([result["date"], "speed", options.device, *([] if whole else options.parts)])
    RESULTS.joinpath(f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        f"# Speed, {result['date']}",
        "",
        f"`{result['command']}`, {result['threads']} threads, {result['versions']}",
        "",
    ]
    lines += ["| ratio (medians) | |", "|---|---|", *(f"| {name} | {value:.3f} |" for name, value in figures.items())]
    RESULTS.joinpath(f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
