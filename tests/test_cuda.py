"""What only a GPU can show: `pytest -m cuda` runs these alone. No machine of this project has had a GPU to run them on yet."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_UNET
from training_fixtures import tiny

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.training import train

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("tiny_preset")]
DEVICE = "cuda"


@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 5}, {"num_inference_steps": 5, "eta": 0.5}, {"autocast": False}]
)
def test_images_are_those_of_the_cpu(monkeypatch, options):
    """The same weights and the same noise, drawn on the CPU; without TF32 the rest is rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    pipe = DDPMImagePipeline(DDPMUNet2DModel(**TINY_UNET), DDPMNoiseScheduler())
    images = []
    for device in ("cpu", DEVICE):
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        images.append(pipe.to(device)(4, generators, output_type="np", **options).images)
    assert np.abs(images[0] - images[1]).max() < 1e-3


@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
def test_a_run_that_stops_goes_on_as_the_same_run(tmp_path, mixed_precision):
    options = {"mixed_precision": mixed_precision, "lr_scheduler": "constant_with_warmup"}
    options |= {"lr_warmup_steps": 2, "ema_decay": 0.9}  # whatever the length of the leg
    whole = train(tiny(tmp_path / "whole", **options))
    train(tiny(tmp_path / "halves", **options, max_train_steps=3))
    halves = train(tiny(tmp_path / "halves", **options, resume=True))
    found, expected = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (halves, whole)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
