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


# One post with three annotated entities and one that is not; one that nobody looked at; one where a wrong entity is found.
GOLD = [["B-PER", "I-PER", "O", "B-PER", "B-PER", "O", "B-PER"], ["B-PER"], ["O", "B-PER"]]
FOUND = [["B-PER", "I-PER", "O", "B-LOC", "B-PER", "O", "B-PER"], ["B-PER"], ["B-PER", "B-PER"]]
SEEN = [0.0, 0.0, 0.5, 1.0]
BOXES = [[[SEEN, [0.6, 0, 1, 1]], [], [SEEN], None], None, [[]]]
REGIONS = [[[0.6, 0, 1, 0.9], None, [0.4, 0, 1, 1], SEEN], [SEEN], [SEEN, None]]


def test_grounded_entities_are_counted_as_the_papers_do():
    scores = MnerMetric().compute(predictions=FOUND, references=GOLD, entity_boxes=BOXES, regions=REGIONS)
    # Of 4 annotated gold entities all are found, 3 with the right region; one of these has another type. 5 predictions count.
    assert (scores["grounding_gold_total"], scores["grounding_accuracy_total"], scores["grounding_accuracy"]) == (4, 4, 0.75)
    assert (scores["eeg_precision"], scores["eeg_recall"], scores["eeg_f1"]) == (0.6, 0.75, pytest.approx(6 / 9))
    assert (scores["gmner_precision"], scores["gmner_recall"], scores["gmner_f1"]) == (0.4, 0.5, pytest.approx(4 / 9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entity_boxes": BOXES}, "expected entity_boxes and regions, got one of them"),
        ({"entity_boxes": BOXES, "regions": [REGIONS[0][:1], *REGIONS[1:]]}, "regions, post 0: .* its 4 entities, got 1"),
        ({"entity_boxes": [BOXES[0][:2], *BOXES[1:]], "regions": REGIONS}, "entity_boxes, post 0: .* its 4 entities, got 2"),
    ],
)
def test_boxes_and_regions_have_to_fit_the_entities(given, message):
    with pytest.raises(ValueError, match=message):
        MnerMetric().compute(predictions=FOUND, references=GOLD, **given)


def test_the_trainers_pairs_give_the_same_scores():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]

    def ids(posts):
        return np.array([[names.index(label) for label in post] + [-100] * (7 - len(post)) for post in posts])

    is_annotated, is_right = np.full((3, 7), -100), np.full((3, 7), -100)
    is_annotated[0, [0, 3, 4, 6]], is_right[0, [0, 3, 4, 6]] = [1, 1, 1, 0], [1, 1, 0, 0]
    is_annotated[1, 0], is_right[1, 0] = 0, 0
    is_annotated[2, 1], is_right[2, 1] = 1, 1
    compute = ComputeMnerMetrics(names)
    scores = compute(EvalPrediction(predictions=(ids(FOUND), is_right), label_ids=(ids(GOLD), is_annotated)))
    expected = MnerMetric().compute(predictions=FOUND, references=GOLD, entity_boxes=BOXES, regions=REGIONS)
    assert {name: scores[name] for name in expected} == expected
