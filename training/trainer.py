"""transformers' Trainer with what this task needs: learning rates by part, CRF decoding, a stop at NaN."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_hamlearning.crf import padded_paths

from .checkpoints import PROCESSES, explain_write_errors

# The first pattern that fits names a parameter's part.
PARTS = {"text_encoder": r"(^|\.)text_encoder\.", "vision_encoder": r"(^|\.)vision_encoder\.", "head": ""}


class NotFiniteError(RuntimeError):
    """The loss or a gradient is not a finite number: with the ids of the posts that it came from."""


class LengthGroupedSampler(Sampler[int]):
    """PostSource of like length together, in an order that follows from the seed and the epoch alone.

    transformers' own draws from each process's global random state and groups by the batch of one process: after an
    epoch with dropout two processes would read different orders, a run resumed within a later epoch another one than
    before, and the same global batch would hold other posts on another number of processes.
    """

    def __init__(self, lengths: list[int], global_batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.global_batch_size, self.seed, self.epoch = lengths, global_batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.global_batch_size, generator=generator))


class MnerTrainer(Trainer):
    """Trainer of [`HamLearningForTokenClassification`].

    The text encoder trains at `learning_rate`, the vision encoder at `vision_learning_rate`, everything else at
    `head_learning_rate`. Evaluation predicts by the CRF's best path; a prediction is (B, W), −100 at padding.
    """

    def get_decay_parameter_names(self, model) -> list[str]:
        names = super().get_decay_parameter_names(model)
        return [name for name in names if ".crf." not in f".{name}"]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        model = self.model if model is None else model
        if self.optimizer is None:
            decay = set(self.get_decay_parameter_names(model))
            rates = {
                "text_encoder": self.args.learning_rate,
                "vision_encoder": self.args.vision_learning_rate,
                "head": self.args.head_learning_rate,
            }
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
                    groups.setdefault((part, name in decay), []).append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = cls(
                [
                    {
                        "params": parameters,
                        "lr": self.args.learning_rate if rates[part] is None else rates[part],
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (part, decays), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        args, rows = self.args, self.train_dataset if train_dataset is None else train_dataset
        if args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(
            list(rows[args.length_column_name]),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset):
        # In the order of the rows: the Trainer would group these by length too, and predictions would slide.
        return SequentialSampler(eval_dataset)

    def create_model_card(self, *args, **kwargs):
        """`train.py` has written the whole card by the time the Trainer pushes; its own would take that one's place."""
        if not Path(self.args.output_dir, "README.md").is_file():
            super().create_model_card(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        # Beside, then moved: what is cut short leaves an earlier model as it was.
        unfinished = folder / ".unfinished"
        with explain_write_errors("the model", self.args.output_dir):
            super()._save(str(unfinished), state_dict)
            if not self.args.should_save:
                return  # another process writes; this one was there for what they do together
            # A pickle of the arguments, which nothing reads and which must not go to the Hub; the card has them in words.
            (unfinished / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            for path in unfinished.iterdir():
                path.replace(folder / path.name)
            unfinished.rmdir()

    def _save_checkpoint(self, *args, **kwargs):
        with explain_write_errors(f"checkpoint-{self.state.global_step}", self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir: str):
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            Path(output_dir, PROCESSES).write_text(json.dumps(self.args.world_size))
        # The first process then writes the state, which says that the checkpoint is whole: the others' files belong to it.
        self.accelerator.wait_for_everyone()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        ids = inputs.pop("ids", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # One number for both, so that a GPU is waited for once.
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True) if gradients else loss.new_zeros(())
        if not torch.isfinite(loss + norm.to(loss.device)):
            is_loss = not torch.isfinite(loss)
            # In fp16 a gradient overflows while the loss's scale is sought: the scaler skips the step and halves it.
            scaler = self.accelerator.scaler
            if scaler is not None and not is_loss and scaler.get_scale() > 1:
                return loss
            process = f" on process {self.args.process_index}" if self.args.world_size > 1 else ""
            raise NotFiniteError(
                f"the {'loss' if is_loss else 'gradient'} of step {self.state.global_step + 1} is not finite{process}; its "
                f"posts: {', '.join(ids or ['?'])}. Look at these posts, lower the learning rate, or train in fp32."
            )
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        inputs.pop("ids", None)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs.loss.detach() if labels is not None else None
        if prediction_loss_only:
            return loss, None, None
        word_mask = inputs["word_mask"]
        paths = self.accelerator.unwrap_model(model).decode(outputs, word_mask)
        return loss, padded_paths(paths, word_mask, padding=-100), labels
