"""HamLearning: hierarchical aligned multimodal learning for named entity recognition (AAAI 2024).

The file follows the paper: stage 1 (text; the image at four levels is in `image_levels.py`), stage 2 (relevance),
stage 3 (iterative cross-modal learning), then the model and the tagging head.

Shapes: B posts, N windows, S sub-tokens, W words, K regions, T sub-tokens of a region's label, G grid cells, M visual
tokens of all levels, L labels, H width of the text encoder, d width of stages 2 and 3. A batch may mix posts with and
without an image: the image branch runs on all of them, and what it computes for a post without an image is not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .configuration_hamlearning import LEVELS, HamLearningConfig
from .crf import HamLearningCRF, HamLearningTransitionScores, bio_constraints
from .grounding import HamLearningGrounding, entity_overlaps, entity_scores, grounding_loss
from .image_levels import (
    HamLearningBoxEmbedding,
    HamLearningImageEmbeddings,
    HamLearningSemanticEncoder,
    HamLearningSpatialEncoder,
)
from .layers import HamLearningAttention, HamLearningTransformerLayer, all_vectors
from .pipeline_mner import MnerPipeline  # noqa: F401  (re-saving a loaded model copies only what modeling imports)

logger = logging.get_logger(__name__)
# Arguments of `from_pretrained` that say where on the Hub the files lie, and how they are fetched.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
INPUTS = (
    "call the model with what HamLearningProcessor returns, and tag posts with "
    'pipeline("mner", …), not pipeline("token-classification", …)'
)

# BERT's initial standard deviation.
NEAR_ZERO_STD = 0.02
# Relevance starts at 0.88: the image branch has to learn before it can be judged.
INITIAL_RELEVANCE_LOGIT = 2.0
# CLIP starts at 14: a cosine of two unrelated vectors of width 256 is seldom above 0.15.
INITIAL_RELEVANCE_LOG_SCALE = math.log(10.0)


@dataclass
class HamLearningModelOutput(ModelOutput):
    """Output of [`HamLearningModel`].

    Args:
        last_hidden_state: (B, W, H) words refined by the image.
        relevance: (B, 4) relevance of each level of `LEVELS`, exactly 0 where a level is off or absent.
        relevance_loss: sum of the posts' image-text matching losses, in training with a `relevance_loss_weight`.
        grounding_scores: (B, W, K + 1) of every word for each region and, last, for "not shown"; `None` without the grounding
            head, and where no post is read with an image.
        word_region_attention: (B, W, K) how a word's attention to the regions is shared among them, averaged over the
            rounds, because attention often shifts away from a region once it has been read; K = 0 without regions.
        hidden_states, attentions: of the text encoder, over its windows, when asked for.
        cross_attentions: one (B, heads, W, M) a round, of words to visual tokens, when attentions are asked for.
    """

    last_hidden_state: Tensor | None = None
    relevance: Tensor | None = None
    word_region_attention: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    relevance_loss: Tensor | None = None
    grounding_scores: Tensor | None = None


@dataclass
class HamLearningTokenClassifierOutput(ModelOutput):
    """Output of [`HamLearningForTokenClassification`]: `loss`, `logits` (B, W, L) and what the model returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    relevance: Tensor | None = None
    word_region_attention: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    relevance_loss: Tensor | None = None
    grounding_scores: Tensor | None = None


# Stage 1: intra-modality representation; the image's levels are in image_levels.py


