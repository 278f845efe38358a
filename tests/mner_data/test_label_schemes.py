"""Label schemes: every way to write entities comes to the same BIO, and what is not clear is refused."""

from __future__ import annotations

import itertools

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from mner_data.label_schemes import PREFIXES, SCHEMES, LabelSchemeError, to_bio

# First word, words between, last word, single word.
LETTERS = {"BIO": "BIIB", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW"}
TYPES = ("PER", "LOC")


def entity_sets(length: int):
    """All ways to place entities (first, last, type) on a post of this length."""
    if length == 0:
        yield []
        return
    for entities in entity_sets(length - 1):
        yield entities
    for first in range(length):
        for entities in entity_sets(first):
            for entity_type in TYPES:
                yield [*entities, (first, length - 1, entity_type)]


def write(entities: list[tuple[int, int, str]], length: int, scheme: str) -> list[str]:
    """Labels of a post in a scheme."""
    labels = ["O"] * length
    for index, (first, last, entity_type) in enumerate(entities):
        touches = index > 0 and entities[index - 1][1:] == (first - 1, entity_type)
        for place in range(first, last + 1):
            if scheme == "plain":
                labels[place] = entity_type
                continue
            if scheme in ("IOB1", "IO"):
                letter = "B" if scheme == "IOB1" and touches and place == first else "I"
            else:
                begin, inside, end, single = LETTERS[scheme]
                letter = single if first == last else begin if place == first else end if place == last else inside
            labels[place] = f"{letter}-{entity_type}"
    return labels


def merged(entities: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Entities as a scheme without B can write them: neighbours of one type are one."""
    result: list[tuple[int, int, str]] = []
    for first, last, entity_type in entities:
        if result and result[-1][1:] == (first - 1, entity_type):
            result[-1] = (result[-1][0], last, entity_type)
        else:
            result.append((first, last, entity_type))
    return result


ALL = [(length, entities) for length in range(6) for entities in entity_sets(length)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_placement_of_entities_comes_to_the_same_bio(scheme):
    labels = [write(entities, length, scheme) for length, entities in ALL]
    meant = [merged(entities) if scheme in ("IO", "plain") else entities for _, entities in ALL]
    expected = [write(entities, length, "BIO") for (length, _), entities in zip(ALL, meant, strict=True)]
    assert len(ALL) > 500
    recognised = to_bio(labels)
    # IO is IOB1 without neighbours of one type: the same rule reads both.
    assert recognised.scheme == {"IO": "IOB1"}.get(scheme, scheme)
    for converted in (recognised, to_bio(labels, scheme)):
        assert converted.labels == expected
        assert converted.num_changed == sum(
            before != after for pair in zip(labels, expected, strict=True) for before, after in zip(*pair, strict=True)
        )
    # The same post for post, where one post alone leaves no doubt about the scheme.
    for post_labels, post_expected in zip(labels, expected, strict=True):
        assert to_bio([post_labels], scheme).labels == [post_expected]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_labels_that_break_their_scheme_keep_the_entities_that_seqeval_reads(scheme):
    names = ["O", *(f"{letter}-{entity_type}" for letter in PREFIXES[scheme] for entity_type in TYPES)]
    for length in range(1, 4 if scheme == "BIOES" else 5):
        for labels in itertools.product(names, repeat=length):
            for chosen in (None, scheme):
                converted = to_bio([list(labels)], chosen, names).labels[0]
                assert get_entities(converted) == get_entities(list(labels))
                assert all(label == "O" or label[:2] in ("B-", "I-") for label in converted)


@pytest.mark.parametrize("spell", [str.lower, lambda label: label.replace("-", "_"), lambda label: label[0].lower() + label[1:]])
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "plain"])
def test_lower_case_and_underscores(spell, scheme):
    labels = [write(entities, length, scheme) for length, entities in ALL]
    spelled = [[spell(label) for label in post_labels] for post_labels in labels]
    expected = to_bio(labels, scheme).labels
    if spell is str.lower:
        expected = [[label if label == "O" else label[:2] + label[2:].lower() for label in post] for post in expected]
    assert to_bio(spelled).labels == expected and to_bio(spelled).num_changed > 0


def test_bio_stays_as_it_is_orphans_included():
    labels = [["I-PER", "O", "B-LOC", "I-LOC"], ["B-LOC", "I-PER"], ["O"], []]
    assert to_bio(labels) == ("BIO", labels, 0)
    assert to_bio([["O", "O"]]) == ("BIO", [["O", "O"]], 0)
    # What can only be IOB1 is, unless one insists.
    assert to_bio([["I-PER", "B-PER", "O", "I-LOC"]]).labels == [["B-PER", "B-PER", "O", "B-LOC"]]
    assert to_bio([["I-PER", "B-PER"]], "BIO").labels == [["I-PER", "B-PER"]]


def test_a_list_of_names_tells_the_scheme_of_few_posts():
    assert to_bio([["B-PER", "I-PER"]], names=["O", "B-PER", "S-PER"]).scheme == "BIOES"
    assert to_bio([["S-PER", "O"]], names=["O", "B-PER", "I-PER", "E-PER", "S-PER"]).labels == [["B-PER", "O"]]


UNCLEAR = {
    "prefixes of two schemes": (["O", "E-PER", "U-PER"], "got the prefixes E, U", None),
    "some without a prefix": (["O", "B-PER", "PERSON"], "got 'PERSON' among", "PERSON"),
    "both signs": (["O", "B-PER", "I_PER"], "both - and _", None),
    "no type": (["O", "B", "I"], "expected a type behind the prefix, got 'B'", "B"),
    "an empty type": (["O", "B-"], "expected a type behind the prefix, got 'B-'", "B-"),
    "a blank type": (["O", "B- ", "B-PER"], "got 'B- ' among", "B- "),
    "an empty label": (["O", ""], "got ''", ""),
    "the prefix behind": (["O", "PER-B", "PER-I"], "the prefix before the type", "PER-B"),
    "no O": (["NOUN", "VERB"], "got 'NOUN'", "NOUN"),
    "a tab": (["O", "B-P\tX"], r"got 'B-P\\tX'", "B-P\tX"),
    "numbers": (["0", "1"], "got '0'", "0"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_is_not_clear_is_refused(kind):
    labels, message, label = UNCLEAR[kind]
    with pytest.raises(LabelSchemeError, match=message) as error:
        to_bio([labels])
    assert error.value.label == label


def test_one_may_insist():
    # Types that look like a prefix and a type.
    assert to_bio([["S-Bahn", "S-Bahn", "O"]]).labels == [["B-Bahn", "B-Bahn", "O"]]
    assert to_bio([["S-Bahn", "S-Bahn", "O"]], "plain").labels == [["B-S-Bahn", "I-S-Bahn", "O"]]
    assert to_bio([["NOUN", "VERB"]], "plain").labels == [["B-NOUN", "B-VERB"]]
    with pytest.raises(LabelSchemeError, match="expected labels in BIO, got 'S-PER'"):
        to_bio([["S-PER", "O"]], "BIO")
    with pytest.raises(LabelSchemeError, match="got 'PER'"):
        to_bio([["PER", "O"]], "BIOES")
    with pytest.raises(ValueError, match="expected one of BIO, .*, got 'bioes'"):
        to_bio([["O"]], "bioes")
