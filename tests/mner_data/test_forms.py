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
from mner_data.readers import DataError, read_posts, split_name
from modeling_hamlearning.pipeline_mner import conll_post

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
        rows.append({"id": post["id"], "text": post["text"], "tokens": tokens, "spans": spans, "_hash": 1, "answer": "accept"})
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
    "CSV of sentences": post_a_row_with_blanks, "CSV of spans": spans_in_csv, "parquet": parquet,
    "parquet with spans": parquet_with_spans,
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
    num_words = sum(len(post["words"]) for post in POSTS)
    assert f"| train | 4 | {num_words} | 6 | 1 | 1 | 1 | 3 | 0 |" in (output / "README.md").read_text()


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


TEXTS = ['Jordan, Amazon "park"', "two\nlines, here", "plain"]


def test_a_table_of_texts_alone(tmp_path):
    """As pandas writes it, with quotes; and as a list of lines, in which a quote is a quote."""
    pandas.DataFrame({"text": TEXTS}).to_csv(tmp_path / "a.csv", index=False)
    assert [post["text"] for post in read_posts(tmp_path / "a.csv")] == TEXTS
    lines = ['"hi" she said', 'a "', "plain, or not"]
    assert [post["text"] for post in read_posts(write(tmp_path / "b.csv", "\n".join(["text", *lines])))] == lines
    lines = ["She", '"', "said", '"']
    (post,) = read_posts(write(tmp_path / "c.csv", "\n".join(["word", *lines])))
    assert post["tokens"] == lines


def test_posts_of_a_table_that_share_an_id_stay_posts(tmp_path):
    """They were read as the words of one post, a list a word."""
    rows = [{"id": "a", "tokens": ["Carl", "won"], "ner_tags": ["B-PER", "O"]}] * 2
    posts = read_posts(csv_of(tmp_path / "train.csv", rows))
    assert [(post["id"], post["tokens"]) for post in posts] == [("a", ["Carl", "won"])] * 2


# Rows that bring their regions


WITH_BOXES = [
    {"id": "p1", "tokens": ["Carl", "won"], "ner_tags": ["B-PER", "O"], "image": "images/p1.png",
     "boxes": [[0, 0, 0.5, 1], [0.25, 0, 1, 1]], "box_labels": ["person", None], "box_scores": [0.5, 0.25]},
    {"id": "p2", "tokens": ["no"], "ner_tags": ["O"], "image": "images/p2.png", "boxes": []},
    {"id": "p3", "tokens": ["no"], "ner_tags": ["O"], "image": "images/p3.png", "boxes": None},
]  # fmt: skip


