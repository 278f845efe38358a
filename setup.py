from pathlib import Path

from setuptools import setup

# What not everyone needs: the demo page, bulk tagging, ONNX, the rivals that the benchmarks measure against.
EXTRAS = {
    "space": ["gradio[mcp]>=6.31"],
    # 2.64 takes away the argument that bounds how often a post may kill its worker.
    "bulk": ["ray[data]>=2.60,<2.64"],
    "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7"],
    "bench": ["pytorch-crf>=0.7.2"],
}
DEV = [
    "codespell>=2.4",
    "hypothesis>=6.170",
    "ipykernel>=7.4",
    "nbclient>=0.11",
    "peft>=0.21",
    "pytest>=9.2",
    "ruff>=0.17",
    "selenium>=4.51",
]

setup(
    name="hamlearning",
    version="0.1.0",
    description="Named entities of posts that come with a picture: hierarchical aligned multimodal learning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["bulk", "hub_scripts", "mner_data", "modeling_hamlearning", "processors", "training"],
    # Each bound is a version that the tests have run with.
    install_requires=[
        "accelerate>=1.15",
        "datasets>=5.2",
        "evaluate>=0.4.6",
        "huggingface-hub>=2.4",
        "matplotlib>=3.11",
        "numpy>=2.4",
        "pillow>=12.0",
        "pyyaml>=6.0",
        "scipy>=1.17",
        "seqeval>=1.2.2",
        "timm>=1.0.31",
        "torch>=2.14",
        "torchvision>=0.29",
        "tqdm>=4.70",
        "transformers>=5.23",
    ],
    extras_require=EXTRAS | {"dev": DEV + [package for packages in EXTRAS.values() for package in packages]},
)
