"""Tag posts in bulk: `python predict.py --model outputs/demo/model --data posts.parquet --output tagged`.

The same command starts Ray on this machine or, with `--address auto`, joins a cluster. Reading, sharding, scheduling,
retries and writing are Ray Data's. If the run is interrupted, repeat the same command: it goes on where it was.

`--data` is parquet (files, a folder, or an address such as s3://…), a label file in any form of docs/data.md (JSONL, JSON, CSV,
CoNLL with or without labels …), a data set saved by `datasets`, or a name on the Hub; folders are read with their sub-folders. A
post has `id`, `tokens` or `text`, and maybe `image` (the image's bytes, or its name in the folder `--images` or below the folder
of the data), `boxes`, `box_labels`, `box_scores`; usual other names are understood. A post that names no image gets the one of
`--images` that has its id as name, if there is one; `images` and `regions.jsonl` beside the data are used without being asked.

`--output` then holds `data/*.parquet` with a row for each post: `id`, `entities`, `relevance` (null where no image was used),
`error`. A post with a broken image or a wrong box has the entities of its text beside the `error`; one whose text cannot be
tagged has only the `error`. Until all posts are done, the results lie in `_run-…`. `--output_format` also writes one file:
`tagged.jsonl`, or `tagged.conll` with words and BIO labels.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset
from transformers import AutoConfig

from mner_data.files import reserve_output_dir
from mner_data.options import add_reading_options, parse_column_names
from mner_data.readers import DataError

try:
    import ray
    from ray.data.checkpoint import CheckpointConfig
except ImportError as error:
    raise SystemExit(f"predict.py needs Ray Data ({error}): pip install 'ray[data]>=2.60,<2.64'") from error

from bulk.output import (
    CHECKPOINT,
    FILES,
    RESULTS,
    RUN,
    SETTINGS,
    Progress,
    adopt_run_folder,
    clear_results,
    drop_incomplete,
    save_count,
    saved_count,
    write_file,
)
from bulk.sources import PostSource, count_posts, fingerprint_of, folder_fingerprint, open_data
from bulk.tagger import Tagger

ROOT = Path(__file__).resolve().parent
# Beside the taggers Ray needs CPUs to read, to write and, in a run that goes on, to leave out the posts that are done.
OTHER_CPUS = 3
# A post that kills its worker every time ends the run. Ray's default is to try again for ever.
RETRIES = 5
# The files that decide what a model says: settings and code, weights, and what tokenizers keep beside them. Its card, and what
# training leaves there, do not.
MODEL_SUFFIXES = (".json", ".py", ".safetensors", ".bin", ".onnx", ".data", ".txt", ".model", ".codes", ".tokenizer")


def main(arguments: list[str] | None = None) -> Path:
    """Tag the posts of `--data`, or go on with a run that was interrupted.

    Args:
        arguments: those of the command line; `sys.argv` if None.

    Returns:
        The folder of the results.

    Raises:
        DataError: the model or the data are not what is expected.
        OutputError: the output folder holds something else, is in use, or cannot be written.
        ray.exceptions.RayError: the run failed; the same command goes on.
    """
    options = _options(arguments)
    output = Path(options.output)
    revision, model_hash = _model(options.model, options.revision)
    posts = open_data(
        options.data,
        options.split,
        Path(options.images) if options.images else None,
        output,
        options.format,
        options.columns,
        parse_column_names(options.column_names),
    )
    settings = {
        "model": [options.model, model_hash],
        "data": [options.data, options.split, posts.fingerprint],
        "reading": [options.format, options.columns, options.column_names],
        "images": None,
        "allow_urls": options.allow_urls,
        "output_format": options.output_format,
    }
    notes = list(posts.notes)
    if posts.images:
        fingerprint, count = folder_fingerprint(posts.images, [output])
        settings["images"] = [str(posts.images.resolve()), fingerprint]
        notes.append(f"images: {posts.images} ({count:,} files)")
    else:
        notes.append("images: those that the posts hold; no folder")
    print("\n".join(notes), flush=True)
    with reserve_output_dir(output, settings, settings_file=SETTINGS, overwrite=options.overwrite, clear=clear_results):
        has_file = options.output_format not in FILES or (output / FILES[options.output_format]).is_file()
        if (output / RESULTS).is_dir() and has_file:
            for folder in output.glob(f"{RUN}*"):
                shutil.rmtree(folder)
            print(f"nothing to do: {output} is complete")
            return output
        if not (output / RESULTS).is_dir():
            # Counted before the run has a folder: data with a wrong id leave nothing behind.
            num_posts = saved_count(output) or count_posts(posts.ids())
            with _ray(options):
                _run(options, output, num_posts, posts, revision)
        if options.output_format in FILES:
            file, lacking = write_file(output, options.output_format)
            print(
                f"written: {file}" + (f"; {lacking:,} posts have no text that can be tagged and are not in it" if lacking else "")
            )
    return output


def cli():
    """The command line: prints an error as one line and exits with 1, or with 130 after Ctrl-C."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except (DataError, OSError, ray.exceptions.RayError) as error:
        sys.exit(f"{name}: {' '.join(_reason(error).split())}")


