import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Every lower bound is a version that the tests pass with: `make test-lowest` installs exactly these.
REQUIRED = [
    "accelerate>=1.10.1",
    "datasets>=4.4.2",
    # BERTweet reads emoji by their names.
    "emoji>=2.16",
    "evaluate>=0.4.6",
    "filelock>=3.16",
    # Earlier ones give up an upload whose connection drops once.
    "huggingface-hub>=1.21",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "numpy>=2.0.2",
    "pillow>=11.3",
    # DeBERTa-v3, XLM-R and T5 are stored with the vocabularies of sentencepiece.
    "protobuf>=7.36.1",
    "pyyaml>=6.0.1",
    "scipy>=1.13.1",
    "sentencepiece>=0.2.3",
    "seqeval>=1.2.2",
    # Earlier ones load a Swin backbone with wrong masks or position indices.
    "timm>=1.0.31",
    "torch>=2.9.1",
    "torchvision>=0.24.1",
    "tqdm>=4.67",
    "transformers>=5.10.4,<6",
]
# What not everyone needs: the demo page, bulk tagging, serving, spaCy, ONNX, the models that the benchmarks compare with,
# low-rank adapters, the search for hyperparameters.
EXTRAS = {
    "space": ["gradio[mcp]>=6.31"],
    # Ray 2.64 removes the argument that limits how often one post may end its worker.
    "bulk": ["ray[data]>=2.60,<2.64"],
    "serve": ["fastapi>=0.165", "fastapi-offline>=1.7.7", "uvicorn>=0.54"],
    "spacy": ["spacy>=3.8.18"],
    "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7"],
    "bench": ["pytorch-crf>=0.7.2"],
    "lora": ["peft>=0.21"],
    "search": ["optuna>=5.0"],
}
OPTIONAL = [requirement for requirements in EXTRAS.values() for requirement in requirements]
DEV = [
    "codespell>=2.4",
    "hypothesis>=6.170",
    "ipykernel>=7.4",
    "mypy>=2.4",
    "nbclient>=0.11",
    "packaging>=25.0",
    "pre-commit>=4.0",
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "ruff>=0.17",
    "selenium>=4.51",
    "setuptools>=77",
    "types-PyYAML",
    "types-tqdm",
]


class BuildWithCardTemplate(build_py):
    """The template of the model card lies beside the code in a checkout; in a wheel it goes into the package that reads it."""

    def run(self):
        super().run()
        # An editable install reads the checkout's own file.
        if not self.editable_mode:
            shutil.copyfile("model_card.md", Path(self.build_lib, "training", "model_card.md"))


setup(
    name="hamlearning",
    version="0.2.0",
    description="Named entities of posts that come with an image: hierarchical aligned multimodal learning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["bulk", "hub_scripts", "mner_data", "mner_data.readers", "modeling_hamlearning", "processors", "training"],
    py_modules=["train", "predict", "serve"],
    package_data={
        "": ["py.typed"],
        "hub_scripts": ["endpoint/*.py", "endpoint/*.txt", "space/*.py", "space/*.md", "space/*.txt", "space/examples/*"],
    },
    cmdclass={"build_py": BuildWithCardTemplate},
    entry_points={
        "console_scripts": [
            "hamlearning-train = train:cli",
            "hamlearning-predict = predict:cli",
            "hamlearning-serve = serve:cli",
            "hamlearning-prepare-dataset = hub_scripts.prepare_dataset:cli",
            "hamlearning-push = hub_scripts.push_to_hub:cli",
            "hamlearning-verify = hub_scripts.verify_repo:cli",
            "hamlearning-export-onnx = hub_scripts.export_onnx:cli",
            "hamlearning-compare-runs = training.compare_runs:cli",
        ]
    },
    install_requires=REQUIRED,
    extras_require=EXTRAS
    | {
        "dev": DEV + OPTIONAL,
        # For `make test-lowest`: what a user needs, every `>=` as `==`.
        "lowest": [requirement.replace(">=", "==") for requirement in REQUIRED + OPTIONAL],
    },
)
