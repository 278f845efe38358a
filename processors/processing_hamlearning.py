"""Posts to tensors: words to windows of sub-tokens, images to pixels, regions to boxes and label tokens."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, BertweetTokenizer, ProcessorMixin
from transformers.utils import logging

from .image_loading import ImageError, content_key, load_image, load_reduced, read_source
from .image_processing_hamlearning import HamLearningImageProcessor, resize_target  # noqa: F401  (saved with the processor)
from .region_extraction import (
    REGION_FIELDS,
    Device,
    Regions,
    build_region_extractor,
    check_regions,
    complete_region_config,
    keep_best,
    no_regions,
)
from .word_splitting import split_words

logger = logging.get_logger(__name__)
# A tokenizer's model_max_length is 10^30 where nobody set it.
DEFAULT_MAX_LENGTH, LARGEST_MAX_LENGTH = 512, 100_000
# The share of a window that the next one repeats.
WINDOW_OVERLAP = 0.25
# The encoder reads this much of a word, and of a region's label: the rest says nothing more about an entity.
MAX_WORD_CHARACTERS, MAX_LABEL_TOKENS = 200, 8
_SURROGATE = re.compile("[\ud800-\udfff]")


class HamLearningProcessor(ProcessorMixin):
    """Tokenizer, image processor and region extractor in one.

    Args:
        image_processor: [`HamLearningImageProcessor`].
        tokenizer: any tokenizer; one that is not fast, such as BERTweet's, reads each word by itself.
        region_config (`dict`, `list` or `str`, *optional*): `{"name": "anchors" | "grid" | "precomputed" |
            "object-detection", "max_regions": 16, …}` with the extractor's options beside them; an extractor's name alone;
            or a list of those, whose regions are joined. Defaults to the anchors, 14 boxes made for real photos. Regions that
            come with a post replace the extractor's, or with `"precomputed"` in the list are joined with them.
        max_length (`int`, *optional*): sub-tokens of a window, special ones included; the tokenizer's own limit if unset.

    >>> processor = HamLearningProcessor(tokenizer=tokenizer, image_processor=HamLearningImageProcessor())
    >>> batch = processor(text=["Jordan at #NBA"], images=["court.jpg"])
    >>> outputs = model(**batch)
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        region_config: dict | list | str | None = None,
        max_length: int | None = None,
    ):
        if tokenizer is not None and tokenizer.pad_token is None:
            # Decoders have none. Any will do: the mask hides padding.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self.region_config = complete_region_config(region_config)
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
        is_split_into_words: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare posts for the model.

        Args:
            text: a string, a list of strings, or lists of words; with `is_split_into_words` a list of strings is one
                post's words.
            images: an image or `None` a post, in any form that `load_image` takes but a URL.
            boxes, box_labels, box_scores: regions a post, in place of the extractor's; `None` for a post without.

        Returns:
            The model's inputs for B posts, as `encode` gives them.

        Raises:
            ValueError: naming the post and the field that is wrong.
        """
        if return_tensors != "pt":
            raise ValueError(f'return_tensors: expected "pt", got {return_tensors!r}')
        words, single = self._words(text, is_split_into_words)
        images, boxes, box_labels, box_scores = (
            self._per_post(field, value, len(words), single)
            for field, value in zip(("images", *REGION_FIELDS), (images, boxes, box_labels, box_scores), strict=True)
        )
        images, image_sizes = self.load_reduced_images(images, boxes=boxes)
        regions = self.extract_regions(images, boxes, box_labels, box_scores)
        return self.encode(words, regions, image_sizes, images)

    def encode(
        self,
        words: list[list[str]],
        regions: list[Regions],
        image_sizes: list[tuple[int, int] | None],
        images: list[Image.Image | None] | None = None,
    ) -> BatchFeature:
        """Tensors of posts whose images are open and whose regions are known: the second half of `__call__`.

        Args:
            words: the words of each post.
            regions: of each post, as `extract_regions` gives them.
            image_sizes: height and width of each post's original image, `None` for a post without one.
            images: each post's image, or `None`. Left out where the model is given the images' features: then no
                `pixel_values` are made.

        Returns:
            The model's inputs for B posts: `input_ids` and `attention_mask` (B, N, S), `word_positions` and `word_mask`
            (B, W), `has_image` (B,) and, if any post has an image, `pixel_values` (B, 3, height, width), `image_sizes`
            (B, 2), `region_boxes` (B, K, 4), `region_label_ids` (B, K, T), `region_mask` (B, K).
        """
        features = self._encode_text(words)
        has_image = features["has_image"] = torch.tensor([size is not None for size in image_sizes], dtype=torch.bool)
        if has_image.any():
            if images is not None:
                features["pixel_values"] = self._encode_images(images, has_image)
            features["image_sizes"] = torch.tensor([size or (1, 1) for size in image_sizes]).float()
            features |= self._encode_regions(regions)
        return BatchFeature(features)

    @staticmethod
    def split_words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
        """Words of a raw post and, for each, its start and end in the string."""
        return split_words(text)

    @staticmethod
    def load_image(image: Any, **options) -> Image.Image:
        """An image upright and in RGB: see `image_loading.load_image`."""
        return load_image(image, **options)

    @staticmethod
    def read_source(image: Any, name: str, allow_urls: bool = False) -> tuple[Image.Image | Path | bytes, str | None]:
        """What a post's image stands for, with a URL fetched: a PIL image, a file or its bytes; and the content's key, by which
        equal files are known. A PIL image has none: hashing its pixels takes longer than reducing them.

        Raises:
            ImageError: naming the post.
        """
        try:
            source = read_source(image, allow_urls)
            return source, None if isinstance(source, Image.Image) else content_key(source)
        except ImageError as error:
            raise ImageError(f"{name}, field image: {error}") from error

    def load_images(self, images: list, names: list[str] | None = None, allow_urls: bool = False) -> list[Image.Image | None]:
        """Open the images of posts at their full size.

        Raises:
            ImageError: naming the post (`names[i]`, or its place).
        """
        return self._load_images(images, names, allow_urls, [None] * len(images))[0]

    def load_reduced_images(
        self, images: list, names: list[str] | None = None, allow_urls: bool = False, boxes: list | None = None
    ) -> tuple[list[Image.Image | None], list[tuple[int, int] | None]]:
        """Open the images of posts for the model: what is much larger than the model's input is reduced while decoded. A
        detector's input counts as well, but not for a post that comes with `boxes`.

        Returns:
            The images, and height and width of their originals; `None` for a post without.

        Raises:
            ImageError: naming the post (`names[i]`, or its place).
        """
        boxes = boxes or [None] * len(images)
        present = [image is not None for image in images]
        target_sizes = [self.target_size(own) if here else None for own, here in zip(boxes, present, strict=True)]
        return self._load_images(images, names, allow_urls, target_sizes)

    def target_size(self, boxes: list | None) -> tuple[int, int] | None:
        """The least height and width that the image processor and, where it looks at the image of a post that comes with these
        boxes, the region extractor need; `None` where it is not known.
        """
        size, side = resize_target(self.image_processor), self._extract.image_side if self._extracts(boxes) else 0
        return None if size is None or side is None else (max(size[0], side), max(size[1], side))

    @staticmethod
    def _load_images(
        images: list, names: list[str] | None, allow_urls: bool, target_sizes: list[tuple[int, int] | None]
    ) -> tuple[list[Image.Image | None], list[tuple[int, int] | None]]:
        names = names or [f"post {index}" for index in range(len(images))]
        opened: list[Image.Image | None] = []
        sizes: list[tuple[int, int] | None] = []
        for image, name, target_size in zip(images, names, target_sizes, strict=True):
            try:
                image, size = (None, None) if image is None else load_reduced(image, target_size, allow_urls=allow_urls)
            except ImageError as error:
                raise ImageError(f"{name}, field image: {error}") from error
            opened.append(image)
            sizes.append(size)
        return opened, sizes

    def extract_regions(
        self,
        images: list,
        boxes: list | None = None,
        box_labels: list | None = None,
        box_scores: list | None = None,
        names: list[str] | None = None,
        device: Device | None = None,
    ) -> list[Regions]:
        """Regions of posts: those that come with a post, else those of the extractor, at most `max_regions`; none where the
        image is `None`. An extractor that joins `"precomputed"` with others adds to what comes with a post. Where `needs_image`
        says no, anything else may stand for an image.

        A detector runs on this device, unless `region_config` names another.

        Raises:
            ValueError: naming the post (`names[i]`, or its place) and the field.
        """
        count = len(images)
        names = names or [f"post {index}" for index in range(count)]
        boxes, box_labels, box_scores = (value or [None] * count for value in (boxes, box_labels, box_scores))
        regions: list[Regions | None] = [None] * count
        for place in range(count):
            if boxes[place] is not None:
                regions[place] = check_regions(boxes[place], box_labels[place], box_scores[place], names[place])
            elif box_labels[place] is not None or box_scores[place] is not None:
                raise ValueError(f"{names[place]}, field boxes: expected boxes beside the labels or scores, got None")
        given = list(regions)
        extracting = [place for place in range(count) if images[place] is not None and self._extracts(boxes[place])]
        for place in extracting:
            if self.needs_image(boxes[place]) and not isinstance(images[place], Image.Image):
                raise ValueError(f"{names[place]}, field boxes: expected boxes, or the image itself to find them in, got neither")
        extracted = self._extract([images[place] for place in extracting], [regions[place] for place in extracting], device)
        for place, found in zip(extracting, extracted, strict=True):
            regions[place] = found
        max_regions = self.region_config["max_regions"]
        if any(own is not None and len(own["boxes"]) > max_regions for own in given):
            logger.warning_once(
                f"a post comes with more boxes than max_regions of region_config ({max_regions}): those of highest score are used"
            )
        return [
            no_regions() if image is None or own is None else keep_best(own, max_regions)
            for image, own in zip(images, regions, strict=True)
        ]

    def needs_image(self, boxes: list | None) -> bool:
        """Whether the regions of a post that comes with these boxes are found by looking at its image."""
        return self._extracts(boxes) and self._extract.reads_images

    def _extracts(self, boxes: list | None) -> bool:
        """Whether the extractor is asked for a post that comes with these boxes."""
        return boxes is None or self._extract.reads_given

    @staticmethod
    def _words(text: Any, is_split_into_words: bool) -> tuple[list[list[str]], bool]:
        """Every post as a list of words, and whether it is a single one."""
        if isinstance(text, str) and not is_split_into_words:
            return [split_words(text)[0]], True
        if not isinstance(text, list | tuple):
            raise ValueError(f"text: expected a string, strings or lists of words, got {type(text).__name__}")
        if len(text) == 0:
            raise ValueError("text: expected at least one post, got an empty list")
        single = is_split_into_words and all(isinstance(item, str) for item in text)
        items = [list(text)] if single else list(text)
        words = []
        for index, item in enumerate(items):
            if isinstance(item, str) and not is_split_into_words:
                words.append(split_words(item)[0])
            elif isinstance(item, list | tuple) and all(isinstance(word, str) for word in item):
                words.append(list(item))
            else:
                raise ValueError(f"post {index}, field text: expected a string or a list of words, got {item!r:.80}")
        return words, single

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
            raise ValueError(f"{field}: expected a list with one entry a post, got {type(value).__name__}")
        if len(value) != num_posts:
            raise ValueError(f"{field}: expected one entry a post, got {len(value)} entries for {num_posts} posts")
        return list(value)

    @property
    def window_length(self) -> int:
        """Sub-tokens of a window, special ones included."""
        limit = self.tokenizer.model_max_length
        return self.max_length or (limit if limit < LARGEST_MAX_LENGTH else DEFAULT_MAX_LENGTH)

    def _encode_text(self, posts: list[list[str]]) -> dict[str, torch.Tensor]:
        """Windows of all posts, and where among its post's N·S sub-tokens each word begins.

        The tokenizer returns the windows of all posts in one list, a post's own one after another; here they become a
        dimension of their own, (B, N, S), filled up with windows of padding.
        """
        length = self.window_length
        num_content = length - self.tokenizer.num_special_tokens_to_add()
        if num_content < 4:
            raise ValueError(f"max_length: expected room for at least 4 sub-tokens a window, got {num_content} of {length}")
        overlap = int(num_content * WINDOW_OVERLAP)
        readable = [[_SURROGATE.sub("\ufffd", word[:MAX_WORD_CHARACTERS]) for word in words] for words in posts]
        tokenize = _tokenize if self.tokenizer.is_fast else _tokenize_word_for_word
        token_ids, token_mask, word_ids, window_posts = tokenize(self.tokenizer, readable, length, overlap)
        # A window's number within its post: its place in the list less that of the post's first window.
        windows = np.arange(len(window_posts)) - np.searchsorted(window_posts, window_posts)
        num_words = np.array([len(words) for words in posts], dtype=np.int64)
        word_mask = np.arange(num_words.max(initial=0)) < num_words[:, None]

        shape = (len(posts), int(windows.max(initial=0)) + 1, max(1, word_ids.shape[1]))
        input_ids = np.full(shape, self.tokenizer.pad_token_id or 0, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        if word_ids.shape[1]:
            input_ids[window_posts, windows] = token_ids
            attention_mask[window_posts, windows] = token_mask
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "word_positions": _word_positions(word_ids, window_posts, windows, num_content - overlap, word_mask.shape),
            "word_mask": word_mask,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _encode_images(self, images: list[Image.Image | None], has_image: torch.Tensor) -> torch.Tensor:
        present = [image for image in images if image is not None]
        pixels = self.image_processor(images=present, return_tensors="pt")["pixel_values"]
        pixel_values = pixels.new_zeros(len(images), *pixels.shape[1:])
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
        distinct, which = np.unique(np.array(labels, dtype=object), return_inverse=True) if labels else ([], [])
        tokens = [self._label_tokens(label) for label in distinct]
        longest = max(map(len, tokens), default=0)
        table = np.array([ids + [pad] * (longest - len(ids)) for ids in tokens], dtype=np.int64).reshape(len(tokens), longest)
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

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> list[str]:
        """Save what `from_pretrained` loads."""
        saved = super().save_pretrained(save_directory, **kwargs)
        merges = Path(save_directory, "bpe.codes")
        if isinstance(self.tokenizer, BertweetTokenizer) and merges.is_file():
            # transformers writes a line's two parts and reads a line of three, the last a count that is not used.
            lines = merges.read_text(encoding="utf-8").splitlines()
            merges.write_text("".join(f"{line} 0\n" for line in lines if line), encoding="utf-8")
        return saved

    @property
    def model_input_names(self) -> list[str]:
        """The tensors of a batch that has images; see [`encode`]."""
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


def _tokenize(tokenizer, posts: list[list[str]], length: int, overlap: int) -> tuple[np.ndarray, ...]:
    """Windows of the words of all posts, a post's own one after another.

    Returns:
        Token ids and attention mask (windows, S), the word of each token in its post (windows, S), −1 for special ones and
        padding, and the post of each window (windows,).
    """
    encoded = tokenizer(
        posts,
        is_split_into_words=True,
        padding=True,
        truncation=True,
        max_length=length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_attention_mask=True,
    )
    word_ids = np.array([[-1 if w is None else w for w in e.word_ids] for e in encoded.encodings], dtype=np.int64)
    window_posts = np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64)
    shape = (len(window_posts), word_ids.size // max(1, len(window_posts)))
    token_ids, token_mask = (np.reshape(encoded[name], shape) for name in ("input_ids", "attention_mask"))
    return token_ids, token_mask, word_ids.reshape(shape), window_posts


def _tokenize_word_for_word(tokenizer, posts: list[list[str]], length: int, overlap: int) -> tuple[np.ndarray, ...]:
    """What `_tokenize` returns, of a tokenizer that does not say which token belongs to which word."""
    num_content = length - tokenizer.num_special_tokens_to_add()
    # The place of the first token between the special ones.
    first_place = tokenizer.build_inputs_with_special_tokens([-1]).index(-1)
    tokens_of = {
        word: tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        for word in {word for words in posts for word in words}
    }
    rows, row_words, window_posts = [], [], []
    for post, words in enumerate(posts):
        content = [(token, place) for place, word in enumerate(words) for token in tokens_of[word]]
        for first in range(0, max(1, len(content) - overlap), num_content - overlap):
            window = content[first : first + num_content]
            rows.append(tokenizer.build_inputs_with_special_tokens([token for token, _ in window]))
            row_words.append([place for _, place in window])
            window_posts.append(post)
    shape = (len(rows), max(map(len, rows), default=0))
    token_ids = np.full(shape, tokenizer.pad_token_id or 0, dtype=np.int64)
    token_mask, word_ids = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    for row, (tokens, places) in enumerate(zip(rows, row_words, strict=True)):
        token_ids[row, : len(tokens)] = tokens
        token_mask[row, : len(tokens)] = 1
        word_ids[row, first_place : first_place + len(places)] = places
    return token_ids, token_mask, word_ids, np.array(window_posts, dtype=np.int64)


def _is_nested(field: str, value: Any) -> bool:
    """Whether a single post's regions were wrapped in a list of one post."""
    if value is None:
        return True
    if not isinstance(value, list | tuple):
        return False
    return field != "boxes" or len(value) == 0 or isinstance(value[0], list | tuple)


