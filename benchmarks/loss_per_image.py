"""Held-out loss of the preset fashion-mnist, and of stock's default blocks with as many parameters, after the same images: loss_per_image.py OUTPUT_DIR.

Recipe, data, order, noise and labels are the same for both, and the peer runs at half the learning rate as well, should that suit it better.
`parts.preset_step` measures the speed of this pair; this is the other half of the comparison.
"""

import sys
from dataclasses import replace
from pathlib import Path

from parts import default_of_as_many_parameters

from ddpm_hf import DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.config import TrainConfig
from ddpm_hf.training import train

STEPS = 940  # half an epoch

if __name__ == "__main__":
    output = Path(sys.argv[1])
    options = {"max_train_steps": STEPS, "validation_steps": STEPS, "num_validation_images": 2000, "report_to": "none"}
    ours = TrainConfig("fashion-mnist", output_dir=str(output / "ours"), **options)
    unet, scheduler = ours.parts()
    theirs = default_of_as_many_parameters(DDPMUNet2DModel(**unet, num_class_embeds=11).num_parameters())
    theirs.register_to_config(num_class_embeds=11)
    theirs.save_config(output / "default_blocks" / "unet")
    DDPMNoiseScheduler(**scheduler).save_config(output / "default_blocks" / "scheduler")
    train(ours)
    for rate in (ours.learning_rate, ours.learning_rate / 2):
        folder = output / f"theirs-{rate}"
        train(replace(ours, preset=str(output / "default_blocks"), learning_rate=rate, output_dir=str(folder)))
