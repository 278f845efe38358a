"""What the pipeline costs above its model: parts of `python -m benchmarks.speed`."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig, BertForTokenClassification, Pipeline, pipeline

from hub_scripts.space.app import result_html
from processors import HamLearningImageProcessor, load_image, resize_target

from .timing import BATCH_SIZE, IMAGE_SIZE, LABELS, base_model, in_turn, ratio, tag, tweets, word_processor

NUM_POSTS, PIPELINE_BATCH_SIZE = 32, 16
# Width and height: a thumbnail, a tweet's photo, a phone's photo.
PHOTO_SIZES = ((600, 450), (1200, 900), (4000, 3000))
GRAIN, QUALITY = 4, 90
LATENCY_POSTS = 10


def photo_files(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """JPEG files of smooth colors with the grain of a camera, about as large as photos are: 2.5 MB at 4000 × 3000."""
    files = []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        colors = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(colors.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = pixels + GRAIN * generator.standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
        files.append(str(folder / f"{size[0]}-{seed}.jpg"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1], quality=QUALITY)
    return files


def decoding_difference(file: str) -> float:
    """Mean absolute difference of pixels from 0 to 255 after resizing: decoded whole, and decoded at reduced size."""
    image_processor = HamLearningImageProcessor(do_normalize=False, do_rescale=False)
    images = [load_image(file), load_image(file, target_size=resize_target(image_processor))]
    whole, reduced = image_processor(images=images, return_tensors="pt")["pixel_values"].float()
    return float((whole - reduced).abs().mean())


def base_pipeline(texts: list[str], device: str) -> Pipeline:
    """The task's pipeline with the base model."""
    return pipeline("mner", model=base_model().to(device).eval(), processor=word_processor(texts), device=device)


def bare(ner: Pipeline, posts: list[dict]) -> Callable[[], None]:
    """Tags the posts with the model alone: in the pipeline's batches, ready in memory."""
    by_length = sorted(posts, key=lambda post: len(ner.processor.split_words(post["text"])[0]))
    batches = []
    for first in range(0, len(posts), PIPELINE_BATCH_SIZE):
        some = by_length[first : first + PIPELINE_BATCH_SIZE]
        batch = ner.processor(text=[post["text"] for post in some], images=[post.get("image") for post in some])
        batches.append(dict(batch.to(ner.device)))
    return tag(ner.model, batches)


