"""Features of pictures under a frozen vision backbone, computed once and kept on disk for every later epoch and run."""

from __future__ import annotations

import hashlib
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
    """A folder with one safetensors file a picture, named by its content: the picture's feature map and its size."""

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
        """The cache under `folder` of this backbone: another architecture, other weights, another image processor or
        autocast precision is another backbone.
        """
        settings = image_processor.to_json_string(), model.config.vision_config.to_json_string(), str(precision)
        digest = hashlib.sha256(repr(settings).encode())
        for name, tensor in sorted(model.vision_encoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return cls(Path(folder) / digest.hexdigest()[:32])

    def _file(self, picture: Any) -> Path:
        key = content_key(picture)
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, picture: Any) -> tuple[Tensor, tuple[int, int]]:
        """The feature map (C, rows, columns) of a picture, and its height and width.

        Raises:
            ImageError: the picture cannot be read.
        """
        file = self._file(picture)
        if not file.is_file():
            load_image(picture)
            raise FileNotFoundError(f"{file} is gone: start again to have this picture's features computed")
        kept = load_file(file)
        return kept["feature_map"], tuple(kept["size"].tolist())

    def fill(
        self,
        pictures: Iterable[Any],
        model: HamLearningModel,
        image_processor: BaseImageProcessor,
        precision: torch.dtype | None = None,
        batch_size: int = 32,
        share: int = 0,
        shares: int = 1,
    ):
        """Encode and keep what is not there yet of these pictures (`None` for a post without), or one share of several.

        What cannot be read is left out: the collator says so, and of which post.
        """
        opened: dict[Path, tuple[PIL.Image.Image, tuple[int, int]]] = {}

        def keep():
            pixels = image_processor(images=[picture for picture, _ in opened.values()], return_tensors="pt")["pixel_values"]
            pixels = pixels.to(model.device)
            with torch.no_grad(), torch.autocast(model.device.type, precision) if precision else nullcontext():
                feature_maps = model.get_image_features(pixels).cpu()
            for (file, (_, size)), feature_map in zip(opened.items(), feature_maps, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                # Whole or not at all, whoever else is writing the same.
                part = file.with_suffix(f".{os.getpid()}.part")
                save_file({"feature_map": feature_map.contiguous(), "size": torch.tensor(size)}, part)
                part.replace(file)
            opened.clear()

        for picture in tqdm(pictures, desc="vision features"):
            try:
                file = None if picture is None else self._file(picture)
                if file and int(file.stem[:8], 16) % shares == share and not file.is_file():
                    opened[file] = load_reduced(picture, resize_target(image_processor))
            except ImageError:
                continue
            if len(opened) == batch_size:
                keep()
        if opened:
            keep()
