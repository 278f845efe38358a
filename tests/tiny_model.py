"""A HamLearning of a few thousand parameters, and batches for it, without a tokenizer or pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForObjectDetection, BertConfig, YolosConfig, YolosImageProcessor

import processors
from modeling_hamlearning import HamLearningConfig, HamLearningForTokenClassification
from tests.tiny import tiny_tokenizer

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def tiny_config(backbone: str = "resnet10t", text_config=None, **switches) -> HamLearningConfig:
    text_config = text_config or BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return HamLearningConfig(
        text_config=text_config,
        vision_config={"model_type": "timm_backbone", "backbone": backbone, "out_indices": [-1]},
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        **{"fusion_size": 32, "fusion_attention_heads": 4, "image_dropout": 0.0} | switches,
    )


def tiny_model(seed: int = 0, **config) -> HamLearningForTokenClassification:
    torch.manual_seed(seed)
    model = HamLearningForTokenClassification(tiny_config(**config)).eval()
    # Initial weights are near 0, where a wrong path would hide; these make every part speak.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vision_encoder" not in name:
                parameter.normal_(std=0.05 if "relevance" in name else 0.3)
    return model


def saved_tiny_model(folder: Path, **switches) -> Path:
    """Model and processor as a repo on the Hub holds them."""
    tokenizer = tiny_tokenizer("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = tiny_model(text_config=config, **switches)
    with torch.no_grad():
        # So that a model of random weights finds entities, O is seldom best.
        model.classifier.bias[LABELS.index("O")] -= 4
    model.save_pretrained(folder)
    image_processor = processors.HamLearningImageProcessor(size={"height": 64, "width": 64})
    processors.HamLearningProcessor(tokenizer=tokenizer, image_processor=image_processor, region_config="grid").save_pretrained(
        folder
    )
    return folder


def detector_with_large_weights(config):
    """A detector whose boxes differ: initial weights say hardly anything of an image."""
    model = AutoModelForObjectDetection.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def saved_tiny_detector(folder: Path, side: int = 32) -> Path:
    """A detector of a few thousand parameters with random weights, which resizes images to `side` pixels."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=16, num_detection_tokens=7, id2label={0: "dog", 1: "cat", 2: "park bench"},
        label2id={"dog": 0, "cat": 1, "park bench": 2},
    )  # fmt: skip
    detector_with_large_weights(config).save_pretrained(folder)
    YolosImageProcessor(size={"height": side, "width": side}, do_pad=False).save_pretrained(folder)
    return folder


def random_batch(
    num_posts: int = 3,
    num_words: int = 6,
    length: int = 12,
    num_regions: int = 3,
    num_windows: int = 1,
    image_size: int = 64,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A full batch: no padding, an image and regions in every post, labels with no order."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    corners = torch.rand(num_posts, num_regions, 2, 2, generator=generator).sort(2).values.flatten(2)
    return {
        "input_ids": integers(1, 60, num_posts, num_windows, length),
        "attention_mask": torch.ones(num_posts, num_windows, length, dtype=torch.long),
        "word_positions": integers(0, length * num_windows, num_posts, num_words),
        "word_mask": torch.ones(num_posts, num_words, dtype=torch.bool),
        "pixel_values": torch.randn(num_posts, 3, image_size, image_size, generator=generator),
        "has_image": torch.ones(num_posts, dtype=torch.bool),
        "image_sizes": integers(50, 500, num_posts, 2).float(),
        "region_boxes": corners,
        "region_label_ids": integers(1, 60, num_posts, num_regions, 2),
        "region_mask": torch.ones(num_posts, num_regions, dtype=torch.bool),
        "labels": integers(0, 5, num_posts, num_words),
    }


def select(batch: dict[str, torch.Tensor], posts) -> dict[str, torch.Tensor]:
    return {name: value[posts] for name, value in batch.items()}
