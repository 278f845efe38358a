"""Tag posts over HTTP: `python serve.py --model outputs/demo/model`, then `POST /tag`; the page `/docs` describes it.

One process keeps one model. Posts of all requests that wait are tagged together, in batches: while one batch is computed, the
next one gathers. On SIGTERM and Ctrl-C no new connection is taken, and what has begun is answered.

A request names no file of this machine, and an address is fetched only with --allow_urls.
"""

import argparse
import asyncio
import base64
import re
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple

import torch
from transformers import Pipeline, pipeline

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi_offline import FastAPIOffline
    from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator
except ImportError as error:
    raise SystemExit(f"serve.py needs the extra serve ({error}): pip install -e '.[serve]' in the checkout") from error

from mner_data.readers.rows import is_missing
from processors.fetching import fetch

MEGABYTE = 2**20
WRONG_CONTENT = 422
# What the page shows.
EXAMPLE_POST = {"text": "everybody talks about Jordan tonight"}
EXAMPLE_ENTITY = {
    "entity_group": "PER", "score": 0.98, "word": "Jordan", "start": 22, "end": 28, "word_start": 3, "word_end": 4,
    "relevance": {"global": 0.99, "object": 0.01, "spatial": 0.99, "semantic": 0.99},
    "region": {"box": {"xmin": 129.6, "ymin": 96.0, "xmax": 345.6, "ymax": 441.6}, "label": "person", "score": 1.0},
}  # fmt: skip


class Post(BaseModel):
    """A post: its text or its words, and its image if it has one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": EXAMPLE_POST})

    text: str | list[str] = Field(description="The text, or its words.")
    image: str | None = Field(None, description="The image's file as base64 or a data: URI; a URL where the server allows it.")
    boxes: list[list[float]] | None = Field(None, description="Regions of the image: x1, y1, x2, y2 in [0, 1].")
    box_labels: list[str] | None = Field(None, description="A label for each box.")
    box_scores: list[float] | None = Field(None, description="A score for each box.")

    @field_validator("image", mode="before")
    @classmethod
    def _only_image(cls, image: Any) -> Any:
        """As in files, what is blank is no image, and a list of one is its image."""
        if isinstance(image, list):
            images = [item for item in image if not is_missing(item)]
            image = images[0] if len(images) == 1 else images or None
        return None if is_missing(image) else image


class Entity(BaseModel):
    """A named entity of a post."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": EXAMPLE_ENTITY})

    entity_group: str = Field(description="Its type.")
    score: float = Field(description="The probability of the whole entity.")
    word: str
    start: int = Field(description="Where it begins in the text, in characters.")
    end: int
    word_start: int = Field(description="Where it begins, in words.")
    word_end: int
    relevance: dict[str, float] = Field(description="How far each level of the image was used; 0 without an image.")
    region: dict[str, Any] | None = Field(
        description="The region of the image, its box in pixels of the original, its label and score; null without one."
    )


class Health(BaseModel):
    """The state of the service."""

    status: str
    model: str
    pending: int = Field(description="Posts that are being opened, wait for their batch, or are in it.")


class Limits(NamedTuple):
    """What a request may ask for; `pending` is how many posts of all requests may be in work."""

    body: int
    pixels: int
    posts: int
    characters: int
    boxes: int
    seconds: float
    pending: int
    allow_urls: bool


