"""pipeline("mner") from a saved folder, here and in a process that has nothing else."""

from __future__ import annotations

import base64
import ctypes
import http.server
import io
import json
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import islice
from queue import Queue

import numpy
import pandas
import pyarrow
import pytest
import torch
from datasets import Dataset, load_from_disk
from PIL import Image
from transformers import AutoConfig, pipeline
from transformers.utils import logging

from mner_data.synthetic_images import pure_noise
from modeling_hamlearning import MnerPipeline
from tests.hub_scripts.hub_server import TOKEN, HubServer
from tests.tiny_model import LABELS, saved_tiny_detector, saved_tiny_model

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


def test_a_file_that_occurs_again_is_not_decoded_again(ner, folder, monkeypatch):
    decoded = []
    own = ner.processor.load_reduced_images
    monkeypatch.setattr(ner.processor, "load_reduced_images", lambda *args, **kw: decoded.append(1) or own(*args, **kw))
    stream = [{"text": text, "image": str(folder / "photo.png")} for text in TEXTS]
    expected = [ner(post) for post in stream]
    assert len(decoded) == len(stream), "a call knows nothing of the ones before"
    decoded.clear()
    close(ner(stream, batch_size=2, num_workers=1), expected)
    assert len(decoded) == 1


def test_equal_pixels_of_unequal_images_keep_their_own_size(ner):
    """The model's own pixels are the same for both; boxes are those of each image."""
    small, wide = Image.new("RGB", (100, 100), "white"), Image.new("RGB", (400, 200), "white")
    for opened in (lambda image: image, numpy.asarray):
        posts = [{"text": TEXTS[0], "image": opened(image)} for image in (small, wide)]
        results = ner(posts, return_attention=True)
        close(results, [ner(post) for post in posts])
        for result, size in zip(results, (small.size, wide.size), strict=True):
            boxes = [region["box"] for region in result[0]["region_attention"]]
            assert (max(box["xmax"] for box in boxes), max(box["ymax"] for box in boxes)) == size


def detecting_pipeline(folder, detector, **options):
    config = {"name": "object-detection", "model": str(detector), "threshold": 0.0, "max_regions": 4}
    detecting = pipeline("mner", model=str(folder), trust_remote_code=True, **options)
    image_processor, tokenizer = detecting.processor.image_processor, detecting.processor.tokenizer
    detecting.processor = type(detecting.processor)(image_processor, tokenizer, region_config=config)
    return detecting


def test_a_file_looks_the_same_whatever_posts_came_before(folder, tmp_path):
    """For a post that brings boxes it is reduced as far as the model needs it, and for another as far as the detector does."""
    pure_noise(Image.new("RGB", (1500, 1000))).save(tmp_path / "photo.png")
    post = {"text": TEXTS[0], "image": str(tmp_path / "photo.png")}
    posts = [post, post | {"boxes": [[0.1, 0.2, 0.5, 0.6]]}]
    detecting = detecting_pipeline(folder, saved_tiny_detector(tmp_path / "detector", side=256))
    assert detecting.processor.target_size(None) != detecting.processor.target_size(posts[1]["boxes"])
    expected = [detecting(post, return_relevance=True)["relevance"] for post in posts]
    for order in (posts, posts[::-1]):
        results = detecting(order, return_relevance=True)
        for result, relevance in zip(results, expected if order is posts else expected[::-1], strict=True):
            assert result["relevance"] == pytest.approx(relevance, abs=1e-6)


