"""Planted posts: rendered pictures and posts about them in which the picture says what type an ambiguous name has.

Everything is drawn from a seed. Name, template, place, size, colour and company are drawn apart from the type, so that
only the picture (or, in posts without one, a cue word) tells it.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field

from datasets import Dataset, DatasetDict, Features, List, Value
from PIL import Image, ImageDraw

from .data import label_names, row_features

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


@dataclass
class Thing:
    """Something drawn: its kind, the label its region carries, its box in [0, 1]; without a region if not `boxed`."""

    kind: str
    label: str
    box: tuple[float, float, float, float]
    boxed: bool = True


@dataclass
class Post:
    """A post before it is rendered. `deciding` has, an entity, the index among `things` of what tells its type, or −1."""

    tokens: list[str]
    labels: list[str]
    scene: str | None = None
    things: list[Thing] = field(default_factory=list)
    deciding: list[int] = field(default_factory=list)


# Drawing: a box in pixels and a colour


def _person(pen: ImageDraw.ImageDraw, x: float, y: float, w: float, h: float, color):
    skin = (224, 172, 125)
    pen.polygon(
        [(x + w * 0.15, y + h), (x + w * 0.25, y + h * 0.42), (x + w * 0.75, y + h * 0.42), (x + w * 0.85, y + h)],
        fill=color,
    )
    pen.ellipse((x + w * 0.3, y, x + w * 0.7, y + h * 0.42), fill=skin)
    pen.chord((x + w * 0.28, y - h * 0.02, x + w * 0.72, y + h * 0.36), 180, 360, fill=(60, 40, 30))


def _child(pen, x, y, w, h, color):
    _person(pen, x + w * 0.1, y + h * 0.1, w * 0.8, h * 0.9, color)
    pen.ellipse((x + w * 0.62, y, x + w, y + h * 0.35), fill=(235, 70, 90))


def _mountain(pen, x, y, w, h, color):
    pen.polygon([(x, y + h), (x + w * 0.5, y), (x + w, y + h)], fill=(105, 110, 125))
    pen.polygon([(x + w * 0.35, y + h * 0.3), (x + w * 0.5, y), (x + w * 0.65, y + h * 0.3)], fill="white")


def _tree(pen, x, y, w, h, color):
    pen.rectangle((x + w * 0.42, y + h * 0.5, x + w * 0.58, y + h), fill=(110, 70, 35))
    pen.ellipse((x + w * 0.05, y, x + w * 0.95, y + h * 0.7), fill=(30, 130, 50))


def _office(pen, x, y, w, h, color):
    pen.rectangle((x + w * 0.1, y, x + w * 0.9, y + h), fill=(75, 85, 150))
    for row in range(4):
        for column in range(3):
            left, top = x + w * (0.2 + 0.22 * column), y + h * (0.08 + 0.22 * row)
            pen.rectangle((left, top, left + w * 0.14, top + h * 0.12), fill=(250, 235, 140))


def _factory(pen, x, y, w, h, color):
    pen.rectangle((x, y + h * 0.45, x + w, y + h), fill=(165, 60, 45))
    for column in (0.12, 0.42, 0.72):
        pen.rectangle((x + w * column, y, x + w * (column + 0.14), y + h * 0.5), fill=(120, 45, 35))


def _trophy(pen, x, y, w, h, color):
    gold = (240, 185, 30)
    pen.arc((x, y + h * 0.05, x + w, y + h * 0.5), 0, 360, fill=gold, width=max(2, int(w * 0.08)))
    pen.pieslice((x + w * 0.15, y - h * 0.45, x + w * 0.85, y + h * 0.6), 0, 180, fill=gold)
    pen.rectangle((x + w * 0.44, y + h * 0.55, x + w * 0.56, y + h * 0.8), fill=gold)
    pen.rectangle((x + w * 0.22, y + h * 0.8, x + w * 0.78, y + h), fill=(90, 60, 20))


def _guitar(pen, x, y, w, h, color):
    wood = (190, 95, 200)
    pen.line((x + w * 0.4, y + h * 0.6, x + w * 0.9, y + h * 0.05), fill=(50, 25, 60), width=max(2, int(w * 0.1)))
    pen.ellipse((x, y + h * 0.5, x + w * 0.55, y + h), fill=wood)
    pen.ellipse((x + w * 0.2, y + h * 0.38, x + w * 0.62, y + h * 0.75), fill=wood)
    pen.ellipse((x + w * 0.22, y + h * 0.6, x + w * 0.42, y + h * 0.78), fill=(50, 25, 60))


def _disc(pen, x, y, w, h, color):
    pen.ellipse((x, y, x + w, y + h), fill=color)


KINDS = {
    "person": _person,
    "child": _child,
    "mountain": _mountain,
    "tree": _tree,
    "office": _office,
    "factory": _factory,
    "trophy": _trophy,
    "guitar": _guitar,
    "ball": _disc,
}
KINDS_OF_TYPE = {
    "PER": ("person", "child"),
    "LOC": ("mountain", "tree"),
    "ORG": ("office", "factory"),
    "MISC": ("trophy", "guitar"),
}


def _field(pen, width, height):
    pen.rectangle((0, 0, width, height), fill=(70, 160, 70))
    for stripe in range(0, width, max(8, width // 6)):
        pen.rectangle((stripe, 0, stripe + width // 12, height), fill=(90, 180, 85))


def _valley(pen, width, height):
    pen.rectangle((0, 0, width, height), fill=(150, 205, 245))
    pen.ellipse((-width * 0.3, height * 0.55, width * 0.7, height * 1.6), fill=(125, 190, 95))
    pen.ellipse((width * 0.3, height * 0.65, width * 1.4, height * 1.7), fill=(100, 170, 85))


def _hall(pen, width, height):
    pen.rectangle((0, 0, width, height), fill=(225, 225, 230))
    for line in range(0, width, max(8, width // 8)):
        pen.line((line, 0, line, height), fill=(170, 170, 185), width=2)
    pen.rectangle((0, height * 0.8, width, height), fill=(150, 150, 165))


def _stage(pen, width, height):
    pen.rectangle((0, 0, width, height), fill=(45, 20, 60))
    for left, color in ((0.1, (150, 60, 160)), (0.5, (200, 110, 60)), (0.8, (90, 60, 190))):
        pen.polygon([(width * left, 0), (width * (left - 0.15), height), (width * (left + 0.2), height)], fill=color)


def _wall(pen, width, height):
    pen.rectangle((0, 0, width, height), fill=(232, 220, 200))


SCENES = {"field": _field, "valley": _valley, "hall": _hall, "stage": _stage, "wall": _wall}
SCENE_OF_TYPE = {"PER": "field", "LOC": "valley", "ORG": "hall", "MISC": "stage"}
SIZES = ((160, 160), (200, 150), (150, 200), (240, 135), (180, 120))


def render(post: Post, generator: random.Random) -> bytes | None:
    """The post's picture as JPEG, of a size and a tint drawn from the generator; `None` for a post without a scene."""
    if post.scene is None:
        return None
    width, height = generator.choice(SIZES)
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image)
    SCENES[post.scene](pen, width, height)
    for thing in post.things:
        color = tuple(generator.randint(40, 230) for _ in range(3))
        x1, y1, x2, y2 = thing.box
        KINDS[thing.kind](pen, x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height, color)
    tint = Image.new("RGB", (width, height), tuple(generator.randint(0, 255) for _ in range(3)))
    file = io.BytesIO()
    Image.blend(image, tint, generator.uniform(0, 0.15)).save(file, "JPEG", quality=90)
    return file.getvalue()


