"""Layers that the stages share.

Shapes: B posts, Q queries or vectors of one modality, C vectors of the context, d width of stages 2 and 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_hamlearning import HamLearningConfig


def all_vectors(embedding: nn.Embedding, device: torch.device) -> Tensor:
    """All vectors of an embedding, by its call: weights that are kept on disk, or shared out by FSDP, are there for it only."""
    return embedding(torch.arange(embedding.num_embeddings, device=device))


class HamLearningAttention(nn.Module):
    """Multi-head attention of queries to a context whose values carry a weight of their own, the level's relevance."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.num_heads = config.fusion_attention_heads
        self.dropout = config.fusion_dropout
        self.query = nn.Linear(config.fusion_size, config.fusion_size)
        self.key = nn.Linear(config.fusion_size, config.fusion_size, bias=False)
        # Without a bias a context of weight 0 adds exactly nothing.
        self.value = nn.Linear(config.fusion_size, config.fusion_size, bias=False)
        self.output = nn.Linear(config.fusion_size, config.fusion_size, bias=False)

    def _heads(self, hidden: Tensor) -> Tensor:
        return hidden.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self,
        queries: Tensor,
        context: Tensor,
        context_mask: Tensor,
        weight: Tensor | None = None,
        return_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """queries (B, Q, d), or (1, Q, d) for every context, context (B, C, d), mask (B, C), weight (B, C) → (B, Q, d) and, if
        asked, the attention (B, heads, Q, C).

        Where nothing of the context is present the result is 0.
        """
        query, key, value = self._heads(self.query(queries)), self._heads(self.key(context)), self.value(context)
        if weight is not None:
            value = value * weight[..., None]
        value = self._heads(value)
        # A query that may attend to nothing would give NaN: it attends to everything and is zeroed below.
        present = context_mask.any(dim=1)
        mask = (context_mask | ~present[:, None])[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        attention = None
        if return_attention:
            scores = (query @ key.transpose(-1, -2)) * key.shape[-1] ** -0.5
            attention = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).float().softmax(-1).to(value.dtype)
            mixed = nn.functional.dropout(attention, dropout, self.training) @ value
            attention = attention * present[:, None, None, None]
        else:
            # Fused kernels take no batch of another size.
            query = query.expand(len(key), -1, -1, -1)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        mixed = self.output(mixed.transpose(1, 2).flatten(2))
        return mixed * present[:, None, None], attention


class HamLearningFeedForward(nn.Module):
    """Pre-norm position-wise feed-forward layer with its residual."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.fusion_size)
        self.inner = nn.Linear(config.fusion_size, config.fusion_intermediate_size)
        self.outer = nn.Linear(config.fusion_intermediate_size, config.fusion_size)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, Q, d) → (B, Q, d)."""
        return hidden + self.dropout(self.outer(nn.functional.gelu(self.inner(self.norm(hidden)))))


class HamLearningTransformerLayer(GradientCheckpointingLayer):
    """Pre-norm Transformer layer in which one modality attends to a context: itself or the other modality."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.fusion_size)
        self.context_norm = nn.LayerNorm(config.fusion_size)
        self.attention = HamLearningAttention(config)
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.feed_forward = HamLearningFeedForward(config)

    def forward(
        self,
        hidden: Tensor,
        context: Tensor,
        context_mask: Tensor,
        weight: Tensor | None = None,
        return_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden (B, Q, d) and a context → (B, Q, d) and the attention, as in [`HamLearningAttention`]."""
        mixed, attention = self.attention(self.norm(hidden), self.context_norm(context), context_mask, weight, return_attention)
        return self.feed_forward(hidden + self.dropout(mixed)), attention