def test_the_detector_runs_on_the_device_of_the_pipeline(folder, detector, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    detecting = detecting_pipeline(folder, detector, device="cpu")
    (entity, *_) = detecting({"text": TEXTS[0], "image": Image.new("RGB", (90, 50))})
    assert entity["region"]["label"] in ("dog", "cat", "park bench")


def test_posts_may_share_an_open_file(ner, folder):
    """Two threads read it, each from its beginning."""

    class SlowFile(io.BytesIO):
        def seek(self, *place):
            position = super().seek(*place)
            time.sleep(0.05)
            return position

        def read(self):
            content = super().read()
            time.sleep(0.05)
            return content

    file = SlowFile((folder / "photo.png").read_bytes())
    expected = ner({"text": TEXTS[0], "image": str(folder / "photo.png")})
    close(ner([{"text": TEXTS[0], "image": file}] * 4, batch_size=4), [expected] * 4)


def test_an_image_that_another_thread_encodes_meanwhile(ner):
    module = sys.modules[type(ner).__module__]

    class TakenMeanwhile(module.StreamImage):
        """Its feature map is there, and its pixels are gone, as soon as someone has looked whether it is."""

        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if name == "feature_map" and value is None:
                self.feature_map, self.pixels = torch.ones(1), None
            return value

    ner._encode_new([TakenMeanwhile((1, 1), torch.zeros(3, 64, 64))])


def test_a_list_is_grouped_by_length_as_a_whole(ner, monkeypatch):
    lengths = []
    forward = ner.forward
    monkeypatch.setattr(ner, "forward", lambda batch: lengths.append(batch["features"]["word_mask"].shape[1]) or forward(batch))
    texts = ["Jordan", "Jordan in Amazon park again"] * 4
    expected = [ner(text) for text in texts]
    lengths.clear()
    close(ner(texts, batch_size=4), expected)
    assert sorted(lengths) == [1, 5]


def test_large_pictures_are_reduced_while_they_are_opened(ner, monkeypatch):
    seen, kind = [], type(ner.processor.image_processor)
    resize = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, images, **options: seen.extend(images) or resize(self, images, **options))
    entities = ner({"text": "Jordan in Amazon park", "image": Image.new("RGB", (3000, 2000))}, return_attention=True)
    assert len(seen) == 1 and max(seen[0].size) < 5 * 64
    assert max(region["box"]["xmax"] for region in entities[0]["region_attention"]) == 3000, "boxes are the original's"


def test_what_is_kept_of_pictures_has_a_bound():
    module = sys.modules[MnerPipeline.__module__]
    cache, images = module.ImageCache(max_entries=3), [module.StreamImage((1, 1), torch.zeros(3, 1, 1)) for _ in range(4)]
    for place in range(3):
        assert cache.get(str(place)) is None and cache.add(str(place), images[place]) is images[place]
    assert cache.get("0") is images[0]
    cache.add("3", images[3])  # takes the place of the one that was asked for longest ago
    assert [cache.get(key) for key in "0123"] == [images[0], None, images[2], images[3]]
    assert cache.add("0", images[1]) is images[0], "two threads that open equal files share one"


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


