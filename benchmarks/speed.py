"""How much the model costs above its own two encoders: `python -m benchmarks.speed [--rounds 15] [--device cuda]`.

BERT-base and ResNet-50 at 224 px with random weights, 5 regions, batches of 8 posts of like length, as the pipeline and
the Trainer make them. Everything is measured in turn on the same batches in one process; a figure is the median over
the rounds of the ratio to what stands beside it in the same round, in CPU seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import onnxruntime
import timm
import torch
import torchcrf
import torchvision
import transformers
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BertConfig, BertForTokenClassification, pipeline

from hub_scripts.export_onnx import export, quantize
from mner_data.readers import read_conll
from mner_data.synthetic_posts import synthetic_dataset
from modeling_hamlearning import (
    HamLearningConfig,
    HamLearningCRF,
    HamLearningForTokenClassification,
    HamLearningModel,
    HamLearningOnnxForTokenClassification,
)
from processors import HamLearningImageProcessor, HamLearningProcessor
from training.arguments import NO_LEVELS
from training.metric import pipeline_f1
from training.tokenizer import build_tokenizer

RESULTS = Path("benchmarks/results")
LABELS = ["O", *(f"{prefix}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for prefix in "BI")]
BATCH_SIZE, NUM_REGIONS, IMAGE_SIZE, LABEL_TOKENS = 8, 5, 224, 2
PIPELINE_POSTS, PIPELINE_BATCH_SIZE = 48, 16
CRF_SHAPES = ((32, 32, 9), (64, 128, 9))
# Twitter2017's training posts: words, and sub-tokens of an uncased WordPiece with the special ones, at 40 quantiles.
WORDS = (
    6, 8, 9, 9, 10, 10, 11, 11, 11, 12, 12, 12, 13, 13, 13, 14, 14, 14, 15, 15,
    15, 16, 16, 16, 17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 23, 24, 26, 29,
)  # fmt: skip
SUB_TOKENS = (
    9, 11, 12, 12, 13, 13, 14, 15, 15, 15, 16, 16, 16, 17, 17, 18, 18, 19, 19, 19,
    20, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 26, 26, 27, 29, 29, 30, 32, 36,
)  # fmt: skip


def posts_like_tweets(
    words: Sequence[int], sub_tokens: Sequence[int], num_regions: int = NUM_REGIONS, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """A batch of posts with an image each: random sub-tokens, pixels and boxes, in the shapes the processor makes."""
    generator = torch.Generator().manual_seed(seed)
    size, length, most = len(words), max(sub_tokens), max(words)
    counts = torch.tensor(words)[:, None]
    word_mask = torch.arange(most) < counts
    # Words begin evenly among the sub-tokens between the two special ones.
    step = (torch.tensor(sub_tokens)[:, None] - 2) / counts
    positions = (1 + torch.arange(most) * step).long()
    attention_mask = (torch.arange(length) < torch.tensor(sub_tokens)[:, None]).long()
    corners = torch.rand(size, num_regions, 2, 2, generator=generator).sort(dim=2).values
    batch = {
        "input_ids": torch.randint(1000, 20000, (size, 1, length), generator=generator),
        "attention_mask": attention_mask[:, None],
        "word_positions": positions.where(word_mask, -1),
        "word_mask": word_mask,
        "has_image": torch.ones(size, dtype=torch.bool),
        "pixel_values": torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "image_sizes": torch.tensor([[480.0, 640.0]]).repeat(size, 1),
        "region_boxes": corners.flatten(2),
        "region_label_ids": torch.randint(1000, 20000, (size, num_regions, LABEL_TOKENS), generator=generator),
        "region_mask": torch.ones(size, num_regions, dtype=torch.bool),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def tweet_batches(device: str) -> list[dict[str, Tensor]]:
    """The whole distribution once, in batches of like length."""
    starts = range(0, len(WORDS), BATCH_SIZE)
    return [posts_like_tweets(WORDS[i : i + BATCH_SIZE], SUB_TOKENS[i : i + BATCH_SIZE], device=device, seed=i) for i in starts]


def base_model(**switches) -> HamLearningForTokenClassification:
    """BERT-base and ResNet-50 under the model's own defaults, random weights."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    vision = {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [-1]}
    config = HamLearningConfig(
        text_config=BertConfig(), vision_config=vision, id2label=names,
        label2id={name: index for index, name in names.items()}, **switches,
    )  # fmt: skip
    return HamLearningForTokenClassification(config)


