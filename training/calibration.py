"""Temperature scaling (Guo et al. 2017): scores become the share of entities with that score that are right."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer

from modeling_hamlearning import HamLearningForTokenClassification
from modeling_hamlearning.crf import padded_paths

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
    """Fit and apply a temperature on posts the model was not trained on; every process reads all of them."""
    loader = DataLoader(rows, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
    batches = ({name: value for name, value in batch.items() if name != "ids"} for batch in loader)
    temperature = fit_temperature(model, tqdm(batches, desc="temperature", total=len(loader)))
    apply_temperature(model, temperature)
    return temperature


@torch.no_grad()
def apply_temperature(model: HamLearningForTokenClassification, temperature: float):
    """Divide every score of a path by the temperature: the best path stays, its probability changes."""
    for parameter in (*model.classifier.parameters(), *model.crf.parameters()):
        parameter.div_(temperature)
