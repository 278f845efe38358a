"""A short run of the fuzz; the long one is `python -m tests.fuzz.fuzz --inputs 20000 --seed 1`."""

from __future__ import annotations

import pytest

from .fuzz import SHARES, fuzz


def test_five_hundred_mutated_inputs(tmp_path):
    pytest.importorskip("ray", reason="predict.py needs Ray")
    outcomes, faults = fuzz(500, 0, tmp_path)
    assert not faults, "\n".join(faults)
    # Neither all refused nor all accepted: the mutations reach what lies behind the checks.
    assert all(outcomes[target]["result"] > 3 and outcomes[target]["refused"] > 3 for target in SHARES)
