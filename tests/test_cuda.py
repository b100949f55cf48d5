"""What only a GPU can show: `pytest -m cuda` runs these alone. No machine of this project has had a GPU to run them on yet."""

import numpy as np
import pytest
import torch
from conftest import DATA, TINY_UNET
from safetensors.torch import load_file

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.config import PRESETS, Preset, TrainConfig
from ddpm_hf.training import train

pytestmark = pytest.mark.cuda
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
def test_a_run_that_stops_goes_on_as_the_same_run(monkeypatch, tmp_path, mixed_precision):
    unet = TINY_UNET | {"sample_size": 28}
    recipe = {
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "max_train_steps": 6,
        "ema_decay": 0.9,
    }
    monkeypatch.setitem(PRESETS, "tiny", Preset(unet, {"num_train_timesteps": 20, "beta_end": 0.5}, recipe, True))
    weights = {}
    for name, legs in {"whole": [6], "halves": [3, 6]}.items():
        for steps in legs:
            options = {
                "lr_scheduler": "constant_with_warmup",
                "lr_warmup_steps": 2,
                "ema_decay": 0.9,
                "report_to": "none",
            }
            options |= {"max_train_steps": steps, "mixed_precision": mixed_precision, "resume": steps != legs[0]}
            folder = train(TrainConfig("tiny", str(DATA / "idx"), output_dir=str(tmp_path / name), **options))
        weights[name] = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in weights["whole"].items():
        torch.testing.assert_close(weights["halves"][name], value, rtol=1e-3, atol=1e-4)