def _run(options: argparse.Namespace, output: Path, num_posts: int, posts: PostSource, revision: str | None):
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    workers, gpus = _workers(options)
    # Every machine has to find the folder under the same path.
    folder = adopt_run_folder(output.resolve())
    drop_incomplete(folder)
    save_count(folder, num_posts)
    progress = Progress(folder, num_posts)
    rows = posts.read()
    # Ray's own deletion of the checkpoints would come before the results are in their place.
    rows.context.checkpoint_config = CheckpointConfig("id", str(folder / CHECKPOINT), delete_checkpoint_on_success=False)
    rows.context.enable_progress_bars = False
    model = options.model if revision else str(Path(options.model).resolve())
    images = posts.images and str(posts.images.resolve())
    progress.start()
    try:
        rows.repartition(target_num_rows_per_block=options.block_rows).map_batches(
            Tagger,
            fn_constructor_args=(
                model,
                revision,
                images,
                options.allow_urls,
                options.batch_size,
                posts.regions,
            ),
            fn_constructor_kwargs={
                "with_tokens": options.output_format == "conll",
                "data_dir": posts.folder and str(posts.folder.resolve()),
                "column_names": posts.column_names,
            },
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
    if written != num_posts:
        raise DataError(f"{output}: expected {num_posts:,} rows, got {written:,}: --data was changed during the run")
    without_image = results.count_rows(filter=pc.field("relevance").is_null())
    (folder / RESULTS).rename(output / RESULTS)
    shutil.rmtree(folder)
    print(f"done: {written:,} posts in {output}, {without_image:,} of them without an image, {failed:,} with an error")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or repo on the Hub; its code is run")
    parser.add_argument("--revision", help="commit, tag or branch of a model on the Hub")
    parser.add_argument("--data", required=True, help="the posts: see above")
    parser.add_argument("--split", help="only this split of the data, by the names of its files, folders or splits")
    add_reading_options(parser)
    parser.add_argument(
        "--images", help="folder of the posts' images; no post can name a file outside it; default: images beside the data"
    )
    parser.add_argument("--output", required=True, help="folder of the results, which every machine has to see")
    parser.add_argument(
        "--output_format",
        choices=["parquet", *FILES],
        default="parquet",
        help="write the results also to one file: tagged.jsonl, or tagged.conll with words and BIO labels; default parquet alone",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in --output")
    parser.add_argument("--address", help="Ray cluster to join, e.g. auto; default: start Ray on this machine")
    parser.add_argument("--workers", type=int, help="taggers at once; default: as many as GPUs or else CPUs")
    parser.add_argument("--gpus", type=float, help="share of a GPU for each tagger; default: 1 if there are GPUs; 0 for the CPU")
    parser.add_argument("--batch_size", type=int, default=32, help="posts in one call of the model (default 32)")
    parser.add_argument(
        "--block_rows", type=int, default=1000, help="posts in a block; a kill costs each tagger one (default 1000)"
    )
    parser.add_argument("--allow_urls", action="store_true", help="fetch images that posts name by URL")
    options = parser.parse_args(arguments)
    for name in ("workers", "batch_size", "block_rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"--{name}: expected a whole number above 0, got {value}")
    if options.gpus is not None and not 0 <= options.gpus < math.inf:
        raise DataError(f"--gpus: expected a share of 0 or more, got {options.gpus}")
    if options.images and not Path(options.images).is_dir():
        raise DataError(f"--images: there is no folder {options.images}")
    return options


def _model(name: str, revision: str | None) -> tuple[str | None, str]:
    """The commit of a model on the Hub, or None for a folder, and a hash of the model's files."""
    folder = Path(name)
    if not folder.is_dir():
        commit = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=True)._commit_hash
        return commit, commit
    if not (folder / "config.json").is_file():
        raise DataError(f"--model: expected a saved model, got a folder without config.json: {name}")
    hashes = []
    for file in sorted(folder.iterdir()):
        if file.suffix in MODEL_SUFFIXES and file.name != "training_args.bin":
            with open(file, "rb") as opened:
                hashes.append((file.name, hashlib.file_digest(opened, "sha256").hexdigest()))
    return None, fingerprint_of(hashes)


@contextmanager
def _ray(options: argparse.Namespace) -> Iterator[None]:
    """Start Ray on this machine or join the cluster, and leave it at the end. A Ray that is already started is used as it is."""
    if ray.is_initialized():
        yield
        return
    if options.address:
        packages = [str(ROOT / name) for name in ("bulk", "mner_data", "modeling_hamlearning", "processors")]
        ray.init(options.address, runtime_env={"py_modules": packages}, log_to_driver=False)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # On a busy machine a worker may take longer to start than Ray's minute, after which Ray would start more of them.
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        taggers = options.workers or os.cpu_count()
        ray.init(num_cpus=taggers + OTHER_CPUS, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _workers(options: argparse.Namespace) -> tuple[int, float]:
    """The number of taggers, and the share of a GPU for each."""
    resources = ray.cluster_resources()
    gpus = options.gpus if options.gpus is not None else min(1.0, resources.get("GPU", 0))
    free_cpus = int(resources["CPU"]) - OTHER_CPUS
    workers = options.workers or min(free_cpus, int(resources.get("GPU", 0) / gpus) if gpus else free_cpus)
    if workers > free_cpus or workers < 1:
        raise DataError(
            f"--workers: {max(workers, 1)} taggers and {OTHER_CPUS} CPUs for reading and writing do not fit Ray's "
            f"{int(resources['CPU'])} CPUs: give fewer --workers, or start Ray with more --num-cpus"
        )
    return workers, gpus


def _reason(error: BaseException) -> str:
    """The error itself, without Ray's account of where it was raised."""
    while isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        error = error.cause
    return str(error)


if __name__ == "__main__":
    cli()
