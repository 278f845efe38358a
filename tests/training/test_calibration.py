"""Temperature scaling: labels stay, probabilities become those that held-out posts have."""

from __future__ import annotations

import math

import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities

from modeling_hamlearning.grounding import entity_overlaps, entity_scores, grounding_loss
from tests.tiny_model import LABELS, random_batch, tiny_model
from training.calibration import apply_temperature, fit_grounding_temperature, fit_temperature, scale_grounding

from ..modeling.test_crf import enumerate_paths


def drawn_by(model, count: int) -> list[dict[str, torch.Tensor]]:
    """Posts of one word whose label is drawn from the model's own probabilities."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for seed in range(count):
        batch = random_batch(num_posts=50, num_words=1, seed=seed)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask", "word_positions", "word_mask")}
        with torch.no_grad():
            marginals = model.crf.marginals(model(**batch).logits, batch["word_mask"])
        labels = torch.multinomial(marginals.flatten(0, 1), 1, generator=generator).view(50, 1)
        batches.append(batch | {"labels": labels})
    return batches


@pytest.mark.parametrize("use_crf", [True, False])
@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_a_model_that_is_too_sure_is_brought_back(use_crf, true):
    model = tiny_model(use_crf=use_crf)
    apply_temperature(model, 2.0)
    batches = drawn_by(model, 40)
    # Now too sure (or not sure enough) by a factor that is known.
    apply_temperature(model, 1 / true)
    assert fit_temperature(model, batches) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("use_crf", [True, False])
def test_scores_of_entities_tell_best_which_are_right(use_crf):
    model, batch = tiny_model(use_crf=use_crf), random_batch(num_posts=60, num_words=4)
    batch["labels"][::3, 1] = -100
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits
    posts = []
    for place, (emissions, labels) in enumerate(zip(logits, batch["labels"], strict=True)):
        known = labels >= 0
        paths = enumerate_paths(model.crf, emissions[known])
        if place % 2:  # so that some of what it finds is right
            labels[known] = torch.tensor(max(paths, key=paths.get))
        posts.append((paths, get_entities([LABELS[label] for label in labels[known]])))

    def log_loss(temperature: float) -> float:
        total = 0.0
        for paths, gold in posts:
            weights = {path: math.exp(score / temperature) for path, score in paths.items()}
            entities = {path: get_entities([LABELS[label] for label in path]) for path in paths}
            for entity in entities[max(paths, key=paths.get)]:
                with_it = sum(weight for path, weight in weights.items() if entity in entities[path])
                probability = with_it / sum(weights.values())
                total -= math.log(probability if entity in gold else 1 - probability)
        return total

    halves = [{name: tensor[half] for name, tensor in batch.items()} for half in (slice(0, 30), slice(30, 60))]
    temperature = fit_temperature(model, halves)
    assert log_loss(temperature) < min(log_loss(temperature * 1.02), log_loss(temperature / 1.02))


def test_a_model_that_finds_nothing_stays_as_it_is():
    model = tiny_model()
    with torch.no_grad():
        model.classifier.bias[LABELS.index("O")] = 1e3
    assert fit_temperature(model, [random_batch()]) == 1.0


def test_a_temperature_changes_probabilities_and_no_label():
    model, batch = tiny_model(), random_batch(num_posts=20)
    with torch.no_grad():
        before = model(**batch)
        paths, marginals = (
            model.decode(before, batch["word_mask"]),
            model.crf.marginals(before.logits, batch["word_mask"]),
        )
        apply_temperature(model, 3.0)
        after = model(**batch)
    assert model.decode(after, batch["word_mask"]) == paths
    softer = model.crf.marginals(after.logits, batch["word_mask"])
    assert softer.max(-1).values.mean() < marginals.max(-1).values.mean() - 0.05
    assert softer.shape[-1] == len(LABELS)


def test_posts_without_labels_are_refused():
    batch = random_batch() | {"labels": torch.full((3, 6), -100)}
    with pytest.raises(ValueError, match="got none"):
        fit_temperature(tiny_model(), [batch])


def test_the_grounding_temperature_is_the_best_one():
    model, batch = tiny_model(grounding_loss_weight=1.0), random_batch(num_posts=40)
    batch["labels"][:] = torch.tensor([1, 2, 0, 3, 0, 1])
    # Of two posts of three the likeliest regions are right, of the third any: a temperature in between is best.
    with torch.no_grad():
        spans = model.crf.gold_spans(batch["labels"], batch["word_mask"])
        right = model.ground(model(**batch), spans).argmax(1).reshape(40, 3)
    is_random = torch.arange(40) % 3 == 0
    right[is_random] = torch.randint(0, 4, (14, 3), generator=torch.Generator().manual_seed(3))
    batch["region_overlaps"] = torch.nn.functional.one_hot(right, 4).float()
    batch["region_overlaps"][0] = -100

    def loss() -> float:
        with torch.no_grad():
            spans = model.crf.gold_spans(batch["labels"], batch["word_mask"])
            scores = entity_scores(model(**batch).grounding_scores, spans)
            return grounding_loss(scores, entity_overlaps(batch["region_overlaps"], spans)).item()

    before = loss()
    temperature = fit_grounding_temperature(model, [batch])
    scale_grounding(model, temperature)
    best = loss()
    assert best < before and temperature != 1
    for factor in (1.05, 1 / 1.05):
        scale_grounding(model, factor)
        assert loss() > best
        scale_grounding(model, 1 / factor)
    batch["region_overlaps"][:] = -100
    assert fit_grounding_temperature(model, [batch]) == 1.0
