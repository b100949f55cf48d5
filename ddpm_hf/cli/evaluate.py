"""Measure a saved model: bits/dim, FID, KID, precision and recall, accuracy, memorization. With --sweep it compares samplers.

It writes metrics.json and, beside it, report.png or sweep.png. With --output MODEL/metrics.json the card of a saved model shows the figures.
An evaluation that was stopped goes on when the same command is run again.

Exit codes: 0, all was measured; 2, an argument is wrong and nothing was computed; 3, a metric of the default ones is unavailable and the others
were measured. `accelerate launch` turns 2 and 3 into 1.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from transformers import HfArgumentParser

from ..evaluation.config import SAMPLING, EvaluationConfig
from . import HelpFormatter, command, parse_dataclass


def parse_args(args: list[str]) -> tuple[EvaluationConfig, argparse.Namespace]:
    """The options, and the paths `model` and `output` with whether the figures are those of the model's card, `is_card`."""
    parser = HfArgumentParser(
        EvaluationConfig, description=__doc__, usage="%(prog)s MODEL [options]", formatter_class=HelpFormatter
    )
    parser.add_argument(
        "model", metavar="MODEL", help="The model: the folder of a saved model or a Hub id, ours or stock."
    )
    parser.add_argument("--output", default="metrics.json", help="The file that the figures are written to.")
    config, paths = parse_dataclass(parser, args)
    paths.model = os.path.expanduser(paths.model)
    output, model = Path(paths.output).expanduser(), Path(paths.model)
    if output.is_dir():
        raise ValueError(f"output={paths.output!r} is a folder: name the file that gets the figures.")
    is_saved_model = (model / "pipeline_ddpm_image.py").exists()
    paths.is_card = is_saved_model and output.resolve() == (model / "metrics.json").resolve()
    if paths.is_card and config.sweep:
        raise ValueError(f"output={paths.output!r} holds the figures of the card: give a sweep another file.")
    paths.output = output
    return config, paths


@command
def main(args: list[str]) -> int:
    """`ddpm-evaluate`: writes the figures and their picture, prints the table. Returns the exit code."""
    config, paths = parse_args(args)
    from .. import hub
    from ..evaluation import evaluate, report

    paths.output.parent.mkdir(parents=True, exist_ok=True)
    result, drawn = evaluate(paths.model, config)
    if not result:  # a rank other than the first
        return 0
    result["command"] = repeating_command(args, result["settings"])
    if paths.is_card:
        hub.save(hub.load(paths.model), paths.model, metrics=result)
    else:
        paths.output.write_text(json.dumps(result, indent=2) + "\n")
    if config.sweep:
        report.save_sweep(paths.output.with_name("sweep.png"), result)
    else:
        report.save_report(paths.output.with_name("report.png"), result, drawn)
    print(report.format_table(result))
    return 3 if result["unavailable"] else 0


def repeating_command(args: list[str], settings: dict) -> str:
    """The command as it was typed, and the values of options that it left to the launcher, the machine, the data or the model."""
    is_launched, is_installed = "ACCELERATE_MIXED_PRECISION" in os.environ, Path(sys.argv[0]).stem == "ddpm-evaluate"
    program = ["ddpm-evaluate"] if is_installed else ["python", "scripts/evaluate.py"]
    if is_launched:
        program = ["accelerate", "launch", *(["-m", "ddpm_hf.cli.evaluate"] if is_installed else program[1:])]
    typed = {word.partition("=")[0] for word in args}
    for name in ("num_images", "mixed_precision", *SAMPLING):
        value = settings[name]
        if value is not None and f"--{name}" not in typed:
            args = [*args, f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*program, *args])


if __name__ == "__main__":
    sys.exit(main())