def photos(device: str, rounds: int) -> dict[str, float]:
    """Throughput from strings and JPEG files, by the size of the photos, over that of the model."""
    texts, found = tweets(NUM_POSTS), {}
    ner = base_pipeline(texts, device)
    for size in PHOTO_SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            files = photo_files(Path(scratch), size, NUM_POSTS)
            posts = [{"text": text, "image": file} for text, file in zip(texts, files, strict=True)]
            shared = [post | {"image": files[place // 4]} for place, post in enumerate(posts)]
            actions = {
                "bare": bare(ner, posts),
                "pipeline": lambda posts=posts: ner(posts, batch_size=PIPELINE_BATCH_SIZE),
                "shared": lambda shared=shared: ner(shared, batch_size=PIPELINE_BATCH_SIZE),
            }
            taken = in_turn(actions, rounds, device)
            difference = max(map(decoding_difference, files[:LATENCY_POSTS]))
        found[f"{size[0]} x {size[1]}: mean difference of pixels by decoding at reduced size, of 255"] = difference
        what = f"{size[0]} x {size[1]}: pipeline from files / model on tensors"
        found[f"{what}, posts a second"] = ratio(taken, "bare", "pipeline", device="wall")
        found[f"{what}, CPU seconds"] = ratio(taken, "bare", "pipeline")
        found[f"{size[0]} x {size[1]}: every image in four posts / in one"] = ratio(taken, "pipeline", "shared")
    return found


def latency(device: str, rounds: int) -> dict[str, float]:
    """One post at a time, with a photo as a tweet has: the pipeline and the page over the model's own forward."""
    texts = tweets(LATENCY_POSTS)
    ner, taken = base_pipeline(texts, device), {"forward": [], "pipeline": [], "page": []}
    with tempfile.TemporaryDirectory() as scratch:
        posts = [
            {"text": text, "image": file}
            for text, file in zip(texts, photo_files(Path(scratch), PHOTO_SIZES[1], len(texts)), strict=True)
        ]
        for post in posts:
            batch = dict(ner.processor(text=[post["text"]], images=[post["image"]]).to(device))
            content = Path(post["image"]).read_bytes()
            actions = {
                "forward": lambda batch=batch: _forward(ner, batch),
                "pipeline": lambda post=post: ner(post),
                "page": lambda post=post, content=content: result_html(ner, post["text"], content, None),
            }
            for name, times in in_turn(actions, rounds, device).items():
                taken[name] += times
    found = {}
    for clock, seconds in enumerate(("CPU", "wall")):
        for name, times in taken.items():
            milliseconds = sorted(1000 * time[clock] for time in times)
            found[f"a single post, {name}: {seconds} ms, p50"] = statistics.median(milliseconds)
            found[f"a single post, {name}: {seconds} ms, p95"] = milliseconds[int(0.95 * len(milliseconds))]
    found["a single post: pipeline / forward"] = ratio(taken, "pipeline", "forward", device=device)
    found["a single post: page / forward"] = ratio(taken, "page", "forward", device=device)
    return found


@torch.no_grad()
def _forward(ner: Pipeline, batch: dict):
    ner.model(**batch)


def streams(device: str, rounds: int) -> dict[str, float]:
    """A generator of posts beside a list of the same, and how long its first result takes beside one post alone."""
    texts = tweets(NUM_POSTS)
    ner, first_results = base_pipeline(texts, device), []
    with tempfile.TemporaryDirectory() as scratch:
        files = photo_files(Path(scratch), PHOTO_SIZES[1], NUM_POSTS)
        posts = [{"text": text, "image": file} for text, file in zip(texts, files, strict=True)]

        def stream():
            start = time.perf_counter()
            results = ner(iter(posts), batch_size=PIPELINE_BATCH_SIZE)
            next(results)
            first_results.append(time.perf_counter() - start)
            list(results)

        actions = {"one": lambda: ner(posts[0]), "list": lambda: ner(posts, batch_size=PIPELINE_BATCH_SIZE), "stream": stream}
        taken = in_turn(actions, rounds, device)
    alone = [wall for _, wall in taken["one"]]
    waits = [first / one for first, one in zip(first_results[1:], alone, strict=True)]
    return {
        "generator / list of posts, posts a second": ratio(taken, "list", "stream", device=device),
        "first result of a generator / one post alone, time": statistics.median(waits),
    }


def peer(device: str, rounds: int, autogluon: str | None = None) -> dict[str, float]:
    """transformers' own tagger of BERT-base on the same text, beside the task's pipeline with and without a photo.

    With the Python of an environment that has AutoGluon, its multimodal tagger on the same posts as well.
    """
    texts = tweets(NUM_POSTS)
    ner = base_pipeline(texts, device)
    plain = BertForTokenClassification(BertConfig(num_labels=len(LABELS))).to(device).eval()
    tagger = pipeline("token-classification", model=plain, tokenizer=ner.processor.tokenizer, device=device)
    with tempfile.TemporaryDirectory() as scratch:
        files = photo_files(Path(scratch), PHOTO_SIZES[1], NUM_POSTS)
        posts = [{"text": text, "image": file} for text, file in zip(texts, files, strict=True)]
        actions = {
            "peer": lambda: tagger(texts, batch_size=PIPELINE_BATCH_SIZE),
            "text": lambda: ner(texts, batch_size=PIPELINE_BATCH_SIZE),
            "photo": lambda: ner(posts, batch_size=PIPELINE_BATCH_SIZE),
        }
        peers = {}
        if autogluon is not None:
            Path(scratch, "posts.json").write_text(json.dumps(posts))
            ner.processor.tokenizer.save_pretrained(Path(scratch, "tokenizer"))
            peers = {
                "AutoGluon, its own choice of encoders": AutoGluon(autogluon, scratch),
                "AutoGluon, BERT-base and ResNet-50": AutoGluon(autogluon, scratch, "--same"),
            }
        taken = in_turn(actions | {name: process.tag for name, process in peers.items()}, rounds, device)
    found = {}
    for name, process in peers.items():
        taken[name] = process.end()[1:]
        found[f"text and photo / {name}, CPU seconds"] = ratio(taken, "photo", name)
    return found | {
        'text alone / pipeline("token-classification") of BERT-base, time': ratio(taken, "text", "peer", device=device),
        'text and photo / pipeline("token-classification") of BERT-base, time': ratio(taken, "photo", "peer", device=device),
    }


class AutoGluon:
    """A process of `autogluon_peer.py`, which says itself what its work takes: CPU and wall seconds."""

    def __init__(self, python: str, folder: str, *options: str):
        command = [python, str(Path(__file__).with_name("autogluon_peer.py")), folder, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.taken: list[tuple[float, float]] = []
        self._answer("ready")

    def tag(self):
        self.process.stdin.write("tag\n")
        self.process.stdin.flush()
        self.taken.append(tuple(json.loads(self._answer("["))))

    def end(self) -> list[tuple[float, float]]:
        """End the process; what every tagging took."""
        self.process.communicate()
        return self.taken

    def _answer(self, start: str) -> str:
        # The library writes advice between the answers.
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise RuntimeError(f"{self.process.args[1]} ended with {self.process.wait()}; what it wrote stands above")


def memory(device: str, rounds: int) -> dict[str, float]:
    """Peak of a process that tags a batch of 32 photos of a phone, above the peak of its model on the same batch."""
    with tempfile.TemporaryDirectory() as scratch:
        files = photo_files(Path(scratch), PHOTO_SIZES[2], NUM_POSTS)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            above = pool.apply(_peak_above_model, (files, device))
    return {"32 photos of 4000 x 3000 in a batch: MB above the model's peak": above}


def _peak_above_model(files: list[str], device: str) -> float:
    texts = tweets(len(files))
    ner = base_pipeline(texts, device)
    batch = dict(ner.processor(text=texts).to(device)) | {
        "pixel_values": torch.zeros(len(files), 3, IMAGE_SIZE, IMAGE_SIZE, device=device),
        "has_image": torch.ones(len(files), dtype=torch.bool, device=device),
    }
    tag(ner.model, [batch])()
    before = _peak()
    ner([{"text": text, "image": file} for text, file in zip(texts, files, strict=True)], batch_size=len(files))
    return _peak() - before


def _peak() -> float:
    """The most memory that this process has used, in MB. `getrusage` would count what its parent used as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def real_batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of tweets in the order they come; seven posts of eight have a photo."""
    texts = tweets(BATCH_SIZE * count)
    processor = word_processor(texts)
    with tempfile.TemporaryDirectory() as scratch:
        files = photo_files(Path(scratch), PHOTO_SIZES[0], BATCH_SIZE)
        for first in range(0, len(texts), BATCH_SIZE):
            without = first // BATCH_SIZE % BATCH_SIZE
            images = [None if place == without else file for place, file in enumerate(files)]
            yield dict(processor(text=texts[first : first + BATCH_SIZE], images=images))