def test_a_grounding_head_names_the_region_or_none(tmp_path, monkeypatch):
    grounded = pipeline("mner", model=str(saved_tiny_model(tmp_path, grounding_loss_weight=1.0)), trust_remote_code=True)
    emissions = 100.0 * torch.eye(len(LABELS))[[1, 2, 0, 3]]
    monkeypatch.setattr(grounded.model.classifier, "forward", lambda hidden: emissions.expand(len(hidden), -1, -1))
    head = grounded.model.model.image_branch.grounding
    # Of four regions the words of the first entity name the third; the second entity is not shown.
    scores = torch.tensor([[0.0, 0, 3, 0, 0], [0, 0, 1, 0, 0], [0] * 5, [0, 0, 1, 0, 2]])
    monkeypatch.setattr(head, "forward", lambda words, memories, mask: scores.expand(len(words), -1, -1))
    post = {"text": "Saint Martin said hello", "image": Image.new("RGB", (80, 40))}
    first, second = grounded(post, return_attention=True)
    assert first["region"]["box"] == {"xmin": 0, "ymin": 20, "xmax": 40, "ymax": 40}
    assert first["region"]["probability"] == pytest.approx(torch.tensor([0.0, 0, 2, 0, 0]).softmax(0)[2].item())
    assert second["region"] is None and len(second["region_attention"]) == 4
    html = grounded.draw_html(post, [first, second])
    assert f"<td>a part of the photo, {first['region']['probability']:.0%} likely</td>" in html and "<td>–</td>" in html
    first["region"]["box"] = {"xmin": 0, "ymin": 0, "xmax": 80, "ymax": 40}
    assert "<td>the whole photo, " in grounded.draw_html(post, [first, second])
    assert [entity["region"] for entity in grounded(post["text"])] == [None, None]


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
print(json.dumps(ner([{"text": "New York Knicks' game #NBA @joe", "image": sys.argv[2]}])))
"""


def elsewhere(folder, image, tmp_path) -> list:
    """The results of one post in a process that has the folder only."""
    (tmp_path / "tag.py").write_text(ELSEWHERE)
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    command = [sys.executable, "tag.py", str(folder), str(image)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_a_fresh_process_with_only_the_folder(ner, posts, folder, tmp_path):
    assert elsewhere(folder, folder / "photo.png", tmp_path) == json.loads(json.dumps(ner([posts[1]])))


def test_the_pipeline_saves_all_that_it_loads(ner, tmp_path, posts, folder):
    ner.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again", trust_remote_code=True).custom_pipelines["mner"]["impl"]
    close(pipeline("mner", model=str(tmp_path / "again"), trust_remote_code=True)(posts), ner(posts))
    assert elsewhere(tmp_path / "again", folder / "photo.png", tmp_path) == json.loads(json.dumps(ner([posts[1]])))


PUSHED = """
import sys
from transformers import pipeline
pipeline("mner", model=sys.argv[1], trust_remote_code=True).push_to_hub("user/pushed")
ner = pipeline("mner", model="user/pushed", trust_remote_code=True)
print(len(ner("Jordan scores  again in Amazon park")))
"""


def test_a_pushed_pipeline_loads(ner, folder, tmp_path):
    with HubServer() as hub:
        environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint,
                       "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}  # fmt: skip
        command = [sys.executable, "-c", PUSHED, str(folder)]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.splitlines()[-1]) == len(ner("Jordan scores  again in Amazon park"))


def test_a_model_object_with_its_processor(ner, posts):
    close(pipeline("mner", model=ner.model, processor=ner.processor)(posts), ner(posts))
    with pytest.raises(Exception, match="provide a processor"):
        pipeline("mner", model=ner.model)
    with pytest.raises(ValueError, match="expected a processor beside the model, got None.*processor=AutoProcessor"):
        MnerPipeline(ner.model)


def test_scores_that_are_not_numbers_are_named(ner, monkeypatch):
    forward = ner.model.classifier.forward
    monkeypatch.setattr(ner.model.classifier, "forward", lambda hidden: forward(hidden) * float("nan"))
    with pytest.raises(ValueError, match="post 0: expected finite scores from the model, got NaN.*dtype=torch.float32"):
        ner(["Jordan", "Amazon park"], batch_size=2)


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True])
def test_batch_sizes_that_are_none_are_refused(ner, folder, size):
    for inputs in ("Jordan", ["Jordan"], (post for post in ["Jordan"])):
        with pytest.raises(ValueError, match="batch_size: expected a whole number of at least 1, got"):
            ner(inputs, batch_size=size)
    with pytest.raises(ValueError, match="num_workers: expected a whole number of at least 0"):
        ner("Jordan", num_workers=-1)
    with pytest.raises(ValueError, match="batch_size: expected"):
        pipeline("mner", model=ner.model, processor=ner.processor, batch_size=size)("Jordan")


TEXTS = [f"{'Jordan scores in Amazon park ' * (1 + place % 3)}{place}" for place in range(12)]


@pytest.mark.parametrize("batch_size", [1, 2, 8, 50])
def test_a_source_that_fails_gives_the_results_before_its_fault(ner, batch_size):
    def posts():
        yield from TEXTS[:8]
        raise RuntimeError("the source broke")

    results = []
    with pytest.raises(RuntimeError, match="the source broke"):
        results.extend(ner(posts(), batch_size=batch_size))
    close(results, ner(TEXTS[:8]))


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("kind", WRONG)
def test_a_broken_post_leaves_the_results_before_it(ner, kind, batch_size):
    post, message = WRONG[kind]
    results = []
    with pytest.raises(ValueError, match=message.replace("post 1", "post 7")):
        for result in ner((item for item in [*TEXTS[:7], post, *TEXTS[8:]]), batch_size=batch_size):
            results.append(result)
    close(results, ner(TEXTS[:7]))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_source_that_waits_for_its_results_gets_them(ner, batch_size):
    """Each post is given only after the one before came out: a pipeline that pulls further would wait for ever."""
    inbox: Queue = Queue()
    results = ner(iter(inbox.get, None), batch_size=batch_size)
    arrived = []
    for text in TEXTS[:4]:
        inbox.put(text)
        thread = threading.Thread(target=lambda: arrived.append(next(results)), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "the result waits for the next post"
    inbox.put(None)
    assert next(results, None) is None
    close(arrived, ner(TEXTS[:4]))


def test_reading_ahead_has_a_bound_and_ends_with_the_reader(ner):
    pulled = []

    def posts():
        for number in range(10**6):
            pulled.append(number)
            yield "Jordan"

    before = threading.active_count()
    results = ner(posts(), batch_size=2)
    next(results)
    results.close()
    time.sleep(0.5)
    count = len(pulled)
    time.sleep(0.5)
    assert len(pulled) == count <= 2 * 16 * 2 + 4
    assert threading.active_count() <= before


class MapStyle(torch.utils.data.Dataset):
    """Has a length and never raises IndexError, as a data set that wraps around."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"text": TEXTS[index % len(TEXTS)]}


