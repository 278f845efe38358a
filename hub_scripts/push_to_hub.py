"""Put a trained model on the Hub: model, processor, code and card, with reference outputs to verify it by.

`python -m hub_scripts.push_to_hub MODEL_DIR user/repo [--private] [--dry-run DIR]`; a dry run writes the exact repo to DIR.
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
from transformers import pipeline
from transformers.utils import logging

from modeling_hamlearning import HamLearningForTokenClassification
from processors import HamLearningProcessor

REFERENCE = "reference.json"
CARRIED = ("README.md", "curves.png")


def reference_picture() -> Image.Image:
    """The picture of the reference posts: made, so that nobody's photo goes into a repo."""
    return Image.linear_gradient("L").resize((240, 160)).convert("RGB")


def reference_posts() -> list[dict]:
    """Three posts that touch every path: a picture with the extractor's regions, one with given regions, none."""
    picture = reference_picture()
    return [
        {"text": "Jordan is back at the court in New York tonight", "image": picture},
        {
            "text": "so happy to see Paris again",
            "image": picture,
            "boxes": [[0.1, 0.1, 0.4, 0.9], [0.5, 0.2, 0.9, 0.8]],
            "box_labels": ["person", "building"],
            "box_scores": [0.9, 0.8],
        },
        {"text": "Amazon opens a new office in London", "image": None},
    ]


def build_repo(model_dir: str | Path, folder: str | Path, repo_id: str):
    """Write the whole repo of a trained model to an empty folder.

    Raises:
        ValueError: something the repo needs is not in the model's folder.
    """
    model_dir, folder = Path(model_dir), Path(folder)
    for name in ("config.json", "model.safetensors", "processor_config.json", "README.md"):
        if not (model_dir / name).is_file() and not (name.startswith("model.") and any(model_dir.glob("model-*"))):
            raise ValueError(f"{model_dir} has no {name}: give the output folder of train.py")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    # The folder is one's own training run, so its code may run.
    HamLearningForTokenClassification.from_pretrained(model_dir).save_pretrained(folder)
    HamLearningProcessor.from_pretrained(model_dir, trust_remote_code=True).save_pretrained(folder)
    for name in CARRIED:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, folder / name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    old_name = ModelCard(card).text.strip().splitlines()[0].removeprefix("# ").strip()
    (folder / "README.md").write_text(card.replace(f'model="{old_name}"', f'model="{repo_id}"'), encoding="utf-8")
    ModelCard.load(folder / "README.md").data.to_dict()
    ner = pipeline("mner", model=str(folder), trust_remote_code=True)
    (folder / REFERENCE).write_text(json.dumps(ner(reference_posts()), indent=1), encoding="utf-8")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="output folder of train.py")
    parser.add_argument("repo", help="user/repo on the Hub")
    parser.add_argument("--private", action="store_true", help="make a private repo")
    parser.add_argument("--dry-run", metavar="DIR", help="write the repo to DIR and push nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        build_repo(options.model_dir, options.dry_run, options.repo)
        print(f"written, not pushed: {options.dry_run}")
        return
    with tempfile.TemporaryDirectory() as folder:
        build_repo(options.model_dir, folder, options.repo)
        api = HfApi()
        api.create_repo(options.repo, private=options.private, exist_ok=True)
        commit = api.upload_folder(repo_id=options.repo, folder_path=folder, commit_message="HamLearning model")
    print(f"pushed: {commit.commit_url}")


if __name__ == "__main__":
    logging.set_verbosity_error()
    try:
        main()
    except ValueError as error:
        sys.exit(f"push_to_hub: {error}")
    except HfHubHTTPError as error:
        sys.exit(f"push_to_hub: the Hub did not take it; run the same command again, nothing is lost: {error}")
