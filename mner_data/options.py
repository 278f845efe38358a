"""Options of the command line that say how data are read, for every command that reads them."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import yaml

from .readers import FORMATS, DataError

logger = logging.getLogger(__name__)

# All of them, those of train.py too.
READING_OPTIONS = ("image_dir", "regions_file", "entity_boxes", "label_scheme", "format", "columns", "column_names")


def add_reading_options(parser: argparse.ArgumentParser):
    """Add `--format`, `--columns` and `--column_names`; see `readers.read_posts`."""
    parser.add_argument("--format", choices=FORMATS, help="form of the label files; by default it is recognised")
    parser.add_argument("--columns", help="columns of CoNLL files, e.g. word,_,label; by default the first and the last")
    parser.add_argument(
        "--column_names", help="what columns are that have no usual name, e.g. '{sentence_words: tokens, photo_file: image}'"
    )


def parse_column_names(text: str | None) -> dict[str, str]:
    """The fields of columns, by the columns' names.

    Raises:
        DataError: the text is not a dictionary of names.
    """
    try:
        names = yaml.safe_load(text or "{}")
    except yaml.YAMLError as error:
        raise DataError(f"--column_names: expected {{column: field}}, got {text!r}: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in [*names, *names.values()]):
        raise DataError(f"--column_names: expected {{column: field}}, got {text!r}")
    return names


def warn_of_unused_options(options: Any):
    """Warn of the options of `--data_path synthetic` that say how data are read, which are not used there.

    Args:
        options: an object with the options as attributes.
    """
    if given := [f"--{name}" for name in READING_OPTIONS if getattr(options, name, None)]:
        logger.warning("%s: not used, --data_path synthetic makes posts of its own", ", ".join(given))
