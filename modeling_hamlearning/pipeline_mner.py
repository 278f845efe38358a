"""The task `"mner"`: named entities of posts that come with an image."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from queue import Full, Queue
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForTokenClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .configuration_hamlearning import LEVELS
from .crf import padded_paths
from .drawing import draw
from .drawing_html import draw_html

logger = logging.get_logger(__name__)

OPTIONS = ("return_attention", "return_relevance")
REGION_FIELDS = ("boxes", "box_labels", "box_scores")
POST_FIELDS = ("text", "tokens", "image", *REGION_FIELDS)
# At most this many batches of posts are read ahead, so that a batch can be made of posts of like length.
BATCHES_AHEAD = 16
# Files are opened and resized by threads this many batches ahead: PIL and torchvision let others run meanwhile.
THREADS, BATCHES_OPENED_AHEAD = 4, 2
CACHED_IMAGES = 128
# How often, in seconds, the thread that reads ahead looks whether its posts are still asked for.
STOP_CHECK_SECONDS = 0.1
# Stands in a CoNLL file for what would break a line.
UNREADABLE = "\ufffd"
# A fast tokenizer keeps its padding and truncation as state, so two threads must not use one at the same time. The lock is
# the module's and not the pipeline's, because pipelines may share a processor.
_TOKENIZER_LOCK = threading.Lock()


@dataclass(eq=False)
class StreamImage:
    """An image of a stream, which posts share: its original's size (height, width), and its pixels (3, height, width) as the
    model takes them until it is encoded, its feature map (C, rows, columns) from then on.
    """

    size: tuple[int, int]
    pixels: Tensor | None
    feature_map: Tensor | None = None


class PreparedImage(NamedTuple):
    """A post's image, and the image itself where the region extractor has to look at it."""

    shared: StreamImage
    image: Image.Image | None


ImageKey = tuple[str, tuple[int, int] | None]
"""A hash of a file, and the least height and width that it was decoded for; or of an image's pixels, and its original's size."""


class ImageCache:
    """The last images of a stream, so that an equal one is neither decoded nor encoded again. Threads may share it."""

    def __init__(self, max_entries: int = CACHED_IMAGES):
        self.max_entries = max_entries
        self.entries: OrderedDict[ImageKey, StreamImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: ImageKey | None) -> StreamImage | None:
        """The image with this key, if it is one of the last."""
        with self._lock:
            if key in self.entries:
                self.entries.move_to_end(key)
            return self.entries.get(key)

    def add(self, key: ImageKey, image: StreamImage) -> StreamImage:
        """The image, or the one that another thread added under the same key meanwhile."""
        with self._lock:
            image = self.entries.setdefault(key, image)
            self.entries.move_to_end(key)
            if len(self.entries) > self.max_entries:
                self.entries.popitem(last=False)
            return image


class _End(NamedTuple):
    """Stands after the last post of a source, with the error that ended it, if one did."""

    error: BaseException | None


def _read_ahead(source: Iterable, posts: Queue, stopped: threading.Event):
    """Put a source's posts in the queue, and `_End` after them."""

    def put(item: Any):
        while not stopped.is_set():
            try:
                return posts.put(item, timeout=STOP_CHECK_SECONDS)
            except Full:
                continue

    error = None
    try:
        for post in source:
            put(post)
            if stopped.is_set():
                return
    except BaseException as raised:  # raised again by `_windows`, after the posts before it
        error = raised
    put(_End(error))


def _windows(inputs: Iterable, batch_size: int) -> Iterator[list]:
    """Lists of at most `batch_size` · BATCHES_AHEAD posts.

    A list, whose results are handed out together, is cut into as few windows as that allows. Any other source is read by a
    thread, and a window is what it has read so far: a source that waits for its next post holds no result back.
    """
    limit = batch_size * BATCHES_AHEAD
    if isinstance(inputs, list):
        yield from (inputs[first : first + limit] for first in range(0, len(inputs), limit))
        return
    posts: Queue = Queue(limit)
    stopped = threading.Event()
    threading.Thread(target=_read_ahead, args=(inputs, posts, stopped), daemon=True).start()
    try:
        end = None
        while end is None:
            window = [posts.get()]
            while len(window) < limit and not posts.empty() and not isinstance(window[-1], _End):
                window.append(posts.get())
            if isinstance(window[-1], _End):
                end = window.pop()
            if window:
                yield window
        if end.error is not None:
            raise end.error
    finally:
        stopped.set()


