"""Draw images of a saved model.

With --image the model changes a picture, enlarges a smaller one, or colours a grey one; with --mask_image it repaints the white part of the
mask. --interpolate draws a strip from one seed or picture to another: spherical interpolation of their noise, drawn by DDIM.
"""

import argparse
import sys
from pathlib import Path

from ..evaluation.samplers import SAMPLERS, with_sampler
from . import HelpFormatter, command


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s MODEL [options]", formatter_class=HelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="The model: the folder of a saved model or a Hub id, ours or stock.")
    add("--num_images", type=int, default=64, help="How many images are drawn in all. Classes and prompts share them.")
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--class_labels", nargs="+", help="The classes, by name or number. By default all classes of the model."
    )
    words.add_argument("--prompt", nargs="+", help="The texts, for a model of text.")
    add("--image", type=Path, help="The picture that is changed, enlarged, coloured or repainted.")
    add(
        "--mask_image", type=Path, help="A picture of the size of --image, which is repainted where this one is white."
    )
    add(
        "--strength",
        type=float,
        help="How much of --image changes: above 0, up to 1. By default 0.8 to change it, 1 to repaint, enlarge or colour it.",
    )
    add(
        "--num_resample",
        type=int,
        default=1,
        help="How often each step is taken with --image. More of them join what is painted better to what is known.",
    )
    add("--interpolate", nargs=2, metavar="SEED_OR_IMAGE", help="The two ends of a strip of images.")
    add(
        "--guidance_scale",
        type=float,
        help="The scale of classifier-free guidance. 1 is no guidance. By default the model's own; 1 with --interpolate.",
    )
    add("--sampler", choices=SAMPLERS, help="The sampler. own, the model's, is the default.")
    add(
        "--num_inference_steps",
        type=int,
        help="The steps of the sampler. By default the model's own number; 50 with --interpolate.",
    )
    add("--eta", type=float, help="The noise of a step: 0 is DDIM, 1 is DDPM. By default the model's own.")
    add("--batch_size", type=int, default=64, help="How many images are drawn at a time.")
    add("--seed", type=int, default=0, help="The seed. Image number i is drawn from seed + i.")
    add("--output", type=Path, help="The file of the grid of all images. By default grid.png; with --output_dir none.")
    add(
        "--output_dir",
        type=Path,
        help="The folder of the single images, SEED.png each; with --interpolate NUMBER.png.",
    )
    add("--gif", type=Path, help="The file of an animation: of the denoising, or of the strip of --interpolate.")
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
