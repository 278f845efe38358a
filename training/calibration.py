"""Temperature scaling (Guo et al. 2017): an entity's score is to be how often such entities are right."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer

from modeling_hamlearning import HamLearningCRF, HamLearningForTokenClassification

COLDEST, HOTTEST = 0.05, 20.0


@torch.no_grad()
def fit_temperature(model: HamLearningForTokenClassification, batches: Iterable[dict[str, Tensor]]) -> float:
    """The temperature at which the labels of posts that the model was not trained on are likeliest.

    Args:
        batches: what `forward` takes, with `labels`.

    Raises:
        ValueError: no word of them has a label.
    """
    model.eval()
    kept = []
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        kept.append((model(**batch).logits.float(), labels, batch["word_mask"].bool()))
    if not any((labels >= 0).any() for _, labels, _ in kept):
        raise ValueError("a temperature is fitted to labelled posts, and there are none")

    # Scores are probabilities under the BIO constraint, also those of a model that was trained without it.
    crf = HamLearningCRF(model.crf.label_names).to(model.device)
    crf.load_state_dict(model.crf.state_dict(), strict=False)

    def loss(log_temperature: float) -> float:
        temperature, scaled = math.exp(log_temperature), copy.deepcopy(crf)
        for parameter in scaled.parameters():
            parameter.div_(temperature)
        return sum(scaled(logits / temperature, labels, mask).sum().item() for logits, labels, mask in kept)

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(found.x)


def calibrate(model: HamLearningForTokenClassification, trainer: Trainer, rows: Dataset) -> float:
    """Fit and apply a temperature on posts the model was not trained on; every process reads all of them."""
    loader = DataLoader(rows, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
    batches = ({name: of_batch for name, of_batch in batch.items() if name != "ids"} for batch in loader)
    temperature = fit_temperature(model, tqdm(batches, desc="temperature", total=len(loader)))
    apply_temperature(model, temperature)
    return temperature


@torch.no_grad()
def apply_temperature(model: HamLearningForTokenClassification, temperature: float):
    """Divide every score of a path by the temperature: the best path stays, its probability changes."""
    for parameter in (*model.classifier.parameters(), *model.crf.parameters()):
        parameter.div_(temperature)
