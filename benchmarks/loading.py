"""Images/s of loading alone, from a set larger than memory, beside train_unconditional.py's way: loading.py [--workers 2] [--seconds 5]

    ours      images of a folder, decoded as they are read, by `SampleOrder` and a DataLoader as `Trainer` makes it
    datasets  `load_dataset("imagefolder")` with a transform of each image and a shuffled DataLoader, as in diffusers' script

Both decode files of pictures at the model's size: PNG of 32 x 32, and JPEG of 256 x 256. Both flip half of them.
Workers decode in processes of their own, so a figure grows with the cores, up to the number of workers.
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
from PIL import Image
from rounds import compare, take_turns

from ddpm_hf.data import SampleOrder, collate_batch, images, load_image_dataset


def write_images(folder: Path, size: int, count: int, suffix: str) -> None:
    """Smooth pictures with some grain, which compress as photos do."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        smooth = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize((size, size))
        grain = rng.normal(0, 6, (size, size, 3))
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i:05}.{suffix}")


def our_batches(folder: Path, size: int, batch_size: int, num_workers: int):
    data = load_image_dataset(str(folder), num_channels=3, image_size=size)
    data.random_flip = data.as_uint8 = True
    order = SampleOrder(len(data), batch_size, seed=0)
    return torch.utils.data.DataLoader(data, batch_sampler=order, collate_fn=collate_batch, num_workers=num_workers)


def their_batches(folder: Path, size: int, batch_size: int, num_workers: int):
    """The script's transforms are torchvision's; here they are Pillow's and numpy's, on which torchvision's work."""
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")

    def transform(rows: dict) -> dict:
        pictures = [image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for image in rows["image"]]
        pictures = [x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else x for x in pictures]
        return {"input": [torch.from_numpy(np.array(x)).permute(2, 0, 1).float() / 255 * 2 - 1 for x in pictures]}

    data.set_transform(transform)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=num_workers)
    return (batch for _ in iter(int, 1) for batch in loader)


def rate(batches, batch_size: int, seconds: float) -> float:
    """After a first batch, for which workers start."""
    next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * batch_size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn of one side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    images.MAX_BYTES_IN_MEMORY = 0  # no set fits
    datasets.disable_progress_bars()
    for size, suffix, count, batch_size in ((32, "png", 2048, 128), (256, "jpg", 256, 16)):
        with TemporaryDirectory() as folder:
            write_images(Path(folder) / "images", size, count, suffix)
            arguments = (Path(folder) / "images", size, batch_size, options.workers)
            loaders = {"ours": iter(our_batches(*arguments)), "datasets": iter(their_batches(*arguments))}
            sides = {name: partial(rate, batches, batch_size, options.seconds) for name, batches in loaders.items()}
            row = compare(f"{size} x {size}, {suffix}", "images/s", take_turns(sides, options.rounds))
        print(json.dumps(row | {"cores": len(os.sched_getaffinity(0)), "workers": options.workers}))


if __name__ == "__main__":
    main()
