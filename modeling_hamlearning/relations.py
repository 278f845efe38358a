"""The 11 directed spatial relations between two regions (Yao et al., ECCV 2018, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NO_RELATION, INSIDE, COVER, OVERLAP, FIRST_SECTOR = 0, 1, 2, 3, 4
NUM_RELATIONS = 11
RELATION_NAMES = (
    "none",
    "inside",
    "cover",
    "overlap",
    "right",
    "lower right",
    "below",
    "lower left",
    "left",
    "upper left",
    "above",
    "upper right",
)
_TAN_22_5 = math.tan(math.pi / 8)


def spatial_relations(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Relation of subject i to object j for every pair of boxes.

    Every comparison is made on quantities that are exactly symmetric or antisymmetric in i and j, so that the relation
    of (j, i) is the inverse of that of (i, j) to the last bit.

    Args:
        boxes: (B, K, 4), x1 y1 x2 y2 in [0, 1].
        image_sizes: (B, 2), height and width: they give the boxes their true shape.

    Returns:
        (B, K, K) long: 0 none, 1 i inside j, 2 i covers j, 3 overlap, 4 to 11 where j's centre lies as seen from i's,
        in 45 degree sectors centred on right, lower right, below, … (the angle grows from x to y, which points down).
    """
    height, width = image_sizes.double().unbind(-1)
    x1, y1, x2, y2 = (boxes.double() * torch.stack([width, height, width, height], -1)[:, None]).unbind(-1)

    def pairs(value: Tensor) -> tuple[Tensor, Tensor]:
        return value[:, :, None], value[:, None, :]

    (x1_i, x1_j), (y1_i, y1_j), (x2_i, x2_j), (y2_i, y2_j) = map(pairs, (x1, y1, x2, y2))
    inside = (x1_i >= x1_j) & (y1_i >= y1_j) & (x2_i <= x2_j) & (y2_i <= y2_j)
    cover = inside.transpose(1, 2)

    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    dx, dy = center_x[:, None, :] - center_x[:, :, None], center_y[:, None, :] - center_y[:, :, None]
    same_center = (dx == 0) & (dy == 0)

    area_i, area_j = pairs((x2 - x1) * (y2 - y1))
    intersection = (torch.minimum(x2_i, x2_j) - torch.maximum(x1_i, x1_j)).clamp(min=0) * (
        torch.minimum(y2_i, y2_j) - torch.maximum(y1_i, y1_j)
    ).clamp(min=0)
    union = area_i + area_j - intersection
    half_covered = (union > 0) & (2 * intersection >= union)

    near = dx**2 + dy**2 < ((height**2 + width**2) / 4)[:, None, None]

    relation = torch.where(near, FIRST_SECTOR + _sector(dx, dy), NO_RELATION)
    relation = torch.where(half_covered | same_center, OVERLAP, relation)
    relation = torch.where(cover, COVER, relation)
    relation = torch.where(inside, INSIDE, relation)
    return torch.where(inside & cover, OVERLAP, relation)


def _sector(dx: Tensor, dy: Tensor) -> Tensor:
    """0 … 7 for the 45 degree sector of (dx, dy); (−dx, −dy) is exactly the opposite one, 4 further."""
    abs_dx, abs_dy = dx.abs(), dy.abs()
    horizontal = torch.where(dx > 0, 0, 4)
    vertical = torch.where(dy > 0, 2, 6)
    diagonal = torch.where(dy > 0, torch.where(dx > 0, 1, 3), torch.where(dx > 0, 7, 5))
    sector = torch.where(abs_dx <= abs_dy * _TAN_22_5, vertical, diagonal)
    return torch.where(abs_dy <= abs_dx * _TAN_22_5, horizontal, sector)


def inverse_relation(relation: Tensor) -> Tensor:
    """Relation of (j, i) from that of (i, j), any shape."""
    table = [NO_RELATION, COVER, INSIDE, OVERLAP] + [FIRST_SECTOR + (sector + 4) % 8 for sector in range(8)]
    return torch.tensor(table, device=relation.device)[relation]
