"""Synthetic posts: words with ambiguous names, and drawn images that say what type a name has.

Everything is drawn at random from a seed. Name, sentence, place, size and colour are drawn independently of the type, so
only the image tells the type; in posts without an image, a word of the sentence does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

from datasets import Dataset, DatasetDict, Features, List, Value

from .loading import row_features
from .readers import bio_labels
from .synthetic_images import KINDS_OF_TYPE, SCENE_OF_TYPE, Post, Thing, render

TYPES = ("PER", "LOC", "ORG", "MISC")
NAMES = (
    "Jordan", "Amazon", "Lincoln", "Paris", "Phoenix", "Mercury", "Washington", "Florence", "Orlando", "Jackson",
    "Houston", "Madison", "Austin", "Victoria", "Savannah", "Carolina", "Santa Fe", "San Marino", "Eden Hazard",
    "Saint Martin", "Black Rock", "Monte Carlo", "Rio Grande", "New Haven",
)  # fmt: skip
ONE_NAME = (
    "{a} again , what a day", "so happy to see {a} today", "everybody talks about {a} tonight", "{a} , finally !",
    "thinking of {a} this morning", "can not believe it : {a}", "my favourite is still {a}", "look at {a} now",
    "nothing like {a} in spring", "more of {a} please", "we waited years for {a}", "say what you want , {a} is great",
    "first time with {a}", "good morning from {a}", "who else loves {a} ?", "this is {a} and nothing else",
)  # fmt: skip
TWO_NAMES = (
    "{a} and {b} again", "so happy to see {a} and {b} today", "first {a} , then {b}", "from {a} to {b} in one day",
    "{a} or {b} ? both !", "who would choose {a} over {b} ?", "{a} , {b} and nothing else", "good morning {a} & {b}",
)  # fmt: skip
NO_NAME = (
    "what a lovely day", "coffee first , then the rest", "back at it again", "so much to do , so little time",
    "look at this !", "good night everybody", "finally weekend", "can not stop smiling",
)  # fmt: skip
# Sentences whose words tell the type.
TYPE_IN_WORDS = {
    "PER": ("Mr {a} called me back", "happy birthday to our friend {a} , born today", "{a} and his wife said hello"),
    "LOC": ("driving through downtown {a} today", "the weather in {a} is bad", "flying from {a} to the coast"),
    "ORG": ("{a} Inc hired ten people", "shares of {a} fell five percent", "the {a} board met its staff"),
    "MISC": ("the new {a} album is out", "watched the {a} movie twice", "tickets for the {a} festival sold out"),
}
BEFORE = ("", "", "", "RT @anna_b :", "wow ,", "# tbt", "ok", "well ,", "@joe :", "today :")
AFTER = ("", "", "", "!", "...", "# love", "😍", "https://t.co/x1", "# photo # day", "lol", "🎉 🎉")


# Posts


def _write(generator: random.Random, template: str, entities: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Tokens and labels of a template, with random words before and after it. {a} and {b} stand for the entities (name, type)."""
    places = dict(zip(("{a}", "{b}"), entities, strict=False))
    tokens, labels = [], []
    for piece in f"{generator.choice(BEFORE)} {template} {generator.choice(AFTER)}".split():
        if piece in places:
            name, entity_type = places[piece]
            parts = name.split()
            tokens += parts
            labels += [f"B-{entity_type}"] + [f"I-{entity_type}"] * (len(parts) - 1)
        else:
            tokens.append(piece)
            labels.append("O")
    return tokens, labels


def _place(generator: random.Random, left: float = 0.0, right: float = 1.0) -> tuple[float, float, float, float]:
    """A random box between x = `left` and x = `right`."""
    width = generator.uniform(0.22, min(0.42, right - left))
    height = generator.uniform(0.3, 0.6)
    x, y = generator.uniform(left, right - width), generator.uniform(0.03, 0.97 - height)
    return round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4)


def _thing(generator: random.Random, entity_type: str, left: float = 0.0, right: float = 1.0) -> Thing:
    kind = generator.choice(KINDS_OF_TYPE[entity_type])
    return Thing(kind, kind, _place(generator, left, right))


