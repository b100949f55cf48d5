"""What an evaluation found, for people: a table on the screen, report.png, sweep.png.

Takes what `evaluation` returns; imports no sibling.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

matplotlib.use("Agg")


def format_table(result: dict) -> str:
    """metrics.json as lines: each figure beside its floor and its spread, what could not be had and why, the sweep."""
    rows: list[tuple[str, ...]] = [("metric", "value", "floor", "spread")]
    for name, value in result["metrics"].items():
        beside = [result[kind].get(name) for kind in ("floors", "spreads")]
        rows.append((name, f"{value:.4g}", *("" if figure is None else f"{figure:.4g}" for figure in beside)))
    if "sweep" in result:
        rows = [("sampler", "steps", "s/image", "fid", "spread")]
        for p in result["sweep"]:
            figures = (p["seconds_per_image"], p["fid"], p["spread"])
            row = ("" if figure is None else f"{figure:.4g}" for figure in figures)
            rows.append((p["sampler"], str(p["num_inference_steps"]), *row))
        rows.append(("floor", "", "", f"{result['floors']['fid']:.4g}", ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines += [f"{name}: not measured: {reason}" for name, reason in result["unavailable"].items()]
    lines.append("seconds: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result["seconds"].items()))
    return "\n".join(lines)


def tile(images: torch.Tensor, num_columns: int) -> np.ndarray:
    """uint8 (N, C, H, W) -> one picture (rows H, columns W, C), filled up with white."""
    num_rows = -(-len(images) // num_columns)
    blank = images.new_full((num_rows * num_columns - len(images), *images.shape[1:]), 255)
    rows = torch.cat([images, blank]).unflatten(0, (num_rows, num_columns))
    return rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()


def save_report(path: str | Path, result: dict, drawn: dict[str, torch.Tensor]) -> None:
    """report.png: samples, those nearest to training images, bits/dim at each timestep; of these what was measured."""
    panels = []
    if "samples" in drawn:
        panels.append(lambda axes: _show(axes, "samples", tile(drawn["samples"], 8)))
    if "nearest_samples" in drawn:
        pairs = torch.stack([drawn["nearest_samples"], drawn["nearest_training_images"]], dim=1).flatten(0, 1)
        panels.append(
            lambda axes: _show(axes, "nearest to training: sample | training image, twice a row", tile(pairs, 4))
        )
    if "bits_per_dim" in result["details"]:
        panels.append(lambda axes: _plot_bound(axes, result["details"]["bits_per_dim"]))
    if not panels:
        return
    figure = Figure(figsize=(6 * len(panels), 6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        panel(axes)
    figure.savefig(path)


def _show(axes, title: str, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title)
    axes.axis("off")


def _plot_bound(axes, bound: dict) -> None:
    axes.loglog(np.array(bound["timesteps"]) + 1, bound["per_timestep"], marker=".")
    axes.set_title(f"{bound['bits_per_dim']:.3f} bits/dim = prior {bound['prior']:.1e}\n+ the sum of these over all t")
    axes.set_xlabel("t (1 is the decoder)")
    axes.set_ylabel("bits/dim of one step")


def save_sweep(path: str | Path, result: dict) -> None:
    """sweep.png: FID against seconds per image, a line for each sampler, a number of steps at each point, the floor."""
    points = result["sweep"]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for sampler in dict.fromkeys(point["sampler"] for point in points):
        mine = sorted((p for p in points if p["sampler"] == sampler), key=lambda p: p["num_inference_steps"])
        x, y = ([p[name] for p in mine] for name in ("seconds_per_image", "fid"))
        axes.errorbar(x, y, [p["spread"] or 0 for p in mine], marker="o", capsize=3, label=sampler)
        for p in mine:
            axes.annotate(str(p["num_inference_steps"]), (p["seconds_per_image"], p["fid"]))
    axes.axhline(result["floors"]["fid"], color="grey", linestyle="--", label="floor: real test images")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds per image")
    axes.set_ylabel("FID")
    axes.legend()
    figure.savefig(path)
