"""Memory over a long stream: `python -m benchmarks.memory [--model outputs/demo/model] [--posts 100000]`.

Synthetic posts go through the pipeline as one generator. 2,000 posts are rendered and repeated. Each repetition gets a number
as its last word and a block of another colour in its image, so that no two posts are equal for the tokenizer or for the
pipeline's cache of images. Exits with an error if the memory at the end is more than 5 % above that after the first 1,000.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
import transformers
from PIL import Image
from tqdm.auto import tqdm
from transformers import pipeline

from mner_data.loading import row_to_post
from mner_data.synthetic_posts import synthetic_dataset
from processors import load_image

DRAWN, SEED, BATCH_SIZE, BLOCK, FIRST, MOST_GROWTH = 2000, 11, 32, 16, 1000, 1.05
RESULTS = Path("benchmarks/results")


def stream(count: int) -> Iterator[dict]:
    """So many posts, no two of them equal."""
    rows = synthetic_dataset(min(DRAWN, count), SEED)
    for index in range(count):
        post = row_to_post(rows[index % len(rows)])
        post["text"] = [*post["text"], str(index)]
        if post["image"] is not None:
            image = load_image(post["image"])
            image.paste((index & 255, index >> 8 & 255, index >> 16), (0, 0, BLOCK, BLOCK))
            file = io.BytesIO()
            image.save(file, "PNG")
            post["image"] = Image.open(file)
        yield post


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/demo/model")
    parser.add_argument("--posts", type=int, default=100_000)
    options = parser.parse_args()
    ner = pipeline("mner", model=options.model, trust_remote_code=True)
    process, begun, cpu = psutil.Process(), time.monotonic(), time.process_time()
    used, entities = {}, 0
    tagged = ner(stream(options.posts), batch_size=BATCH_SIZE)
    for count, found in enumerate(tqdm(tagged, total=options.posts, mininterval=10), 1):
        entities += len(found)
        if count == FIRST or count % 10_000 == 0 or count == options.posts:
            gc.collect()
            used[count] = round(process.memory_info().rss / 2**20, 1)
            print(f"{count:>8,} posts: {used[count]:,.1f} MiB", flush=True)
    growth = used[options.posts] / used[FIRST]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks.memory --posts {options.posts}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "mib_after_posts": used,
        "end / after 1,000": round(growth, 4),
        "entities": entities,
        "seconds": round(time.monotonic() - begun),
        "cpu_seconds": round(time.process_time() - cpu),
    }
    RESULTS.joinpath(f"{result['date']}-memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"at the end {growth:.3f} of the memory after {FIRST:,} posts")
    return int(growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
