"""Ours beside its peers, and beside what the machine can do, in one run: a JSON file, a plot and a table.

    python benchmarks/run.py --diffusers CHECKOUT                    everything
    python benchmarks/run.py --only unet scheduler --rounds 3        some sections

The sections, in `parts` (in this process) and `programs` (each program in a process of its own):

    roof         GFLOP/s of oneDNN's convolutions and of a matrix product, float32 and bfloat16
    unet         the U-Net with stock's weights, forward and backward; training steps of the presets, with the share of the roof
    evaluation   the network inside the pipelines' default modes
    sampling     16 images by 1000 ancestral steps, by 50, by our default, and by the few of a student
    scheduler    `step` alone at batch 1
    training     training programs with data loading; diffusers' train_unconditional.py is run from CHECKOUT, a clone of diffusers
    startup      from the interpreter's start to a saved image; peak memory

In each round every side has its turn, back and forth; a figure is the median over the rounds, a ratio the median of the rounds' ratios.
"Times better" above 1 is in favour of ours: its rate by the peer's, or the peer's time or memory by its. The table has all of it; the plot
(`plot.py`) has what both sides do alike.
A peer that is not there is named under "skipped".

The peers of the training section need torchvision, and torchvision the torch that it was built for. So they want an environment of their
own, in which all sides then run:

    python3 -m venv .venv-bench
    grep -v ^torch== constraints.txt > constraints-bench.txt
    .venv-bench/bin/pip install -c constraints-bench.txt -e ".[bench]"
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import parts
import programs
from plot import plot
from rounds import machine

SECTIONS = {
    **{f.__name__: f for f in (parts.roof, parts.unet, parts.evaluation, parts.sampling, parts.scheduler)},
    **{f.__name__: f for f in (programs.training, programs.startup)},
}


def parse_args(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--diffusers", type=Path, metavar="CHECKOUT", help="A clone of diffusers, for its training script."
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"), help="The JSON file.")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME", help="Sections to run."
    )
    parser.add_argument("--rounds", type=int, default=5, help="Turns of each side.")
    parser.add_argument("--seconds", type=float, default=1.0, help="The length of a turn, where one call is shorter.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images of one call.")
    parser.add_argument("--steps", type=int, default=1000, help="Steps of the long sampling; fewer to try it out.")
    parser.add_argument("--train_steps", type=int, default=60, help="Steps of the training programs; at least 30.")
    options = parser.parse_args(args)
    if options.rounds < 1 or options.steps < 2 or options.train_steps < 30:
        parser.error("--rounds must be at least 1, --steps 2, --train_steps 30.")
    if options.diffusers and not (options.diffusers / programs.TRAIN_UNCONDITIONAL).exists():
        parser.error(
            f"--diffusers {options.diffusers}: {programs.TRAIN_UNCONDITIONAL} is not there; name a clone of diffusers."
        )
    return options


def main(args: list[str]) -> int:
    """Run the sections; what they gave is written after each. Returns the exit status: 1 if a program failed."""
    options = parse_args(args)
    results: dict = {"machine": machine(), "options": {}, "sections": {}, "skipped": {}, "seconds": {}}
    results["options"] = {name: value for name, value in vars(options).items() if name not in ("output", "diffusers")}
    options.skip = results["skipped"].__setitem__
    for name in SECTIONS:
        if name not in options.only:
            options.skip(name, "left out by --only")
    failed = False
    for name in options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            results["sections"][name] = SECTIONS[name](options)
        except subprocess.CalledProcessError as error:
            failed, said = True, error.output.strip()
            print(said, file=sys.stderr)
            options.skip(name, f"a program failed: {said.splitlines()[-1] if said else error}")
        results["seconds"][name] = time.perf_counter() - start
        results["machine"]["load_average_after"] = os.getloadavg()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    if find_spec("matplotlib"):
        plot(results, options.output.with_suffix(".png"))
    else:
        options.skip("plot", "matplotlib is not installed")
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return int(failed)


def table(results: dict) -> str:
    """A line for each peer of each measurement."""
    lines = [" ".join(f"{key}={value}" for key, value in results["machine"].items()), ""]
    form = "{:11} {:42} {:>10} {:9} {:>10}  {:28} {:>7} {:>15} {:>7}"
    lines.append(form.format("section", "measurement", "ours", "", "", "peer", "times", "least to most", "target"))
    for section, rows in results["sections"].items():
        for row in rows:
            medians = {side: f"{values['median']:.4g}" for side, values in row["sides"].items()}
            for peer in [side for side in medians if side != "ours"] or [""]:
                ratio = row["times_better"].get(peer)
                cells = [section, row["name"], medians.get("ours", ""), row["unit"], medians.get(peer, ""), peer]
                cells += (
                    [f"{ratio['median']:.2f}", f"{ratio['least']:.2f} to {ratio['most']:.2f}"] if ratio else ["", ""]
                )
                lines.append(form.format(*cells, (ratio or {}).get("target") or "").rstrip())
            shares = {side: v["share_of_roof"] for side, v in row["sides"].items() if "share_of_roof" in v}
            if shares:
                note = ", ".join(f"{side} {share:.0%}" for side, share in shares.items())
                lines.append(f"{'':11}   of the convolution roof: {note}")
            if "max_abs_difference" in row:
                lines.append(f"{'':11}   outputs differ by at most {row['max_abs_difference']:.1e}")
    lines += [f"skipped     {name}: {why}" for name, why in results["skipped"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
