"""Label schemes that people use for entities, converted to BIO, which is the only one the model knows.

BIO writes the first word of an entity as B-TYPE, its other words as I-TYPE and every other word as O. The other schemes:

| scheme | labels | difference to BIO |
|---|---|---|
| IOB1 | B, I | I-TYPE begins an entity as well; B-TYPE only where the word before ends an entity of the same type |
| IO | I | I-TYPE only: two neighbouring entities of one type are one |
| BIOES | B, I, E, S | E-TYPE ends an entity of several words, S-TYPE is an entity of one word |
| BILOU | B, I, L, U | the same with L (last) and U (unit) |
| BMES | B, M, E, S | the same with M (middle) for I |
| BMEWO | B, M, E, W | the same with W (word) for S |
| plain | TYPE | the type alone: two neighbouring entities of one type are one |

Prefixes may be in lower case, and stand before `-` or `_`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# IO is IOB1 without the case that needs a B: both are read by the same rule.
PREFIXES = {"BIO": "BI", "IOB1": "BI", "IO": "I", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW"}
SCHEMES = (*PREFIXES, "plain")
EXPECTED = f"O, B-TYPE and I-TYPE (or one of the schemes {', '.join(SCHEMES[1:])})"
_LETTERS = "[BIESLUMW]"
_TYPE = r"[^\t\r\n]*[^\s][^\t\r\n]*"


class LabelSchemeError(ValueError):
    """Labels that are in no known scheme, or in more than one.

    Attributes:
        label: a label that does not fit, or None where no single one is at fault.
    """

    def __init__(self, message: str, label: str | None = None):
        super().__init__(message)
        self.label = label


class BioLabels(NamedTuple):
    """Labels in BIO: the scheme they were in, one list of labels per post, and how many labels are not as they were."""

    scheme: str
    labels: list[list[str]]
    num_changed: int

    def __str__(self) -> str:
        """One line for the log."""
        seen = "BIO in another spelling" if self.scheme == "BIO" else self.scheme
        return f"labels are {seen}: converted to BIO, {self.num_changed} of {sum(map(len, self.labels))} labels changed"


def to_bio(labels: Sequence[Sequence[str]], scheme: str | None = None, names: Iterable[str] = ()) -> BioLabels:
    """Convert the labels of posts to BIO.

    Labels that are in BIO stay as they are, orphans (I-TYPE that continues no entity) included.

    Args:
        labels: one list of labels per post. Give all splits at once: the scheme is recognised from all of them.
        scheme: one of `SCHEMES`, for labels that fit more than one; `None` to recognise it.
        names: all names that labels can have, where a data set lists them.

    Raises:
        LabelSchemeError: the labels are in no known scheme, in several, or not in the given one.
        ValueError: there is no such scheme.
    """
    if scheme not in (None, *SCHEMES):
        raise ValueError(f"label_scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    parsed = _parse({label for post_labels in labels for label in post_labels}.union(names), scheme)
    if scheme is None:
        scheme = _recognise({prefix for prefix, _ in parsed.values()}, sorted(parsed))
        if scheme == "BIO" and _is_iob1([[parsed[label] for label in post_labels] for post_labels in labels]):
            scheme = "IOB1"
    elif scheme != "plain" and (
        wrong := [label for label, (prefix, _) in parsed.items() if prefix not in PREFIXES[scheme] + "O"]
    ):
        raise LabelSchemeError(f"expected labels in {scheme}, got {_listed(wrong)}", wrong[0])
    convert = _rename if scheme == "BIO" else _begin_and_continue
    converted = [convert([parsed[label] for label in post_labels]) for post_labels in labels]
    num_changed = sum(
        before != after
        for post_labels, bio_labels in zip(labels, converted, strict=True)
        for before, after in zip(post_labels, bio_labels, strict=True)
    )
    return BioLabels(scheme, converted, num_changed)


def is_bio_label(label: str) -> bool:
    """Whether a label is written as in BIO: O, B-TYPE or I-TYPE."""
    return re.fullmatch(f"O|[BI]-{_TYPE}", label) is not None


def _parse(labels: set[str], scheme: str | None) -> dict[str, tuple[str, str]]:
    """Prefix, in upper case, and type of every label. O has the prefix O; the labels of the plain scheme have an empty one.

    Raises:
        LabelSchemeError: some labels have a prefix and others have none, or what is a prefix is not clear.
    """
    named = sorted(labels - {"O", "o"})
    if wrong := [label for label in named if not re.fullmatch(_TYPE, label)]:
        raise LabelSchemeError(f"expected {EXPECTED}, got {wrong[0]!r}", wrong[0])
    prefixed = {label: re.fullmatch(f"({_LETTERS})([-_])({_TYPE})", label, re.IGNORECASE) for label in named}
    without = [] if scheme == "plain" else [label for label, match in prefixed.items() if match is None]
    outside = {label: ("O", "") for label in labels & {"O", "o"}}
    if not without and scheme != "plain":
        if len({match[2] for match in prefixed.values()}) > 1:
            raise LabelSchemeError(f"expected one sign between prefix and type, got both - and _: {_listed(named)}")
        return outside | {label: (match[1].upper(), match[3]) for label, match in prefixed.items()}
    if scheme != "plain":
        if scheme is not None or len(without) < len(named) or not outside:
            raise LabelSchemeError(f"expected {EXPECTED}, got {without[0]!r} among {_listed(sorted(labels))}", without[0])
        if alone := [label for label in named if re.fullmatch(f"{_LETTERS}[-_]?", label.strip(), re.IGNORECASE)]:
            raise LabelSchemeError(f"expected a type behind the prefix, got {alone[0]!r}", alone[0])
        if all(re.fullmatch(f".+[-_]{_LETTERS}", label, re.IGNORECASE) for label in named):
            raise LabelSchemeError(f"expected the prefix before the type, got {_listed(named)}", named[0])
    return outside | {label: ("", label) for label in named}


def _recognise(prefixes: set[str], labels: list[str]) -> str:
    prefixes = prefixes - {"O"}
    if prefixes == {""}:
        return "plain"
    scheme = next((scheme for scheme, letters in PREFIXES.items() if prefixes <= set(letters)), None)
    if scheme is None:
        raise LabelSchemeError(f"expected {EXPECTED}, got the prefixes {', '.join(sorted(prefixes))}: {_listed(labels)}")
    return scheme


def _is_iob1(labels: list[list[tuple[str, str]]]) -> bool:
    """Whether some I-TYPE begins an entity, and B-TYPE only ever follows an entity of the same type."""
    has_orphan = False
    for post_labels in labels:
        before = ""
        for prefix, entity_type in post_labels:
            if prefix == "B" and before != entity_type:
                return False
            has_orphan |= prefix == "I" and before != entity_type
            before = entity_type
    return has_orphan


def _rename(labels: list[tuple[str, str]]) -> list[str]:
    """Labels of BIO in the usual spelling."""
    return ["O" if prefix == "O" else f"{prefix}-{entity_type}" for prefix, entity_type in labels]


def _begin_and_continue(labels: list[tuple[str, str]]) -> list[str]:
    """BIO of a scheme other than BIO. A label that should continue an entity, but follows none of its type, begins one."""
    converted, open_type = [], ""
    for prefix, entity_type in labels:
        if prefix == "O":
            converted.append("O")
        else:
            continues = prefix not in ("B", "S", "U", "W") and entity_type == open_type
            converted.append(f"{'I' if continues else 'B'}-{entity_type}")
        open_type = "" if prefix in ("E", "L", "S", "U", "W") else entity_type
    return converted


def _listed(labels: list[str], most: int = 12) -> str:
    """Labels for a message."""
    return ", ".join(map(repr, labels[:most])) + (f" and {len(labels) - most} more" if len(labels) > most else "")
