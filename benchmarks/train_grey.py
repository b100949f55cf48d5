"""diffusers' train_unconditional.py on grey images, which it would make RGB: train_grey.py SCRIPT ARGUMENTS.

So its model has one channel and can be measured beside ours: the same images, the same bits/dim. `train_unconditional/` holds what was measured
of such a model, by

    train_grey.py train_unconditional.py --train_data_dir IMAGES --model_config_name_or_path UNET --resolution 28 --num_epochs 8 --use_ema
        --mixed_precision bf16 --ddpm_num_inference_steps 50 --save_images_epochs 100 --save_model_epochs 1 --checkpointing_steps 2000 --output_dir run
    scripts/evaluate.py run --bpd_timesteps 50 --num_images 1000 --sampler ddim --num_inference_steps 25 --output ddim.json
    scripts/evaluate.py run --metrics fid kid precision_recall --sampler ddpm --seed 0 --output ddpm.json

`ours_after_as_long.json` is our model after as long, which git keeps:

    git worktree add ../half-way 817802d~1
    scripts/evaluate.py ../half-way/checkpoints/ddpm-fashion-mnist --guidance_scale 1.5 --sampler ddim --num_inference_steps 25 --bpd_timesteps 20
        --mixed_precision bf16 --output ours.json

IMAGES are the 60,000 of FashionMNIST (`programs.write_images`), UNET the network of the preset fashion-mnist, without classes; 30,000 steps.
"""

import runpy
import sys

from PIL import Image

if __name__ == "__main__":
    convert = Image.Image.convert
    Image.Image.convert = lambda image, *_, **__: convert(image, "L")  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
