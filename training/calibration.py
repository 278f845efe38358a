"""Temperature scaling (Guo et al. 2017): scores become the share of entities with that score that are right."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer

from modeling_hamlearning import HamLearningForTokenClassification
from modeling_hamlearning.crf import padded_paths
from modeling_hamlearning.grounding import ABSENT_SCORE, entity_overlaps, entity_scores, grounding_loss

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@torch.no_grad()
def fit_temperature(model: HamLearningForTokenClassification, batches: Iterable[dict[str, Tensor]]) -> float:
    """Find the temperature with the least log-loss of the predicted entities' scores; 1 where no entity is predicted.

    Args:
        batches: what `forward` takes, with `labels`, of posts that the model was not trained on.

    Raises:
        ValueError: no word of them has a label.
    """
    model.eval()
    # Scores are probabilities under the BIO constraint, also those of a model that was trained without it.
    crf, entities, num_labelled = model.crf, [], 0
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()
        logits, labels, mask = crf.drop_unlabelled(logits, labels, batch["word_mask"].bool())
        num_labelled += mask.sum().item()
        gold = set(map(tuple, crf.spans(labels, mask).tolist()))
        spans = crf.spans(padded_paths(crf.decode(logits, mask), mask), mask)
        if len(spans):
            right = logits.new_tensor([tuple(span) in gold for span in spans.tolist()])
            entities.append((logits, mask, spans, right))
    if not num_labelled:
        raise ValueError("calibrate: expected posts with labels, got none")
    if not entities:
        return 1.0

    def loss(log_temperature: float) -> float:
        temperature, scaled = math.exp(log_temperature), copy.deepcopy(crf)
        for parameter in scaled.parameters():
            parameter.div_(temperature)
        total = 0.0
        for logits, mask, spans, right in entities:
            scores = scaled.span_probabilities(logits / temperature, mask, spans)
            total += binary_cross_entropy(scores, right, reduction="sum").item()
        return total

    best = minimize_scalar(loss, bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)), method="bounded")
    return math.exp(best.x)


def calibrate(model: HamLearningForTokenClassification, trainer: Trainer, rows: Dataset) -> float:
    """Fit and apply a temperature on posts the model was not trained on; every process reads all of them.

    Where the posts say which boxes show their entities, the grounding head gets a temperature of its own.

    Returns:
        The temperature of the entities' scores.
    """
    loader = DataLoader(rows, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator)

    def batches(name: str) -> Iterator[dict[str, Tensor]]:
        for batch in tqdm(loader, desc=name):
            yield {field: value for field, value in batch.items() if field != "ids"}

    temperature = fit_temperature(model, batches("temperature"))
    apply_temperature(model, temperature)
    if model.config.has_grounding and "entity_boxes" in rows.column_names:
        scale_grounding(model, fit_grounding_temperature(model, batches("grounding temperature")))
    return temperature


@torch.no_grad()
def fit_grounding_temperature(model: HamLearningForTokenClassification, batches: Iterable[dict[str, Tensor]]) -> float:
    """Find the temperature with the least grounding loss of the gold entities; 1 where none is annotated.

    Args:
        batches: what `forward` takes, with `labels` and `region_overlaps`, of posts that the model was not trained on.
    """
    model.eval()
    entities = []
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        outputs = model(**batch)
        if outputs.grounding_scores is not None:
            spans = model.crf.gold_spans(batch["labels"], batch["word_mask"].bool())
            overlaps = entity_overlaps(batch["region_overlaps"], spans)
            entities.append((entity_scores(outputs.grounding_scores, spans).double(), overlaps))

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return sum(
            grounding_loss(torch.where(scores > ABSENT_SCORE / 2, scores / temperature, scores), overlaps).item()
            for scores, overlaps in entities
        )

    if loss(0.0) == 0:
        return 1.0
    return math.exp(minimize_scalar(loss, bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)), method="bounded").x)


def scale_grounding(model: HamLearningForTokenClassification, temperature: float):
    """Divide the grounding head's scores by the temperature: the likeliest region stays, its probability changes."""
    _divide_weights(model, [model.model.image_branch.grounding.word_outer], temperature)


def apply_temperature(model: HamLearningForTokenClassification, temperature: float):
    """Divide every score of a path by the temperature: the best path stays, its probability changes."""
    _divide_weights(model, [model.classifier, model.crf], temperature)


@torch.no_grad()
def _divide_weights(model: HamLearningForTokenClassification, parts: list[nn.Module], temperature: float):
    for module in model.modules():
        if hasattr(module, "reshard"):
            # After a forward pass FSDP2 holds copies of whole weights, and what is changed in them is lost.
            module.reshard()
    for part in parts:
        for parameter in part.parameters():
            parameter.div_(temperature)
