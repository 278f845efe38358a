"""transformers' Trainer with what this task needs: learning rates by part, CRF decoding, a stop at NaN."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_hamlearning.crf import padded_paths
from modeling_hamlearning.grounding import MIN_IOU, NOT_ANNOTATED, entity_overlaps

from .arguments import MnerTrainingArguments, check_supported
from .checkpoints import explain_write_errors, rotate, write_contents
from .collator import MnerCollator
from .labels import match_labels
from .metric import ComputeMnerMetrics

logger = logging.getLogger(__name__)

# A parameter belongs to the first part whose pattern matches its name.
PARTS = {"text_encoder": r"(^|\.)text_encoder\.", "vision_encoder": r"(^|\.)vision_encoder\.", "head": ""}


class NotFiniteError(RuntimeError):
    """The loss or a gradient is not a finite number: with the ids of the posts that it came from."""


class LengthGroupedSampler(Sampler[int]):
    """Groups posts of similar length, in an order that depends on the seed and the epoch alone.

    The sampler of transformers draws from each process's global random state and groups by the batch of one process. After an
    epoch with dropout, two processes would read different orders; a run resumed within a later epoch would read another order
    than before; and one global batch would hold other posts on another number of processes.
    """

    def __init__(self, lengths: list[int], global_batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.global_batch_size, self.seed, self.epoch = lengths, global_batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.global_batch_size, generator=generator))


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bf16; True where torch cannot tell.

    Without them (seen on AVX2), a training step in bf16 takes about 16 times as long as in fp32.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


class MnerTrainer(Trainer):
    """Trainer of [`HamLearningForTokenClassification`].

    The text encoder trains at `learning_rate`, the vision encoder at `vision_learning_rate` and everything else at
    `head_learning_rate`. Evaluation decodes each post's best path; a prediction is (B, W), −100 at padding.

    Args:
        args: [`MnerTrainingArguments`]; those are also the default.
        data_collator: by default [`MnerCollator`] of the `processing_class`.
        compute_metrics: by default [`ComputeMnerMetrics`] with the model's labels.
        kwargs: everything else that transformers' `Trainer` takes.

    Raises:
        ValueError: an option that this Trainer does not support.
        DataError: the model lacks a label that a data set uses. Others are matched by name.

    Example:
        >>> data, _ = load_splits("my_data")
        >>> labels = dataset_labels(data["train"])
        >>> model, processor = build(ModelArguments(vision="resnet50"), data, labels)
        >>> trainer = MnerTrainer(
        ...     model=model, processing_class=processor, train_dataset=data["train"], eval_dataset=data["validation"]
        ... )
        >>> trainer.train()
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MnerTrainingArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        args = MnerTrainingArguments() if args is None else args
        if not isinstance(args, MnerTrainingArguments):
            raise ValueError(f"args: expected MnerTrainingArguments of training.arguments, got {type(args).__name__}")
        check_supported(args)
        if data_collator is None:
            if processing_class is None:
                raise ValueError("expected a processing_class (the processor) or a data_collator, got neither")
            data_collator = MnerCollator(processing_class)
        if compute_metrics is None and model is not None:
            compute_metrics = ComputeMnerMetrics(model.config.label_names)
        train_dataset = _with_labels_of(model, train_dataset, "train_dataset")
        eval_dataset = _with_labels_of(model, eval_dataset, "eval_dataset")
        if isinstance(eval_dataset, dict):
            _check_best_metric(args, list(eval_dataset))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        if args.bf16 and args.device.type == "cpu" and not cpu_has_bf16() and args.should_log:
            logger.warning(
                "bf16: this processor has no instructions for it, and training takes many times as long as with --bf16 false"
            )

    def get_decay_parameter_names(self, model) -> list[str]:
        """The CRF's scores do not decay."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if ".crf." not in f".{name}"]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """One parameter group for each part of the model and each weight decay."""
        model = self.model if model is None else model
        if self.optimizer is None:
            decay = set(self.get_decay_parameter_names(model))
            rates = {
                "vision_encoder": self.args.vision_learning_rate,
                "head": self.args.head_learning_rate,
            }
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
                    groups.setdefault((part, name in decay), []).append(parameter)
            cls, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            if not isinstance(cls, type) or not issubclass(cls, torch.optim.Optimizer):
                raise ValueError(f"optimizer: expected a torch.optim.Optimizer class that takes parameter groups, got {cls!r}")
            # A rate of the caller's own optimizer is the one of the parts that have none.
            options = dict(options)
            rate = options.pop("lr", self.args.learning_rate)
            decay_rate = options.pop("weight_decay", self.args.weight_decay)
            rates["text_encoder"] = rate
            self.optimizer = cls(
                [
                    {
                        "params": parameters,
                        "lr": rate if rates[part] is None else rates[part],
                        "weight_decay": decay_rate if decays else 0.0,
                    }
                    for (part, decays), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        args, rows = self.args, self.train_dataset if train_dataset is None else train_dataset
        if rows is None or not hasattr(rows, "__len__") or args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(
            _lengths(rows, args.length_column_name),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset):
        # In the order of the rows: the Trainer would group these by length too, and predictions would slide.
        return SequentialSampler(eval_dataset)

    @contextmanager
    def _every_post(self) -> Iterator[None]:
        """`dataloader_drop_last` is meant for training; evaluation reads every post."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        eval_dataset = _with_labels_of(self.model, eval_dataset, "eval_dataset")
        with self._every_post():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        test_dataset = _with_labels_of(self.model, test_dataset, "test_dataset")
        with self._every_post():
            return super().get_test_dataloader(test_dataset)

    def image_counts(self) -> dict[str, int]:
        """How often an image was read, and how often it could not be, in all processes together."""
        counts = getattr(self.data_collator, "image_counts", None)
        if counts is None:
            return {}
        counts = self.accelerator.reduce(counts.clone().to(self.args.device), reduction="sum").tolist()
        return {"images_read": counts[0], "images_unreadable": counts[1]}

    def create_model_card(self, *args, **kwargs):
        """`train.py` writes the whole card before a push; the Trainer's own would take its place."""
        if not Path(self.args.output_dir, "README.md").is_file():
            super().create_model_card(*args, **kwargs)

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, token: str | None = None,
                    revision: str | None = None, private: bool | None = None, **kwargs) -> str | None:  # fmt: skip
        """Push what a model repo needs, as `hub_scripts.push_to_hub` does, and nothing else that output_dir holds.

        Returns:
            The URL of the commit; None on processes that do not push.
        """
        # That package is above this one, for people who call it; here it is needed for this alone.
        from hub_scripts.push_to_hub import push_model

        if not blocking:
            raise ValueError("blocking: expected true; the repo is written to a temporary folder, which ends with the call")
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return push_model(
            self.args.output_dir,
            self.hub_model_id,
            private=bool(self.args.hub_private_repo if private is None else private),
            revision=self.args.hub_revision if revision is None else revision,
            commit_message=commit_message,
            token=token,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the model and the processor. Saving never pushes: [`push_to_hub`] does, once the card is written."""
        super().save_model(output_dir, _internal_call=True)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """A push during training is refused with the arguments; this keeps it out whatever the strategy is."""

    def _save(self, output_dir: str | None = None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        # Written to a folder beside and then moved, so that an interrupted save never damages an earlier model.
        unfinished = folder / ".unfinished"
        with explain_write_errors("the model", self.args.output_dir):
            super()._save(str(unfinished), state_dict)
            if not self.args.should_save:
                return  # another process writes; this one only took part in gathering the weights
            # A pickle of the arguments, which nothing reads and which must not go to the Hub; the card lists them.
            (unfinished / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            for path in unfinished.iterdir():
                path.replace(folder / path.name)
            unfinished.rmdir()

    def _save_checkpoint(self, model, trial):
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with explain_write_errors(f"checkpoint-{self.state.global_step}", self.args.output_dir):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        # The Trainer goes by the files' times and would remove the new checkpoint where an old one's time lies ahead.
        if self.args.should_save:
            rotate(self._get_output_dir(trial), limit, self.state.global_step, self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str):
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_contents(Path(output_dir), self.args.world_size)
        # The first process then writes the state, which says that the checkpoint is complete: wait for the others' files.
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _image_dropout(self, model: nn.Module) -> Iterator[None]:
        """Images are left out (`image_dropout`) in the second half of training only.

        A post whose image alone tells the types can only be learned by heart without it. Left out from the start, images keep
        the model from finding what is learned late: which region a word of the text points at. Where the model that is kept may
        be one of the first half, they are left out from the start all the same, so that it knows posts without an image.
        """
        stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in self.callback_handler.callbacks)
        may_keep_an_early_model = stops_early or self.args.load_best_model_at_end or self.args.save_strategy == "best"
        leaves_images_out = may_keep_an_early_model or 2 * self.state.global_step >= self.state.max_steps
        parts = [module for module in model.modules() if hasattr(module, "leaves_images_out")]
        for part in parts:
            part.leaves_images_out = leaves_images_out
        try:
            yield
        finally:
            for part in parts:
                part.leaves_images_out = True

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        """One step, which stops at a loss or gradient that is not finite.

        Raises:
            NotFiniteError: with the ids of the batch's posts.
        """
        ids = inputs.pop("ids", None)
        with self._image_dropout(model):
            loss = super().training_step(model, inputs, num_items_in_batch)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # One number for both, so that the GPU is waited for once.
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
                f"posts: {', '.join(map(str, ids or ['?']))}. Look at these posts, lower the learning rate, or train in fp32."
            )
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Loss, label ids of the best path (B, W) with −100 at padding, and gold label ids (B, W).

        Of posts with `region_overlaps`, predictions and labels are pairs: beside the ids stands, at the first word of an entity
        and −100 elsewhere, whether the gold entity's region is right (1 or 0), and whether the gold entity is annotated (1).
        """
        inputs.pop("ids", None)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs.loss.detach() if labels is not None else None
        if prediction_loss_only:
            return loss, None, None
        word_mask = inputs["word_mask"]
        unwrapped = self.accelerator.unwrap_model(model)
        paths = padded_paths(unwrapped.decode(outputs, word_mask), word_mask, padding=-100)
        if "region_overlaps" not in inputs or not hasattr(unwrapped, "ground"):
            return loss, paths, labels
        gold = unwrapped.crf.gold_spans(labels, word_mask.bool())
        overlaps = entity_overlaps(inputs["region_overlaps"], gold)
        probabilities = unwrapped.ground(outputs, gold)
        chosen = probabilities.argmax(1, keepdim=True)
        # A model without the levels of the regions has the last column alone.
        chosen = chosen.where(chosen < probabilities.shape[1] - 1, overlaps.shape[1] - 1)
        is_right, is_annotated = torch.full_like(labels, -100), torch.full_like(labels, -100)
        post, first = gold[:, :2].unbind(1)
        is_right[post, first] = (overlaps.gather(1, chosen) >= MIN_IOU).squeeze(1).to(labels)
        is_annotated[post, first] = (overlaps[:, -1] != NOT_ANNOTATED).to(labels)
        return loss, (paths, is_right), (labels, is_annotated)


def _with_labels_of(model: nn.Module | None, rows, where: str):
    """Rows with the model's label ids, where both have names for them; see [`match_labels`]."""
    if isinstance(rows, dict):
        return {name: _with_labels_of(model, one, f"{where} {name}") for name, one in rows.items()}
    tags = (getattr(rows, "features", None) or {}).get("ner_tags")
    names = getattr(getattr(model, "config", None), "label_names", None)
    if names is None or not isinstance(getattr(tags, "feature", None), ClassLabel):
        return rows
    return match_labels(rows, names, where)


def _lengths(rows, column: str) -> list[int]:
    """Words of each post: the length column if the data has it, else counted."""
    columns = getattr(rows, "column_names", ())
    if column in columns:
        return list(rows[column])
    return [len(tokens) for tokens in (rows["tokens"] if "tokens" in columns else (row["tokens"] for row in rows))]


def _check_best_metric(args: MnerTrainingArguments, names: list[str]):
    """With several evaluation sets, each score has its set's name before it; `f1` alone is none of them."""
    metric = args.metric_for_best_model
    if metric is None or any(metric.removeprefix("eval_").startswith(f"{name}_") for name in names):
        return
    if args.load_best_model_at_end or args.early_stopping_patience is not None or args.save_strategy == "best":
        choices = ", ".join(f"{name}_{metric.removeprefix('eval_')}" for name in names)
        raise ValueError(f"metric_for_best_model: expected one of {choices} for these evaluation sets, got {metric}")
    args.metric_for_best_model = None  # no choice depends on it