def test_every_kind_of_source(ner, tmp_path, folder):
    expected = ner(TEXTS[:5])
    close(list(islice(ner(MapStyle(), batch_size=2), 20)), expected)
    close(ner(tuple(TEXTS[:5]), batch_size=2), expected)
    records = [{"text": text, "id": str(place), "image": None} for place, text in enumerate(TEXTS[:5])]
    close(ner(pandas.DataFrame(records)), expected)
    close(ner(pandas.DataFrame(records).to_dict("records")), expected)
    close(list(ner(pandas.Series(TEXTS[:5]))), expected)
    close(ner(pyarrow.Table.from_pylist(records)), expected)
    Dataset.from_list(records).save_to_disk(tmp_path / "data")
    close(list(ner(load_from_disk(tmp_path / "data"))), expected)
    assert ner(()) == ner(pandas.DataFrame(records[:0])) == []
    with pytest.raises(ValueError, match="expected a post .*or a list, generator, data set or table of posts, got 7"):
        ner(7)


BLANKS = [None, float("nan"), numpy.float32("nan"), "", " ", pandas.NA, pandas.NaT]


@pytest.mark.parametrize("nothing", BLANKS)
def test_what_stands_for_no_image(ner, nothing):
    fields = ("image",) if isinstance(nothing, str) else ("image", "boxes", "box_labels", "tokens")
    close([ner({"text": TEXTS[0]} | dict.fromkeys(fields, nothing))], [ner(TEXTS[0])])


@pytest.mark.parametrize("nothing", BLANKS)
def test_lists_and_dicts_without_an_image(ner, nothing):
    for held in ([], [nothing], (nothing, None), numpy.array([nothing], dtype=object), {"bytes": None, "path": nothing}):
        close([ner({"text": TEXTS[0], "image": held})], [ner(TEXTS[0])])


