"""Linear-chain conditional random field over the words of a post, legal BIO by construction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# With more labels than this, sums and maxima over all pairs of them are taken in ways that cost less and give the same.
FEW_LABELS = 64


def _bio(label: str) -> tuple[str, str]:
    """Prefix and type; a label outside BIO counts as an O of its own."""
    prefix, _, kind = label.partition("-")
    return (prefix, kind) if prefix in ("B", "I") and kind else ("O", label)


def bio_constraints(label_names: list[str]) -> dict[str, Tensor]:
    """What BIO allows, in fp32: 0 for a label that may start a post (L,) or follow another (L, L), −inf otherwise: I-X
    comes only after B-X or I-X; and the labels that begin and continue what a label belongs to, (L,) each: B-X for I-X and
    I-X for B-X, where there is one, itself otherwise.
    """
    labels = [_bio(label) for label in label_names]
    for prefix, kind in labels:
        if prefix == "I" and ("B", kind) not in labels:
            raise ValueError(f"label I-{kind} can never begin an entity: add B-{kind} to the labels {label_names}")
    may_start = torch.tensor([prefix != "I" for prefix, _ in labels])
    may_follow = torch.tensor([[to[0] != "I" or (source[0] != "O" and source[1] == to[1]) for to in labels] for source in labels])
    begin = [labels.index(("B", kind)) if prefix == "I" else place for place, (prefix, kind) in enumerate(labels)]
    inside = [labels.index(("I", kind)) if ("I", kind) in labels else place for place, (_, kind) in enumerate(labels)]
    return {
        "start_constraint": torch.zeros(len(labels)).masked_fill(~may_start, -torch.inf),
        "transition_constraint": torch.zeros(len(labels), len(labels)).masked_fill(~may_follow, -torch.inf),
        "begin": torch.tensor(begin, dtype=torch.float32),
        "inside": torch.tensor(inside, dtype=torch.float32),
    }


def padded_paths(paths: list[list[int]], mask: Tensor, padding: int = 0) -> Tensor:
    """The posts' paths, as `decode` gives them, as one tensor like their mask (B, W)."""
    padded = torch.full(mask.shape, padding, device=mask.device)
    padded[mask] = torch.tensor([label for path in paths for label in path], dtype=torch.long, device=mask.device)
    return padded


class HamLearningTransitionScores(nn.Module):
    """Learned scores of a path's first label (L,), of each pair of labels (L, L) and of its last label (L,).

    They are read by calling the module, so that weights which are kept on disk or on another device are there in time.
    """

    def __init__(self, num_labels: int):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.start.float(), self.transitions.float(), self.end.float()


