"""The metric: labels that are not BIO are refused, ids become labels, batches become one score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from training.metric import ComputeMnerMetrics, MnerMetric

LABELS = ["O", "B-PER", "I-PER"]


@pytest.mark.parametrize("wrong", ["S-PER", "E-PER", "L-PER", "U-PER", "b-per", "B_PER", "PER", "B-", "I- ", "o", "", "-PER"])
@pytest.mark.parametrize("where", ["references", "predictions"])
def test_labels_that_are_not_bio_are_refused(wrong, where):
    posts = {"references": [["B-PER", "O"], ["O"]], "predictions": [["B-PER", "O"], ["O"]]}
    posts[where] = [["B-PER", "O"], [wrong]]
    with pytest.raises(ValueError, match=f"{where}: expected BIO labels .* got {wrong!r}"):
        MnerMetric().compute(**posts)


def test_types_may_hold_any_text():
    posts = [["B-creative work", "I-creative work", "B-a-b", "I-a-b", "B-人"]]
    assert MnerMetric().compute(predictions=posts, references=posts)["gold_total"] == 3


def test_padding_is_not_scored():
    labels, predictions = np.array([[1, 2, -100], [0, -100, -100]]), np.array([[1, 2, 1], [1, 1, 1]])
    scores = ComputeMnerMetrics(LABELS, "abc")(EvalPrediction(predictions=predictions, label_ids=labels))
    assert (scores["precision"], scores["recall"], scores["num_labelled_words"]) == (0.5, 1.0, 3)
    assert scores["label_sha256"] == "abc"


def test_batches_are_scored_together_and_once():
    compute = ComputeMnerMetrics(LABELS)
    first = EvalPrediction(predictions=torch.tensor([[1, 0]]), label_ids=torch.tensor([[1, 0]]))
    second = EvalPrediction(predictions=torch.tensor([[0]]), label_ids=torch.tensor([[1]]))
    for _ in range(2):
        assert compute(first, compute_result=False) == {}
        scores = compute(second, compute_result=True)
        assert (scores["recall"], scores["gold_total"]) == (0.5, 2)