def _shuffled(generator: random.Random, post: Post) -> Post:
    """The post with its things in random order, so that a region's index says nothing about the type."""
    order = list(range(len(post.things)))
    generator.shuffle(order)
    post.things = [post.things[place] for place in order]
    post.deciding = [order.index(place) if place >= 0 else -1 for place in post.deciding]
    post.leading = post.leading and [order.index(place) for place in post.leading]
    post.shown_by = post.shown_by and [places and [order.index(place) for place in places] for places in post.shown_by]
    return post


def _demo(generator: random.Random) -> Post:
    """A mix: posts with one name, with two names of one type, with a type in words and no image, and without a name."""
    case = generator.choices(("one", "two", "in words", "none"), DEMO_SHARES)[0]
    if case == "one":
        entity_type = generator.choice(TYPES)
        tokens, labels = _write(generator, generator.choice(ONE_NAME), [(generator.choice(NAMES), entity_type)])
        things = [_thing(generator, entity_type)]
        if generator.random() < 0.4:
            things.insert(0, Thing("ball", "ball", _place(generator)))
        return Post(tokens, labels, SCENE_OF_TYPE[entity_type], things, [len(things) - 1])
    if case == "two":
        entity_type, names = generator.choice(TYPES), generator.sample(NAMES, 2)
        tokens, labels = _write(generator, generator.choice(TWO_NAMES), [(name, entity_type) for name in names])
        things = [_thing(generator, entity_type, 0.0, 0.48), _thing(generator, entity_type, 0.52, 1.0)]
        return Post(tokens, labels, SCENE_OF_TYPE[entity_type], things, [-1, -1], shown_by=[[0, 1], [0, 1]])
    if case == "in words":
        entity_type = generator.choice(TYPES)
        tokens, labels = _write(generator, generator.choice(TYPE_IN_WORDS[entity_type]), [(generator.choice(NAMES), entity_type)])
        return Post(tokens, labels, deciding=[-1])
    tokens, labels = _write(generator, generator.choice(NO_NAME), [])
    entity_type = generator.choice(TYPES)
    return Post(tokens, labels, SCENE_OF_TYPE[entity_type], [_thing(generator, entity_type)])


def _one(generator: random.Random, entity_type: str, template: str | None = None) -> tuple[list[str], list[str]]:
    return _write(generator, template or generator.choice(ONE_NAME), [(generator.choice(NAMES), entity_type)])


def _global(generator: random.Random) -> Post:
    """Only the scene tells the type: it is empty."""
    entity_type = generator.choice(TYPES)
    return Post(*_one(generator, entity_type), SCENE_OF_TYPE[entity_type], [], [-1], shown_by=[None])


def _object(generator: random.Random) -> Post:
    """One thing of every type is drawn, so the whole image says nothing. The only region is around the thing that tells."""
    entity_type = generator.choice(TYPES)
    corners = [(x, y) for x in (0.03, 0.53) for y in (0.03, 0.53)]
    generator.shuffle(corners)
    things = []
    for other, (x, y) in zip(TYPES, corners, strict=True):
        x, y = x + generator.uniform(0, 0.08), y + generator.uniform(0, 0.06)
        box = (round(x, 4), round(y, 4), round(x + 0.35, 4), round(y + 0.38, 4))
        things.append(Thing(generator.choice(KINDS_OF_TYPE[other]), "thing", box, other == entity_type))
    return Post(*_one(generator, entity_type), "wall", things, [TYPES.index(entity_type)])


def _semantic(generator: random.Random, words: Mapping[str, tuple[str, ...]] | None = None) -> Post:
    """The region shows a grey disc: only the words of its label tell the type."""
    entity_type = generator.choice(TYPES)
    thing = Thing("ball", generator.choice((words or SEEN_WORDS)[entity_type]), _place(generator), color=GREY)
    return Post(*_one(generator, entity_type), "wall", [thing], [0])


def _semantic_unseen(generator: random.Random) -> Post:
    """As `_semantic`, with label words that never occur there."""
    return _semantic(generator, UNSEEN_WORDS)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4)