def _rows(inputs: Any) -> Any:
    """Posts to iterate over: a list where all are at hand, else an iterable. Tables of pandas, polars and Arrow become rows."""
    if isinstance(inputs, list | tuple):
        return list(inputs)
    if hasattr(inputs, "to_pylist"):
        return inputs.to_pylist()
    if hasattr(inputs, "to_dicts"):
        return inputs.to_dicts()
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        return inputs.to_dict("records")
    if hasattr(inputs, "__iter__"):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        # A map-style torch Dataset need not raise IndexError at its end, so iter() could read it for ever.
        return (inputs[index] for index in range(len(inputs)))
    if hasattr(inputs, "__getitem__"):
        return iter(inputs)
    raise ValueError(
        f"expected a post (a string or a dict), or a list, generator, data set or table of posts, got {inputs!r:.80}"
    )


def _is_missing(value: Any) -> bool:
    """Whether a field is empty: `None`, or what pandas puts in its place."""
    return value is None or (isinstance(value, Real) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def _is_blank(value: Any) -> bool:
    return _is_missing(value) or (isinstance(value, str) and not value.strip())


def _only_image(image: Any, where: str) -> Any:
    """What a post's field holds as its image: the only one of a list, the bytes or path in a dict, `None` where it is blank.

    Raises:
        ValueError: naming the post, which has several images or a dict without one.
    """
    if str(getattr(image, "dtype", "")) == "object":
        image = image.tolist()  # pandas reads the lists of a parquet file as arrays
    if isinstance(image, list | tuple):
        images = [item for item in image if not _is_blank(item)]
        if len(images) > 1:
            raise ValueError(f"{where}, field image: expected one image, got a list of {len(images)}")
        image = images[0] if images else None
    if isinstance(image, dict):
        # As data sets hold an image that they do not decode.
        if not {"bytes", "path"} & set(image):
            got = ", ".join(map(str, image)) or "none"
            raise ValueError(f"{where}, field image: expected a dict with bytes or path, got the fields {got:.200}")
        image = next((image[name] for name in ("bytes", "path") if image.get(name) is not None), None)
    return None if _is_blank(image) else image


def _as_lists(value: Any) -> Any:
    """Arrays, and arrays of arrays as pandas reads them from parquet files, as lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _check_count(name: str, count: Any, least: int):
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {count!r}")


class MnerPipeline(Pipeline):
    """Tag posts: `pipeline("mner", model=…, trust_remote_code=True)`.

    A post is a string, or a dict with `text` (a string, or a list of words, which may also be called `tokens`) and, if it has
    them, `image` (path, bytes, URL of a public address, PIL image or `None`) and `boxes` ([0, 1], x1 y1 x2 y2), `box_labels`,
    `box_scores`, which take the place of the region extractor. Other fields are not read, and a log line names them.
    Give one post, a list, a data frame, a generator or a `Dataset` of posts, and `batch_size` for how many are tagged at once.
    A list or a data frame gives a list of results. Any other source gives an iterator, which a thread feeds: it gives the
    results of a batch as soon as that is done, and where a post or the source is at fault, first the results before it.

    For each post comes a list with a dict an entity: `entity_group` (its type), `score` (the probability of the whole
    span under the model), `word`, `start` and `end` (in the text of the post; a list of words counts as joined by blanks),
    `word_start` and `word_end` (the entity's words, `word_end` excluded), `relevance` (level → how far that level of the
    image was used, 0 without an image) and `region`, `{"box": {"xmin", "ymin", "xmax", "ymax"} in pixels of the original,
    "label", "score"}`. It is the one that shows the entity, with the `probability` of that, and `None` where "not shown" is
    likelier. A model that was trained without a grounding loss gives the region that the entity's first word attends most.
    With `return_attention=True` also `region_attention`: every region like that, with its `attention`.
    With `return_relevance=True` a post's result is `{"entities": that list, "relevance": the post's, None without an image}`.

    Unlike other pipelines, `preprocess`, `_forward` and `postprocess` take a whole batch: words and regions are padded by the
    processor, and an image that occurs twice is encoded once. Threads may share a pipeline.

    >>> ner = pipeline("mner", model="user/repo", trust_remote_code=True)
    >>> result = ner({"text": "Jordan at #NBA", "image": "court.jpg"})
    >>> ner.to_bio(result, num_words=3)
    ['B-PER', 'O', 'B-ORG']
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model, *args, processor=None, **kwargs):
        if processor is None:
            raise ValueError(
                'expected a processor beside the model, got None: pipeline("mner", model=model, processor='
                "AutoProcessor.from_pretrained(FOLDER_OR_REPO, trust_remote_code=True))"
            )
        super().__init__(model, *args, processor=processor, **kwargs)
        # Whether a call knows the last images of the calls before it. Only for a model whose weights do not change.
        self.keep_images, self._image_cache = False, ImageCache()

    def _sanitize_parameters(self, **options):
        if unknown := set(options) - set(OPTIONS):
            raise TypeError(f'pipeline("mner") does not know {sorted(unknown)}; it takes batch_size, {", ".join(OPTIONS)}')
        return {}, {}, options

    def __call__(self, inputs, *, batch_size: int | None = None, num_workers: int | None = None, **options):
        """Tag one post (its result comes back), a list, tuple or table of posts (a list) or any other source (an iterator).

        Args:
            inputs: see [`MnerPipeline`].
            batch_size: how many posts are tagged at once; 1 if not set here or in `pipeline(…)`.
            num_workers: how many threads open images; 4 if not set.
            options: `return_attention`, `return_relevance`.

        Raises:
            ValueError: naming the post and the field that is wrong.
        """
        batch_size = next((size for size in (batch_size, self._batch_size) if size is not None), 1)
        num_workers = next((count for count in (num_workers, self._num_workers) if count is not None), 0)
        _check_count("batch_size", batch_size, 1)
        _check_count("num_workers", num_workers, 0)
        preprocess_params, forward_params, postprocess_params = self._sanitize_parameters(**options)
        parameters = (
            self._preprocess_params | preprocess_params,
            self._forward_params | forward_params,
            self._postprocess_params | postprocess_params,
        )
        is_post = isinstance(inputs, str | dict)
        posts = [inputs] if is_post else _rows(inputs)
        results = self.get_iterator(posts, num_workers, batch_size, *parameters)
        if is_post:
            return next(results)
        return list(results) if isinstance(posts, list) else results

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save all that `pipeline("mner", model=save_directory)` loads: model, processor and their code."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    @staticmethod
    def to_bio(result: list[dict[str, Any]] | dict[str, Any], num_words: int) -> list[str]:
        """A post's BIO label for each of its words: `B-PER`, `I-PER`, `O`."""
        labels = ["O"] * num_words
        for entity in _entities(result):
            first, end, group = entity["word_start"], entity["word_end"], entity["entity_group"]
            labels[first:end] = [f"B-{group}"] + [f"I-{group}"] * (end - first - 1)
        return labels

    def to_conll(self, post: str | dict[str, Any], result: list[dict[str, Any]] | dict[str, Any]) -> str:
        """A post's words with their BIO labels, as a file in CoNLL format has them: a word, a tab, its label, a line each.

        A blank, tab or line end within a word, and a word that is empty, would break its line: U+FFFD stands for it.
        """
        words = self._parse(post, 0)["words"]
        return conll_lines(words, self.to_bio(result, len(words)))

    @staticmethod
    def to_spacy(doc, result: list[dict[str, Any]] | dict[str, Any]):
        """Set the entities of a spaCy `Doc` to those of its text: `ner.to_spacy(nlp(text), ner(text))`.

        An entity that ends within one of spaCy's tokens is widened to the whole token; of two that then share a token, the
        first stays. A log line counts both.

        Returns:
            The same `Doc`.
        """
        spans, num_widened, num_dropped = [], 0, 0
        for entity in _entities(result):
            start, end = entity["start"], entity["end"]
            span = doc.char_span(start, end, label=entity["entity_group"], alignment_mode="expand")
            num_widened += (span.start_char, span.end_char) != (start, end)
            if spans and span.start < spans[-1].end:
                num_dropped += 1
            else:
                spans.append(span)
        if num_widened:
            logger.warning(f"to_spacy: {num_widened} entities were widened to spaCy's tokens, {num_dropped} of them left out")
        doc.set_ents(spans)
        return doc

    @staticmethod
    def to_dataframe(results: list[Any] | dict[str, Any]):
        """A pandas `DataFrame` with a row for each entity of a list of results: `post` is its post's place in the list.
        The result of a single post counts as a list of one.

        Nested values have columns such as `relevance.global` and `region.box.xmin`.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        results = [results] if isinstance(results, dict) else list(results)
        if results and isinstance(results[0], dict) and "entity_group" in results[0]:
            results = [results]
        rows = [{"post": place} | entity for place, result in enumerate(results) for entity in _entities(result)]
        return pandas.json_normalize(rows)

    def draw(
        self,
        post: str | dict[str, Any],
        result: list[dict[str, Any]] | dict[str, Any],
        fonts: str | os.PathLike | None = None,
    ) -> Image.Image:
        """The post's image with its entities' regions marked, and its text with the entities highlighted.

        `fonts` is a folder with font files to use before those of the system; see `drawing.draw`.
        """
        return draw(*self._text_and_image(post), _entities(result), fonts=fonts)

    def draw_html(self, post: str | dict[str, Any], result: list[dict[str, Any]] | dict[str, Any]) -> str:
        """The same as HTML for a page or a notebook; with `return_attention=True`, an entity shows what it attends."""
        return draw_html(*self._text_and_image(post), _entities(result))

    def _text_and_image(self, post: str | dict[str, Any]) -> tuple[str, Image.Image | None]:
        """Text and image; the processor opens images as the model sees them: turned upright, in RGB."""
        parsed = self._parse(post, 0)
        return parsed["text"], self._load(parsed)

    def get_iterator(
        self,
        inputs: Iterable,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[list[dict[str, Any]]]:
        """Results in the order of the posts, each as soon as its batch and those before it are done."""
        parameters = (preprocess_params, forward_params, postprocess_params)
        cache = self._image_cache if self.keep_images else ImageCache()
        num_posts, ignored_fields = 0, set(POST_FIELDS)
        threads = ThreadPoolExecutor(num_workers or THREADS)
        try:
            for window in _windows(inputs, batch_size):
                _warn_of_ignored_fields(window, ignored_fields)
                yield from self._tag_window(window, num_posts, batch_size, threads, cache, parameters)
                num_posts += len(window)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _tag_window(
        self,
        window: list,
        num_posts_before: int,
        batch_size: int,
        threads: ThreadPoolExecutor,
        cache: ImageCache,
        parameters: tuple[dict, dict, dict],
    ) -> Iterator[list[dict[str, Any]]]:
        """Results of a window of posts, whose batches are grouped by length; an error comes after the results before it."""
        posts: list[dict[str, Any]] = []
        outcomes: dict[int, Any] = {}  # by place: a result, or the error of the post at fault
        next_place = 0
        for place, post in enumerate(window):
            try:
                posts.append(self._parse(post, num_posts_before + place))
            except ValueError as error:
                outcomes[place] = error
                break
        by_length = sorted(range(len(posts)), key=lambda place: len(posts[place]["words"]))
        batches = [by_length[first : first + batch_size] for first in range(0, len(posts), batch_size)]
        # The batch of the earliest post first, so that results can be handed out early.
        for places, images in self._open_ahead(posts, deque(sorted(batches, key=min)), threads, cache):
            tagged = self._tag_batch([posts[place] for place in places], images, cache, parameters)
            outcomes |= zip(places, tagged, strict=True)
            while next_place in outcomes and not isinstance(outcomes[next_place], Exception):
                yield outcomes.pop(next_place)
                next_place += 1
            if next_place in outcomes:
                break
        if next_place in outcomes:
            raise outcomes[next_place]

    def _open_ahead(
        self, posts: list[dict[str, Any]], batches: deque[list[int]], threads: ThreadPoolExecutor, cache: ImageCache
    ) -> Iterator[tuple[list[int], list[Future | dict[str, Any] | None]]]:
        """Each batch with its images, while threads open those of the next ones."""
        opening: deque = deque()
        while batches or opening:
            while batches and len(opening) <= BATCHES_OPENED_AHEAD:
                places = batches.popleft()
                opening.append((places, [self._submit_image(posts[place], threads, cache) for place in places]))
            yield opening.popleft()

    def _tag_batch(
        self,
        posts: list[dict[str, Any]],
        images: list[Future | dict[str, Any] | None],
        cache: ImageCache,
        parameters: tuple[dict, dict, dict],
    ) -> list:
        """A result for each post, or the error in the place of a post that is at fault.

        A batch that is refused is tagged again post by post, which finds the one at fault.
        """
        preprocess_params, forward_params, postprocess_params = parameters
        try:
            opened = [
                image.result() if isinstance(image, Future) else self._open(image, cache) if image else None for image in images
            ]
            with _TOKENIZER_LOCK:
                batch = self.preprocess(posts, opened, **preprocess_params)
            tagged = self.forward(batch, **forward_params)
            return self.postprocess(tagged, **postprocess_params)
        except ValueError as error:
            if len(posts) == 1:
                return [error]
        return [
            outcome
            for post, image in zip(posts, images, strict=True)
            for outcome in self._tag_batch([post], [image], cache, parameters)
        ]

    def _submit_image(
        self, post: dict[str, Any], threads: ThreadPoolExecutor, cache: ImageCache
    ) -> Future | dict[str, Any] | None:
        if post["image"] is None:
            return None
        # A PIL image may be another post's as well, and is not safe to be read by two threads.
        return post if isinstance(post["image"], Image.Image) else threads.submit(self._open, post, cache)

    def _open(self, post: dict[str, Any], cache: ImageCache) -> PreparedImage:
        source, content = self.processor.read_source(post["image"], post["where"], allow_urls=True)
        needs_image = self.processor.needs_image(post["boxes"])
        # A detector may need a file larger than the model does, and then the model's pixels differ a little as well.
        key = content and (content, self.processor.target_size(post["boxes"]))
        shared = cache.get(key)
        if shared is not None and not needs_image:
            return PreparedImage(shared, None)
        (image,), (size,) = self.processor.load_reduced_images([source], names=[post["where"]], boxes=[post["boxes"]])
        if shared is None:
            pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
            # What is no file is known by its pixels, and by its size, because regions are told in pixels of the original.
            key = key or (hashlib.sha256(pixels.numpy().tobytes()).hexdigest(), size)
            shared = cache.add(key, StreamImage(size, pixels))
        return PreparedImage(shared, image if needs_image else None)

    def _load(self, post: dict[str, Any]) -> Image.Image | None:
        return self.processor.load_images([post["image"]], names=[post["where"]], allow_urls=True)[0]

    def _parse(self, post: str | dict[str, Any], index: int) -> dict[str, Any]:
        """A post as the processor takes it, with its words, where they lie in the text, and its place in the stream."""
        post, where = {"text": post} if isinstance(post, str) else post, f"post {index}"
        if not isinstance(post, dict):
            raise ValueError(f'{where}: expected a string or a dict with "text" and "image", got {type(post).__name__}')
        parsed = {name: None if _is_missing(post.get(name)) else post[name] for name in POST_FIELDS}
        field = "text" if parsed["tokens"] is None else "tokens"
        text = _as_lists(parsed[field])
        if isinstance(text, list) and all(isinstance(word, str) for word in text):
            parsed["text"], parsed["words"] = " ".join(text), text
            ends = torch.tensor([len(word) + 1 for word in text], dtype=torch.long).cumsum(0).tolist()
            parsed["offsets"] = [(end - 1 - len(word), end - 1) for word, end in zip(text, ends, strict=True)]
        elif isinstance(text, str) and field == "text":
            parsed["words"], parsed["offsets"] = self.processor.split_words(text)
        else:
            kinds = "a string or a list of words" if field == "text" else "a list of words"
            fields = ", ".join(map(str, post)) or "none"
            raise ValueError(f"{where}, field {field}: expected {kinds}, got {text!r:.80}; the post's fields are: {fields:.200}")
        parsed["image"] = _only_image(parsed["image"], where)
        return parsed | {name: _as_lists(parsed[name]) for name in REGION_FIELDS} | {"where": where}

    def preprocess(self, posts: list[dict[str, Any]], opened: list[PreparedImage | None]) -> dict[str, Any]:
        """The model's inputs for parsed posts and their images, `None` for a post without one."""
        sizes = [image and image.shared.size for image in opened]
        region_fields = {name: [post[name] for post in posts] for name in REGION_FIELDS}
        images_or_sizes = [image and (image.image or image.shared.size) for image in opened]
        names = [post["where"] for post in posts]
        regions = self.processor.extract_regions(images_or_sizes, **region_fields, names=names, device=self.device)
        features = self.processor.encode([post["words"] for post in posts], regions, sizes)
        return {
            "features": dict(features),
            "posts": posts,
            "regions": regions,
            "images": [image.shared for image in opened if image is not None],
        }

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        features, images = batch["features"], batch["images"]
        if images and self.model.config.levels:
            self._encode_new(images)
            encoded = torch.stack([image.feature_map for image in images])
            vision_features = encoded.new_zeros(len(batch["posts"]), *encoded.shape[1:])
            vision_features[features["has_image"]] = encoded
            features = features | {"vision_features": vision_features}
        outputs = self.model(**features, return_dict=True)
        crf, mask = self.model.crf, features["word_mask"]
        _check_finite(outputs.logits, mask, [post["where"] for post in batch["posts"]])
        spans = crf.spans(padded_paths(self.model.decode(outputs, mask), mask), mask)
        return batch | {
            "spans": spans.tolist(),
            "scores": crf.span_probabilities(outputs.logits, mask, spans),
            "grounding": self.model.ground(outputs, spans),
            "relevance": outputs.relevance.float(),
            "attention": outputs.word_region_attention.float(),
        }

    def _encode_new(self, images: list[StreamImage]):
        """Encode the images that are not encoded yet, each once."""
        # Another thread that encodes an image takes its pixels away, so they are looked at once.
        new = {image: pixels for image in images if (pixels := image.pixels) is not None}
        if new:
            pixels = torch.stack(list(new.values())).to(self.device)
            for image, feature_map in zip(new, self.model.get_image_features(pixels), strict=True):
                image.feature_map, image.pixels = feature_map.clone(), None

    def postprocess(
        self, tagged: dict[str, Any], return_attention: bool = False, return_relevance: bool = False
    ) -> list[list[dict[str, Any]]] | list[dict[str, Any]]:
        """A result for each post, as [`MnerPipeline`] describes it."""
        results: list[list[dict[str, Any]]] = [[] for _ in tagged["posts"]]
        levels = self.model.config.levels
        relevance = [
            {level: values[column] for column, level in enumerate(LEVELS) if level in levels}
            for values in tagged["relevance"].tolist()
        ]
        for (place, first, last, begin, _), score, grounding in zip(
            tagged["spans"], tagged["scores"].tolist(), tagged["grounding"], strict=True
        ):
            post = tagged["posts"][place]
            start, end = post["offsets"][first][0], post["offsets"][last][1]
            regions = self._regions(tagged, place, first)
            best = int(grounding.argmax())
            is_shown = best < len(grounding) - 1
            region = {name: value for name, value in regions[best].items() if name != "attention"} if is_shown else None
            if region and self.model.config.has_grounding:
                region["probability"] = float(grounding[best])
            entity = {
                "entity_group": self.model.config.id2label[begin].partition("-")[2],
                "score": score,
                "word": post["text"][start:end],
                "start": start,
                "end": end,
                "word_start": first,
                "word_end": last + 1,
                "relevance": dict(relevance[place]),
                "region": region,
            }
            if return_attention:
                entity["region_attention"] = regions
            results[place].append(entity)
        if return_relevance:
            has_image = tagged["features"]["has_image"].tolist()
            return [
                {"entities": entities, "relevance": post_relevance if with_image else None}
                for entities, post_relevance, with_image in zip(results, relevance, has_image, strict=True)
            ]
        return results

    @staticmethod
    def _regions(tagged: dict[str, Any], place: int, word: int) -> list[dict[str, Any]]:
        """A post's regions in pixels of its original image, each with the word's attention."""
        post_regions = tagged["regions"][place]
        if not post_regions["boxes"]:
            return []
        height, width = tagged["features"]["image_sizes"][place].tolist()
        attention = tagged["attention"][place, word, : len(post_regions["boxes"])].tolist()
        sides = (("xmin", width), ("ymin", height), ("xmax", width), ("ymax", height))
        return [
            {
                "box": {side: part * size for (side, size), part in zip(sides, box, strict=True)},
                "label": label,
                "score": score,
                "attention": share,
            }
            for box, label, score, share in zip(
                post_regions["boxes"], post_regions["box_labels"], post_regions["box_scores"], attention, strict=False
            )
        ]


def _check_finite(logits: Tensor, mask: Tensor, names: list[str]):
    """Without this, scores that are not numbers would read as posts without entities."""
    broken = (~logits.isfinite().all(-1) & mask.bool()).any(-1)
    if broken.any():
        name = names[int(broken.nonzero()[0])]
        raise ValueError(
            f"{name}: expected finite scores from the model, got NaN or infinity. Either its weights are broken (load or train "
            "them again), or its dtype is too small for them (try dtype=torch.float32)"
        )


def _entities(result: list[dict[str, Any]] | dict[str, Any]) -> list[dict[str, Any]]:
    """A post's entities, whether or not its result was made with `return_relevance=True`.

    Raises:
        ValueError: it is not the result of one post.
    """
    entities = result.get("entities") if isinstance(result, dict) else result
    if isinstance(entities, Iterable):
        entities = list(entities)
        if all(isinstance(entity, dict) and "entity_group" in entity for entity in entities):
            return entities
    raise ValueError(
        f"expected the result of one post, a list of its entities or a dict with entities, got {result!r:.80}; "
        "of a list of results give one at a time"
    )


def conll_lines(words: list[str], *labels: list[str]) -> str:
    """Words with their labels, as a file in CoNLL format has them. `UNREADABLE` stands for what would break a line.

    Args:
        labels: one list, or several for as many columns.
    """
    safe = (re.sub(r"\s", UNREADABLE, word) or UNREADABLE for word in words)
    return "".join("\t".join(columns) + "\n" for columns in zip(safe, *labels, strict=True))


def conll_post(post_id: str | int, words: list[str], *labels: list[str]) -> str:
    """A post as a file in CoNLL format has it: its id, the lines of [`conll_lines`], an empty line."""
    return f"IMGID:{' '.join(str(post_id).split())}\n{conll_lines(words, *labels)}\n"


def _warn_of_ignored_fields(posts: list, known: set[str]):
    """Name the fields that are not read, each once a call."""
    ignored = {name for post in posts if isinstance(post, dict) for name in post} - known
    if ignored:
        known |= ignored
        names = ", ".join(sorted(map(str, ignored)))
        logger.warning(f"these fields of the posts are not read: {names:.500}; a post has {', '.join(POST_FIELDS)}")


# Here and not in the package's __init__: a model that was loaded from the Hub with its code brings the task along.
if "mner" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "mner", pipeline_class=MnerPipeline, pt_model=AutoModelForTokenClassification, type="multimodal"
    )
