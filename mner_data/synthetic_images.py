"""The images of synthetic posts: how they are drawn, and noise that makes them worse."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFilter


@dataclass
class Thing:
    """Something in an image: what is drawn, the label of its region, and its box in [0, 1].

    Attributes:
        boxed: whether the post has a region for it.
        color: of what has no fixed color; `None` for a random one.
    """

    kind: str
    label: str
    box: tuple[float, float, float, float]
    boxed: bool = True
    color: tuple[int, int, int] | None = None


@dataclass
class Post:
    """A post before its image is drawn.

    Attributes:
        scene: the background; `None` for a post without an image.
        deciding: for each entity the index among `things` of the one that tells its type, or −1.
        leading: for each entity the index of the thing by which the deciding one is found; `None` if no other is needed.
        shown_by: for each entity the indices of the things that show it, none if the image does not show it, or `None` if there
            is nothing to look for; by default the deciding thing, if there is one.
        rendered: the image as JPEG, where it is drawn already.
    """

    tokens: list[str]
    labels: list[str]
    scene: str | None = None
    things: list[Thing] = field(default_factory=list)
    deciding: list[int] = field(default_factory=list)
    leading: list[int] | None = None
    shown_by: list[list[int] | None] | None = None
    rendered: bytes | None = None


# What is drawn into a box (x, y, width, height) in pixels


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


def _nothing(pen, x, y, w, h, color):
    """An empty region."""


KINDS = {
    "nothing": _nothing,
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


def render(post: Post, generator: random.Random, scale: int = 1) -> bytes | None:
    """The post's image as JPEG, with a random size and tint; `None` for a post without a scene.

    Args:
        scale: how many times larger than for training. Larger images, which are for people, have smooth edges.
    """
    if post.scene is None:
        return None
    size = generator.choice(SIZES)
    smoothing = 1 if scale == 1 else 2
    width, height = (side * scale * smoothing for side in size)
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image)
    SCENES[post.scene](pen, width, height)
    for thing in post.things:
        color = thing.color or tuple(generator.randint(40, 230) for _ in range(3))
        x1, y1, x2, y2 = thing.box
        KINDS[thing.kind](pen, x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height, color)
    tint = Image.new("RGB", (width, height), tuple(generator.randint(0, 255) for _ in range(3)))
    image = Image.blend(image, tint, generator.uniform(0, 0.15)).reduce(smoothing)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


# Noise


def blur(image: Image.Image, radius: float = 8) -> Image.Image:
    """The image out of focus."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(radius))


def heavy_jpeg(image: Image.Image, quality: int = 3) -> Image.Image:
    """The image after a compression so strong that blocks are visible."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def occlude(image: Image.Image, share: float = 0.6) -> Image.Image:
    """The image with a grey box in the middle, which hides this share of its area."""
    image = image.convert("RGB")
    side = share**0.5
    width, height = round(image.width * side), round(image.height * side)
    image.paste(
        (128, 128, 128),
        ((image.width - width) // 2, (image.height - height) // 2)
        + ((image.width - width) // 2 + width, (image.height - height) // 2 + height),
    )
    return image


def pure_noise(image: Image.Image, seed: int = 0) -> Image.Image:
    """Uniform noise of the image's size: nothing of the image is left."""
    return Image.frombytes("RGB", image.size, random.Random(seed).randbytes(3 * image.width * image.height))
