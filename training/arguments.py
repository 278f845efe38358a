"""Arguments of `train.py`: a YAML file, and the command line, which overrides it."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments


@dataclass
class ModelArguments:
    """Which encoders, which levels."""

    text: str = field(
        default="google-bert/bert-base-cased",
        metadata={"help": "Text encoder: Hub name, folder, .safetensors file, or from_scratch."},
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer, if it is not the text encoder's own."})
    text_pretrained: bool = field(default=True, metadata={"help": "False: the encoder's shape with random weights."})
    text_config: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "For text: from_scratch: the shape of a small encoder: model_type (bert if unset), hidden_size …."},
    )
    tokenizer_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "For text: from_scratch: kind (word, char), min_count, lowercase."}
    )
    vision: str = field(default="resnet50", metadata={"help": "timm name of the vision backbone."})
    vision_pretrained: bool = field(default=True, metadata={"help": "Whether timm loads its weights."})
    vision_weights: str | None = field(default=None, metadata={"help": "safetensors file or folder, timm's names."})
    freeze_vision: bool = field(default=False, metadata={"help": "Train all but the vision backbone."})
    vision_cache: str | None = field(
        default=None,
        metadata={"help": "With freeze_vision: folder that keeps each image's features, for later epochs and runs."},
    )
    model_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Arguments of HamLearningConfig: switches, sizes, rounds."}
    )
    image_size: int = field(default=224, metadata={"help": "Side of the square the images are resized to."})
    region_config: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "name (anchors, grid, precomputed, object-detection), max_regions, options; or a list of names."},
    )
    max_length: int | None = field(default=None, metadata={"help": "Sub-tokens of a window of text."})
    model: str | None = field(
        default=None,
        metadata={"help": "A trained model (folder or Hub name) to evaluate or to go on training; the encoders are its own."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Train low-rank adapters (LoRA) of this rank in place of the text encoder's own weights."},
    )


@dataclass
class DataArguments:
    """Which posts."""

    data_path: str = field(
        default="synthetic",
        metadata={"help": "Label file or folder of any form, parquet, saved data set, Hub name, or synthetic."},
    )
    image_dir: str | None = field(default=None, metadata={"help": "Folder of the images of label files; default: beside them."})
    regions_file: str | None = field(default=None, metadata={"help": "JSONL of regions; default: regions.jsonl beside."})
    entity_boxes: str | None = field(
        default=None,
        metadata={"help": "JSONL, or a folder of XML, with entities' boxes; default: entity_boxes.jsonl or xml beside."},
    )
    use_images: bool = field(default=True, metadata={"help": "False: the text alone, all levels off."})
    synthetic_posts: list[int] = field(
        default_factory=lambda: [3000, 300, 300], metadata={"help": "Synthetic posts of train, validation and test."}
    )
    card_reference_scores: str | None = field(
        default=None,
        metadata={"help": 'Rows of other runs for the card: a JSON file {"name": {"f1": …, "f1_strict": …}}.'},
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the model for its card, as the Hub names it, e.g. apache-2.0."}
    )
    language: str | None = field(default=None, metadata={"help": "Code of the posts' language for the card, e.g. en."})
    label_scheme: str | None = field(
        default=None, metadata={"help": "Scheme of the labels (BIO, IOB1, IO, BIOES …); recognised if unset."}
    )
    format: str | None = field(
        default=None, metadata={"help": "Form of label files: conll, jsonl, json, csv, spacy, mnre; recognised if unset."}
    )
    columns: str | None = field(default=None, metadata={"help": "Columns of CoNLL files, e.g. word,_,label."})
    column_names: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "What columns are that have no usual name: {sentence_words: tokens}."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first posts of train only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first posts of validation only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first posts of test only."})


@dataclass
class MnerTrainingArguments(TrainingArguments):
    """transformers' own, with a learning rate for each part."""

    output_dir: str | None = field(default="outputs/run")
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start over in a folder that holds another run, whose checkpoints are removed."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate outside the encoders; learning_rate if unset."}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision backbone; learning_rate if unset."}
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "After training, fit the scores to validation: of entities with score s, a share s is right."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better F1."}
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Run once a seed, in folders seed-N of output_dir, and report mean and spread."}
    )
    hyperparameter_search: int | None = field(
        default=None, metadata={"help": "Before training, try so many settings and take those with the best validation F1."}
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read posts and images; if unset, one for four cores, at most 4."}
    )
    metric_for_best_model: str | None = field(default="f1")
    train_sampling_strategy: str = field(default="group_by_length")
    hub_strategy: str = field(default="end")

    def __post_init__(self):
        # The processor reads the rows, not the model: every column is needed.
        self.remove_unused_columns = False
        self.label_names = ["labels"]
        # A batch without an image or without `entity_boxes` leaves the grounding head without gradients.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True
        if self.dataloader_num_workers is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            self.dataloader_num_workers = min(4, (os.cpu_count() or 1) // (4 * processes))
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # only a transfer to a device gains by it, and torch would warn
        super().__post_init__()
        check_supported(self)


def check_supported(arguments: TrainingArguments):
    """Refuse, before training, options of the Trainer that would be ignored or give another result than they promise.

    Raises:
        ValueError: naming the option, and what to use in its place.
    """
    optimizer = getattr(arguments.optim, "value", arguments.optim)
    # transformers has two names for it: the older one is deprecated, and earlier versions lack the newer one.
    is_reentrant = any(
        getattr(arguments, name, None) and (getattr(arguments, f"{name}_kwargs", None) or {}).get("use_reentrant", False)
        for name in ("gradient_checkpointing", "activation_checkpointing")
    )
    refused = {
        "label_smoothing_factor: the Trainer smooths a softmax per word and leaves the CRF out of the loss; expected 0": (
            arguments.label_smoothing_factor
        ),
        f"optim {optimizer}: it groups the parameters itself, so that the learning rates by part are lost; use adamw_torch": (
            optimizer.startswith(("galore", "lomo", "adalomo", "apollo"))
        ),
        "neftune_noise_alpha: the embeddings of the text also embed the regions' labels, whose noise has no right scale; "
        "leave it unset": arguments.neftune_noise_alpha is not None,
        "prediction_loss_only: it leaves no predictions, so no F1; leave it off": arguments.prediction_loss_only,
        "eval_do_concat_batches: F1 needs the posts of all batches; expected true": not arguments.eval_do_concat_batches,
        "include_for_metrics: the metric reads labels alone, and inputs of several widths cannot be gathered; "
        "expected loss or nothing": set(arguments.include_for_metrics or []) - {"loss"},
        f"hub_strategy {getattr(arguments.hub_strategy, 'value', arguments.hub_strategy)}: a push during training would publish "
        "checkpoints and whatever else output_dir holds; expected end": arguments.push_to_hub and arguments.hub_strategy != "end",
        "checkpointing of activations: use_reentrant fails on several processes, where parameters are used twice a step; "
        "expected {use_reentrant: false}": is_reentrant and arguments.world_size > 1,
        "early_stopping_patience: it counts evaluations, but eval_strategy is no; set eval_strategy to epoch or steps": (
            getattr(arguments, "early_stopping_patience", None) is not None and arguments.eval_strategy == "no"
        ),
    }
    for message, is_refused in refused.items():
        if is_refused:
            raise ValueError(message)


# The `model_config` of the plain text tagger.
NO_LEVELS = {"use_global": False, "use_objects": False, "use_spatial": False, "use_semantic": False}
ARGUMENTS = (ModelArguments, DataArguments, MnerTrainingArguments)
# YAML reads 1e-5, which has no point, as a string.
SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, MnerTrainingArguments]:
    """Parse `[config.yaml] [--name value …]`; the command line overrides the file, a dictionary key by key.

    Raises:
        ValueError: an unknown argument, with the nearest one that is known, or a value of the wrong kind.
    """
    parser = HfArgumentParser(ARGUMENTS)
    if "--help" in arguments or "-h" in arguments:
        parser.parse_args(["--help"])
    values = merge_config_and_cli(arguments)
    hints = {name: hint for kind in ARGUMENTS for name, hint in get_type_hints(kind).items()}
    check_keys("arguments", values, {name for kind in ARGUMENTS for name in kind.__dataclass_fields__})
    for name, value in values.items():
        _check_kind(name, value, hints[name])
    return parser.parse_dict(values)