def csv_of(path: Path, rows: list[dict]) -> Path:
    """A table of the rows, lists as JSON, `None` as an empty cell."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(column) for column in columns)
            writer.writerow("" if cell is None else json.dumps(cell) if isinstance(cell, list) else cell for cell in cells)
    return path


FORMS_WITH_BOXES = {
    "jsonl": lambda folder, rows: jsonl(folder / "train.jsonl", rows),
    "json": lambda folder, rows: write(folder / "train.json", json.dumps(rows)),
    "csv": lambda folder, rows: csv_of(folder / "train.csv", rows),
}


@pytest.mark.parametrize("form", FORMS_WITH_BOXES)
def test_a_row_may_bring_its_boxes(form, tmp_path, images, caplog):
    """They were left out without a word."""
    path = FORMS_WITH_BOXES[form](tmp_path, WITH_BOXES)
    beside = {"boxes": [[0, 0, 1, 1]], "box_labels": ["dog"], "box_scores": [1]}
    jsonl(tmp_path / "regions.jsonl", [{"id": "p1"} | beside, {"id": "p3"} | beside])
    own = {"boxes": [[0, 0, 0.5, 1], [0.25, 0, 1, 1]], "box_labels": ["person", ""], "box_scores": [0.5, 0.25]}
    expected = [own, {"boxes": [], "box_labels": [], "box_scores": []}, beside]
    rows = load_splits(str(path))[0]["train"]
    assert [{name: row[name] for name in own} for row in rows] == expected, "its own go before those beside the file"
    output = prepare_dataset.main(["--text", str(path), "--output", str(tmp_path / "prepared")])
    prepared = load_splits(str(output))[0]["train"]
    assert [{name: row[name] for name in own} for row in prepared] == expected
    assert "From the file `regions.jsonl`. Posts that came with boxes keep their own." in (output / "README.md").read_text()
    assert "not used" not in caplog.text


@pytest.mark.parametrize("regions", [None, "{name: grid, rows: 1, columns: 1}"])
def test_a_prepared_post_keeps_its_own_boxes(regions, tmp_path, images):
    path = jsonl(tmp_path / "train.jsonl", WITH_BOXES)
    more = ["--regions", regions] if regions else []
    output = prepare_dataset.main(["--text", str(path), "--output", str(tmp_path / "prepared"), *more])
    prepared = load_splits(str(output))[0]["train"]["boxes"]
    assert prepared == [[[0, 0, 0.5, 1], [0.25, 0, 1, 1]], [], [[0, 0, 1, 1]] if regions else None]
    note = "Posts that came with boxes keep their own." if regions else "Those that came with the posts; null where a post"
    assert note in (output / "README.md").read_text()


@pytest.mark.parametrize("form", FORMS_WITH_BOXES)
def test_bulk_tagging_reads_the_boxes_of_a_row(form, tmp_path, images):
    pytest.importorskip("ray", reason="bulk tagging needs the extra bulk")
    from bulk.sources import open_data
    from bulk.tagger import _parse

    posts = open_data(str(FORMS_WITH_BOXES[form](tmp_path, WITH_BOXES)))
    rows = [_parse(row, {}) for part in posts.parts for table in part() for row in table.to_pylist()]
    assert [row["boxes"] for row in rows] == [[[0, 0, 0.5, 1], [0.25, 0, 1, 1]], [], None]
    assert "boxes, box_labels, box_scores" in posts.notes[-1]


@pytest.mark.parametrize("form", FORMS_WITH_BOXES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": [[0, 0, 99, 99]]}, "field boxes, box 0: .*looks like pixels"),
        ({"boxes": "left"}, "field boxes: expected a list, got 'left'"),
        ({"box_labels": ["dog"]}, "field boxes: expected a list, got None"),
    ],
)
def test_error_names_a_wrong_box(form, fields, message, tmp_path):
    path = FORMS_WITH_BOXES[form](tmp_path, [{"id": "a", "tokens": ["no"], "ner_tags": ["O"]} | fields])
    with pytest.raises(DataError, match=f"train.{form}, .*{message}"):
        read_posts(path)


def test_the_ids_of_parquet_may_be_whole_numbers(tmp_path):
    """As text: what writes ids beside words took them for text already."""
    pandas.DataFrame({"id": [7, 8], "tokens": [["a"]] * 2, "ner_tags": [["O"]] * 2}).to_parquet(tmp_path / "train.parquet")
    assert list(load_splits(str(tmp_path / "train.parquet"))[0]["train"]["id"]) == ["7", "8"]
    assert conll_post(7, ["a"], ["O"]) == "IMGID:7\na\tO\n\n"


@pytest.mark.parametrize("names", [None, [None, "", "p3.png"]])
def test_images_of_parquet_are_found_by_id(names, tmp_path, images):
    """As those of label files, and as bulk tagging does."""
    rows = {"id": ["p1", "p2", "other"], "tokens": [["a"]] * 3, "ner_tags": [["O"]] * 3}
    pandas.DataFrame(rows | ({} if names is None else {"image": names})).to_parquet(tmp_path / "train.parquet")
    found = [image and Path(image["path"]).name for image in load_splits(str(tmp_path / "train.parquet"))[0]["train"]["image"]]
    assert found == ["p1.png", "p2.png", None if names is None else "p3.png"]


def test_parquet_may_have_entities_that_count_words(tmp_path):
    rows = [
        {"tokens": ["Carl", "won"], "entities": [{"word_start": 0, "word_end": 1, "label": "PER"}]},
        {"tokens": ["no", "one"], "entities": []},
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    data = load_splits(str(tmp_path / "train.parquet"))[0]["train"]
    assert [labels for _, _, labels in rows_of(data)] == [["B-PER", "O"], ["O", "O"]]


# What is chosen, changed or left out is said


def test_spans_that_cut_a_word_or_overlap_are_named(tmp_path, caplog):
    text = "Carl-Meyers of New York City won"
    spans = [[0, 4, "PER"], [15, 23, "LOC"], [15, 28, "LOC"], [12, 14, "MISC"], [29, 29 + 3, "MISC"], [0, 4, "PER"]]
    path = jsonl(tmp_path / "train.jsonl", [{"id": 1, "text": text, "labels": [*spans, [14, 15, "MISC"]]}])
    (row,) = rows_of(load_splits(str(path))[0]["train"])
    assert row[1:] == (
        ["Carl-Meyers", "of", "New", "York", "City", "won"],
        ["B-PER", "B-MISC", "B-LOC", "I-LOC", "I-LOC", "B-MISC"],
    )
    assert "1 times an entity cuts a word and is widened: " in caplog.text and "'Carl' to 'Carl-Meyers'" in caplog.text
    assert "1 times an entity overlaps a longer one and is left out: " in caplog.text and "LOC from word 2 to 4" in caplog.text
    assert "1 times an entity has no word and is left out: " in caplog.text


WRONG_SPANS = {
    "behind the text": ([[0, 99, "PER"]], "expected a span within 4 characters, got 0 to 99"),
    "empty": ([[2, 2, "PER"]], "expected a span within 4 characters, got 2 to 2"),
    "no type": ([[0, 2]], "expected start, end and label of a span"),
    "text of a number": ([{"start": "0", "end": 2, "label": "PER"}], "expected start, end and label of a span"),
    "another text": ([{"start": 0, "end": 2, "label": "PER", "text": "zz"}], "expected 'zz' at 0 to 2, got 'Ca'"),
    "no list": ("PER", "expected a list of spans, got 'PER'"),
}


@pytest.mark.parametrize("kind", WRONG_SPANS)
def test_error_names_the_post_of_a_wrong_span(kind, tmp_path):
    spans, message = WRONG_SPANS[kind]
    path = jsonl(tmp_path / "train.jsonl", [{"text": "fine", "label": []}, {"text": "Carl", "label": spans}])
    with pytest.raises(DataError, match=f"train.jsonl, line 2, field entities: {message}"):
        load_splits(str(path))


WORD_SPANS = {
    "no label": ({"word_start": 0, "word_end": 1}, "and a label, got"),
    "empty label": ({"word_start": 0, "word_end": 1, "type": " "}, "and a label, got"),
    "index of text": ({"word_start": "0", "word_end": 1, "type": "PER"}, "expected whole numbers as word_start and word_end"),
    "index of half": ({"word_start": 0, "word_end": 1.5, "type": "PER"}, "expected whole numbers as word_start and word_end"),
}


@pytest.mark.parametrize("label", [{"label": "PER"}, {"labels": ["PER"]}, {"entity_group": "PER"}, {"type": "PER"}])
def test_entities_that_count_words_have_their_type_under_any_usual_name(label, tmp_path):
    """Names other than two of them gave the type None."""
    row = {"tokens": ["Carl", "won"], "entities": [{"word_start": 0, "word_end": 1} | label]}
    (post,) = read_posts(jsonl(tmp_path / "train.jsonl", [row]))
    assert post["labels"] == ["B-PER", "O"]


@pytest.mark.parametrize("kind", WORD_SPANS)
def test_error_names_a_wrong_entity_that_counts_words(kind, tmp_path):
    entity, message = WORD_SPANS[kind]
    path = jsonl(tmp_path / "train.jsonl", [{"tokens": ["Carl"], "entities": [entity]}])
    with pytest.raises(DataError, match=f"train.jsonl, line 1, field entities: .*{message}"):
        read_posts(path)


SPAN = {"start": 0, "end": 4, "labels": ["PER"]}
WRONG_TASKS = {
    "a result without value": ([{"result": [{"type": "labels", "from_name": "x"}]}], "a value in .*, got type, from_name"),
    "a result of null": ([{"result": None}], "expected a list as the result of an annotation, got None"),
    "a string among results": ([{"result": [{"value": SPAN}, "x"]}], "expected an object with a value in every result, got 'x'"),
    "a string among annotations": ([{"result": []}, "x"], "expected objects with a result, got 'x'"),
}


@pytest.mark.parametrize("kind", WRONG_TASKS)
def test_error_names_a_wrong_task_of_label_studio(kind, tmp_path):
    annotations, message = WRONG_TASKS[kind]
    task = {"id": 1, "data": {"text": "Carl"}, "annotations": annotations}
    for path in (jsonl(tmp_path / "train.jsonl", [task]), write(tmp_path / "train.json", json.dumps([task]))):
        with pytest.raises(DataError, match=f"train.jsonl?, (line|post) 1, field entities: .*{message}"):
            read_posts(path)


@pytest.mark.parametrize("date", [None, 5, "2020-01-01", ["x"]])
def test_a_column_may_be_called_data(date, tmp_path):
    rows = [{"tokens": ["Carl"], "labels": ["B-PER"]}, {"tokens": ["won"], "labels": ["O"], "data": date}]
    for order in (rows, rows[::-1]):
        assert len(read_posts(jsonl(tmp_path / "train.jsonl", order), column_names={"labels": "ner_tags"})) == 2


@pytest.mark.parametrize("image", [{}, {"bytes": "abc"}, {"url": "a.png"}])
def test_error_names_an_image_without_a_path(image, tmp_path):
    path = jsonl(tmp_path / "train.jsonl", [{"tokens": ["Carl"], "labels": ["B-PER"], "image": image}])
    with pytest.raises(DataError, match=f"line 1, field image: expected .* with path, got {next(iter(image), 'no field')}"):
        read_posts(path)


def test_files_without_ids_number_their_posts(tmp_path):
    path = write(tmp_path / "wnut17train.conll", "Carl\tB-person\n# 1\tO\n#\tO\n\n\nwon\tO\n")
    assert rows_of(load_splits(str(path))[0]["train"]) == [
        ("wnut17train-1", ["Carl", "# 1", "#"], ["B-person", "O", "O"]), ("wnut17train-2", ["won"], ["O"]),
    ]  # fmt: skip


def test_a_post_may_have_no_word(tmp_path):
    path = write(tmp_path / "train.txt", "IMGID:a\nIMGID:b\n\nCarl\tB-PER\nIMGID:c\n")
    assert [(post["id"], post["tokens"], post["labels"]) for post in read_posts(path)] == [
        ("a", [], []), ("b", ["Carl"], ["B-PER"]), ("c", [], []),
    ]  # fmt: skip


def test_columns_are_chosen_and_named(tmp_path, caplog):
    path = write(tmp_path / "train.txt", "B-PER\tCarl\tNN\ta.jpg\nO\twon\tVB\ta.jpg\n")
    with pytest.raises(DataError, match=r"line 1, label: expected O, .*, got 'a.jpg'"):
        load_splits(str(path))
    assert "of 4 columns, 1 is read as the word and 4 as the label; not used: 2, 3" in caplog.text
    (post,) = read_posts(path, columns="label,word,_,image")
    assert (post["tokens"], post["labels"], post["image"]) == (["Carl", "won"], ["B-PER", "O"], "a.jpg")
    for columns in ("label,_,_,_", "word,word,_,label"):
        with pytest.raises(DataError, match="columns: expected word"):
            read_posts(path, columns=columns)
    with pytest.raises(DataError, match="line 1: expected a word and a label, in 2 columns"):
        read_posts(path, columns="word,label")


def test_words_without_labels_can_be_tagged_and_not_learned_from(tmp_path):
    path = write(tmp_path / "train.txt", "Carl\nwon\n\nYork\n")
    assert [(post["id"], post["tokens"], post["labels"]) for post in read_posts(path)] == [
        ("train-1", ["Carl", "won"], None), ("train-2", ["York"], None),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"train.txt, line 1, field labels: .*'Carl won', which has no label"):
        load_splits(str(path))
    for content in ('{"text": "Carl won"}', '[{"id": 1, "data": {"text": "Carl"}, "annotations": []}]', "text\nCarl won"):
        with pytest.raises(DataError, match="has no label|has no posts with labels"):
            load_splits(str(write(tmp_path / "train.txt", content)))


def test_what_annotators_left_out_is_counted(tmp_path, caplog):
    tasks = [{"id": number, "data": {"text": "Carl"}, "annotations": [{"result": []}] * (number < 2)} for number in range(4)]
    data, _ = load_splits(str(write(tmp_path / "train.json", json.dumps(tasks))))
    assert data["train"]["id"][:] == ["0", "1"]
    assert "2 times a post is left out, it was not annotated: post 2; post 3" in caplog.text
    data, _ = load_splits(str(prodigy(tmp_path)))
    assert "1 times a post is left out, its answer is reject: post x" in caplog.text


def test_other_names_are_given_and_unused_columns_named(tmp_path, caplog):
    rows = [{"key": "a", "WORDS": ["York"], "gold": ["B-LOC"], "words of others": 1, "lang": "en"}]
    path = jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match="field labels: expected a label for every word"):
        load_splits(str(path))
    names = {"gold": "ner_tags", "key": "id"}
    data, _ = load_splits(str(path), column_names=names)
    assert rows_of(data["train"]) == [("a", ["York"], ["B-LOC"])]
    assert "these columns are not used: lang, words of others" in caplog.text
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    caplog.clear()
    data, _ = load_splits(str(tmp_path / "train.parquet"), column_names=names)
    assert rows_of(data["train"]) == [("a", ["York"], ["B-LOC"])]
    assert "these columns are not used: words of others, lang" in caplog.text
    for wrong, message in (
        ({"gold": "tags"}, "gold: expected one of id, tokens, .*got 'tags'"),
        ({"x": "id"}, "has no column 'x'"),
    ):
        for name in (path, tmp_path / "train.parquet"):
            with pytest.raises(DataError, match=message):
                load_splits(str(name), column_names=wrong)


def test_one_may_insist_on_a_form(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path / "train.txt", '{"id":\tO\n[1,\tO\n')
    assert load_splits(str(path))[0]["train"][0]["tokens"] == ['{"id":', "[1,"]
    assert f"reading train from {path} (conll)" in caplog.text
    with pytest.raises(DataError, match="line 1: is not JSON"):
        load_splits(str(path), format="jsonl")
    with pytest.raises(ValueError, match="format: expected one of conll, jsonl, json, csv, spacy, mnre, got 'xml'"):
        load_splits(str(path), format="xml")
    with pytest.raises(DataError, match="columns: .* is read as jsonl"):
        load_splits(str(doccano(tmp_path)), columns="word,label")


def test_tables_that_are_not_clear_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected a column tokens, word or text, got a, b"):
        load_splits(str(write(tmp_path / "train.csv", "a,b\n1,2\n")))
    with pytest.raises(DataError, match=r"line 3: expected 2 cells \(text, label\), got 3"):
        load_splits(str(write(tmp_path / "train.csv", "text,label\nCarl,[]\nYork,New,[]\n")))
    with pytest.raises(DataError, match="has no posts"):
        load_splits(str(write(tmp_path / "train.csv", "text,label\n")))
    with pytest.raises(DataError, match=r"train.csv: expected a row for each word, got none below the column names word, tag"):
        load_splits(str(write(tmp_path / "train.csv", "word,tag\n")))


def test_a_table_may_name_its_images_as_a_label_file_does(tmp_path, images):
    """Written by pandas: a name in the image folder, one relative to the file, and missing ones."""
    names = ["p1", "images/p2.PNG", "", None, float("nan")]
    rows = [{"tokens": ["York"], "labels": ["B-LOC"], "image_path": name} for name in names]
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    data, _ = load_splits(str(tmp_path / "train.parquet"))
    assert [image and image["path"] for image in data["train"]["image"]] == [
        str(images / "p1.png"), str(images / "p2.png"), None, None, None,
    ]  # fmt: skip
    assert data["train"]["id"][:] == [f"train-{number}" for number in range(1, 6)]


# As published


def test_mnre_as_published(tmp_path, caplog):
    """A Python dictionary a line for each pair of entities; images by split in `img_org`."""
    lines = [
        {"token": ["RT", "@", "Carl", "joins", "the", "NBA"], "h": {"name": "Carl", "pos": [2, 3]},
         "t": {"name": "NBA", "pos": [5, 6]}, "img_id": "twitter_1.jpg", "relation": "/per/org/member_of"},
        {"token": ["RT", "@", "Carl", "joins", "the", "NBA"], "h": {"name": "NBA", "pos": [5, 6]},
         "t": {"name": "RT", "pos": [0, 1]}, "img_id": "twitter_1.jpg", "relation": "None"},
        {"token": ["New", "York"], "h": {"name": "New York", "pos": [0, 2]}, "t": {"name": "York", "pos": [1, 2]},
         "img_id": "twitter_1.jpg", "relation": "/loc/loc/contain"},
    ]  # fmt: skip
    write(tmp_path / "txt" / "ours_train.txt", "\n".join(map(str, lines)))
    jsonl(tmp_path / "txt" / "ours_val.txt", lines[:1])
    write(tmp_path / "txt" / "mre_train_dict.pth", "")
    for split in ("train", "val"):
        (tmp_path / "img_org" / split).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "img_org" / "train" / "twitter_1.jpg")
    for folder in (tmp_path, tmp_path / "txt"):
        data, _ = load_splits(str(folder))
        assert rows_of(data["train"]) == [
            ("twitter_1", lines[0]["token"], ["O", "O", "B-PER", "O", "O", "B-ORG"]),
            ("twitter_1-2", ["New", "York"], ["B-LOC", "I-LOC"]),
        ]
        assert len(data["validation"]) == 1 and all(data["train"]["image"])
    assert "1 times an entity has no type, as it has no relation, and is left out: " in caplog.text
    assert "mre_train_dict.pth" in caplog.text


def test_hvpnet_umt_and_twitter_gmner_as_published(tmp_path):
    conll = "IMGID:16_05_01_6\nRT\tO\n@JayKenMinaj\tO\n:\tO\nCarl\tB-PER\n\nIMGID:O_2\nYork\tB-LOC\n"
    for labels, images in (
        ("HVPNeT/NER_data/twitter2017", "HVPNeT/NER_data/twitter2017_images"),
        ("UMT/data/twitter2015", "IJCAI2019_data/twitter2015_images"),
        ("GMNER/Twitter10000_v2.0/txt", "GMNER/Twitter10000_v2.0/images"),
    ):
        for split in ("train", "dev" if "GMNER" in labels else "valid", "test"):
            write(tmp_path / labels / f"{split}.txt", conll)
        (tmp_path / images).mkdir(parents=True)
        for name in ("16_05_01_6", "O_2"):
            Image.new("RGB", (9, 9)).save(tmp_path / images / f"{name}.jpg")
        data, _ = load_splits(str(tmp_path / labels.removesuffix("/txt")))
        assert list(data) == ["train", "validation", "test"] and all(data["validation"]["image"])
        assert rows_of(data["train"])[1] == ("O_2", ["York"], ["B-LOC"])


@pytest.mark.parametrize(("name", "split"), [("ours_train.txt", "train"), ("my-dev.jsonl", "validation"), ("latest.txt", None)])
def test_a_split_may_be_a_word_of_a_name(name, split):
    assert split_name(name) == split
