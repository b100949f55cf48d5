"""Averages of the weights of any length, chosen after the run (EDM2, Karras et al. 2024, arXiv:2312.02696, Section 3 and Appendix C).

    average(t) = (gamma + 1) / t^(gamma + 1) * integral_0^t tau^gamma theta(tau) d tau      a power function of time is its profile
               = beta average(t - 1) + (1 - beta) theta(t),   beta = (1 - 1 / t)^(gamma + 1)
    sigma_rel  = ((gamma + 1) / (gamma + 3))^(1/2) / (gamma + 2)                            the profile's width as a part of the run

A run keeps two or more such averages and snapshots of them. The weighted sum of snapshots whose profile is nearest to the one that is
asked for, in least squares, is then the average of that length: of profiles between those of the snapshots a good copy.

`trainer` steps and saves; `reconstruct` needs the run's folder alone. A snapshot is a safetensors file of float16, as in the paper. Under
FSDP2 the averages are sharded like the weights; files hold full tensors, so all ranks must save together.

    OUTPUT_DIR/averages/step-N-sigma_rel-S.safetensors
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from .config import MAX_SIGMA_REL

logger = logging.getLogger(__name__)

Numbers = float | np.ndarray
NUM_SNAPSHOTS = 32  # over a run: from averages of 0.05 and 0.1, those of 0.04 to 0.2 are rebuilt within 1%


def power_of(sigma_rel: float) -> float:
    """The exponent gamma whose profile has the width sigma_rel; it is 0 for the plain mean."""
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise ValueError(f"sigma_rel={sigma_rel} must be above 0 and below 12^(-1/2) = 0.289, e.g. 0.1.")
    return np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2]).real.max()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that FSDP2 shards, in full: a collective, which all ranks must call. Any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distributed_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A full tensor, on the device and sharded as another one is."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


class ExponentialAverage(EMAModel):
    """diffusers' EMAModel, whose state dict holds full tensors also under FSDP2."""

    shadow_params: list[torch.Tensor]

    def state_dict(self) -> dict:
        """EMAModel's, with full tensors; a collective under FSDP2."""
        return super().state_dict() | {"shadow_params": [full_tensor(tensor) for tensor in self.shadow_params]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take full tensors, on the devices and sharded as the averages are now."""
        before = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [distributed_like(*pair) for pair in zip(self.shadow_params, before)]

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Copy the averages into the parameters of a model that is not sharded."""
        for parameter, average in zip(parameters, self.shadow_params, strict=True):
            parameter.copy_(full_tensor(average))


class PowerAverages:
    """Averages of `parameters` over all steps, on their devices: one for each of `sigma_rels`."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], sigma_rels: list[float]):
        self.parameters, self.num_steps = parameters, 0
        self.gammas = {sigma_rel: power_of(sigma_rel) for sigma_rel in sigma_rels}
        self.averages = {
            sigma_rel: [parameter.detach().clone() for parameter in parameters.values()] for sigma_rel in sigma_rels
        }

    @torch.no_grad()
    def step(self) -> None:
        """Update the averages after an optimizer step."""
        self.num_steps += 1
        for sigma_rel, average in self.averages.items():
            beta = (1 - 1 / self.num_steps) ** (self.gammas[sigma_rel] + 1)
            torch._foreach_lerp_(average, list(self.parameters.values()), 1 - beta)

    def save(self, folder: Path, is_main_process: bool = True) -> None:
        """Write a snapshot of each average into the run's folder."""
        (folder / "averages").mkdir(exist_ok=True)
        for sigma_rel, average in self.state_dict()["averages"].items():
            if not is_main_process:
                continue
            path = folder / "averages" / f"step-{self.num_steps}-sigma_rel-{sigma_rel}.safetensors"
            tensors = {name: tensor.half().contiguous() for name, tensor in zip(self.parameters, average)}
            partial = path.with_name(f".{path.name}")
            save_file(tensors, partial, metadata={"step": str(self.num_steps), "sigma_rel": str(sigma_rel)})
            partial.replace(path)

    def drop_later(self, folder: Path) -> None:
        """Remove the snapshots of later steps: the resumed run takes those steps again."""
        for path in folder.glob("averages/step-*.safetensors"):
            if _step_and_power(path)[0] > self.num_steps:
                path.unlink()

    def state_dict(self) -> dict:
        """The number of steps and the averages by width, as full tensors; a collective under FSDP2."""
        averages = {
            sigma_rel: [full_tensor(tensor) for tensor in average] for sigma_rel, average in self.averages.items()
        }
        return {"num_steps": self.num_steps, "averages": averages}

    def load_state_dict(self, state: dict) -> None:
        """Take a state of averages of the same widths."""
        self.num_steps = state["num_steps"]
        for sigma_rel, average in self.averages.items():
            self.averages[sigma_rel] = [distributed_like(*pair) for pair in zip(state["averages"][sigma_rel], average)]


def reconstruct(folder: str | Path, sigma_rel: float, step: int | None = None) -> dict[str, torch.Tensor]:
    """The average of width `sigma_rel` at `step` (the last snapshot's by default), from the snapshots up to there: float32, by name.

    Raises ValueError where the run kept no snapshots, and warns where their profiles cannot make up the one that is asked for.
    """
    snapshots = {path: _step_and_power(path) for path in sorted(Path(folder).glob("averages/step-*.safetensors"))}
    step = max((t for t, _ in snapshots.values()), default=0) if step is None else step
    taken = sorted({t for t, _ in snapshots.values()})
    if not taken or not taken[0] <= step <= taken[-1]:
        steps = f"from step {taken[0]} to {taken[-1]}" if taken else "none: train with ema_sigma_rels to keep them"
        raise ValueError(f"step={step}: {folder} has snapshots {steps}.")
    snapshots = {path: (t, gamma) for path, (t, gamma) in snapshots.items() if t <= step}
    t, gamma = np.array(list(snapshots.values())).T
    weights, error = least_squares(t, gamma, step, power_of(sigma_rel))
    if error > 0.05:
        logger.warning(f"sigma_rel={sigma_rel} at step {step}: the profile misses the one asked for by {error:.0%}.")
    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(snapshots, weights):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                total[name] = total.get(name, 0) + weight * file.get_tensor(name).double()
    return {name: tensor.float() for name, tensor in total.items()}


def least_squares(t: np.ndarray, gamma: np.ndarray, t_target: float, gamma_target: float) -> tuple[np.ndarray, float]:
    """Weights (N,) of N profiles (t, gamma) for the sum nearest to the target's, and the norm of what it misses over the target's."""
    products = inner_product(t[:, None], gamma[:, None], t, gamma)
    with_target = inner_product(t, gamma, t_target, gamma_target)
    weights = np.linalg.lstsq(products, with_target, rcond=None)[0]
    square = inner_product(t_target, gamma_target, t_target, gamma_target)
    missed = square - 2 * weights @ with_target + weights @ products @ weights
    return weights, float(np.sqrt(max(missed / square, 0)))


def inner_product(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> Any:
    """Integral of the product of two profiles, which overlap up to the earlier time: of the shape that the arguments broadcast to."""
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_later = np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (earlier / later) ** gamma_later / later


def _step_and_power(path: Path) -> tuple[int, float]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), power_of(float(metadata["sigma_rel"]))
