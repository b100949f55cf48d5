"""Algorithm 1 of DDPM (Ho et al. 2020, arXiv:2006.11239): the loss of one batch.

    repeat:  x_0 ~ q(x_0);  t ~ Uniform({0..T-1});  noise ~ N(0, I)
             gradient step on || noise - noise_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, t) ||^2             Eq. 14

An objective is a function (denoise, scheduler, x_0, t, noise, condition) -> losses:
    denoise     denoise(x_t, t, condition) -> the network's output, (B, C, H, W), or (B, 2C, H, W) with a learned variance
    scheduler   a `DDPMNoiseScheduler`, which does the mathematics
    x_0         float32 (B, C, H, W) in [-1, 1];  noise: like x_0;  t: int64 (B,)
    condition   keyword tensors of the network, batch first
    losses      float32 (B,)
Everything but the network runs in float32, whatever the autocast dtype. `keys` draws t and noise; `training` takes the gradient step.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers.training_utils import compute_snr

from .likelihood import bound_term

Objective = Callable[..., torch.Tensor]

# lambda of Improved DDPM, Section 3.1: of the whole bound, T terms, in bits/dim as in the paper's code
VLB_WEIGHT = 0.001


def simple(denoise, scheduler, x_0, t, noise, condition, *, snr_gamma: float = 0.0) -> torch.Tensor:
    """L_simple, Eq. 14, for what the scheduler's `prediction_type` asks of the network.

    snr_gamma: weigh by min(SNR, gamma), as a weight on the loss in x_0 (arXiv:2303.09556); 0 is the plain loss.
    """
    output = denoise(scheduler.add_noise(x_0, noise, t), t, condition)  # Eq. 4
    return _simple(output, scheduler, x_0, t, noise, snr_gamma)


def hybrid(denoise, scheduler, x_0, t, noise, condition, *, snr_gamma: float = 0.0) -> torch.Tensor:
    """L_hybrid = L_simple + lambda L_vlb of a learned variance, in which the mean of L_vlb is held fixed (arXiv:2102.09672, Eq. 16)."""
    x_t = scheduler.add_noise(x_0, noise, t)
    output = denoise(x_t, t, condition)
    prediction, variance = output.split(x_0.shape[1], dim=1)
    frozen = torch.cat([prediction.detach(), variance], dim=1)
    bound = VLB_WEIGHT * len(scheduler) * bound_term(scheduler, frozen, x_0, x_t, t).float()
    return _simple(output, scheduler, x_0, t, noise, snr_gamma) + bound


OBJECTIVES: dict[str, Objective] = {"simple": simple, "hybrid": hybrid}


def make_objective(name: str | None, scheduler, snr_gamma: float = 0.0) -> Objective:
    """The objective of a run. None is hybrid where the scheduler's variance is learned, and simple elsewhere."""
    if name is None:
        name = "hybrid" if scheduler.config.variance_type.startswith("learned") else "simple"
    return partial(OBJECTIVES[name], snr_gamma=snr_gamma)


def drop_condition(given: dict, null: dict, dropped: torch.Tensor) -> dict:
    """Replace the condition by its null where `dropped`, bool (B,) (classifier-free guidance, arXiv:2207.12598, Algorithm 1)."""
    return {
        name: torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), null[name], value)
        for name, value in given.items()
    }


def _simple(output: torch.Tensor, scheduler, x_0, t, noise, snr_gamma: float) -> torch.Tensor:
    prediction = output[:, : x_0.shape[1]]
    losses = (prediction - scheduler.get_target(x_0, noise, t)).square().mean(dim=(1, 2, 3))
    return losses * _min_snr_weight(scheduler, t, snr_gamma) if snr_gamma else losses


def _min_snr_weight(scheduler, t: torch.Tensor, gamma: float) -> torch.Tensor:
    snr = compute_snr(scheduler, t)
    weight = snr.clamp(max=gamma)  # of a loss in x_0; in noise it is smaller by SNR, in v by SNR + 1
    return weight / {"epsilon": snr, "sample": 1.0, "v_prediction": snr + 1}[scheduler.config.prediction_type]
