"""Arguments of `train.py`: a YAML file, and the command line over it."""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

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
        metadata={"help": "With freeze_vision: folder that keeps each picture's features, for later epochs and runs."},
    )
    model_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Arguments of HamLearningConfig: switches, sizes, rounds."}
    )
    image_size: int = field(default=224, metadata={"help": "Side of the square the pictures are resized to."})
    region_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "name (grid, precomputed, object-detection), max_regions, options."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Sub-tokens of a window of text."})


@dataclass
class DataArguments:
    """Which posts."""

    data_path: str = field(
        default="synthetic", metadata={"help": "CoNLL file or folder, saved data set, Hub name, or synthetic."}
    )
    image_dir: str | None = field(default=None, metadata={"help": "Images of CoNLL posts; default: images beside them."})
    regions_file: str | None = field(default=None, metadata={"help": "JSONL of regions; default: regions.jsonl beside."})
    use_images: bool = field(default=True, metadata={"help": "False: the text alone, all levels off."})
    synthetic_posts: list[int] = field(
        default_factory=lambda: [3000, 300, 300], metadata={"help": "Synthetic posts of train, validation and test."}
    )
    card_reference_scores: str | None = field(
        default=None,
        metadata={"help": 'Rows of other runs for the card: a JSON file {"name": {"f1": …, "f1_strict": …}}.'},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first posts of train only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first posts of validation only."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first posts of test only."})


@dataclass
class MnerTrainingArguments(TrainingArguments):
    """transformers' own, with a learning rate for each part."""

    output_dir: str | None = field(default="outputs/run")
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write over a run of another model or data, whose checkpoints are removed."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate outside the encoders; learning_rate if unset."}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision backbone; learning_rate if unset."}
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "After training, scale the scores so that on validation they are as often right as they say."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better F1."}
    )
    metric_for_best_model: str | None = field(default="f1")
    train_sampling_strategy: str = field(default="group_by_length")
    # A push in the middle of training would put a pickle of the arguments on the Hub.
    hub_strategy: str = field(default="end")

    def __post_init__(self):
        # Rows go to the processor, not to the model: every column is needed.
        self.remove_unused_columns = False
        self.label_names = ["labels"]
        # A batch without an image leaves the image side without gradients.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True
        super().__post_init__()


# The `model_config` of the plain text tagger.
NO_LEVELS = {"use_global": False, "use_objects": False, "use_spatial": False, "use_semantic": False}
ARGUMENTS = (ModelArguments, DataArguments, MnerTrainingArguments)
# YAML takes 1e-5, without a point, for a string.
SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, MnerTrainingArguments]:
    """`[config.yaml] [--name value …]`: what the command line says goes over the file.

    Raises:
        ValueError: a name that no argument has.
    """
    parser = HfArgumentParser(ARGUMENTS)
    if "--help" in arguments or "-h" in arguments:
        parser.parse_args(["--help"])
    return parser.parse_dict(merge_config_and_cli(arguments))


def merge_config_and_cli(arguments: list[str]) -> dict[str, Any]:
    """What file and command line say, by name, without the defaults of what they do not say."""
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
        raise ValueError(f"{arguments[0]!r}: a config.yaml comes first, then --name value")
    for place, following in zip(places, [*places[1:], len(arguments)], strict=False):
        name, equals, value = arguments[place][2:].partition("=")
        given = ([value] if equals else []) + arguments[place + 1 : following]
        key = name.replace("-", "_")
        read = [_given(key, text) for text in given]
        overrides[key] = True if not read else read[0] if len(read) == 1 else read
        if isinstance(values.get(key), list) and not isinstance(overrides[key], list):
            overrides[key] = [overrides[key]]
    for key, value in overrides.items():
        # Another extractor brings options of its own.
        merged = isinstance(value, dict) and isinstance(values.get(key), dict) and "name" not in value
        values[key] = values[key] | value if merged else value
    return {name: _read(name, value) for name, value in values.items()}


def _is_text(name: str) -> bool:
    """Whether an argument holds text and nothing else, so that `1e5` and `7` are names as well."""
    hint = next((hints[name] for hints in map(get_type_hints, ARGUMENTS) if name in hints), None)
    kinds = set(get_args(hint) or (hint,)) - {type(None)}
    return bool(kinds) and all(isinstance(kind, type) and issubclass(kind, str | Enum) for kind in kinds)


def _given(name: str, text: str) -> Any:
    """YAML's own reading of a value on the command line, as in the file: numbers, true and false, lists, dictionaries."""
    return text if _is_text(name) and text != "null" else yaml.safe_load(text)


def _read(name: str, value: Any) -> Any:
    """What YAML reads otherwise than people mean: `no` as false, 3e-5 as a string."""
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
