"""What a model gets wrong: every entity that it misses, invents, mistypes or cuts, and how often a type is taken for another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mner_data.files import atomic_write, markdown_table
from mner_data.loading import dataset_labels, row_to_post
from modeling_hamlearning.pipeline_mner import MnerPipeline
from processors import ImageError, load_image

from .collator import MnerCollator
from .errors_html import errors_html, plot_confusion

MISSED, INVENTED = "missed", "invented"
# In a table of types, the most frequent ones stand by themselves.
MAX_TYPES, OTHER = 20, "other types"
# The last one stands for that many words and more.
LENGTHS = ("1", "2", "3", "4+")


class Entity(NamedTuple):
    """An entity by its type and its words: the first one, and the one after its last."""

    type: str
    start: int
    end: int


class Pair(NamedTuple):
    """A gold entity and the predicted one that stands for it, by their places in the post; None where there is none."""

    gold: int | None
    predicted: int | None


def pair_entities(gold: Sequence[Entity], predicted: Sequence[Entity]) -> list[Pair]:
    """Pair the entities of a post that share words, those that share most first; each is in one pair."""
    shared = {(i, j): min(a.end, b.end) - max(a.start, b.start) for i, a in enumerate(gold) for j, b in enumerate(predicted)}
    pairs: list[Pair] = []
    free_gold, free_predicted = set(range(len(gold))), set(range(len(predicted)))
    for (i, j), words in sorted(shared.items(), key=lambda item: -item[1]):
        if words > 0 and i in free_gold and j in free_predicted:
            pairs.append(Pair(i, j))
            free_gold.remove(i)
            free_predicted.remove(j)
    return [*pairs, *(Pair(i, None) for i in sorted(free_gold)), *(Pair(None, j) for j in sorted(free_predicted))]


def kind_of_error(gold: Entity | None, predicted: Entity | None) -> str | None:
    """`missed`, `invented`, `mistyped` (the right words), `cut` (other words, whatever its type), or None if it is right."""
    if predicted is None:
        return MISSED
    if gold is None:
        return INVENTED
    if gold[1:] != predicted[1:]:
        return "cut"
    return None if gold == predicted else "mistyped"


def gold_entities(row: dict[str, Any], label_names: list[str]) -> list[Entity]:
    """The entities of a row's labels, as default seqeval reads them."""
    return [Entity(kind, first, last + 1) for kind, first, last in get_entities([label_names[tag] for tag in row["ner_tags"]])]


def predicted_entities(result: list[dict[str, Any]]) -> list[Entity]:
    """The entities of the pipeline's result."""
    return [Entity(entity["entity_group"], entity["word_start"], entity["word_end"]) for entity in result]


def tag_rows(ner: MnerPipeline, rows: Dataset, batch_size: int) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Rows as posts, those whose image cannot be read without it, and the pipeline's result for each."""
    posts = []
    for row in tqdm(rows, desc="images"):
        post = row_to_post(row)
        try:
            if post["image"] is not None:
                load_image(post["image"], target_size=(1, 1))  # only whether it opens: reduced while it is decoded
        except ImageError:
            post = {"text": post["text"], "image": None}
        posts.append(post)
    results = ner(iter(posts), batch_size=batch_size)
    return posts, list(tqdm(results, desc="tagging", total=len(posts)))


@torch.no_grad()
def gold_scores(ner: MnerPipeline, rows: Dataset, batch_size: int) -> list[list[float]]:
    """For each row, the probability of each of its gold entities under the model."""
    scores: list[list[float]] = [[] for _ in range(len(rows))]
    crf, done = ner.model.crf, 0
    for batch in DataLoader(rows, batch_size, collate_fn=MnerCollator(ner.processor)):
        ids = batch.pop("ids")
        batch = {name: tensor.to(ner.model.device) for name, tensor in batch.items()}
        labels, mask = batch.pop("labels"), batch["word_mask"].bool()
        spans = crf.gold_spans(labels, mask)
        probabilities = crf.span_probabilities(ner.model(**batch).logits, mask, spans)
        for post, probability in zip(spans[:, 0].tolist(), probabilities.tolist(), strict=True):
            scores[done + post].append(probability)
        done += len(ids)
    return scores