def _spatial(generator: random.Random) -> Post:
    """Two regions labelled frame: the spatial relation of the one with the star, the subject, to the other tells the type.

    A relation has the model's name for it: what the subject is to the object, or where the object is, seen from the subject.
    The star is inside the subject; it is inside the object only if the whole subject is. Nothing is drawn, so that only the
    boxes tell.
    """
    entity_type = generator.choice(TYPES)
    relation = generator.choice(RELATIONS_OF_TYPE[entity_type])
    x, y = generator.uniform(0.32, 0.42), generator.uniform(0.36, 0.4)
    big, small = _box(x - 0.2, y - 0.2, 0.5, 0.5), _box(x, y, 0.2, 0.2)
    if relation == "inside":
        subject, other, star = small, big, (x + 0.07, y + 0.07)
    elif relation == "cover":
        subject, other, star = big, small, (x - 0.15, y - 0.15)
    else:
        dx, dy = MOVES[relation]
        subject, other = _box(x, y, 0.24, 0.24), _box(x + dx, y + dy, 0.24, 0.24)
        star = (x, y + 0.09) if relation == "overlap" else (x + 0.09, y + 0.09)
    things = [Thing("nothing", "frame", box) for box in (subject, other)]
    things.append(Thing("nothing", "star", _box(*star, 0.045, 0.06)))
    return Post(*_one(generator, entity_type), "wall", things, [0], [2], [[0, 1]])


def _by_side(generator: random.Random) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Words and labels of two names of two types, after the words "left" and "right"; and the type and side of each name."""
    types = generator.sample(TYPES, 2)
    sides = generator.sample(("left", "right"), 2)
    template = f"{sides[0]} {{a}} , {sides[1]} {{b}}"
    tokens, labels = _write(generator, template, list(zip(generator.sample(NAMES, 2), types, strict=True)))
    return tokens, labels, list(zip(types, sides, strict=True))


def _alignment(generator: random.Random) -> Post:
    """Two names of two types, and one thing of each type: only the words "left" and "right" say which belongs to which."""
    tokens, labels, types_and_sides = _by_side(generator)
    spans = {"left": (0.0, 0.48), "right": (0.52, 1.0)}
    things = [_thing(generator, entity_type, *spans[side]) for entity_type, side in types_and_sides]
    return Post(tokens, labels, "wall", things, [0, 1])


def _figure1b(generator: random.Random) -> Post:
    """Two names, as in the paper's figure 1b: the words tell the type of one of them, the image that of the other."""
    type_in_image, type_in_words = generator.choice(TYPES), generator.choice(TYPES)
    names = generator.sample(NAMES, 2)
    sentence = generator.choice(TYPE_IN_WORDS[type_in_words])
    first = generator.random() < 0.5
    template = f"{sentence} , {{b}} too" if first else f"{{b}} and {sentence}"
    tokens, labels = _write(generator, template, [(names[0], type_in_words), (names[1], type_in_image)])
    return Post(tokens, labels, "wall", [_thing(generator, type_in_image)], [-1, 0] if first else [0, -1])


def _iterations(generator: random.Random) -> Post:
    """Two hops: "left" or "right" leads to the ball on that side, and the thing at the height of that ball tells the type.

    Both things are in the middle, one high and one low, so that their own place says nothing.
    """
    tokens, labels, types_and_sides = _by_side(generator)
    things = []
    for (entity_type, side), height in zip(types_and_sides, generator.sample((0.06, 0.62), 2), strict=True):
        ball_x = {"left": 0.04, "right": 0.8}[side] + generator.uniform(-0.02, 0.02)
        y = height + generator.uniform(-0.02, 0.02)
        thing = generator.choice(KINDS_OF_TYPE[entity_type])
        things.append(Thing(thing, "thing", _box(generator.uniform(0.34, 0.42), y, 0.26, 0.32)))
        things.append(Thing("ball", "ball", _box(ball_x, y + 0.06, 0.16, 0.2), color=GREY))
    return Post(tokens, labels, "wall", things, [0, 2], [1, 3])


