"""Measure a saved model: bits/dim, FID, KID, precision and recall, accuracy, memorization; or, with --sweep, samplers.

    python scripts/evaluate.py MODEL --metrics fid accuracy --output metrics.json

On many ranks: `accelerate launch --config_file ... scripts/evaluate.py ...`, as scripts/train.py. Run again, an evaluation that was cut off goes on.
Writes metrics.json (its content is described in ddpm_hf/evaluation/run.py) and, beside it, report.png or sweep.png; with --output
MODEL/metrics.json the card of a saved model shows the figures as well. Exit code 0: all was measured; 2: an argument is wrong, nothing was
computed; 3: a default metric is unavailable, the others were measured. `accelerate launch` turns 2 and 3 into 1.
"""

import json
import os
import shlex
import sys
from pathlib import Path

from transformers import HfArgumentParser

try:
    from ddpm_hf import hub
    from ddpm_hf.evaluation import EvaluationConfig, evaluate, report
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}")


def main() -> int:
    parser = HfArgumentParser(EvaluationConfig, description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a saved model, or a Hub id (stock pipelines as well)")
    parser.add_argument("--output", default="metrics.json", help="where the figures go")
    try:
        config, arguments = parser.parse_args_into_dataclasses()
        arguments.model = os.path.expanduser(arguments.model)
        output, model = Path(arguments.output).expanduser(), Path(arguments.model)
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise ValueError(f"output={arguments.output!r} is a folder: name the file that gets the figures.")
        is_saved_model = (model / "pipeline_ddpm_image.py").exists()
        is_card = is_saved_model and output.resolve() == (model / "metrics.json").resolve()
        if is_card and config.sweep:
            raise ValueError(f"output={arguments.output!r} holds the figures of the card: give a sweep another file.")
        result, drawn = evaluate(arguments.model, config)
    except (ValueError, OSError, hub.HubError) as error:
        parser.exit(2, f"error: {error}\n")
    if not result:  # a rank other than the first
        return 0
    result["command"] = command(result["settings"])
    if is_card:
        hub.save(hub.load(arguments.model), model, metrics=result)
    else:
        output.write_text(json.dumps(result, indent=2) + "\n")
    if config.sweep:
        report.save_sweep(output.with_name("sweep.png"), result)
    else:
        report.save_report(output.with_name("report.png"), result, drawn)
    print(report.format_table(result))
    return 3 if result["unavailable"] else 0


def command(settings: dict) -> str:
    """The command as it was typed, and the values of options that it left to the launcher, the machine, the data or the model."""
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    left = ("num_images", "mixed_precision", "num_inference_steps", "eta", "solver_order", "guidance_scale")
    typed = {word.partition("=")[0] for word in sys.argv}
    resolved = [(f"--{name}", str(settings[name])) for name in left if settings[name] is not None]
    return shlex.join([*launcher, *sys.argv, *(word for pair in resolved if pair[0] not in typed for word in pair)])


if __name__ == "__main__":
    sys.exit(main())
