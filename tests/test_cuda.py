"""What only a GPU can show: `pytest -m cuda` runs these alone, `make gpu` with a benchmark. No machine of this project has had a GPU yet."""

import os

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic; torch reads it once, at its first call of cuBLAS
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # float32 is float32, in processes that tests start, too

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file
from tiny import TINY_UNET
from training_fixtures import tiny
from training_runs import differences, run

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.keys import draw
from ddpm_hf.training import PRESETS, train
from ddpm_hf.training.trainer import make_trainer

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("tiny_preset")]
DEVICE = "cuda"


def make_pipeline() -> DDPMImagePipeline:
    torch.manual_seed(0)
    return DDPMImagePipeline(DDPMUNet2DModel(**TINY_UNET), DDPMNoiseScheduler())


def draw_images(pipe, **options) -> np.ndarray:
    """Four images by five steps, from noise drawn on the CPU; float32 in [0, 1]."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    return pipe(4, generators, num_inference_steps=5, output_type="np", **options).images


@pytest.mark.parametrize("options", [{}, {"eta": 0.5}, {"eta": 1.0, "solver_order": 2, "autocast": False}])
def test_images_are_those_of_the_cpu(options):
    """The same weights and the same noise: the rest is rounding."""
    pipe = make_pipeline()
    expected = draw_images(pipe, **options)
    assert np.abs(draw_images(pipe.to(DEVICE), **options) - expected).max() < 1e-3


def test_a_compiled_pipeline_draws_the_same_images():
    """Also when its CUDA graphs are recorded, and when they run."""
    pipe = make_pipeline().to(DEVICE)
    options = {"eta": 1.0, "solver_order": 2}
    expected = draw_images(pipe, **options)
    pipe.compile()
    for _ in range(3):
        assert np.abs(draw_images(pipe, **options) - expected).max() < 1e-3


def test_noise_is_that_of_the_cpu():
    """The same t, the same uniforms, and normals to 1e-6."""
    x_0, positions = torch.empty(64, 3, 32, 32), torch.arange(64)
    found, expected = (draw(x.contiguous(), positions, 7, 1000) for x in (x_0.to(DEVICE), x_0))
    assert torch.equal(found[0].cpu(), expected[0]) and torch.equal(found[2], expected[2])
    assert (found[1].cpu() - expected[1]).abs().max() < 1e-6


@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
def test_a_run_that_stops_goes_on_as_the_same_run(tmp_path, monkeypatch, mixed_precision):
    """Bit for bit, with kernels that are deterministic."""
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
    """A rank for each, as far as they divide the batch, over NCCL: the run is that of one process, up to rounding."""
    num_gpus = max(n for n in range(1, torch.cuda.device_count() + 1) if 48 % n == 0)
    options = {"mixed_precision": "no", "dropout": 0.0}
    launcher = {"ACCELERATE_USE_CPU": "false"}
    assert run(tmp_path / "one", 1, train_batch_size=48, **options) == [0]
    batch_size = 48 // num_gpus
    assert run(tmp_path / "all", num_gpus, launcher=launcher, train_batch_size=batch_size, **options) == [0] * num_gpus
    found = differences(tmp_path / "one", tmp_path / "all")
    assert found["lr"] == 0 and found["loss"] < 1e-3 and found["grad_norm"] < 1e-3, found


def load_stock(folder) -> DDPMPipeline:
    parts = {"unet": UNet2DModel, "scheduler": DDPMScheduler}
    return DDPMPipeline(**{name: part.from_pretrained(folder, subfolder=name) for name, part in parts.items()})


LOAD = {
    "the package": DDPMImagePipeline.from_pretrained,
    "remote code": lambda folder: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
    "stock": load_stock,
}


@pytest.mark.parametrize("load", LOAD.values(), ids=LOAD)
def test_a_saved_model_loads_onto_the_gpu(tmp_path, load):
    """In each of the three ways, and draws the pictures that it drew before on the CPU."""
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    assert np.abs(draw_images(load(tmp_path).to(DEVICE)) - draw_images(pipe)).max() < 1e-3


def test_a_compiled_network_trains_alike(tmp_path, monkeypatch):
    """The losses and gradients of a compiled run are those of a plain one; dropout would draw other masks."""
    monkeypatch.setitem(PRESETS["tiny"].unet, "dropout", 0.0)
    figures = []
    for compiled in (False, True):
        trainer = make_trainer(tiny(tmp_path / str(compiled), mixed_precision="no", torch_compile=compiled))
        batches = iter(trainer._loader())
        figures.append(torch.stack([trainer.train_step(batches) for _ in range(2)]))
    torch.testing.assert_close(figures[1], figures[0], rtol=1e-2, atol=1e-4)
