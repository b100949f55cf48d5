"""The cores of a CPU, shared out among the ranks of a launch: `accelerate launch` leaves each rank one thread.

`training` and `evaluation` call it once they know their ranks; imports no sibling.
"""

import os

import torch


def use_all_cores(state) -> None:
    """Give this rank its part of the cores, where it computes on them. `state`: an Accelerator or a PartialState."""
    if state.device.type == "cpu":
        torch.set_num_threads(max(_num_cores() // state.num_processes, 1))


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
