"""Fine-tune a trained model on a folder of photos, whose sub-folders are its classes.

    python examples/fine_tune.py MODEL PHOTOS --output_dir runs/photos [any option of scripts/train.py]

The same as `scripts/train.py --init_from MODEL --dataset PHOTOS`. The photos become what the network takes, in channels and size. Where their
classes are others, the class table is made anew, and the run says so.
"""

import sys
from pathlib import Path

from ddpm_hf import DDPMImagePipeline
from ddpm_hf.cli.train import parse_args
from ddpm_hf.images import labelled_grid
from ddpm_hf.training import train


def main(model: str, photos: str, *arguments: str) -> Path:
    """The folder of the run, with the saved model and fine_tuned.png, eight images of each class."""
    folder = train(parse_args(["--init_from", model, "--dataset", photos, *arguments]))
    if not (folder / "model_index.json").exists():  # the run was stopped; --resume goes on
        return folder
    pipe = DDPMImagePipeline.from_pretrained(folder)
    rows = {name: pipe(8, class_labels=label).images for label, name in pipe.id2label.items()} or {"": pipe(64).images}
    labelled_grid(rows).save(folder / "fine_tuned.png")
    return folder


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
