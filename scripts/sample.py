"""Draw images: `python scripts/sample.py MODEL --num_images 64 --class_labels Sneaker Bag --guidance_scale 1.5 --output grid.png`."""

import argparse
import sys

import torch
from PIL import Image

from ddpm_hf import hub
from ddpm_hf.grid import labelled_grid


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--num_images", type=int, default=64, help="in all; classes share them")
    parser.add_argument("--class_labels", nargs="+", default=None, help="labels or names; all classes if not given")
    parser.add_argument(
        "--guidance_scale", type=float, default=None, help="1.5 with classes where the model allows it"
    )
    parser.add_argument("--num_inference_steps", type=int, default=None, help="50 DDIM steps if not given")
    parser.add_argument(
        "--eta", type=float, default=None, help="0 is DDIM, 1 is DDPM; the paper's rule if only steps are given"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images drawn at a time")
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    parser.add_argument("--output", default="grid.png", help="the grid")
    parser.add_argument("--gif", default=None, help="the denoising of the grid, as an animation")
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1:
        parser.error("--num_images and --batch_size must be at least 1.")
    pipe = hub.load(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    grids = draw(pipe, args)
    grids[-1].save(args.output)
    if args.gif:
        durations = [60] * (len(grids) - 1) + [2000]  # milliseconds
        grids[0].save(args.gif, save_all=True, append_images=grids[1:], duration=durations, loop=0)
    print(f"{args.num_images} images -> {args.output}" + (f", {args.gif}" if args.gif else ""))


def draw(pipe, args) -> list[Image.Image]:
    """The grid, after its earlier states where an animation is wanted."""
    names = args.class_labels or list(pipe.id2label.values()) or [""]
    names = [pipe.id2label.get(int(name), name) if name.isdigit() else name for name in names]
    conditional = names != [""]
    labels = (
        sorted(names[i % len(names)] for i in range(args.num_images)) if len(names) > 1 else names * args.num_images
    )
    labels.sort(key=names.index)
    scale = (
        args.guidance_scale
        if args.guidance_scale is not None
        else 1.5
        if pipe.null_label is not None and conditional
        else 1.0
    )
    frames: list[list[Image.Image]] = []

    def keep_frame(pipe, i, t, tensors):
        images = ((tensors["latents"] / 2 + 0.5).clamp(0, 1)).permute(0, 2, 3, 1).float().cpu().numpy()
        if i == len(frames):
            frames.append([])
        frames[i] += pipe.numpy_to_pil(images)

    images = []
    for start in range(0, args.num_images, args.batch_size):
        batch = labels[start : start + args.batch_size]
        classes = [int(name) if name.isdigit() else name for name in batch] if conditional else None
        images += pipe(
            len(batch),
            [torch.Generator().manual_seed(args.seed + start + i) for i in range(len(batch))],
            num_inference_steps=args.num_inference_steps,
            class_labels=classes,
            guidance_scale=scale,
            eta=args.eta,
            callback_on_step_end=keep_frame if args.gif else None,
        ).images
    rows = [[j for j, name in enumerate(labels) if name == row] for row in names]
    return [
        labelled_grid({name: [frame[j] for j in row] for name, row in zip(names, rows) if row})
        for frame in [*frames, images]
    ]


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
