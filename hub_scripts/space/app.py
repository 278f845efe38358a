"""The demo page: write a post, add a photo, and see its entities and what each of them has to do with the photo.

`HAMLEARNING_MODEL=user/repo python app.py`, or the folder of a trained model. The page needs `requirements.txt` and the
folder `examples` beside this file, and nothing else of the project: the model's repo brings its own code.

Programs call the endpoint `/tag`, which answers with JSON: see "Use via API" at the foot of the page. Where the package `mcp`
is installed (`pip install "gradio[mcp]"`), agents can call it as a tool of the MCP server at `/gradio_api/mcp/`.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from html import escape
from importlib.util import find_spec
from pathlib import Path

# Before the imports below read it: the client inside Gradio's MCP server would call the Hub about every visitor's agent.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from gradio.blocks import Block
from transformers import pipeline

MAX_CHARACTERS, MAX_BYTES, MAX_PIXELS = 2_000, 10 * 2**20, 25_000_000
MAX_REGIONS, MAX_LABEL_CHARACTERS, MAX_REGION_CHARACTERS = 50, 60, 6_000
# Every entity can point at every region. With more pairs than this the answer would be megabytes of HTML.
MAX_POINTERS = 2_000
EXAMPLES = Path(__file__).with_name("examples")
# An uploaded photo is deleted after this many seconds.
CACHE_SECONDS = 3600
ABOUT = """# Who and what is this post about?