class FieldError(ValueError):
    """What is wrong with a field of a post."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class Batcher:
    """Tags the posts of all requests together: what waits when the model is free becomes the next batch.

    Args:
        ner: a pipeline `"mner"`.
        batch_size: posts in a batch at most.
    """

    def __init__(self, ner: Pipeline, batch_size: int):
        self.ner, self.batch_size = ner, batch_size
        self.waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1)
        self.pending = 0
        self.broken: str | None = None

    async def tag(self, posts: list[dict[str, Any]]) -> list[list[dict] | Exception]:
        """For each post its entities, or what is wrong with it."""
        futures = [asyncio.get_running_loop().create_future() for _ in posts]
        for job in zip(posts, futures, strict=True):
            self.waiting.put_nowait(job)
        return await asyncio.gather(*futures, return_exceptions=True)

    async def run(self):
        """Make batches for as long as the service runs."""
        while True:
            jobs = [await self.waiting.get()]
            while len(jobs) < self.batch_size and not self.waiting.empty():
                jobs.append(self.waiting.get_nowait())
            jobs = [(post, future) for post, future in jobs if not future.done()]  # whoever is gone, or out of time, is left out
            try:
                outcomes = await asyncio.get_running_loop().run_in_executor(self.thread, self._tag, [post for post, _ in jobs])
            except torch.AcceleratorError as error:  # the device is broken, not a post: whoever watches /health has to restart
                self.broken = str(error)
                outcomes = [error] * len(jobs)
            for (_, future), outcome in zip(jobs, outcomes, strict=True):
                if isinstance(outcome, Exception) and not future.done():
                    future.set_exception(outcome)
                elif not future.done():
                    future.set_result(outcome)

    def _tag(self, posts: list[dict[str, Any]]) -> list[list[dict] | Exception]:
        """Entities of each post. A batch that fails is tagged post by post, so that only the one at fault gets its error."""
        if not posts:
            return []
        try:
            return self.ner(posts, batch_size=len(posts))
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return [error] if len(posts) == 1 else [outcome for post in posts for outcome in self._tag([post])]


class RequestLimits:
    """ASGI middleware: a body that is too large ends the request at once (413), and so does time (503)."""

    def __init__(self, app, body: int, seconds: float):
        self.app, self.body, self.seconds = app, body, seconds

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received, started = 0, False

        async def receive_within_limit():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.body:
                raise HTTPException(413, f"body: expected at most {self.body:,} bytes")
            return message

        async def note_start(message):
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive_within_limit, note_start)
        except TimeoutError:
            if started:
                raise
            message = {"detail": f"the request took longer than {self.seconds:g} seconds"}
            await JSONResponse(message, 503, headers={"Retry-After": "1", "Connection": "close"})(scope, receive, send)


def build_app(ner: Pipeline, name: str, limits: Limits, batch_size: int) -> FastAPI:
    """The service of a loaded pipeline.

    Args:
        ner: a pipeline `"mner"`.
        name: what `/health` calls the model.
        limits: what a request may ask for.
        batch_size: posts in a batch at most.
    """
    batcher = Batcher(ner, batch_size)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches = asyncio.create_task(batcher.run())
        yield
        batches.cancel()
        batcher.thread.shutdown()

    # Its page brings its own scripts: FastAPI's loads them from another host.
    app = FastAPIOffline(
        title="HamLearning", summary="Named entities of posts that come with an image.", version="1", lifespan=lifespan
    )
    app.add_middleware(RequestLimits, body=limits.body, seconds=limits.seconds)
    app.exception_handler(RequestValidationError)(_wrong_request)
    posts_of_a_request = Annotated[
        Annotated[Post, Tag("post")] | Annotated[list[Post], Tag("posts"), Field(min_length=1, max_length=limits.posts)],
        Discriminator(lambda body: "posts" if isinstance(body, list) else "post"),
    ]
    answers = {
        413: {"description": f"The body has more than {limits.body:,} bytes"},
        503: {"description": f"{limits.pending:,} posts are in work, or the request took longer than {limits.seconds:g} seconds"},
    }

    @app.post("/tag", tags=["posts"], summary="Tag one post or a list of posts", responses=answers)
    async def tag(posts: posts_of_a_request) -> list[Entity] | list[list[Entity]]:
        """The entities of a post, or of each post of a list.

        A field that is wrong is named in the answer 422, and then no post of the request is tagged.
        """
        is_list = isinstance(posts, list)
        posts = posts if is_list else [posts]
        if batcher.pending + len(posts) > limits.pending:
            raise HTTPException(503, f"{batcher.pending:,} posts are in work already", headers={"Retry-After": "1"})
        batcher.pending += len(posts)
        try:
            # One after another: a request gets one thread to open its images, not as many as it has posts.
            outcomes: list[Any] = [await run_in_threadpool(_readable, ner, post, limits) for post in posts]
            _refuse_wrong_posts(outcomes, is_list)
            outcomes = await batcher.tag(outcomes)
            _refuse_wrong_posts(outcomes, is_list)
        finally:
            batcher.pending -= len(posts)
        return outcomes if is_list else outcomes[0]

    @app.get("/health", tags=["service"], summary="Whether the service is up")
    async def health() -> Health:
        """Answers as soon as the model is loaded; 503 where its device is broken and the process has to be started again."""
        if batcher.broken:
            raise HTTPException(503, f"the device is broken: {batcher.broken}")
        return Health(status="ok", model=name, pending=batcher.pending)

    return app


def _readable(ner: Pipeline, post: Post, limits: Limits) -> dict[str, Any] | FieldError:
    """The post as the pipeline takes it, its image as the bytes of a file that can be opened; or what is wrong with it."""
    characters = len(post.text) if isinstance(post.text, str) else sum(map(len, post.text)) + len(post.text)
    if characters > limits.characters:
        return FieldError("text", f"expected at most {limits.characters:,} characters, got {characters:,}")
    if len(post.boxes or []) > limits.boxes:
        return FieldError("boxes", f"expected at most {limits.boxes:,} boxes, got {len(post.boxes):,}")
    for field in ("text", "box_labels"):
        try:
            "".join(getattr(post, field) or "").encode()
        except UnicodeEncodeError:
            return FieldError(field, "holds half of a surrogate pair, which is no character")
    fields = post.model_dump(exclude_none=True)
    if post.image is None:
        return fields
    try:
        content = _image_file(post.image, limits.allow_urls)
        # A broken image costs its own request and no batch. A JPEG that is reduced while it is decoded costs little.
        ner.processor.load_image(content, max_pixels=limits.pixels, target_size=(1, 1))
    except ValueError as error:  # of the fetch, of base64, or of the image
        return FieldError("image", str(error))
    return fields | {"image": content}


def _image_file(image: str, allow_urls: bool) -> bytes:
    if image[:8].lower().startswith(("http://", "https://")):
        if not allow_urls:
            raise ValueError("is a URL, which this server does not fetch (see --allow_urls): send the file as base64")
        return fetch(image)
    content = image.partition(",")[2] if image[:5].lower() == "data:" else image
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"expected the image's file as base64: {error}") from error


def _refuse_wrong_posts(outcomes: list, is_list: bool):
    """Answer 422 if a post is wrong, naming it and its field. An error that is not the post's goes on, and is a 500."""
    wrong = [(place, outcome) for place, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    for _, error in wrong:
        if not isinstance(error, ValueError):
            raise error
    if wrong:
        raise RequestValidationError([_detail(place, error, is_list) for place, error in wrong])


def _detail(place: int, error: ValueError, is_list: bool) -> dict[str, Any]:
    """An error of the pipeline or of `_readable` in the form of FastAPI's own: where it is, and what it is."""
    # The pipeline names a post by its place in the batch; here its place in the request does.
    found = re.match(r"post \d+, field (\w+)(?:, |: )(.*)", str(error), re.DOTALL)
    if isinstance(error, FieldError):
        field, message = error.field, str(error)
    else:
        field, message = found.groups() if found else (None, str(error))
    location = ["body", "posts", place] if is_list else ["body", "post"]
    return {"loc": [*location, *([field] if field else [])], "msg": message, "type": "value_error"}


async def _wrong_request(_: Request, error: RequestValidationError) -> JSONResponse:
    """422 with the fields that are wrong, and without what they hold: that may be a whole image."""
    detail = [{name: item[name] for name in ("loc", "msg", "type")} for item in error.errors()]
    return JSONResponse({"detail": detail}, WRONG_CONTENT)


def main(arguments: list[str] | None = None):
    """Load the model and serve it until the process is told to end."""
    options = _options(arguments)
    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    # The model is the server owner's choice, so its code may run; a revision pins it.
    ner = pipeline("mner", model=options.model, revision=options.revision, trust_remote_code=True, device=device,
                   model_kwargs={"use_safetensors": True})  # fmt: skip
    ner({"text": "warm up"})
    limits = Limits(
        body=options.max_megabytes * MEGABYTE, pixels=options.max_pixels, posts=options.max_posts,
        characters=options.max_characters, boxes=options.max_boxes, seconds=options.timeout, pending=options.max_pending,
        allow_urls=options.allow_urls,
    )  # fmt: skip
    app = build_app(ner, options.model, limits, options.batch_size)
    # uvicorn's own limit of connections: each may hold a body.
    uvicorn.run(app, host=options.host, port=options.port, limit_concurrency=options.max_connections, log_level="warning")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, or repo on the Hub; its code is run")
    parser.add_argument("--revision", help="commit, tag or branch of a model on the Hub")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for every one of this machine")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at")
    parser.add_argument("--device", help="cpu, cuda:1, …; the first GPU if there is one")
    parser.add_argument("--batch_size", type=int, default=32, help="posts in one call of the model")
    parser.add_argument("--max_megabytes", type=int, default=20, help="size of a request's body")
    parser.add_argument("--max_pixels", type=int, default=25_000_000, help="pixels of an image")
    parser.add_argument("--max_posts", type=int, default=64, help="posts of a request")
    parser.add_argument("--max_characters", type=int, default=10_000, help="characters of a post")
    parser.add_argument("--max_boxes", type=int, default=100, help="regions that a post brings")
    parser.add_argument("--max_pending", type=int, default=512, help="posts in work; further ones get the answer 503")
    parser.add_argument("--max_connections", type=int, default=256, help="connections at once; further ones get the answer 503")
    parser.add_argument("--timeout", type=float, default=60, help="seconds that a request may take")
    parser.add_argument("--allow_urls", action="store_true", help="fetch images that posts name by the URL of a public address")
    return parser.parse_args(arguments)


def cli():
    """The command line: prints an error that the user can mend as one line."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"serve: {' '.join(str(error).split())}")


if __name__ == "__main__":
    cli()
