"""`python serve.py` in a process of its own, and clients that talk to it over HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

ROOT = Path(__file__).resolve().parents[1]
# A busy machine takes minutes to import torch.
START_SECONDS = 600


class Service:
    """A running service. `log` is what it printed."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.process, self.port, self.log = process, port, log

    def get(self, path: str) -> tuple[int, bytes]:
        return self._open(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"))

    def post(self, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        return self._open(urllib.request.Request(f"http://127.0.0.1:{self.port}/tag", body, headers))

    def tag(self, posts) -> tuple[int, list | dict]:
        status, answer = self.post(json.dumps(posts).encode())
        return status, json.loads(answer)

    @staticmethod
    def _open(request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextlib.contextmanager
def serve(model: Path | str, folder: Path, *options: str, **environment: str) -> Iterator[Service]:
    """The service, once `/health` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "serve.py"), "--model", str(model), "--port", str(port), *options]
    log = folder / f"serve-{port}.log"
    with open(log, "wb") as output:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    service = Service(process, port, log)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError):
                if service.get("/health")[0] == 200:
                    break
            time.sleep(0.1)
        yield service
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def service(saved_model, tmp_path_factory):
    """With small limits, so that each can be met."""
    options = [
        "--max_megabytes",
        "1",
        "--max_pixels",
        "1000000",
        "--max_posts",
        "8",
        "--max_characters",
        "500",
        "--max_boxes",
        "3",
    ]
    with serve(saved_model, tmp_path_factory.mktemp("serve"), *options) as service:
        yield service


@pytest.fixture(scope="module")
def ner(saved_model):
    return pipeline("mner", model=str(saved_model), trust_remote_code=True)


def encoded(image: Image.Image, file_format: str = "PNG") -> str:
    content = io.BytesIO()
    image.save(content, file_format)
    return base64.b64encode(content.getvalue()).decode()


def photo(seed: int) -> Image.Image:
    colors = random.Random(seed)
    image = Image.new("RGB", (80, 60), tuple(colors.randbytes(3)))
    image.paste(tuple(colors.randbytes(3)), (10, 10, 50, 50))
    return image


def assert_same(actual, expected):
    """The same entities, with scores that may differ by what padding does."""
    assert [entity["word"] for entity in actual] == [entity["word"] for entity in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert ours["relevance"] == pytest.approx(theirs["relevance"], abs=1e-4)
        assert {name: ours[name] for name in ("entity_group", "start", "end", "word_start", "word_end")} == {
            name: theirs[name] for name in ("entity_group", "start", "end", "word_start", "word_end")
        }
        assert (ours["region"] is None) == (theirs["region"] is None)


def test_fifty_clients_at_once_each_get_their_own_answer(service, ner):
    words = ["Jordan", "Amazon", "Lincoln", "Michael", "court", "park", "river", "trophy", "dogs", "championships"]
    requests = []
    for client in range(50):
        chosen = random.Random(client)
        count = chosen.randint(1, 4)
        texts = [f"client{client} " + " ".join(chosen.choices(words, k=chosen.randint(1, 9))) for _ in range(count)]
        images = [photo(10 * client + place) if place % 2 == client % 2 else None for place in range(count)]
        requests.append([{"text": text, "image": image} for text, image in zip(texts, images, strict=True)])
    with ThreadPoolExecutor(50) as clients:
        bodies = [[post | {"image": post["image"] and encoded(post["image"])} for post in posts] for posts in requests]
        answers = list(clients.map(service.tag, bodies))
    assert {status for status, _ in answers} == {200}
    assert sum(len(posts) > 1 for posts in requests) > 20
    for posts, (_, results) in zip(requests, answers, strict=True):
        for result, expected in zip(results, ner(posts, batch_size=4), strict=True):
            assert_same(result, expected)
            assert all(entity["word"] in posts[results.index(result)]["text"] for entity in result)


def test_one_post_and_a_list_words_and_regions(service, ner):
    image = photo(3)
    post = {"text": ["Jordan", "scores"], "image": image, "boxes": [[0.1, 0.1, 0.6, 0.8]], "box_labels": ["person"]}
    status, result = service.tag(post | {"image": f"data:image/png;base64,{encoded(image)}"})
    assert status == 200
    assert_same(result, ner(post))
    assert any(entity["region"] for entity in result)
    assert service.tag([{"text": ""}]) == (200, [[]])


def test_what_stands_for_no_image_and_a_list_of_one(service, ner):
    text, image = "Jordan scores again on the court", photo(3)
    for nothing in (None, "", "  ", float("nan"), [], [""], [None]):
        status, result = service.tag({"text": text, "image": nothing})
        assert status == 200, (nothing, result)
        assert_same(result, ner(text))
    status, result = service.tag([{"text": text, "image": [encoded(image)]}])
    assert status == 200
    assert_same(result[0], ner({"text": text, "image": image}))


def png_bomb() -> str:
    """Few bytes, 4 million pixels."""
    return encoded(Image.new("1", (2000, 2000)))


CUT = base64.b64encode(base64.b64decode(encoded(Image.effect_noise((90, 90), 60), "JPEG"))[:700]).decode()
WRONG = {
    "broken image": ({"text": "a", "image": CUT}, ["body", "post", "image"], "broken"),
    "no image": ({"text": "a", "image": "aGVsbG8="}, ["body", "post", "image"], "not an image"),
    "no base64": ({"text": "a", "image": "?"}, ["body", "post", "image"], "base64"),
    "a path": ({"text": "a", "image": "/etc/hostname"}, ["body", "post", "image"], "base64"),
    "two images": ({"text": "a", "image": ["aGVsbG8="] * 2}, ["body", "post", "image"], "a valid string"),
    "a URL": ({"text": "a", "image": "http://127.0.0.1/x.png"}, ["body", "post", "image"], "--allow_urls"),
    "too many pixels": ({"text": "a", "image": png_bomb()}, ["body", "post", "image"], "2000 x 2000 pixels"),
    "too long": ({"text": "a" * 501}, ["body", "post", "text"], "at most 500 characters"),
    "too many words": ({"text": ["a"] * 300}, ["body", "post", "text"], "at most 500 characters"),
    "too many boxes": ({"text": "a", "boxes": [[0, 0, 1, 1]] * 4}, ["body", "post", "boxes"], "at most 3"),
    "a wrong box": ([{"text": "a"}, {"text": "a", "boxes": [[0, 0, 2]]}], ["body", "posts", 1, "boxes"], "four numbers"),
    "second post": ([{"text": "a"}, {"text": "a", "image": CUT}], ["body", "posts", 1, "image"], "broken"),
    "too many posts": ([{"text": "a"}] * 9, ["body", "posts"], "at most 8"),
    "no post": ([], ["body", "posts"], "at least 1"),
    "no text": ({"image": None}, ["body", "post", "text"], "required"),
    "unknown field": ({"text": "a", "picture": "x"}, ["body", "post", "picture"], "not permitted"),
    "half a character": ({"text": "\ud800"}, ["body", "post", "text"], "surrogate"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_field(service, name):
    body, location, message = WRONG[name]
    status, answer = service.tag(body)
    assert status == 422 and answer["detail"][0]["loc"] == location and message in answer["detail"][0]["msg"], answer
    assert "Traceback" not in service.log.read_text()


def test_a_large_body_is_refused_while_it_is_read(service):
    status, answer = service.post(json.dumps({"text": "a", "image": "A" * 2**20}).encode())
    assert status == 413 and b"1,048,576 bytes" in answer
    assert service.tag({"text": "a"})[0] == 200


def test_a_wrong_post_costs_no_other_request(service, ner):
    """Those that are tagged in one batch with it get their entities."""
    good = {"text": "Jordan scores again on the court"}
    wrong = {"text": "a", "boxes": [[0.9, 0.0, 0.1, 1.0]]}
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(service.tag, [good, wrong] * 8))
    assert [status for status, _ in answers] == [200, 422] * 8
    expected = ner(good)
    for _, result in answers[::2]:
        assert_same(result, expected)


def test_the_page_describes_the_service_and_loads_nothing_from_elsewhere(service):
    status, page = service.get("/docs")
    assert status == 200 and b"http://" not in page and b"https://" not in page
    for line in page.decode().splitlines():
        for part in line.split('"'):
            if part.startswith("/static"):
                assert service.get(part)[0] == 200
    description = json.loads(service.get("/openapi.json")[1])
    assert set(description["paths"]) == {"/tag", "/health"}
    assert {"200", "413", "422", "503"} <= set(description["paths"]["/tag"]["post"]["responses"])
    assert json.loads(service.get("/health")[1])["status"] == "ok"


# A model that takes as many seconds as a post says, and one post that breaks the device.
SLOW = """
import time, torch
from transformers import Pipeline
before = Pipeline.forward
def forward(self, inputs, **options):
    for post in inputs["posts"]:
        if post["text"] == "break":
            raise torch.AcceleratorError("device-side assert")
        if post["text"].startswith("sleep"):
            time.sleep(int(post["text"].split()[1]))
    return before(self, inputs, **options)
Pipeline.forward = forward
"""


@pytest.fixture
def slow(tmp_path) -> dict[str, str]:
    """Environment of a service with such a model."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])}


def wait_for_pending(service: Service, count: int):
    end = time.monotonic() + 30
    while json.loads(service.get("/health")[1])["pending"] != count:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sigterm_finishes_what_has_begun(saved_model, tmp_path, slow):
    options = ["--batch_size", "1"]
    with serve(saved_model, tmp_path, *options, **slow) as service, ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(service.tag, {"text": f"sleep 2 client {client}"}) for client in range(4)]
        wait_for_pending(service, 4)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):
            service.tag({"text": "too late"})
        assert [answer.result()[0] for answer in answers] == [200] * 4
        assert service.process.wait(60) in (0, -signal.SIGTERM)
        assert "Traceback" not in service.log.read_text()


def test_time_and_the_posts_in_work_are_limited(saved_model, tmp_path, slow):
    options = ["--timeout", "12", "--max_pending", "2", "--batch_size", "1"]
    with serve(saved_model, tmp_path, *options, **slow) as service, ThreadPoolExecutor(1) as clients:
        begun = clients.submit(service.tag, [{"text": "sleep 14"}, {"text": "sleep 30"}])
        wait_for_pending(service, 2)
        status, answer = service.tag({"text": "c"})
        assert status == 503 and "2 posts are in work" in answer["detail"]
        assert begun.result()[0] == 503 and "longer than 12 seconds" in begun.result()[1]["detail"]
        # Posts of those who are gone are not tagged: the next request is in time.
        assert service.tag({"text": "d"})[0] == 200
        assert service.post(b'{"text": "break"}')[0] == 500
        assert service.get("/health")[0] == 503 and service.process.poll() is None


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "serve.py"), "--model", str(tmp_path / "nothing")]
    ended = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "serve: " in ended.stderr and "Traceback" not in ended.stderr
