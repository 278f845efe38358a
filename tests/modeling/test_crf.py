"""The CRF against enumeration of every path."""

from __future__ import annotations

import itertools

import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_hamlearning import crf as crf_module
from modeling_hamlearning.crf import HamLearningCRF

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CASES = [(labels, words) for labels in (["O", "B-X", "I-X"], LABELS, ["I-X", "B-X", "O", "POS"]) for words in (1, 2, 4)]


@pytest.fixture(autouse=True, params=[64, 0], ids=["few labels", "many labels"])
def few_labels(request, monkeypatch):
    """Every test holds for the ways that many labels take as well."""
    monkeypatch.setattr(crf_module, "FEW_LABELS", request.param)


def make_crf(labels: list[str], seed: int = 0, scale: float = 2.0, learned: bool = True) -> HamLearningCRF:
    generator = torch.Generator().manual_seed(seed)
    crf = HamLearningCRF(labels, learned=learned)
    if learned:
        with torch.no_grad():
            for scores in crf.transition_scores.parameters():
                scores.copy_(scale * torch.randn(scores.shape, generator=generator))
    return crf


def make_emissions(*shape: int, seed: int = 1, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def is_legal(path: tuple[int, ...], labels: list[str]) -> bool:
    names = ["O", *(labels[index] for index in path)]
    return all(not to.startswith("I-") or source in (f"B-{to[2:]}", f"I-{to[2:]}") for source, to in itertools.pairwise(names))


def enumerate_paths(crf: HamLearningCRF, emissions: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Score in fp64 of every legal path of one post, emissions (W, L)."""
    emissions = emissions.detach().double()
    zero = torch.zeros(len(crf.label_names), len(crf.label_names), dtype=torch.double)
    start, transitions, end = (
        tuple(scores.detach().double() for scores in crf.transition_scores())
        if crf.transition_scores is not None
        else (zero[0], zero, zero[0])
    )
    scores = {}
    for path in itertools.product(range(len(crf.label_names)), repeat=len(emissions)):
        if is_legal(path, crf.label_names):
            words = sum(emissions[word, label] for word, label in enumerate(path))
            steps = sum(transitions[source, to] for source, to in itertools.pairwise(path))
            scores[path] = float(start[path[0]] + words + steps + end[path[-1]])
    return scores


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("labels, num_words", CASES)
@pytest.mark.parametrize("scale", [0.5, 3.0, 40.0])
def test_partition_score_path_and_marginals_equal_enumeration(labels, num_words, scale, learned):
    crf = make_crf(labels, scale=scale, learned=learned)
    # Padding of another length than the words, filled with what must not matter.
    lengths = sorted({1, num_words})
    emissions = make_emissions(len(lengths), num_words + 2, len(labels), scale=scale)
    mask = torch.arange(num_words + 2)[None] < torch.tensor(lengths)[:, None]
    emissions[~mask] = 1e4
    partition = crf.log_partition(emissions, mask)
    decoded = crf.decode(emissions, mask)
    marginals = crf.marginals(emissions, mask)
    for post, length in enumerate(lengths):
        scores = enumerate_paths(crf, emissions[post, :length])
        values = torch.tensor(list(scores.values()), dtype=torch.double)
        expected = torch.logsumexp(values, 0)
        torch.testing.assert_close(partition[post].double(), expected, rtol=1e-5, atol=1e-4)
        assert tuple(decoded[post]) == max(scores, key=scores.get)
        by_label = torch.zeros(length, len(labels), dtype=torch.double)
        for path, probability in zip(scores, (values - expected).exp(), strict=True):
            for word, label in enumerate(path):
                by_label[word, label] += probability
        torch.testing.assert_close(marginals[post, :length].double(), by_label, rtol=0, atol=1e-4 if scale > 10 else 1e-5)
        assert not marginals[post, length:].any()
        for path in itertools.islice(scores, 25):
            labels_of_path = torch.full((1, num_words + 2), -100)
            labels_of_path[0, :length] = torch.tensor(path)
            score = crf.score(emissions[post : post + 1], labels_of_path, mask[post : post + 1])
            torch.testing.assert_close(score.item(), scores[path], rtol=1e-5, atol=1e-4)
            if learned:
                loss = crf(emissions[post : post + 1], labels_of_path, mask[post : post + 1]).item()
                assert loss == pytest.approx(float(expected) - scores[path], rel=1e-5, abs=1e-3 if scale > 10 else 1e-4)


def probability_of_span(scores: dict[tuple[int, ...], float], first: int, span: list[int], inside: int) -> float:
    """Share of the enumerated paths that have just this entity from that word on."""
    after = first + len(span)
    total = torch.logsumexp(torch.tensor(list(scores.values()), dtype=torch.double), 0)
    return sum(
        (score - total).exp().item()
        for path, score in scores.items()
        if list(path[first:after]) == span and path[after : after + 1] != (inside,)
    )


@pytest.mark.parametrize("learned", [True, False])
def test_span_probability_equals_enumeration(learned):
    crf = make_crf(LABELS, learned=learned)
    emissions = make_emissions(1, 4, 5)
    mask = torch.ones(1, 4, dtype=torch.bool)
    scores = enumerate_paths(crf, emissions[0])
    for first, last in itertools.combinations_with_replacement(range(4), 2):
        for begin, inside in ((1, 2), (3, 4)):
            expected = probability_of_span(scores, first, [begin] + [inside] * (last - first), inside)
            spans = torch.tensor([[0, first, last, begin, inside]])
            # The post is longer than it looks: padding must not enter the span's end.
            padded = torch.cat([emissions, torch.full((1, 3, 5), 50.0)], dim=1)
            padded_mask = torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
            assert crf.span_probabilities(emissions, mask, spans).item() == pytest.approx(expected, abs=1e-5)
            assert crf.span_probabilities(padded, padded_mask, spans).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("labels", [LABELS, ["I-X", "B-Y", "O", "B-X"]])
def test_the_spans_of_paths_are_their_entities(labels):
    crf = make_crf(labels)
    emissions = make_emissions(200, 7, len(labels))
    mask = torch.arange(7) < (torch.arange(200) % 8)[:, None]
    paths = torch.ones(200, 7, dtype=torch.long)  # begin labels at padding as well, where it must not count
    expected = []
    for post, path in enumerate(crf.decode(emissions, mask)):
        paths[post, : len(path)] = torch.tensor(path, dtype=torch.long)
        for kind, first, last in get_entities([labels[label] for label in path]):
            begin = labels.index(f"B-{kind}")
            inside = labels.index(f"I-{kind}") if f"I-{kind}" in labels else begin
            expected.append([post, first, last, begin, inside])
    assert crf.spans(paths, mask).tolist() == expected and len(expected) > 200
    assert crf.spans(paths[:, :0], mask[:, :0]).tolist() == []


@pytest.mark.parametrize("learned", [True, False])
def test_entities_of_a_low_probability_are_left_out(learned):
    crf = make_crf(LABELS, learned=learned, scale=1.0)
    emissions = make_emissions(60, 6, 5, scale=1.5)
    mask = torch.arange(6) < (torch.arange(60) % 7)[:, None]
    plain, kept = crf.decode(emissions, mask), crf.decode(emissions, mask, min_probability=0.4)
    dropped = 0
    for post, (path, found) in enumerate(zip(plain, kept, strict=True)):
        expected = list(path)
        scores = enumerate_paths(crf, emissions[post, : len(path)]) if path else {}
        for kind, first, last in get_entities([LABELS[label] for label in path]):
            share = probability_of_span(scores, first, path[first : last + 1], LABELS.index(f"I-{kind}"))
            assert abs(share - 0.4) > 1e-4, "too near to tell: choose another seed"
            if share < 0.4:
                expected[first : last + 1] = [0] * (last + 1 - first)
                dropped += 1
        assert found == expected
    assert 8 < dropped < sum(len(get_entities([LABELS[label] for label in path])) for path in plain) - 8
    with pytest.raises(ValueError, match="becomes O, which the labels"):
        make_crf(["B-X", "I-X"]).decode(emissions[..., :2], mask, min_probability=0.4)


@pytest.mark.parametrize("learned", [True, False])
def test_every_decoded_path_is_legal_whatever_the_emissions(learned):
    crf = make_crf(LABELS, learned=learned)
    for scale in (1.0, 1e3, 1e6):
        emissions = make_emissions(64, 12, 5, scale=scale)
        emissions[..., [2, 4]] += scale  # the inside labels look best everywhere
        mask = torch.arange(12)[None] < torch.arange(64)[:, None] % 13
        paths = crf.decode(emissions, mask)
        assert [len(path) for path in paths] == mask.sum(1).tolist()
        assert all(is_legal(tuple(path), LABELS) for path in paths)


class Sizes(TorchDispatchMode):
    """The number of elements of every tensor that is made in it, as `seen`."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.seen.extend(one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor))
        return result


def test_the_spans_of_a_long_post_take_no_memory_by_spans_times_words():
    """A post of 100,000 words took more than there was."""
    words, crf = 500, make_crf(LABELS)
    spans = torch.tensor([(0, first, first + 1, 1, 2) for first in range(0, words, 2)])
    emissions, mask = make_emissions(1, words, len(LABELS)), torch.ones(1, words, dtype=torch.bool)
    with Sizes() as sizes:
        crf.span_probabilities(emissions, mask, spans)
    assert max(sizes.seen) <= words * len(LABELS) ** 2


def test_orphan_inside_labels_are_read_as_begin():
    crf = make_crf(LABELS)
    labels = torch.tensor([[2, 2, 4, 0, 4, 4, 1, 4], [0, 2, -100, -100, -100, -100, -100, -100]])
    repaired = crf.orphans_to_begin(labels, labels >= 0)
    assert repaired.tolist() == [[1, 2, 3, 0, 3, 4, 1, 3], [0, 1, 0, 0, 0, 0, 0, 0]]
    emissions, mask = make_emissions(2, 8, 5), labels >= 0
    assert torch.equal(crf(emissions, labels, mask), crf(emissions, repaired.where(mask, -100), mask))
    assert crf(emissions, labels, mask).isfinite().all()


def test_a_word_without_a_label_is_skipped():
    crf = make_crf(LABELS)
    emissions = make_emissions(1, 5, 5)
    labels = torch.tensor([[-100, 1, -100, 2, 0]])
    kept = [1, 3, 4]
    expected = crf(emissions[:, kept], labels[:, kept], torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(crf(emissions, labels, torch.ones(1, 5, dtype=torch.bool)), expected)


def test_posts_without_words_cost_nothing_and_get_no_label():
    crf = make_crf(LABELS)
    emissions, mask = make_emissions(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)
    assert crf(emissions, torch.full((2, 3), -100), mask).tolist() == [0, 0]
    assert crf.decode(emissions, mask) == [[], []]
    assert crf.decode(emissions[:, :0], mask[:, :0]) == [[], []]
    assert crf(emissions[:, :0], torch.zeros(2, 0, dtype=torch.long), mask[:, :0]).tolist() == [0, 0]


def test_gradient_is_expected_minus_observed_count():
    """The gradient of the loss by an emission is its marginal less the gold indicator: also checks the backward pass."""
    crf = make_crf(LABELS)
    emissions = make_emissions(3, 6, 5).requires_grad_()
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 1])[:, None]
    labels = torch.tensor([[0, 1, 2, 0, 3, 4], [3, 4, 4, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    crf(emissions, labels, mask).sum().backward()
    observed = torch.nn.functional.one_hot(labels, 5) * mask[..., None]
    torch.testing.assert_close(emissions.grad, crf.marginals(emissions, mask).detach() - observed, rtol=0, atol=1e-5)
    assert all(parameter.grad.isfinite().all() for parameter in crf.parameters())


def test_bf16_emissions_are_summed_in_fp32():
    crf = make_crf(LABELS)
    emissions = make_emissions(4, 64, 5).bfloat16()
    mask = torch.ones(4, 64, dtype=torch.bool)
    labels = torch.zeros(4, 64, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = crf(emissions, labels, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, crf(emissions.float(), labels, mask), rtol=1e-6, atol=1e-4)


def test_an_inside_label_without_its_begin_is_refused():
    with pytest.raises(ValueError, match="B-LOC"):
        HamLearningCRF(["O", "I-LOC"])


def test_probabilities_hold_over_long_posts():
    """Fp32 sums of hundreds of words would leave marginals above 1."""
    crf = make_crf(LABELS)
    emissions, mask = make_emissions(2, 500, 5, scale=10.0), torch.ones(2, 500, dtype=torch.bool)
    marginals = crf.marginals(emissions, mask)
    torch.testing.assert_close(marginals.sum(-1), torch.ones(2, 500), rtol=0, atol=1e-5)
    spans = torch.tensor([[0, place, place, 1, 2] for place in range(500)])
    assert (crf.span_probabilities(emissions, mask, spans) <= marginals[0, :, 1] + 1e-5).all()


def test_many_labels_give_what_few_give(monkeypatch):
    """Sums, their gradients, paths and probabilities of 300 types, the ways for many labels beside those for few."""
    labels = ["O", *(f"{prefix}-T{place}" for place in range(300) for prefix in "IB")]
    emissions, gold = make_emissions(3, 7, len(labels)), torch.arange(0, 42, 2).reshape(3, 7)
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    results = []
    for few in (10_000, 64):
        monkeypatch.setattr(crf_module, "FEW_LABELS", few)
        crf, scores = make_crf(labels), emissions.clone().requires_grad_()
        loss = crf(scores, gold, mask)
        loss.sum().backward()
        paths = crf.decode(emissions, mask)
        spans = torch.tensor([[0, 1, 2, 4, 3], [0, 0, 0, 2, 1], [1, 0, 1, 10, 9]])
        gradients = [scores.grad, *(parameter.grad for parameter in crf.parameters())]
        results.append([loss, *gradients, crf.marginals(emissions, mask), crf.span_probabilities(emissions, mask, spans)])
        results[-1].append(torch.tensor(sum(paths, [])))
    for of_few, of_many in zip(*results, strict=True):
        torch.testing.assert_close(of_many, of_few, rtol=1e-5, atol=1e-5)


def test_equal_paths_are_told_apart_alike_whatever_the_rest_of_the_batch_is():
    """All paths of the first post are equal; the second post's scores leave more labels to look at."""
    crf = make_crf(LABELS, scale=0.0)
    emissions = torch.cat([torch.zeros(1, 5, 5), make_emissions(1, 5, 5)])
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert crf.decode(emissions, mask)[0] == crf.decode(emissions[:1], mask[:1])[0] == [0] * 5


def test_a_thousand_types_are_trained_and_decoded_without_a_table_of_pairs_for_each_word():
    crf = HamLearningCRF(["O", *(f"{prefix}-T{place}" for place in range(1000) for prefix in "BI")])
    emissions, mask = make_emissions(8, 20, 2001).requires_grad_(), torch.ones(8, 20, dtype=torch.bool)
    if crf_module.FEW_LABELS:
        with Sizes() as sizes:
            crf(emissions, torch.zeros(8, 20, dtype=torch.long), mask).sum().backward()
            crf.decode(emissions, mask)
        # The table of all pairs is there once, not once a post.
        assert max(sizes.seen) <= 2001**2
