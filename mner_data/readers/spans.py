"""Entities as spans of characters, as annotation tools export them, and the words and labels they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from processors.word_splitting import split_words

from .text import DataError

if TYPE_CHECKING:
    from .rows import Notes

Span = tuple[int, int, str]
_STARTS, _ENDS = ("start", "start_offset"), ("end", "end_offset")
_LABELS = ("label", "labels", "entity_group", "type")


def annotated_spans(entities: Any, text: str, where: str, notes: Notes) -> list[Span] | None:
    """Start, end and type of every entity; `None` for a task that nobody annotated.

    An entity is a list `[start, end, type]` (doccano, spaCy), or an object with `start` and `end` (or `start_offset` and
    `end_offset`) and `label` (Prodigy, doccano, spaCy) or `labels` (Label Studio). Label Studio puts a list of results around
    them, one for each annotator, and the span itself into `value`.

    Raises:
        DataError: naming the place.
    """
    if not isinstance(entities, list):
        raise DataError(f"{where}, field entities: expected a list of spans, got {entities!r:.60}")
    if any(isinstance(entity, dict) and "result" in entity for entity in entities):
        if wrong := [entity for entity in entities if not isinstance(entity, dict)]:
            raise DataError(f"{where}, field entities: expected objects with a result, got {wrong[0]!r:.60} among them")
        annotations = [entity for entity in entities if not entity.get("was_cancelled")]
        if not annotations:
            return None
        if len(annotations) > 1:
            notes.add("a post has several annotations, of which the first is used", where)
        entities = _values(annotations[0].get("result"), where)
    return list(dict.fromkeys(_span(entity, text, where) for entity in entities))


def entity_label(entity: dict[str, Any]) -> Any:
    """The type of an entity, under whichever of its usual names it stands; Label Studio writes a list of one."""
    label = next((entity[name] for name in _LABELS if entity.get(name) is not None), None)
    return label[0] if isinstance(label, list) and label else label


def is_span(start: Any, end: Any, label: Any) -> bool:
    """Whether these are two integers and the name of a type."""
    numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in (start, end))
    return numbers and isinstance(label, str) and bool(label.strip())


def words_and_labels(text: str, spans: list[Span] | None, where: str, notes: Notes) -> tuple[list[str], list[str] | None]:
    """The words of a text by the processor's splitter, and their BIO labels.

    A span that begins or ends inside a word is widened to the whole word, and noted.
    """
    words, offsets = split_words(text)
    if spans is None:
        return words, None
    word_spans = []
    for start, end, label in spans:
        covered = [place for place, (first, last) in enumerate(offsets) if first < end and last > start]
        if not covered:
            notes.add("an entity has no word and is left out", f"{where}, {label} at {start}")
            continue
        first, last = offsets[covered[0]][0], offsets[covered[-1]][1]
        if first < start or last > end:
            note = f"{where}, {text[start:end]!r:.60} to {text[first:last]!r:.60}"
            notes.add("an entity cuts a word and is widened", note)
        word_spans.append((covered[0], covered[-1] + 1, label))
    return words, labels_of_spans(len(words), word_spans, where, notes)


def labels_of_spans(num_words: int, spans: list[Span], where: str, notes: Notes) -> list[str]:
    """BIO labels of entities that count words. Of two that overlap the longer is kept, and the other noted.

    Raises:
        DataError: a span is not within the words.
    """
    labels = ["O"] * num_words
    for start, end, label in sorted(dict.fromkeys(spans), key=lambda span: (span[0] - span[1], span[0])):
        if not 0 <= start < end <= num_words:
            raise DataError(f"{where}, field entities: expected a span within {num_words} words, got {start} to {end}")
        if any(other != "O" for other in labels[start:end]):
            notes.add("an entity overlaps a longer one and is left out", f"{where}, {label} from word {start} to {end}")
            continue
        labels[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
    return labels


def _values(results: Any, where: str) -> list[Any]:
    """The spans among the results of an annotation by Label Studio. Other results are choices or relations."""
    if not isinstance(results, list):
        raise DataError(f"{where}, field entities: expected a list as the result of an annotation, got {results!r:.60}")
    values = []
    for item in results:
        if not isinstance(item, dict):
            raise DataError(f"{where}, field entities: expected an object with a value in every result, got {item!r:.60}")
        if item.get("type", "labels") == "labels":
            if "value" not in item:
                got = ", ".join(item) or "nothing"
                raise DataError(f"{where}, field entities: expected a value in every result of labels, got {got:.80}")
            values.append(item["value"])
    return values


def _span(entity: Any, text: str, where: str) -> Span:
    if isinstance(entity, dict):
        start, end = (next((entity[name] for name in names if name in entity), None) for names in (_STARTS, _ENDS))
        label = entity_label(entity)
    else:
        entity = list(entity) if isinstance(entity, list | tuple) else [entity]
        start, end, label = (entity + [None] * 3)[:3]
    if not is_span(start, end, label):
        raise DataError(f"{where}, field entities: expected start, end and label of a span, got {entity!r:.80}")
    words = entity.get("text") if isinstance(entity, dict) else None
    if isinstance(words, str) and text[start:end] != words:
        # A program in a browser counts an emoji as two.
        units = text.encode("utf-16-le", "surrogatepass")
        before, inside = (
            units[2 * first : 2 * last].decode("utf-16-le", "replace") for first, last in ((0, start), (start, end))
        )
        if inside != words:
            raise DataError(f"{where}, field entities: expected {words!r:.60} at {start} to {end}, got {text[start:end]!r:.60}")
        start, end = len(before), len(before) + len(inside)
    if not 0 <= start < end <= len(text):
        raise DataError(f"{where}, field entities: expected a span within {len(text)} characters, got {start} to {end}")
    return start, end, label.strip()
