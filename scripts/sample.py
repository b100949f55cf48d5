"""Draw images: `python scripts/sample.py MODEL --num_images 64 --class_labels Sneaker Bag --guidance_scale 1.3 --output grid.png`.

With `--image` the model changes, enlarges or colours a picture, with `--mask_image` it repaints the white part; with `--interpolate` it goes
from one seed or picture to another: spherical steps in noise, drawn by DDIM.
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image

try:
    from ddpm_hf import hub
    from ddpm_hf.data.images import decode
    from ddpm_hf.images import labelled_grid
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--num_images", type=int, default=64, help="in all; classes and prompts share them")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--class_labels", nargs="+", default=None, help="names or labels; all classes if not given")
    words.add_argument("--prompt", nargs="+", default=None, help="texts, for a model of text")
    parser.add_argument(
        "--image", type=Path, default=None, help="a picture to start from, or a smaller one to enlarge"
    )
    parser.add_argument("--mask_image", type=Path, default=None, help="repaint --image where this is white")
    parser.add_argument("--strength", type=float, default=None, help="0 to 1: how much of --image changes")
    parser.add_argument("--num_resample", type=int, default=1, help="times that each step is taken, for --image")
    parser.add_argument("--interpolate", nargs=2, default=None, metavar="SEED_OR_IMAGE", help="the ends of a strip")
    parser.add_argument("--guidance_scale", type=float, default=None, help="the model's own if not given")
    parser.add_argument("--num_inference_steps", type=int, default=None, help="the model's own if not given")
    parser.add_argument("--eta", type=float, default=None, help="0 is DDIM, 1 DDPM; the model's own if not given")
    parser.add_argument("--batch_size", type=int, default=64, help="images drawn at a time")
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn from seed + i")
    parser.add_argument("--output", type=Path, default="grid.png", help="the grid")
    parser.add_argument("--output_dir", type=Path, default=None, help="a folder for the images, a PNG each")
    parser.add_argument(
        "--gif", type=Path, default=None, help="an animation: the denoising of the grid, or --interpolate"
    )
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1:
        parser.error("--num_images and --batch_size must be at least 1.")
    seeds = [args.seed, args.seed + args.num_images - 1, *map(int, filter(str.isdigit, args.interpolate or []))]
    if not 0 <= min(seeds) <= max(seeds) < 2**64:
        parser.error(f"seeds {min(seeds)} to {max(seeds)}: torch takes 0 to 2**64 - 1.")
    asked = args.prompt or args.class_labels or []
    if args.interpolate and (args.image or args.num_images < 2 or len(asked) > 1):
        parser.error("--interpolate takes no --image, one class or prompt at most, and --num_images of at least 2.")
    for option, path, suffixes in (("--output", args.output, (".png", ".jpg")), ("--gif", args.gif, (".gif",))):
        if path and (path.suffix.lower() not in suffixes or not path.absolute().parent.is_dir()):
            parser.error(
                f"{option} {path}: give a file that ends in {' or '.join(suffixes)}, in a folder that exists."
            )
    return args


def main():
    args = parse_args()
    pipe = hub.load(args.model).to(PartialState().device)
    values = conditions(pipe, args)
    images, states = draw(pipe, args, values)
    grid = labelled_grid({" ": images} if args.interpolate else rows(pipe, values, images))
    grid.save(args.output)
    if args.output_dir:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            image.save(args.output_dir / f"{args.seed + i}.png")
    if args.gif:
        frames = [labelled_grid(rows(pipe, values, state)) for state in states] + [grid]
        if args.interpolate:
            frames = [labelled_grid({" ": [image]}) for image in images]
        durations = [60] * (len(frames) - 1) + [2000]  # milliseconds
        frames[0].save(args.gif, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    print(
        f"{len(images)} images -> {', '.join(str(path) for path in (args.output, args.output_dir, args.gif) if path)}"
    )


def class_ids(pipe, names: list[str] | None) -> list[int] | None:
    """Names or numbers -> labels; all of the model's if none are given, None for a model without classes."""
    if names is None:
        return list(pipe.id2label) or None
    known = pipe.id2label
    numbers = known or range(pipe.num_labels or 0)
    return [
        int(n) if n.isdigit() and n not in known.values() and int(n) in numbers else pipe.get_label_ids(n)[0]
        for n in names
    ]


