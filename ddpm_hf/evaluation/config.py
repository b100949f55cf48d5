"""What `evaluation` can measure, and the options of one run, from which scripts/evaluate.py builds its arguments."""

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from ..data import FASHION_MNIST
from ..hardware import default_precision
from ..scheduling_ddpm_noise import DDPMNoiseScheduler

NEEDS = {  # metric -> what every image is measured with
    "bpd": (),
    "fid": ("classifier",),
    "kid": ("classifier",),
    "precision_recall": ("classifier",),
    "accuracy": ("classifier",),
    "memorization": ("neighbors",),
    "fid_inception": ("inception",),
    "kid_inception": ("inception",),
}


class OfTheMean:
    """A step that takes no notice of the variance which some models predict beside the mean: these samplers have none."""

    def step(self, model_output: torch.Tensor, timestep, sample: torch.Tensor, **options):
        return super().step(model_output[:, : sample.shape[1]], timestep, sample, **options)  # type: ignore[misc]


class DPMSolver(OfTheMean, DPMSolverMultistepScheduler):
    """DPM-Solver++ (arXiv:2211.01095)."""


class UniPC(OfTheMean, UniPCMultistepScheduler):
    """UniPC (arXiv:2302.04867)."""


SAMPLERS: dict[str, tuple[Any, dict]] = {  # name -> scheduler class, options of the pipeline's call
    "ddpm": (DDPMNoiseScheduler, {}),
    "ddim": (DDPMNoiseScheduler, {"eta": 0.0}),
    "sde-dpmsolver++": (DDPMNoiseScheduler, {"eta": 1.0, "solver_order": 2}),  # the pipeline's fast default
    "dpmsolver++": (DPMSolver, {}),
    "unipc": (UniPC, {}),
}
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SWEEP = [f"ddpm:{n}" for n in (1000, 250, 100, 50, 20)]
SWEEP += [f"{name}:{n}" for name in ("ddim", "sde-dpmsolver++", "dpmsolver++", "unipc") for n in (10, 20, 25, 50)]


@dataclass
class EvaluationConfig:
    """What to measure, on what, and how the samples are drawn."""

    metrics: list[str] | None = field(
        default=None,
        metadata={"help": f"of {', '.join(NEEDS)}; default: all that need no download and suit the model"},
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the real images; default: what the model was trained on, or else FashionMNIST"
        },
    )
    split: str = field(default="train", metadata={"help": "the images that the model was trained on"})
    test_split: str = field(default="test", metadata={"help": "the images that it never saw"})
    image_column: str | None = field(default=None, metadata={"help": "of the data set; found by its type otherwise"})
    label_column: str | None = field(default=None, metadata={"help": "of the data set; found by its type otherwise"})
    num_images: int = field(
        default=1000, metadata={"help": "samples per seed, and test images for bits/dim and the floors"}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "one set of samples for each"})
    batch_size: int = field(default=100, metadata={"help": "images at once on each rank"})
    sampler: str | None = field(
        default=None, metadata={"help": f"of {', '.join(SAMPLERS)}; default: the pipeline's own"}
    )
    num_inference_steps: int | None = field(default=None, metadata={"help": "default: the pipeline's own; ddpm: all"})
    guidance_scale: float = field(default=1.0, metadata={"help": "1 is plain conditional sampling"})
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "of the network: no, bf16 or fp16; default: the launcher's or else bf16, but no on hardware without bfloat16"
        },
    )
    bpd_timesteps: int = field(default=50, metadata={"help": "evaluated for each image (stratified); 0 is all: exact"})
    classifier: str = field(
        default=os.path.relpath(Path(__file__).parents[2] / "checkpoints" / "fashion-mnist-classifier"),
        metadata={
            "help": "folder or Hub id of the classifier whose features and labels measure;"
            " one of other data than FashionMNIST comes from scripts/train_classifier.py"
        },
    )
    revision: str | None = field(default=None, metadata={"help": "of a model on the Hub"})
    cache_dir: str = field(
        default=os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "ddpm_hf"),
        metadata={"help": "where features of real images and the finished part of the bound are kept"},
    )
    sweep: bool = field(
        default=False, metadata={"help": "measure FID and time of every sampler and number of steps instead"}
    )
    sweep_points: list[str] | None = field(
        default=None, metadata={"help": f"SAMPLER:STEPS of the sweep; default: {' '.join(SWEEP)}"}
    )

    def __post_init__(self):
        if unknown := set(self.metrics or ()) - set(NEEDS):
            raise ValueError(f"metrics has {sorted(unknown)}: choose from {list(NEEDS)}.")
        if self.mixed_precision is None:
            self.mixed_precision = default_precision()
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision={self.mixed_precision!r}: choose from {list(PRECISIONS)}.")
        if self.sampler not in (None, *SAMPLERS):
            raise ValueError(f"sampler={self.sampler!r}: choose from {list(SAMPLERS)}.")
        for name, least in {"num_images": 2, "batch_size": 1, "bpd_timesteps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give one or more different numbers, each 0 or above.")
        if self.sweep and self.sweep_points is None:
            self.sweep_points = SWEEP
        for point in self.sweep_points or ():
            sampler, _, steps = point.partition(":")
            if sampler not in SAMPLERS or not steps.isdigit():
                raise ValueError(
                    f"sweep_points has {point!r}: give SAMPLER:STEPS, with SAMPLER from {list(SAMPLERS)}."
                )

    def with_data_of(self, folder: Path) -> "EvaluationConfig":
        """Where no data set is named: the config with the one, and its columns, that the saved model was trained on.

        Raises:
            ValueError: the folder keeps but the last part of that data set's path.
        """
        if self.dataset is not None:
            return self
        # A run's own file has the whole path of a local data set, the model's for everybody its last part.
        files = [path for name in ("run.yaml", "training_config.yaml") if (path := folder / name).exists()]
        trained = (yaml.safe_load(files[0].read_text()) if files else None) or {}
        if (dataset := trained.get("dataset")) is None:
            dataset = FASHION_MNIST
            logging.getLogger(__name__).warning(
                f"The model does not tell what it was trained on: dataset={FASHION_MNIST!r} is taken."
            )
        elif "/" not in dataset and not Path(dataset).is_dir():
            raise ValueError(
                f"dataset: the model was trained on {dataset!r}, which is no folder here and no whole Hub id"
                " ('owner/name'): name it."
            )
        columns = {name: getattr(self, name) or trained.get(name) for name in ("image_column", "label_column")}
        return dataclasses.replace(self, dataset=dataset, **columns)

    def parse_sweep_points(self) -> list[tuple[str, int]]:
        """The sweep's (sampler, number of steps)."""
        return [(sampler, int(steps)) for sampler, _, steps in (point.partition(":") for point in self.sweep_points)]
