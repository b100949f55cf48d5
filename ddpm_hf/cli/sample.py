"""Draw images of a saved model.

With --image the model changes, enlarges or colours a picture; with --mask_image it repaints the white part. With --interpolate it goes from one
seed or picture to another: spherical steps in noise, drawn by DDIM.
"""

import argparse
import sys
from pathlib import Path

from ..evaluation.samplers import SAMPLERS, with_sampler
from . import HelpFormatter, command


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("model", help="The folder or Hub id of a saved model.")
    add("--num_images", type=int, default=64, help="Images in all; classes and prompts share them.")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--class_labels", nargs="+", help="Names or labels of classes. All classes if none are given.")
    words.add_argument("--prompt", nargs="+", help="Texts, for a model of text.")
    add("--image", type=Path, help="A picture to start from, or a smaller one to enlarge.")
    add("--mask_image", type=Path, help="Repaint --image where this picture is white.")
    add("--strength", type=float, help="How much of --image changes, from 0 to 1.")
    add("--num_resample", type=int, default=1, help="Times that each step is taken, for --image.")
    add("--interpolate", nargs=2, metavar="SEED_OR_IMAGE", help="The ends of a strip of images.")
    add("--guidance_scale", type=float, help="Classifier-free guidance; 1 is none. The model's own by default.")
    add("--sampler", choices=SAMPLERS, help="The model's own by default.")
    add("--num_inference_steps", type=int, help="Steps of the sampler. The model's own by default.")
    add("--eta", type=float, help="0 is DDIM, 1 is DDPM. The model's own by default.")
    add("--batch_size", type=int, default=64, help="Images that are drawn at a time.")
    add("--seed", type=int, default=0, help="Image i is drawn from seed + i.")
    add("--output", type=Path, help="The grid of all images. grid.png by default; none by default with --output_dir.")
    add("--output_dir", type=Path, help="A folder that gets each image as SEED.png, with --interpolate as NUMBER.png.")
    add("--gif", type=Path, help="An animation of the denoising, or of --interpolate.")
    return parser


def parse_args(args: list[str]) -> argparse.Namespace:
    """The options, checked as far as this goes without the model; a wrong one ends the program with one line."""
    parser = _make_parser()
    options = parser.parse_args(args)
    if options.output is None and options.output_dir is None:
        options.output = Path("grid.png")
    for name in ("num_images", "batch_size", "num_inference_steps", "num_resample"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value} must be at least 1.")
    for name, most in {"guidance_scale": sys.float_info.max, "eta": 1, "strength": 1}.items():
        if not 0 <= (getattr(options, name) or 0) <= most:
            parser.error(f"--{name} {getattr(options, name)} must be {'from 0 to 1' if most == 1 else 'at least 0'}.")
    seeds = [options.seed, options.seed + options.num_images - 1]
    seeds += map(int, filter(str.isdigit, options.interpolate or []))
    if not 0 <= min(seeds) <= max(seeds) < 2**64:
        parser.error(f"seeds {min(seeds)} to {max(seeds)}: torch takes 0 to 2**64 - 1.")
    asked = options.prompt or options.class_labels or []
    has_own = options.image or options.sampler or options.eta is not None  # what --interpolate sets itself
    if options.interpolate and (has_own or options.num_images < 2 or len(asked) > 1):
        parser.error(
            "--interpolate takes no --image, --sampler or --eta, one class or prompt at most, and --num_images of at least 2."
        )
    for name, suffixes in (("output", (".png", ".jpg")), ("gif", (".gif",))):
        path = getattr(options, name)
        if path and (path.suffix.lower() not in suffixes or not path.absolute().parent.is_dir()):
            parser.error(
                f"--{name} {path}: give a file that ends in {' or '.join(suffixes)}, in a folder that exists."
            )
    return options


@command
def main(args: list[str]) -> None:
    """`ddpm-sample`: writes the grid, the single images and the animation that were asked for, and prints their paths."""
    options = parse_args(args)
    from accelerate import PartialState

    from .. import hub
    from ..images import labelled_grid
    from .drawing import conditions, draw, rows

    pipe = hub.load(options.model).to(PartialState().device)
    if options.sampler:
        pipe = with_sampler(pipe, options.sampler)
    values = conditions(pipe, options)
    images, states = draw(pipe, options, values)
    grid = labelled_grid({" ": images} if options.interpolate else rows(pipe, values, images))
    if options.output:
        grid.save(options.output)
    if options.output_dir:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            image.save(options.output_dir / f"{i if options.interpolate else options.seed + i}.png")
    if options.gif:
        frames = [labelled_grid(rows(pipe, values, state)) for state in states] + [grid]
        if options.interpolate:
            frames = [labelled_grid({" ": [image]}) for image in images]
        durations = [60] * (len(frames) - 1) + [2000]  # milliseconds
        frames[0].save(options.gif, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    written = filter(None, (options.output, options.output_dir, options.gif))
    print(f"{len(images)} images -> {', '.join(map(str, written))}")


if __name__ == "__main__":
    sys.exit(main())
