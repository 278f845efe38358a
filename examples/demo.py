"""The end of `make demo`: held-out synthetic posts, tagged by the trained model as any user would load it."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import pipeline

from mner_data.loading import dataset_labels, row_to_post
from mner_data.synthetic_posts import best_f1_without_evidence, synthetic_dataset
from training.metric import pipeline_f1

NUM_POSTS, HELD_OUT_SEED, NUM_PRINTED, NUM_DRAWN = 300, 77, 15, 12


def print_entities(rows, results: list[list[dict]]):
    """Print a table of the entities of the first posts."""
    print(f"{'post':<58} {'entity':<14} {'type':<5} {'score':>5}  region")
    for row, entities in list(zip(rows, results, strict=True))[:NUM_PRINTED]:
        text = " ".join(row["tokens"])
        text = text if len(text) < 57 else text[:54] + "…"
        for entity in entities or [{}]:
            region = entity.get("region")
            place = f"{region['label']} at {', '.join(f'{side:.0f}' for side in region['box'].values())}" if region else "–"
            score = f"{entity['score']:.2f}" if entity else ""
            print(f"{text:<58} {entity.get('word', '–'):<14} {entity.get('entity_group', ''):<5} {score:>5}  {place}")
            text = ""  # once per post


def main(folder: str):
    """Tag held-out posts with the model in this folder; print and draw some, and score all, with and without images."""
    rows = synthetic_dataset(NUM_POSTS, HELD_OUT_SEED)
    names = dataset_labels(rows)
    ner = pipeline("mner", model=folder, trust_remote_code=True)
    posts = [row_to_post(row) for row in rows]
    results = ner(posts, batch_size=16)
    text_results = ner([{"text": post["text"]} for post in posts], batch_size=16)
    print_entities(rows, results)

    drawings = Path(folder).parent / "pictures"
    drawings.mkdir(parents=True, exist_ok=True)
    for row, post, entities in list(zip(rows, posts, results, strict=True))[:NUM_DRAWN]:
        ner.draw(post, entities).save(drawings / f"{row['id']}.png")
    print(f"\nimages with their entities: {drawings}")
    print(f"best possible F1 without images: {best_f1_without_evidence():.3f}")
    with_images, without_images = pipeline_f1(rows, results, names), pipeline_f1(rows, text_results, names)
    print(f"demo: F1 {with_images:.3f} on {NUM_POSTS} held-out posts, {without_images:.3f} without the images")


if __name__ == "__main__":
    main(sys.argv[1])