def _not_shown(generator: random.Random) -> Post:
    """Words tell the type. Of two things one is of that type, or, in half of the posts, neither: then the name is not shown."""
    entity_type = generator.choice(TYPES)
    others = [other for other in TYPES if other != entity_type]
    is_shown = generator.random() < 0.5
    types = [entity_type, generator.choice(others)] if is_shown else generator.sample(others, 2)
    spans = generator.sample(((0.0, 0.48), (0.52, 1.0)), 2)
    # Every region has the same label: only what it shows tells whether it is the one.
    things = [replace(_thing(generator, kind, *span), label="thing") for kind, span in zip(types, spans, strict=True)]
    tokens, labels = _one(generator, entity_type, generator.choice(TYPE_IN_WORDS[entity_type]))
    return Post(tokens, labels, "wall", things, [-1], shown_by=[[0] if is_shown else []])


SCENE_WORDS = {
    "field": "on this pitch", "valley": "in these hills", "hall": "in this hall", "stage": "on stage",
}  # fmt: skip
GREY = (90, 90, 90)
SEEN_WORDS = {
    "PER": ("woman", "boy", "player"), "LOC": ("bridge", "beach", "river"),
    "ORG": ("office", "factory", "bank"), "MISC": ("guitar", "trophy", "album"),
}  # fmt: skip
UNSEEN_WORDS = {
    "PER": ("man", "girl"), "LOC": ("skyscraper", "lake"), "ORG": ("company", "store"), "MISC": ("piano", "medal"),
}  # fmt: skip
RELATIONS_OF_TYPE = {
    "PER": ("inside", "left"),
    "LOC": ("cover", "right"),
    "ORG": ("overlap", "above"),
    "MISC": ("below",),
}
MOVES = {"overlap": (0.05, 0.0), "left": (-0.28, 0.0), "right": (0.28, 0.0), "above": (0.0, -0.3), "below": (0.0, 0.3)}
DEMO_SHARES = (0.45, 0.25, 0.15, 0.15)
SCENARIOS = {
    "demo": _demo,
    "global": _global,
    "object": _object,
    "semantic": _semantic,
    "semantic-unseen": _semantic_unseen,
    "spatial": _spatial,
    "alignment": _alignment,
    "figure1b": _figure1b,
    "iterations": _iterations,
    "not-shown": _not_shown,
}


def _check(scenario: str):
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario: expected one of {', '.join(SCENARIOS)}, got {scenario!r}")


def best_f1_without_evidence(scenario: str = "demo") -> float:
    """Best expected F1 of a model that does not use what the scenario is about.

    It can find every name, so F1 is the share of types that it gets right:

    - demo: a post has 0.45 + 2 · 0.25 + 0.15 entities on average. Words tell the type of the 0.15; without the image, the
      others are a guess among four types;
    - global, object, semantic, semantic-unseen, spatial: a guess among four types;
    - alignment, iterations: the image shows two types, and which name has which is a guess (from text alone: 1/4);
    - figure1b: words tell the type of one of two names, the other is a guess among four types: (1 + 1/4) / 2;
    - not-shown: words tell the type.

    Raises:
        ValueError: there is no such scenario.
    """
    _check(scenario)
    one, two, in_words, _ = DEMO_SHARES
    in_image = one + 2 * two
    best = {
        "demo": (in_words + in_image / len(TYPES)) / (in_words + in_image),
        "alignment": 1 / 2,
        "iterations": 1 / 2,
        "figure1b": (1 + 1 / len(TYPES)) / 2,
        "not-shown": 1.0,
    }
    return best.get(scenario, 1 / len(TYPES))


def _columns(posts: Iterable[Post], ids: list[str], generator: random.Random) -> tuple[dict[str, list], Features]:
    """Columns and features of posts with their images: those of every data set with `entity_boxes`, `deciding_region` and
    `leading_region`.
    """
    names = bio_labels(f"B-{entity_type}" for entity_type in TYPES)
    region_columns = {"deciding_region": List(Value("int64")), "leading_region": List(Value("int64"))}
    features = Features(row_features(names, with_regions=True, with_entity_boxes=True) | region_columns)
    columns: dict[str, list] = {name: [] for name in features}
    for post_id, post in zip(ids, posts, strict=True):
        image = post.rendered or render(post, generator)
        boxed = [place for place, thing in enumerate(post.things) if thing.boxed]
        columns["id"].append(post_id)
        columns["tokens"].append(post.tokens)
        columns["ner_tags"].append([names.index(label) for label in post.labels])
        columns["image"].append(image and {"bytes": image, "path": None})
        columns["boxes"].append([list(post.things[place].box) for place in boxed])
        columns["box_labels"].append([post.things[place].label for place in boxed])
        columns["box_scores"].append([round(generator.uniform(0.7, 1.0), 3) for _ in boxed])
        shown_by = post.shown_by or [[place] if place >= 0 else [] for place in post.deciding]
        columns["entity_boxes"].append(
            [None if places is None or not image else [list(post.things[place].box) for place in places] for places in shown_by]
        )
        for column, places in zip(region_columns, (post.deciding, post.leading or post.deciding), strict=True):
            columns[column].append([boxed.index(place) if place in boxed else -1 for place in places])
    return columns, features


