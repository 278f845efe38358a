"""Synthetic posts: rendered pictures and posts about them in which the picture says what type an ambiguous name has.

Everything is drawn from a seed. Name, template, place, size, colour and company are drawn apart from the type, so that
only the picture (or, in posts without one, a cue word) tells it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
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
TOLD = {
    "PER": ("Mr {a} called me back", "happy birthday to our friend {a} , born today", "{a} and his wife said hello"),
    "LOC": ("driving through downtown {a} today", "the weather in {a} is bad", "flying from {a} to the coast"),
    "ORG": ("{a} Inc hired ten people", "shares of {a} fell five percent", "the {a} board met its staff"),
    "MISC": ("the new {a} album is out", "watched the {a} movie twice", "tickets for the {a} festival sold out"),
}
BEFORE = ("", "", "", "RT @anna_b :", "wow ,", "# tbt", "ok", "well ,", "@joe :", "today :")
AFTER = ("", "", "", "!", "...", "# love", "😍", "https://t.co/x1", "# photo # day", "lol", "🎉 🎉")


# PostSource


def _write(generator: random.Random, template: str, entities: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Tokens and labels of a template whose {a} and {b} are the entities (name, type), with something around it."""
    places = dict(zip(("{a}", "{b}"), entities, strict=False))
    tokens, labels = [], []
    for piece in f"{generator.choice(BEFORE)} {template} {generator.choice(AFTER)}".split():
        if piece in places:
            name, kind = places[piece]
            parts = name.split()
            tokens += parts
            labels += [f"B-{kind}"] + [f"I-{kind}"] * (len(parts) - 1)
        else:
            tokens.append(piece)
            labels.append("O")
    return tokens, labels


def _place(generator: random.Random, left: float = 0.0, right: float = 1.0) -> tuple[float, float, float, float]:
    """A box somewhere between two sides of the picture."""
    width = generator.uniform(0.22, min(0.42, right - left))
    height = generator.uniform(0.3, 0.6)
    x, y = generator.uniform(left, right - width), generator.uniform(0.03, 0.97 - height)
    return round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4)


def _thing(generator: random.Random, kind: str, left: float = 0.0, right: float = 1.0) -> Thing:
    drawn = generator.choice(KINDS_OF_TYPE[kind])
    return Thing(drawn, drawn, _place(generator, left, right))


def _shuffled(generator: random.Random, post: Post) -> Post:
    """The post with its things in another order, so that a region's place in the list says nothing."""
    order = list(range(len(post.things)))
    generator.shuffle(order)
    post.things = [post.things[place] for place in order]
    post.deciding = [order.index(place) if place >= 0 else -1 for place in post.deciding]
    post.leading = post.leading and [order.index(place) for place in post.leading]
    return post


def _demo(generator: random.Random) -> Post:
    """A mix of posts: one name, two of one type, a type told by words without a picture, no name at all."""
    case = generator.choices(("one", "two", "told", "none"), DEMO_SHARES)[0]
    if case == "one":
        kind = generator.choice(TYPES)
        tokens, labels = _write(generator, generator.choice(ONE_NAME), [(generator.choice(NAMES), kind)])
        things = [_thing(generator, kind)]
        if generator.random() < 0.4:
            things.insert(0, Thing("ball", "ball", _place(generator)))
        return Post(tokens, labels, SCENE_OF_TYPE[kind], things, [len(things) - 1])
    if case == "two":
        kind, names = generator.choice(TYPES), generator.sample(NAMES, 2)
        tokens, labels = _write(generator, generator.choice(TWO_NAMES), [(name, kind) for name in names])
        things = [_thing(generator, kind, 0.0, 0.48), _thing(generator, kind, 0.52, 1.0)]
        return Post(tokens, labels, SCENE_OF_TYPE[kind], things, [-1, -1])
    if case == "told":
        kind = generator.choice(TYPES)
        tokens, labels = _write(generator, generator.choice(TOLD[kind]), [(generator.choice(NAMES), kind)])
        return Post(tokens, labels, deciding=[-1])
    tokens, labels = _write(generator, generator.choice(NO_NAME), [])
    kind = generator.choice(TYPES)
    return Post(tokens, labels, SCENE_OF_TYPE[kind], [_thing(generator, kind)])


def _one(generator: random.Random, kind: str, template: str | None = None):
    return _write(generator, template or generator.choice(ONE_NAME), [(generator.choice(NAMES), kind)])


def _global(generator: random.Random) -> Post:
    """Only the scene tells: there is nothing in it."""
    kind = generator.choice(TYPES)
    return Post(*_one(generator, kind), SCENE_OF_TYPE[kind], [], [-1])


