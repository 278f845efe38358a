"""Grounding: which region of the image shows an entity, or that none does (Yu et al. 2023, doi 10.18653/v1/2023.acl-long.508).

Shapes as in `modeling_hamlearning.py`; n entities. Of K + 1 columns the last one stands for "not shown".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration_hamlearning import HamLearningConfig
from .layers import all_vectors

# A region is right from this intersection over union with one of the entity's boxes on. One that misses by little is neither
# right nor wrong in training.
MIN_IOU, NEAR_IOU = 0.5, 0.3
# More than elsewhere in the model: few entities are annotated, and the head would learn them by heart.
DROPOUT = 0.3
# Of a region that is not there. Its exponential is exactly 0, and fp16 holds it.
ABSENT_SCORE = -1e4
# In place of the overlaps of an entity that nobody looked for in the image.
NOT_ANNOTATED = -100.0


class HamLearningGrounding(nn.Module):
    """Scores for every word how far each region shows what it names, and that the image does not show it."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        size = config.fusion_size
        self.word_norm = nn.LayerNorm(size)
        self.word_inner = nn.Linear(size, size)
        self.word_outer = nn.Linear(size, size)
        # Lists, because a level's name may be a keyword of Python, which an exported graph cannot have as a name.
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in config.levels)
        self.inner = nn.ModuleList(nn.Linear(size, size) for _ in config.levels)
        self.not_shown = nn.Embedding(1, size)
        self.outer = nn.Linear(size, size)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, words: Tensor, memories: dict[str, tuple[Tensor, Tensor]], region_mask: Tensor) -> Tensor:
        """Refined words (B, W, d), each level's memory and its mask, region mask (B, K) → scores (B, W, K + 1)."""
        layers = zip(memories.items(), self.norms, self.inner, strict=True)
        levels = {level: inner(self.dropout(norm(memory))) for (level, (memory, _)), norm, inner in layers}
        # The scene takes the place of a region's look: what is not shown depends on what else is.
        scene = levels.pop("global").mean(1, keepdim=True) if "global" in levels else 0
        not_shown = (all_vectors(self.not_shown, words.device) + scene).expand(len(words), 1, -1)
        regions = torch.cat([sum(levels.values()), not_shown.to(words.dtype)], dim=1)
        regions = self.outer(self.dropout(nn.functional.gelu(regions)))
        words = nn.functional.gelu(self.word_inner(self.dropout(self.word_norm(words))))
        words = self.word_outer(self.dropout(words))
        scores = words @ regions.transpose(1, 2) * words.shape[-1] ** -0.5
        return scores.masked_fill(~nn.functional.pad(region_mask, (0, 1), value=True)[:, None], ABSENT_SCORE)


def entity_scores(scores: Tensor, spans: Tensor) -> Tensor:
    """An entity's scores are the mean of its words': (B, W, K + 1) and spans (n, ≥ 3) of post, first, last → (n, K + 1)."""
    post, first, last = spans[:, :3].unbind(1)
    places = torch.arange(scores.shape[1], device=scores.device)
    inside = (places >= first[:, None]) & (places <= last[:, None])
    return (inside[..., None] * scores.float()[post]).sum(1) / (last - first + 1)[:, None]


def entity_overlaps(region_overlaps: Tensor, spans: Tensor) -> Tensor:
    """The overlaps (B, E, K + 1) of each post's entities in order, for the gold spans of all posts: (n, K + 1).

    E may be less than a post's number of entities: those of a post that is not annotated need no rows.
    """
    post = spans[:, 0].contiguous()
    # The spans are in the order of the posts: an entity's number is its place less that of its post's first one.
    number = torch.arange(len(post), device=post.device) - torch.searchsorted(post, post)
    padded = nn.functional.pad(region_overlaps, (0, 0, 0, 1), value=NOT_ANNOTATED)
    return padded[post, number.clamp(max=region_overlaps.shape[1])]


def grounding_loss(scores: Tensor, overlaps: Tensor) -> Tensor:
    """Cross-entropy against the regions that show the entity, which share the target, summed over entities.

    An entity counts if it is annotated and either not shown or shown by one of its regions. Regions that miss by little are
    left out of the distribution.

    Args:
        scores: (n, K + 1).
        overlaps: (n, K + 1), of each region the best intersection over union with a box of the entity, last 1 for an entity
            that is not shown and else 0; −100 where it is not annotated.
    """
    right = (overlaps >= MIN_IOU) & (scores > ABSENT_SCORE / 2)
    near = (overlaps >= NEAR_IOU) & ~right
    log_probability = scores.masked_fill(near, ABSENT_SCORE).log_softmax(-1)
    return -(log_probability * right / right.sum(-1, keepdim=True).clamp(min=1)).sum()
