"""What only a GPU can show: `pytest -m cuda` runs these alone, `make gpu` with a benchmark. No machine of this project has had a GPU yet."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import ROOT, TINY_UNET
from training_fixtures import tiny
from training_runs import run

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.keys import draw
from ddpm_hf.training import train
from ddpm_hf.training.trainer import make_trainer

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


def test_noise_is_that_of_the_cpu():
    """The same t, the same uniforms, and normals to 1e-6."""
    x_0, positions = torch.empty(64, 3, 32, 32), torch.arange(64)
    found, expected = (draw(x.contiguous(), positions, 7, 1000) for x in (x_0.to(DEVICE), x_0))
    assert torch.equal(found[0].cpu(), expected[0]) and torch.equal(found[2], expected[2])
    assert (found[1].cpu() - expected[1]).abs().max() < 1e-6


@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
def test_a_run_that_stops_goes_on_as_the_same_run(tmp_path, monkeypatch, mixed_precision):
    """Bit for bit, with kernels that are deterministic."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    options = {"mixed_precision": mixed_precision, "lr_scheduler": "constant_with_warmup"}
    options |= {"lr_warmup_steps": 2, "ema_decay": 0.9}  # whatever the length of the leg
    torch.use_deterministic_algorithms(True)
    try:
        whole = train(tiny(tmp_path / "whole", **options))
        train(tiny(tmp_path / "halves", **options, max_train_steps=3))
        halves = train(tiny(tmp_path / "halves", **options, resume=True))
    finally:
        torch.use_deterministic_algorithms(False)
    found, expected = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (halves, whole)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_step_whose_gradient_overflows_in_fp16_is_skipped(tmp_path):
    """The run goes on: the average and the learning rate count the other steps."""
    trainer = make_trainer(tiny(tmp_path, mixed_precision="fp16"))
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda gradient: gradient * (float("inf") if trainer.step == 2 else 1))
    trainer.run()
    assert trainer.step == 6 and trainer.ema.optimization_step == trainer.lr_scheduler.last_epoch == 5
    assert all(parameter.isfinite().all() for parameter in trainer.average.unet.parameters())


def test_every_gpu_there_is_trains(tmp_path):
    """A rank for each, over NCCL; its weights are those of one rank, up to rounding."""
    num_gpus = torch.cuda.device_count()
    options = {"train_batch_size": 48, "mixed_precision": "no"}
    launcher = {"ACCELERATE_USE_CPU": "false"}
    assert run(tmp_path / "one", 1, dropout=0.0, launcher=launcher, **options) == [0]
    options["train_batch_size"] //= num_gpus
    assert run(tmp_path / "all", num_gpus, dropout=0.0, launcher=launcher, **options) == [0] * num_gpus
    name = "unet/diffusion_pytorch_model.safetensors"
    found, expected = (load_file(next(tmp_path.glob(f"{which}/**/{name}"))) for which in ("all", "one"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


LOAD = {
    "the package": "from ddpm_hf import DDPMImagePipeline as Pipeline; options = {}",
    "remote code": "from diffusers import DiffusionPipeline as Pipeline; options = {'trust_remote_code': True}",
    "stock": "from diffusers import DDPMPipeline as Pipeline, UNet2DModel, DDPMScheduler\n"
    "options = {'unet': UNet2DModel.from_pretrained(folder + '/unet'), 'scheduler': DDPMScheduler.from_pretrained(folder + '/scheduler')}",
}


@pytest.mark.parametrize("way", LOAD)
def test_a_saved_model_loads_onto_the_gpu(tmp_path, way):
    """In each of the three ways, and draws the pictures that it drew before on the CPU."""
    torch.manual_seed(0)
    pipe = DDPMImagePipeline(DDPMUNet2DModel(**TINY_UNET), DDPMNoiseScheduler(num_train_timesteps=100))
    pipe.save_pretrained(tmp_path)
    code = f"""
import sys, numpy, torch
torch.backends.cudnn.allow_tf32 = False
folder = {str(tmp_path)!r}
{LOAD[way]}
pipe = Pipeline.from_pretrained(folder, **options).to({DEVICE!r})
images = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images
numpy.save(folder + "/images.npy", images)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    expected = pipe(
        2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np", autocast=False
    ).images
    assert np.abs(np.load(tmp_path / "images.npy") - expected).max() < 1e-3


def test_a_compiled_network_trains_and_draws_alike(tmp_path):
    """The losses of a compiled run are those of a plain one, and so is what its network predicts."""
    figures = []
    for compiled in (False, True):
        trainer = make_trainer(tiny(tmp_path / str(compiled), mixed_precision="no", torch_compile=compiled))
        batches = iter(trainer._loader())
        figures.append(torch.stack([trainer.train_step(batches) for _ in range(2)]))
    torch.testing.assert_close(figures[1], figures[0], rtol=1e-2, atol=1e-4)
