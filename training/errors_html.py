"""What `errors` shows to people: a page with each error and its post, and a plot of the table of types."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

from modeling_hamlearning.drawing import SIDES
from modeling_hamlearning.drawing_html import STYLE, post_html

from .curves import save_figure

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first, since there may be no screen)

# A page with more errors takes long to open; `errors.jsonl` has all.
MAX_SHOWN = 1000
# Longest side of an image on the page, in pixels.
THUMBNAIL = 300
KINDS = {
    "missed": "no predicted entity shares a word with it",
    "invented": "no gold entity shares a word with it",
    "mistyped": "the right words, another type",
    "cut": "other words",
}


def plot_confusion(table: dict[str, dict[str, int]], path: str | Path, split: str) -> Path:
    """Draw the table of types, each row's counts coloured by their share of the row."""
    rows, columns = list(table), list(next(iter(table.values())))
    shares = [[count / max(1, sum(table[row].values())) for count in table[row].values()] for row in rows]
    size = (2.2 + 0.75 * len(columns), 1.4 + 0.5 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if (y, x) != (len(rows) - 1, len(columns) - 1):  # neither gold nor predicted
                color = "white" if shares[y][x] > 0.6 else "black" if table[row][column] else "#999999"
                axes.text(x, y, f"{table[row][column]:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=45 if max(map(len, columns)) > 8 else 0)
    axes.set_yticks(range(len(rows)), rows)
    # Lines part what is no type from the types.
    axes.axvline(len(columns) - 1.5, color="#444444", linewidth=1)
    axes.axhline(len(rows) - 1.5, color="#444444", linewidth=1)
    axes.set(xlabel="predicted", ylabel="gold", title=f"Types on the {split} split")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save_figure(figure, path)
    return Path(path)


def errors_html(
    errors: list[dict[str, Any]], images: Iterable[Image.Image | None], report: dict[str, Any], picture: Path, split: str
) -> str:
    """A page that stands alone: no script, no file, nothing fetched, everything in it escaped.

    Args:
        errors: as [`find_errors`] returns them.
        images: the image of each error's post at its full size, in the same order; read one by one.
        report: `errors`, `by_length` and `by_image` of [`write_errors`].
        picture: the PNG file of the table of types.
    """
    filters = "".join(
        f'<label title="{meaning}"><input type="checkbox" id="{kind}" checked> {kind} <b>{report["errors"].get(kind, 0):,}</b>'
        f"<small>{meaning}</small></label>"
        for kind, meaning in KINDS.items()
    )
    shown = (
        f"The {MAX_SHOWN:,} most confident of {len(errors):,} errors; errors.jsonl has all." if len(errors) > MAX_SHOWN else ""
    )
    articles = "".join(_article(error, image) for error, image in zip(errors[:MAX_SHOWN], images, strict=False))
    confusion = f'<img alt="Table of types" src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">'
    tables = _table("Words of the entity", report["by_length"]) + _table("Posts", report["by_image"])
    hidden = "".join(f"body:has(#{kind}:not(:checked)) article.{kind}" + " { display: none; }\n" for kind in KINDS)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Errors on the {escape(split)} split</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{_PAGE_STYLE}{hidden}</style></head><body>"
        f"<h1>Errors on the {escape(split)} split</h1>"
        f'<section class="summary">{confusion}<div>{tables}</div></section>'
        f'<form class="filters">{filters}</form><p>Sorted by confidence: the score of the predicted entity, and for a missed '
        f"one 1 less the model's probability of it. {shown}</p>{articles or '<p>No errors.</p>'}</body></html>\n"
    )


def _article(error: dict[str, Any], image: Image.Image | None) -> str:
    gold, predicted, kind = error["gold"], error["predicted"], error["kind"]
    parts = [f"{_name(gold)}" if gold else "", f"{_name(predicted)}" if predicted else ""]
    what = {
        "missed": f"{parts[0]} was missed",
        "invented": f"{parts[1]} was invented",
        "mistyped": f"{parts[0]} was taken for <b>{escape((predicted or gold)['entity_group'])}</b>",
        "cut": f"{parts[0]} was cut to {parts[1]}",
    }[kind]
    # The predicted entity is marked in the text, and a missed one in its place.
    entity, thumbnail = (predicted or gold) | {"relevance": {}}, None
    if image is not None:
        thumbnail = image.copy()
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        if entity["region"] is not None:
            scale = thumbnail.width / image.width, thumbnail.height / image.height
            box = {side: entity["region"]["box"][side] * scale[place % 2] for place, side in enumerate(SIDES)}
            entity["region"] = entity["region"] | {"box": box}
    return (
        f'<article class="{kind}"><h2><span class="kind">{kind}</span> {what}</h2>'
        f'<p class="origin">confidence {error["confidence"]:.2f} · {escape(error["id"])}</p>'
        f'<div class="hamlearning">{post_html(error["text"], thumbnail, [entity])}</div></article>'
    )


def _name(entity: dict[str, Any]) -> str:
    return f"“{escape(entity['word'])}” <b>{escape(entity['entity_group'])}</b>"


def _table(title: str, scores: dict[str, dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{values['f1']:.3f}</td><td>{values['gold_total']:,}</td></tr>"
        for name, values in scores.items()
    )
    head = f"<tr><th>{title}</th><th>F1</th><th>gold entities</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


_PAGE_STYLE = """
body { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 1040px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; }
.summary { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
.summary img { width: 640px; max-width: 100%; }
.summary table { border-collapse: collapse; margin-bottom: 1.5rem; }
.summary th, .summary td { padding: .2rem 1rem .2rem 0; text-align: start; font-weight: 400; }
.summary thead th:not(:first-child), .summary td { text-align: end; }
.summary td { font-variant-numeric: tabular-nums; }
.summary thead th { font-weight: 600; border-bottom: 1px solid #8886; }
.filters { position: sticky; top: 0; background: white; padding: .75rem 0; display: flex; flex-wrap: wrap; gap: 1.75rem;
  border-bottom: 1px solid #ddd; z-index: 1; }
.filters small { display: block; color: #666; padding-inline-start: 1.4rem; }
article { border-top: 1px solid #ddd; padding: 1rem 0; }
article h2 { font-size: 1rem; font-weight: 400; margin: 0; overflow-wrap: anywhere; }
.kind { color: white; border-radius: .35rem; padding: .15rem .5rem; font-size: .8rem; margin-inline-end: .4rem; }
.missed .kind { background: #555; } .invented .kind { background: #7A2E2E; }
.mistyped .kind { background: #6A3D9A; } .cut .kind { background: #8A6D00; }
.origin { color: #666; font-size: .85rem; margin: .25rem 0 .5rem; }
article .hamlearning { max-width: none; }
article .hamlearning:has(.photo) { display: grid; grid-template-columns: 300px 1fr; column-gap: 1.25rem; align-items: start; }
article .hamlearning .text { grid-column: 2; font-size: 1.05rem; margin: 0; }
article .hamlearning .photo { grid-column: 1; grid-row: 1 / span 3; justify-self: start; }
article .hamlearning .photo img { max-width: 300px; max-height: 300px; width: auto !important; }
article .hamlearning table { grid-column: 2; margin-top: .5rem; max-width: 32rem; }
@media (max-width: 640px) {
  article .hamlearning:has(.photo) { display: block; }
}
"""
