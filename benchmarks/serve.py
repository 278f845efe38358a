"""Throughput and waiting time of `serve.py`: `python -m benchmarks.serve --model outputs/demo/model`.

Starts the service and lets 1, 8 and 50 clients at once send synthetic posts, half of them with a JPEG as base64, one a request,
each client its next one as soon as it has an answer. Checks that every answer is that of its post. Clients and service share
the machine's cores.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from transformers import pipeline

from mner_data.files import markdown_table
from mner_data.synthetic_posts import synthetic_dataset
from processors import load_image

ROOT = Path(__file__).resolve().parents[1]
CLIENTS, POSTS, SEED, START_SECONDS = (1, 8, 50), 200, 5, 300


def posts() -> list[dict]:
    """Posts as a request holds them."""
    rows = []
    for place, row in enumerate(synthetic_dataset(POSTS, SEED)):
        post = {"text": row["tokens"]}
        if place % 2 and row["image"] is not None:
            content = io.BytesIO()
            load_image(row["image"]).save(content, "JPEG")
            post |= {
                "image": base64.b64encode(content.getvalue()).decode(),
                "boxes": row["boxes"],
                "box_labels": row["box_labels"],
            }
        rows.append(post)
    return rows


def start(model: str, port: int) -> subprocess.Popen:
    """The service, once it answers."""
    process = subprocess.Popen([sys.executable, ROOT / "serve.py", "--model", model, "--port", str(port)], cwd=ROOT)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return process
        time.sleep(0.2)
    process.kill()
    sys.exit("serve.py did not start")


def client(port: int, bodies: list[tuple[int, bytes]]) -> list[tuple[int, float, list]]:
    """Each post's place, the seconds until its answer, and the answer."""
    connection, answers = http.client.HTTPConnection("127.0.0.1", port), []
    for place, body in bodies:
        begun = time.perf_counter()
        connection.request("POST", "/tag", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        answers.append((place, time.perf_counter() - begun, json.loads(content)))
    return answers


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=1000, help="requests for each number of clients")
    options = parser.parse_args()
    rows = posts()
    bodies = [json.dumps(row).encode() for row in rows]
    ner = pipeline("mner", model=options.model, trust_remote_code=True)
    expected = [[entity["word"] for entity in entities] for entities in ner(rows, batch_size=32)]
    begun = time.perf_counter()
    ner(rows, batch_size=32)
    rate = len(rows) / (time.perf_counter() - begun)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(options.model, port)
    table = []
    try:
        for count in CLIENTS:
            work = [(place % POSTS, bodies[place % POSTS]) for place in range(options.requests)]
            begun = time.perf_counter()
            with ThreadPoolExecutor(count) as threads:
                shares = [work[first::count] for first in range(count)]
                answers = [answer for share in threads.map(client, [port] * count, shares) for answer in share]
            seconds = time.perf_counter() - begun
            wrong = [place for place, _, entities in answers if [entity["word"] for entity in entities] != expected[place]]
            assert not wrong, f"{count} clients: {len(wrong)} answers are not those of their posts, such as {wrong[:3]}"
            waits = statistics.quantiles([wait for _, wait, _ in answers], n=20)
            row = [str(count), f"{len(answers) / seconds:.1f}", f"{waits[9] * 1000:.0f}", f"{waits[18] * 1000:.0f}"]
            table.append(row)
            print(*row, flush=True)
    finally:
        process.terminate()
        process.wait()
    print(markdown_table(["clients at once", "posts a second", "median, ms", "p95, ms"], table))
    print(f"the pipeline alone, batches of 32: {rate:.1f} posts a second; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
