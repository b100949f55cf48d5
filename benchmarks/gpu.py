"""Training and sampling on one GPU beside diffusers': gpu.json. `make gpu` runs it after `pytest -m cuda`.

    python benchmarks/gpu.py                                      the cifar10 preset, bf16, about five minutes
    python benchmarks/gpu.py --device cpu --preset fashion-mnist-quick --batch_size 4 --seconds 1 --rounds 1 --steps 2 --no_compile    to try it out

Training: images/s of whole steps, data loading from memory included: "ours" (`Trainer`), ours compiled, and "train_unconditional", the loop
of diffusers' script (its noise, its loss, its EMA, its AdamW, one `.item()` a step) on diffusers' network of the same config. The share of
the roof is the FLOPs of the network's passes by the rate of a bf16 matrix product in the same rounds. Sampling: the preset's steps, also compiled
(`pipe.compile()`), and as many of DDIM by DDPMPipeline's network. Peak memory is torch's count of what a side allocated beyond what was there before.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rounds import compare, machine, take_turns
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.data import ImageDataset
from ddpm_hf.objective import make_objective
from ddpm_hf.training import PRESETS, TrainConfig, Trainer


class Meter:
    """Rates on the device: warm calls over some seconds, with the device's work at its end."""

    def __init__(self, device: str, seconds: float):
        self.is_cuda, self.seconds, self.peaks = device == "cuda", seconds, {}

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def rate(self, call, work: float, name: str = "") -> float:
        """Work per second of `call`; what it allocated at most is kept under `name`, in MB."""
        call()
        self.wait()
        before = torch.cuda.memory_allocated() if self.is_cuda else 0
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        start, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - start < self.seconds:
            for _ in range(5):  # the queue runs ahead of the clock: wait seldom
                call()
            calls += 5
            self.wait()
        seconds = time.perf_counter() - start
        if self.is_cuda and name:
            self.peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
        return calls * work / seconds


def matmul(device: str):
    """A bf16 matrix product and its TFLOP."""
    n = 8192 if device == "cuda" else 512
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    return lambda: a @ b, 2 * n**3 / 1e12


def images(preset, count: int) -> torch.Tensor:
    size = preset.unet["sample_size"]
    return torch.randint(256, (count, preset.num_channels, size, size), dtype=torch.uint8)


def our_step(options, folder: Path, compiled: bool):
    """One optimizer step of `Trainer`, with the preset's recipe."""
    preset = PRESETS[options.preset]
    recipe = {name: value for name, value in preset.training.items() if name != "dataset"}
    recipe |= {"train_batch_size": options.batch_size, "mixed_precision": "bf16", "torch_compile": compiled}
    recipe |= {"output_dir": str(folder), "report_to": "none", "num_validation_images": 0, "label_dropout": 0.0}
    pipe = DDPMImagePipeline(DDPMUNet2DModel(**preset.unet), DDPMNoiseScheduler(**preset.scheduler))
    objective = make_objective(None, pipe)
    trainer = Trainer(
        pipe, ImageDataset(images(preset, 4096)), objective, TrainConfig(preset=options.preset, **recipe)
    )
    batches = iter(trainer._loader())

    def step() -> None:
        trainer.train_step(batches)
        trainer.step += 1

    return step


def their_step(options):
    """One optimizer step as in diffusers' train_unconditional.py, `--use_ema --mixed_precision bf16`."""
    preset, accelerator = PRESETS[options.preset], Accelerator(mixed_precision="bf16")
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    model = UNet2DModel(**preset.unet)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    data = images(preset, 4096).float() / 127.5 - 1
    loader = torch.utils.data.DataLoader(data, batch_size=options.batch_size, shuffle=True)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    ema.to(accelerator.device)
    batches = (batch for _ in iter(int, 1) for batch in loader)

    def step() -> float:
        clean = next(batches)
        noise = torch.randn(clean.shape, device=clean.device)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
        with accelerator.accumulate(model):
            output = model(scheduler.add_noise(clean, noise, t), t).sample
            loss = F.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        ema.step(model.parameters())
        return loss.detach().item()  # what it logs

    return step