class HamLearningWordPooling(nn.Module):
    """One vector a word: its first sub-token's, or a learned one if the tokenizer makes nothing of the word."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.missing = nn.Parameter(torch.zeros(config.text_config.hidden_size))

    def forward(self, hidden: Tensor, word_positions: Tensor) -> Tensor:
        """hidden (B, N·S, H), word_positions (B, W) → (B, W, H)."""
        index = word_positions.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        return torch.where((word_positions >= 0)[..., None], hidden.gather(1, index), self.missing.to(hidden.dtype))


# Stage 2: dynamic text-image relevance


class HamLearningRelevance(nn.Module):
    """How far one level of the image has to do with the text: the cosine of their vectors, as a logit.

    A cosine generalises from few posts where layers on the two vectors learn the posts by heart (Radford et al. 2021, CLIP).
    """

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.fusion_size)
        self.attention = HamLearningAttention(config)
        self.sentence = nn.Linear(config.fusion_size, config.fusion_size)
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, sentences: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """sentences (B, Q, d), or (1, Q, d) for every post, memory of one level (B, M, d) with mask (B, M) → logits (B, Q)."""
        level, _ = self.attention(sentences, self.norm(self.dropout(memory)), mask)
        similarity = nn.functional.cosine_similarity(self.sentence(self.dropout(sentences)), level, dim=-1)
        return self.log_scale.exp() * similarity + self.bias


# Stage 3: iterative cross-modal learning


class HamLearningCoAttentionRound(nn.Module):
    """One round of co-attention: the words attend to the visual memory, then the memory attends to the new words."""

    def __init__(self, config: HamLearningConfig, is_last: bool):
        super().__init__()
        self.words = HamLearningTransformerLayer(config)
        # The memory is not used after the last round, so its layer is left out.
        self.memory = None if is_last else HamLearningTransformerLayer(config)

    def forward(
        self,
        words: Tensor,
        word_mask: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """words (B, W, d), memory (B, M, d), their masks, weight (B, M) → words, memory and attention (B, heads, W, M)."""
        words, attention = self.words(words, memory, memory_mask, weight, return_attention=True)
        if self.memory is not None:
            memory, _ = self.memory(memory, words, word_mask)
        return words, memory, attention


class HamLearningFusionGate(nn.Module):
    """Final gate: how much of the refined words is added to the text's own.

    The sum is scaled by how relevant the image is as a whole. At relevance 0 the result is the text's own words, bit for
    bit, so a post with an irrelevant image is a post without an image.
    """

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.fusion_size)
        self.gate = nn.Linear(2 * config.fusion_size, config.fusion_size)
        self.output = nn.Linear(config.fusion_size, config.text_config.hidden_size, bias=False)

    def forward(self, words: Tensor, projected: Tensor, refined: Tensor, relevance: Tensor) -> Tensor:
        """words (B, W, H), their projections (B, W, d) before and after stage 3, relevance (B,) → (B, W, H)."""
        refined = self.norm(refined)
        update = self.output(self.gate(torch.cat([projected, refined], dim=-1)).sigmoid() * refined)
        return words + relevance[:, None, None] * update


class HamLearningImageBranch(nn.Module):
    """What the image adds to the words of a post: stages 1 to 3 beside the text encoder."""

    def __init__(self, config: HamLearningConfig, num_channels: int, embedding_size: int):
        super().__init__()
        self.config = config
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.fusion_size)
        self.image_embeddings = HamLearningImageEmbeddings(config, num_channels)
        self.box_embedding = HamLearningBoxEmbedding(config)
        if config.use_spatial:
            self.spatial = HamLearningSpatialEncoder(config)
        if config.use_semantic:
            self.semantic = HamLearningSemanticEncoder(config, embedding_size)
        self.level_embedding = nn.Embedding(len(config.levels), config.fusion_size)
        if config.use_relevance:
            self.relevance = nn.ModuleList(HamLearningRelevance(config) for _ in config.levels)
        self.rounds = nn.ModuleList(
            HamLearningCoAttentionRound(config, is_last=index == config.num_iterations - 1)
            for index in range(config.num_iterations)
        )
        self.fusion_gate = HamLearningFusionGate(config)
        if config.has_grounding:
            self.grounding = HamLearningGrounding(config)

    def memories(
        self,
        feature_map: Tensor,
        image_sizes: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor,
        label_embeddings: Tensor,
        label_mask: Tensor,
        has_image: Tensor,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Stage 1: each level's memory (B, M_level, d) and its mask (B, M_level), all false without an image."""
        cells, cell_boxes, regions = self.image_embeddings(feature_map, region_boxes)
        # Every visual token knows its position, so that words which name a place find it at each level.
        where = self.box_embedding(region_boxes)
        objects = regions + where
        memories = {}
        if self.config.use_global:
            memories["global"] = cells + self.box_embedding(cell_boxes), has_image[:, None].expand(cells.shape[:2])
        if self.config.use_objects:
            memories["object"] = objects, region_mask
        if self.config.use_spatial:
            memories["spatial"] = self.spatial(objects, region_boxes, image_sizes, region_mask), region_mask
        if self.config.use_semantic:
            meaning = self.semantic(regions, label_embeddings, label_mask, cells, region_mask)
            memories["semantic"] = meaning + where, region_mask
        return memories

    @staticmethod
    def sentence(projected: Tensor, word_mask: Tensor) -> Tensor:
        """Mean of the words: (B, W, d) → (B, d)."""
        return (projected * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdim=True).clamp(min=1)

    def matching_loss(self, words: Tensor, word_mask: Tensor, memories: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Image-text matching: cross-entropy of relevance against whether the image is the post's own, summed over posts.

        Every post is paired with every image of the batch. Its own image counts as much as all others together. A level counts
        where it is present, and a post with the only image of a batch counts nothing. The text encoder does not learn from it:
        what helps to tell images apart is not what helps to tag.
        """
        sentence = self.sentence(self.text_projection(words.detach()), word_mask)
        is_own = torch.eye(len(words), device=words.device)
        loss = torch.zeros((), device=words.device)
        for relevance, (memory, mask) in zip(self.relevance, memories.values(), strict=True):
            present = mask.any(dim=1)
            logits = relevance(sentence[None], memory, mask).float()
            # Posts without an image take no part, so that each image is paired as often as each post.
            pairs = (present[:, None] & present).float()
            others = pairs * (1 - is_own)
            weight = others / others.sum(1, keepdim=True).clamp(min=1) + is_own * others.any(1, keepdim=True)
            loss = loss + nn.functional.binary_cross_entropy_with_logits(logits, is_own, weight=weight, reduction="sum")
        return loss

    def forward(
        self, words: Tensor, word_mask: Tensor, image_inputs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor | None, Tensor | None]:
        """Stages 1 to 3 of an image, given the words (B, W, H) and what [`memories`] takes.

        All of it is one call, so that FSDP, which gathers a module's weights for its call, can take the branch as one unit.

        Returns:
            Refined words (B, W, H), relevance (B, 4), word-region attention (B, W, K), cross-attentions, with the grounding
            head its scores (B, W, K + 1), and in training the matching loss.
        """
        memories = self.memories(**image_inputs)
        projected = self.text_projection(words)
        sentence = self.sentence(projected, word_mask)

        relevance = projected.new_zeros(words.shape[0], len(LEVELS))
        weights = []
        for index, (level, (memory, mask)) in enumerate(memories.items()):
            level_relevance = mask.any(dim=1).to(projected.dtype)
            if self.config.use_relevance:
                judged = self.relevance[index](sentence[:, None], memory, mask).squeeze(1).sigmoid()
                # Where matching teaches relevance, the tagging loss does not: it would close every level before the image
                # branch has learned to read it.
                judged = judged.detach() if self.training and self.config.relevance_loss_weight > 0 else judged
                level_relevance = judged * level_relevance
            relevance[:, LEVELS.index(level)] = level_relevance.to(relevance.dtype)
            weights.append(level_relevance[:, None].to(projected.dtype).expand(mask.shape))
        # The image as a whole is relevant if any of its levels is.
        image_relevance = 1 - (1 - relevance).prod(dim=1)
        weight = torch.cat(weights, dim=1)
        levels = zip(memories.values(), all_vectors(self.level_embedding, words.device), strict=True)
        memory = torch.cat([memory + level for (memory, _), level in levels], dim=1)
        memory_mask = torch.cat([mask for _, mask in memories.values()], dim=1)

        refined, cross_attentions = projected, []
        for layer in self.rounds:
            refined, memory, attention = layer(refined, word_mask, memory, memory_mask, weight)
            cross_attentions.append(attention)
        fused = self.fusion_gate(words, projected, refined, image_relevance)
        word_region_attention = self._attention_per_region(torch.stack(cross_attentions).mean(2), memories)
        grounding_scores = None
        if self.config.has_grounding:
            region_mask = next(mask for level, (_, mask) in memories.items() if level != "global")
            grounding_scores = self.grounding(refined, memories, region_mask)
        relevance_loss = None
        if self.training and self.config.use_relevance and self.config.relevance_loss_weight > 0:
            relevance_loss = self.matching_loss(words, word_mask, memories)
        return fused, relevance, word_region_attention, tuple(cross_attentions), grounding_scores, relevance_loss

    @staticmethod
    def _attention_per_region(attention: Tensor, memories: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """(rounds, B, W, M) → (B, W, K): a region's attention is that of its tokens at every level but the global one."""
        parts = attention.split([mask.shape[1] for _, mask in memories.values()], dim=-1)
        region_parts = [part for level, part in zip(memories, parts, strict=True) if level != "global"]
        if not region_parts:
            return attention.new_zeros(*attention.shape[1:-1], 0)
        total = sum(region_parts)
        share = total / total.sum(-1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
        return share.mean(0)


# The model


class HamLearningPreTrainedModel(PreTrainedModel):
    """What both models share: how they are loaded, and their initial weights."""

    config_class = HamLearningConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # What the text encoder can do. The layers beside it always use PyTorch's scaled dot-product attention, or compute it step by
    # step where the attention itself is needed.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["HamLearningImageBranch", "HamLearningCRF"]
    # The CRF's log-sums over a post do not survive bf16.
    _keep_in_fp32_modules_strict = ["crf"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As every model's, with four checks: weights of an older layout, low-rank adapters, labels of another order, aligned
        memory.

        Raises:
            ValueError: the checkpoint was saved by version 0.1, whose parts had other names, or holds low-rank adapters.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs | {"output_loading_info": True})
        model, info = loaded
        if any(".image_side." in f".{name}" or name.endswith("crf.transitions") for name in info["unexpected_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} was saved by HamLearning 0.1, whose model was another one: train it again, or "
                "load it with the code that lies beside it (AutoModel….from_pretrained(…, trust_remote_code=True))"
            )
        if any(".lora_" in name for name in info["unexpected_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds low-rank adapters beside the text encoder's own weights: it is a "
                "checkpoint to go on from (--resume_from_checkpoint); the model that the training ends with has them merged"
            )
        if {"config", "id2label", "label2id"} & set(kwargs) or args:
            _warn_of_other_labels(model.config, pretrained_model_name_or_path, kwargs)
        # Weights come mapped from the file, where some start off a cache line. Matrix products then take another path and
        # differ in the last bit from those of the model that was saved.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return loaded if kwargs.get("output_loading_info") else model

    @torch.no_grad()
    def _init_weights(self, module):
        """Initial weights of everything outside the two encoders, which keep their own.

        Layers are as wide as `fusion_size` or the text encoder, so a fixed standard deviation fits one width only. Glorot and
        Bengio (2010) keep the variance of a signal at every width. Embeddings that are added to normalised features, or to
        keys and values made from them, have their variance of 1. The CRF's scores start near 0.
        """
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, HamLearningWordPooling):
            init.normal_(module.missing, std=NEAR_ZERO_STD)
        elif isinstance(module, HamLearningRelevance):
            init.constant_(module.log_scale, INITIAL_RELEVANCE_LOG_SCALE)
            init.constant_(module.bias, INITIAL_RELEVANCE_LOGIT)
        elif isinstance(module, HamLearningTransitionScores):
            for scores in (module.start, module.transitions, module.end):
                init.normal_(scores, std=NEAR_ZERO_STD)
        elif isinstance(module, HamLearningCRF):
            for name, constraint in bio_constraints(module.label_names).items():
                init.copy_(getattr(module, name), constraint)


class HamLearningModel(HamLearningPreTrainedModel):
    """Stages 1 to 3: words of a post refined by its image."""

    def __init__(self, config: HamLearningConfig):
        super().__init__(config)
        self.text_encoder = _text_encoder(AutoModel.from_config(config.text_config))
        if getattr(self.text_encoder, "pooler", None) is not None:
            # The pooled output is not used: it would cost time, and be an unused parameter in distributed training.
            self.text_encoder.pooler = None
        self.word_pooling = HamLearningWordPooling(config)
        if config.levels:
            # An implementation that is asked for is meant for the text encoder; a timm backbone takes none but its own.
            config.vision_config._attn_implementation = None
            self.vision_encoder = AutoBackbone.from_config(config.vision_config)
            embedding_size = self.text_encoder.get_input_embeddings().weight.shape[1]
            self.image_branch = HamLearningImageBranch(config, self.vision_encoder.channels[-1], embedding_size)
        self.vision_frozen = False
        # A trainer sets this to False for the steps in which every image is to be read.
        self.leaves_images_out = True
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_encoder.set_input_embeddings(value)

    def freeze_vision(self):
        """Train the rest only: the vision backbone gets no gradients and keeps its batch-norm statistics."""
        if self.config.levels:
            self.vision_frozen = True
            self.vision_encoder.requires_grad_(False)
            self.vision_encoder.eval()

    def train(self, mode: bool = True):
        """As every module's; a frozen vision backbone stays in evaluation."""
        super().train(mode)
        if self.vision_frozen:
            self.vision_encoder.eval()
        return self

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, word_positions: Tensor, **kwargs):
        """(B, N, S) windows → words (B, W, H) and the text encoder's output.

        A window of padding only is not encoded, except in a compiled or exported graph, whose shapes may not depend on it.
        """
        batch_size, num_windows, length = input_ids.shape
        input_ids, attention_mask = input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
        if num_windows == 1 or torch.compiler.is_compiling():
            # A window that may attend to nothing would give NaN.
            first = torch.arange(length, device=input_ids.device) == 0
            attention_mask = torch.where(attention_mask.any(dim=1, keepdim=True), attention_mask, first.to(attention_mask))
            output = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            hidden = output.last_hidden_state
        else:
            filled = attention_mask.any(dim=1).nonzero().squeeze(1)
            output = self.text_encoder(input_ids=input_ids[filled], attention_mask=attention_mask[filled], **kwargs)
            hidden = output.last_hidden_state.new_zeros(input_ids.shape[0], length, output.last_hidden_state.shape[-1])
            hidden = hidden.index_copy(0, filled, output.last_hidden_state)
        return self.word_pooling(hidden.unflatten(0, (batch_size, num_windows)).flatten(1, 2), word_positions), output

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (B, 3, height, width) → the backbone's last feature map (B, C, rows, columns)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_frozen):
            # Convolutions are faster on channels that lie together: a tenth of a ResNet-50 on the CPU.
            pixel_values = pixel_values.to(self.vision_encoder.dtype, memory_format=torch.channels_last)
            feature_map = self.vision_encoder(pixel_values).feature_maps[-1]
        if feature_map.shape[1] != self.vision_encoder.channels[-1]:
            feature_map = feature_map.permute(0, 3, 1, 2)  # swin and its kin put the channels last
        return feature_map

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_positions: Tensor | None = None,
        word_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        has_image: Tensor | None = None,
        image_sizes: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_label_ids: Tensor | None = None,
        region_mask: Tensor | None = None,
        vision_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> HamLearningModelOutput | tuple:
        """Refine the words of B posts by their images.

        Args:
            input_ids, attention_mask: (B, N, S), or (B, S) for one window a post.
            word_positions: (B, W) position of a word's first sub-token in its post's N·S, −1 for a word without one.
            word_mask: (B, W) true for words, false for padding.
            pixel_values: (B, 3, height, width); the pixels of a post whose `has_image` is false are never read.
            has_image: (B,) bool; all true when pixels are given without it.
            image_sizes: (B, 2) height and width of the original images; square if not given.
            region_boxes, region_mask: (B, K, 4) in [0, 1] and (B, K); no regions if not given.
            region_label_ids: (B, K, T) sub-tokens of the regions' labels, padded with the text encoder's pad token.
            vision_features: (B, C, rows, columns) from `get_image_features`, in place of `pixel_values`.

        In training a share `image_dropout` of the posts is read without its image, unless `leaves_images_out` is False.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if input_ids.ndim == 2:
            input_ids = input_ids[:, None]
            attention_mask = attention_mask[:, None] if attention_mask is not None else None
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if word_positions is None:
            raise ValueError(f"word_positions is missing: {INPUTS}")
        word_mask = torch.ones_like(word_positions).bool() if word_mask is None else word_mask.bool()
        words, text = self.encode_text(
            input_ids,
            attention_mask,
            word_positions,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )

        has_image = self._images_to_read(words, pixel_values if vision_features is None else vision_features, has_image)
        if has_image is not None:
            inputs = self.prepare_image_inputs(
                has_image,
                self._feature_maps(words, pixel_values, vision_features, has_image),
                image_sizes,
                region_boxes,
                region_label_ids,
                region_mask,
            )
            fused, relevance, attention, cross_attentions, grounding, relevance_loss = self.image_branch(words, word_mask, inputs)
            words = torch.where(has_image[:, None, None], fused.to(words.dtype), words)
        else:
            num_regions = region_boxes.shape[1] if region_boxes is not None else 0
            relevance = words.new_zeros(words.shape[0], len(LEVELS))
            attention = words.new_zeros(*words.shape[:2], num_regions)
            cross_attentions = relevance_loss = grounding = None

        output = HamLearningModelOutput(
            last_hidden_state=words,
            relevance=relevance,
            word_region_attention=attention,
            hidden_states=text.hidden_states if output_hidden_states else None,
            attentions=text.attentions if output_attentions else None,
            cross_attentions=cross_attentions if output_attentions else None,
            relevance_loss=relevance_loss,
            grounding_scores=grounding,
        )
        return output if return_dict else output.to_tuple()

    def _images_to_read(self, words: Tensor, images: Tensor | None, has_image: Tensor | None) -> Tensor | None:
        """(B,) which posts are read with their image; `None` if the image branch has nothing to do.

        In training the branch always runs: every process of a distributed run then has gradients for the same parameters.
        """
        if not self.config.levels or (images is None and not self.training):
            return None
        if images is None:
            return words.new_zeros(words.shape[0], dtype=torch.bool)
        has_image = words.new_ones(words.shape[0], dtype=torch.bool) if has_image is None else has_image.bool()
        if self.training:
            share = self.config.image_dropout if self.leaves_images_out else 0.0
            return has_image & (torch.rand(len(has_image), device=has_image.device) >= share)
        # A compiled graph may not branch on a value.
        return has_image if torch.compiler.is_compiling() or has_image.any() else None

    def _feature_maps(
        self, words: Tensor, pixel_values: Tensor | None, vision_features: Tensor | None, has_image: Tensor
    ) -> Tensor:
        """(B, C, rows, columns): the backbone's maps of the posts with an image, 0 for the others."""
        mask = has_image[:, None, None, None]
        if vision_features is not None:
            return vision_features.masked_fill(~mask, 0)
        if pixel_values is not None and torch.compiler.is_compiling():
            return self.get_image_features(pixel_values.masked_fill(~mask, 0)) * mask
        if pixel_values is not None and len(places := has_image.nonzero().squeeze(1)):
            feature_maps = self.get_image_features(pixel_values[places])
            return feature_maps.new_zeros(len(has_image), *feature_maps.shape[1:]).index_copy(0, places, feature_maps)
        empty = words.new_zeros(len(has_image), self.vision_encoder.channels[-1], 1, 1)
        # The backbone has not run; its parameters enter the graph with weight 0, for distributed training as above.
        return empty + 0 * sum(weight.sum() for weight in self.vision_encoder.parameters() if weight.requires_grad)

    def prepare_image_inputs(
        self,
        has_image: Tensor,
        feature_map: Tensor,
        image_sizes: Tensor | None,
        region_boxes: Tensor | None,
        region_label_ids: Tensor | None,
        region_mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Arguments of `HamLearningImageBranch.memories`, with defaults for what is not given. Shapes as in `forward`."""
        num_posts, device = len(has_image), has_image.device
        image_sizes = torch.ones(num_posts, 2, device=device) if image_sizes is None else image_sizes
        region_boxes = torch.zeros(num_posts, 0, 4, device=device) if region_boxes is None else region_boxes
        if region_mask is None:
            region_mask = torch.ones(region_boxes.shape[:2], dtype=torch.bool, device=device)
        region_mask = region_mask.bool() & has_image[:, None]
        if region_label_ids is None:
            region_label_ids = torch.zeros(*region_boxes.shape[:2], 0, dtype=torch.long, device=device)
        return {
            "feature_map": feature_map.to(self.image_branch.image_embeddings.norm.weight.dtype),
            "image_sizes": image_sizes,
            # Padding may hold anything: a NaN there must not spread.
            "region_boxes": region_boxes.masked_fill(~region_mask[..., None], 0),
            "region_mask": region_mask,
            "label_embeddings": self.get_input_embeddings()(region_label_ids),
            "label_mask": region_label_ids != (self.config.text_config.pad_token_id or 0),
            "has_image": has_image,
        }


# The head


class HamLearningForTokenClassification(HamLearningPreTrainedModel):
    """[`HamLearningModel`] with a linear-chain CRF over words."""

    # The Trainer passes the number of labelled words of the global batch to `forward`.
    accepts_loss_kwargs = True

    def __init__(self, config: HamLearningConfig):
        super().__init__(config)
        self.model = HamLearningModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.text_config.hidden_size, config.num_labels)
        self.crf = HamLearningCRF(config.label_names, learned=config.use_crf)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def freeze_vision(self):
        """See [`HamLearningModel.freeze_vision`]."""
        self.model.freeze_vision()

    @classmethod
    def from_text_vision_pretrained(
        cls,
        text: str | PreTrainedConfig,
        vision: str,
        label_list: list[str],
        vision_pretrained: bool = True,
        vision_weights: str | None = None,
        **config,
    ) -> HamLearningForTokenClassification:
        """Start from a pretrained text encoder and a pretrained vision backbone.

        Args:
            text: Hub name, folder, a `.safetensors` file that has the encoder's `config.json` beside it, or a config, for an
                encoder of random weights.
            vision: timm name.
            label_list: BIO labels, in the order of their ids.
            vision_pretrained: whether timm loads its own weights for the name.
            vision_weights: a safetensors file with timm's own tensor names, or a folder with `model.safetensors`.
            config: arguments of [`HamLearningConfig`]; `dtype` and `attn_implementation` apply to the whole model.
        """
        dtype, attn_implementation = config.pop("dtype", None), config.pop("attn_implementation", None)
        is_pretrained, text_weights = not isinstance(text, PreTrainedConfig), None
        if is_pretrained and str(text).endswith(".safetensors"):
            text_weights, text = Path(text), Path(text).parent
        # As a dictionary: the backbone's class is only known to transformers, not to this file.
        model_config = HamLearningConfig(
            text_config=AutoConfig.from_pretrained(text) if is_pretrained else text,
            vision_config={"model_type": "timm_backbone", "backbone": vision, "out_indices": [-1]},
            id2label=dict(enumerate(label_list)),
            label2id={label: index for index, label in enumerate(label_list)},
            **config,
        )
        model = cls(model_config)
        if text_weights is not None:
            encoder = _text_encoder(AutoModel.from_config(model_config.text_config))
            _load_exactly(encoder, load_file(text_weights), text_weights)
        elif is_pretrained:
            encoder = _text_encoder(AutoModel.from_pretrained(text, use_safetensors=True, dtype=torch.float32))
        if is_pretrained:
            own = model.model.text_encoder.state_dict()
            model.model.text_encoder.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in own})
        model.load_vision(vision_weights, vision_pretrained)
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        if dtype is not None:
            for name, part in model.named_children():
                if name not in cls._keep_in_fp32_modules_strict:
                    part.to(dtype)
        return model

    def load_vision(self, weights: str | None = None, pretrained: bool = True):
        """Load the vision backbone's weights: from a safetensors file or folder with timm's names, or timm's own."""
        if not self.config.levels:
            return
        encoder = self.model.vision_encoder
        if weights is not None:
            path = Path(weights)
            path = path / "model.safetensors" if path.is_dir() else path
            _load_exactly(encoder._backbone, load_file(path), path)
        elif pretrained:
            own = type(encoder).from_pretrained(encoder.config.backbone, out_indices=[-1])
            encoder.load_state_dict(own.state_dict())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_positions: Tensor | None = None,
        word_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        has_image: Tensor | None = None,
        image_sizes: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_label_ids: Tensor | None = None,
        region_mask: Tensor | None = None,
        labels: Tensor | None = None,
        region_overlaps: Tensor | None = None,
        vision_features: Tensor | None = None,
        inputs_embeds: None = None,
        token_type_ids: None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> HamLearningTokenClassifierOutput | tuple:
        """Emission scores (B, W, L) of every word, and the loss if labels (B, W), −100 at padding, are given.

        The loss is the posts' negative log-likelihood over the number of labelled words: those of this batch, or of the
        global batch if the Trainer says how many they are. In training the weighted `relevance_loss` is part of it, and the
        weighted grounding loss of the gold entities if the overlaps (B, E, K + 1) of each post's entities, in order, with its
        regions are given; `grounding_loss` says what they hold. An orphan I-X is read as B-X. `inputs_embeds` is there for
        PEFT, which passes `None`, and `token_type_ids` to name the pipeline that tags posts. For the other arguments see
        [`HamLearningModel.forward`].
        """
        if token_type_ids is not None:
            raise ValueError(f"token_type_ids: expected None, got a tensor; {INPUTS}")
        if inputs_embeds is not None:
            raise ValueError("inputs_embeds: expected None, got a tensor; give input_ids, from which words are found")
        self.crf.use_labels(self.config.label_names)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output = self.emissions(
            input_ids=input_ids,
            attention_mask=attention_mask,
            word_positions=word_positions,
            word_mask=word_mask,
            pixel_values=pixel_values,
            has_image=has_image,
            image_sizes=image_sizes,
            region_boxes=region_boxes,
            region_label_ids=region_label_ids,
            region_mask=region_mask,
            vision_features=vision_features,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        if labels is not None:
            word_mask = torch.ones_like(word_positions) if word_mask is None else word_mask
            with torch.autocast(output.logits.device.type, enabled=False):
                nll = self.crf(output.logits, labels, word_mask.bool()).sum()
            words = (labels >= 0).sum() if num_items_in_batch is None else num_items_in_batch
            if output.relevance_loss is not None:
                nll = nll + self.config.relevance_loss_weight * output.relevance_loss
            if self.training and region_overlaps is not None and output.grounding_scores is not None:
                spans = self.crf.gold_spans(labels, word_mask.bool())
                scores = entity_scores(output.grounding_scores, spans)
                overlaps = entity_overlaps(region_overlaps, spans)
                nll = nll + self.config.grounding_loss_weight * grounding_loss(scores, overlaps)
            # A batch of posts without a word has a loss of 0.
            loss = nll / torch.as_tensor(words, device=nll.device).clamp(min=1)
            output = HamLearningTokenClassifierOutput(loss=loss, **output)
        return output if return_dict else output.to_tuple()

    def emissions(self, **inputs) -> HamLearningTokenClassifierOutput:
        """What `forward` returns but the loss; the arguments are [`HamLearningModel.forward`]'s."""
        output = self.model(**inputs, return_dict=True)
        return HamLearningTokenClassifierOutput(
            logits=self.classifier(self.dropout(output.last_hidden_state)),
            relevance=output.relevance,
            word_region_attention=output.word_region_attention,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            relevance_loss=output.relevance_loss,
            grounding_scores=output.grounding_scores,
        )

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """See [`HamLearningModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values)

    @torch.no_grad()
    def decode(self, outputs: HamLearningTokenClassifierOutput, word_mask: Tensor) -> list[list[int]]:
        """The best legal label ids of every post, as many as it has words; O for entities below `min_entity_score`."""
        self.crf.use_labels(self.config.label_names)
        return self.crf.decode(outputs.logits, word_mask.bool(), self.config.min_entity_score)

    @torch.no_grad()
    def ground(self, outputs: HamLearningTokenClassifierOutput, spans: Tensor) -> Tensor:
        """What shows each entity: of each region of its post and, last, of "not shown" the probability.

        Without the grounding head: how its first word's attention is shared among the regions, or 1 for "not shown" where it
        attends none. It is the first word that decides the type; the words inside need not attend the image.

        Args:
            spans: (n, 3 or more) of post, first and last word.

        Returns:
            (n, K + 1), in fp32.
        """
        if outputs.grounding_scores is not None:
            return entity_scores(outputs.grounding_scores, spans).softmax(-1)
        attention = outputs.word_region_attention[spans[:, 0], spans[:, 1]].float()
        return torch.cat([attention, (attention.sum(1, keepdim=True) == 0).to(attention)], dim=1)


def _text_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a text model that reads: of an encoder-decoder such as T5, its encoder."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _warn_of_other_labels(config: HamLearningConfig, source: str | Path, kwargs: dict):
    """Warn if a loaded classifier's columns are now named otherwise than when they were trained."""
    saved, _ = type(config).get_config_dict(source, **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs})
    trained = {int(index): name for index, name in (saved.get("id2label") or {}).items()}
    changed = [
        f"{index}: {trained[index]} → {name}" for index, name in config.id2label.items() if trained.get(index, name) != name
    ]
    if changed and len(trained) == len(config.id2label):
        logger.warning(
            "The classifier of %s was trained for other labels, and its columns keep their weights (%s). Train it for the "
            "new labels, or load it with the labels it was trained for.",
            source, ", ".join(changed[:8]) + (" …" if len(changed) > 8 else ""),
        )  # fmt: skip


def _load_exactly(module: nn.Module, weights: dict[str, Tensor], path: Path):
    """Load weights that must cover the module, telling which file does not; a classification head is let go."""
    own = module.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} tensors of {type(module).__name__}, such as {missing[:3]}")
    module.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
