"""What sampling costs and gives: figures against evaluations of the network for the published model, each lever of it, and its student.

    python benchmarks/frontier.py            leaves frontier.json here and docs/frontier.png; about 90 minutes of one core

A step under guidance evaluates the network twice. Figures are those of scripts/evaluate.py, with NUM_IMAGES samples of seed 0.
A measurement that was stopped goes on, and one with more ways measures the others only.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from ddpm_hf.evaluation import EvaluationConfig, evaluate
from ddpm_hf.training.presets import GARMENTS, spaced

ROOT = Path(__file__).parents[1]
TEACHER, STUDENT = "checkpoints/ddpm-fashion-mnist", "checkpoints/ddpm-fashion-mnist-fast"
FIGURES = ("fid", "precision", "recall", "accuracy")

ALWAYS = {"guidance_scale": 1.3, "guidance_interval": [0, 999]}  # the best scale where guidance acts at all timesteps
OLD = {"num_inference_steps": 25, "eta": 1.0, "solver_order": 2}
RULE = {name: GARMENTS[name] for name in ("eta", "solver_order")}
LINES = {  # a line of the picture -> its points: model and options of EvaluationConfig
    "ddpm-fashion-mnist: the saved way, 8 and 12 steps": {
        f"{n} steps": (TEACHER, {"timesteps": spaced(n), **RULE}) for n in (12, 8)
    },
    "ddpm-fashion-mnist: 25 even steps, eta 1, guidance 1.3 always": {"25 even steps": (TEACHER, OLD | ALWAYS)},
    "ddpm-fashion-mnist-fast: no guidance": {
        f"student, {n} step{'s' * (n > 1)}": (STUDENT, {"num_inference_steps": n}) for n in (4, 2, 1)
    },
    "ddpm-fashion-mnist: DPM-Solver++, guidance 1.3 always": {
        "DPM-Solver++, 12 steps": (TEACHER, {"sampler": "dpmsolver++", "num_inference_steps": 12, **ALWAYS})
    },
}
LEVERS = {  # the saved way but for one thing; the old way with its guidance
    "12 steps, guidance 1.3 always": (TEACHER, ALWAYS),
    "12 steps, no guidance": (TEACHER, {"guidance_scale": 1.0}),
    "12 even steps": (TEACHER, {"timesteps": spaced(12, 1), **RULE}),
    "12 steps, eta 0": (TEACHER, {"timesteps": spaced(12), **RULE, "eta": 0.0}),
    "25 even steps, saved guidance": (TEACHER, OLD),
}


def draw(results: dict, path: Path) -> None:
    """FID against evaluations, a line for each of LINES."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in LINES.items():
        shown = [results["ways"][way] for way in points]
        x, y, errors = zip(*((row["evaluations"], row["fid"], row["spread"]) for row in shown))
        axes.errorbar(x, y, errors, marker="o", capsize=3, label=label)
        for row in shown:
            axes.annotate(f"{row['fid']:.2f}", (row["evaluations"], row["fid"]), (4, 4), textcoords="offset points")
    floor, rows = results["floors"]["fid"], [results["ways"][way] for points in LINES.values() for way in points]
    axes.axhline(floor, color="grey", linestyle="--", label=f"floor, {floor:.2f}: real test images")
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network")
    axes.set_ylabel(f"FID, n = {results['num_images']:,}")
    evaluations = sorted({row["evaluations"] for row in rows})
    axes.set_xticks(evaluations, map(str, evaluations))
    ticks = [2.0**k for k in range(-5, 9)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlim=(0.8 * evaluations[0], 1.4 * evaluations[-1]))
    axes.set(ylim=(0.8 * floor, 1.6 * max(row["fid"] for row in rows)))
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_images", type=int, nargs="?", default=10_000)
    parser.add_argument("--cache_dir", default=EvaluationConfig.cache_dir)
    parsed = parser.parse_args()
    results: dict = {"num_images": parsed.num_images, "floors": {}, "ways": {}}
    ways = {way: asked for points in LINES.values() for way, asked in points.items()} | LEVERS
    for way, (model, options) in ways.items():
        asked = dict(num_images=parsed.num_images, cache_dir=parsed.cache_dir, mixed_precision="bf16", **options)
        metrics = ["fid", "precision_recall", "accuracy"]
        found, _ = evaluate(str(ROOT / model), EvaluationConfig(metrics=metrics, **asked))
        row = {"model": model, **options, "evaluations": found["details"]["evaluations"]}
        row |= {name: round(found["metrics"][name], 4) for name in FIGURES} | {"spread": found["spreads"]["fid"]}
        results["floors"], results["ways"][way] = {name: round(found["floors"][name], 4) for name in FIGURES}, row
        print(way, row, flush=True)
        Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, ROOT / "docs" / "frontier.png")


if __name__ == "__main__":
    main()
