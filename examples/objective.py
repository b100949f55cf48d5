"""Another objective: the pseudo-Huber loss (arXiv:2310.14189, Section 3.3), less moved by outliers than a squared error.

    python examples/objective.py --output_dir runs/huber [any option of scripts/train.py]

An objective is a function (denoise, scheduler, x_0, t, noise, condition) -> losses (B,); see ddpm_hf/objective.py.
"""

import sys
from pathlib import Path

import torch

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.data import load_image_dataset
from ddpm_hf.training import PRESETS, Trainer
from ddpm_hf.training.config import parse_args


def pseudo_huber(denoise, scheduler, x_0, t, noise, condition, c: float = 0.1) -> torch.Tensor:
    x_t = scheduler.add_noise(x_0, noise, t)
    error = denoise(x_t, t, condition) - scheduler.get_target(x_0, noise, t)
    return ((error.square() + c**2).sqrt() - c).mean(dim=(1, 2, 3))


def main(arguments: list[str]) -> Path:
    config, preset = parse_args(arguments), PRESETS["fashion-mnist-quick"]
    data = load_image_dataset(config.dataset, num_channels=1, image_size=28)
    names = dict(enumerate(data.class_names))
    torch.manual_seed(config.seed)
    unet = DDPMUNet2DModel(**preset.unet, num_class_embeds=len(names) + 1)
    pipeline = DDPMImagePipeline(unet, DDPMNoiseScheduler(**preset.scheduler), names, preset.sampling)
    return Trainer(pipeline, data, pseudo_huber, config).run()


if __name__ == "__main__":
    print(main(sys.argv[1:]))
