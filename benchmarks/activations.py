"""MB that autograd keeps of one image in bfloat16, without and with gradient checkpointing: activations.py PRESET ...

A and A' of README's table. Counted on the CPU, of two images less one, so that what does not grow with the batch is left out.
"""

import sys

import torch

from ddpm_hf import DDPMUNet2DModel
from ddpm_hf.training import PRESETS


def kept_bytes(unet: DDPMUNet2DModel, batch_size: int) -> int:
    """Of the tensors that a forward pass leaves for the backward pass, each storage once."""
    x = torch.randn(batch_size, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    kept: list[torch.UntypedStorage] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        unet(x, 10)
    return sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())


def kept_of_an_image(preset: str) -> tuple[int, int]:
    """Bytes without and with gradient checkpointing."""
    unet = DDPMUNet2DModel(**PRESETS[preset].unet).train()
    plain = kept_bytes(unet, 2) - kept_bytes(unet, 1)
    unet.enable_gradient_checkpointing()
    return plain, kept_bytes(unet, 2) - kept_bytes(unet, 1)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        plain, checkpointed = kept_of_an_image(name)
        print(f"{name}: {plain / 1e6:.0f} MB, with gradient checkpointing {checkpointed / 1e6:.0f} MB")
