"""What the demo shows after training: held-out synthetic posts tagged by the saved model, as a stranger would load it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from transformers import pipeline

from mner_data.loading import dataset_labels
from mner_data.synthetic_posts import best_f1_without_evidence, synthetic_dataset
from training.metric import MnerMetric

NUM_POSTS, HELD_OUT_SEED, SHOWN, DRAWN = 300, 77, 15, 12


def post_of(row: dict, with_picture: bool = True) -> dict:
    """A row as the pipeline takes it."""
    if not with_picture or row["image"] is None:
        return {"text": row["tokens"], "image": None}
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    regions = {name: row[name] for name in ("boxes", "box_labels", "box_scores")}
    return {"text": row["tokens"], "image": image} | regions


def f1(rows, tagged: list[list[dict]], names: list[str]) -> float:
    """Micro F1 of the pipeline's entities against the rows' labels."""
    gold, predicted = [], []
    for row, entities in zip(rows, tagged, strict=True):
        starts = {}
        place = 0
        for index, word in enumerate(row["tokens"]):
            starts[place] = index
            place += len(word) + 1
        labels = ["O"] * len(row["tokens"])
        for entity in entities:
            first, count = starts[entity["start"]], len(entity["word"].split(" "))
            labels[first : first + count] = [f"B-{entity['entity_group']}"] + [f"I-{entity['entity_group']}"] * (count - 1)
        gold.append([names[label] for label in row["ner_tags"]])
        predicted.append(labels)
    return MnerMetric().compute(predictions=predicted, references=gold)["f1"]


def main(folder: str):
    rows = synthetic_dataset(NUM_POSTS, HELD_OUT_SEED)
    names = dataset_labels(rows)
    ner = pipeline("mner", model=folder, trust_remote_code=True)
    posts = [post_of(row) for row in rows]
    tagged = ner(posts, batch_size=16)
    without = ner([post_of(row, with_picture=False) for row in rows], batch_size=16)

    print(f"{'post':<58} {'entity':<14} {'type':<5} {'score':>5}  region")
    for row, entities in list(zip(rows, tagged, strict=True))[:SHOWN]:
        text = " ".join(row["tokens"])
        for place, entity in enumerate(entities or [{}]):
            region = entity.get("region")
            where = f"{region['label']} at {', '.join(f'{side:.0f}' for side in region['box'].values())}" if region else "–"
            shown = (text if len(text) < 57 else text[:54] + "…") if place == 0 else ""
            score = f"{entity['score']:.2f}" if entity else ""
            print(f"{shown:<58} {entity.get('word', '–'):<14} {entity.get('entity_group', ''):<5} {score:>5}  {where}")

    pictures = Path(folder).parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for row, post, entities in list(zip(rows, posts, tagged, strict=True))[:DRAWN]:
        ner.draw(post, entities).save(pictures / f"{row['id']}.png")
    print(f"\nmarked pictures: {pictures}; the best that can be done without pictures: F1 {best_f1_without_evidence():.3f}")
    with_pictures, by_text = f1(rows, tagged, names), f1(rows, without, names)
    print(f"demo: F1 {with_pictures:.3f} on {NUM_POSTS} held-out posts, {by_text:.3f} without the pictures")


if __name__ == "__main__":
    main(sys.argv[1])
