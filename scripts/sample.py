"""Draw images: `python scripts/sample.py MODEL --num_images 64 --class_labels Sneaker Bag --guidance_scale 1.3 --output grid.png`."""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image

from ddpm_hf import hub
from ddpm_hf.images import labelled_grid


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--num_images", type=int, default=64, help="in all; classes share them")
    parser.add_argument("--class_labels", nargs="+", default=None, help="names or labels; all classes if not given")
    parser.add_argument("--guidance_scale", type=float, default=None, help="the model's own if not given")
    parser.add_argument("--num_inference_steps", type=int, default=None, help="the model's own if not given")
    parser.add_argument("--eta", type=float, default=None, help="0 is DDIM, 1 DDPM; the model's own if not given")
    parser.add_argument("--batch_size", type=int, default=64, help="images drawn at a time")
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    parser.add_argument("--output", type=Path, default="grid.png", help="the grid")
    parser.add_argument("--gif", type=Path, default=None, help="the denoising of the grid, as an animation")
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1:
        parser.error("--num_images and --batch_size must be at least 1.")
    for option, path, suffixes in (("--output", args.output, (".png", ".jpg")), ("--gif", args.gif, (".gif",))):
        if path and (path.suffix not in suffixes or not path.absolute().parent.is_dir()):
            parser.error(
                f"{option} {path}: give a file that ends in {' or '.join(suffixes)}, in a folder that exists."
            )
    pipe = hub.load(args.model).to(PartialState().device)
    grids = draw(pipe, args)
    grids[-1].save(args.output)
    if args.gif:
        durations = [60] * (len(grids) - 1) + [2000]  # milliseconds
        grids[0].save(args.gif, save_all=True, append_images=grids[1:], duration=durations, loop=0)
    print(f"{args.num_images} images -> {args.output}" + (f", {args.gif}" if args.gif else ""))


def class_ids(pipe, names: list[str] | None) -> list[int] | None:
    """Names or numbers -> labels; all of the model's if none are given, None for a model without classes."""
    if names is None:
        return list(pipe.id2label) or None
    known = pipe.id2label
    numbers = known or range(pipe.unet.config.num_class_embeds or 0)
    return [
        int(n) if n.isdigit() and n not in known.values() and int(n) in numbers else pipe.get_label_ids(n)[0]
        for n in names
    ]


def draw(pipe, args) -> list[Image.Image]:
    """The grid, after its earlier states where an animation is wanted."""
    classes = class_ids(pipe, args.class_labels)
    labels = (
        sorted((classes[i % len(classes)] for i in range(args.num_images)), key=classes.index) if classes else None
    )
    states: list[list[Image.Image]] = []  # at each step, of all images

    def keep(images: list[Image.Image], step: int) -> None:
        if step == len(states):
            states.append([])
        states[step] += images

    def on_step_end(pipe, i, t, tensors):
        images = (tensors["latents"] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        keep(pipe.numpy_to_pil(images.float().cpu().numpy()), i)

    images = []
    for start in range(0, args.num_images, args.batch_size):
        count = min(args.batch_size, args.num_images - start)
        images += pipe(
            count,
            [torch.Generator().manual_seed(args.seed + start + i) for i in range(count)],
            num_inference_steps=args.num_inference_steps,
            class_labels=labels and labels[start : start + count],
            guidance_scale=args.guidance_scale,
            eta=args.eta,
            callback_on_step_end=on_step_end if args.gif else None,
        ).images
    return [labelled_grid(rows(pipe, classes, labels, state)) for state in [*states, images]]


def rows(pipe, classes, labels, images) -> dict[str, list[Image.Image]]:
    """The images of each class under its name."""
    if not classes:
        return {"": images}
    found = {
        pipe.id2label.get(c, str(c)): [image for image, label in zip(images, labels) if label == c] for c in classes
    }
    return {name: row for name, row in found.items() if row}


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
