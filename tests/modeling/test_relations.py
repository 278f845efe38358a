"""The 11 relations against a from-scratch reading of their definition in exact arithmetic."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch

from modeling_hamlearning.relations import RELATION_NAMES, inverse_relation, spatial_relations

HEIGHT, WIDTH = 384, 640


def by_definition(i: tuple, j: tuple) -> tuple[int, float]:
    """Relation of subject i to object j, boxes in pixels; and how far the decision is from its nearest threshold."""
    i, j = [Fraction(v) for v in i], [Fraction(v) for v in j]

    def contains(outer, inner):
        return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]

    center_i, center_j = (((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (i, j))
    if i == j:
        return 3, 1.0
    if contains(j, i):
        return 1, 1.0
    if contains(i, j):
        return 2, 1.0
    if center_i == center_j:
        return 3, 1.0
    width = max(Fraction(0), min(i[2], j[2]) - max(i[0], j[0]))
    height = max(Fraction(0), min(i[3], j[3]) - max(i[1], j[1]))
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (i, j)) - width * height
    iou = width * height / union if union else Fraction(0)
    if iou >= Fraction(1, 2):
        return 3, 1.0
    dx, dy = center_j[0] - center_i[0], center_j[1] - center_i[1]
    distance, half_diagonal = math.hypot(dx, dy), math.hypot(HEIGHT, WIDTH) / 2
    if distance >= half_diagonal:
        return 0, distance - half_diagonal
    turn = math.degrees(math.atan2(dy, dx)) / 45
    sector = round(turn)
    margin = min(0.5 - abs(turn - sector), half_diagonal - distance, abs(float(iou) - 0.5) or 1.0)
    return 4 + sector % 8, margin


def random_box(generator: random.Random) -> tuple[int, int, int, int]:
    """Mostly ordinary; one in four a point, a line, the whole picture or on a coarse grid where ties are common."""
    kind = generator.random()
    step = 64 if kind < 0.4 else 1
    x = sorted(generator.randrange(0, WIDTH + 1, step) for _ in range(2))
    y = sorted(generator.randrange(0, HEIGHT + 1, step) for _ in range(2))
    if kind < 0.05:
        x[1], y[1] = x[0], y[0]
    elif kind < 0.10:
        x[1] = x[0]
    elif kind < 0.15:
        return 0, 0, WIDTH, HEIGHT
    return x[0], y[0], x[1], y[1]


def pairs(count: int, seed: int = 0) -> list[tuple[tuple, tuple]]:
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        i, j = random_box(generator), random_box(generator)
        kind = generator.random()
        if kind < 0.05:
            j = i
        elif kind < 0.15:  # one centre
            x, y = (i[0] + i[2]) // 2, (i[1] + i[3]) // 2
            room_x, room_y = min(x, WIDTH - x), min(y, HEIGHT - y)
            half_w, half_h = generator.randint(0, room_x), generator.randint(0, room_y)
            i = (x - room_x // 2, y - room_y // 2, x + room_x // 2, y + room_y // 2)
            j = (x - half_w, y - half_h, x + half_w, y + half_h)
        found.append((i, j))
    return found


def relate(boxes: torch.Tensor) -> torch.Tensor:
    """boxes (n, K, 4) in pixels."""
    scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.double)
    return spatial_relations(boxes.double() / scale, torch.tensor([[HEIGHT, WIDTH]]).expand(len(boxes), 2))


def test_relations_equal_the_definition_on_ten_thousand_pairs():
    cases = pairs(10_000)
    measured = relate(torch.tensor(cases))
    seen, checked = set(), 0
    for case, relations in zip(cases, measured, strict=True):
        expected, margin = by_definition(*case)
        # Within rounding of a threshold either side is right; these are few and their inverse is checked below.
        if margin > 1e-9:
            checked += 1
            assert relations[0, 1] == expected, (case, RELATION_NAMES[expected], RELATION_NAMES[relations[0, 1]])
            seen.add(expected)
    assert seen == set(range(12)) and checked > 9_900


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_relation_of_j_to_i_is_the_inverse_exactly(dtype):
    boxes = torch.rand(500, 12, 2, 2, generator=torch.Generator().manual_seed(0)).sort(2).values.flatten(2).to(dtype)
    degenerate = torch.tensor([random_box(random.Random(seed)) for seed in range(6000)]).reshape(500, 12, 4)
    sizes = torch.randint(1, 5000, (500, 2), generator=torch.Generator().manual_seed(1)).float()
    for relations in (spatial_relations(boxes, sizes), relate(degenerate)):
        assert torch.equal(relations.transpose(1, 2), inverse_relation(relations))
        diagonal = relations.diagonal(dim1=1, dim2=2)
        assert (diagonal == 3).all()


def test_sector_thresholds_hold_at_the_axes_and_diagonals():
    center = (300, 180, 340, 220)
    for dx, dy, name in [
        (60, 0, "right"), (60, 60, "lower right"), (0, 60, "below"), (-60, 60, "lower left"),
        (-60, 0, "left"), (-60, -60, "upper left"), (0, -60, "above"), (60, -60, "upper right"),
    ]:  # fmt: skip
        other = (center[0] + dx, center[1] + dy, center[2] + dx, center[3] + dy)
        assert RELATION_NAMES[relate(torch.tensor([[center, other]]))[0, 0, 1]] == name


def test_the_true_shape_of_the_image_decides():
    boxes = torch.tensor([[[0.4, 0.4, 0.45, 0.45], [0.5, 0.5, 0.55, 0.55]]])
    square = spatial_relations(boxes, torch.tensor([[100.0, 100.0]]))[0, 0, 1]
    wide = spatial_relations(boxes, torch.tensor([[100.0, 900.0]]))[0, 0, 1]
    assert (RELATION_NAMES[square], RELATION_NAMES[wide]) == ("lower right", "right")


def test_inverse_is_an_involution():
    every = torch.arange(12)
    assert torch.equal(inverse_relation(inverse_relation(every)), every)
