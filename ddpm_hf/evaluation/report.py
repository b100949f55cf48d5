"""What an evaluation found, for people: a table on the screen, report.png, sweep.png. Takes what `evaluate` returns."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..images import labelled_grid

matplotlib.use("Agg")


def format_table(result: dict) -> str:
    """metrics.json as lines: each figure beside its floor and its spread, what is unavailable and why, the sweep."""
    rows: list[tuple[str, ...]] = [("metric", "value", "floor", "spread")]
    for name, value in result["metrics"].items():
        beside = [result[kind].get(name) for kind in ("floors", "spreads")]
        rows.append((name, f"{value:.4g}", *("" if figure is None else f"{figure:.4g}" for figure in beside)))
    if "sweep" in result:
        rows = [("sampler", "steps", "s/image", "fid", "spread")]
        for p in result["sweep"]:
            row = (f"{p[name]:.4g}" for name in ("seconds_per_image", "fid", "spread"))
            rows.append((p["sampler"], str(p["num_inference_steps"]), *row))
        rows.append(("floor", "", "", f"{result['floors']['fid']:.4g}", ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines += [f"{name}: not measured: {reason}" for name, reason in result["unavailable"].items()]
    lines.append("seconds: " + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result["seconds"].items()))
    return "\n".join(lines)


def save_report(path: str | Path, result: dict, drawn: dict[str, dict[str, torch.Tensor]]) -> None:
    """report.png: samples, those nearest to training images, accuracy of each class, bits/dim at each timestep; of these what was measured."""
    details, panels = result["details"], []
    if "samples" in drawn:
        samples = {name: [_to_pil(image) for image in images] for name, images in drawn["samples"].items()}
        panels.append(lambda axes: _show(axes, "samples", samples))
    if "neighbors" in drawn:
        pairs = {name: [_join(pair) for pair in pairs] for name, pairs in drawn["neighbors"].items()}
        panels.append(lambda axes: _show(axes, "nearest to training images: sample and training image", pairs))
    if "accuracy_of_class" in details:
        panels.append(lambda axes: _plot_classes(axes, details))
    if "bits_per_dim" in details:
        panels.append(lambda axes: _plot_bound(axes, details["bits_per_dim"]))
    if not panels:
        return
    figure = Figure(figsize=(6 * len(panels), 6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        panel(axes)
    figure.savefig(path)


def _to_pil(image: torch.Tensor) -> Image.Image:
    """uint8 (C, H, W), C 1 or 3."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def _join(pair: torch.Tensor) -> Image.Image:
    """Two images, (2, C, H, W), side by side, and a gap that sets them apart from the next pair."""
    gap = pair.new_full((*pair.shape[1:3], max(pair.shape[3] // 7, 1)), 255)
    return _to_pil(torch.cat([*pair, gap], dim=2))


def _show(axes: Axes, title: str, rows: dict[str, list[Image.Image]]) -> None:
    axes.imshow(labelled_grid(rows))
    axes.set_title(title)
    axes.axis("off")


def _plot_classes(axes: Axes, details: dict) -> None:
    floors = details["floor_of_accuracy_of_class"]
    names, values = list(details["accuracy_of_class"]), list(details["accuracy_of_class"].values())
    axes.barh(names, values, color="lightsteelblue")
    axes.plot([floors[name] for name in names], names, "k|", markersize=12, label="real test images")
    axes.set_xlim(min(*values, *floors.values(), 0.9) - 0.1, 1)
    axes.invert_yaxis()
    axes.set_title("accuracy of each class")
    axes.legend()


def _plot_bound(axes: Axes, bound: dict) -> None:
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
        x, y, errors = ([p[name] for p in mine] for name in ("seconds_per_image", "fid", "spread"))
        axes.errorbar(x, y, errors, marker="o", capsize=3, label=sampler)
        for p in mine:
            axes.annotate(str(p["num_inference_steps"]), (p["seconds_per_image"], p["fid"]))
    axes.axhline(result["floors"]["fid"], color="grey", linestyle="--", label="floor: real test images")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds per image")
    axes.set_ylabel("FID")
    axes.legend()
    figure.savefig(path)
