"""Held-out loss of the preset fashion-mnist, and of stock's default blocks with as many parameters, after the same images: loss_per_image.py OUTPUT_DIR.

Recipe, data, order, noise and labels are the same for both, and the peer runs at half the learning rate as well, should that suit it better.
`parts.preset_step` measures the speed of this pair; this is the other half of the comparison.
"""

import dataclasses
import sys
from pathlib import Path

from parts import default_of_as_many_parameters

from ddpm_hf import DDPMUNet2DModel
from ddpm_hf.config import PRESETS, TrainConfig
from ddpm_hf.training import train

STEPS = 940  # half an epoch

if __name__ == "__main__":
    output = Path(sys.argv[1])
    ours = PRESETS["fashion-mnist"]
    theirs = default_of_as_many_parameters(DDPMUNet2DModel(**ours.unet, num_class_embeds=11).num_parameters())
    config = {name: value for name, value in theirs.config.items() if not name.startswith("_")}
    PRESETS["stock-default"] = dataclasses.replace(ours, unet=config)
    for name, rate in (("fashion-mnist", 2e-3), ("stock-default", 2e-3), ("stock-default", 1e-3)):
        options = {"max_train_steps": STEPS, "validation_steps": STEPS, "learning_rate": rate, "report_to": "none"}
        train(
            TrainConfig(preset=name, output_dir=str(output / f"{name}-{rate}"), num_validation_images=2000, **options)
        )
