"""Train the small image classifier whose features and labels `scripts/evaluate.py` measures with.

    python scripts/train_classifier.py --output checkpoints/fashion-mnist-classifier
    python scripts/train_classifier.py --dataset ./photos --num_channels 3 --image_size 64 --output photos-classifier

The classifier is a ResNet of `transformers`, trained by its Trainer. Its card records the accuracy on the test images.
"""

import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers  # which imports torch when a model is first named
from transformers import HfArgumentParser

from ddpm_hf.cli import HelpFormatter, command, parse_dataclass
from ddpm_hf.data import FASHION_MNIST

if TYPE_CHECKING:
    from ddpm_hf.data import ImageDataset

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
---

# A small classifier of {dataset}

`ResNetForImageClassification` with {parameters:,} parameters and {classes} classes. Accuracy on the {num_test:,} test images:
**{accuracy:.2%}** (torch {torch}, {seconds:.0f} s). It takes images of {channels} channel(s) in [-1, 1], resized to
{size[0]} x {size[1]} pixels; `ddpm_hf.evaluation.fidelity.classify` does that. Its last hidden layer gives the {features} features of
FID, KID, precision and recall in `scripts/evaluate.py`.

```bash
{command}
```
"""


@dataclass
class ClassifierConfig:
    """The images, the size at which they are seen, and the training of the classifier."""

    output: str = field(metadata={"help": "The folder that the classifier is saved to."})
    dataset: str = field(default=FASHION_MNIST, metadata={"help": "The images: a Hub id or folder."})
    image_column: str | None = field(
        default=None, metadata={"help": "The column of the images. By default it is found by its type."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "The column of the labels. By default it is found by its type."}
    )
    skip_undecodable: bool = field(default=False, metadata={"help": "Leave out images that cannot be decoded."})
    num_channels: int = field(default=1, metadata={"help": "The channels of the images: 1 is grey, 3 is RGB."})
    image_size: list[int] = field(
        default_factory=lambda: [28],
        metadata={"help": "The size of the images in pixels: one number, or height and width."},
    )
    num_epochs: int = field(default=10, metadata={"help": "Passes over the training images."})
    batch_size: int = field(default=128, metadata={"help": "The images of one step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "The peak of the cosine schedule."})
    seed: int = field(default=0, metadata={"help": "The seed of weights, order and augmentation."})

    def __post_init__(self) -> None:
        self.output = os.path.expanduser(self.output)
        if len(self.image_size) not in (1, 2):
            raise ValueError(f"image_size={self.image_size}: give one number, or height and width.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be in [0, 2**32).")
        for name in ("num_epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")


class Mirrored:
    """The same images, half of them mirrored."""

    def __init__(self, dataset: "ImageDataset"):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> dict:
        import torch

        batch = self.dataset.__getitems__(indices)
        mirrored = torch.rand(len(indices), 1, 1, 1) < 0.5
        return batch | {"x_0": torch.where(mirrored, batch["x_0"].flip(-1), batch["x_0"])}


def make_model(config: ClassifierConfig, class_names: list[str]) -> "transformers.ResNetForImageClassification":
    """A ResNet that divides sides by 16; images with less than 48 pixels to a side are enlarged to twice their size."""
    height, width = (config.image_size * 2)[:2]
    scale = 2 if min(height, width) < 48 else 1
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            num_channels=config.num_channels,
            embedding_size=32,
            hidden_sizes=[32, 64, 128],
            depths=[2, 2, 2],
            layer_type="basic",
            id2label=dict(enumerate(class_names)),
            label2id={name: label for label, name in enumerate(class_names)},
            image_size=scale * height if height == width else [scale * height, scale * width],
        )
    )


@command
def main(args: list[str]) -> None:
    """Trains on the split "train", measures on "test", saves the classifier with its card."""
    parser = HfArgumentParser(
        ClassifierConfig,
        description=__doc__,
        usage="%(prog)s --output FOLDER [options]",
        formatter_class=HelpFormatter,
    )
    config = parse_dataclass(parser, args)[0]
    import torch

    from ddpm_hf.data import load_image_dataset
    from ddpm_hf.evaluation import fidelity
    from ddpm_hf.hardware import default_precision

    torch.manual_seed(config.seed)
    options: dict[str, Any] = {
        name: vars(config)[name] for name in ("image_column", "label_column", "skip_undecodable")
    }
    options |= {"num_channels": config.num_channels, "image_size": tuple((config.image_size * 2)[:2])}
    sets: list[Any] = [load_image_dataset(config.dataset, split=split, **options) for split in ("train", "test")]
    train, test = sets
    print(f"train: {train.describe()}\ntest: {test.describe()}")
    if len(train.class_names or ()) < 2:
        raise ValueError(
            f"dataset={config.dataset!r} has the classes {train.class_names}: two or more can be learned."
        )
    if test.class_names != train.class_names:
        raise ValueError(
            f"dataset={config.dataset!r}: test has the classes {test.class_names}, train {train.class_names}."
        )
    model = make_model(config, train.class_names)
    arguments = transformers.TrainingArguments(
        output_dir=config.output,
        num_train_epochs=config.num_epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=500,
        learning_rate=config.learning_rate,
        weight_decay=0.02,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        bf16=default_precision() == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        seed=config.seed,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=Mirrored(train),
        eval_dataset=test,
        data_collator=lambda batch: {
            "pixel_values": fidelity.to_pixel_values(batch["x_0"], model.config.image_size),
            "labels": batch["class_labels"],
        },
        compute_metrics=lambda seen: {"accuracy": (seen.predictions.argmax(axis=1) == seen.label_ids).mean().item()},
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    accuracy = trainer.evaluate()["eval_accuracy"]
    model.save_pretrained(config.output)
    pixel_size = model.config.image_size
    card = CARD.format(
        dataset=config.dataset,
        parameters=model.num_parameters(),
        classes=len(train.class_names),
        num_test=len(test),
        accuracy=accuracy,
        torch=torch.__version__,
        seconds=seconds,
        size=(pixel_size, pixel_size) if isinstance(pixel_size, int) else pixel_size,
        channels=config.num_channels,
        features=model.config.hidden_sizes[-1],
        command=shlex.join(["python", "scripts/train_classifier.py", *args]),
    )
    Path(config.output, "README.md").write_text(card)
    print(f"accuracy on {len(test)} test images: {accuracy:.4f}, saved to {config.output}")


if __name__ == "__main__":
    sys.exit(main())
