"""The parts, side by side in this process: roof, unet, evaluation, sampling, scheduler. Each takes the options of run.py and returns its rows.

"ours" and "diffusers" have the same weights and get the same inputs. Neighbours: `rounds` (turns, ratios), `programs` (whole programs).
"""

import shutil
import statistics
import time
from functools import partial

import torch
import torch._inductor.config
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from rounds import compare, seconds_per_call, take_turns
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.training import PRESETS

CONFIG = dict(  # attention at 14 x 14 with stock's head size of 8
    sample_size=28,
    in_channels=1,
    out_channels=1,
    block_out_channels=(32, 64, 64),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)
CONVOLUTIONS = ((64, 28), (128, 14))  # channels, height and width
PASSES = {"forward": False, "forward + backward": True}  # name -> is there a backward pass


def unets() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    models = {"ours": DDPMUNet2DModel(**CONFIG).eval(), "diffusers": UNet2DModel(**CONFIG).eval()}
    models["ours"].load_state_dict(models["diffusers"].state_dict())
    return models


def pipelines() -> dict:
    models = unets()
    found = {
        "ours": DDPMImagePipeline(models["ours"], DDPMNoiseScheduler()),
        "diffusers": DDPMPipeline(models["diffusers"], DDPMScheduler()),
    }
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


# ---------------------------------------------------------------------- roof


def convolutions(options, dtype: torch.dtype) -> dict:
    """Sides: seconds of a 3x3 convolution of 64 images by oneDNN, per GFLOP."""

    def side(channels: int, size: int) -> float:
        x = torch.randn(64, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * x.numel() / channels
        with torch.no_grad():
            F.conv2d(x, weight, padding=1)
            return seconds_per_call(lambda: F.conv2d(x, weight, padding=1), options.seconds) / flops * 1e9

    return {f"conv {c} at {size}x{size}": partial(side, c, size) for c, size in CONVOLUTIONS}


def rates(seconds_per_gflop: dict) -> dict[str, list[float]]:
    return {name: [1 / value for value in values] for name, values in seconds_per_gflop.items()}


def roof(options) -> list[dict]:
    """What this machine can do: GFLOP/s of oneDNN's convolutions and of a matrix product."""

    def matmul(dtype: torch.dtype) -> float:
        a, b = torch.randn(2, 2048, 2048, dtype=dtype)
        a @ b
        return seconds_per_call(lambda: a @ b, options.seconds) / (2 * 2048**3) * 1e9

    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        sides = convolutions(options, dtype) | {"matmul 2048": partial(matmul, dtype)}
        values = rates(take_turns(sides, options.rounds))
        rows += [
            compare(f"{name}, {str(dtype)[6:]}", "GFLOP/s", {"machine": figures}) for name, figures in values.items()
        ]
    return rows


# ---------------------------------------------------------------------- unet


def make_call(model, batch_size: int, precision: torch.dtype, backward: bool, optimizer=None, num_classes: int = 0):
    """One call of `model` on random images, as training makes it where `backward` is asked for. Returns the output."""
    torch.manual_seed(0)
    x = torch.randn(batch_size, model.config.in_channels, 28, 28)
    if optimizer and isinstance(model, DDPMUNet2DModel):  # as train.py does
        model, x = (item.to(memory_format=torch.channels_last) for item in (model, x))
    inputs = (x, torch.randint(1000, (batch_size,)))
    inputs += (torch.randint(num_classes, (batch_size,)),) if num_classes else ()

    def call() -> torch.Tensor:
        with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, precision == torch.bfloat16):
            output = model(*inputs, return_dict=False)[0]
        if backward:
            output.float().square().mean().backward()
        if optimizer:
            optimizer.step()
        model.zero_grad()
        return output.detach()

    return call


def gflops(call) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused attention is not counted
        call()
    return counter.get_total_flops() / 1e9


def share_of_roof(gflop: float, seconds: list[float], convolution_seconds: dict) -> float:
    """The call's rate, as a part of the fastest convolution's in the same rounds."""
    fastest = min(convolution_seconds.values(), key=statistics.median)
    return statistics.median(gflop * roof / call for call, roof in zip(seconds, fastest))


def compare_calls(options, name: str, batch_size: int, precision: torch.dtype, calls: dict, targets: dict) -> dict:
    """Rates of `calls` (side -> a call on batch_size images), each with its share of the roof."""
    roofs = convolutions(options, precision)
    sides = {side: partial(seconds_per_call, call, options.seconds) for side, call in calls.items()}
    work = {side: gflops(call) for side, call in calls.items()}  # which also warms the call up
    for call in calls.values():
        call()
    seconds = take_turns(sides | roofs, options.rounds)
    values = {side: [batch_size / value for value in seconds[side]] for side in calls}
    row = compare(name, "images/s", values, targets=targets)
    for side in calls:
        share = share_of_roof(work[side], seconds[side], {name: seconds[name] for name in roofs})
        row["sides"][side] |= {"gflop_per_call": work[side], "share_of_roof": share}
    return row


