"""The options of one evaluation, from which scripts/evaluate.py builds its arguments."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from ..data.recorded import OPTIONS as DATA_OPTIONS
from ..data.recorded import recorded_options
from ..hardware import default_precision
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from .measures import METRICS

SAMPLERS: dict[str, tuple[Any, dict]] = {  # name -> scheduler class, its words to the pipeline
    "own": (None, {}),  # the model's
    "ddpm": (DDPMNoiseScheduler, {}),
    "ddim": (DDPMNoiseScheduler, {"eta": 0.0}),
    "sde-dpmsolver++": (DDPMNoiseScheduler, {"eta": 1.0, "solver_order": 2}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),  # arXiv:2211.01095
    "unipc": (UniPCMultistepScheduler, {}),  # arXiv:2302.04867
}
SAMPLING = ("num_inference_steps", "eta", "solver_order", "guidance_scale")  # options of the pipeline's call
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_IMAGES = 10  # as many as `spread` has groups
CLASSIFIER = Path(__file__).parents[2] / "checkpoints" / "fashion-mnist-classifier"


@dataclass
class EvaluationConfig:
    """What to measure, on what, and how the samples are drawn."""

    metrics: list[str] | None = field(
        default=None,
        metadata={"help": f"of {', '.join(METRICS)}; default: those of the first six that suit the model"},
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of the real images; default: what the model was trained on"},
    )
    image_column: str | None = field(default=None, metadata={"help": "of the data set; found by its type otherwise"})
    label_column: str | None = field(default=None, metadata={"help": "of the data set; found by its type otherwise"})
    caption_column: str | None = field(default=None, metadata={"help": "of the data set; found by its type otherwise"})
    skip_undecodable: bool = field(default=False, metadata={"help": "leave out images that cannot be decoded"})
    num_images: int | None = field(
        default=None,
        metadata={
            "help": "samples, and test images for bits/dim and the floors; default: 10,000, or all test images if they are fewer"
        },
    )
    seed: int = field(default=0, metadata={"help": "of the samples and of the choice of real images"})
    batch_size: int = field(default=100, metadata={"help": "images at once on each rank"})
    sampler: str | None = field(
        default=None, metadata={"help": f"of {', '.join(SAMPLERS)}; own is the model's, and the default"}
    )
    num_inference_steps: int | None = field(default=None, metadata={"help": "default: the model's own"})
    eta: float | None = field(default=None, metadata={"help": "0 is DDIM, 1 DDPM; default: the model's own"})
    solver_order: int | None = field(default=None, metadata={"help": "1 or 2; default: the model's own"})
    guidance_scale: float | None = field(default=None, metadata={"help": "1 is none; default: the model's own"})
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "of the network: no, bf16 or fp16; default: the launcher's or else bf16, but no on hardware without bfloat16"
        },
    )
    bpd_timesteps: int = field(default=10, metadata={"help": "evaluated for each image (stratified); 0 is all: exact"})
    classifier: str | None = field(
        default=None,
        metadata={
            "help": "folder or Hub id of the classifier whose features and labels measure; default: the project's own, of FashionMNIST;"
            " scripts/train_classifier.py makes one of other data"
        },
    )
    revision: str | None = field(default=None, metadata={"help": "of a model on the Hub"})
    cache_dir: str = field(
        default=os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "ddpm_hf"),
        metadata={
            "help": "keeps every finished batch, so that an evaluation that was cut off goes on; may be deleted at any time"
        },
    )
    sweep: list[str] | None = field(
        default=None,
        metadata={
            "help": "SAMPLER:STEPS ...: measure FID and time of these instead, e.g. ddim:10 ddim:25 dpmsolver++:10"
        },
    )

    def __post_init__(self):
        self.cache_dir = os.path.expanduser(self.cache_dir)
        if unknown := set(self.metrics or ()) - set(METRICS):
            raise ValueError(f"metrics has {sorted(unknown)}: choose from {list(METRICS)}.")
        if self.mixed_precision is None:
            self.mixed_precision = default_precision()
        for name, choices in {"mixed_precision": PRECISIONS, "sampler": SAMPLERS}.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                raise ValueError(f"{name}={value!r}: choose from {list(choices)}.")
        for name, least in {"num_images": MIN_IMAGES, "seed": 0, "batch_size": 1, "bpd_timesteps": 0}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        named = [name for name in ("metrics", "sampler", *SAMPLING[:-1]) if getattr(self, name) is not None]
        if self.sweep and named:
            raise ValueError(f"sweep: each point names its sampler and steps, FID is measured; leave out {named}.")
        for point in self.sweep or ():
            sampler, _, steps = point.partition(":")
            if sampler not in SAMPLERS or not steps.isdigit():
                raise ValueError(f"sweep has {point!r}: give SAMPLER:STEPS, with SAMPLER from {list(SAMPLERS)}.")

    def with_data_of(self, folder: Path) -> "EvaluationConfig":
        """Where no data set is named: the config with the one, and its options, that the model saved in `folder` was trained on.

        Raises:
            ValueError: as `recorded_options`.
        """
        if self.dataset is not None:
            return self
        recorded = recorded_options(folder)
        return dataclasses.replace(
            self, **recorded | {name: vars(self)[name] for name in DATA_OPTIONS if vars(self)[name]}
        )