def check_keys(name: str, keys: Iterable[str], known: set[str]):
    """Raises `ValueError` for a key that is not known, with the nearest one that is."""
    for key in keys:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1, cutoff=0.5)
            some = ", ".join(sorted(known)[:50]) + (", …" if len(known) > 50 else "")
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {some}"
            raise ValueError(f"{name}: unknown key {key!r}; {advice}")


def _kinds(hint: Any) -> set[Any]:
    """The types that a union allows; a type alone is one."""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def _check_kind(name: str, value: Any, hint: Any):
    """Raises `ValueError` for a value of another kind than the argument has, which the dataclasses would take as it is."""
    kinds = _kinds(hint)
    is_bool, is_number = isinstance(value, bool), isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and type(None) in kinds:
        return
    kinds -= {type(None)}
    if kinds == {bool}:
        expected = None if is_bool else "true or false"
    elif kinds == {int}:
        expected = None if is_number and value == int(value) else "a whole number"
    elif kinds <= {int, float}:
        expected = None if is_number else "a number"
    elif {get_origin(kind) for kind in kinds} == {list} and name != "seeds":  # train.py says what is wrong with those
        expected = None if isinstance(value, list) else "a list"
    elif {get_origin(kind) for kind in kinds} == {dict} and name != "region_config":  # may also be a name or a list
        expected = None if isinstance(value, dict) else "a dictionary"
    else:
        return
    if expected:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def merge_config_and_cli(arguments: list[str]) -> dict[str, Any]:
    """The values of file and command line by name, without the defaults of the other arguments."""
    values: dict[str, Any] = {}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        path = Path(arguments[0])
        if not path.is_file():
            raise ValueError(f"there is no config {path}")
        values = yaml.safe_load(path.read_text()) or {}
        arguments = arguments[1:]
    overrides = {}
    places = [place for place, argument in enumerate(arguments) if argument.startswith("--")]
    if arguments and (not places or places[0] != 0):
        raise ValueError(f"expected a config.yaml first and then --name value, got {arguments[0]!r}")
    for place, following in zip(places, [*places[1:], len(arguments)], strict=False):
        name, equals, value = arguments[place][2:].partition("=")
        texts = ([value] if equals else []) + arguments[place + 1 : following]
        key = name.replace("-", "_")
        read = [_parse_value(key, text) for text in texts]
        overrides[key] = True if not read else read[0] if len(read) == 1 else read
        if isinstance(values.get(key), list) and not isinstance(overrides[key], list | dict | None):
            overrides[key] = [overrides[key]]
    for key, value in overrides.items():
        # The options of another region extractor replace those of the file.
        merged = isinstance(value, dict) and isinstance(values.get(key), dict) and "name" not in value
        values[key] = values[key] | value if merged else value
    return {name: _normalise(name, value) for name, value in values.items()}


def _is_text(name: str) -> bool:
    """Whether an argument is text and nothing else, so that `1e5` and `7` stay names."""
    hint = next((hints[name] for hints in map(get_type_hints, ARGUMENTS) if name in hints), None)
    kinds = _kinds(hint) - {type(None)}
    return bool(kinds) and all(isinstance(kind, type) and issubclass(kind, str | Enum) for kind in kinds)


def _parse_value(name: str, text: str) -> Any:
    """Read a value of the command line as the file would be read: numbers, true and false, lists, dictionaries."""
    return text if _is_text(name) and text != "null" else yaml.safe_load(text)


def _normalise(name: str, value: Any) -> Any:
    """Undo surprises of YAML: `no` is read as False, and 3e-5 as a string."""
    if name.endswith("_strategy") and value is False:
        return "no"
    if _is_text(name):
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return _numbers(value)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value
