"""Make a model of another average of a run's weights (EDM2, arXiv:2312.02696).

    python scripts/average.py RUN --sigma_rel 0.08 --output_dir MODEL [--step N]

The run must have been trained with --ema_sigma_rels, e.g. 0.05 0.1. The width of an average is a part of the run up to the step. MODEL is a
saved model like any other.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from ddpm_hf.cli import HelpFormatter, command

# What is told of the run; all else in its train_results.json is told of its own weights.
RUN = ("train_runtime", "train_steps", "train_samples", "num_processes", "hardware")


@command
def main(argv: list[str]) -> None:
    """Saves the model, with the run's config and results, and prints its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="The folder of a run.")
    parser.add_argument("--sigma_rel", type=float, required=True, help="The width of the average, e.g. 0.08.")
    parser.add_argument(
        "--step", type=int, help="The step at which the average ends. By default that of the last snapshot."
    )
    parser.add_argument("--output_dir", required=True, help="The folder that the new model is saved to.")
    args = parser.parse_args(argv)
    if Path(args.output_dir).resolve() == args.run.resolve():
        parser.error(f"--output_dir {args.output_dir} is the run's own model, which stays: name another folder")
    from ddpm_hf import hub
    from ddpm_hf.training import checkpoints, ema

    weights = ema.reconstruct(args.run, args.sigma_rel, args.step)
    saved = args.run if (args.run / "model_index.json").exists() else checkpoints.newest(args.run)
    if saved is None:
        raise ValueError(f"{args.run} has neither a saved model nor a checkpoint yet.")
    pipeline = hub.load(saved)
    pipeline.unet.load_state_dict(weights)
    config = yaml.safe_load((saved / "training_config.yaml").read_text())
    results = json.loads((saved / "train_results.json").read_text())
    results = {name: results[name] for name in RUN if name in results}
    results |= {"sigma_rel": args.sigma_rel, "step": args.step}
    print(f"Saved {hub.save(pipeline, args.output_dir, train_config=config, train_results=results)}.")


if __name__ == "__main__":
    sys.exit(main())
