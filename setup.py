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
    packages=["hub_scripts", "modeling_hamlearning", "processors", "training"],
    # Each bound is a version that the tests have run with.
    install_requires=[
        "accelerate>=1.15",
        "datasets>=5.2",
        "evaluate>=0.4.6",
        "huggingface-hub>=2.4",
        "matplotlib>=3.11",
        "numpy>=2.4",
        "pillow>=13.0",
        "pyyaml>=6.0",
        "seqeval>=1.2.2",
        "timm>=1.0.31",
        "torch>=2.14",
        "torchvision>=0.29",
        "tqdm>=4.70",
        "transformers>=5.23",
    ],
    extras_require={"dev": ["codespell>=2.4", "peft>=0.21", "pytest>=9.2", "ruff>=0.17"]},
)
