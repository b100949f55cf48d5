"""The picture of benchmarks/run.py: where both sides do the same work, how many times better ours is than diffusers.

python benchmarks/plot.py benchmarks/results.json    leaves results.png beside it
"""

import json
import sys
from pathlib import Path

UNITS = {"s": ".1f", "us": ".0f", "MiB": ",.0f", "images/s": ".0f"}  # how a figure is written
BARS = {  # measurement and peer -> label: the same network, the same number of steps
    ("forward, float32", "diffusers"): "U-Net forward, float32",
    ("forward + backward, float32", "diffusers"): "U-Net forward + backward, float32",
    ("forward, bfloat16", "diffusers"): "U-Net forward, bfloat16",
    ("forward + backward, bfloat16", "diffusers"): "U-Net forward + backward, bfloat16",
    ("ancestral step", "diffusers"): "scheduler, one ancestral step",
    ("DDIM step", "diffusers"): "scheduler, one DDIM step",
    ("16 images, 1000 steps", "diffusers, 1000 steps"): "16 images, 1000 steps each",
    ("first image, 50 steps", "diffusers"): "start to first image, 50 steps each",
    ("training program", "train_unconditional"): "training program, speed",
    ("training program, peak memory", "train_unconditional"): "training program, peak memory",
}


def plot(results: dict, path: Path) -> None:
    """Draw a bar for each of BARS that was measured, from the least to the most of the rounds, with the figures of both sides on it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = {row["name"]: row for rows in results["sections"].values() for row in rows}
    bars = [
        (rows[name], peer, label)
        for (name, peer), label in BARS.items()
        if peer in rows.get(name, {}).get("sides", ())
    ]
    if not bars:
        return
    figure = Figure(figsize=(9, 1.3 + 0.42 * len(bars)), layout="constrained")
    axes, machine = figure.subplots(), results["machine"]
    for i, (row, peer, _) in enumerate(bars):
        ratio, unit = row["times_better"][peer], row["unit"]
        least, middle, most = (ratio[name] for name in ("least", "median", "most"))
        colour = "#4c78a8" if middle >= 1 else "#e45756"
        errors = [[middle - least], [most - middle]]
        axes.barh(i, middle - 1, left=1, xerr=errors, height=0.62, color=colour, ecolor="#333333")
        ours, theirs = (f"{row['sides'][side]['median']:{UNITS[unit]}}" for side in ("ours", peer))
        text = f"{middle:.2f}x   {ours} against {theirs} {unit.replace('us', 'µs')}"
        axes.annotate(text, (max(most, 1), i), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [label for *_, label in bars])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0.75, 1.4 * max(row["times_better"][peer]["most"] for row, peer, _ in bars))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"How many times better ours is than diffusers {machine['diffusers']}", loc="left")
    axes.set_xlabel(
        f"{machine['cores']} cores of {machine['cpu']} ({machine['cpu_capability']}), torch {machine['torch']}"
    )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        plot(json.loads(Path(argument).read_text()), Path(argument).with_suffix(".png"))
