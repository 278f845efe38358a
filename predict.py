"""Tag posts in bulk: `python predict.py --model outputs/demo/model --data posts.parquet --output tagged`.

The same command starts Ray on this machine or, with `--address auto`, joins a cluster. Reading, sharding, scheduling,
retries and writing are Ray Data's. Killed, the same command goes on where it was.

`--data` is parquet (files, a folder, or an address such as s3://…), JSONL, the field's CoNLL form, a data set saved by
`datasets`, or a name on the Hub. A post has `id`, `tokens` or `text`, and maybe `image` (the picture's bytes, or its name in the
folder `--images`), `boxes`, `box_labels`, `box_scores`; one that names no image gets the file of `--images` with its id, if any.

`--output` then holds `data/*.parquet` with a row a post: `id`, `entities`, `relevance` (null without a picture), `error`. A
post that cannot be tagged has no entities and an `error`. Until all posts are done, the results lie in `_run-…`.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from transformers import AutoConfig, pipeline
from transformers.utils import HF_MODULES_CACHE

from modeling_hamlearning.configuration_hamlearning import LEVELS
from processors.fetching import fetch
from training.data import DataError, clean, find_image
from training.files import UNFINISHED, written_whole

try:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    from training.posts import FIELDS, Posts, count_posts, fingerprint_of, open_data
except ImportError as error:
    raise SystemExit(f"predict.py needs Ray Data ({error}): pip install 'hamlearning[bulk]'") from error

REGION = pa.struct(
    [
        ("box", pa.struct([(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")])),
        ("label", pa.string()),
        ("score", pa.float32()),
    ]
)
ENTITY = pa.struct(
    [
        ("entity_group", pa.string()),
        ("score", pa.float32()),
        ("word", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("region", REGION),
    ]
)
COLUMNS = {
    "entities": pa.list_(ENTITY),
    "relevance": pa.struct([(level, pa.float32()) for level in LEVELS]),
    "error": pa.string(),
}
# Names that readers of parquet folders pass over.
SETTINGS, LOCK, RUN = "_predict.json", "_lock", "_run-"
RESULTS, CHECKPOINT = "data", "checkpoint"
ROOT = Path(__file__).resolve().parent
# Ray needs room beside the taggers to read, to write and, after a kill, to leave out the posts that are done.
OTHER_CPUS = 3
PROGRESS_SECONDS = 10
FETCHES_AT_ONCE = 8
# A post that kills its worker every time ends the run; Ray's own default is to try for ever.
RETRIES = 5


class Tagger:
    """A Ray actor that holds the pipeline and turns a table of posts into a table of results."""

    def __init__(self, model: str, revision: str | None, images: str | None, allow_urls: bool, batch_size: int):
        self.images, self.allow_urls, self.batch_size = images and Path(images), allow_urls, batch_size
        # transformers copies the model's code to a folder that the machine's actors share.
        Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(HF_MODULES_CACHE, ".hamlearning.lock")):
            device = 0 if torch.cuda.is_available() else -1
            options = {"revision": revision, "trust_remote_code": True, "device": device, "return_relevance": True}
            self.ner = pipeline("mner", model=model, model_kwargs={"use_safetensors": True}, **options)
        self.threads = ThreadPoolExecutor(FETCHES_AT_ONCE)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [_parse(row) for row in table.to_pylist()]
        results: list[dict] = [{}] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda place: _length(rows[place]))
        for first in range(0, len(rows), self.batch_size):
            places = by_length[first : first + self.batch_size]
            posts = list(self.threads.map(self._post, [rows[place] for place in places]))
            tagged = iter(self._tag([post for post in posts if not isinstance(post, Exception)]))
            for place, post in zip(places, posts, strict=True):
                results[place] = _row(post if isinstance(post, Exception) else next(tagged))
        _give_back_memory()
        columns = [pa.array([result[name] for result in results], type=kind) for name, kind in COLUMNS.items()]
        return pa.table([table["id"], *columns], names=["id", *COLUMNS])

    def _post(self, row: dict | Exception) -> dict | Exception:
        """A row as the pipeline takes it, its picture as bytes or as a file that may be opened; or what is wrong with it."""
        if isinstance(row, Exception):
            return row
        try:
            text = row["tokens"] if row.get("tokens") is not None else row.get("text")
            given = {name: row[name] for name in FIELDS if row.get(name) is not None}
            return {"text": text} | given | {"image": self._image(given.get("image"), row["id"])}
        except Exception as error:  # whatever a row holds: it becomes the row's own error
            return error

    def _image(self, image: Any, name: str) -> Any:
        """The picture itself or its file. Only here do paths and URLs of posts become something to open."""
        if isinstance(image, dict):
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if isinstance(image, str):
            if image.startswith(("http://", "https://")):
                if not self.allow_urls:
                    raise DataError(f"field image: is a URL, which is fetched only with --allow_urls: {image:.200}")
                return fetch(image)
            if self.images is None:
                raise DataError(f"field image: {image!r:.200} is a file, but no folder was given: --images DIR")
            if (path := find_image(self.images, image)) is None:
                raise DataError(f"field image: there is no file {image!r:.200} in {self.images}")
            return path
        if image is None and self.images is not None:
            return find_image(self.images, str(name))
        return image

    def _tag(self, posts: list[dict]) -> list[dict | Exception]:
        """Results of posts; where one raises, the halves are tried apart, down to the post that is at fault."""
        if not posts:
            return []
        try:
            return self.ner(posts, batch_size=len(posts))
        except torch.AcceleratorError:
            raise  # the device is broken, not the post: the run ends, and goes on when the command is given again
        except Exception as error:
            if len(posts) == 1:
                return [error]
            half = len(posts) // 2
            return self._tag(posts[:half]) + self._tag(posts[half:])


def _parse(row: dict) -> dict | Exception:
    """A row's fields: those of its columns, or of its line of JSON."""
    if "json" not in row:
        return row
    try:
        fields = json.loads(row["json"])
        return fields | {"id": row["id"]}
    except (ValueError, TypeError, RecursionError) as error:
        return DataError(f"is no line of JSON with a post: {error}")


