"""The options of one evaluation, from which `ddpm-evaluate` builds its arguments."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..data.recorded import OPTIONS as DATA_OPTIONS
from ..data.recorded import recorded_options
from .metrics import METRICS
from .samplers import SAMPLERS

RULE = ("num_inference_steps", "timesteps", "eta", "solver_order")
SAMPLING = (*RULE, "guidance_scale", "guidance_interval")  # options of the pipeline's call
PRECISIONS = ("no", "bf16", "fp16")
MIN_IMAGES = 10  # as many as `spread` has groups
CLASSIFIER = Path(__file__).parents[2] / "checkpoints" / "fashion-mnist-classifier"


@dataclass
class EvaluationConfig:
    """What to measure, on what, and how the samples are drawn."""

    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What to measure: {', '.join(METRICS)}. By default those that suit the model, without"
            f" {', '.join(name for name, metric in METRICS.items() if not metric.by_default)}."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "The real images: a Hub id or folder. By default what the model was trained on."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "The column of the images. By default it is found by its type."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "The column of the labels. By default it is found by its type."}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "The column of the texts. By default it is found by its type and usual names."}
    )
    skip_undecodable: bool = field(default=False, metadata={"help": "Leave out images that cannot be decoded."})
    num_images: int | None = field(
        default=None,
        metadata={
            "help": "How many samples are drawn. Bits/dim and the floors take as many test images. By default 10,000, or all test images if they are fewer."
        },
    )
    seed: int = field(default=0, metadata={"help": "The seed of the samples and of the choice of real images."})
    batch_size: int = field(default=100, metadata={"help": "The images of one forward pass on each rank."})
    sampler: str | None = field(
        default=None, metadata={"help": f"The sampler: {', '.join(SAMPLERS)}. own, the model's, is the default."}
    )
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "The steps of the sampler. By default the model's own number."}
    )
    timesteps: list[int] | None = field(
        default=None,
        metadata={"help": "The timesteps of the sampler, in descending order, instead of their number."},
    )
    eta: float | None = field(
        default=None, metadata={"help": "The noise of a step: 0 is DDIM, 1 is DDPM. By default the model's own."}
    )
    solver_order: int | None = field(
        default=None, metadata={"help": "The order of the sampler, 1 or 2. By default the model's own."}
    )
    guidance_scale: float | None = field(
        default=None,
        metadata={"help": "The scale of classifier-free guidance. 1 is no guidance. By default the model's own."},
    )
    guidance_interval: list[int] | None = field(
        default=None,
        metadata={
            "help": "The least and the most timestep at which guidance acts. By default the model's own, or all."
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "The dtype of autocast: no, bf16 or fp16. By default the launcher's, or bf16, or no where the hardware lacks bfloat16."
        },
    )
    bpd_timesteps: int = field(
        default=10,
        metadata={
            "help": "The timesteps of the bound that each image is measured at. 0 is all of them, which is exact."
        },
    )
    classifier: str | None = field(
        default=None,
        metadata={
            "help": "The classifier whose features and labels measure: a folder or Hub id. By default the project's own, of FashionMNIST."
            " scripts/train_classifier.py trains one on other data."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "The revision of a model on the Hub."})
    cache_dir: str = field(
        default=os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "ddpm_hf"),
        metadata={
            "help": "The folder that keeps every finished batch, so that an evaluation that was stopped goes on. It may be deleted at any time."
        },
    )
    sweep: list[str] | None = field(
        default=None,
        metadata={
            "help": "Measure FID and time of these samplers instead, each with a number of steps, e.g. ddim:10 ddim:25 dpmsolver++:10."
        },
    )

    def __post_init__(self) -> None:
        self.cache_dir = os.path.expanduser(self.cache_dir)
        if unknown := set(self.metrics or ()) - set(METRICS):
            raise ValueError(f"metrics has {sorted(unknown)}: choose from {list(METRICS)}.")
        for name, choices in {"mixed_precision": PRECISIONS, "sampler": SAMPLERS}.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                raise ValueError(f"{name}={value!r}: choose from {list(choices)}.")
        for name, least in {"num_images": MIN_IMAGES, "seed": 0, "batch_size": 1, "bpd_timesteps": 0}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        named = [name for name in ("metrics", "sampler", *RULE) if getattr(self, name) is not None]
        if self.sweep and named:
            raise ValueError(f"sweep: each point names its sampler and steps, FID is measured; leave out {named}.")
        for point in self.sweep or ():
            sampler, _, steps = point.partition(":")
            if sampler not in SAMPLERS or not steps.isdigit():
                raise ValueError(f"sweep has {point!r}: give SAMPLER:STEPS, with SAMPLER from {list(SAMPLERS)}.")
        if self.mixed_precision is None:
            from ..hardware import default_precision  # asks torch, which no mistake has to wait for

            self.mixed_precision = default_precision()

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
