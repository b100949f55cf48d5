"""Another network: diffusers' own Diffusion Transformer (DiT, arXiv:2212.09748) on FashionMNIST, trained, sampled and saved.

    python examples/dit.py --output_dir runs/dit [any option of scripts/train.py]

A preset names the class of the network and its constructor arguments. Any ModelMixin will do that is called as
(x_t, t, class_labels=...) and has sample_size, in_channels and out_channels in its config.
"""

import sys
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel

from ddpm_hf import DDPMImagePipeline
from ddpm_hf.cli.train import parse_args
from ddpm_hf.data import FASHION_MNIST
from ddpm_hf.images import labelled_grid
from ddpm_hf.training import PRESETS, Preset, train

DIT = Preset(
    network=DiTTransformer2DModel,
    unet=dict(  # 1.4 M parameters; label 10 is its null
        sample_size=28,
        in_channels=1,
        out_channels=1,
        patch_size=2,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        num_embeds_ada_norm=10,
    ),
    scheduler=dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"),
    training=dict(
        dataset=FASHION_MNIST,
        train_batch_size=32,
        learning_rate=1e-3,
        lr_warmup_steps=200,
        max_train_steps=5000,
        ema_decay=0.998,
        snr_gamma=5.0,
    ),
    class_conditional=True,
)


def main(arguments: list[str]) -> Path:
    """The folder of the run, with the saved model and dit.png, an image of each class."""
    PRESETS["dit"] = DIT
    folder = train(parse_args(["--preset", "dit", *arguments]))
    if not (folder / "model_index.json").exists():  # the run was stopped; --resume goes on
        return folder
    pipe = DDPMImagePipeline.from_pretrained(folder)
    images = pipe(class_labels=list(range(10)), generator=torch.Generator().manual_seed(0)).images
    labelled_grid({pipe.id2label[i]: [image] for i, image in enumerate(images)}).save(folder / "dit.png")
    return folder


if __name__ == "__main__":
    print(main(sys.argv[1:]))
