"""pipeline("mner") from a saved folder, here and in a process that has nothing else."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoConfig, pipeline

from mner_data.synthetic_images import pure_noise
from modeling_hamlearning import MnerPipeline
from modeling_hamlearning.drawing import COLORS
from tests.tiny_model import LABELS, saved_tiny_model

FIELDS = ["entity_group", "score", "word", "start", "end", "word_start", "word_end", "relevance", "region"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    saved_tiny_model(folder)
    pure_noise(Image.new("RGB", (90, 50))).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def ner(folder):
    return pipeline("mner", model=str(folder), trust_remote_code=True)


@pytest.fixture(scope="module")
def posts(folder):
    noise = pure_noise(Image.new("RGB", (120, 80)))
    return [
        "Jordan scores  again in Amazon park",
        {"text": "New York Knicks' game #NBA @joe", "image": str(folder / "photo.png")},
        {"text": "a person with a trophy", "image": noise, "boxes": [[0.1, 0.2, 0.5, 0.6]],
         "box_labels": ["dog"], "box_scores": [0.7]},
        {"text": "", "image": noise},
        {"text": "the river Amazon " * 40, "image": None},
        {"text": "Lincoln 👍🏽 photographed by Michael Jordan", "image": noise, "boxes": []},
        {"text": ["New", "York", "Knicks"], "image": None},
    ]  # fmt: skip


def close(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert [(e["entity_group"], e["start"], e["end"]) for e in one] == [
            (e["entity_group"], e["start"], e["end"]) for e in other
        ]
        for e, f in zip(one, other, strict=True):
            assert e["score"] == pytest.approx(f["score"], abs=1e-4)
            assert e["relevance"] == pytest.approx(f["relevance"], abs=1e-5)
            assert (e["region"] is None) == (f["region"] is None)


def test_results_have_their_fields_and_offsets(ner, posts):
    results = ner(posts)
    assert isinstance(ner, MnerPipeline) or type(ner).__name__ == "MnerPipeline"
    assert len(results) == len(posts) and sum(map(len, results)) > 5
    for post, entities in zip(posts, results, strict=True):
        text = post if isinstance(post, str) else post["text"]
        text = " ".join(text) if isinstance(text, list) else text
        image = post.get("image") if isinstance(post, dict) else None
        for entity in entities:
            assert list(entity) == FIELDS
            assert entity["word"] == text[entity["start"] : entity["end"]] != ""
            assert 0 < entity["score"] <= 1 + 1e-6
            assert list(entity["relevance"]) == ["global", "object", "spatial", "semantic"]
            if image is None:
                assert entity["region"] is None and set(entity["relevance"].values()) == {0.0}
    assert results[3] == []
    given = results[2][0]["region"]
    assert given["label"] == "dog" and given["score"] == 0.7
    assert given["box"] == pytest.approx({"xmin": 12, "ymin": 16, "xmax": 60, "ymax": 48})
    of_file = results[1][0]["region"]["box"]
    assert of_file["xmax"] - of_file["xmin"] == pytest.approx(45) and of_file["ymax"] <= 50
    assert all(entity["region"] is None for entity in results[5])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_results_are_the_same_at_every_batch_size(ner, posts, batch_size):
    close(ner(posts, batch_size=batch_size), [ner(post) for post in posts])


def test_equal_pictures_of_a_stream_are_encoded_once(ner, posts, folder, monkeypatch, tmp_path):
    """Whatever file or post they come in; and a post without a picture never reaches the backbone."""
    encoded = []
    forward = ner.model.model.get_image_features
    monkeypatch.setattr(ner.model.model, "get_image_features", lambda pixels: encoded.append(len(pixels)) or forward(pixels))
    copy = tmp_path / "copy.png"
    copy.write_bytes((folder / "photo.png").read_bytes())
    stream = [*posts, {"text": "Jordan again", "image": str(copy)}] * 3
    expected = [ner(post) for post in stream[: len(posts) + 1]]
    encoded.clear()
    close(list(ner((post for post in stream), batch_size=2)), expected * 3)
    assert sum(encoded) == 2
    encoded.clear()
    ner([posts[0], posts[4], posts[6]], batch_size=2)
    assert encoded == []


def test_what_is_kept_of_pictures_has_a_bound():
    encoded = sys.modules[MnerPipeline.__module__].FeatureMapCache(max_entries=4)
    pictures = {str(place): torch.full((1, 2, 2), float(place)) for place in range(5)}
    seen = []

    def encode(pixels):
        seen.extend(pixels[:, 0, 0, 0].tolist())
        return pixels

    def ask(*keys):
        found = encoded.features(list(keys), [pictures[key] for key in keys], encode)
        assert [one[0, 0, 0].item() for one in found] == [float(key) for key in keys]

    ask("0", "1", "0")
    ask("2", "3", "0")
    assert seen == [0, 1, 2, 3] and len(encoded.entries) == 4
    ask("4")  # takes the place of the one that was asked for longest ago
    ask("0", "2")
    assert seen == [0, 1, 2, 3, 4]
    ask("1")
    assert seen == [0, 1, 2, 3, 4, 1] and len(encoded.entries) == 4
    ask("0", "1", "2", "3", "4")  # a batch larger than the bound
    assert len(encoded.entries) == 4


def test_generators_and_data_sets(ner, posts):
    expected = ner(posts)
    close(list(ner((post for post in posts), batch_size=2)), expected)
    close(list(ner(iter(posts), batch_size=2)), expected)
    rows = [post if isinstance(post, dict) else {"text": post, "image": None} for post in posts[:2]]
    data = Dataset.from_list([{"text": row["text"], "image": row["image"]} for row in rows])
    close(list(ner(data, batch_size=2)), expected[:2])
    assert ner([]) == []


def test_the_score_is_the_spans_probability(ner, posts):
    """Against the share of paths sampled label by label from the CRF's own conditionals, enumerated here for one span."""
    post = {"text": "Jordan in Amazon park", "image": None}
    (entities,) = ner([post])
    features = ner.processor(text=post["text"])
    with torch.no_grad():
        logits = ner.model(**features).logits
    crf, mask = ner.model.crf, features["word_mask"]
    for entity in entities:
        words = [i for i, (start, end) in enumerate(ner.processor.split_words(post["text"])[1])
                 if start >= entity["start"] and end <= entity["end"]]  # fmt: skip
        begin, inside = LABELS.index(f"B-{entity['entity_group']}"), LABELS.index(f"I-{entity['entity_group']}")
        held = logits.clone()
        for place in range(logits.shape[1]):
            wanted = begin if place == words[0] else inside if place in words else None
            keep = torch.zeros(5, dtype=torch.bool)
            if wanted is not None:
                keep[wanted] = True
            elif place == words[-1] + 1:
                keep[:] = True
                keep[inside] = False
            else:
                keep[:] = True
            held[0, place] = held[0, place].masked_fill(~keep, -1e4)
        share = (crf.log_partition(held, mask) - crf.log_partition(logits, mask)).exp().item()
        assert entity["score"] == pytest.approx(share, abs=1e-4)