def _object(generator: random.Random) -> Post:
    """One thing of every type is drawn, so the grid shows them all; the only region is around the one that tells."""
    kind = generator.choice(TYPES)
    corners = [(x, y) for x in (0.03, 0.53) for y in (0.03, 0.53)]
    generator.shuffle(corners)
    things = []
    for other, (x, y) in zip(TYPES, corners, strict=True):
        x, y = x + generator.uniform(0, 0.08), y + generator.uniform(0, 0.06)
        box = (round(x, 4), round(y, 4), round(x + 0.35, 4), round(y + 0.38, 4))
        things.append(Thing(generator.choice(KINDS_OF_TYPE[other]), "thing", box, other == kind))
    return Post(*_one(generator, kind), "wall", things, [TYPES.index(kind)])


def _semantic(generator: random.Random, words: dict[str, tuple[str, ...]] | None = None) -> Post:
    """Every region is a disc; only the words of its label tell."""
    kind = generator.choice(TYPES)
    thing = Thing("ball", generator.choice((words or SEEN_WORDS)[kind]), _place(generator), color=GREY)
    return Post(*_one(generator, kind), "wall", [thing], [0])


def _semantic_unseen(generator: random.Random) -> Post:
    """The same with label words that the semantic level never shows."""
    return _semantic(generator, UNSEEN_WORDS)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4)


def _spatial(generator: random.Random) -> Post:
    """Two equal frames; how the one with the star lies to the other tells. A relation is named as the model names it:
    what the subject is to the object, or where the object lies as seen from the subject. The star lies in the subject,
    and in the object only if the subject does too. Nothing is drawn: no pixel can stand in for the boxes."""
    kind = generator.choice(TYPES)
    relation = generator.choice(RELATIONS_OF_TYPE[kind])
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
    return Post(*_one(generator, kind), "wall", things, [0], [2])


def _by_side(generator: random.Random) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Words and labels of two names of two types behind the words "left" and "right", and each name's type and side."""
    kinds = generator.sample(TYPES, 2)
    sides = generator.sample(("left", "right"), 2)
    template = f"{sides[0]} {{a}} , {sides[1]} {{b}}"
    tokens, labels = _write(generator, template, list(zip(generator.sample(NAMES, 2), kinds, strict=True)))
    return tokens, labels, list(zip(kinds, sides, strict=True))


def _alignment(generator: random.Random) -> Post:
    """Two names of two types, a thing of each: only the words "left" and "right" say which is whose."""
    tokens, labels, named = _by_side(generator)
    spans = {"left": (0.0, 0.48), "right": (0.52, 1.0)}
    things = [_thing(generator, kind, *spans[side]) for kind, side in named]
    return Post(tokens, labels, "wall", things, [0, 1])


def _figure1b(generator: random.Random) -> Post:
    """Two names: the words tell the type of one, in front or behind, the picture shows the other."""
    shown, told = generator.choice(TYPES), generator.choice(TYPES)
    names = generator.sample(NAMES, 2)
    cue = generator.choice(TOLD[told])
    first = generator.random() < 0.5
    template = f"{cue} , {{b}} too" if first else f"{{b}} and {cue}"
    tokens, labels = _write(generator, template, [(names[0], told), (names[1], shown)])
    return Post(tokens, labels, "wall", [_thing(generator, shown)], [-1, 0] if first else [0, -1])


def _iterations(generator: random.Random) -> Post:
    """Two hops: "left" or "right" leads to the ball on that side, and the thing level with that ball tells. Both things
    stand in the middle, one high and one low, whichever side is whose."""
    tokens, labels, named = _by_side(generator)
    things = []
    for (kind, side), height in zip(named, generator.sample((0.06, 0.62), 2), strict=True):
        ball_x = {"left": 0.04, "right": 0.8}[side] + generator.uniform(-0.02, 0.02)
        y = height + generator.uniform(-0.02, 0.02)
        thing = generator.choice(KINDS_OF_TYPE[kind])
        things.append(Thing(thing, "thing", _box(generator.uniform(0.34, 0.42), y, 0.26, 0.32)))
        things.append(Thing("ball", "ball", _box(ball_x, y + 0.06, 0.16, 0.2), color=GREY))
    return Post(tokens, labels, "wall", things, [0, 2], [1, 3])


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
LEVELS = {
    "demo": _demo,
    "global": _global,
    "object": _object,
    "semantic": _semantic,
    "semantic-unseen": _semantic_unseen,
    "spatial": _spatial,
    "alignment": _alignment,
    "figure1b": _figure1b,
    "iterations": _iterations,
}


def _check(level: str):
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}: one of {', '.join(LEVELS)}")


def best_f1_without_evidence(level: str = "demo") -> float:
    """Best expected F1 without what the level is about; every span is found, so F1 is the share of right types.

    - demo: of 0.45 + 2 · 0.25 + 0.15 entities a post, those of the third kind are told by words, the others are a
      guess among four without the picture;
    - global, object, semantic, semantic-unseen, spatial: a guess among four;
    - alignment, iterations: the picture shows two types, and which is whose is a guess among two (text alone: 1/4);
    - figure1b: one of two names is told by words, the other a guess among four: (1 + 1/4) / 2.
    """
    _check(level)
    one, two, told, _ = DEMO_SHARES
    ambiguous = one + 2 * two
    demo = (told + ambiguous / len(TYPES)) / (told + ambiguous)
    others = {
        "demo": demo,
        "alignment": 1 / 2,
        "iterations": 1 / 2,
        "figure1b": (1 + 1 / len(TYPES)) / 2,
    }
    return others.get(level, 1 / len(TYPES))


