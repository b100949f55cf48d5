"""The hardware of a launch: its cores, divided among the ranks (`accelerate launch` leaves each one thread), and its precision.

Used by `training` and `evaluation`, and by their configs for defaults; `training` writes what it ran on into the card.
"""

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from .pipeline_ddpm_image import has_bfloat16


def use_own_cores(state: Accelerator | PartialState) -> None:
    """On a CPU, let this rank use its share of the cores."""
    if state.device.type == "cpu":
        torch.set_num_threads(max(num_cores() // state.num_processes, 1))


def runs_on_cpu() -> bool:
    """Whether a launch computes on the CPU: it was told to, there is no accelerator, or the accelerator is MPS.

    MPS lacks float64, which `keys.draw` and the bound need.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return True
    return torch.accelerator.current_accelerator().type == "mps"


def default_precision() -> str:
    """The launcher's mixed_precision, or else bf16; but "no" in place of bf16 on hardware that would have to convert."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16")
    device = torch.device("cpu") if runs_on_cpu() else torch.accelerator.current_accelerator()
    return "no" if asked == "bf16" and not has_bfloat16(device) else asked


def describe_hardware(state: Accelerator | PartialState) -> str:
    """What a launch runs on, e.g. "2 CPU cores" or "8 x NVIDIA H100 80GB HBM3"."""
    if state.device.type == "cpu":
        return f"{num_cores()} CPU core{'s' * (num_cores() > 1)}"
    is_cuda = state.device.type == "cuda"
    return (
        f"{state.num_processes} x {torch.cuda.get_device_name(state.device) if is_cuda else state.device.type.upper()}"
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
