"""Stage 1, the image at four levels: scene, objects, their relations, their meaning.

Shapes as in `modeling_hamlearning.py`; C channels of the backbone, E width of the text encoder's word vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from .configuration_hamlearning import HamLearningConfig
from .layers import HamLearningFeedForward, HamLearningTransformerLayer, all_vectors
from .relations import NUM_RELATIONS, spatial_relations


class HamLearningBoxEmbedding(nn.Module):
    """Position of a grid cell or a region: an embedding of x1, y1, x2, y2, width and height."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.inner = nn.Linear(6, config.fusion_size)
        self.outer = nn.Linear(config.fusion_size, config.fusion_size)
        # Coordinates are small numbers: without a norm the position would be lost in the sum with the visual feature.
        self.norm = nn.LayerNorm(config.fusion_size)

    def forward(self, boxes: Tensor) -> Tensor:
        """boxes (…, 4) in [0, 1] → (…, d)."""
        # The norm's dtype: a quantized linear layer holds integers.
        features = torch.cat([boxes, boxes[..., 2:] - boxes[..., :2]], dim=-1).to(self.norm.weight.dtype)
        return self.norm(self.outer(nn.functional.gelu(self.inner(features))))


class HamLearningImageEmbeddings(nn.Module):
    """The backbone's feature map as a grid of d-dimensional cells, and each region's cells by RoIAlign on the same map."""

    def __init__(self, config: HamLearningConfig, num_channels: int):
        super().__init__()
        self.projection = nn.Linear(num_channels, config.fusion_size)
        self.norm = nn.LayerNorm(config.fusion_size)

    def forward(self, feature_map: Tensor, region_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """feature_map (B, C, rows, columns), region_boxes (B, K, 4) → cells (B, G, d), their boxes (G, 4), regions (B, K, d)."""
        rows, columns = feature_map.shape[-2:]
        cells = self.norm(self.projection(feature_map.flatten(2).transpose(1, 2)))
        return cells, self.cell_boxes(rows, columns, cells.device), self.pool(cells, rows, columns, region_boxes)

    @staticmethod
    def cell_boxes(rows: int, columns: int, device: torch.device) -> Tensor:
        """The grid's cells as boxes, row by row: (G, 4) in [0, 1]."""
        y, x = torch.meshgrid(
            torch.arange(rows, device=device) / rows, torch.arange(columns, device=device) / columns, indexing="ij"
        )
        return torch.stack([x, y, x + 1 / columns, y + 1 / rows], dim=-1).flatten(0, 1)

    @staticmethod
    def pool(cells: Tensor, rows: int, columns: int, region_boxes: Tensor) -> Tensor:
        """Mean of the grid under each box; d channels are pooled, not the backbone's C: the projection comes first."""
        num_images, num_regions, _ = region_boxes.shape
        # RoIAlign exists in fp32 on every device, and box corners need it.
        grid = cells.transpose(1, 2).unflatten(2, (rows, columns)).float()
        scale = torch.tensor([columns, rows, columns, rows], device=cells.device)
        corners = (region_boxes.float() * scale).flatten(0, 1)
        image = torch.arange(num_images, device=cells.device)[:, None].expand(-1, num_regions).flatten()
        pooled = roi_align(
            grid,
            torch.cat([image[:, None].to(corners), corners], dim=1),
            output_size=1,
            sampling_ratio=4,
            aligned=True,
        )
        return pooled.flatten(1).unflatten(0, (num_images, num_regions)).to(cells.dtype)


class HamLearningSpatialEncoder(nn.Module):
    """Graph attention on the regions in which the message from j to i depends on their relation's type and direction."""

    def __init__(self, config: HamLearningConfig):
        super().__init__()
        self.num_heads = config.fusion_attention_heads
        self.norm = nn.LayerNorm(config.fusion_size)
        self.query = nn.Linear(config.fusion_size, config.fusion_size)
        self.key = nn.Linear(config.fusion_size, config.fusion_size)
        self.value = nn.Linear(config.fusion_size, config.fusion_size)
        # Index 0 is a region's edge to itself; the relations are numbered from 1.
        self.relation_key = nn.Embedding(NUM_RELATIONS + 1, config.fusion_size)
        self.relation_value = nn.Embedding(NUM_RELATIONS + 1, config.fusion_size)
        self.output = nn.Linear(config.fusion_size, config.fusion_size)
        self.dropout = nn.Dropout(config.fusion_dropout)
        self.feed_forward = HamLearningFeedForward(config)

    def forward(self, regions: Tensor, boxes: Tensor, image_sizes: Tensor, region_mask: Tensor) -> Tensor:
        """regions (B, K, d), boxes (B, K, 4), image_sizes (B, 2), mask (B, K) → (B, K, d)."""
        relations = spatial_relations(boxes, image_sizes)
        itself = torch.eye(boxes.shape[1], dtype=torch.bool, device=boxes.device)
        edges = ((relations > 0) & region_mask[:, None, :]) | itself
        relations = relations.masked_fill(itself, 0)

        hidden = self.norm(regions)
        query, key, value = (
            layer(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        # All relations are scored at once and picked by type: (B, heads, K, R), not a vector a pair.
        relation_key = all_vectors(self.relation_key, boxes.device).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)
        picked = relations[:, None].expand(-1, self.num_heads, -1, -1)
        scores = query @ key.transpose(-1, -2) + (query @ relation_key).gather(-1, picked)
        scores = (scores * key.shape[-1] ** -0.5).masked_fill(~edges[:, None], torch.finfo(scores.dtype).min)
        attention = scores.float().softmax(-1).to(value.dtype)
        by_relation = torch.zeros(*attention.shape[:-1], NUM_RELATIONS + 1, dtype=value.dtype, device=value.device)
        by_relation = by_relation.scatter_add(-1, picked, attention)
        relation_value = all_vectors(self.relation_value, boxes.device).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        mixed = attention @ value + by_relation @ relation_value.to(value.dtype)
        mixed = self.output(mixed.transpose(1, 2).flatten(2))
        return self.feed_forward(regions + self.dropout(mixed))


class HamLearningSemanticEncoder(nn.Module):
    """Meaning of the regions: their visual feature in the word space, their label's words, and the scene as context."""

    def __init__(self, config: HamLearningConfig, embedding_size: int):
        super().__init__()
        self.to_words = nn.Linear(config.fusion_size, embedding_size)
        self.label_norm = nn.LayerNorm(embedding_size)
        self.from_words = nn.Linear(embedding_size, config.fusion_size)
        self.norm = nn.LayerNorm(config.fusion_size)
        self.layer = HamLearningTransformerLayer(config)

    def forward(self, regions: Tensor, labels: Tensor, label_mask: Tensor, cells: Tensor, region_mask: Tensor) -> Tensor:
        """regions (B, K, d), label embeddings (B, K, T, E) with mask (B, K, T), cells (B, G, d) → (B, K, d)."""
        mask = label_mask[..., None].to(labels.dtype)
        label = (labels * mask).sum(2) / mask.sum(2).clamp(min=1)
        # A region without a label adds 0; the norm's bias would otherwise leak in.
        label = self.label_norm(label) * label_mask.any(2)[..., None]
        meaning = self.norm(self.from_words(self.to_words(regions) + label))
        scene = cells.mean(dim=1, keepdim=True)
        context = torch.cat([meaning, scene], dim=1)
        context_mask = torch.cat([region_mask, region_mask.new_ones(region_mask.shape[0], 1)], dim=1)
        return self.layer(meaning, context, context_mask)[0]