def _rows(posts: Iterable[Post], ids: list[str], generator: random.Random) -> tuple[dict[str, list], Features]:
    """Columns and features of rendered posts: the row of every data set, `deciding_region` and `leading_region`."""
    names = bio_labels(f"B-{kind}" for kind in TYPES)
    told_by = {"deciding_region": List(Value("int64")), "leading_region": List(Value("int64"))}
    columns = ("id", "tokens", "ner_tags", "image", "boxes", "box_labels", "box_scores", *told_by)
    rows: dict[str, list] = {name: [] for name in columns}
    for name, post in zip(ids, posts, strict=True):
        picture = post.rendered or render(post, generator)
        boxed = [place for place, thing in enumerate(post.things) if thing.boxed]
        rows["id"].append(name)
        rows["tokens"].append(post.tokens)
        rows["ner_tags"].append([names.index(label) for label in post.labels])
        rows["image"].append(picture and {"bytes": picture, "path": None})
        rows["boxes"].append([list(post.things[place].box) for place in boxed])
        rows["box_labels"].append([post.things[place].label for place in boxed])
        rows["box_scores"].append([round(generator.uniform(0.7, 1.0), 3) for _ in boxed])
        for column, places in zip(told_by, (post.deciding, post.leading or post.deciding), strict=True):
            rows[column].append([boxed.index(place) if place in boxed else -1 for place in places])
    features = Features(row_features(names, with_regions=True) | told_by)
    return rows, features


def synthetic_dataset(num_posts: int, seed: int, level: str = "demo") -> Dataset:
    """Synthetic posts with the row of every data set, and for each entity `deciding_region`, the region that tells its type,
    or −1, and `leading_region`, the one by which that is found, itself where it stands alone."""
    _check(level)
    generator = random.Random(f"{level} {seed}")
    # Drawn one by one between the pictures, so that a shorter set is the beginning of a longer one.
    posts = (_shuffled(generator, LEVELS[level](generator)) for _ in range(num_posts))
    rows, features = _rows(posts, [f"{level}-{seed}-{index}" for index in range(num_posts)], generator)
    return Dataset.from_dict(rows, features=features)


def mixed_relevance_dataset(num_posts: int, seed: int, num_pictures: int = 800) -> Dataset:
    """PostSource whose words name a scene, half of them with a picture of another scene; `own_picture` says which.

    The scene goes with no type. In its own picture a thing tells the name's type; another post's picture tells nothing
    about it, since what it shows is drawn apart. In half of the posts words tell the type too, so that a picture that is
    believed wrongly does harm. PostSource share pictures, so that no picture can be learned by heart.
    """
    generator = random.Random(f"mixed {seed}")
    shown: dict[tuple[str, str], list[Post]] = {}
    cases = [(scene, kind) for scene in sorted(SCENE_WORDS) for kind in TYPES]
    for place in range(num_pictures):
        scene, kind = cases[place % len(cases)]
        # Every region is called the same: only its look tells.
        thing = replace(_thing(generator, kind), label="thing")
        picture = Post([], [], scene, [thing])
        picture.rendered = render(picture, generator)
        shown.setdefault((scene, kind), []).append(picture)
    own = [index % 2 == 0 for index in range(num_posts)]
    generator.shuffle(own)
    posts = []
    for fits in own:
        kind, named = generator.choice(TYPES), generator.choice(sorted(SCENE_WORDS))
        template = generator.choice(TOLD[kind] if generator.random() < 0.5 else ONE_NAME)
        tokens, labels = _one(generator, kind, f"{template} {SCENE_WORDS[named]}")
        scene = named if fits else generator.choice([other for other in sorted(SCENE_WORDS) if other != named])
        picture = generator.choice(shown[scene, kind if fits else generator.choice(TYPES)])
        posts.append(replace(picture, tokens=tokens, labels=labels, deciding=[0 if fits else -1]))
    rows, features = _rows(posts, [f"mixed-{seed}-{index}" for index in range(num_posts)], generator)
    return Dataset.from_dict(rows | {"own_picture": own}, features=Features(features | {"own_picture": Value("bool")}))


def synthetic_splits(num_posts: list[int], level: str = "demo", seed: int = 0) -> DatasetDict:
    """Train, validation and test of the given sizes, from seeds of their own."""
    splits = zip(("train", "validation", "test"), num_posts, strict=False)
    return DatasetDict(
        {split: synthetic_dataset(count, 1000 * seed + place, level) for place, (split, count) in enumerate(splits)}
    )