def test_a_list_of_one_is_its_image(ner, folder):
    path = str(folder / "photo.png")
    expected = ner({"text": TEXTS[0], "image": path})
    for held in ([path], (Image.open(path),), ["", path, None], numpy.array([path], dtype=object), [{"path": path}]):
        close([ner({"text": TEXTS[0], "image": held})], [expected])
    with pytest.raises(ValueError, match="post 1, field image: expected one image, got a list of 2"):
        ner(["fine", {"text": TEXTS[0], "image": [path, path]}])


def test_rows_as_data_sets_hold_them(ner, folder):
    image, words = Image.open(folder / "photo.png"), ["New", "York", "Knicks"]
    expected = ner({"text": words, "image": image, "boxes": [[0.1, 0.2, 0.5, 0.6]], "box_labels": ["dog"]})
    boxes = numpy.empty(1, dtype=object)
    boxes[0] = numpy.array([0.1, 0.2, 0.5, 0.6])
    for held in (
        {"bytes": (folder / "photo.png").read_bytes(), "path": None},
        {"bytes": None, "path": str(folder / "photo.png")},
    ):
        row = {"tokens": numpy.array(words, dtype=object), "image": held, "boxes": boxes, "box_labels": numpy.array(["dog"])}
        close([ner(row)], [expected])
    assert ner({"text": "other words", "tokens": words, "image": None}) == ner({"text": words})


def test_an_image_in_every_form(ner, folder):
    content = (folder / "photo.png").read_bytes()
    encoded = base64.b64encode(content).decode()
    forms = [folder / "photo.png", content, io.BytesIO(content), numpy.asarray(Image.open(folder / "photo.png"))]
    expected = ner({"text": TEXTS[0], "image": str(folder / "photo.png")})
    for image in [*forms, encoded, f"data:image/png;base64,{encoded}"]:
        close([ner({"text": TEXTS[0], "image": image})], [expected])
    for image in ("x" * 300, f"/tmp/{'x' * 300}/a.png", "data:image/png;base64,!!!", b"\xff\xd8\xff"):
        with pytest.raises(
            ValueError, match="^post 1, field image: (there is no file|expected base64|is not an image|is broken)"
        ):
            ner(["fine", {"text": TEXTS[0], "image": image}])


def test_fields_that_are_not_read_are_named_once(ner, monkeypatch):
    said = []
    monkeypatch.setattr(sys.modules[type(ner).__module__].logger, "warning", said.append)
    list(ner(({"text": text, "id": 1, "label": 2} for text in TEXTS), batch_size=1))
    assert len(said) == 1 and "id, label" in said[0]


def test_the_words_of_an_entity_and_its_bio_labels(ner, posts):
    for post in posts:
        text = post if isinstance(post, str) else post["text"]
        words = text if isinstance(text, list) else ner.processor.split_words(text)[0]
        result = ner(post, return_relevance=True)
        labels = ner.to_bio(result, len(words))
        assert len(labels) == len(words) and labels == ner.to_bio(ner(post), len(words))
        for entity in result["entities"]:
            first, end = entity["word_start"], entity["word_end"]
            assert "".join(words[first:end]) == "".join(entity["word"].split())
            assert labels[first:end] == ["B-" + entity["entity_group"]] + ["I-" + entity["entity_group"]] * (end - first - 1)
        assert sum(label != "O" for label in labels) == sum(e["word_end"] - e["word_start"] for e in result["entities"])


