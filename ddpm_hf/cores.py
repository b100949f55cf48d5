"""The cores of a CPU, shared out among the ranks of a launch: `accelerate launch` leaves each rank one thread.

`training` and `evaluation` call it once they know their ranks; `training` tells the card what it ran on. Imports no sibling.
"""

import os

import torch


def use_all_cores(state) -> None:
    """Give this rank its part of the cores, where it computes on them. `state`: an Accelerator or a PartialState."""
    if state.device.type == "cpu":
        torch.set_num_threads(max(_num_cores() // state.num_processes, 1))


def describe_hardware(state) -> str:
    """What a launch runs on, e.g. "2 CPU cores" or "8 x NVIDIA H100 80GB HBM3"."""
    if state.device.type == "cpu":
        return f"{_num_cores()} CPU cores"
    return f"{state.num_processes} x {torch.cuda.get_device_name(state.device)}"


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
