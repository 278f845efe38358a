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
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset
from filelock import FileLock, Timeout
from transformers import AutoConfig

from mner_data.readers import DataError

try:
    import ray
    from ray.data.checkpoint import CheckpointConfig
except ImportError as error:
    raise SystemExit(f"predict.py needs Ray Data ({error}): pip install 'ray[data]>=2.60,<2.64'") from error

from bulk.output import CHECKPOINT, LOCK, RESULTS, RUN, Progress, adopt_run_folder, claim, drop_incomplete, save
from bulk.sources import PostSource, count_posts, fingerprint_of, open_data
from bulk.tagger import Tagger

ROOT = Path(__file__).resolve().parent
# Ray needs room beside the taggers to read, to write and, after a kill, to leave out the posts that are done.
OTHER_CPUS = 3
# A post that kills its worker every time ends the run; Ray's own default is to try for ever.
RETRIES = 5


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


def _run(options: argparse.Namespace, output: Path, known: dict, posts: PostSource, revision: str | None):
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    workers, gpus = _workers(options)
    # A path that looks the same from every machine.
    folder = adopt_run_folder(output.resolve())
    drop_incomplete(folder)
    progress = Progress(folder, known["posts"])
    rows = posts.read()
    # Ray's own deletion would come before the results are in their place.
    rows.context.checkpoint_config = CheckpointConfig("id", str(folder / CHECKPOINT), delete_checkpoint_on_success=False)
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
        drop_incomplete(folder)
    results = pyarrow.dataset.dataset(folder / RESULTS, format="parquet")
    written, failed = results.count_rows(), results.count_rows(filter=pc.field("error").is_valid())
    if written != known["posts"]:
        raise RuntimeError(f"{output} holds {written:,} rows for {known['posts']:,} posts: was --data changed meanwhile?")
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
    parser.add_argument("--address", help="Ray cluster to join, e.g. auto; a Ray of its own on this machine if not given")
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
        ours = [str(ROOT / name) for name in ("bulk", "mner_data", "modeling_hamlearning", "processors")]
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
