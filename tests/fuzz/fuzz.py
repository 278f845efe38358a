"""Mutated input for everything that reads what strangers wrote: `python -m tests.fuzz.fuzz --inputs 20000 --seed 1`;
files of images alone: `python -m tests.fuzz.fuzz --only images --inputs 30000`.

An input gives a result of the right shape or an error of our own kinds that names post and field, soon and within memory.
Input number i of a target follows from seed, target and i alone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import logging
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pyarrow as pa
import torch
from transformers import BertConfig, pipeline

from hub_scripts import prepare_dataset
from mner_data.loading import load_splits
from mner_data.readers import DataError
from processors import REGION_FIELDS, HamLearningImageProcessor, HamLearningProcessor, ImageError, load_reduced
from tests.tiny import tiny_tokenizer
from tests.tiny_model import tiny_model

from . import mutations

SECONDS_AN_INPUT = 20
MEGABYTES = 1500
# Of processor time and of memory, for the file of one image.
SECONDS_AN_IMAGE, MEGABYTES_AN_IMAGE = 2, 500
NAMES_POST_AND_FIELD = re.compile(r"^(post \d+(, field \w+|:)|(text|images|boxes|box_labels|box_scores): )", re.DOTALL)
NAMES = ["a", "b", "c", "d.png"]


class Fault(AssertionError):
    """An input that broke the promise."""


class Targets:
    """What is tried: a method each, which raises only what is a fault."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        mutations.image_files()
        self.folder, self.model = folder, folder / "model"
        self.tokenizer = tiny_tokenizer("bert")
        config = BertConfig(vocab_size=len(self.tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=32, max_position_embeddings=64)  # fmt: skip
        tiny_model(text_config=config, num_iterations=1).save_pretrained(self.model)
        image_processor = HamLearningImageProcessor(size={"height": 32, "width": 32})
        self.processor_ = HamLearningProcessor(tokenizer=self.tokenizer, image_processor=image_processor)
        self.processor_.save_pretrained(self.model)
        self.ner = pipeline("mner", model=str(self.model), trust_remote_code=True)
        self.tagger_ = None
        self.slowest = self.largest = 0.0

    def images(self, generator: random.Random):
        content, target_size = mutations.image_file(generator), generator.choice((None, (32, 32), (224, 224)))
        memory, begun = megabytes_now(), time.process_time()
        try:
            image, (height, width) = load_reduced(content, target_size)
            check(image.mode == "RGB" and height >= image.height > 0 and width >= image.width > 0, "another mode or size")
            outcome = "result"
        except ImageError:
            outcome = "refused"
        seconds, grown = time.process_time() - begun, megabytes_at_most() - memory
        check(seconds < SECONDS_AN_IMAGE, f"{seconds:.1f} seconds")
        check(grown < MEGABYTES_AN_IMAGE, f"{grown:.0f} MB more memory")
        self.slowest, self.largest = max(self.slowest, seconds), max(self.largest, grown)
        return outcome

    def processor(self, generator: random.Random):
        posts = [mutations.post(generator) for _ in range(generator.choice((1, 1, 2, 4)))]
        posts = [post if isinstance(post, dict) else {"text": post} for post in posts]
        given = {"text": [post.get("text") for post in posts], "images": [post.get("image") for post in posts]}
        given |= {name: [post.get(name) for post in posts] for name in REGION_FIELDS}
        try:
            features = self.processor_(**given, is_split_into_words=generator.random() < 0.2)
        except ValueError as error:
            named(error)
            return "refused"
        check(len(features["input_ids"]) == len(posts), "another number of posts")
        check(torch.isfinite(features.get("pixel_values", torch.zeros(1))).all(), "pixels that are not finite")
        return "result"

    def pipeline(self, generator: random.Random):
        posts = [mutations.post(generator) for _ in range(generator.choice((1, 1, 2, 4)))]
        try:
            results = self.ner(posts, batch_size=2)
        except ValueError as error:
            named(error)
            return "refused"
        check(len(results) == len(posts), "another number of results")
        for post, entities in zip(posts, results, strict=True):
            post = {"text": post} if isinstance(post, str) else post
            text = post["text"] if post.get("tokens") is None else post["tokens"]
            text = text if isinstance(text, str) else " ".join(text)
            for entity in entities:
                check(entity["word"] == text[entity["start"] : entity["end"]], "offsets of another word")
                check(0 <= entity["score"] <= 1 + 1e-5, f"a score of {entity['score']}")
        return "result"

    def files(self, generator: random.Random):
        return self._files(generator, lambda source: load_splits(str(source))[0])

    def prepare(self, generator: random.Random):
        def run(source: Path):
            output = self.folder / "prepared"
            shutil.rmtree(output, ignore_errors=True)
            regions = ["--regions", generator.choice(("grid", str(source / "regions.jsonl")))]
            images = ["--images", str(source / "images")]
            prepare_dataset.main(["--text", str(source), *images, *regions, "--output", str(output)])
            return load_splits(str(output))[0] if generator.random() < 0.1 else None

        return self._files(generator, run)

    def _files(self, generator: random.Random, run):
        """A folder with mutated posts, images and regions."""
        source = self.folder / "source"
        shutil.rmtree(source, ignore_errors=True)
        (source / "images").mkdir(parents=True)
        for name in NAMES[:3]:
            content = mutations.mutated(generator, generator.choice(mutations.image_files()))
            (source / "images" / f"{name}.jpg").write_bytes(content)
        if generator.random() < 0.6:
            (source / "train.txt").write_bytes(mutations.conll(generator, NAMES))
        else:
            (source / "train.jsonl").write_bytes(mutations.json_lines(generator, NAMES, False))
        (source / "regions.jsonl").write_bytes(mutations.json_lines(generator, NAMES, True))
        try:
            data = run(source)
        except DataError as error:
            check(re.search(r"line \d+|post|IMGID|no posts|no line IMGID", str(error)), f"names no place: {error}")
            return "refused"
        for row in data["train"] if data else []:
            check(len(row["tokens"]) == len(row["ner_tags"]), "another number of labels")
        return "result"

    def predict(self, generator: random.Random):
        from bulk.tagger import Tagger

        if self.tagger_ is None:
            (self.folder / "images").mkdir()
            (self.folder / "images" / "a.jpg").write_bytes(mutations.image_files()[0])
            self.tagger_ = Tagger(str(self.model), None, str(self.folder / "images"), False, 4)
        lines = []
        for place in range(generator.choice((1, 2, 5))):
            post = mutations.post(generator)
            row = post if isinstance(post, dict) else {"text": post}
            with contextlib.suppress(ValueError):
                row = {str(name): value for name, value in row.items()} | {"id": f"p{place}"}
                image = row.get("image")
                row["image"] = image if isinstance(image, str | int | list | dict) else "a"
                line = json.dumps(row, default=lambda value: str(value))
                lines.append(mutations.mutated(generator, line.encode("utf-8", "surrogatepass")))
        # And the columns of a parquet file, where images are bytes.
        image = mutations.image(generator)
        table = pa.table({"id": [f"p{place}" for place in range(len(lines))], "json": pa.array(lines, pa.binary())})
        column = pa.array([image if isinstance(image, bytes) else None], pa.binary())
        other = pa.table({"id": ["q"], "tokens": [["Jordan"]], "image": column})
        outcome = "result"
        for given in (table, other):
            rows = self.tagger_(given).to_pylist()
            check([row["id"] for row in rows] == given["id"].to_pylist(), "other ids than those given")
            for row in rows:
                # Both where the image or a box is at fault: the entities are those of the text.
                check(row["entities"] is not None or row["error"] is not None, "neither entities nor an error")
                # Errors of other kinds than ours carry their kind's name.
                kind = re.match(r"(\w+(Error|Exception|Interrupt|Exit)): ", row["error"] or "")
                check(not kind, f"an error not ours: {row['error']}")
                outcome = "refused" if row["error"] else outcome
        return outcome


SHARES = {"images": 0.3, "processor": 0.3, "files": 0.25, "pipeline": 0.2, "predict": 0.15, "prepare": 0.1}


def check(holds, message: str):
    if not holds:
        raise Fault(message)


def named(error: ValueError):
    check(
        isinstance(error, ImageError | DataError) or type(error).__name__ in ("ValueError", "ImageError"),
        repr(error)[:300],
    )
    check(NAMES_POST_AND_FIELD.match(str(error)), f"an error that names no post and field: {error!s:.300}")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes_now() -> float:
    """The process's memory; what it takes at most is counted anew from here on (on Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_megabytes("VmRSS")


def megabytes_at_most() -> float:
    return _status_megabytes("VmHWM")


def _status_megabytes(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def late(signum, frame):
    raise Fault(f"no answer within {SECONDS_AN_INPUT} seconds")


def fuzz(inputs: int, seed: int, folder: Path, only: str | None = None) -> tuple[dict[str, collections.Counter], list[str]]:
    """Outcomes of every target, and the faults: target, number, what happened."""
    targets = Targets(folder)
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, late)
    outcomes: dict[str, collections.Counter] = {}
    faults = []
    for target, share in SHARES.items():
        if only not in (None, target):
            continue
        outcomes[target] = collections.Counter()
        begun = time.monotonic()
        for number in range(max(1, round(inputs * (share if only is None else 1)))):
            before = peak_megabytes()
            signal.alarm(SECONDS_AN_INPUT)
            try:
                with (
                    warnings.catch_warnings(),
                    contextlib.redirect_stdout(io.StringIO()),
                    contextlib.redirect_stderr(io.StringIO()),
                ):
                    warnings.simplefilter("ignore")
                    outcomes[target][getattr(targets, target)(random.Random(f"{seed} {target} {number}"))] += 1
                grown = peak_megabytes() - before
                check(grown < MEGABYTES, f"{grown:.0f} MB more memory")
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(
                    f"{target} {number}: {type(error).__name__}: {error!s:.300} ({Path(where.filename).name}:{where.lineno})"
                )
                outcomes[target]["fault"] += 1
            finally:
                signal.alarm(0)
        outcomes[target]["seconds"] = round(time.monotonic() - begun)
    if "images" in outcomes:
        outcomes["images"]["milliseconds of the slowest"] = round(1000 * targets.slowest)
        outcomes["images"]["megabytes of the largest"] = round(targets.largest)
    logging.disable(logging.NOTSET)
    return outcomes, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(SHARES))
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes, faults = fuzz(options.inputs, options.seed, Path(folder), options.only)
    print("\n".join(faults))
    for target, counts in outcomes.items():
        print(f"{target}: {dict(counts)}")
    tried = sum(counts[kind] for counts in outcomes.values() for kind in ("result", "refused", "fault"))
    print(f"seed {options.seed}: {tried:,} inputs, {len(faults)} faults, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
