"""The same posts in every form that people have them: equal rows, equal counts, and nothing left out without a word."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas
import pytest
from datasets import load_dataset
from PIL import Image

from hub_scripts import prepare_dataset
from mner_data.loading import dataset_labels, load_splits

# Each with its entities as words: what stands between the brackets, with its type before the colon.
MARKED = {
    "p1": "[PER:Rosa Meyer] 👩‍🔬 scores again in [LOC:New York] !",
    "p2": 'I said " hi " to @joe , # [ORG:NBA]',
    "p3": "no names here , 5,5 % off",
    "p4": "[PER:Carl] [PER:Rosa] [MISC:Café-Bar 21]",
}
SEPARATOR = "\ue000"


def parse(marked: str) -> tuple[str, list[list], list[str], list[str]]:
    """Text, spans of characters, words and labels of a marked post."""
    text, spans, words, labels = "", [], [], []
    for part in marked.replace("[", f"{SEPARATOR}[").replace("]", SEPARATOR).split(SEPARATOR):
        entity_type, content = part[1:].split(":") if part.startswith("[") else (None, part)
        if entity_type:
            spans.append([len(text), len(text) + len(content), entity_type])
        text += content
        words += content.split()
        labels += [f"{'I' if place else 'B'}-{entity_type}" if entity_type else "O" for place, _ in enumerate(content.split())]
    return text, spans, words, labels


POSTS = [
    {"id": name} | dict(zip(("text", "spans", "words", "labels"), parse(marked), strict=True)) for name, marked in MARKED.items()
]


def image_of(post: dict) -> str:
    return f"images/{post['id']}.png"


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def imgid(folder: Path) -> Path:
    lines = [f"IMGID:{post['id']}\n" + "".join(map("{}\t{}\n".format, post["words"], post["labels"])) for post in POSTS]
    return write(folder / "train.txt", "\n".join(lines))


def conll_2003(folder: Path) -> Path:
    lines = ["-DOCSTART- -X- -X- O\n"]
    for post in POSTS:
        columns = zip(post["words"], post["labels"], strict=True)
        lines.append(
            f"# id = {post['id']}\n# text = {post['text']}\n" + "".join(f"{word} NN B-NP {label}\n" for word, label in columns)
        )
    return write(folder / "train.conll", "\n".join(lines))


def multiconer(folder: Path) -> Path:
    posts = []
    for post in POSTS:
        columns = zip(post["words"], post["labels"], strict=True)
        posts.append(f"# id {post['id']}\tdomain=en\n" + "".join(f"{word} _ _ {label}\n" for word, label in columns))
    return write(folder / "train.conll", "\n".join(posts))


def tokens_jsonl(folder: Path) -> Path:
    rows = ({"id": post["id"], "words": post["words"], "tags": post["labels"], "image_path": image_of(post)} for post in POSTS)
    return jsonl(folder / "train.jsonl", list(rows))


def doccano(folder: Path) -> Path:
    rows = [{"id": post["id"], "text": post["text"], "label": post["spans"], "Comments": []} for post in POSTS]
    return jsonl(folder / "train.jsonl", rows)


def doccano_relations(folder: Path) -> Path:
    rows = []
    for post in POSTS:
        entities = [{"id": 7, "label": label, "start_offset": start, "end_offset": end} for start, end, label in post["spans"]]
        rows.append({"id": post["id"], "text": post["text"], "entities": entities, "relations": []})
    return jsonl(folder / "train.jsonl", rows)


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def label_studio(folder: Path) -> Path:
    """Offsets as a browser counts them, in which an emoji is two."""
    tasks = []
    for post in POSTS:
        values = [
            {
                "start": units(post["text"][:start]),
                "end": units(post["text"][:end]),
                "text": post["text"][start:end],
                "labels": [label],
            }
            for start, end, label in post["spans"]
        ]
        result = [{"from_name": "label", "to_name": "text", "type": "labels", "value": value} for value in values]
        result.append({"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["glad"]}})
        data = {"text": post["text"], "image": f"/data/upload/1/0123abcd-{post['id']}.png"}
        annotations = [{"id": 1, "was_cancelled": True, "result": []}, {"id": 2, "was_cancelled": False, "result": result}]
        tasks.append({"id": post["id"], "data": data, "annotations": annotations, "predictions": []})
    return write(folder / "train.json", json.dumps(tasks, indent=2))


def label_studio_min(folder: Path) -> Path:
    rows = []
    for post in POSTS:
        values = [{"start": start, "end": end, "labels": [label]} for start, end, label in post["spans"]]
        image = f"/data/local-files/?d=images/{post['id']}.png"
        rows.append({"id": post["id"], "text": post["text"], "image": image, "label": values, "annotator": 1})
    return write(folder / "train.json", json.dumps(rows))


def prodigy(folder: Path) -> Path:
    rows = []
    for post in POSTS:
        spans = [{"start": start, "end": end, "label": label, "token_start": 0} for start, end, label in post["spans"]]
        tokens = [{"text": word, "id": place} for place, word in enumerate(post["text"].split())]
        rows.append(
            {"id": post["id"], "text": post["text"], "tokens": tokens, "spans": spans, "_input_hash": 1, "answer": "accept"}
        )
    return jsonl(folder / "train.jsonl", [*rows, {"id": "x", "text": "left out", "spans": [], "answer": "reject"}])


def spacy_jsonl(folder: Path) -> Path:
    return jsonl(folder / "train.jsonl", [{"id": post["id"], "text": post["text"], "entities": post["spans"]} for post in POSTS])


def spacy_pairs(folder: Path) -> Path:
    pairs = [[post["text"], {"entities": post["spans"], "id": post["id"]}] for post in POSTS]
    return write(folder / "train.json", json.dumps(pairs))


def spacy_binary(folder: Path) -> Path:
    spacy = pytest.importorskip("spacy", reason="needs the extra spacy")
    nlp, documents = spacy.blank("en"), spacy.tokens.DocBin(store_user_data=True)
    for post in POSTS:
        document = nlp(post["text"])
        document.ents = [document.char_span(start, end, label, alignment_mode="expand") for start, end, label in post["spans"]]
        document.user_data["id"] = post["id"]
        documents.add(document)
    documents.to_disk(folder / "train.spacy")
    return folder / "train.spacy"


def kaggle(folder: Path) -> Path:
    """`ner_dataset.csv`: the id of a sentence stands at its first word alone."""
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["Sentence #", "Word", "POS", "Tag"])
        for post in POSTS:
            for place, (word, label) in enumerate(zip(post["words"], post["labels"], strict=True)):
                table.writerow(["" if place else post["id"], word, "NN", label])
    return folder / "train.csv"


def word_a_row_tsv(folder: Path) -> Path:
    lines = ["sentence_id\tword\timage\tlabel"]
    for post in POSTS:
        lines += [
            f"{post['id']}\t{word}\t{image_of(post)}\t{label}" for word, label in zip(post["words"], post["labels"], strict=True)
        ]
    return write(folder / "train.tsv", "\n".join(lines))


def post_a_row_csv(folder: Path) -> Path:
    """As pandas writes lists, and a missing image."""
    rows = [{"id": post["id"], "tokens": post["words"], "ner_tags": post["labels"], "img": image_of(post)} for post in POSTS]
    pandas.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def post_a_row_with_blanks(folder: Path) -> Path:
    """As Kaggle's `ner.csv` has them: a sentence, and a list of its labels."""
    rows = [{"Sentence #": post["id"], "Sentence": " ".join(post["words"]), "Tag": str(post["labels"])} for post in POSTS]
    pandas.DataFrame(rows).to_csv(folder / "train.csv", index=False, sep=";")
    return folder / "train.csv"


