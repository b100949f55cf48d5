"""FID against evaluations of the network: sweeps of scripts/evaluate.py, of a teacher and its student, in one picture.

    python benchmarks/frontier.py benchmarks/frontier/fast.json benchmarks/frontier/teacher.json --output docs/frontier.png

Each file holds the command that made it.
A step under guidance evaluates the network twice.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sweeps", nargs="+", type=Path, help="Files that evaluate.py --sweep wrote, with the same number of images."
    )
    parser.add_argument("--output", type=Path, default=Path("frontier.png"), help="The picture.")
    options = parser.parse_args()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    results = [json.loads(path.read_text()) for path in options.sweeps]
    for result in results:
        points, model = result["sweep"], Path(result["settings"]["model"]).name
        for sampler in dict.fromkeys(point["sampler"] for point in points):
            of_sampler = [point for point in points if point["sampler"] == sampler]
            x, y, errors = zip(*((p["evaluations"], p["fid"], p["spread"]) for p in of_sampler))
            name = "its own sampler" if sampler == "own" else sampler
            axes.errorbar(x, y, errors, marker="o", capsize=3, label=f"{model}, {name}")
            for point in of_sampler:
                axes.annotate(
                    f"{point['fid']:.2f}", (point["evaluations"], point["fid"]), (4, 4), textcoords="offset points"
                )
    floor = results[0]["floors"]["fid"]
    axes.axhline(floor, color="grey", linestyle="--", label=f"floor, {floor:.2f}: real test images")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="evaluations of the network",
        ylabel=f"FID, n = {results[0]['settings']['num_images']:,}",
    )
    evaluations = sorted({point["evaluations"] for result in results for point in result["sweep"]})
    axes.set_xticks(evaluations, map(str, evaluations))
    ticks, most = [2.0**k for k in range(-3, 9)], max(point["fid"] for result in results for point in result["sweep"])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlim=(0.8 * evaluations[0], 1.4 * evaluations[-1]), ylim=(0.8 * floor, 1.6 * most))
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(options.output, dpi=120)


if __name__ == "__main__":
    main()
