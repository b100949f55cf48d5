"""TrainConfig is one run: the options that a run may change. The command line and the YAML file are both made from it.

An option left at None is the preset's (`presets.PRESETS`), or that of fine-tuning where the run starts from trained weights.
"""

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml

from .presets import FINE_TUNING, PRESETS, STUDENTS, Preset, find_preset

MAX_SIGMA_REL = 12**-0.5  # the width of the plain mean of the weights, 0.289
Precision = Literal["no", "fp16", "bf16"]
DEFAULT_PRESET = "fashion-mnist-quick"
_DEFAULTS = dict(  # of the options that a preset may set
    lr_scheduler="cosine",
    random_flip=False,
    snr_gamma=0.0,
    adam_beta2=0.99,
    weight_decay=0.01,
)


def _option(default: Any, help: str, **metadata: Any) -> Any:
    """A field with its help; metadata: the option's `aliases` on the command line, for example."""
    if isinstance(default, list):
        return field(default_factory=list, metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class TrainConfig:
    """One training run. Everything is counted in optimizer steps, on any number of ranks."""

    preset: str | None = _option(
        None,
        f"The network and the recipe: {', '.join(PRESETS)}, or a folder with unet/config.json and scheduler/scheduler_config.json."
        " With --init_from the default is the network of that model.",
    )
    init_from: str | None = _option(
        None,
        "Start from the trained weights of this model: a folder or Hub id, ours or stock. The data and the classes may be others.",
        aliases=["--pretrained_model_name_or_path"],
    )
    dataset: str | None = _option(
        None,
        "The images: a Hub id, or a folder or zip of images, tables or IDX files. By default the preset's, or what --init_from was trained on.",
        aliases=["--dataset_name", "--train_data_dir"],
    )
    image_column: str | None = _option(None, "The column of the images. By default it is found by its type.")
    label_column: str | None = _option(None, "The column of the labels. By default it is found by its type.")
    caption_column: str | None = _option(
        None, "The column of the texts, for a model of text. By default it is found by its type and usual names."
    )
    skip_undecodable: bool = _option(False, "Leave out images that cannot be decoded, and count them.")
    image_condition: str | None = _option(
        None,
        "Condition the model on an image: lower_resolution, grey or masked derive it from each image; any other word is the column of a second image."
        " By default that of --init_from, if it has one.",
    )
    streaming: bool = _option(False, "Stream the data set from the Hub instead of downloading it.")
    output_dir: str = _option("runs/quick", "The folder of the run. It holds the saved model when the run ends.")

    objective: Literal["simple", "hybrid", "consistency", "moment_matching"] | None = _option(
        None,
        "The loss. hybrid (arXiv:2102.09672) is the default where the variance is learned, simple elsewhere. consistency (arXiv:2406.14548)"
        " makes a student that samples in few steps from --init_from; moment_matching (arXiv:2406.04103) makes such a student better.",
    )
    teacher: str | None = _option(
        None, "The trained model that a student of few steps learns from. By default it is --init_from."
    )
    distill_guidance: float | None = _option(
        None,
        "The guidance scale of the teacher, e.g. 1.3. The student learns the guided samples and needs no guidance itself.",
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = _option(
        None, "What the network predicts: the noise, x_0 or v."
    )
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] | None = _option(
        None, "The variance of the reverse steps. learned_range doubles the channels of the output."
    )
    rescale_betas_zero_snr: bool = _option(
        False, "Rescale the noise schedule so that x_T is noise alone (arXiv:2305.08891)."
    )

    train_batch_size: int | None = _option(None, "The images of one forward pass on each rank.")
    gradient_accumulation_steps: int | None = _option(
        None, "The forward passes of one optimizer step. By default the launcher's number, or 1."
    )
    max_train_steps: int | None = _option(None, "The length of the run in optimizer steps.")
    learning_rate: float | None = _option(None, "The peak of the learning rate.")
    lr_scheduler: Literal["cosine", "linear", "constant_with_warmup", "polynomial", "cosine_with_restarts"] | None = (
        _option(None, "How the learning rate goes on after the warm-up.")
    )
    lr_warmup_steps: int | None = _option(
        None, "The steps of the linear warm-up. By default the same part of the run as in the preset."
    )
    adam_beta2: float | None = _option(None, "The decay of AdamW's average of squared gradients, beta_2.")
    weight_decay: float | None = _option(None, "The weight decay of AdamW.")
    max_grad_norm: float = _option(1.0, "Gradients of a larger norm are scaled down to this one.")
    ema_decay: float | None = _option(
        None,
        "The decay of the moving average of the weights. The average is what is saved. By default it lasts the same part of the run as in the preset.",
    )
    ema_sigma_rels: list[float] = _option(
        [],
        "Keep snapshots of power-function averages of these widths too, e.g. 0.05 0.1. scripts/average.py makes models of them (arXiv:2312.02696).",
    )
    snr_gamma: float | None = _option(
        None, "The gamma of the min-SNR weights of the loss (arXiv:2303.09556), e.g. 5. 0 is the plain loss."
    )
    label_dropout: float = _option(
        0.1, "The share of samples whose condition is replaced by its null, which guidance needs."
    )
    random_flip: bool | None = _option(None, "Flip half of the images horizontally: true or false.")
    mixed_precision: Precision | None = _option(
        None, "The dtype of autocast. By default the launcher's, or bf16, or no where the hardware lacks bfloat16."
    )
    gradient_checkpointing: bool = _option(
        False, "Compute activations anew in the backward pass. It saves memory and takes time."
    )
    torch_compile: bool = _option(
        False, "Compile the network. This needs a C++ compiler and takes minutes, so it pays in longer runs."
    )
    dataloader_num_workers: int = _option(0, "The processes that decode images. Images that fit in memory need none.")
    seed: int = _option(0, "The seed of all random draws.")

    checkpointing_steps: int = _option(2000, "The steps between checkpoints, which are OUTPUT_DIR/checkpoints/step-N.")
    checkpoints_total_limit: int = _option(
        2, "How many checkpoints are kept. Older ones are removed once a newer one is complete."
    )
    resume: bool = _option(False, "Go on from the newest complete checkpoint in OUTPUT_DIR, if there is one.")
    validation_steps: int = _option(
        500, "The steps between validations: the held-out loss and a grid of samples. 0 validates at the end only."
    )
    num_validation_images: int = _option(512, "The images of the held-out loss. 0 measures none.")
    guidance_scale: float | None = _option(
        None, "The guidance scale of the sample grids, saved with the model as its default. 1 is no guidance."
    )
    logging_steps: int = _option(10, "The steps between reports of loss and speed.")
    report_to: str = _option("tensorboard", "Where the curves go: tensorboard, wandb, trackio or none.")

    push_to_hub: bool = _option(
        False, "Push the saved model when the run ends. The repo is created before the first step."
    )
    hub_model_id: str | None = _option(None, "The repo to push to. By default it has the name of OUTPUT_DIR.")
    hub_private_repo: bool = _option(False, "Create that repo private.")

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("preset", "init_from", "teacher", "dataset", "output_dir"):
            if (getattr(self, name) or "").startswith("~"):
                setattr(self, name, str(Path(getattr(self, name)).expanduser()))
        self.asked = {option.name: getattr(self, option.name) for option in fields(self)}
        self._fill_in()
        self._check_values()
        if self.mixed_precision is None:
            from ..hardware import default_precision  # asks torch, which no mistake has to wait for

            self.mixed_precision = cast(Precision, default_precision())

    def _fill_in(self) -> None:
        """The preset's values, for options that are left at None."""
        if self.preset is None and self.init_from is None:
            self.preset = DEFAULT_PRESET
        for name, value in find_recipe(self.preset, self.init_from, self.objective, self.max_train_steps).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.preset:
            variance_type = self.choose(find_preset(self.preset)).scheduler["variance_type"]
            self.objective = self.objective or ("hybrid" if str(variance_type).startswith("learned") else "simple")
        if self.gradient_accumulation_steps is None:
            self.gradient_accumulation_steps = int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1))

    def take_data(self, recorded: dict) -> None:
        """Fill in a data set and its options, for run.yaml too: a resumed run finds its data there."""
        for name, value in recorded.items():
            if not getattr(self, name):
                self.asked[name] = value
                setattr(self, name, value)

    def _check_types(self) -> None:
        """YAML and Python may give anything for a number: 16.5 images, the word yes."""
        for name, kind in TYPES.items():
            if not _fits(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r} must be {_words(kind)}.")

    def _check_values(self) -> None:
        for names, fits, words in RANGES:
            for name in names.split():
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name}={getattr(self, name)} must be {words}.")
        if self.lr_warmup_steps > self.max_train_steps:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} must be at most max_train_steps={self.max_train_steps}."
            )
        if self.objective in STUDENTS and not self.init_from:
            raise ValueError(f"objective={self.objective!r} starts from a trained model: name it with init_from.")
        if self.objective in STUDENTS and self.snr_gamma:
            raise ValueError(
                f"snr_gamma={self.snr_gamma} weighs the losses simple and hybrid, not objective={self.objective!r}."
            )
        for name in ("teacher", "distill_guidance"):
            if (value := getattr(self, name)) is not None and self.objective not in STUDENTS:
                raise ValueError(f"{name}={value!r} belongs to objective='consistency' and 'moment_matching'.")

    def choose(self, preset: Preset) -> Preset:
        """The preset with what this run has chosen instead of its prediction, variance and last step."""
        unet = {"in_channels": 3, "out_channels": 3} | preset.unet  # a preset may leave the constructors' defaults out
        image_condition, num_channels = self.image_condition or preset.image_condition, preset.num_channels
        unet["in_channels"] = num_channels if image_condition is None else 2 * num_channels + 1
        scheduler = {"prediction_type": "epsilon", "variance_type": "fixed_small"} | preset.scheduler
        scheduler |= {name: getattr(self, name) for name in SCHEDULER_OPTIONS if getattr(self, name)}
        if self.variance_type:
            unet["out_channels"] = num_channels * (2 if self.variance_type == "learned_range" else 1)
        if scheduler.get("rescale_betas_zero_snr") and scheduler["prediction_type"] == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr=True: at the last step epsilon tells nothing of the image;"
                " choose prediction_type sample or v_prediction."
            )
        return replace(preset, unet=unet, scheduler=scheduler, image_condition=image_condition)

    def _model(self) -> str:
        """What two runs share if their models are the same."""
        if self.preset is None:
            return json.dumps([self.init_from, *(getattr(self, name) for name in SCHEDULER_OPTIONS)])
        preset = self.choose(find_preset(self.preset))
        return json.dumps([preset.unet, preset.scheduler, preset.class_conditional, self.init_from], sort_keys=True)

    def recipe(self) -> dict:
        """The options that made the model, for its card: not whether the run was resumed, nor where it was pushed."""
        left_out = ("resume", "push_to_hub", "hub_model_id", "hub_private_repo")
        options = {name: value for name, value in asdict(self).items() if name not in left_out}
        is_named = self.preset is None or self.preset in PRESETS
        return options | {"preset": self.preset if is_named else "."}  # the saved model has the configs

    def save(self, path: str | Path) -> None:
        """Write what was asked for, which `train.py FILE` reads; what the preset filled in stands beside it, as comments."""
        asked = {name: value for name, value in self.asked.items() if value is not None}
        filled = {name: value for name, value in asdict(self).items() if name not in asked and value is not None}
        comments = "".join(f"# {line}\n" for line in yaml.safe_dump(filled, sort_keys=False).splitlines())
        text = (
            yaml.safe_dump(asked, sort_keys=False)
            + "# The rest of this run, from its preset and its machine:\n"
            + comments
        )
        partial = Path(path).with_name(f".{Path(path).name}")
        partial.write_text(text)
        partial.replace(path)

    def differences(self, path: str | Path) -> list[str]:
        """Names of the options that make this run another one than the run whose config is at `path`; a fingerprint guards its images."""
        theirs = yaml.safe_load(Path(path).read_text()) or {}
        known = {option.name for option in fields(self)}
        try:
            other = TrainConfig(**{name: value for name, value in theirs.items() if name in known})
        except ValueError as error:  # such as a preset that is no more
            raise ValueError(f"resume: {path} is no config of this version: {error}") from error
        names = [name for name in RUN_IDENTITY if (getattr(other, name) or None) != (getattr(self, name) or None)]
        with suppress(ValueError):
            if other._model() == self._model():  # the same in other words
                names = [name for name in names if name not in MODEL_OPTIONS]
        scaled = [config.mixed_precision == "fp16" for config in (other, self)]
        return names + ["mixed_precision"] * (scaled[0] != scaled[1])  # fp16's loss scale is part of a checkpoint