def conditions(pipe, args) -> list | None:
    """A class or prompt for each image, alike ones together; None where nothing is to be chosen."""
    if args.interpolate and not (args.prompt or args.class_labels):
        return None
    asked = args.prompt or class_ids(pipe, args.class_labels)
    return asked and sorted((asked[i % len(asked)] for i in range(args.num_images)), key=asked.index)


def read_picture(path: Path | str | None, pipe) -> Image.Image | None:
    """A file, read as training images are; cropped to the model's size where it is larger."""
    if path is None:
        return None
    size, num_channels = pipe.unet.config.sample_size, pipe.num_channels
    with Image.open(path) as picture:
        width, height = map(min, picture.size, (size, size) if isinstance(size, int) else size[::-1])
        shape = 1 if picture.mode in ("1", "L") else num_channels, height, width
        return Image.fromarray(decode(picture, str(path), shape).transpose(1, 2, 0).squeeze())


def noise_of(end: str, pipe, steps: int, words: dict) -> torch.Tensor:
    """The noise (1, C, H, W) of a seed, or the one from which DDIM draws a picture's file."""
    if end.isdigit():
        return pipe._initial_noise(1, torch.Generator().manual_seed(int(end)), None, pipe.device)
    return pipe.invert(read_picture(end, pipe), steps, **{word: values[:1] for word, values in words.items()})


def slerp(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """From a to b on a sphere: what lies between two noises is as large as they are (Shoemake 1985)."""
    angle = torch.acos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)).clamp(min=1e-4)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def draw(pipe, args, values: list | None) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """The images, and their state at each step where an animation of it is wanted."""
    words = {"prompt" if args.prompt else "class_labels": values} if values else {}
    names = ("guidance_scale", "num_inference_steps", "eta", "strength", "num_resample")
    options = {name: getattr(args, name) for name in names}
    options |= {name: read_picture(getattr(args, name), pipe) for name in ("image", "mask_image")}
    latents = None
    if args.interpolate:
        steps = args.num_inference_steps or 50
        scale = 1.0 if args.guidance_scale is None else args.guidance_scale
        options |= {"num_inference_steps": steps, "eta": 0.0, "guidance_scale": scale}
        first, last = (noise_of(end, pipe, steps, words) for end in args.interpolate)
        latents = torch.cat([slerp(first, last, i / (args.num_images - 1)) for i in range(args.num_images)])
    states: list[list[Image.Image]] = []  # at each step, of all images

    def on_step_end(pipe, i, t, tensors):
        if i == len(states):
            states.append([])
        pixels = (tensors["latents"] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        states[i] += pipe.numpy_to_pil(pixels.float().cpu().numpy())

    images: list[Image.Image] = []
    for start in range(0, args.num_images, args.batch_size):
        part = slice(start, min(start + args.batch_size, args.num_images))
        images += pipe(
            generator=[torch.Generator().manual_seed(args.seed + i) for i in range(part.start, part.stop)],
            latents=None if latents is None else latents[part],
            callback_on_step_end=on_step_end if args.gif and not args.interpolate else None,
            **{word: values[part] for word, values in words.items()},
            **options,
        ).images
    return images, states


def rows(pipe, values: list | None, images) -> dict[str, list[Image.Image]]:
    """The images of each class or prompt under its name."""
    found: dict[str, list[Image.Image]] = {}
    for image, value in zip(images, values or [""] * len(images)):
        found.setdefault(pipe.id2label.get(value, str(value)), []).append(image)
    return found


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
