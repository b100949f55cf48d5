"""Trains the benchmark's network by ours or by denoising-diffusion-pytorch: train_peer.py SIDE IMAGES CONFIG STEPS BATCH_SIZE OUTPUT_DIR.

CONFIG is a U-Net's config.json. `programs` starts it; train_unconditional.py needs no such help.
"""

import json
import sys
import time
from pathlib import Path


def ours(images: str, config: dict, steps: int, batch_size: int, output_dir: str) -> None:
    """train.py in its default mode, on a preset for this network."""
    from ddpm_hf.config import PRESETS, Preset, TrainConfig
    from ddpm_hf.training import train

    unet = {name: value for name, value in config.items() if not name.startswith("_")}
    recipe = dict(dataset=images, train_batch_size=batch_size, max_train_steps=steps, learning_rate=1e-4)
    PRESETS["benchmark"] = Preset(unet, {}, recipe | dict(lr_warmup_steps=0, ema_decay=0.999))
    train(TrainConfig(preset="benchmark", output_dir=output_dir, num_validation_images=0))


def lucidrains(images: str, config: dict, steps: int, batch_size: int, output_dir: str) -> None:
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
    side, images, config, steps, batch_size, output_dir = sys.argv[1:]
    run = {"ours": ours, "lucidrains": lucidrains}[side]
    run(images, json.loads(Path(config).read_text()), int(steps), int(batch_size), output_dir)