def find_errors(
    ner: MnerPipeline, rows: Dataset, posts: list[dict[str, Any]], results: list[list[dict[str, Any]]], batch_size: int
) -> list[dict[str, Any]]:
    """Every error of the results, the most confident first.

    The confidence of an error is the score of the predicted entity, and for a missed one 1 less the probability that the
    model gives to the gold entity.

    Returns:
        A dict an error: `id`, `kind`, `confidence`, `text`, `image` (its file, or None), `gold` and `predicted`: entities as
        the pipeline gives them, or None; `row` is the place of the post in the rows.
    """
    names, errors = dataset_labels(rows), []
    for place, (row, post, result) in enumerate(zip(rows, posts, results, strict=True)):
        gold, predicted = gold_entities(row, names), predicted_entities(result)
        for pair in pair_entities(gold, predicted):
            gold_entity = None if pair.gold is None else gold[pair.gold]
            kind = kind_of_error(gold_entity, None if pair.predicted is None else predicted[pair.predicted])
            if kind is not None:
                error = {"id": row["id"], "kind": kind, "text": " ".join(row["tokens"]), "image": _image_name(post["image"])}
                error["gold"] = gold_entity and _as_result(gold_entity, row["tokens"]) | {"place": pair.gold}
                error["predicted"] = None if pair.predicted is None else result[pair.predicted]
                errors.append(error | {"row": place})
    with_missed = sorted({error["row"] for error in errors if error["kind"] == MISSED})
    scores = dict(zip(with_missed, gold_scores(ner, rows.select(with_missed), batch_size) if with_missed else [], strict=True))
    for error in errors:
        gold_place = error["gold"] and error["gold"].pop("place")
        if error["kind"] == MISSED:
            error["gold"]["score"] = scores[error["row"]][gold_place]
        error["confidence"] = 1 - error["gold"]["score"] if error["kind"] == MISSED else error["predicted"]["score"]
    return sorted(errors, key=lambda error: -error["confidence"])


def _as_result(entity: Entity, tokens: list[str]) -> dict[str, Any]:
    """A gold entity in the form of the pipeline's."""
    start = len(" ".join([*tokens[: entity.start], ""]))
    word = " ".join(tokens[entity.start : entity.end])
    return {
        "entity_group": entity.type, "word": word, "start": start, "end": start + len(word), "word_start": entity.start,
        "word_end": entity.end, "relevance": {}, "region": None,
    }  # fmt: skip


def _image_name(image: Any) -> str | None:
    if image is None:
        return None
    path = image.get("path") if isinstance(image, dict) else image
    return str(path) if isinstance(path, str | Path) else "in the row"


def confusion(rows: Dataset, results: list[list[dict[str, Any]]]) -> dict[str, dict[str, int]]:
    """How often a gold type was predicted as another: counts by gold type (and `invented`) and predicted type (and `missed`).

    An entity that is cut counts by its type. Types beyond the 20 most frequent ones are taken together.
    """
    names, counts = dataset_labels(rows), Counter[tuple[str, str]]()
    for row, result in zip(rows, results, strict=True):
        gold, predicted = gold_entities(row, names), predicted_entities(result)
        for i, j in pair_entities(gold, predicted):
            counts[INVENTED if i is None else gold[i].type, MISSED if j is None else predicted[j].type] += 1
    frequency: Counter[str] = Counter()
    for (gold_type, predicted_type), count in counts.items():
        frequency.update({gold_type: count, predicted_type: count})
    types = [name for name, _ in frequency.most_common() if name not in (MISSED, INVENTED)]
    shown = sorted(types[:MAX_TYPES]) + ([OTHER] if len(types) > MAX_TYPES else [])
    table = {gold_type: dict.fromkeys([*shown, MISSED], 0) for gold_type in [*shown, INVENTED]}
    for (gold_type, predicted_type), count in counts.items():
        row_name = gold_type if gold_type in table else OTHER
        table[row_name][predicted_type if predicted_type in table[row_name] else OTHER] += count
    return table