def in_turn(actions: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every action in every round, after one round that does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for index in tqdm(range(rounds + 1), desc="rounds"):
        for name, action in actions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            action()
            if device != "cpu":
                torch.cuda.synchronize()
            if index:
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return taken


def ratio(taken: dict, over: str, *under: str, device: str = "cpu") -> float:
    """Median over the rounds of one action's time over the sum of others'; wall time on a GPU, CPU time else."""
    clock = 0 if device == "cpu" else 1  # CPU or wall
    rounds = range(len(taken[over]))
    return statistics.median(taken[over][turn][clock] / sum(taken[name][turn][clock] for name in under) for turn in rounds)


def tag(model: HamLearningForTokenClassification, batches: list[dict[str, Tensor]]) -> Callable[[], None]:
    """Tags all the batches when it is called."""

    @torch.no_grad()
    def action():
        for batch in batches:
            model.decode(model(**batch), batch["word_mask"])

    return action


def tagging(device: str, rounds: int) -> dict[str, float]:
    model, batches = base_model().to(device).eval(), tweet_batches(device)
    plain = BertForTokenClassification(BertConfig(num_labels=len(LABELS))).to(device).eval()
    bert_32 = _bert_32_batch(device)
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
            inner.image_branch(words, mask, inner.image_branch.memories(**side))

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
    bert_32 = _bert_32_batch(device) | {"labels": torch.zeros(BATCH_SIZE, 32, dtype=torch.long, device=device)}
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


def _bert_32_batch(device: str) -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (BATCH_SIZE, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


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


def pipeline_from_files(device: str, rounds: int) -> dict[str, float]:
    """Throughput from strings and JPEG files over that of the model on the same batches ready in memory."""
    with tempfile.TemporaryDirectory() as scratch:
        texts, images = _tweets(), _image_files(Path(scratch))
        posts = [{"text": text, "image": str(file)} for text, file in zip(texts, images, strict=True)]
        model, processor = base_model().to(device).eval(), _processor(texts)
        ner = pipeline("mner", model=model, processor=processor, device=device)
        by_length = sorted(posts, key=lambda post: len(processor.split_words(post["text"])[0]))
        batches = []
        for first in range(0, len(posts), PIPELINE_BATCH_SIZE):
            some = by_length[first : first + PIPELINE_BATCH_SIZE]
            batch = processor(text=[post["text"] for post in some], images=[post["image"] for post in some])
            batches.append(batch.to(device))

        shared = [post | {"image": posts[index // 4]["image"]} for index, post in enumerate(posts)]
        actions = {
            "bare": tag(model, batches),
            "pipeline": lambda: ner(posts, batch_size=PIPELINE_BATCH_SIZE),
            "shared": lambda: ner(shared, batch_size=PIPELINE_BATCH_SIZE),
        }
        taken = in_turn(actions, max(3, rounds // 3), device)
    return {
        "pipeline from files / model on tensors, posts a second": ratio(taken, "bare", "pipeline", device="wall"),
        "the same in CPU seconds": ratio(taken, "bare", "pipeline"),
        "every image in four posts / in one, posts a second": ratio(taken, "pipeline", "shared", device="wall"),
    }


def _tweets() -> list[str]:
    """Texts of twitter2017 if `HAMLEARNING_DATA` has it, else of synthetic posts."""
    if folder := os.environ.get("HAMLEARNING_DATA"):
        rows = read_conll(Path(folder, "twitter2017", "valid.txt"))
    else:
        rows = synthetic_dataset(PIPELINE_POSTS, seed=1)
    return [" ".join(row["tokens"]) for row in islice(iter(rows), PIPELINE_POSTS)]


def _image_files(scratch: Path) -> list[Path]:
    """Files of the paintings if `HAMLEARNING_DATA` has them, else of rendered images; no two are equal."""
    if folder := os.environ.get("HAMLEARNING_DATA"):
        return sorted(Path(folder, "paintings", "images").glob("*.jpg"))[:PIPELINE_POSTS]
    rows = synthetic_dataset(2 * PIPELINE_POSTS, seed=1)
    rendered = [row["image"]["bytes"] for row in rows if row["image"] is not None][:PIPELINE_POSTS]
    files = [scratch / f"{index}.jpg" for index in range(PIPELINE_POSTS)]
    for file, content in zip(files, rendered, strict=True):
        Image.open(io.BytesIO(content)).convert("RGB").save(file)
    return files


def _processor(texts: list[str]) -> HamLearningProcessor:
    tokenizer = build_tokenizer([word for text in texts for word in text.split()], kind="word", min_count=1)
    tokenizer.model_max_length = 512
    image_processor = HamLearningImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return HamLearningProcessor(image_processor=image_processor, tokenizer=tokenizer)


def onnx(device: str, rounds: int, text_model: str | None = None) -> dict[str, float]:
    """Throughput of exported models over eager fp32 on posts of text alone; F1 on real ones of a model trained on such."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        base_model(**NO_LEVELS).save_pretrained(f"{scratch}/base")
        _processor(["none"]).save_pretrained(f"{scratch}/base")
        text_only = ("input_ids", "attention_mask", "word_positions", "word_mask")
        batches = [{name: batch[name] for name in text_only} for batch in tweet_batches("cpu")]
        models = _exported(f"{scratch}/base", f"{scratch}/base")
        found |= _throughput("BERT-base", models, batches, rounds)
        if text_model is not None:
            rows = list(read_conll(Path(os.environ["HAMLEARNING_DATA"], "twitter2017", "valid.txt")))
            models = _exported(text_model, f"{scratch}/text")
            processor = HamLearningProcessor.from_pretrained(text_model, trust_remote_code=True)
            words = sorted((row["tokens"] for row in rows), key=len)
            starts = range(0, len(words), 10 * BATCH_SIZE)
            batches = [dict(processor(text=words[i : i + BATCH_SIZE], is_split_into_words=True)) for i in starts]
            found |= _throughput("MiniLM", models, batches, rounds)
            names = models["eager"].config.label_names
            ids = models["eager"].config.label2id
            posts = [{"text": row["tokens"]} for row in rows]
            gold = [{"tokens": row["tokens"], "ner_tags": [ids[label] for label in row["labels"]]} for row in rows]
            for name, model in models.items():
                tagged = pipeline("mner", model=model, processor=processor)(posts, batch_size=16)
                found[f"F1 on twitter2017's validation text, {name}"] = 100 * pipeline_f1(gold, tagged, names)
    return found


def _exported(source: str, folder: str) -> dict[str, HamLearningForTokenClassification]:
    export(source, f"{folder}-onnx")
    shutil.copytree(f"{folder}-onnx", f"{folder}-int8")
    quantize(f"{folder}-int8")
    return {
        "eager": HamLearningForTokenClassification.from_pretrained(source).eval(),
        "ONNX": HamLearningOnnxForTokenClassification.from_pretrained(f"{folder}-onnx"),
        "ONNX int8": HamLearningOnnxForTokenClassification.from_pretrained(f"{folder}-int8"),
    }


def _throughput(what: str, models: dict, batches: list[dict[str, Tensor]], rounds: int) -> dict[str, float]:
    taken = in_turn({name: tag(model, batches) for name, model in models.items()}, rounds, "cpu")
    return {f"{what}: {name} / eager, posts a second": ratio(taken, "eager", name) for name in list(models)[1:]}


def main(arguments: list[str] | None = None):
    parts = {
        "tagging": tagging, "training": training, "crf": crf, "growth": growth, "pipeline": pipeline_from_files, "onnx": onnx,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--text_model", help="a model that train.py made of twitter2017's text, for the F1 of int8")
    options = parser.parse_args(arguments)
    parts["onnx"] = partial(onnx, text_model=options.text_model)
    figures = {}
    for part in options.parts:
        for name, value in parts[part](options.device, options.rounds).items():
            figures[name] = round(value, 4)
            print(f"{name:<55} {value:.3f}", flush=True)
    modules = (torch, torchvision, timm, transformers, onnxruntime)
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