class HamLearningCRF(nn.Module):
    """CRF whose sums are taken in fp32 whatever the precision of the model around it.

    With `learned=False` all transition scores stay 0: the model is then a softmax per word that is decoded, and whose
    spans are scored, under the BIO constraint.

    Shapes: emissions (B, W, L), mask (B, W) with every post's words in front of its padding.
    """

    def __init__(self, label_names: list[str], learned: bool = True):
        super().__init__()
        self.label_names = label_names
        # They follow from the labels' names and are never read from a checkpoint, whose labels may be others.
        for name, constraint in bio_constraints(label_names).items():
            self.register_buffer(name, constraint, persistent=False)
        self.transition_scores = HamLearningTransitionScores(len(label_names)) if learned else None

    def use_labels(self, label_names: list[str]):
        """Make the constraints those of these labels, which are as many as before.

        Raises:
            ValueError: another number of labels.
        """
        if label_names == self.label_names:
            return
        if len(label_names) != len(self.label_names):
            raise ValueError(f"expected {len(self.label_names)} labels, as many as the model has scores, got {label_names}")
        for name, constraint in bio_constraints(label_names).items():
            getattr(self, name).copy_(constraint)
        self.label_names = label_names

    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Start (L,), transition (L, L) and end (L,) scores, −inf where BIO forbids it."""
        start, transitions = self.start_constraint.float(), self.transition_constraint.float()
        if self.transition_scores is None:
            return start, transitions, torch.zeros_like(start)
        learned_start, learned_transitions, end = self.transition_scores()
        return start + learned_start, transitions + learned_transitions, end

    def orphans_to_begin(self, labels: Tensor, mask: Tensor) -> Tensor:
        """(B, W) labels with every orphan I-X, one that follows no B-X or I-X, read as B-X."""
        labels = labels.where(mask, 0)
        follows = self.transition_constraint[labels[:, :-1], labels[:, 1:]]
        legal = torch.cat([self.start_constraint[labels[:, :1]], follows], dim=1) == 0
        return torch.where(legal, labels, self.begin.long()[labels])

    def drop_unlabelled(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Emissions, legal labels and mask of the posts without their words labelled −100, whose neighbours are linked."""
        known = mask & (labels >= 0)
        order = torch.argsort(~known, dim=1, stable=True)
        labels, known = labels.gather(1, order), known.gather(1, order)
        return emissions.gather(1, order[..., None].expand_as(emissions)), self.orphans_to_begin(labels, known), known

    def forward(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Negative log-likelihood of the labels, (B,), over the words that have one."""
        emissions, labels, known = self.drop_unlabelled(emissions, labels, mask)
        if self.transition_scores is None:
            nll = nn.functional.cross_entropy(emissions.float().transpose(1, 2), labels, reduction="none")
            return (nll * known).sum(1)
        return self.log_partition(emissions, known) - self.score(emissions, labels, known)

    def score(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Score of one path a post, (B,); 0 for a post without words."""
        if emissions.shape[1] == 0:
            return emissions.float().sum((1, 2))  # 0, with a gradient to it
        start, transitions, end = self._scores()
        labels = labels.where(mask, 0)
        words = emissions.float().gather(2, labels[..., None]).squeeze(2).where(mask, 0).sum(1)
        steps = transitions[labels[:, :-1], labels[:, 1:]].where(mask[:, 1:], 0).sum(1)
        last = labels.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        return (start[labels[:, 0]] + words + steps + end[last]).where(mask.any(1), 0)

    def log_partition(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Log-sum of the scores of all legal paths, (B,); 0 for a post without words."""
        if emissions.shape[1] == 0:
            return emissions.float().sum((1, 2))  # 0, with a gradient to it
        start, transitions, end = self._scores()
        emissions = emissions.float()
        sum_sources = self._sum_sources(transitions)
        alpha = start + emissions[:, 0]
        for step in range(1, emissions.shape[1]):
            alpha = torch.where(mask[:, step, None], sum_sources(alpha) + emissions[:, step], alpha)
        return torch.logsumexp(alpha + end, dim=1).where(mask.any(1), 0)

    def _is_inside(self) -> Tensor:
        """(L,) whether a label is an I-X."""
        return self.begin != torch.arange(len(self.begin), device=self.begin.device)

    def _sum_sources(self, transitions: Tensor) -> Callable[[Tensor], Tensor]:
        """The step of the forward sums: scores (B, L) to the log-sum over the labels before of score and transition (B, L).

        With many labels, what may follow any label is summed by a product of matrices. In fp64, and less the highest score, no
        sum of it vanishes: the label with that score is in each. I-X comes after B-X and I-X alone, which are summed directly.
        """
        if len(transitions) <= FEW_LABELS:
            return lambda scores: torch.logsumexp(scores[:, :, None] + transitions, dim=1)
        is_inside, begin = self._is_inside(), self.begin.long()
        factors = transitions.masked_fill(is_inside, 0).double().exp()
        entering, staying = transitions.gather(0, begin[None]).squeeze(0), transitions.diagonal()

        def step(scores: Tensor) -> Tensor:
            highest = scores.detach().amax(1, keepdim=True)
            from_all = ((scores - highest).double().exp() @ factors).log().to(scores.dtype) + highest
            return torch.where(is_inside, torch.logaddexp(scores[:, begin] + entering, scores + staying), from_all)

        return step

    def _sum_targets(self, transitions: Tensor) -> Callable[[Tensor], Tensor]:
        """The step of the backward sums, the same over the labels after: fp64, (B, L) to (B, L)."""
        if len(transitions) <= FEW_LABELS:
            return lambda scores: torch.logsumexp(transitions + scores[:, None, :], dim=2)
        is_inside, inside = self._is_inside(), self.inside.long()
        factors = transitions.masked_fill(is_inside, 0).exp().T
        continuing = transitions.gather(1, inside[:, None]).squeeze(1).masked_fill(~is_inside[inside], -torch.inf)

        def step(scores: Tensor) -> Tensor:
            others = scores.masked_fill(is_inside, -torch.inf)
            highest = others.amax(1, keepdim=True)
            to_others = ((others - highest).exp() @ factors).log() + highest
            return torch.logaddexp(to_others, scores[:, inside] + continuing)

        return step

    def _best_sources(self, transitions: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The step of Viterbi's algorithm: scores (B, L) to the best sum of score and transition (B, L), and the label before.

        With many labels, those are left out whose score is so much below the highest one that no transition makes up for it.
        """
        if len(transitions) <= FEW_LABELS:
            return lambda scores: (scores[:, :, None] + transitions).max(dim=1)
        is_inside, begin = self._is_inside(), self.begin.long()
        to_others = transitions[:, ~is_inside]
        # A little more, for sums are rounded.
        reach = (to_others.amax(0) - to_others.amin(0)).amax() + 1e-2
        own = torch.arange(len(begin), device=begin.device)
        first, second = torch.minimum(begin, own), torch.maximum(begin, own)

        def step(scores: Tensor) -> tuple[Tensor, Tensor]:
            count = (scores >= scores.amax(1, keepdim=True) - reach).sum(1).amax()
            # In the order of their ids, so that of equal sums the first wins whatever the rest of the batch is.
            sources = scores.topk(int(count), dim=1).indices.sort(dim=1).values
            best, place = (scores.gather(1, sources)[:, :, None] + transitions[sources]).max(dim=1)
            first_scores, second_scores = (scores[:, label] + transitions[label, own] for label in (first, second))
            best_inside, source_inside = (
                torch.maximum(first_scores, second_scores),
                torch.where(first_scores >= second_scores, first, second),
            )
            return torch.where(is_inside, best_inside, best), torch.where(is_inside, source_inside, sources.gather(1, place))

        return step

    def decode(self, emissions: Tensor, mask: Tensor, min_probability: float = 0.0) -> list[list[int]]:
        """Best legal path of every post (Viterbi), less its entities of a lower probability: label ids, as many as the
        post has words.

        Raises:
            ValueError: with a `min_probability`, no label of the model is `O`.
        """
        batch_size, num_words, _ = emissions.shape
        if num_words == 0:
            return [[] for _ in range(batch_size)]
        start, transitions, end = self._scores()
        best = start + emissions[:, 0].float()
        pointers, best_sources = [], self._best_sources(transitions)
        for step in range(1, num_words):
            scores, source = best_sources(best)
            here = mask[:, step, None]
            best = torch.where(here, scores + emissions[:, step].float(), best)
            # Past its last word a post points to itself, so that the way back starts at its own end.
            pointers.append(torch.where(here, source, torch.arange(source.shape[1], device=source.device)))
        path = [(best + end).argmax(dim=1)]
        for source in reversed(pointers):
            path.append(source.gather(1, path[-1][:, None]).squeeze(1))
        paths = torch.stack(path[::-1], dim=1)
        if min_probability > 0:
            paths = self._drop_unlikely_entities(paths, emissions, mask, min_probability)
        return [labels[:length] for labels, length in zip(paths.tolist(), mask.sum(1).tolist(), strict=True)]

    def _drop_unlikely_entities(self, paths: Tensor, emissions: Tensor, mask: Tensor, min_probability: float) -> Tensor:
        if "O" not in self.label_names:
            raise ValueError(f"an unlikely entity becomes O, which the labels {self.label_names} lack")
        spans = self.spans(paths, mask)
        unlikely = spans[self.span_probabilities(emissions, mask, spans) < min_probability]
        post, first, last = unlikely[:, :3].unbind(1)
        # How many of them a word lies in: one more from its first word on, one less after its last.
        steps = paths.new_zeros(len(paths), paths.shape[1] + 1)
        steps.index_put_((post, first), steps.new_ones(()), accumulate=True)
        steps.index_put_((post, last + 1), -steps.new_ones(()), accumulate=True)
        return paths.masked_fill(steps.cumsum(1)[:, :-1] > 0, self.label_names.index("O"))

    def spans(self, paths: Tensor, mask: Tensor) -> Tensor:
        """Entities of legal paths (B, W), in the order of the text, as `span_probabilities` takes them: (n, 5)."""
        labels = [_bio(label) for label in self.label_names]
        begins, insides = (torch.tensor([p == wanted for p, _ in labels], device=paths.device) for wanted in "BI")
        begin, goes_on = begins[paths] & mask, insides[paths] & mask
        end = (begin | goes_on) & ~nn.functional.pad(goes_on, (0, 1))[:, 1:]
        (post, first), last, label = begin.nonzero().unbind(1), end.nonzero()[:, 1], paths[begin]
        return torch.stack([post, first, last, label, self.inside.long()[label]], dim=1)

    def gold_spans(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Entities of gold labels (B, W), an orphan I-X read as B-X and −100 as no label: as `spans` returns them."""
        known = mask & (labels >= 0)
        return self.spans(self.orphans_to_begin(labels, known), known)

    def _forward_backward(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Forward and backward log-sums (B, W, L) and the log-partition (B,). `beta` leaves its own word out.

        In fp64: over hundreds of words the sums grow to thousands, and probabilities are what is left of their difference.
        """
        start, transitions, end = (scores.double() for scores in self._scores())
        emissions = emissions.double()
        sum_sources, sum_targets = self._sum_sources(transitions), self._sum_targets(transitions)
        alpha = [start + emissions[:, 0]]
        for step in range(1, emissions.shape[1]):
            new = sum_sources(alpha[-1]) + emissions[:, step]
            alpha.append(torch.where(mask[:, step, None], new, alpha[-1]))
        beta = [end.expand_as(alpha[0])]
        for step in range(emissions.shape[1] - 1, 0, -1):
            new = sum_targets(emissions[:, step] + beta[-1])
            beta.append(torch.where(mask[:, step, None], new, beta[-1]))
        return torch.stack(alpha, 1), torch.stack(beta[::-1], 1), torch.logsumexp(alpha[-1] + end, dim=1)

    def marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Probability of every label at every word, (B, W, L); 0 at padding."""
        if emissions.shape[1] == 0:
            return emissions.float()
        alpha, beta, log_partition = self._forward_backward(emissions, mask)
        return (alpha + beta - log_partition[:, None, None]).exp().float() * mask[..., None]

    def span_probabilities(self, emissions: Tensor, mask: Tensor, spans: Tensor) -> Tensor:
        """Probability that exactly these spans are entities under the model, summed over the rest of the post.

        Args:
            spans: (n, 5) long: post, first word, last word, label of the first word, label of the words inside.

        Returns:
            (n,): that the first word has the span's first label, the others its inside label, and that the entity
            does not go on after the last word.
        """
        if len(spans) == 0:
            return emissions.new_zeros(0, dtype=torch.float32)
        post, first, last, begin, inside = spans.unbind(1)
        transitions, emissions = self._scores()[1].double(), emissions.double()
        alpha, beta, log_partition = self._forward_backward(emissions, mask)
        # Of words that all have the label inside: a difference of sums from the post's start, for spans of any length.
        summed = (emissions + transitions.diagonal().nan_to_num(neginf=0)).cumsum(1)
        second = (first + 1).clamp(max=emissions.shape[1] - 1)
        entering = torch.where(last > first, transitions[begin, inside] + emissions[post, second, inside], 0.0)
        staying = torch.where(last > second, summed[post, last, inside] - summed[post, second, inside], 0.0)
        final = torch.where(last > first, inside, begin)
        goes_on = torch.where(
            (last + 1 < mask.sum(1)[post]) & (inside != begin),
            transitions[final, inside] + (emissions + beta)[post, (last + 1).clamp(max=mask.shape[1] - 1), inside],
            -torch.inf,
        )
        ends = beta[post, last, final]
        stops = ends + torch.log1p(-(goes_on - ends).exp().clamp(max=1))
        total = alpha[post, first, begin] + entering + staying + stops
        return (total - log_partition[post]).exp().float()
