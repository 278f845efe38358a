from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mner_data.loading import dataset_labels
from mner_data.synthetic_images import blur, heavy_jpeg, occlude, pure_noise
from mner_data.synthetic_posts import (
    NAMES,
    ONE_NAME,
    RELATIONS_OF_TYPE,
    SCENARIOS,
    TYPE_IN_WORDS,
    TYPES,
    best_f1_without_evidence,
    mixed_relevance_dataset,
    synthetic_dataset,
)
from modeling_hamlearning import RELATION_NAMES, spatial_relations


@pytest.fixture(scope="module")
def rows():
    return synthetic_dataset(4000, seed=5)


def entities(row, names):
    found = []
    for word, label in zip(row["tokens"], row["ner_tags"], strict=True):
        if names[label].startswith("B-"):
            found.append([names[label][2:], word])
        elif names[label].startswith("I-"):
            found[-1][1] += f" {word}"
    return [tuple(entity) for entity in found]


def test_a_seed_gives_the_same_posts():
    first, again, other = synthetic_dataset(20, 1), synthetic_dataset(20, 1), synthetic_dataset(20, 2)
    assert list(first) == list(again)
    assert list(first["tokens"]) != list(other["tokens"])


def test_names_say_nothing_about_types(rows):
    names = dataset_labels(rows)
    counts = Counter(entity for row in rows for entity in entities(row, names))
    assert {name for _, name in counts} == set(NAMES)
    expected = sum(counts.values()) / len(NAMES) / len(TYPES)
    chi_square = sum((counts[kind, name] - expected) ** 2 / expected for kind in TYPES for name in NAMES)
    # 72 degrees of freedom given the names: 1 in 10,000 is above 125.
    assert chi_square < 150


def test_words_say_nothing_about_the_type_where_there_is_an_image(rows):
    """No word but a cue in posts without an image goes with a type: the best guess by any one word is chance."""
    names = dataset_labels(rows)
    by_word: dict[str, Counter] = {}
    for row in rows:
        for kind, _ in entities(row, names) if row["image"] else []:
            for word in set(row["tokens"]):
                by_word.setdefault(word, Counter())[kind] += 1
    for word, kinds in by_word.items():
        total = sum(kinds.values())
        if total >= 100:
            assert max(kinds.values()) / total < 0.25 + 4 * (0.25 * 0.75 / total) ** 0.5, word


def test_the_deciding_region_names_the_type(rows):
    names = dataset_labels(rows)
    of_type = {"person": "PER", "child": "PER", "mountain": "LOC", "tree": "LOC"}
    of_type |= {"office": "ORG", "factory": "ORG", "trophy": "MISC", "guitar": "MISC"}
    for row in rows:
        found = entities(row, names)
        assert len(found) == len(row["deciding_region"])
        for (kind, _), region in zip(found, row["deciding_region"], strict=True):
            if row["image"] and len(found) == 1:
                assert of_type[row["box_labels"][region]] == kind
            else:
                assert region == -1
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in row["boxes"])


def test_images_show_what_the_boxes_say(rows):
    row = next(row for row in rows if row["image"] and row["box_labels"] == ["trophy"])
    image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    x1, y1, x2, y2 = row["boxes"][0]
    box = image.crop((int(x1 * image.width), int(y1 * image.height), int(x2 * image.width), int(y2 * image.height)))

    def gold(image):
        pixels = list(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))
        return sum(red > 180 and 130 < green < 230 and blue < 110 for red, green, blue in pixels) / len(pixels)

    assert gold(box) > 0.05


def test_the_ceiling_is_what_the_posts_give(rows):
    names = dataset_labels(rows)
    told = sum(len(entities(row, names)) for row in rows if row["image"] is None)
    shown = sum(len(entities(row, names)) for row in rows if row["image"])
    assert best_f1_without_evidence() == pytest.approx((told + shown / 4) / (told + shown), abs=0.02)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenarios_are_repeatable_and_balanced(scenario):
    rows = synthetic_dataset(400, 3, scenario)
    assert list(rows.select(range(5))) == list(synthetic_dataset(5, 3, scenario))
    names = dataset_labels(rows)
    kinds = Counter(kind for row in rows for kind, _ in entities(row, names))
    total = sum(kinds.values())
    assert all(abs(kinds[kind] / total - 0.25) < 0.1 for kind in TYPES)
    for row in rows:
        assert len(row["deciding_region"]) == len(entities(row, names))
        assert all(-1 <= region < len(row["boxes"]) for region in row["deciding_region"])
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in row["boxes"])