def test_threads_get_their_own_results(ner, posts):
    """A fast tokenizer keeps its truncation as state: regions' labels are encoded without, long posts with it."""
    labelled = posts[2] | {
        "boxes": [[0, 0, 1, 1]] * 16,
        "box_labels": [f"dog {number}" for number in range(16)],
        "box_scores": None,
    }
    streams = [[posts[4]] * 4, [labelled] * 4, [*TEXTS[:4], posts[1]]]
    expected = [ner(stream) for stream in streams]
    failures, starting = [], threading.Barrier(6)

    def tag(number):
        try:
            starting.wait()
            for _ in range(8):
                close(ner(streams[number]), expected[number])
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        threads = [threading.Thread(target=tag, args=(place % len(streams),)) for place in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_nothing_of_the_host_is_loaded(ner, monkeypatch):
    """On Windows ctypes.CDLL(None) raises."""

    def refuse(*_args, **_options):
        raise TypeError("CDLL(None)")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert isinstance(ner(TEXTS[:2]), list)


def test_results_in_the_forms_of_others(ner, posts):
    results = ner(posts)
    found = [{"entity_group": "LOC", "word_start": 4, "word_end": 6}]
    assert ner.to_conll(posts[0], found) == "Jordan\tO\nscores\tO\nagain\tO\nin\tO\nAmazon\tB-LOC\npark\tI-LOC\n"
    assert ner.to_conll(posts[6], {"entities": [], "relevance": None}) == "New\tO\nYork\tO\nKnicks\tO\n"

    table = ner.to_dataframe(results)
    assert len(table) == sum(map(len, results)) and list(table["post"]) == sorted(table["post"])
    assert {"entity_group", "score", "word", "start", "word_end", "relevance.global", "region.box.xmin"} <= set(table.columns)
    assert ner.to_dataframe([]).empty


def test_words_that_would_break_a_line_of_conll(ner):
    found = [{"entity_group": "LOC", "word_start": 1, "word_end": 2}]
    assert ner.to_conll({"text": ["a\tb", "c\nd", "e f", ""]}, found) == "a�b\tO\nc�d\tB-LOC\ne�f\tO\n�\tO\n"


def test_the_result_of_one_post_and_of_several(ner, posts):
    for options in ({}, {"return_relevance": True}):
        table, expected = ner.to_dataframe(ner(posts[0], **options)), ner.to_dataframe([ner(posts[0], **options)])
        assert len(table) and table.equals(expected)
    several = ner(posts[:2])
    assert len(ner.to_dataframe(iter(several))) == sum(map(len, several))
    for call in (
        lambda: ner.to_bio(several, 3),
        lambda: ner.to_bio({"error": "x"}, 3),
        lambda: ner.to_bio(None, 3),
        lambda: ner.to_conll(posts[0], several),
        lambda: ner.to_spacy(None, several),
        lambda: ner.to_dataframe([several]),
    ):
        with pytest.raises(ValueError, match="expected the result of one post, .*, got .*one at a time"):
            call()


def test_error_names_an_image_dict_without_an_image(ner):
    """It was a post without an image, without a word."""
    for image, got in (({"url": "x", "height": 3}, "url, height"), ({}, "none")):
        with pytest.raises(ValueError, match=f"post 0, field image: expected a dict with bytes or path, got the fields {got}"):
            ner([{"text": "Jordan", "image": image}])
    assert ner({"text": "Jordan", "image": {"bytes": None, "path": None}}) == ner("Jordan")


def test_entities_of_a_spacy_doc(ner, caplog):
    spacy = pytest.importorskip("spacy", reason="needs the extra spacy")
    text = "Jordan scores  again in Amazon park"
    result = ner(text)
    doc = ner.to_spacy(spacy.blank("en")(text), result)
    assert [(entity.start_char, entity.end_char, entity.label_) for entity in doc.ents] == [
        (entity["start"], entity["end"], entity["entity_group"]) for entity in result
    ] and doc.ents
    # Entities that end within a token: both lie in "Jordan", of which the first stays.
    parts = [result[0] | {"start": 0, "end": 3}, result[0] | {"start": 3, "end": 6}]
    logging.enable_propagation()
    doc = ner.to_spacy(spacy.blank("en")(text), parts)
    logging.disable_propagation()
    assert [entity.text for entity in doc.ents] == ["Jordan"] and "2 entities were widened" in caplog.text
