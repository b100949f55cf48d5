"""What to train and how: PRESETS are architectures and recipes as data, TrainConfig is one run.

A preset names constructor arguments of the U-Net and the scheduler (which `register_to_config` then records in the saved model) and the
training options that suit them; the configs of a saved model serve as one, too. TrainConfig holds the options that a run may change; the
command line and the YAML file are both built from it by `transformers.HfArgumentParser`. An option left at None is the preset's.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import yaml

from ..hardware import default_precision
from .presets import PRESETS, find_preset

_DEFAULTS = dict(  # of the options that a preset may set
    dataset="zalando-datasets/fashion_mnist",
    lr_scheduler="cosine",
    random_flip=False,
    snr_gamma=0.0,
    adam_beta2=0.99,
    weight_decay=0.01,
)

LR_SCHEDULERS = ("cosine", "linear", "constant_with_warmup", "polynomial", "cosine_with_restarts")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned_range")
MAX_SIGMA_REL = 0.288  # of a power-function average: the plain mean's width


def _option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class TrainConfig:
    """One training run. Everything is counted in optimizer steps, on any number of ranks."""

    preset: str = _option(
        "fashion-mnist-quick",
        f"Architecture and recipe: {', '.join(PRESETS)}; or a folder with unet/config.json and scheduler/scheduler_config.json.",
    )
    dataset: str | None = _option(None, "Hub id, folder of images, or folder of IDX files.")
    image_column: str | None = _option(None, "Column of the images; found by its type if not named.")
    label_column: str | None = _option(None, "Column of the labels; found by its type if not named.")
    streaming: bool = _option(False, "Read the data set from the Hub as it is needed, never as a whole.")
    output_dir: str = _option("runs/quick", "The run's folder, and the saved model when the run ends.")

    prediction_type: str | None = _option(None, f"What the U-Net predicts: {', '.join(PREDICTION_TYPES)}.")
    variance_type: str | None = _option(
        None,
        f"Of the reverse steps: {', '.join(VARIANCE_TYPES)}. A learned one is trained by L_hybrid (arXiv:2102.09672).",
    )
    rescale_betas_zero_snr: bool = _option(False, "Let the last step be noise alone (arXiv:2305.08891).")

    train_batch_size: int | None = _option(None, "Images of one rank in one forward pass.")
    gradient_accumulation_steps: int = _option(1, "Forward passes of one optimizer step.")
    max_train_steps: int | None = _option(None, "Length of the run.")
    learning_rate: float | None = _option(None, "Peak of the schedule.")
    lr_scheduler: str | None = _option(None, f"After the warm-up: {', '.join(LR_SCHEDULERS)}.")
    lr_warmup_steps: int | None = _option(None, "Linear warm-up; the preset's, as a part of the run.")
    adam_beta2: float | None = _option(None, "AdamW's decay of squared gradients.")
    weight_decay: float | None = _option(None, "Weight decay of AdamW.")
    max_grad_norm: float = _option(1.0, "Gradients are clipped to this norm.")
    ema_decay: float | None = _option(
        None,
        "Decay of the moving average of the weights, which is what is saved; the preset's, as long a part of the run.",
    )
    ema_sigma_rels: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Keep power-function averages of these widths as well, e.g. 0.05 0.1, for scripts/average.py (arXiv:2312.02696)."
        },
    )
    snr_gamma: float | None = _option(None, "Min-SNR weighting of the loss (arXiv:2303.09556), e.g. 5; 0 is plain.")
    label_dropout: float = _option(0.1, "How often a label is replaced by the null label, for guidance.")
    random_flip: bool | None = _option(None, "Flip images horizontally, half of the time.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _option(
        None, "Autocast; by default the launcher's, else bf16, or 'no' where the hardware lacks bfloat16."
    )
    gradient_checkpointing: bool = _option(False, "Spend time to save the memory of activations.")
    torch_compile: bool = _option(False, "Compile the U-Net; wants a C++ compiler, and pays in longer runs.")
    dataloader_num_workers: int = _option(0, "Processes that decode images; not needed where they fit in memory.")
    seed: int = _option(0, "Seed of all random draws.")

    checkpointing_steps: int = _option(2000, "How often the whole state is saved to OUTPUT_DIR/checkpoints/step-N.")
    checkpoints_total_limit: int = _option(2, "Older checkpoints are removed once a newer one stands.")
    resume: bool = _option(False, "Go on from the newest whole checkpoint in OUTPUT_DIR, if there is one.")
    validation_steps: int = _option(500, "How often to draw samples and take the held-out loss; 0: only at the end.")
    num_validation_images: int = _option(512, "Held-out images for the loss; 0 is none.")
    guidance_scale: float = _option(1.3, "Guidance of the sample grids.")
    logging_steps: int = _option(10, "How often loss and speed are reported.")
    report_to: str = _option("tensorboard", "Tracker: tensorboard, wandb, trackio, or none.")

    push_to_hub: bool = _option(False, "Push the saved model when the run ends; the repo is created before it starts.")
    hub_model_id: str | None = _option(None, "Repo to push to; the name of OUTPUT_DIR by default.")
    hub_private_repo: bool = _option(False, "Create that repo private.")

    def __post_init__(self):
        self._check_types()
        self._fill_in()
        self._check_values()

    def _fill_in(self) -> None:
        """The preset's values and the launcher's precision, for options that are left at None."""
        recipe = _DEFAULTS | find_preset(self.preset).training
        for name, value in (recipe | _durations(recipe, self.max_train_steps)).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.mixed_precision = self.mixed_precision or default_precision()

    def _check_values(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be in [0, 2**32).")
        for name in ("ema_decay", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1).")
        for name in ("snr_gamma", "validation_steps", "num_validation_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0.")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")
        if not 0 <= self.lr_warmup_steps <= self.max_train_steps:
            limit = f"at least 0, at most max_train_steps={self.max_train_steps}"
            raise ValueError(f"lr_warmup_steps={self.lr_warmup_steps} must be {limit}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in (*choices, None):
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        scheduler = self.parts()[1]
        if scheduler.get("rescale_betas_zero_snr") and scheduler["prediction_type"] == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr=True: at the last step epsilon tells nothing of the image;"
                " choose prediction_type sample or v_prediction."
            )

    def _check_types(self) -> None:
        """YAML and Python may give anything for a number: 16.5 images, the word yes."""
        kinds = {int: ((int,), "a whole number"), float: ((int, float), "a number"), bool: ((bool,), "true or false")}
        for option in fields(self):
            value = getattr(self, option.name)
            for kind, (accepted, words) in kinds.items():
                fits = type(value) in accepted or (value is None and option.default is None)
                if option.type in (kind, kind | None) and not fits:
                    raise ValueError(f"{option.name}={value!r} must be {words}.")
        sigma_rels = self.ema_sigma_rels
        if not isinstance(sigma_rels, list) or not all(type(x) is float and 0 < x < MAX_SIGMA_REL for x in sigma_rels):
            raise ValueError(f"ema_sigma_rels={sigma_rels} must be a list of numbers above 0, below {MAX_SIGMA_REL}.")

    def parts(self) -> tuple[dict, dict]:
        """Constructor arguments of the U-Net and the scheduler: the preset's, and what this run has chosen instead."""
        preset = find_preset(self.preset)  # which may leave the constructors' defaults out
        unet = {"in_channels": 3, "out_channels": 3} | preset.unet
        scheduler = {"prediction_type": "epsilon", "variance_type": "fixed_small"} | preset.scheduler
        scheduler |= {name: getattr(self, name) for name in SCHEDULER_OPTIONS if getattr(self, name)}
        if self.variance_type:
            unet["out_channels"] = unet["in_channels"] * (2 if self.variance_type == "learned_range" else 1)
        return unet, scheduler

    def _model(self) -> str:
        """What two runs share if their models are the same."""
        return json.dumps([*self.parts(), find_preset(self.preset).class_conditional], sort_keys=True)

    def recipe(self) -> dict:
        """The options that made the model, for its card: not whether the run was resumed, nor where it was pushed."""
        left_out = ("resume", "push_to_hub", "hub_model_id", "hub_private_repo")
        options = {name: value for name, value in asdict(self).items() if name not in left_out}
        return options | {"preset": self.preset if self.preset in PRESETS else "."}  # the saved model has the configs

    def save(self, path: str | Path) -> None:
        Path(path).write_text(yaml.safe_dump(asdict(self), sort_keys=False))

    def differences(self, path: str | Path) -> list[str]:
        """Names of the options that make this run another one than the run whose config is at `path`; a fingerprint guards its images."""
        theirs = yaml.safe_load(Path(path).read_text()) or {}
        names = [name for name in RUN_IDENTITY if (theirs.get(name) or None) != (getattr(self, name) or None)]
        model = {name: theirs.get(name, getattr(TrainConfig, name)) for name in MODEL_OPTIONS}
        with suppress(ValueError):  # their preset is no more
            if replace(self, **model)._model() == self._model():  # the same in other words
                names = [name for name in names if name not in MODEL_OPTIONS]
        scaled = [options.get("mixed_precision") == "fp16" for options in (theirs, vars(self))]
        return names + ["mixed_precision"] * (scaled[0] != scaled[1])  # fp16's loss scale is part of a checkpoint


