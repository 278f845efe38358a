"""The demo page: a post and a photo in, its entities and what each of them has to do with the photo out.

`HAMLEARNING_MODEL=user/repo python app.py`; a folder does as well. Needs `requirements.txt`, the folder `examples` beside
this one, and nothing else of the project: the model's repo brings its own code.
"""

from __future__ import annotations

import os
import sys
from html import escape
from pathlib import Path

import gradio as gr
from transformers import pipeline

MAX_CHARACTERS, MAX_BYTES, MAX_PIXELS = 2_000, 10 * 2**20, 25_000_000
# A photo that a visitor uploaded is deleted after this.
KEPT_SECONDS = 3600
ABOUT = """# Who and what is this post about?

A [HamLearning](https://doi.org/10.1609/aaai.v38i17.29831) model reads the words of a post together with its photo."""
NO_REGIONS = "The photo was read as a whole: this model finds no regions by itself. Name some under “Regions of the photo”."


class BadInput(ValueError):
    """What a visitor has to change, in words for them."""


class Photo(gr.Image):
    """An uploaded file, unopened: Gradio would fetch an address, and would decode a picture of any size."""

    is_template = True

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Upload a photo: addresses are not fetched.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload) -> str | None:
        return payload and payload.path


def read_photo(ner, path: str | None):
    """The uploaded file as a picture, or `None`."""
    if path is None:
        return None
    if Path(path).stat().st_size > MAX_BYTES:
        raise BadInput(f"The photo is larger than {MAX_BYTES // 2**20} MB: choose a smaller one.")
    try:
        return ner.processor.load_image(Path(path).read_bytes(), max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise BadInput(f"The photo {error}. Choose another one, or post without a photo.") from error


def read_regions(text: str) -> dict[str, list]:
    """Lines `label x1 y1 x2 y2` as the pipeline takes them; nothing if there are none."""
    boxes, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        *label, x1, y1, x2, y2 = line.split() if len(line.split()) >= 4 else [""] * 4
        try:
            boxes.append([float(side) for side in (x1, y1, x2, y2)])
        except ValueError as error:
            wanted = "a label and four numbers are wanted, such as: person 0.1 0.2 0.5 0.9"
            raise BadInput(f"Regions of the photo, line {number}: {wanted}") from error
        labels.append(" ".join(label))
    return {"boxes": boxes, "box_labels": labels} if boxes else {}


def tag(ner, text: str | None, path: str | None, regions: str | None) -> str:
    """The result as HTML: the tagged post, or what is wrong with it."""
    try:
        if not (text or "").strip():
            raise BadInput("Write a post first.")
        if len(text) > MAX_CHARACTERS:
            raise BadInput(f"The post has {len(text):,} characters; at most {MAX_CHARACTERS:,} are taken.")
        post = {"text": text, "image": read_photo(ner, path)}
        if post["image"] is not None:
            post |= read_regions(regions or "")
        try:
            found = ner(post, return_attention=True)
        except ValueError as error:
            raise BadInput(f"This cannot be read: {error}") from error
    except BadInput as problem:
        return f'<p class="problem" role="alert">{escape(str(problem))}</p>'
    notes = [] if found else ["No entities were found in this post."]
    if post["image"] is not None and found and not found[0]["region_attention"]:
        notes.append(NO_REGIONS)
    return "".join(f'<p class="note" role="status">{note}</p>' for note in notes) + ner.draw_html(post, found)


def examples() -> list[list]:
    """Posts with drawn images: in three of them only the image tells who or what Jordan is."""
    images = Path(__file__).with_name("examples")
    posts = [
        ("everybody talks about Jordan tonight", "field.jpg", "person 0.3 0.2 0.65 0.9"),
        ("everybody talks about Jordan tonight", "valley.jpg", "mountain 0.25 0.2 0.7 0.8"),
        ("everybody talks about Jordan tonight", "stage.jpg", "trophy 0.3 0.25 0.65 0.85"),
        ("so happy to see Paris and Santa Fe today", "hall.jpg", "office 0.05 0.2 0.42 0.8\nfactory 0.55 0.3 0.95 0.8"),
        ("shares of Amazon fell five percent", None, ""),
    ]
    return [[text, image and str(images / image), regions] for text, image, regions in posts]


def build(ner, name: str) -> gr.Blocks:
    """The page of a loaded pipeline."""

    def find(text, path, regions):
        return tag(ner, text, path, regions)

    with gr.Blocks(title="HamLearning", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(f"{ABOUT} Model: `{name}`.")
        with gr.Row():
            with gr.Column(scale=2):
                text = gr.Textbox(label="Post", lines=3, max_length=MAX_CHARACTERS, elem_id="post",
                                  placeholder="everybody talks about Jordan tonight")  # fmt: skip
                photo = Photo(label="Photo, if there is one", sources=["upload", "clipboard"], height=240, buttons=[],
                              elem_id="photo", type="filepath")  # fmt: skip
                with gr.Accordion("Regions of the photo", open=False):
                    regions = gr.Textbox(
                        show_label=False, lines=3, container=False, elem_id="regions", placeholder="person 0.1 0.2 0.5 0.9",
                        info="May stay empty. One a line: a label, then left, top, right and bottom as shares of the photo.",
                    )  # fmt: skip
                button = gr.Button("Find the entities", variant="primary", elem_id="find")
            with gr.Column(scale=3):
                result = gr.HTML("<p class='note'>The tagged post appears here.</p>", elem_id="result", apply_default_css=False)
        inputs = [text, photo, regions]
        gr.Examples(
            examples(), inputs, result, find, run_on_click=True, cache_examples=False, visible_columns=[0, 1],
            label="Examples (drawn): click one", api_visibility="private",
        )  # fmt: skip
        gr.Markdown("Photos are deleted within two hours. Names of people are personal data: do not profile people.")
        # The regions of one photo say nothing about the next.
        # In the browser: an answer that comes late would clear what was typed meanwhile.
        photo.input(None, outputs=regions, js="() => ''")
        gr.on([button.click, text.submit], find, inputs, result, api_visibility="private")
    return page.queue(max_size=32)


CSS = """
.gradio-container { max-width: 1100px !important; margin: auto; }
#result .problem { border-left: 4px solid #D55E00; padding: .6rem .8rem; background: #D55E0018; }
#result .note { padding: .6rem .8rem; background: #8881; }
"""


def main():
    name = os.environ.get("HAMLEARNING_MODEL")
    if not name:
        sys.exit("app: set the variable HAMLEARNING_MODEL to a repo on the Hub or to the folder of a trained model")
    # The repo is the page owner's choice, so its code may run; a revision pins it.
    ner = pipeline("mner", model=name, revision=os.environ.get("HAMLEARNING_REVISION"), trust_remote_code=True)
    shown = Path(name).name if Path(name).is_dir() else name
    build(ner, shown).launch(
        css=CSS, theme=gr.themes.Default(), max_file_size=MAX_BYTES, run_history=False, footer_links=["gradio"]
    )


if __name__ == "__main__":
    main()
