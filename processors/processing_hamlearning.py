"""PostSource to tensors: words to windows of sub-tokens, pictures to pixels, regions to boxes and label tokens."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .image_loading import ImageError, load_image
from .image_processing_hamlearning import HamLearningImageProcessor  # noqa: F401  (saved with the processor)
from .region_extraction import Regions, build_region_extractor, check_regions, keep_best, no_regions
from .word_splitting import split_words

# A tokenizer's model_max_length is 10^30 where nobody set it.
DEFAULT_MAX_LENGTH, LARGEST_MAX_LENGTH = 512, 100_000
# The share of a window that the next one repeats.
WINDOW_OVERLAP = 0.25
# What the encoder is shown of a word, and of a region's label: the rest says nothing more about an entity.
MAX_WORD_CHARACTERS, MAX_LABEL_TOKENS = 200, 8
_SURROGATE = re.compile("[\ud800-\udfff]")


class HamLearningProcessor(ProcessorMixin):
    """Tokenizer, image processor and region extractor in one.

    Args:
        image_processor: [`HamLearningImageProcessor`].
        tokenizer: any fast tokenizer.
        region_config (`dict`, *optional*): `{"name": "grid" | "precomputed" | "object-detection", "max_regions": 16,
            …}` with the extractor's own options beside. Defaults to the grid.
        max_length (`int`, *optional*): sub-tokens of a window, special ones included; the tokenizer's own limit if unset.
    """

    def __init__(self, image_processor=None, tokenizer=None, region_config: dict | None = None, max_length: int | None = None):
        if tokenizer is not None and not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} is slow: a fast tokenizer is needed to align words")
        self.region_config = {"name": "grid", "max_regions": 16} | (region_config or {})
        self.max_length = max_length
        options = {name: value for name, value in self.region_config.items() if name != "max_regions"}
        self._extract = build_region_extractor(**options)
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | list[list[str]] | None = None,
        images: Any = None,
        boxes: list | None = None,
        box_labels: list | None = None,
        box_scores: list | None = None,
        image_sizes: list[tuple[int, int] | None] | None = None,
        is_split_into_words: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare posts for the model.

        Args:
            text: a string, a list of strings, or lists of words; with `is_split_into_words` a list of strings is one
                post's words.
            images: a picture or `None` a post (path, bytes, PIL image).
            boxes, box_labels, box_scores: regions a post, in place of the extractor's; `None` for a post without.
            image_sizes: in place of `images`, height and width of pictures whose features the model is given, `None` for
                a post without; no `pixel_values` are made.

        Returns:
            The model's inputs for B posts: `input_ids` and `attention_mask` (B, N, S), `word_positions` and `word_mask`
            (B, W), `has_image` (B,) and, if any post has an image, `pixel_values` (B, 3, height, width), `image_sizes`
            (B, 2), `region_boxes` (B, K, 4), `region_label_ids` (B, K, T), `region_mask` (B, K).

        Raises:
            ValueError: naming the post and the field that is wrong.
        """
        if return_tensors != "pt":
            raise ValueError(f'return_tensors: only "pt" is made, not {return_tensors!r}')
        posts, single = self._posts(text, is_split_into_words)
        images, *regions = (
            self._per_post(field, value, len(posts), single)
            for field, value in (
                ("images", images), ("boxes", boxes), ("box_labels", box_labels), ("box_scores", box_scores)
            )
        )  # fmt: skip
        pictures = self.load_images(images)
        if image_sizes is None:
            shown, image_sizes = pictures, [picture and (picture.height, picture.width) for picture in pictures]
        elif any(picture is not None for picture in pictures):
            raise ValueError("image_sizes: stands in place of images; give one of the two")
        elif len(image_sizes) != len(posts):
            raise ValueError(f"image_sizes: {len(image_sizes)} entries for {len(posts)} posts")
        else:
            shown = image_sizes
        features = self._encode_text(posts)
        has_image = features["has_image"] = torch.tensor([size is not None for size in image_sizes], dtype=torch.bool)
        if has_image.any():
            if shown is pictures:
                features["pixel_values"] = self._encode_images(pictures, has_image)
            features["image_sizes"] = torch.tensor([size or (1, 1) for size in image_sizes]).float()
            features |= self._encode_regions(self.extract_regions(shown, *regions))
        return BatchFeature(features)

    @staticmethod
    def split_words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
        """Words of a raw post and, for each, its start and end in the string."""
        return split_words(text)

    @staticmethod
    def load_image(image: Any, **options) -> Image.Image:
        """A picture as the model sees it: see `image_loading.load_image`."""
        return load_image(image, **options)

    def load_images(self, images: list, names: list[str] | None = None, allow_urls: bool = False) -> list[Image.Image | None]:
        """Open the pictures of posts; an error names the post (`names[i]`, or its place)."""
        names = names or [f"post {index}" for index in range(len(images))]
        opened = []
        for image, name in zip(images, names, strict=True):
            try:
                opened.append(None if image is None else load_image(image, allow_urls=allow_urls))
            except ImageError as error:
                raise ImageError(f"{name}, field image: {error}") from error
        return opened

    def extract_regions(
        self,
        images: list,
        boxes: list | None = None,
        box_labels: list | None = None,
        box_scores: list | None = None,
        names: list[str] | None = None,
    ) -> list[Regions]:
        """Regions of posts: those given, else those of the extractor; none where the image is `None`. At most
        `max_regions`. Where `needs_picture` says no, anything else may stand for an image.
        """
        count = len(images)
        names = names or [f"post {index}" for index in range(count)]
        boxes, box_labels, box_scores = (value or [None] * count for value in (boxes, box_labels, box_scores))
        wanted = [place for place in range(count) if images[place] is not None and boxes[place] is None]
        for place in wanted:
            if self.needs_picture(None) and not isinstance(images[place], Image.Image):
                raise ValueError(f"{names[place]}, field boxes: are missing, and without the picture none can be found")
        found = dict(zip(wanted, self._extract([images[place] for place in wanted]), strict=True))
        regions = []
        for place in range(count):
            if boxes[place] is not None:
                given = check_regions(boxes[place], box_labels[place], box_scores[place], names[place])
                found[place] = given if images[place] is not None else no_regions()
            elif box_labels[place] is not None or box_scores[place] is not None:
                raise ValueError(f"{names[place]}, field boxes: there are labels or scores but no boxes")
            regions.append(keep_best(found.get(place, no_regions()), self.region_config["max_regions"]))
        return regions

    def needs_picture(self, boxes: list | None) -> bool:
        """Whether the picture itself has to be looked at to find the regions of a post that comes with these boxes."""
        return boxes is None and self._extract.reads_pictures

    @staticmethod
    def _posts(text: Any, is_split_into_words: bool) -> tuple[list[list[str]], bool]:
        """Every post as a list of words, and whether a single one was given."""
        if isinstance(text, str) and not is_split_into_words:
            return [split_words(text)[0]], True
        if not isinstance(text, list | tuple):
            raise ValueError(f"text: a string, strings or lists of words are wanted, not {type(text).__name__}")
        if len(text) == 0:
            raise ValueError("text: an empty list; at least one post is wanted")
        single = is_split_into_words and all(isinstance(item, str) for item in text)
        items = [list(text)] if single else list(text)
        posts = []
        for index, item in enumerate(items):
            if isinstance(item, str) and not is_split_into_words:
                posts.append(split_words(item)[0])
            elif isinstance(item, list | tuple) and all(isinstance(word, str) for word in item):
                posts.append(list(item))
            else:
                raise ValueError(f"post {index}, field text: a string or a list of words is wanted, not {item!r:.80}")
        return posts, single

    @staticmethod
    def _per_post(field: str, value: Any, num_posts: int, single: bool) -> list:
        if value is None:
            return [None] * num_posts
        is_list = isinstance(value, list | tuple)
        if single and field == "images" and not is_list:
            value = [value]
        elif single and field != "images" and not (is_list and len(value) == 1 and _is_nested(field, value[0])):
            value = [value]
        elif not is_list:
            raise ValueError(f"{field}: a list with one entry a post is wanted, not {type(value).__name__}")
        if len(value) != num_posts:
            raise ValueError(f"{field}: {len(value)} entries for {num_posts} posts")
        return list(value)

    @property
    def window_length(self) -> int:
        """Sub-tokens of a window, special ones included."""
        own = self.tokenizer.model_max_length
        return self.max_length or (own if own < LARGEST_MAX_LENGTH else DEFAULT_MAX_LENGTH)

    def _encode_text(self, posts: list[list[str]]) -> dict[str, torch.Tensor]:
        """Windows of all posts, and where in its post's N·S sub-tokens each word begins."""
        limit = self.window_length
        content = limit - self.tokenizer.num_special_tokens_to_add()
        if content < 4:
            raise ValueError(f"max_length {limit}: a window of {content} sub-tokens is too short")
        overlap = int(content * WINDOW_OVERLAP)
        encoded = self.tokenizer(
            [[_SURROGATE.sub("\ufffd", word[:MAX_WORD_CHARACTERS]) for word in words] for words in posts],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=limit,
            stride=overlap,
            return_overflowing_tokens=True,
            return_attention_mask=True,
        )
        post = np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64)
        window = np.arange(len(post)) - np.searchsorted(post, post)
        word = np.array([[-1 if w is None else w for w in e.word_ids] for e in encoded.encodings], dtype=np.int64)
        word = word.reshape(len(post), -1)
        num_posts, num_windows, length = len(posts), int(window.max(initial=0)) + 1, max(1, word.shape[1])
        num_words = max(map(len, posts), default=0)

        # Content tokens are numbered through the whole post, so that a word's first one is known in every window.
        is_content = word >= 0
        column = np.cumsum(is_content, axis=1) - 1
        number = window[:, None] * (content - overlap) + column
        context = np.minimum(column, is_content.sum(1, keepdims=True) - 1 - column)
        at = np.nonzero(is_content)
        of = (post[at[0]], word[at])
        first = np.full((num_posts, num_words), np.iinfo(np.int64).max)
        np.minimum.at(first, of, number[at])
        begins = number[at] == first[of]
        # The window that shows most around the word, the earlier one of equals: written last.
        order = np.lexsort((-window[at[0]], context[at]))
        order = order[begins[order]]
        word_positions = np.full((num_posts, num_words), -1, dtype=np.int64)
        word_positions[of[0][order], of[1][order]] = (window[at[0]] * length + at[1])[order]

        input_ids = np.full((num_posts, num_windows, length), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        if word.shape[1]:
            input_ids[post, window] = encoded["input_ids"]
            attention_mask[post, window] = encoded["attention_mask"]
        word_mask = np.arange(num_words) < np.array([len(words) for words in posts], dtype=np.int64)[:, None]
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "word_positions": word_positions,
            "word_mask": word_mask,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _encode_images(self, pictures: list, has_image: torch.Tensor) -> torch.Tensor:
        present = [picture for picture in pictures if picture is not None]
        pixels = self.image_processor(images=present, return_tensors="pt")["pixel_values"]
        pixel_values = pixels.new_zeros(len(pictures), *pixels.shape[1:])
        pixel_values[has_image] = pixels
        return pixel_values

    def _encode_regions(self, regions: list[Regions]) -> dict[str, torch.Tensor]:
        counts = np.array([len(region["boxes"]) for region in regions])
        num_regions = int(counts.max(initial=0))
        mask = np.arange(num_regions) < counts[:, None]
        boxes = np.zeros((len(regions), num_regions, 4), dtype=np.float32)
        boxes[mask] = np.array([box for region in regions for box in region["boxes"]]).reshape(-1, 4)
        labels = [label for region in regions for label in region["box_labels"]]
        pad = self.tokenizer.pad_token_id or 0
        # Every distinct label once: a batch has few.
        names, which = np.unique(np.array(labels, dtype=object), return_inverse=True) if labels else ([], [])
        tokens = [self._label_tokens(name) for name in names]
        longest = max(map(len, tokens), default=0)
        table = np.array([row + [pad] * (longest - len(row)) for row in tokens], dtype=np.int64).reshape(len(tokens), longest)
        label_ids = np.full((len(regions), num_regions, longest), pad, dtype=np.int64)
        if labels:
            label_ids[mask] = table[which]
        return {
            "region_boxes": torch.from_numpy(boxes),
            "region_label_ids": torch.from_numpy(label_ids),
            "region_mask": torch.from_numpy(mask),
        }

    def _label_tokens(self, label: str) -> list[int]:
        words = _SURROGATE.sub("\ufffd", label[:MAX_WORD_CHARACTERS]).split()
        if not words:
            return []
        return self.tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"][:MAX_LABEL_TOKENS]

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "word_positions",
            "word_mask",
            "has_image",
            "pixel_values",
            "image_sizes",
            "region_boxes",
            "region_label_ids",
            "region_mask",
        ]


def _is_nested(field: str, value: Any) -> bool:
    """Whether a single post's regions were wrapped in a list of one post."""
    if value is None:
        return True
    if not isinstance(value, list | tuple):
        return False
    return field != "boxes" or len(value) == 0 or isinstance(value[0], list | tuple)