def test_an_unknown_scenario_is_named():
    for call in (lambda: best_f1_without_evidence("x"), lambda: synthetic_dataset(1, 0, "x")):
        with pytest.raises(ValueError, match="scenario: expected one of demo, .*, got 'x'"):
            call()


def test_the_model_sees_the_relation_that_tells():
    rows = synthetic_dataset(200, 4, "spatial")
    names = dataset_labels(rows)
    for row in rows:
        size = Image.open(io.BytesIO(row["image"]["bytes"])).size if isinstance(row["image"], dict) else row["image"].size
        subject = row["deciding_region"][0]
        assert row["box_labels"][row["leading_region"][0]] == "star"
        other = next(k for k, label in enumerate(row["box_labels"]) if label == "frame" and k != subject)
        relations = spatial_relations(torch.tensor([row["boxes"]]), torch.tensor([size[::-1]]))
        relation = RELATION_NAMES[relations[0, subject, other]]
        assert relation in RELATIONS_OF_TYPE[entities(row, names)[0][0]]


def test_a_side_leads_to_a_ball_and_the_ball_to_what_tells():
    rows = synthetic_dataset(400, 4, "iterations")
    high = {"left": 0, "right": 0}
    for row in rows:
        sides = [word for word in row["tokens"] if word in high]
        middles = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in row["boxes"]]
        balls = [middle for middle, label in zip(middles, row["box_labels"], strict=True) if label == "ball"]
        for side, deciding, leading in zip(sides, row["deciding_region"], row["leading_region"], strict=True):
            ball = min(balls) if side == "left" else max(balls)
            assert middles[leading] == ball
            level_with = [place for place, (_, y) in enumerate(middles) if abs(y - ball[1]) < 0.05]
            assert [place for place in level_with if row["box_labels"][place] == "thing"] == [deciding]
            assert 0.4 < middles[deciding][0] < 0.6
            high[side] += middles[deciding][1] < 0.5
    # Where the thing is does not tell whose it is: three standard deviations.
    assert all(abs(count - 200) < 30 for count in high.values())


@pytest.mark.parametrize("scenario", ["global", "object", "semantic", "spatial", "alignment", "iterations"])
def test_words_of_a_scenario_say_nothing(scenario):
    rows = synthetic_dataset(800, 6, scenario)
    names = dataset_labels(rows)
    by_word: dict[str, Counter] = {}
    for row in rows:
        for kind, _ in entities(row, names):
            for word in set(row["tokens"]):
                by_word.setdefault(word, Counter())[kind] += 1
    for word, kinds in by_word.items():
        total = sum(kinds.values())
        if total >= 50:
            assert max(kinds.values()) / total < 0.25 + 4.5 * (0.25 * 0.75 / total) ** 0.5, word


def test_half_of_the_mixed_images_are_swapped():
    rows = mixed_relevance_dataset(200, 1, num_images=32)
    assert list(rows) == list(mixed_relevance_dataset(200, 1, num_images=32))
    assert sum(rows["own_image"]) == 100
    assert all((row["deciding_region"] == [0]) == row["own_image"] for row in rows)
    assert list(rows["leading_region"]) == list(rows["deciding_region"])
    assert len({row["image"]["bytes"] for row in rows}) == 32, "posts share the images"
    assert {label for row in rows for label in row["box_labels"]} == {"thing"}
    cues = {word for templates in TYPE_IN_WORDS.values() for template in templates for word in template.split()} - {"{a}"}
    without = {word for template in ONE_NAME for word in template.split()}
    told = sum(bool(set(row["tokens"]) & (cues - without)) for row in rows)
    assert 80 <= told <= 120, "words tell the type of about half of the names"


@pytest.mark.parametrize("noise", [blur, heavy_jpeg, occlude, pure_noise])
def test_noise_keeps_the_size_and_changes_the_image(noise):
    image = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    before = image.tobytes()
    noisy = noise(image)
    assert noisy.size == image.size and noisy.tobytes() != before and image.tobytes() == before
    assert noisy.tobytes() == noise(image).tobytes()


@pytest.mark.parametrize("scenario", [scenario for scenario in SCENARIOS if scenario not in ("demo", "alignment", "iterations")])
def test_the_ceiling_of_a_scenario_is_what_its_posts_give(scenario):
    """One guess among four where the image tells, certainty where a word does."""
    rows = synthetic_dataset(100, 8, scenario)
    regions = [region for row in rows for region in row["deciding_region"]]
    told = regions.count(-1) if scenario in ("figure1b", "not-shown") else 0
    assert best_f1_without_evidence(scenario) == pytest.approx((told + (len(regions) - told) / 4) / len(regions))
