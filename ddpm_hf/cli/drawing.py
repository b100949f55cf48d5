"""What `ddpm-sample` draws: its words as arguments of the pipeline, and the images in batches."""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluation.samplers import SAMPLERS
from ..pipeline_ddpm_image import DDPMImagePipeline


def class_ids(pipe: DDPMImagePipeline, names: list[str] | None) -> list[int] | None:
    """Names or numbers -> labels; all of the model's if none are given, None for a model without classes."""
    if names is None:
        return list(pipe.id2label) or None
    known = pipe.id2label
    numbers = known or range(pipe.num_labels or 0)
    return [
        int(n) if n.isdigit() and n not in known.values() and int(n) in numbers else pipe.get_label_ids(n)[0]
        for n in names
    ]


def conditions(pipe: DDPMImagePipeline, args: argparse.Namespace) -> list | None:
    """A class or prompt for each image, alike ones together; None where nothing is to be chosen."""
    if args.interpolate and not (args.prompt or args.class_labels):
        return None
    asked = args.prompt or class_ids(pipe, args.class_labels)
    return asked and sorted((asked[i % len(asked)] for i in range(args.num_images)), key=asked.index)


def read_picture(path: Path | str | None, pipe: DDPMImagePipeline) -> Image.Image | None:
    """A file, read as training images are; cropped to the model's size where it is larger."""
    if path is None:
        return None
    from ..data import decode  # which needs more packages than a model does

    size, num_channels = pipe.unet.config.sample_size, pipe.num_channels
    with Image.open(path) as picture:
        width, height = map(min, picture.size, (size, size) if isinstance(size, int) else size[::-1])
        shape = 1 if picture.mode in ("1", "L") else num_channels, height, width
        return Image.fromarray(decode(picture, str(path), shape).transpose(1, 2, 0).squeeze())


def noise_of(end: str, pipe: DDPMImagePipeline, steps: int, words: dict) -> torch.Tensor:
    """The noise (1, C, H, W) of a seed, or the one from which DDIM draws a picture's file."""
    if end.isdigit():
        return pipe._initial_noise(1, torch.Generator().manual_seed(int(end)), None, pipe.device)
    return pipe.invert(read_picture(end, pipe), steps, **{word: values[:1] for word, values in words.items()})


def draw(
    pipe: DDPMImagePipeline, args: argparse.Namespace, values: list | None
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """The images, and their state at each step where an animation of it is wanted."""
    words: dict[str, Any] = {"prompt" if args.prompt else "class_labels": values} if values else {}
    names = ("guidance_scale", "num_inference_steps", "eta", "strength", "num_resample")
    options = {name: getattr(args, name) for name in names}
    if args.sampler:
        options = SAMPLERS[args.sampler][1] | {name: value for name, value in options.items() if value is not None}
    options |= {name: read_picture(getattr(args, name), pipe) for name in ("image", "mask_image")}
    latents = None
    if args.interpolate:
        if "eta" not in pipe._step_takes:
            raise ValueError(f"--interpolate draws by DDIM, which the model's {type(pipe.scheduler).__name__} is not.")
        steps = args.num_inference_steps or 50
        scale = 1.0 if args.guidance_scale is None else args.guidance_scale
        options |= {"num_inference_steps": steps, "eta": 0.0, "guidance_scale": scale}
        first, last = (noise_of(end, pipe, steps, words) for end in args.interpolate)
        latents = torch.cat([pipe.slerp(first, last, i / (args.num_images - 1)) for i in range(args.num_images)])
    states: list[list[Image.Image]] = []  # at each step, of all images

    def on_step_end(pipe: DDPMImagePipeline, i: int, t: torch.Tensor, tensors: dict) -> None:
        if i == len(states):
            states.append([])
        pixels = (tensors["latents"] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        states[i] += pipe.numpy_to_pil(pixels.float().cpu().numpy())

    images: list[Image.Image] = []
    for start in range(0, args.num_images, args.batch_size):
        part = slice(start, min(start + args.batch_size, args.num_images))
        pipe.set_progress_bar_config(desc=f"images {start + 1} to {part.stop} of {args.num_images}")
        drawn: Any = pipe(
            generator=[torch.Generator().manual_seed(args.seed + i) for i in range(part.start, part.stop)],
            latents=None if latents is None else latents[part],
            callback_on_step_end=on_step_end if args.gif and not args.interpolate else None,
            **{word: values[part] for word, values in words.items()},
            **options,
        )
        images += drawn.images
    return images, states


def rows(pipe: DDPMImagePipeline, values: list | None, images: list[Image.Image]) -> dict[str, list[Image.Image]]:
    """The images of each class or prompt under its name."""
    found: dict[str, list[Image.Image]] = {}
    for image, value in zip(images, values or [""] * len(images)):
        found.setdefault(pipe.id2label.get(value, str(value)), []).append(image)
    return found
