"""Image features of a frozen vision backbone, computed once and kept on disk for later epochs and runs."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from modeling_hamlearning import HamLearningModel
from processors import ImageError, content_key, load_image, load_reduced, resize_target


class VisionCache:
    """A folder with one safetensors file per image, named by the image's content: its feature map and its size."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def of_backbone(
        cls,
        folder: str | Path,
        model: HamLearningModel,
        image_processor: BaseImageProcessor,
        precision: torch.dtype | None = None,
    ) -> VisionCache:
        """The cache of this backbone under `folder`. Another architecture, other weights, another image processor, another way
        to decode images or another autocast precision has a cache of its own.
        """
        settings = image_processor.to_json_string(), model.config.vision_config.to_json_string(), str(precision)
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(_decoding(image_processor))
        for name, tensor in sorted(model.vision_encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return cls(Path(folder) / digest.hexdigest()[:32])

    def _file(self, image: Any) -> Path:
        key = content_key(image)
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        """The feature map (C, rows, columns) of an image, and its height and width in pixels.

        Raises:
            ImageError: the image cannot be read.
            FileNotFoundError: the cache lacks it, because its file was removed.
        """
        file = self._file(image)
        if not file.is_file():
            load_image(image)
            raise FileNotFoundError(f"{file} was removed: start again, which computes this image's features")
        content = load_file(file)
        return content["feature_map"], tuple(content["size"].tolist())

    def fill(
        self,
        images: Iterable[Any],
        model: HamLearningModel,
        image_processor: BaseImageProcessor,
        precision: torch.dtype | None = None,
        batch_size: int = 32,
        share: int = 0,
        shares: int = 1,
    ):
        """Encode the images that the cache lacks, or one share of several; `None` stands for a post without an image.

        Images that cannot be read are left out here; the collator logs them with their posts.
        """
        batch: dict[Path, tuple[PIL.Image.Image, tuple[int, int]]] = {}

        def encode():
            pixels = image_processor(images=[image for image, _ in batch.values()], return_tensors="pt")["pixel_values"]
            pixels = pixels.to(model.device)
            with torch.no_grad(), torch.autocast(model.device.type, precision) if precision else nullcontext():
                feature_maps = model.get_image_features(pixels).cpu()
            for (file, (_, size)), feature_map in zip(batch.items(), feature_maps, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                # Several processes may write the same file: each writes a file of its own and renames it.
                part = file.with_suffix(f".{os.getpid()}.part")
                save_file({"feature_map": feature_map.contiguous(), "size": torch.tensor(size)}, part)
                part.replace(file)
            batch.clear()

        for image in tqdm(images, desc="vision features"):
            try:
                file = None if image is None else self._file(image)
                if file and int(file.stem[:8], 16) % shares == share and not file.is_file():
                    batch[file] = load_reduced(image, resize_target(image_processor))
            except ImageError:
                continue
            if len(batch) == batch_size:
                encode()
        if batch:
            encode()


def _decoding(image_processor: BaseImageProcessor) -> bytes:
    """The pixels that become of two large files: a new version of a decoder, of resizing or of our own code changes them."""
    target = resize_target(image_processor)
    gradient = PIL.Image.radial_gradient("L").resize((2000, 1500), PIL.Image.Resampling.BICUBIC)
    probe = PIL.Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    pixels = b""
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        probe.save(file, kind)
        image = load_image(file, target_size=target)
        pixels += image_processor(images=[image], return_tensors="pt")["pixel_values"].numpy().tobytes()
    return pixels
