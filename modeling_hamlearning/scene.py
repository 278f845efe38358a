"""What the scene says about the types of a post's entities, on its own.

Shapes as in `modeling_hamlearning.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration_hamlearning import HamLearningConfig


class HamLearningSceneScores(nn.Module):
    """Scores of the labels from the backbone's feature map alone, by one linear layer.

    They are added to the emissions, where each is one expert of a product of two (Hinton 2002). They are learned from a loss
    of their own, on features that nothing else trains: stages 1 to 3 learn the photos of a small training set by heart, and
    their scores say little about other photos.
    """

    def __init__(self, config: HamLearningConfig, num_channels: int):
        super().__init__()
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.linear = nn.Linear(num_channels, config.num_labels, bias=False)
        # Of each label, how many entities that begin with it have been trained on.
        self.register_buffer("entity_counts", torch.zeros(config.num_labels, dtype=torch.long))

    def forward(self, feature_map: Tensor) -> Tensor:
        """feature_map (B, C, rows, columns) → (B, L); the backbone does not learn from it."""
        cells = feature_map.detach().flatten(2).transpose(1, 2)
        scene = nn.functional.layer_norm(cells, cells.shape[-1:]).mean(dim=1)
        return self.linear(self.dropout(scene))

    def loss(self, scores: Tensor, labels: Tensor, begins: Tensor, is_begin: Tensor) -> Tensor:
        """Cross-entropy of the types of the posts' entities, summed over the entities, which are counted.

        How often each type occurs is added to the scores, so that they hold only what a scene says beyond that: the
        emissions know it already.

        Args:
            scores: (B, L).
            labels: (B, W) of the words.
            begins: (B, W) which words begin an entity of a post that is read with its image.
            is_begin: (L,) which labels begin an entity; no other one is a type.
        """
        self.entity_counts += torch.zeros_like(self.entity_counts).scatter_add(0, labels.flatten(), begins.flatten().long())
        scores = scores.float() + (self.entity_counts + 1).log()
        log_probability = scores.masked_fill(~is_begin, -torch.inf).log_softmax(-1)
        return -log_probability.gather(1, labels).where(begins, 0).sum()
