"""A search for learning rates and batch size, by the Trainer's own `hyperparameter_search` with Optuna."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers.trainer_utils import SaveStrategy

from .arguments import MnerTrainingArguments
from .collator import MnerCollator
from .metric import ComputeMnerMetrics
from .trainer import MnerTrainer


def search_space(trial) -> dict[str, Any]:
    """What is tried: rates around those that fine-tuning usually takes, for the encoders and for the new layers."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-4, log=True),
        "head_learning_rate": trial.suggest_float("head_learning_rate", 1e-4, 1e-3, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [8, 16, 32]),
    }


def search_hyperparameters(
    make_model: Callable[[], nn.Module],
    processor,
    train: Dataset,
    validation: Dataset,
    arguments: MnerTrainingArguments,
    label_names: list[str],
) -> dict[str, Any]:
    """Train `arguments.hyperparameter_search` models and return the values with the best F1 on the validation split.

    Raises:
        ImportError: Optuna is not installed.
    """
    arguments = copy.deepcopy(arguments)
    arguments.output_dir = str(Path(arguments.output_dir, "search"))
    arguments.save_strategy, arguments.load_best_model_at_end = SaveStrategy.NO, False
    arguments.early_stopping_patience = None
    trainer = MnerTrainer(
        model_init=make_model,
        args=arguments,
        data_collator=MnerCollator(processor),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=ComputeMnerMetrics(label_names),
    )
    best = trainer.hyperparameter_search(
        hp_space=search_space,
        compute_objective=lambda metrics: metrics["eval_f1"],
        n_trials=arguments.hyperparameter_search,
        direction="maximize",
        backend="optuna",
    )
    return best.hyperparameters
