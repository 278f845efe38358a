"""Put a trained model on the Hub: model, processor, code, card and endpoint handler, with reference outputs to verify it by.

`python -m hub_scripts.push_to_hub MODEL_DIR user/repo [--private] [--dry-run DIR]`; a dry run writes the exact repo to DIR and
pushes nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from transformers import Pipeline, pipeline
from transformers.utils import logging

from modeling_hamlearning import HamLearningForTokenClassification
from processors import HamLearningProcessor

REFERENCE = "reference.json"
NEEDED = ("config.json", "processor_config.json", "README.md")
# The files that are copied as they are. All others are written anew from the loaded model and processor.
COPIED = ("README.md", "curves.png", "confusion.png")
# What Inference Endpoints run.
ENDPOINT = Path(__file__).with_name("endpoint")
COMMIT_MESSAGE = "HamLearning model"


def reference_image() -> Image.Image:
    """The image of the reference posts: a gradient, so that nobody's photo goes into a repo."""
    return Image.linear_gradient("L").resize((240, 160)).convert("RGB")


def reference_posts() -> list[dict]:
    """Three posts: an image with the extractor's regions, an image with regions beside it, and no image."""
    image = reference_image()
    return [
        {"text": "Jordan is back at the court in New York tonight", "image": image},
        {
            "text": "so happy to see Paris again",
            "image": image,
            "boxes": [[0.1, 0.1, 0.4, 0.9], [0.5, 0.2, 0.9, 0.8]],
            "box_labels": ["person", "building"],
            "box_scores": [0.9, 0.8],
        },
        {"text": "Amazon opens a new office in London", "image": None},
    ]


def build_repo(model_dir: str | Path, folder: str | Path, repo_id: str):
    """Write the repo of a trained model to an empty folder: what a model repo needs, and nothing else of the model's folder.

    Raises:
        ValueError: something that the repo needs is not in the model's folder, or `folder` is not empty.
    """
    model_dir, folder = Path(model_dir), Path(folder)
    missing = [name for name in NEEDED if not (model_dir / name).is_file()]
    if not any(model_dir.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ValueError(f"{model_dir} has no {', '.join(missing)}: expected the output folder of train.py")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: expected an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    # The folder is the user's own training run, so its code may run.
    HamLearningForTokenClassification.from_pretrained(model_dir).save_pretrained(folder)
    HamLearningProcessor.from_pretrained(model_dir, trust_remote_code=True).save_pretrained(folder)
    for name in COPIED:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, folder / name)
    for name in ("handler.py", "requirements.txt"):
        shutil.copyfile(ENDPOINT / name, folder / name)
    ner = pipeline("mner", model=str(folder), trust_remote_code=True)
    _complete_card(folder / "README.md", repo_id, ner)
    (folder / REFERENCE).write_text(json.dumps(ner(reference_posts()), indent=1), encoding="utf-8")


def _complete_card(path: Path, repo_id: str, ner: Pipeline):
    """Put the repo's name and examples of the model's output into the card."""
    card = ModelCard.load(path)
    old_name = card.text.strip().splitlines()[0].removeprefix("# ").strip()
    card.text = card.text.replace(f'model="{old_name}"', f'model="{repo_id}"').replace(f"# {old_name}\n", f"# {repo_id}\n", 1)
    if card.data.model_name is not None:
        card.data.model_name = repo_id
    texts = [post["text"] for post in reference_posts()]
    examples = [
        {
            "text": text,
            "output": [
                {"label": f"{item['word']}: {item['entity_group']}", "score": round(item["score"], 4)} for item in entities
            ],
        }
        for text, entities in zip(texts, ner(texts), strict=True)
        if entities
    ]
    # The Hub shows them as they stand: it does not run a model that brings its own code.
    card.data.widget = examples or None
    path.write_text(str(card), encoding="utf-8")


def push_model(
    model_dir: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = COMMIT_MESSAGE,
    token: str | None = None,
) -> str:
    """Put a trained model on the Hub in one commit: the repo that `build_repo` writes.

    Args:
        model_dir: output folder of train.py; nothing but the model, its processor and its card is taken from it.
        repo_id: `user/repo`; made if it does not exist.
        private: whether a new repo is private.
        revision: the branch to push to, made if it does not exist; `None` for main.
        commit_message: first line of the commit's message.
        token: of the Hub; `None` for the one that `hf auth login` or `HF_TOKEN` set.

    Returns:
        The commit's URL.

    Raises:
        ValueError: something that the repo needs is not in `model_dir`.
        HfHubHTTPError: the Hub refused or failed; nothing is half pushed.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_repo(model_dir, folder, repo_id)
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message or COMMIT_MESSAGE
        )
    return commit.commit_url


def main(arguments: list[str] | None = None):
    """Push a model, or write its repo to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="output folder of train.py")
    parser.add_argument("repo", help="user/repo on the Hub")
    parser.add_argument("--private", action="store_true", help="make a private repo")
    parser.add_argument("--revision", help="push to this branch, which is made if it does not exist")
    parser.add_argument("--dry-run", metavar="DIR", help="write the repo to DIR and push nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        build_repo(options.model_dir, options.dry_run, options.repo)
        print(f"written, not pushed: {options.dry_run}")
    else:
        print(f"pushed: {push_model(options.model_dir, options.repo, options.private, options.revision)}")


def cli():
    """Entry point of the command line: one line for each error that the user can mend."""
    logging.set_verbosity_error()
    try:
        main()
    except ValueError as error:
        sys.exit(f"push_to_hub: {error}")
    except (HfHubHTTPError, ConnectionError) as error:
        sys.exit(f"push_to_hub: the Hub did not take it; run the same command again, nothing is lost: {error}")
    except OSError as error:  # a file of the model, or the folder of --dry-run
        sys.exit(f"push_to_hub: {' '.join(str(error).split())}")


if __name__ == "__main__":
    cli()
