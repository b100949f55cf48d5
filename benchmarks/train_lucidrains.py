"""Trains the benchmark's network by denoising-diffusion-pytorch: train_lucidrains.py IMAGES CONFIG STEPS BATCH_SIZE OUTPUT_DIR.

CONFIG is a U-Net's config.json. `programs` starts it.
"""

import json
import sys
import time
from pathlib import Path


def train(images: str, config: dict, steps: int, batch_size: int, output_dir: str) -> None:
    """Its Trainer, with its defaults otherwise; steps.json holds the time after each step, for it keeps no log."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
    from diffusers import UNet2DModel

    num_parameters = UNet2DModel(**config).num_parameters()

    def make(dim: int) -> Unet:
        return Unet(dim=dim, dim_mults=(1, 2, 2), channels=config["in_channels"])

    unet = min(map(make, range(16, 81, 4)), key=lambda unet: abs(count(unet) - num_parameters))
    print(f"{count(unet)} parameters for {num_parameters}")
    trainer = Trainer(
        GaussianDiffusion(unet, image_size=config["sample_size"]),
        images,
        train_batch_size=batch_size,
        train_num_steps=steps,
        save_and_sample_every=steps + 1,
        amp=True,
        mixed_precision_type="bf16",
        calculate_fid=False,
        results_folder=output_dir,
    )
    times, update = [], trainer.ema.update

    def timed_update() -> None:
        update()
        times.append((trainer.step, time.time()))

    trainer.ema.update = timed_update
    trainer.train()
    (Path(output_dir) / "steps.json").write_text(json.dumps(times))


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    images, config, steps, batch_size, output_dir = sys.argv[1:]
    train(images, json.loads(Path(config).read_text()), int(steps), int(batch_size), output_dir)
