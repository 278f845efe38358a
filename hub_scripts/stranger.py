"""Load a repo where nothing but its files is at hand, and write down what it gives: `verify_repo` runs this file.

It runs in a folder that holds `repo/`, `posts.json` and `image.png`, and writes `report.json` with the value or the error of each
step, and the tensors of both loaded models to `model.safetensors` and `head.safetensors`. It judges nothing: `verify_repo`
does that, in its own process.

This file imports nothing of the project.
"""

import json
import sys

from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoProcessor, pipeline

OPTIONS = {"trust_remote_code": True}
PROJECT = ("modeling_hamlearning", "processors", "mner_data", "training", "bulk", "hub_scripts", "benchmarks", "examples")


class ProjectIsAbsent:
    """Refuses to import the project, which may be installed here: whoever loads the repo does not have it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PROJECT:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not in the repo")


def load_config():
    return type(AutoConfig.from_pretrained("repo", **OPTIONS)).__name__


def load_processor():
    return type(AutoProcessor.from_pretrained("repo", **OPTIONS)).__name__


def load_model(auto_class, file):
    """Save every parameter and buffer; return the keys that the weights' file lacks or holds in another shape."""
    model, info = auto_class.from_pretrained("repo", output_loading_info=True, **OPTIONS)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, file)
    return {
        "missing": sorted(info["missing_keys"]),
        "mismatched": sorted(map(str, info["mismatched_keys"])),
        "saved": sorted(model.state_dict()),
    }


def tag_posts():
    with open("posts.json", encoding="utf-8") as file:
        posts = json.load(file)
    ner = pipeline("mner", model="repo", **OPTIONS)
    image = Image.open("image.png")
    return ner([post | {"image": image if post["image"] else None} for post in posts])


STEPS = {
    "config": load_config,
    "model": lambda: load_model(AutoModel, "model.safetensors"),
    "head": lambda: load_model(AutoModelForTokenClassification, "head.safetensors"),
    "processor": load_processor,
    "pipeline": tag_posts,
    "modules": lambda: sorted(sys.modules),
}


def main():
    sys.meta_path.insert(0, ProjectIsAbsent())
    report = {}
    for name, step in STEPS.items():
        try:
            report[name] = {"value": step()}
        except BaseException as error:
            report[name] = {"error": f"{type(error).__name__}: {error}"[:600]}
        # After each step: a later one may end the process.
        with open("report.json", "w", encoding="utf-8") as file:
            json.dump(report, file)


if __name__ == "__main__":
    main()