def _word_positions(
    word_ids: np.ndarray, window_posts: np.ndarray, windows: np.ndarray, step: int, shape: tuple[int, int]
) -> np.ndarray:
    """Where among its post's N·S sub-tokens each word begins, (B, W); −1 for a word without a sub-token.

    Windows overlap, so a word's first sub-token may lie in two of them. The position is the one with most context, that
    is with most sub-tokens on its poorer side; of equals, the one in the earlier window.

    Example: ten words of one sub-token each, windows of S = 10 with 8 sub-tokens between [CLS] and [SEP], a step of 6:

        window 0:  [CLS] 0 1 2 3 4 5 6 7 [SEP]
        window 1:  [CLS] 6 7 8 9 [SEP] [PAD] [PAD] [PAD] [PAD]

    Word 6 has one sub-token after it in window 0 and none before it in window 1: window 0 is taken, position 7. Word 7 has
    none after it in window 0, and one before it and two after it in window 1: window 1 is taken, position 10 + 2. The result
    is [1, 2, 3, 4, 5, 6, 7, 12, 13, 14].

    Args:
        word_ids: (windows, S), the word of each sub-token in its post, −1 for special ones and padding.
        window_posts: (windows,), the post of each window, ascending.
        windows: (windows,), the number of each window within its post.
        step: sub-tokens from the beginning of one window to that of the next.
        shape: (B, W).
    """
    is_content = word_ids >= 0
    places_in_window = np.cumsum(is_content, axis=1) - 1
    places_in_post = windows[:, None] * step + places_in_window
    contexts = np.minimum(places_in_window, is_content.sum(1, keepdims=True) - 1 - places_in_window)

    # From here on one entry a sub-token that belongs to a word.
    row, column = np.nonzero(is_content)
    post, word = window_posts[row], word_ids[row, column]
    place, context = places_in_post[row, column], contexts[row, column]
    first_places = np.full(shape, np.iinfo(np.int64).max)
    np.minimum.at(first_places, (post, word), place)

    # Worst first, so that the best position of a word is written last.
    order = np.lexsort((-windows[row], context))
    order = order[place[order] == first_places[post[order], word[order]]]
    positions = np.full(shape, -1, dtype=np.int64)
    positions[post[order], word[order]] = windows[row[order]] * word_ids.shape[1] + column[order]
    return positions