def test_entities_below_the_least_score_are_left_out(ner, posts, monkeypatch):
    plain = ner(posts)
    scores = sorted(entity["score"] for entities in plain for entity in entities)
    least = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    monkeypatch.setattr(ner.model.config, "min_entity_score", least)
    kept = ner(posts)
    close(kept, [[entity for entity in entities if entity["score"] >= least] for entities in plain])
    assert 0 < sum(map(len, kept)) < len(scores)


def test_attention_when_asked(ner, posts):
    (entities,) = ner([posts[1]], return_attention=True)
    for entity in entities:
        regions = entity["region_attention"]
        assert len(regions) == 4 and entity["region"]["box"] == max(regions, key=lambda r: r["attention"])["box"]
        assert 0 < sum(region["attention"] for region in regions) <= 1 + 1e-5


def test_a_region_is_attended_by_an_entitys_first_word(ner, monkeypatch):
    # The tags are given: which words a model of random weights takes for names differs from one processor to the next.
    text, tags = "Saint Martin said hello to Eden Hazard and Rio Grande", [1, 2, 0, 0, 0, 3, 4, 0, 3, 4]
    emissions = 100.0 * torch.eye(len(LABELS))[tags]
    monkeypatch.setattr(ner.model.classifier, "forward", lambda hidden: emissions.expand(len(hidden), -1, -1))
    picture = pure_noise(Image.new("RGB", (90, 50)))
    with torch.no_grad():
        attention = ner.model(**ner.processor(text=text, images=picture)).word_region_attention[0]
    entities = ner({"text": text, "image": picture}, return_attention=True)
    assert [entity["word"] for entity in entities] == ["Saint Martin", "Eden Hazard", "Rio Grande"]
    for entity, first in zip(entities, (0, 5, 8), strict=True):
        shown = [region["attention"] for region in entity["region_attention"]]
        assert shown == pytest.approx(attention[first].tolist(), abs=1e-5)
        assert shown != pytest.approx(attention[first + 1].tolist(), abs=1e-3)


