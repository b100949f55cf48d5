"""How a figure is made: the sides take turns, round by round, and are compared within each round. `sections` measures with it."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch


def take_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every side once a round, back and forth, so that a drift of the machine meets all of them alike. Name -> a figure per round."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            values[name].append(sides[name]())
    return values


def seconds_per_call(call: Callable[[], object], at_least: float) -> float:
    """Mean wall-clock seconds of `call`, over `at_least` seconds of calls, and one call at least."""
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < at_least:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def compare(
    name: str, unit: str, values: dict[str, list[float]], *, lower_is_better: bool = False, targets: dict | None = None
) -> dict:
    """A row of the results: each side's median, and how many times better "ours" is than each other side.

    The ratio is the median of the rounds' ratios, with the least and the most of them; `targets` names what it should
    reach beside a side.
    """
    row: dict = {"name": name, "unit": unit, "sides": {}, "times_better": {}}
    for side, figures in values.items():
        row["sides"][side] = {"median": median(figures), "rounds": figures}
    for side in [side for side in values if side != "ours" and "ours" in values]:
        pairs = zip(values["ours"], values[side])
        ratios = [theirs / ours if lower_is_better else ours / theirs for ours, theirs in pairs]
        row["times_better"][side] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
        row["times_better"][side]["target"] = (targets or {}).get(side)
    return row


def machine() -> dict:
    """What the figures hold for."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "accelerate")},
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load_average_before": os.getloadavg(),
    }