# Posts


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
        return Post(tokens, labels, SCENE_OF_TYPE[kind], things, [0, 1])
    if case == "told":
        kind = generator.choice(TYPES)
        tokens, labels = _write(generator, generator.choice(TOLD[kind]), [(generator.choice(NAMES), kind)])
        return Post(tokens, labels, deciding=[-1])
    tokens, labels = _write(generator, generator.choice(NO_NAME), [])
    kind = generator.choice(TYPES)
    return Post(tokens, labels, SCENE_OF_TYPE[kind], [_thing(generator, kind)])


DEMO_SHARES = (0.45, 0.25, 0.15, 0.15)
LEVELS = {"demo": _demo}


def planted_ceiling(level: str = "demo") -> float:
    """Best expected F1 without the picture: every span is found, an ambiguous name's type is one of four.

    Of the demo's 0.45 + 2 · 0.25 + 0.15 entities a post, those of the third kind are told by words.
    """
    one, two, told, _ = DEMO_SHARES
    ambiguous = one + 2 * two
    return (told + ambiguous / len(TYPES)) / (told + ambiguous)


def planted_dataset(num_posts: int, seed: int, level: str = "demo") -> Dataset:
    """Planted posts with the row of every data set, and `deciding_region`: an entity's region that tells, or −1."""
    generator = random.Random(f"{level} {seed}")
    names = label_names(f"B-{kind}" for kind in TYPES)
    columns = ("id", "tokens", "ner_tags", "image", "boxes", "box_labels", "box_scores", "deciding_region")
    rows: dict[str, list] = {name: [] for name in columns}
    for index in range(num_posts):
        post = LEVELS[level](generator)
        picture = render(post, generator)
        boxed = [place for place, thing in enumerate(post.things) if thing.boxed]
        rows["id"].append(f"{level}-{seed}-{index}")
        rows["tokens"].append(post.tokens)
        rows["ner_tags"].append([names.index(label) for label in post.labels])
        rows["image"].append(picture and {"bytes": picture, "path": None})
        rows["boxes"].append([list(post.things[place].box) for place in boxed])
        rows["box_labels"].append([post.things[place].label for place in boxed])
        rows["box_scores"].append([round(generator.uniform(0.7, 1.0), 3) for _ in boxed])
        rows["deciding_region"].append([boxed.index(place) if place in boxed else -1 for place in post.deciding])
    features = Features(row_features(names, with_regions=True) | {"deciding_region": List(Value("int64"))})
    return Dataset.from_dict(rows, features=features)


def planted_splits(num_posts: list[int], level: str = "demo", seed: int = 0) -> DatasetDict:
    """Train, validation and test of the given sizes, from seeds of their own."""
    splits = zip(("train", "validation", "test"), num_posts, strict=False)
    return DatasetDict(
        {split: planted_dataset(count, 1000 * seed + place, level) for place, (split, count) in enumerate(splits)}
    )