COUNTS = "train_batch_size gradient_accumulation_steps max_train_steps".split()
COUNTS += "logging_steps checkpointing_steps checkpoints_total_limit".split()
CHOICES = {
    "prediction_type": PREDICTION_TYPES,
    "variance_type": VARIANCE_TYPES,
    "lr_scheduler": LR_SCHEDULERS,
    "mixed_precision": ("no", "fp16", "bf16"),
}
SCHEDULER_OPTIONS = ("prediction_type", "variance_type", "rescale_betas_zero_snr")
MODEL_OPTIONS = ("preset", *SCHEDULER_OPTIONS)
# A run may be resumed with other values of the rest (its length too: the learning rate then follows the new length).
RUN_IDENTITY = (*MODEL_OPTIONS, "image_column", "label_column", "seed", "ema_sigma_rels", "torch_compile")


def _durations(recipe: dict, max_train_steps: int | None) -> dict:
    """A recipe's warm-up and average last as long a part of any run as of the recipe's own."""
    part = recipe["max_train_steps"] / (max_train_steps or recipe["max_train_steps"])
    return {
        "lr_warmup_steps": round(recipe["lr_warmup_steps"] / part),
        "ema_decay": max(1 - (1 - recipe["ema_decay"]) * part, 0.0),
    }


def parse_args(args: list[str]) -> TrainConfig:
    """The command line: options, or a YAML file of them and options that override it. Errors end the program with one line."""
    from transformers import HfArgumentParser

    args = list(args)
    about = "Train a DDPM. An option that is None by default takes the preset's value, or the data set's, if not told otherwise."
    parser = HfArgumentParser(TrainConfig, description=about, usage="train.py [CONFIG.yaml] [options]")
    if args and not args[0].startswith("-"):
        path = args.pop(0)
        try:
            options = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            parser.error(f"{path}: {error.strerror}; the first argument is a YAML file of options.")
        except yaml.YAMLError as error:
            parser.error(f"{path} is not YAML: {error}")
        if isinstance(options, dict) and options.get("mixed_precision") is False:
            options["mixed_precision"] = "no"  # YAML reads the word as a boolean
        if not isinstance(options, dict) or (unknown := set(options) - {f.name for f in fields(TrainConfig)}):
            parser.error(
                f"{path} must hold options of TrainConfig, not {sorted(unknown) if isinstance(options, dict) else options!r}."
            )
        parser.set_defaults(**options)
    try:
        return parser.parse_args_into_dataclasses(args)[0]
    except ValueError as error:
        return parser.error(str(error))  # leaves the program
