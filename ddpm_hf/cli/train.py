"""Train a DDPM: the options of `TrainConfig`, or a YAML file of them."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..training.config import DEFAULT_PRESET, TrainConfig, find_recipe
from ..training.presets import PRESETS, Preset, find_preset
from . import HelpFormatter, command, parse_dataclass

ABOUT = """Train a DDPM.

The first argument may be a YAML file of options. An option on the command line overrides the one in the file. Ctrl-C saves a checkpoint and
ends the run; --resume continues it.

The defaults below are those of the --preset that is shown. To see those of another one, name it: --preset cifar10 --help.
"""
NAMES_OF_DIFFUSERS = {  # options of its training scripts that have another meaning here
    "--resolution": "The preset has the size of the images: see --list_presets.",
    "--num_epochs": "The length of a run is --max_train_steps, in optimizer steps.",
    "--num_train_epochs": "The length of a run is --max_train_steps, in optimizer steps.",
    "--use_ema": "The average of the weights is always kept; --ema_decay is its decay.",
    "--resume_from_checkpoint": "--resume goes on from the newest complete checkpoint in --output_dir.",
}


def parse_args(args: list[str]) -> TrainConfig:
    """The command line: options, or a YAML file of them and options that override it. Errors end the program with one line."""
    usage = "%(prog)s [CONFIG.yaml] [options]"
    parser = HfArgumentParser(TrainConfig, description=ABOUT, usage=usage, formatter_class=HelpFormatter)
    parser.add_argument("--list_presets", action=ListPresets, nargs=0, help="Print a table of the presets and exit.")
    args = list(args)
    for arg in args:
        if told := NAMES_OF_DIFFUSERS.get(arg.partition("=")[0].replace("-", "_").replace("__", "--", 1)):
            parser.error(f"{arg}: {told}")
    if args and not args[0].startswith("-"):
        parser.set_defaults(**_read_options(parser, args.pop(0)))
    if {"-h", "--help"} & set(args):
        _print_help(parser, [arg for arg in args if arg not in ("-h", "--help")])
    try:
        return parse_dataclass(parser, args)[0]
    except ValueError as error:
        return parser.error(str(error))  # leaves the program


def _read_options(parser: argparse.ArgumentParser, path: str) -> dict:
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
    return options


def _print_help(parser: argparse.ArgumentParser, args: list[str]) -> NoReturn:
    """The help with the values that hold beside the other arguments."""
    values = vars(parser.parse_known_args(args)[0])
    if not values["init_from"]:
        values["preset"] = values["preset"] or DEFAULT_PRESET
    try:
        recipe = find_recipe(*(values[name] for name in ("preset", "init_from", "objective", "max_train_steps")))
    except ValueError as error:
        parser.error(str(error))
    if values["preset"]:
        recipe |= _choices_of(find_preset(values["preset"]))
    values |= {name: value for name, value in recipe.items() if values[name] is None}
    parser.set_defaults(**{name: f"{x:g}" if isinstance(x, float) else x for name, x in values.items()})
    parser.print_help()
    sys.exit(0)


def _choices_of(preset: Preset) -> dict:
    """The options that a preset decides by its network and its noise schedule."""
    scheduler = {"prediction_type": "epsilon", "variance_type": "fixed_small"} | preset.scheduler
    objective = "hybrid" if scheduler["variance_type"].startswith("learned") else "simple"
    choices = {name: scheduler[name] for name in ("prediction_type", "variance_type")} | {"objective": objective}
    if preset.class_conditional or preset.text_encoder:
        choices["guidance_scale"] = preset.sampling.get("guidance_scale", 1.3)
    return choices


class ListPresets(argparse.Action):
    """Prints a table of the presets and exits."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        """A line for each preset, with the values that hold where no option changes them."""
        rows = [("preset", "data set", "images", "condition", "predicts", "steps", "batch", "learning rate")]
        for name, preset in PRESETS.items():
            size, recipe = preset.unet["sample_size"], find_recipe(name, None, None, None)
            images = f"{size} x {size}, {'grey' if preset.num_channels == 1 else 'colour'}"
            condition = "text" if preset.text_encoder else "class" if preset.class_conditional else "none"
            predicts = preset.scheduler.get("prediction_type", "epsilon")
            numbers = (recipe[name] for name in ("max_train_steps", "train_batch_size", "learning_rate"))
            rows.append((name, recipe["dataset"], images, condition, predicts, *map(str, numbers)))
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        sys.exit(0)


@command
def main(args: list[str]) -> None:
    """`ddpm-train`: one run, to its end or to a Ctrl-C."""
    config = parse_args(args)
    from ..training import train

    train(config)


if __name__ == "__main__":
    sys.exit(main())