def network_tflop(options) -> float:
    """TFLOP of the forward and backward pass for one image."""
    preset = PRESETS[options.preset]
    with torch.device("meta"):
        unet = DDPMUNet2DModel(**preset.unet)
        x = torch.empty(1, preset.num_channels, *[preset.unet["sample_size"]] * 2)
        with FlopCounterMode(display=False) as counter:
            unet(x, torch.zeros(1, dtype=torch.long))[0].sum().backward()
    return counter.get_total_flops() / 1e12


def training(options, meter: Meter, folder: Path) -> list[dict]:
    steps = {"ours": our_step(options, folder / "eager", False), "train_unconditional": their_step(options)}
    if options.compile:
        steps["ours, compiled"] = our_step(options, folder / "compiled", True)
    product, tflop = matmul(options.device)
    sides = {name: partial(meter.rate, step, options.batch_size, name) for name, step in steps.items()}
    values = take_turns(sides | {"roof": partial(meter.rate, product, tflop)}, options.rounds)
    roof, work = values.pop("roof"), network_tflop(options)
    row = compare("training", "images/s", values)
    for name, rates in values.items():
        share = max(rate * work / top for rate, top in zip(rates, roof))
        row["sides"][name] |= {"share_of_bf16_roof": share, "peak_MB": meter.peaks.get(name)}
    return [compare("matrix product, bf16", "TFLOP/s", {"device": roof}), row]


def sampling(options, meter: Meter) -> list[dict]:
    """`DDPMImagePipeline` as it is called, also compiled, and stock's pipeline with as many steps of DDIM, each by its defaults."""
    preset = PRESETS[options.preset]
    way = {"num_inference_steps": options.steps} if options.steps else preset.sampling
    pipes = {
        "ours": DDPMImagePipeline(DDPMUNet2DModel(**preset.unet), DDPMNoiseScheduler(**preset.scheduler), sampling=way)
    }
    pipes["diffusers"] = DDIMPipeline(UNet2DModel(**preset.unet), DDIMScheduler())
    if options.compile:
        pipes["ours, compiled"] = DDPMImagePipeline(**pipes["ours"].components, sampling=way)
    for pipe in pipes.values():
        pipe.to(options.device).set_progress_bar_config(disable=True)
    if options.compile:
        pipes["ours, compiled"].compile()
    words = {"batch_size": options.batch_size, "output_type": "np", "num_inference_steps": way["num_inference_steps"]}
    calls = {name: partial(pipe, **words) for name, pipe in pipes.items()}
    sides = {name: partial(meter.rate, call, options.batch_size, name) for name, call in calls.items()}
    return [compare(f"sampling, {way['num_inference_steps']} steps", "images/s", take_turns(sides, options.rounds))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--preset", default="cifar10", choices=[name for name in PRESETS if PRESETS[name].network is None]
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn of one side")
    parser.add_argument("--steps", type=int, help="of sampling; the preset's")
    parser.add_argument("--no_compile", dest="compile", action="store_false")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device.", file=sys.stderr)
        return 1
    meter = Meter(options.device, options.seconds)
    facts = machine() | ({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if meter.is_cuda else {})
    chosen = {name: value for name, value in vars(options).items() if name != "output"}
    rows: list[dict] = []
    with TemporaryDirectory() as folder:
        for section in (partial(training, folder=Path(folder)), sampling):
            rows += section(options, meter)
            options.output.write_text(json.dumps({"machine": facts, "options": chosen, "rows": rows}, indent=1) + "\n")
    for row in rows:
        for name, side in row["sides"].items():
            print(row["name"], name, {key: value for key, value in side.items() if key != "rounds"}, row["unit"])
        print(row["name"], "times better:", row["times_better"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