def test_drawing_a_post(ner, posts):
    for post in posts:
        picture = ner.draw(post, ner(post))
        assert picture.mode == "RGB" and picture.width >= 480
    with_box = ner.draw(posts[2], ner(posts[2]))
    plain = ner.draw(posts[2], [])
    assert with_box.size != plain.size or list(with_box.getdata()) != list(plain.getdata())


WRONG = {
    "type": (7, "post 1: expected a string or a dict"),
    "no text": ({"image": None}, "post 1, field text"),
    "no words": ({"words": ["a"]}, "post 1, field text: expected .*the post's fields are: words"),
    "tokens": ({"tokens": "a b"}, "post 1, field tokens: expected a list of words, got 'a b'"),
    "image": ({"text": "a", "image": "/nowhere.jpg"}, "post 1, field image: there is no file"),
    "boxes": ({"text": "a", "image": Image.new("RGB", (4, 4)), "boxes": [[0, 0, 9, 9]]}, "post 1, field boxes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_posts_are_named(ner, kind):
    post, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        ner(["fine", post], batch_size=2)


@pytest.fixture
def fetching(ner):
    """The module beside the processor that the pipeline was loaded with: the folder's copy, not the project's."""
    return sys.modules[type(ner.processor).__module__.replace("processing_hamlearning", "fetching")]


@pytest.mark.parametrize("url, reason", [
    ("http://127.0.0.1:{}/photo.png", "127.0.0.1, which is not a public address; give the image itself"),
    ("http://169.254.169.254/latest", "169.254.169.254, which is not a public address"),
    ("http://nowhere.invalid/photo.png", "could not be fetched"),
])  # fmt: skip
def test_a_url_that_is_not_fetched_is_named_with_its_post(ner, url, reason):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        post = {"text": "a", "image": url.format(server.getsockname()[1])}
        with pytest.raises(ValueError, match=f"^post 1, field image: http://.*{reason}"):
            ner(["fine", post], batch_size=2)
        with pytest.raises(ValueError, match=f"^post 0, field image: http://.*{reason}"):
            ner.draw(post, [])
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_public_url_is_fetched(ner, fetching, folder, monkeypatch):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(fetching, "public_addresses", lambda host, port: ["127.0.0.1"])
    post = {"text": "New York Knicks' game #NBA @joe", "image": f"http://public.test:{server.server_port}/photo.png"}
    try:
        assert ner(post) == ner(post | {"image": str(folder / "photo.png")})
        with pytest.raises(ValueError, match="post 0, field image: .*404"):
            ner(post | {"image": post["image"] + "x"})
    finally:
        server.shutdown()
        server.server_close()


def test_unknown_arguments_are_named(ner):
    with pytest.raises(TypeError, match="does not know"):
        ner("a", aggregation_strategy="simple")


ELSEWHERE = """
import json, sys
from transformers import pipeline
ner = pipeline("mner", model=sys.argv[1], trust_remote_code=True)
assert not {"modeling_hamlearning", "processors"} & set(sys.modules), "the project is importable here"
print(json.dumps(ner([{"text": "New York Knicks' game #NBA @joe", "image": sys.argv[1] + "/photo.png"}])))
"""


def test_a_fresh_process_with_only_the_folder(ner, posts, folder, tmp_path):
    (tmp_path / "tag.py").write_text(ELSEWHERE)
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    run = subprocess.run(
        [sys.executable, "tag.py", str(folder)],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(run.stdout.splitlines()[-1]) == json.loads(json.dumps(ner([posts[1]])))


def test_the_pipeline_can_be_saved_again(ner, tmp_path, posts):
    ner.save_pretrained(tmp_path)
    ner.processor.save_pretrained(tmp_path)
    again = pipeline("mner", model=str(tmp_path), trust_remote_code=True)
    close(again(posts), ner(posts))
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=True).custom_pipelines["mner"]["impl"]


@pytest.mark.parametrize("color", COLORS)
def test_white_letters_on_a_types_color_can_be_read(color):
    """Contrast of at least 4.5, as the accessibility guidelines (WCAG 2.2, 1.4.3) want for small text."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 4.5