def synthetic_dataset(num_posts: int, seed: int, scenario: str = "demo") -> Dataset:
    """Synthetic posts of a scenario. A shorter data set of the same seed is the beginning of a longer one.

    Args:
        scenario: one of `SCENARIOS`.

    Returns:
        The rows of every data set with `entity_boxes`, null where a post has no image or only its scene tells the type; and for
        each entity in order `deciding_region`, the index of the region that tells its type, or −1, and `leading_region`, the
        region by which the deciding one is found (itself, if no other is needed).

    Raises:
        ValueError: there is no such scenario.
    """
    _check(scenario)
    generator = random.Random(f"{scenario} {seed}")
    # Each post is drawn just before its image: so a shorter data set is the beginning of a longer one.
    posts = (_shuffled(generator, SCENARIOS[scenario](generator)) for _ in range(num_posts))
    columns, features = _columns(posts, [f"{scenario}-{seed}-{index}" for index in range(num_posts)], generator)
    return Dataset.from_dict(columns, features=features)


def mixed_relevance_dataset(num_posts: int, seed: int, num_images: int = 800) -> Dataset:
    """Posts whose words name a scene; half of them have another post's image, of another scene. `own_image` says which.

    The scene says nothing about the type. In a post's own image, a thing tells the type; another post's image says nothing
    about it, because it is drawn independently. In half of the posts words tell the type as well, so that it does harm to
    trust the wrong image. Posts share images, so that no image can be learned by heart.
    """
    generator = random.Random(f"mixed {seed}")
    images: dict[tuple[str, str], list[Post]] = {}
    cases = [(scene, entity_type) for scene in sorted(SCENE_WORDS) for entity_type in TYPES]
    for index in range(num_images):
        scene, entity_type = cases[index % len(cases)]
        # Every region has the same label: only what it shows tells the type.
        thing = replace(_thing(generator, entity_type), label="thing")
        image = Post([], [], scene, [thing])
        image.rendered = render(image, generator)
        images.setdefault((scene, entity_type), []).append(image)
    own_image = [index % 2 == 0 for index in range(num_posts)]
    generator.shuffle(own_image)
    posts = []
    for is_own in own_image:
        entity_type, scene_in_words = generator.choice(TYPES), generator.choice(sorted(SCENE_WORDS))
        template = generator.choice(TYPE_IN_WORDS[entity_type] if generator.random() < 0.5 else ONE_NAME)
        tokens, labels = _one(generator, entity_type, f"{template} {SCENE_WORDS[scene_in_words]}")
        other_scenes = [scene for scene in sorted(SCENE_WORDS) if scene != scene_in_words]
        scene = scene_in_words if is_own else generator.choice(other_scenes)
        image = generator.choice(images[scene, entity_type if is_own else generator.choice(TYPES)])
        posts.append(replace(image, tokens=tokens, labels=labels, deciding=[0 if is_own else -1]))
    columns, features = _columns(posts, [f"mixed-{seed}-{index}" for index in range(num_posts)], generator)
    features = Features(features | {"own_image": Value("bool")})
    return Dataset.from_dict(columns | {"own_image": own_image}, features=features)


def synthetic_splits(num_posts: list[int], scenario: str = "demo", seed: int = 0) -> DatasetDict:
    """Train, validation and test with these numbers of posts, each from another seed."""
    splits = zip(("train", "validation", "test"), num_posts, strict=False)
    return DatasetDict(
        {split: synthetic_dataset(count, 1000 * seed + place, scenario) for place, (split, count) in enumerate(splits)}
    )
