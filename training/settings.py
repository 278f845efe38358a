"""What makes a run: everything that changes its result. A folder with another run's results is refused by comparing these."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from datasets import Dataset, DatasetDict

from processors import REGION_FIELDS, ImageError, content_key

from .arguments import DataArguments, MnerTrainingArguments, ModelArguments

REGION_COLUMNS = (*REGION_FIELDS, "entity_boxes")
# Training arguments that change no weight: where and what is written, how it is logged, how fast evaluation is.
IRRELEVANT_PREFIXES = ("logging_", "log_", "hub_", "push_to_hub", "save_", "report_", "trackio_", "dataloader_", "ddp_")
IRRELEVANT = {
    "output_dir", "overwrite_output_dir", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "run_name", "project",
    "disable_tqdm", "per_device_eval_batch_size", "eval_accumulation_steps", "use_cpu", "local_rank", "debug",
    "skip_memory_metrics", "include_for_metrics", "include_num_input_tokens_seen", "prediction_loss_only", "batch_eval_metrics",
    "eval_do_concat_batches", "restore_callback_states_from_checkpoint", "label_names", "remove_unused_columns",
    "enable_jit_checkpoint", "length_column_name", "seeds",
}  # fmt: skip


def run_settings(
    model: ModelArguments,
    data: DataArguments,
    training: MnerTrainingArguments,
    hashes: dict[str, str],
    splits: DatasetDict,
    label_names: list[str],
) -> dict[str, Any]:
    """Everything that changes the result of a run, by name, as JSON.

    Evaluation during training is part of it: a data loader draws from the random state that dropout uses.

    Args:
        hashes: by split, the hash of its label file; where there is one, the path of the data does not matter.
        splits: the rows, whose images and regions are hashed.
    """
    settings = asdict(model) | asdict(data) | {"hashes": hashes, "labels": label_names}
    for name in ("data_path" if hashes else "hashes", "image_dir", "regions_file", "entity_boxes", "vision_cache",
                 "card_reference_scores"):  # fmt: skip
        del settings[name]
    arguments = {
        name: value
        for name, value in training.to_dict().items()
        if name not in IRRELEVANT and not name.startswith(IRRELEVANT_PREFIXES)
    }
    if training.load_best_model_at_end or training.save_strategy == "best":
        arguments |= {"save_strategy": training.save_strategy, "save_steps": training.save_steps}
    if training.dataloader_drop_last:
        arguments["dataloader_drop_last"] = True
    settings |= arguments | {"num_processes": training.world_size}
    settings["images"] = {split: images_hash(rows) for split, rows in splits.items()}
    settings["regions"] = {split: regions_hash(rows) for split, rows in splits.items()}
    return json.loads(json.dumps(settings, default=str))


def images_hash(rows: Dataset) -> str | None:
    """SHA-256 of the content of all images, in the order of the rows; None without an image column."""
    if "image" not in rows.column_names:
        return None
    digest = hashlib.sha256()
    for image in rows["image"]:
        try:
            digest.update(("none" if image is None else content_key(image)).encode())
        except ImageError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def regions_hash(rows: Dataset) -> str | None:
    """SHA-256 of all regions, in the order of the rows; None without regions."""
    names = [name for name in REGION_COLUMNS if name in rows.column_names]
    if not names:
        return None
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
        for value in rows[name]:
            digest.update(json.dumps(value).encode())
    return digest.hexdigest()
