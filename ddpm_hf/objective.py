"""Algorithm 1 of DDPM (Ho et al. 2020, arXiv:2006.11239): the loss of one batch.

    repeat:  x_0 ~ q(x_0);  t ~ Uniform({0..T-1});  noise ~ N(0, I)
             gradient step on || noise - noise_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, t) ||^2             Eq. 14
    and where the variance is learned (Improved DDPM, arXiv:2102.09672, Eq. 16)
             L_hybrid = L_simple + lambda L_vlb, in which the mean of L_vlb is held fixed

What is random about a sample is drawn from its own key, (seed, position in the run): so a run sees the same noise, timesteps and dropped
labels on any number of ranks, with any accumulation, and after a resume. `data` gives x_0 and positions; the scheduler does the
mathematics; `training` takes the gradient step. Everything but the model runs in float32, whatever the autocast dtype.
"""

from collections.abc import Callable

import torch
from diffusers.training_utils import compute_snr

from .keys import mixed_key

# lambda of Improved DDPM, Section 3.1: of the whole bound, T terms, in bits/dim as in the paper's code
VLB_WEIGHT = 0.001


def draw(
    x_0: torch.Tensor, positions: torch.Tensor, seed: int, num_train_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each sample: t int64 (B,), noise like x_0 (B, C, H, W), and u in [0, 1) (B,) to decide on its label.

    positions: int64 (B,) on the CPU, each sample's number in the whole run.
    """
    generator = torch.Generator(x_0.device)
    noise, uniform = torch.empty_like(x_0), x_0.new_empty(len(x_0), 2, dtype=torch.float64)
    for i, position in enumerate(positions.tolist()):
        generator.manual_seed(mixed_key(seed, position))
        uniform[i].uniform_(generator=generator)
        noise[i].normal_(generator=generator)
    t = (uniform[:, 0] * num_train_timesteps).long()
    return t, noise, uniform[:, 1]


def drop_labels(labels: torch.Tensor, uniform: torch.Tensor, probability: float, null_label: int) -> torch.Tensor:
    """Replace labels (B,) by the null label with the given probability (classifier-free guidance, arXiv:2207.12598, Algorithm 1)."""
    return torch.where(uniform < probability, null_label, labels)


def training_losses(
    model,
    scheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    snr_gamma: float = 0.0,
    bound_term: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """The loss of each sample, float32 (B,): Eq. 14 for what the scheduler's `prediction_type` asks of the model.

    Args:
        model: called as model(x_t, t[, class_labels], return_dict=False)[0] -> (B, C, H, W), or (B, 2C, H, W) with a learned variance.
        x_0: float32 (B, C, H, W) in [-1, 1]. t: int64 (B,). noise: like x_0. class_labels: int64 (B,) or None.
        snr_gamma: weigh by min(SNR, gamma), as a weight on the loss in x_0 (arXiv:2303.09556); 0 is the plain loss.
        bound_term: `likelihood.bound_term`, which makes the loss of a learned variance L_hybrid; without it the loss is L_simple.
    """
    x_t = scheduler.add_noise(x_0, noise, t)  # Eq. 4
    labels = () if class_labels is None else (class_labels,)
    output = model(x_t, t, *labels, return_dict=False)[0].float()
    prediction, *variance = output.split(x_0.shape[1], dim=1)
    losses = (prediction - scheduler.get_target(x_0, noise, t)).square().mean(dim=(1, 2, 3))
    if snr_gamma:
        losses = losses * _min_snr_weight(scheduler, t, snr_gamma)
    if variance and bound_term is not None:
        frozen = torch.cat([prediction.detach(), *variance], dim=1)
        losses = losses + VLB_WEIGHT * len(scheduler) * bound_term(scheduler, frozen, x_0, x_t, t).float()
    return losses


def _min_snr_weight(scheduler, t: torch.Tensor, gamma: float) -> torch.Tensor:
    snr = compute_snr(scheduler, t)
    weight = snr.clamp(max=gamma)  # of a loss in x_0; in noise it is smaller by SNR, in v by SNR + 1
    return weight / {"epsilon": snr, "sample": 1.0, "v_prediction": snr + 1}[scheduler.config.prediction_type]
