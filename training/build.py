"""Model and processor of a run, from the encoders that its arguments name."""

from __future__ import annotations

from pathlib import Path

import timm
from datasets import DatasetDict
from transformers import AutoConfig, AutoTokenizer

from modeling_hamlearning import HamLearningConfig, HamLearningForTokenClassification
from processors import HamLearningImageProcessor, HamLearningProcessor

from .arguments import ModelArguments
from .tokenizer import build_tokenizer

FROM_SCRATCH = "from_scratch"


def build(
    arguments: ModelArguments, data: DatasetDict, label_names: list[str]
) -> tuple[HamLearningForTokenClassification, HamLearningProcessor]:
    """Model and processor from the encoders that the arguments name."""
    options = dict(arguments.model_config)
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    vision = {"model_type": "timm_backbone", "backbone": arguments.vision, "out_indices": [-1]}
    if arguments.text == FROM_SCRATCH:
        words = (word for tokens in data["train"]["tokens"] for word in tokens)
        regions = data["train"]["box_labels"] if "box_labels" in data["train"].column_names else []
        named = (word for of_post in regions for label in of_post or [] for word in label.split())
        tokenizer = build_tokenizer([*words, *named], **arguments.tokenizer_config)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
        special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
        shape = {"model_type": "bert"} | arguments.text_config
        text_config = AutoConfig.for_model(shape.pop("model_type"), vocab_size=len(tokenizer), **special, **shape)
        tokenizer.model_max_length = text_config.max_position_embeddings
    else:
        folder = str(Path(arguments.text).parent) if arguments.text.endswith(".safetensors") else arguments.text
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or folder, add_prefix_space=True)
        text_config = AutoConfig.from_pretrained(folder)
        # Some encoders have fewer places than their tokenizer says.
        places = getattr(text_config, "max_position_embeddings", tokenizer.model_max_length)
        if text_config.model_type in ("roberta", "xlm-roberta", "camembert", "bertweet"):
            places -= text_config.pad_token_id + 1  # their positions are counted from behind the padding's
        tokenizer.model_max_length = min(tokenizer.model_max_length, places)
    if arguments.text != FROM_SCRATCH and arguments.text_pretrained:
        model = HamLearningForTokenClassification.from_text_vision_pretrained(
            arguments.text,
            arguments.vision,
            label_list=label_names,
            vision_pretrained=arguments.vision_pretrained,
            vision_weights=arguments.vision_weights,
            **options,
        )
    else:
        model = HamLearningForTokenClassification(
            HamLearningConfig(text_config=text_config, vision_config=vision, **labels, **options)
        )
        model.load_vision(arguments.vision_weights, arguments.vision_pretrained)
    if arguments.freeze_vision:
        model.freeze_vision()
    pretrained = timm.get_pretrained_cfg(arguments.vision)
    image_processor = HamLearningImageProcessor(
        size={"height": arguments.image_size, "width": arguments.image_size},
        **({"image_mean": list(pretrained.mean), "image_std": list(pretrained.std)} if pretrained else {}),
    )
    processor = HamLearningProcessor(
        tokenizer=tokenizer,
        image_processor=image_processor,
        region_config=arguments.region_config or None,
        max_length=arguments.max_length,
    )
    return model, processor