def spans_in_csv(folder: Path) -> Path:
    rows = [{"id": post["id"], "text": post["text"], "label": json.dumps(post["spans"])} for post in POSTS]
    pandas.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    return folder / "train.csv"


def parquet(folder: Path) -> Path:
    """As pandas writes it, with strings for labels and other names."""
    rows = [{"post_id": post["id"], "words": post["words"], "labels": post["labels"], "likes": 7} for post in POSTS]
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def parquet_with_spans(folder: Path) -> Path:
    rows = []
    for post in POSTS:
        spans = [{"start": start, "end": end, "label": label} for start, end, label in post["spans"]]
        rows.append({"id": post["id"], "text": post["text"], "entities": spans})
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


FORMS = {
    "CoNLL with IMGID": imgid, "CoNLL 2003": conll_2003, "MultiCoNER": multiconer, "JSONL of words": tokens_jsonl,
    "doccano": doccano, "doccano with relations": doccano_relations, "Label Studio": label_studio,
    "Label Studio, JSON-MIN": label_studio_min, "Prodigy": prodigy, "spaCy JSONL": spacy_jsonl, "spaCy pairs": spacy_pairs,
    "spaCy binary": spacy_binary, "Kaggle": kaggle, "TSV of words": word_a_row_tsv, "CSV of posts": post_a_row_csv,
    "CSV of sentences": post_a_row_with_blanks, "CSV of spans": spans_in_csv, "parquet": parquet, "parquet with spans": parquet_with_spans,
}  # fmt: skip
IN_DATA_SETS = ("parquet", "parquet with spans")


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for post in POSTS[:3]:
        Image.new("RGB", (9, 9)).save(tmp_path / image_of(post))
    return tmp_path / "images"


def rows_of(data) -> list[tuple]:
    names = dataset_labels(data)
    return [(row["id"], row["tokens"], [names[tag] for tag in row["ner_tags"]]) for row in data]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_posts_in_every_form(form, tmp_path, images, caplog):
    expected = [(post["id"], post["words"], post["labels"]) for post in POSTS]
    path = FORMS[form](tmp_path)
    data, _ = load_splits(str(path))
    assert rows_of(data["train"]) == expected
    assert dataset_labels(data["train"]) == [
        "O",
        *(f"{prefix}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for prefix in "BI"),
    ]
    if form in IN_DATA_SETS:
        return
    assert [bool(image) for image in data["train"]["image"]] == [True, True, True, False], "found by name or by id"
    folder, _ = load_splits(str(tmp_path))
    assert rows_of(folder["train"]) == expected, "and so in a folder with one file per split"
    output = prepare_dataset.main(["--text", str(path), "--output", str(tmp_path / "prepared")])
    prepared = load_dataset("parquet", data_files=str(output / "data" / "*.parquet"))["train"]
    assert rows_of(prepared) == expected and [image is not None for image in prepared["image"]] == [True, True, True, False]
    assert "| train | 4 | 32 | 6 | 1 | 1 | 1 | 3 | 0 |" in (output / "README.md").read_text()


@pytest.mark.parametrize("form", FORMS)
def test_bulk_tagging_reads_the_same_posts(form, tmp_path, images):
    pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
    from bulk.sources import open_data
    from bulk.tagger import _parse

    posts = open_data(str(FORMS[form](tmp_path)))
    assert posts.images == images
    rows = [_parse(row, {}) for part in posts.parts for table in part() for row in table.to_pylist()]
    found = {row["id"]: row.get("tokens") or row["text"] for row in rows}
    found.pop("x", None)  # what an annotator rejected is tagged as well
    assert list(found) == [post["id"] for post in POSTS]
    for post in POSTS:
        assert found[post["id"]] in (post["words"], post["text"], " ".join(post["words"]))
