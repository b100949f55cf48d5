"""Measure a saved model: bits/dim, FID, KID, precision and recall, accuracy, memorization; or, with --sweep, samplers.

    python scripts/evaluate.py MODEL --metrics bpd fid kid --num_images 5000 --output metrics.json

On many ranks start it by `accelerate launch --config_file ...`, as scripts/train.py. Writes metrics.json (the schema is in
ddpm_hf/evaluation/run.py) and, beside it, report.png or sweep.png; with --output MODEL/metrics.json the card of a saved model
tells the figures as well. Exit code 0: all was measured; 2: an argument is wrong, nothing was computed; 3: a metric could
not be had, the others were measured. `accelerate launch` turns 2 and 3 into 1.
"""

import json
import os
import shlex
import sys
from pathlib import Path

from transformers import HfArgumentParser

from ddpm_hf import hub
from ddpm_hf.evaluation import evaluate, report
from ddpm_hf.evaluation.config import EvaluationConfig


def main() -> int:
    parser = HfArgumentParser(EvaluationConfig, description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a saved model, or a Hub id (stock pipelines as well)")
    parser.add_argument("--output", default="metrics.json", help="where the figures go")
    try:
        config, arguments = parser.parse_args_into_dataclasses()
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise ValueError(f"output={arguments.output!r} is a folder: name the file that gets the figures.")
        model = Path(arguments.model)
        is_saved_model = (model / "pipeline_ddpm_image.py").exists()
        is_card = is_saved_model and output.resolve() == (model / "metrics.json").resolve()  # which tells the figures
        if is_card and config.sweep:
            raise ValueError(f"output={arguments.output!r} holds the figures of the card: give a sweep another file.")
        result, drawn = evaluate(arguments.model, config)
    except (ValueError, FileNotFoundError, FileExistsError, PermissionError, hub.HubError) as error:
        parser.exit(2, f"error: {error}\n")
    if not result:  # a rank that only helped
        return 0
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    is_named = any(argument.startswith("--mixed_precision") for argument in sys.argv)
    precision = [] if is_named else ["--mixed_precision", config.mixed_precision]  # of the launcher, or this machine
    result["command"] = shlex.join([*launcher, *sys.argv, *precision])
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


if __name__ == "__main__":
    sys.exit(main())
