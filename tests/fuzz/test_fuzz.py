"""A short run of the fuzz; the long one is `python -m tests.fuzz.fuzz --inputs 20000 --seed 1`."""

from __future__ import annotations

import importlib

import pyarrow as pa
import pytest

from .fuzz import SHARES, fuzz


def test_five_hundred_mutated_inputs(tmp_path):
    pytest.importorskip("ray", reason="predict.py needs Ray")
    outcomes, faults = fuzz(500, 0, tmp_path)
    assert not faults, "\n".join(faults)
    # Neither all refused nor all accepted: the mutations reach what lies behind the checks.
    assert all(outcomes[target]["result"] > 3 and outcomes[target]["refused"] > 3 for target in SHARES)


def test_half_a_character_in_the_label_of_a_region_is_written():
    """Found by the fuzz: it ended the bulk run that came upon the post."""
    tagger = pytest.importorskip("ray", reason="bulk/ needs Ray") and importlib.import_module("bulk.tagger")
    region = {"box": {"xmin": 0.0, "ymin": 0.0, "xmax": 1.0, "ymax": 1.0}, "label": "\udfff dog", "score": 0.5}
    entity = {"entity_group": "PER", "score": 0.5, "word": "\ud800", "start": 0, "end": 1, "region": region}
    row = tagger._row({"entities": [entity, entity | {"region": None}], "relevance": None}, [])
    written = pa.array([row["entities"]], type=tagger.COLUMNS["entities"]).to_pylist()[0]
    assert (written[0]["word"], written[0]["region"]["label"], written[1]["region"]) == ("\ufffd", "\ufffd dog", None)