def default_of_as_many_parameters(num_parameters: int) -> UNet2DModel:
    """UNet2DModel with its default blocks (attention everywhere but at full size), on the three levels that 28 x 28 allows, as wide as it takes."""
    down, up = ("DownBlock2D", *["AttnDownBlock2D"] * 2), (*["AttnUpBlock2D"] * 2, "UpBlock2D")

    def config(width: int) -> dict:
        levels = (width, 2 * width, 3 * width)  # as 224, 448, 672
        return CONFIG | dict(block_out_channels=levels, down_block_types=down, up_block_types=up, norm_num_groups=8)

    def distance(width: int) -> float:
        with torch.device("meta"):
            return abs(UNet2DModel(**config(width)).num_parameters() - num_parameters)

    return UNet2DModel(**config(min(range(8, 65, 8), key=distance)))


def unet(options) -> list[dict]:
    """The U-Net alone, the same weights, then the training step of the project's presets beside stock's default of their size."""
    rows, batch_size = [], options.batch_size
    for precision in (torch.float32, torch.bfloat16):
        for name, backward in PASSES.items():
            calls = {side: make_call(model, batch_size, precision, backward) for side, model in unets().items()}
            difference = (calls["ours"]() - calls["diffusers"]()).abs().max().item()
            targets = {"diffusers": 1.0} if precision == torch.float32 else {}
            row = compare_calls(options, f"{name}, {str(precision)[6:]}", batch_size, precision, calls, targets)
            rows.append(row | {"max_abs_difference": difference})
    if shutil.which("g++"):
        rows += [compiled(options, name, backward) for name, backward in PASSES.items()]
    else:
        options.skip("unet: compiled", "there is no C++ compiler")
    return rows + [preset_step(options, name) for name in ("fashion-mnist", "fashion-mnist-quick")]


def compiled(options, name: str, backward: bool) -> dict:
    """Each at its own best: channels_last, compiled, in bf16, forward with frozen weights. Compilation is a cost beside it, in seconds."""
    calls, seconds = {}, {}
    torch.compile(torch.sin)(torch.zeros(8))  # what the first compilation of all takes is neither's cost
    with torch._inductor.config.patch(freezing=not backward):
        for side, model in unets().items():
            model = torch.compile(model.to(memory_format=torch.channels_last))
            calls[side], start = make_call(model, options.batch_size, torch.bfloat16, backward), time.perf_counter()
            calls[side]()
            seconds[side] = time.perf_counter() - start
        sides = {side: partial(seconds_per_call, call, options.seconds) for side, call in calls.items()}
        values = take_turns(sides, options.rounds)
    values = {side: [options.batch_size / value for value in values[side]] for side in values}
    return compare(f"{name}, bfloat16, compiled", "images/s", values) | {"seconds_to_compile": seconds}


def preset_step(options, name: str) -> dict:
    """A training step (bf16, AdamW) of a preset, and of stock's default of as many parameters, at the preset's batch size."""
    preset = PRESETS[name]
    ours = DDPMUNet2DModel(**preset.unet, num_class_embeds=11)
    theirs = default_of_as_many_parameters(ours.num_parameters())
    calls, peer = {}, "diffusers' default blocks"
    for side, model, num_classes in (("ours", ours, 11), (peer, theirs, 0)):
        optimizer = torch.optim.AdamW(model.parameters(), fused=side == "ours")  # as the training scripts make it
        batch_size = preset.training["train_batch_size"]
        calls[side] = make_call(model, batch_size, torch.bfloat16, True, optimizer, num_classes)
    row = compare_calls(options, f"training step of {name}, bf16", batch_size, torch.bfloat16, calls, {peer: 3.0})
    row["sides"]["ours"]["num_parameters"] = ours.num_parameters()
    row["sides"][peer]["num_parameters"] = theirs.num_parameters()
    return row


# ---------------------------------------------------------------------- inside the pipelines


def evaluation(options) -> list[dict]:
    """One evaluation of the network inside each pipeline as a user calls it, batch 64; ours also in float32 (autocast=False)."""
    pipes = pipelines()
    spent: list[float] = []
    for pipe in pipes.values():
        pipe.unet.register_forward_pre_hook(lambda *_: spent.append(-time.perf_counter()))
        pipe.unet.register_forward_hook(lambda *_: spent.append(spent.pop() + time.perf_counter()))

    def after_ten(pipe, i, t, tensors):
        pipe._interrupt = i == 9

    def side(call) -> float:
        spent.clear()
        call(batch_size=options.batch_size, output_type="np")
        return statistics.median(spent[2:10])

    sides = {
        "ours": partial(side, partial(pipes["ours"], callback_on_step_end=after_ten)),
        "ours in float32": partial(side, partial(pipes["ours"], callback_on_step_end=after_ten, autocast=False)),
        "diffusers": partial(side, partial(pipes["diffusers"], num_inference_steps=10)),
    }
    values = rates(take_turns(sides, options.rounds))
    values = {name: [options.batch_size * value for value in figures] for name, figures in values.items()}
    reference = {"ours": values.pop("ours in float32"), "diffusers": values["diffusers"]}
    return [
        compare("network in the pipeline, default", "images/s", values, targets={"diffusers": 2.0}),
        compare("network in the pipeline, autocast=False", "images/s", reference, targets={"diffusers": 1.0}),
    ]