A [HamLearning](https://doi.org/10.1609/aaai.v38i17.29831) model reads the words of a post together with its photo."""
NO_REGIONS = "The photo was read as a whole: this model finds no regions by itself. Name some under “Regions of the photo”."
TOO_MANY_POINTERS = "This post has too many entities and regions to show what each entity looks at."
NOT_UPLOADED = "Upload a photo: the server opens no other file."
NOT_FETCHED = "Upload a photo: addresses are not fetched."


class BadInput(ValueError):
    """Something that the visitor has to change; the message is shown to them as it is."""


async def refuse_addresses(self, url_or_file_path):
    """For every input of the page: Gradio would download an address that a request holds, whatever the input is for."""
    if str(url_or_file_path).startswith(("http://", "https://")):
        raise gr.Error(NOT_FETCHED, print_exception=False)
    return await Block.async_move_resource_to_block_cache(self, url_or_file_path)


class Textbox(gr.Textbox):
    is_template = True
    async_move_resource_to_block_cache = refuse_addresses


class Dataset(gr.Dataset):
    is_template = True
    async_move_resource_to_block_cache = refuse_addresses


class Photo(gr.Image):
    """An uploaded image file as bytes. `gr.Image` would open any path of the request and decode an image of any size."""

    is_template = True
    async_move_resource_to_block_cache = refuse_addresses

    def preprocess(self, payload) -> bytes | None:
        return None if payload is None else read_upload(payload.path, self.GRADIO_CACHE)


def read_upload(path: str | None, upload_folder: str) -> bytes:
    """At most `MAX_BYTES` + 1 bytes of an uploaded file.

    A request can name any path. Only a regular file inside the upload folder is read; all others get the same answer, so
    that nobody learns which files exist. A pipe or a device is not waited for.

    Raises:
        gr.Error: the path is not a regular file inside the folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        resolved = Path(path or "").resolve(strict=True)
        if not resolved.is_relative_to(Path(upload_folder).resolve()):
            raise gr.Error(NOT_UPLOADED, print_exception=False)
        with open(os.open(resolved, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise gr.Error(NOT_UPLOADED, print_exception=False)
            return file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:  # no such file, a loop of links, a name that no file can have
        raise gr.Error(NOT_UPLOADED, print_exception=False) from error


def read_image(ner, file: bytes | None):
    """The uploaded file as a PIL image, or `None`."""
    if file is None:
        return None
    if len(file) > MAX_BYTES:
        raise BadInput(f"The photo is larger than {MAX_BYTES // 2**20} MB: choose a smaller one.")
    try:
        return ner.processor.load_image(file, max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise BadInput(f"The photo {error}. Choose another one, or post without a photo.") from error


def read_regions(text: str) -> dict[str, list]:
    """Lines `label x1 y1 x2 y2` as the pipeline takes them; an empty dict without any line."""
    where = "Regions of the photo"
    if len(text) > MAX_REGION_CHARACTERS:
        raise BadInput(f"{where}: expected at most {MAX_REGION_CHARACTERS:,} characters, got {len(text):,}.")
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) > MAX_REGIONS:
        raise BadInput(f"{where}: expected at most {MAX_REGIONS} lines, got {len(lines)}.")
    boxes, labels = [], []
    for number, words in lines:
        label = " ".join(words[:-4])
        try:
            boxes.append([float(side) for side in words[-4:]])
        except ValueError:
            boxes.append([])
        if len(boxes[-1]) != 4:
            example = "a label and four numbers, such as: person 0.1 0.2 0.5 0.9"
            raise BadInput(f"{where}, line {number}: expected {example}; got: {' '.join(words):.80}")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise BadInput(
                f"{where}, line {number}: expected a label of at most {MAX_LABEL_CHARACTERS} characters, got {len(label)}."
            )
        labels.append(label)
    return {"boxes": boxes, "box_labels": labels} if boxes else {}


def read_post(ner, text: str | None, file: bytes | None, regions: str | None) -> dict:
    """What the visitor sent, as the pipeline takes it.

    Raises:
        BadInput: what has to be changed.
    """
    if not (text or "").strip():
        raise BadInput("Write a post first.")
    if len(text) > MAX_CHARACTERS:
        raise BadInput(f"Expected a post of at most {MAX_CHARACTERS:,} characters, got {len(text):,}.")
    post_regions = read_regions(regions or "")
    if post_regions and file is None:
        raise BadInput("Regions of the photo: there is no photo. Upload one, or remove the regions.")
    return {"text": text, "image": read_image(ner, file)} | post_regions


def find_entities(ner, post: dict) -> list[dict]:
    """The pipeline's entities, each with what it looks at.

    Raises:
        BadInput: what the processor cannot take, such as a region outside the photo.
    """
    try:
        return ner(post, return_attention=True)
    except ValueError as error:
        raise BadInput(f"This cannot be read: {error}") from error


def result_html(ner, text: str | None, file: bytes | None, regions: str | None) -> str:
    """The tagged post as HTML, or what is wrong with it."""
    try:
        post = read_post(ner, text, file, regions)
        entities = find_entities(ner, post)
    except BadInput as problem:
        return f'<p class="problem" role="alert">{escape(str(problem))}</p>'
    notes = [] if entities else ["No entities were found in this post."]
    if post["image"] is not None and entities:
        num_pointers = sum(len(entity["region_attention"]) for entity in entities)
        if not num_pointers:
            notes.append(NO_REGIONS)
        if num_pointers > MAX_POINTERS:
            notes.append(TOO_MANY_POINTERS)
            entities = [without_attention(entity) for entity in entities]
    return "".join(f'<p class="note" role="status">{note}</p>' for note in notes) + ner.draw_html(post, entities)


def without_attention(entity: dict) -> dict:
    """The entity without the list of what it looks at."""
    return {name: value for name, value in entity.items() if name != "region_attention"}


def read_examples() -> list[tuple[str, str | None, str]]:
    """Post, image file and regions; in three of them only the image tells who or what Jordan is."""
    posts = [
        ("everybody talks about Jordan tonight", "field.jpg", "person 0.3 0.2 0.65 0.9"),
        ("everybody talks about Jordan tonight", "valley.jpg", "mountain 0.25 0.2 0.7 0.8"),
        ("everybody talks about Jordan tonight", "stage.jpg", "trophy 0.3 0.25 0.65 0.85"),
        ("so happy to see Paris and Santa Fe today", "hall.jpg", "office 0.05 0.2 0.42 0.8\nfactory 0.55 0.3 0.95 0.8"),
        ("shares of Amazon fell five percent", None, ""),
    ]
    return [(text, image and str(EXAMPLES / image), regions) for text, image, regions in posts]


def build(ner, name: str) -> gr.Blocks:
    """The page of a loaded pipeline, with one public endpoint, `/tag`."""
    # The page, its examples and the endpoint have a queue each; the model tags one post at a time.
    one_at_a_time = threading.Lock()
    examples = read_examples()

    def find(text, photo, regions):
        with one_at_a_time:
            return result_html(ner, text, photo, regions)

    def tag(text: str, photo: bytes | None = None, regions: str = "") -> list[dict]:
        """Find the named entities of a social media post, read together with its photo if there is one.

        Args:
            text: The post, at most 2,000 characters.
            photo: Its photo: an uploaded file or "data:image/jpeg;base64,…", at most 10 MB. Web addresses are not fetched.
            regions: Optional. Lines of a label, then left, top, right, bottom from 0 to 1, such as "person 0.1 0.2 0.5 0.9".

        Returns:
            One object an entity: entity_group, score, word, start, end, relevance of each image level, region or null.
        """
        try:
            with one_at_a_time:
                entities = find_entities(ner, read_post(ner, text, photo, regions))
        except BadInput as problem:
            raise gr.Error(str(problem), print_exception=False) from problem
        return [without_attention(entity) for entity in entities]

    def load_example(index):
        return examples[index]

    with gr.Blocks(title="HamLearning", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as page:
        gr.Markdown(f"{ABOUT} Model: `{name}`.")
        with gr.Row():
            with gr.Column(scale=2):
                text = Textbox(
                    label="Post", lines=3, max_length=MAX_CHARACTERS, elem_id="post",
                    placeholder="everybody talks about Jordan tonight",
                )  # fmt: skip
                photo = Photo(
                    label="Photo, if there is one", sources=["upload", "clipboard"], height=240, buttons=[], elem_id="photo",
                    type="filepath",
                )  # fmt: skip
                with gr.Accordion("Regions of the photo", open=False):
                    regions = Textbox(
                        value="", label="Regions of the photo", show_label=False, lines=3, max_length=MAX_REGION_CHARACTERS,
                        container=False, elem_id="regions", placeholder="person 0.1 0.2 0.5 0.9",
                        info="May stay empty. One a line: a label, then left, top, right and bottom as shares of the photo.",
                    )  # fmt: skip
                button = gr.Button("Find the entities", variant="primary", elem_id="find")
            with gr.Column(scale=3):
                result = gr.HTML("<p class='note'>The tagged post appears here.</p>", elem_id="result", apply_default_css=False)
        inputs = [text, photo, regions]
        gallery = Dataset(
            components=[text, photo], samples=[[text, image] for text, image, _ in examples], type="index",
            label="Examples (drawn): click one", elem_id="examples",
        )  # fmt: skip
        gr.Markdown("Photos are deleted within two hours. Names of people are personal data: do not profile people.")

        gr.on([button.click, text.submit], find, inputs, result, api_visibility="private")
        gallery.click(load_example, gallery, inputs, api_visibility="private", show_progress="hidden").then(
            find, inputs, result, api_visibility="private"
        )
        # The regions of one photo are wrong for the next. Cleared in the browser: an answer of the server would come late
        # and clear what was typed meanwhile.
        photo.input(None, outputs=regions, js="() => ''")
        gr.on([], tag, inputs, gr.JSON(visible=False), api_name="tag")
    return page.queue(max_size=32)


CSS = """
.gradio-container { width: 100%; max-width: 1100px !important; margin: auto; }
#result .problem { border-left: 4px solid #D55E00; padding: .6rem .8rem; background: #D55E0018; }
#result .note { padding: .6rem .8rem; background: #8881; }
"""


def cli():
    """Serve the page of the model that the environment names."""
    name = os.environ.get("HAMLEARNING_MODEL")
    if not name:
        sys.exit("app: set the variable HAMLEARNING_MODEL to a repo on the Hub or to the folder of a trained model")
    # The repo is the page owner's choice, so its code may run; a revision pins it.
    ner = pipeline("mner", model=name, revision=os.environ.get("HAMLEARNING_REVISION"), trust_remote_code=True)
    build(ner, Path(name).name if Path(name).is_dir() else name).launch(
        css=CSS, theme=gr.themes.Default(), max_file_size=MAX_BYTES, run_history=False, footer_links=["api", "gradio"],
        allowed_paths=[str(EXAMPLES)], mcp_server=find_spec("mcp") is not None,
    )  # fmt: skip


if __name__ == "__main__":
    cli()