def _give_back_memory():
    """Hand freed memory back: batches of ever other shapes leave holes, by which glibc's heap would grow for hours."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _length(row: dict | Exception) -> int:
    text = None if isinstance(row, Exception) else row.get("tokens") or row.get("text")
    return len(text) if isinstance(text, list | str) else 0


def _row(result: dict | Exception) -> dict[str, Any]:
    """A result as a row of the output."""
    if isinstance(result, Exception):
        kind = "" if isinstance(result, ValueError) else f"{type(result).__name__}: "
        # The pipeline names a post by its place in the batch; here the row's id does.
        reason = re.sub(r"^post 0(, |: )", "", str(result))
        return {"entities": None, "relevance": None, "error": clean(f"{kind}{reason}"[:500])}
    entities = [entity | {"word": clean(entity["word"]), "region": _writable(entity["region"])}
                for entity in result["entities"]]  # fmt: skip
    return {"entities": entities, "relevance": result["relevance"], "error": None}


def _writable(region: dict | None) -> dict | None:
    return region and region | {"label": clean(region["label"])}


# What is written


def claim(output: Path, settings: dict, overwrite: bool) -> dict:
    """Take an empty folder, or go on in one of the same model, data and settings; returns what is known of the run.

    Raises:
        DataError: the folder holds something else.
    """
    mark = output / SETTINGS
    if mark.is_file():
        known = json.loads(mark.read_text())
        different = [name for name, value in settings.items() if known["settings"].get(name) != value]
        if not different and not overwrite:
            return known
        if not overwrite:
            raise DataError(
                f"{output} holds the results of another {' and '.join(different)}: "
                "choose another --output, or --overwrite to remove them"
            )
        shutil.rmtree(take_over(output))
        if (output / RESULTS).exists():
            # Under another name first: half removed it would still look like the whole result.
            (output / RESULTS).rename(output / f"{RUN}removed")
            shutil.rmtree(output / f"{RUN}removed")
    elif any(path.name != LOCK and path.suffix != UNFINISHED for path in output.iterdir()):
        raise DataError(f"{output} is not empty and not from predict.py: choose another --output")
    known = {"settings": settings, "posts": None}
    save(output, known)
    return known


def save(output: Path, known: dict):
    with written_whole(output / SETTINGS) as path:
        path.write_text(json.dumps(known, indent=1))


def take_over(output: Path) -> Path:
    """The folder that a run writes to until it is done: what an earlier one left, under a new name.

    Workers may outlive the driver of a killed run for a while. They know the old name, where they can write no more.
    """
    folder = output / f"{RUN}{uuid4().hex}"
    for before in output.glob(f"{RUN}*"):
        before.rename(folder)
    for name in (RESULTS, CHECKPOINT):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def keep_whole(folder: Path):
    """Remove what a kill left between a file of results and the checkpoint that vouches for it.

    Ray writes a pending checkpoint, the results, then renames the checkpoint. Results count only if exactly the renamed
    one is there. Ray does the same for pending ones; this also covers a retried write, where both are there.
    """
    stems: dict[str, set[str]] = {RESULTS: set(), CHECKPOINT: set(), "pending": set()}
    files = [*folder.glob(f"{RESULTS}/*.parquet"), *folder.glob(f"{CHECKPOINT}/*.parquet")]
    for file in files:
        pending = file.name.endswith(".pending.parquet")
        stems["pending" if pending else file.parent.name].add(_stem(file))
    whole = (stems[RESULTS] & stems[CHECKPOINT]) - stems["pending"]
    for file in files:
        if _stem(file) not in whole:
            file.unlink()


def _stem(file: Path) -> str:
    """What a file of results and its checkpoint share: `3f…e1_000012` of `3f…e1_000012-0.parquet`."""
    return re.split(r"[-.]", file.name)[0]


class Progress(threading.Thread):
    """Prints how many posts are safely written, at what rate, and how long the rest will take."""

    def __init__(self, folder: Path, total: int):
        super().__init__(daemon=True)
        self.folder, self.total, self.stopped = folder / CHECKPOINT, total, threading.Event()
        self.seen: set[str] = set()
        self.begun, self.before = time.monotonic(), self.count()
        if self.before:
            print(f"going on: {self.before:,} of {total:,} posts are done", flush=True)
        self.done = self.before

    def count(self) -> int:
        """Rows of the checkpoints that were not seen before."""
        new = [file for file in self.folder.glob("*.parquet") if not file.name.endswith(".pending.parquet")]
        new = [file for file in new if file.name not in self.seen]
        self.seen |= {file.name for file in new}
        return sum(pq.read_metadata(file).num_rows for file in new)

    def run(self):
        while not self.stopped.wait(PROGRESS_SECONDS):
            self.done += self.count()
            print(self.line(), flush=True)

    def line(self) -> str:
        rate = (self.done - self.before) / (time.monotonic() - self.begun)
        left = f"{_duration((self.total - self.done) / rate)} left" if rate else "…"
        share = self.done / self.total if self.total else 1
        return f"{self.done:,} of {self.total:,} posts ({share:.1%}), {rate:,.1f} a second, {left}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


# The run


def main(arguments: list[str] | None = None) -> Path:
    options = _options(arguments)
    output = Path(options.output)
    revision, model_hash = _model(options.model, options.revision)
    posts = open_data(options.data, options.split)
    settings = {
        "model": [options.model, model_hash],
        "data": [options.data, options.split, posts.fingerprint],
        "images": options.images and str(Path(options.images).resolve()),
        "allow_urls": options.allow_urls,
    }
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            known = claim(output, settings, options.overwrite)
            if (output / RESULTS).is_dir():
                for left in output.glob(f"{RUN}*"):
                    shutil.rmtree(left)
                print(f"nothing to do: {output} is complete")
                return output
            if known["posts"] is None:
                known["posts"] = count_posts(posts.ids())
                save(output, known)
            with _ray(options):
                _run(options, output, known, posts, revision)
    except Timeout as error:
        raise DataError(f"{output}: another predict.py writes there") from error
    return output


def _run(options: argparse.Namespace, output: Path, known: dict, posts: Posts, revision: str | None):
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    workers, gpus = _workers(options)
    # A path that looks the same from every machine.
    folder = take_over(output.resolve())
    keep_whole(folder)
    progress = Progress(folder, known["posts"])
    rows = posts.read()
    # Ray's own deletion would come before the results are in their place.
    rows.context.checkpoint_config = CheckpointConfig(
        "id", str(folder / CHECKPOINT), delete_checkpoint_on_success=False
    )
    rows.context.enable_progress_bars = False
    progress.start()
    try:
        rows.repartition(target_num_rows_per_block=options.block_rows).map_batches(
            Tagger,
            fn_constructor_args=(options.model, revision, options.images, options.allow_urls, options.batch_size),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus,
            max_task_retries=RETRIES,
        ).write_parquet(str(folder / RESULTS), try_create_dir=False)
    finally:
        progress.stopped.set()
        progress.join()
        keep_whole(folder)
    results = pyarrow.dataset.dataset(folder / RESULTS, format="parquet")
    written, failed = results.count_rows(), results.count_rows(filter=pc.field("error").is_valid())
    if written != known["posts"]:
        raise RuntimeError(
            f"{output} holds {written:,} rows for {known['posts']:,} posts: was --data changed meanwhile?"
        )
    (folder / RESULTS).rename(output / RESULTS)
    shutil.rmtree(folder)
    print(f"done: {written:,} posts in {output}, {failed:,} of them with an error")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or repo on the Hub; its code is run")
    parser.add_argument("--revision", help="commit, tag or branch of a model on the Hub")
    parser.add_argument("--data", required=True, help="posts: see above")
    parser.add_argument("--split", help="only this split of the data")
    parser.add_argument("--images", help="folder of the posts' pictures; no post can name one outside it")
    parser.add_argument("--output", required=True, help="folder of the results, seen by every machine")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in --output")
    parser.add_argument(
        "--address", help="Ray cluster to join, e.g. auto; a Ray of its own on this machine if not given"
    )
    parser.add_argument("--workers", type=int, help="taggers at once; as many as GPUs or else CPUs if not given")
    parser.add_argument("--gpus", type=float, help="share of a GPU a tagger gets; 1 if there are any, 0 for the CPU")
    parser.add_argument("--batch_size", type=int, default=32, help="posts in one call of the model (default 32)")
    parser.add_argument("--block_rows", type=int, default=1000, help="posts a kill can lose a tagger (default 1000)")
    parser.add_argument("--allow_urls", action="store_true", help="fetch pictures that posts name by URL")
    options = parser.parse_args(arguments)
    if options.images and not Path(options.images).is_dir():
        raise DataError(f"--images: there is no folder {options.images}")
    return options


def _model(name: str, revision: str | None) -> tuple[str | None, str]:
    """The commit of a model on the Hub, or none, and a hash of what the model is."""
    folder = Path(name)
    if not folder.is_dir():
        commit = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=True)._commit_hash
        return commit, commit
    if not (folder / "config.json").is_file():
        raise DataError(f"--model: {name} has no config.json, so it is no saved model")
    hashes = []
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".py", ".safetensors", ".txt", ".model"):
            with open(file, "rb") as opened:
                hashes.append((file.name, hashlib.file_digest(opened, "sha256").hexdigest()))
    return None, fingerprint_of(hashes)


@contextmanager
def _ray(options: argparse.Namespace) -> Iterator[None]:
    """Ray on this machine, or the cluster's; one that the caller has started is used as it is."""
    if ray.is_initialized():
        yield
        return
    if options.address:
        ours = [str(ROOT / name) for name in ("modeling_hamlearning", "processors", "training")]
        ray.init(options.address, runtime_env={"py_modules": ours}, log_to_driver=False)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # On a busy machine a worker may start for longer than Ray's minute, after which it would start others instead.
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        taggers = options.workers or os.cpu_count()
        ray.init(num_cpus=taggers + OTHER_CPUS, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _workers(options: argparse.Namespace) -> tuple[int, float]:
    """How many taggers, and the GPUs of each."""
    there = ray.cluster_resources()
    gpus = options.gpus if options.gpus is not None else min(1.0, there.get("GPU", 0))
    room = int(there["CPU"]) - OTHER_CPUS
    workers = options.workers or min(room, int(there.get("GPU", 0) / gpus) if gpus else room)
    if workers > room or workers < 1:
        raise DataError(
            f"--workers: {max(workers, 1)} taggers and {OTHER_CPUS} CPUs for reading and writing do not fit Ray's "
            f"{int(there['CPU'])} CPUs: fewer --workers, or a Ray with more --num-cpus"
        )
    return workers, gpus


def _reason(error: BaseException) -> str:
    """What went wrong, without Ray's account of where it ran."""
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    return str(error)


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError, ray.exceptions.RayError) as error:
        sys.exit(f"predict.py: {_reason(error)}")