def sampling(options) -> list[dict]:
    """16 images, from noise to PIL: the paper's 1000 ancestral steps, 50 of them, ours as a user calls it, and the few steps of a student."""
    pipes, steps = pipelines(), options.steps

    def side(call) -> float:
        start = time.perf_counter()
        call(batch_size=16, generator=torch.Generator().manual_seed(0))
        return time.perf_counter() - start

    sides = {
        "diffusers": partial(side, partial(pipes["diffusers"], num_inference_steps=steps)),
        f"{steps} steps": partial(side, partial(pipes["ours"], num_inference_steps=steps)),
        "50 steps": partial(side, partial(pipes["ours"], num_inference_steps=min(50, steps))),
        "default": partial(side, pipes["ours"]),
    }
    trailing = DDPMNoiseScheduler(timestep_spacing="trailing")
    few = DDPMImagePipeline(pipes["ours"].unet, trailing, sampling={"num_inference_steps": 4, "guidance_scale": 1.0})
    few.set_progress_bar_config(disable=True)
    few_steps = {n: f"a few-step student's {n} in float32" for n in (4, 2, 1)}
    sides |= {
        name: partial(side, partial(few, num_inference_steps=n, autocast=False)) for n, name in few_steps.items()
    }
    for pipe in (*pipes.values(), few):  # warm up
        pipe(batch_size=16, num_inference_steps=2)
    one = [seconds_per_call(partial(few, batch_size=1), options.seconds) for _ in range(options.rounds)]
    values = take_turns(sides, options.rounds)
    peer = f"diffusers, {steps} steps"
    theirs = {peer: values.pop("diffusers")}
    targets = {"default": 40.0, few_steps[4]: 200.0, few_steps[2]: 400.0}
    return [
        compare(
            f"16 images, {name}",
            "s",
            {"ours": ours} | theirs,
            lower_is_better=True,
            targets={peer: targets.get(name)},
        )
        for name, ours in values.items()
    ] + [compare("1 image, a few-step student's 4", "s", {"ours": one}, lower_is_better=True)]


# ---------------------------------------------------------------------- scheduler


def scheduler(options) -> list[dict]:
    """`step` alone on one image, all steps of a chain; its overhead is what it takes beyond the tensor operations that it stands for."""
    x, output = torch.randn(2, 1, 1, 28, 28)
    generator = torch.Generator().manual_seed(0)

    def chain(scheduler, num_steps: int, **step_options):
        scheduler.set_timesteps(num_steps)
        timesteps = list(scheduler.timesteps)

        def run() -> None:
            for t in timesteps:
                scheduler.step(output, t, x, **step_options)

        run()
        return lambda: seconds_per_call(run, options.seconds) / num_steps * 1e6

    class Operations:  # an ancestral step, or with eta=0 a DDIM step, whose coefficients are at hand
        def set_timesteps(self, num_steps: int) -> None:
            self.timesteps = range(num_steps)

        def step(self, output, t, x, generator=None, eta=None) -> torch.Tensor:
            x_0 = ((x - 0.6 * output) / 0.8).clamp(-1, 1)
            if eta == 0:
                return 0.7 * x_0 + 0.5 * output
            return 0.3 * x_0 + 0.7 * x + 0.1 * torch.randn(x.shape, generator=generator)

    rows = []
    for name, stock, num_steps, ours_options, stock_options in (
        ("ancestral step", DDPMScheduler(), 1000, dict(generator=generator), dict(generator=generator)),
        ("DDIM step", DDIMScheduler(), 50, dict(eta=0), {}),
    ):
        sides = {
            "ours": chain(DDPMNoiseScheduler(), num_steps, **ours_options),
            "diffusers": chain(stock, num_steps, **stock_options),
            "operations": chain(Operations(), num_steps, **ours_options),
        }
        values = take_turns(sides, options.rounds)
        bare = values.pop("operations")
        overhead = {side: [a - b for a, b in zip(figures, bare)] for side, figures in values.items()}
        rows.append(compare(name, "us", values, lower_is_better=True))
        targets = {"diffusers": 3.0} if isinstance(stock, DDPMScheduler) else {}
        row = compare(f"{name}, overhead", "us", overhead, lower_is_better=True, targets=targets)
        rows.append(row | {"operations": statistics.median(bare)})
    return rows