def confusion_markdown(table: dict[str, dict[str, int]]) -> str:
    """The table of types; the cell of what is neither gold nor predicted is empty."""
    columns = list(next(iter(table.values())))
    rows = [
        [f"**{gold}**", *(None if (gold, name) == (INVENTED, MISSED) else counts[name] for name in columns)]
        for gold, counts in table.items()
    ]
    return markdown_table(["gold ↓ predicted →", *columns], rows)


class Counts(NamedTuple):
    """How many entities are right, predicted and gold."""

    right: int = 0
    predicted: int = 0
    gold: int = 0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.predicted + self.gold) if self.predicted + self.gold else 0.0


def count_entities(gold: Iterable[Entity], predicted: Iterable[Entity]) -> Counts:
    """The counts of one post, or of its entities of one kind."""
    gold, predicted = set(gold), set(predicted)
    return Counts(len(gold & predicted), len(predicted), len(gold))


def f1_by_length_and_image(
    rows: Dataset, posts: list[dict[str, Any]], results: list[list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """`by_length` (words of an entity) and `by_image` (posts with and without one): F1 and gold entities of each group."""
    names = dataset_labels(rows)
    counts: dict[tuple[str, str], list[Counts]] = {}
    for row, post, result in zip(rows, posts, results, strict=True):
        gold, predicted = gold_entities(row, names), predicted_entities(result)
        for length in LENGTHS:
            same_length = ([entity for entity in side if _length(entity) == length] for side in (gold, predicted))
            counts.setdefault(("by_length", length), []).append(count_entities(*same_length))
        image = "without image" if post["image"] is None else "with image"
        counts.setdefault(("by_image", image), []).append(count_entities(gold, predicted))
    scores: dict[str, dict[str, Any]] = {"by_length": {}, "by_image": {}}
    for (group, name), post_counts in counts.items():
        total = Counts(*map(sum, zip(*post_counts, strict=True)))
        if total.gold or total.predicted:
            scores[group][name] = {"f1": total.f1, "gold_total": total.gold}
    return scores


def _length(entity: Entity) -> str:
    return LENGTHS[min(entity.end - entity.start, len(LENGTHS)) - 1]


def write_errors(
    ner: MnerPipeline, rows: Dataset, folder: Path, split: str, batch_size: int, prefix: str = "", is_main_process: bool = True
) -> dict[str, Any]:
    """Tag the rows and write `errors.jsonl`, `errors.html` and `confusion.png`, their names with a prefix.

    Returns:
        `errors` (how many of each kind), `confusion`, `by_length` and `by_image`.
    """
    posts, results = tag_rows(ner, rows, batch_size)
    errors = find_errors(ner, rows, posts, results, batch_size)
    report = {"errors": dict(Counter(error["kind"] for error in errors)), "confusion": confusion(rows, results)}
    report |= f1_by_length_and_image(rows, posts, results)
    if is_main_process:
        picture = folder / f"{prefix}confusion.png"
        plot_confusion(report["confusion"], picture, split)
        with atomic_write(folder / f"{prefix}errors.jsonl") as path:
            lines = ({name: value for name, value in error.items() if name != "row"} for error in errors)
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        with atomic_write(folder / f"{prefix}errors.html") as path:
            images = (ner.processor.load_images([posts[error["row"]]["image"]])[0] for error in errors)
            path.write_text(errors_html(errors, images, report, picture, split), encoding="utf-8")
    return report