TYPES = get_type_hints(TrainConfig)  # HfArgumentParser changes those of the fields
RANGES = [  # options, what holds for each, in words
    ("train_batch_size gradient_accumulation_steps max_train_steps", lambda x: x >= 1, "at least 1"),
    ("logging_steps checkpointing_steps checkpoints_total_limit", lambda x: x >= 1, "at least 1"),
    ("lr_warmup_steps weight_decay snr_gamma dataloader_num_workers", lambda x: x >= 0, "at least 0"),
    ("validation_steps num_validation_images", lambda x: x >= 0, "at least 0"),
    ("learning_rate max_grad_norm", lambda x: x > 0, "above 0"),
    ("adam_beta2 ema_decay label_dropout", lambda x: 0 <= x < 1, "in [0, 1)"),
    ("distill_guidance guidance_scale", lambda x: x is None or x >= 0, "at least 0"),
    ("seed", lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    (
        "ema_sigma_rels",
        lambda x: all(0 < width < MAX_SIGMA_REL for width in x),
        f"a list of numbers above 0, below {MAX_SIGMA_REL:.3f}",
    ),
]
SCHEDULER_OPTIONS = ("prediction_type", "variance_type", "rescale_betas_zero_snr")
MODEL_OPTIONS = ("preset", *SCHEDULER_OPTIONS)
# A run may be resumed with other values of the rest (its length too: the learning rate then follows the new length).
RUN_IDENTITY = (
    *MODEL_OPTIONS,
    "init_from",
    "objective",
    "teacher",
    "distill_guidance",
    "image_condition",
    "seed",
    "ema_sigma_rels",
    "torch_compile",
)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field."""
    if get_origin(kind) in (UnionType, Union):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, *get_args(kind)) for item in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _words(kind: Any) -> str:
    """The type of a field, for people."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is list:
        return "a list of numbers"
    return words.get(kind) or " or ".join(_words(part) for part in get_args(kind) if part is not NoneType)


def find_recipe(preset: str | None, init_from: str | None, objective: str | None, max_train_steps: int | None) -> dict:
    """The values of options that such a run leaves out. Warm-up and average last as long a part of it as of the recipe's own length."""
    recipe = _DEFAULTS | (find_preset(preset).training if preset else {})
    recipe |= FINE_TUNING if init_from else {}
    recipe |= STUDENTS.get(objective, {})
    part = recipe["max_train_steps"] / (max_train_steps or recipe["max_train_steps"])
    return recipe | {
        "lr_warmup_steps": round(recipe["lr_warmup_steps"] / part),
        "ema_decay": max(1 - (1 - recipe["ema_decay"]) * part, 0.0),
    }
