"""What Hugging Face Inference Endpoints run for this repo: `handler(request)` for the JSON of each request.

A request is `{"inputs": post or list of posts, "parameters": {…}}`. A post is a string, or a dict with `text` (or `tokens`) and
maybe `image` (base64, a `data:` URI, or the URL of a public address), `boxes`, `box_labels` and `box_scores`. Parameters are
`return_attention`, `return_relevance` and `batch_size`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import pipeline

BATCH_SIZE = 16


class EndpointHandler:
    """The repo's pipeline, kept between requests.

    Args:
        path: the folder with the repo's files.
    """

    def __init__(self, path: str = ""):
        device = 0 if torch.cuda.is_available() else -1
        # The repo is the endpoint owner's choice, so its code may run.
        self.ner = pipeline("mner", model=path, trust_remote_code=True, device=device)

    def __call__(self, data: dict[str, Any]) -> list:
        """Entities of each post: a list with a dict an entity for one post, a list of such lists for a list of posts.

        Raises:
            ValueError: naming the post and the field that is wrong.
        """
        if unknown := set(data) - {"inputs", "parameters"}:
            raise ValueError(f'expected "inputs" and "parameters", got also {", ".join(sorted(unknown))}')
        posts = data.get("inputs")
        is_list = isinstance(posts, list)
        for place, post in enumerate(posts if is_list else [posts]):
            if not isinstance(post, str | dict):
                raise ValueError(f"inputs, post {place}: expected a string or a dict with text, got {type(post).__name__}")
        options = {"batch_size": BATCH_SIZE} | (data.get("parameters") or {})
        results = self.ner([without_paths(post) for post in (posts if is_list else [posts])], **options)
        return results if is_list else results[0]


def without_paths(post: str | dict[str, Any]) -> str | dict[str, Any]:
    """The post with an image that can name no file of this machine: what is neither a URL nor a data URI is base64. As
    elsewhere, what is blank is no image, and a list of one is its image.
    """
    if not isinstance(post, dict):
        return post
    image = post.get("image")
    if isinstance(image, list):
        images = [item for item in image if not _is_blank(item)]
        image = images[0] if len(images) == 1 else images or None
    if _is_blank(image):
        return post | {"image": None}
    if not isinstance(image, str):
        raise ValueError(f"field image: expected base64, a data URI or a URL, got {type(image).__name__}")
    is_address = image[:8].lower().startswith(("http://", "https://", "data:"))
    return post | {"image": image if is_address else f"data:;base64,{image}"}


def _is_blank(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())
