"""The task `"mner"`: named entities of posts that come with a picture."""

from __future__ import annotations

import ctypes
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import Pipeline

from .configuration_hamlearning import LEVELS
from .crf import padded_paths
from .drawing import draw, draw_html

OPTIONS = ("return_attention", "return_relevance")
POST_FIELDS = ("text", "image", "boxes", "box_labels", "box_scores")
# PostSource are read this many batches ahead, so that a batch can be made of posts of like length.
BATCHES_AHEAD = 16
# Files are opened and resized by threads this many batches ahead: PIL and torchvision let others run meanwhile.
THREADS, BATCHES_OPENED_AHEAD = 4, 2
ENCODED_PICTURES = 128


class PreparedImage(NamedTuple):
    """A post's picture: a hash of its pixels, the pixels (3, height, width) as the model takes them, the original's size
    (height, width), and the picture itself where the region extractor has to look at it.
    """

    key: str
    pixels: Tensor
    size: tuple[int, int]
    picture: Image.Image | None


class FeatureMapCache:
    """Feature maps of the pictures a stream showed last, so that an equal one is not encoded again."""

    def __init__(self, most: int = ENCODED_PICTURES):
        self.most = most
        self.kept: OrderedDict[str, Tensor] = OrderedDict()

    def features(self, keys: list[str], pixels: list[Tensor], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Feature map (C, rows, columns) of every picture; only those that are new are encoded, each once."""
        new = {key: image for key, image in zip(keys, pixels, strict=True) if key not in self.kept}
        if new:
            feature_maps = encode(torch.stack(list(new.values())))
            self.kept |= {key: feature_map.clone() for key, feature_map in zip(new, feature_maps, strict=True)}
        found = [self.kept[key] for key in keys]
        for key in keys:
            self.kept.move_to_end(key)
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return found


def _give_back_memory():
    """Hand freed memory back, which glibc's heap keeps otherwise: 140 of 1,260 MiB in a stream with the demo model."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class MnerPipeline(Pipeline):
    """Tag posts: `pipeline("mner", model=…, trust_remote_code=True)`.

    A post is a string, or a dict with `text` (a string, or a list of words) and, if it has them, `image` (path, bytes, URL
    of a public address, PIL image or `None`) and `boxes` ([0, 1], x1 y1 x2 y2), `box_labels`, `box_scores`, which take the
    place of the region extractor.
    Give one post, a list, a generator or a `Dataset` of them, and `batch_size` for how many are tagged at once.

    For each post comes a list with a dict an entity: `entity_group` (its type), `score` (the probability of the whole
    span under the model), `word`, `start` and `end` (in the text as given; a list of words counts as joined by blanks),
    `relevance` (level → how far that level of the image was used, 0 without an image) and `region`: the one its first
    word attends most, `{"box": {"xmin", "ymin", "xmax", "ymax"} in pixels of the original, "label", "score"}`, or `None`.
    With `return_attention=True` also `region_attention`: every region like that, with its `attention`.
    With `return_relevance=True` a post's result is `{"entities": that list, "relevance": the post's, None without an image}`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def _sanitize_parameters(self, **options):
        if unknown := set(options) - set(OPTIONS):
            raise TypeError(f'pipeline("mner") does not know {sorted(unknown)}; it takes batch_size, {", ".join(OPTIONS)}')
        return {}, {}, options

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, Iterable) and not isinstance(inputs, str | dict | list | tuple):
            # A data set of any library: streamed, as a generator is.
            inputs = (post for post in inputs)
        if isinstance(inputs, list | tuple) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def draw(self, post: str | dict[str, Any], result: list[dict[str, Any]]) -> Image.Image:
        """The post's picture with its entities' regions marked, and its text with the entities highlighted."""
        return draw(*self._shown(post), result)

    def draw_html(self, post: str | dict[str, Any], result: list[dict[str, Any]]) -> str:
        """The same as HTML for a page or a notebook; with `return_attention=True`, entities show what they attend."""
        return draw_html(*self._shown(post), result)

    def _shown(self, post: str | dict[str, Any]) -> tuple[str, Image.Image | None]:
        """Text and picture; the processor opens pictures as the model saw them: turned upright, in RGB."""
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
        """Results in the order of the posts; within a window of posts, batches are grouped by length."""
        numbered, encoded = enumerate(inputs), FeatureMapCache()
        with ThreadPoolExecutor(num_workers or THREADS) as threads:
            while window := list(islice(numbered, batch_size * BATCHES_AHEAD)):
                posts = [self._parse(post, index) for index, post in window]
                by_length = sorted(range(len(posts)), key=lambda place: len(posts[place]["words"]))
                batches = deque(by_length[first : first + batch_size] for first in range(0, len(posts), batch_size))
                ahead: deque[tuple[list[int], list]] = deque()
                results: list = [None] * len(posts)
                try:
                    while batches or ahead:
                        while batches and len(ahead) <= BATCHES_OPENED_AHEAD:
                            places = batches.popleft()
                            ahead.append((places, [self._submit_image(posts[place], threads) for place in places]))
                        places, opening = ahead.popleft()
                        opened = [one.result() if isinstance(one, Future) else one and self._open(one) for one in opening]
                        batch = self.preprocess([posts[place] for place in places], opened, **preprocess_params)
                        tagged = self.forward(batch | {"encoded": encoded}, **forward_params)
                        for place, result in zip(places, self.postprocess(tagged, **postprocess_params), strict=True):
                            results[place] = result
                except BaseException:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
                _give_back_memory()
                yield from results

    def _submit_image(self, post: dict[str, Any], threads: ThreadPoolExecutor) -> Future | dict[str, Any] | None:
        if post["image"] is None:
            return None
        # A PIL image may be another post's as well, and is not safe to be read by two threads.
        return post if isinstance(post["image"], Image.Image) else threads.submit(self._open, post)

    def _open(self, post: dict[str, Any]) -> PreparedImage:
        (picture,), (size,) = self.processor.load_reduced_images([post["image"]], names=[post["where"]], allow_urls=True)
        pixels = self.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"][0]
        return PreparedImage(
            key=hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            pixels=pixels,
            size=size,
            picture=picture if self.processor.needs_image(post["boxes"]) else None,
        )

    def _load(self, post: dict[str, Any]) -> Image.Image | None:
        return self.processor.load_images([post["image"]], names=[post["where"]], allow_urls=True)[0]

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def _parse(self, post: str | dict[str, Any], index: int) -> dict[str, Any]:
        """A post as the processor wants it, with its words, where they lie in the text, and its place in the stream."""
        post = {"text": post} if isinstance(post, str) else post
        where = f"post {index}"
        if not isinstance(post, dict):
            raise ValueError(f'{where}: a post is a string or a dict with "text" and "image", not {type(post).__name__}')
        if unknown := set(post) - set(POST_FIELDS):
            raise ValueError(f"{where}: unknown field {sorted(unknown)}; a post has {', '.join(POST_FIELDS)}")
        parsed = dict.fromkeys(POST_FIELDS) | post
        text = parsed["text"]
        if isinstance(text, list) and all(isinstance(word, str) for word in text):
            parsed["text"], parsed["words"] = " ".join(text), text
            ends = torch.tensor([len(word) + 1 for word in text], dtype=torch.long).cumsum(0).tolist()
            parsed["offsets"] = [(end - 1 - len(word), end - 1) for word, end in zip(text, ends, strict=True)]
        elif isinstance(text, str):
            parsed["words"], parsed["offsets"] = self.processor.split_words(text)
        else:
            raise ValueError(f"{where}, field text: a string or a list of words is wanted, not {type(text).__name__}")
        parsed["where"] = where
        return parsed

    def preprocess(self, posts: list[dict[str, Any]], opened: list[PreparedImage | None]) -> dict[str, Any]:
        sizes = [picture and picture.size for picture in opened]
        given = {name: [post[name] for post in posts] for name in ("boxes", "box_labels", "box_scores")}
        shown = [picture and (picture.picture or picture.size) for picture in opened]
        regions = self.processor.extract_regions(shown, **given, names=[post["where"] for post in posts])
        features = self.processor.encode([post["words"] for post in posts], regions, sizes)
        present = [picture for picture in opened if picture is not None]
        return {
            "features": dict(features),
            "posts": posts,
            "regions": regions,
            "keys": [picture.key for picture in present],
            "pixels": [picture.pixels for picture in present],
        }

    def _forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        features, keys = batch["features"], batch["keys"]
        if keys and self.model.config.levels:
            found = torch.stack(batch["encoded"].features(keys, batch["pixels"], self.model.get_image_features))
            feature_maps = found.new_zeros(len(batch["posts"]), *found.shape[1:])
            feature_maps[features["has_image"]] = found
            features = features | {"vision_features": feature_maps}
        outputs = self.model(**features, return_dict=True)
        crf, mask = self.model.crf, features["word_mask"]
        spans = crf.spans(padded_paths(self.model.decode(outputs, mask), mask), mask)
        return batch | {
            "spans": spans.tolist(),
            "scores": crf.span_probabilities(outputs.logits, mask, spans),
            "relevance": outputs.relevance.float(),
            "attention": outputs.word_region_attention.float(),
        }

    def postprocess(
        self, tagged: dict[str, Any], return_attention: bool = False, return_relevance: bool = False
    ) -> list[list[dict[str, Any]]] | list[dict[str, Any]]:
        results: list[list[dict[str, Any]]] = [[] for _ in tagged["posts"]]
        levels = self.model.config.levels
        relevance = [
            {level: of_post[column] for column, level in enumerate(LEVELS) if level in levels}
            for of_post in tagged["relevance"].tolist()
        ]
        for (place, first, last, begin, _), score in zip(tagged["spans"], tagged["scores"].tolist(), strict=True):
            post = tagged["posts"][place]
            start, end = post["offsets"][first][0], post["offsets"][last][1]
            # The first word bears the type; those inside can only go on with it, and need not look at the picture.
            regions = self._regions(tagged, place, first)
            # A model whose levels know no regions attends none.
            attended = [region for region in regions if region["attention"] > 0]
            best = max(attended, key=lambda region: region["attention"], default=None)
            entity = {
                "entity_group": self.model.config.id2label[begin].partition("-")[2],
                "score": score,
                "word": post["text"][start:end],
                "start": start,
                "end": end,
                "relevance": dict(relevance[place]),
                "region": best and {name: value for name, value in best.items() if name != "attention"},
            }
            if return_attention:
                entity["region_attention"] = regions
            results[place].append(entity)
        if return_relevance:
            seen = tagged["features"]["has_image"].tolist()
            return [
                {"entities": entities, "relevance": of_post if has_image else None}
                for entities, of_post, has_image in zip(results, relevance, seen, strict=True)
            ]
        return results

    @staticmethod
    def _regions(tagged: dict[str, Any], place: int, word: int) -> list[dict[str, Any]]:
        """A post's regions in pixels of its original image, each with the word's attention."""
        given = tagged["regions"][place]
        if not given["boxes"]:
            return []
        height, width = tagged["features"]["image_sizes"][place].tolist()
        attention = tagged["attention"][place, word, : len(given["boxes"])].tolist()
        sides = (("xmin", width), ("ymin", height), ("xmax", width), ("ymax", height))
        return [
            {
                "box": {side: part * size for (side, size), part in zip(sides, box, strict=True)},
                "label": label,
                "score": score,
                "attention": share,
            }
            for box, label, score, share in zip(given["boxes"], given["box_labels"], given["box_scores"], attention, strict=False)
        ]
