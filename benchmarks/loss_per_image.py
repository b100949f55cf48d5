"""Held-out loss of the preset fashion-mnist, and of stock's default blocks about as large, after the same images: loss_per_image.py RUNS.

Recipe, data, order, noise and labels are the same for both, and the peer runs at half the learning rate as well, should that suit it better.
`parts.preset_step` measures the speed of this pair; this is the other half of the comparison. Leaves loss_per_image.json; a run that is
finished or cut off in the folder RUNS is not begun again.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from parts import default_of_as_many_parameters

from ddpm_hf import DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.training import TrainConfig, train
from ddpm_hf.training.presets import find_preset

STEPS = 940  # half an epoch

if __name__ == "__main__":
    output = Path(sys.argv[1])
    options = {"max_train_steps": STEPS, "validation_steps": STEPS, "num_validation_images": 2000, "report_to": "none"}
    ours = TrainConfig("fashion-mnist", output_dir=str(output / "ours"), resume=True, **options)
    preset = ours.choose(find_preset(ours.preset))
    unet, scheduler = preset.unet, preset.scheduler
    theirs = default_of_as_many_parameters(DDPMUNet2DModel(**unet, num_class_embeds=11).num_parameters())
    theirs.register_to_config(num_class_embeds=11)
    theirs.save_config(output / "default_blocks" / "unet")
    DDPMNoiseScheduler(**scheduler).save_config(output / "default_blocks" / "scheduler")
    runs = [ours]
    for rate in (ours.learning_rate, ours.learning_rate / 2):
        folder = output / f"default_blocks-{rate}"
        runs.append(replace(ours, preset=str(output / "default_blocks"), learning_rate=rate, output_dir=str(folder)))
    results = {}
    for run in runs:
        folder = train(run)
        results[folder.name] = json.loads((folder / "train_results.json").read_text())
        results[folder.name]["num_parameters"] = DDPMUNet2DModel.from_pretrained(folder / "unet").num_parameters()
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
