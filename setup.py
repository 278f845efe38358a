from pathlib import Path

from setuptools import setup

setup(
    name="hamlearning",
    version="0.1.0",
    description="Named entities of posts that come with a picture: hierarchical aligned multimodal learning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["modeling_hamlearning", "processors", "training"],
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "timm>=1.0.20",
        "transformers>=5.23",
        "accelerate>=1.15",
        "datasets>=5.0",
        "evaluate>=0.4.6",
        "huggingface-hub>=2.4",
        "seqeval>=1.2.2",
        "numpy>=2.0",
        "pillow>=11.0",
        "matplotlib>=3.9",
        "pyyaml>=6.0",
    ],
    extras_require={"dev": ["pytest>=8.0", "ruff>=0.14", "codespell>=2.4", "peft>=0.18"]},
)
