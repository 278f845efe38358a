"""Model and processor of a run, from the encoders that its arguments name."""

from __future__ import annotations

import logging
from dataclasses import fields, is_dataclass
from inspect import signature
from pathlib import Path

import timm
import torch
from datasets import Dataset, DatasetDict
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, BertweetTokenizer, PreTrainedConfig

from modeling_hamlearning import HamLearningConfig, HamLearningForTokenClassification
from processors import HamLearningImageProcessor, HamLearningProcessor

from .arguments import ModelArguments, check_keys
from .tokenizer import build_tokenizer

logger = logging.getLogger(__name__)

FROM_SCRATCH = "from_scratch"
# The weight of the grounding loss where training posts say what shows their entities, and `model_config` names none.
GROUNDING_LOSS_WEIGHT = 1.0
# What the encoders and the labels determine, beside what only transformers itself sets.
MADE_BY_BUILD = {"text_config", "vision_config", "id2label", "label2id", "num_labels", "auto_map", "custom_pipelines",
                 "architectures", "model_type", "transformers_version"}  # fmt: skip


def build(
    arguments: ModelArguments, data: DatasetDict, label_names: list[str]
) -> tuple[HamLearningForTokenClassification, HamLearningProcessor]:
    """Build model and processor from the encoders that the arguments name, or load the trained model that they name.

    Args:
        data: its train split gives the vocabulary of a tokenizer from scratch, and says whether the model learns which region
            shows an entity: it does where posts have `entity_boxes`, unless `model_config` has a `grounding_loss_weight` of 0.
        label_names: BIO labels in the order of their ids. A trained model keeps its own; see [`labels.add_labels`].

    Raises:
        ValueError: an unknown key of model_config, text_config or tokenizer_config.
    """
    has_entity_boxes = "train" in data and _has_entity_boxes(data["train"])
    if arguments.model is not None:
        model, processor = load_trained(arguments)
        if has_entity_boxes and not model.config.has_grounding:
            logger.warning("the model of %s has no grounding head: it does not learn from entity_boxes", arguments.model)
        return model, processor
    known = _fields(HamLearningConfig) - MADE_BY_BUILD | {"attn_implementation"}
    check_keys("model_config", arguments.model_config, known)
    if arguments.text != FROM_SCRATCH:
        for name in ("text_config", "tokenizer_config"):
            if getattr(arguments, name):
                logger.warning("%s is not used: it is for text: %s, got text: %s", name, FROM_SCRATCH, arguments.text)
    elif arguments.tokenizer:
        logger.warning("tokenizer is not used: text: %s makes its own of the training posts' words", FROM_SCRATCH)
    if arguments.text == FROM_SCRATCH:
        words = (word for tokens in data["train"]["tokens"] for word in tokens)
        regions = data["train"]["box_labels"] if "box_labels" in data["train"].column_names else []
        label_words = (word for labels in regions for label in labels or [] for word in label.split())
        known = set(signature(build_tokenizer).parameters) - {"words"}
        check_keys("tokenizer_config", arguments.tokenizer_config, known)
        tokenizer = build_tokenizer([*words, *label_words], **arguments.tokenizer_config)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
        special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
        shape = {"model_type": "bert"} | arguments.text_config
        check_keys("text_config.model_type", [shape["model_type"]], set(CONFIG_MAPPING))
        known = _fields(CONFIG_MAPPING[shape["model_type"]]) - {"vocab_size", *special}
        check_keys("text_config", arguments.text_config, known | {"model_type"})
        text_config = AutoConfig.for_model(shape.pop("model_type"), vocab_size=len(tokenizer), **special, **shape)
    else:
        folder = str(Path(arguments.text).parent) if arguments.text.endswith(".safetensors") else arguments.text
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or folder, add_prefix_space=True)
        if isinstance(tokenizer, BertweetTokenizer):
            # BERTweet was trained on tweets with @USER, HTTPURL and :names_of_emoji: in place of what people wrote.
            tokenizer = BertweetTokenizer.from_pretrained(arguments.tokenizer or folder, normalization=True)
        text_config = AutoConfig.from_pretrained(folder)
    positions = _num_positions(text_config)
    if positions is not None:
        # Some encoders have fewer positions than their tokenizer says.
        is_own = arguments.text == FROM_SCRATCH
        tokenizer.model_max_length = positions if is_own else min(tokenizer.model_max_length, positions)
        if (arguments.max_length or 0) > positions:
            raise ValueError(f"max_length: expected at most the {positions} positions of the encoder, got {arguments.max_length}")
    if ":" not in arguments.vision:  # a timm model on the Hub has an address
        check_keys("vision", [arguments.vision.split(".")[0]], set(timm.list_models()))
    is_pretrained = arguments.text != FROM_SCRATCH and arguments.text_pretrained
    defaults = {"grounding_loss_weight": GROUNDING_LOSS_WEIGHT} if has_entity_boxes else {}
    model = HamLearningForTokenClassification.from_text_vision_pretrained(
        arguments.text if is_pretrained else text_config,
        arguments.vision,
        label_list=label_names,
        vision_pretrained=arguments.vision_pretrained,
        vision_weights=arguments.vision_weights,
        **defaults | arguments.model_config,
    )
    if has_entity_boxes and model.config.has_grounding:
        logger.info(
            "the training posts have entity_boxes: the model learns which region shows an entity "
            "(model_config {grounding_loss_weight: 0} leaves that out)"
        )
    _check_image_size(model, arguments)
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
    # A decoder has no padding of its own; the model has to know the processor's.
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def _num_positions(text_config: PreTrainedConfig) -> int | None:
    """How many sub-tokens the text encoder reads at once; `None` where it has no bound."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and text_config.model_type in ("roberta", "xlm-roberta", "camembert", "bertweet"):
        positions -= text_config.pad_token_id + 1  # the first positions are those of the padding
    return positions


def _has_entity_boxes(rows: Dataset) -> bool:
    """Whether any post says what shows an entity of it, or that its image does not."""
    if "entity_boxes" not in rows.column_names:
        return False
    return any(boxes is not None for post_boxes in rows["entity_boxes"] for boxes in post_boxes or [])


def _check_image_size(model: HamLearningForTokenClassification, arguments: ModelArguments):
    """Refuse a size of images that the backbone cannot read: some transformers read one only."""
    if not model.config.levels:
        return
    size, encoder = arguments.image_size, model.model.vision_encoder
    is_training = encoder.training
    encoder.eval()  # in training, batch normalisation takes no single value, and would count this image
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        pretrained = timm.get_pretrained_cfg(arguments.vision)
        own = f"; it was made for {pretrained.input_size[1]}" if pretrained else ""
        raise ValueError(f"image_size: {arguments.vision} cannot read images of {size} x {size} pixels{own}: {error}") from error
    encoder.train(is_training)


def load_trained(arguments: ModelArguments) -> tuple[HamLearningForTokenClassification, HamLearningProcessor]:
    """A trained model and its processor, from a folder or the Hub. Arguments about encoders, sizes and regions do not apply."""
    defaults = ModelArguments()
    ignored = [
        field.name
        for field in fields(ModelArguments)
        if field.name not in ("model", "freeze_vision", "vision_cache", "lora_rank")
        and getattr(arguments, field.name) != getattr(defaults, field.name)
    ]
    if ignored:
        logger.warning("%s not used: the model of %s has its own", ", ".join(ignored), arguments.model)
    model = HamLearningForTokenClassification.from_pretrained(arguments.model)
    if arguments.freeze_vision:
        model.freeze_vision()
    # A folder is the user's own, so its code may run; for a name on the Hub, transformers asks.
    trusted = True if Path(arguments.model).is_dir() else None
    return model, HamLearningProcessor.from_pretrained(arguments.model, trust_remote_code=trusted)


def _fields(config: type[PreTrainedConfig]) -> set[str]:
    """Names that a config class takes."""
    names = {field.name for field in fields(config)} if is_dataclass(config) else set(signature(config.__init__).parameters)
    return {name for name in names | set(config.attribute_map) if not name.startswith("_")} - {"self", "kwargs"}
