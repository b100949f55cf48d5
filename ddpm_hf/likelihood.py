"""Bits/dim: the variational bound of DDPM (Ho et al. 2020, arXiv:2006.11239), term by term.

    -log p(x_0) <= L_T + sum_{t>1} L_{t-1} + L_0                             Eq. 5
    L_T     = KL(q(x_T | x_0) || N(0, I))                                    the prior
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))                  one for each step
    L_0     = -log of the mass that p(x_0 | x_1) has in the bin of x_0       Eq. 13: x_0 +- 1/255, open at -1 and 1

The expectation over q(x_t | x_0) is one draw for each image and t. It is keyed by (seed, image index, t), so a value
depends neither on the batch nor on the number of ranks. The sum over t is exact, or estimated from fewer timesteps:
the chain is cut into strata, each image draws one t from each, and L_0, by far the largest term, is its own stratum.

Neighbours: images in, from `data`; every Gaussian comes from the scheduler, whose chain (`scheduler.timesteps`) is the
one that is bounded; `evaluation` spreads batches over ranks and reports. Terms are in float64 and in bits per
dimension, whatever the dtype of the model. Where the paper's code floors the mass of a bin at 1e-12, this file stays
exact.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from .keys import draw_positions, keys_of, normal, outputs
from .scheduling_ddpm_noise import DDPMNoiseScheduler

# (x_t, t, condition, network=None) -> the network's output, as `DDPMImagePipeline.denoise`
Denoise = Callable[..., torch.Tensor]


@dataclass
class Bound:
    """The bound of N images, in bits per dimension (float64). Timesteps ascend along S; S is the chain if exact.

    Attributes:
        prior: L_T, (N,).
        terms: the term at each evaluated timestep, (N, S); column 0 is the decoder's.
        timesteps: where it was evaluated, int64 (N, S).
        weights: how many timesteps each column stands for, (S,).
    """

    prior: torch.Tensor
    terms: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def concatenate(cls, bounds: list["Bound"]) -> "Bound":
        """One Bound for all images of several batches."""
        names = ("prior", "terms", "timesteps")
        prior, terms, timesteps = (torch.cat([getattr(bound, name) for bound in bounds]) for name in names)
        return cls(prior, terms, timesteps, bounds[0].weights)

    @property
    def bits_per_dim(self) -> torch.Tensor:
        """The whole bound of each image, (N,)."""
        return self.prior + self.terms @ self.weights

    def summary(self) -> dict[str, float | list[float]]:
        """Means over images. `standard_error` covers all that was drawn: images, noise, timesteps (NaN for one image).

        bits_per_dim = prior + diffusion + decoder, the last two the sum of `weights` times `per_timestep`, the mean term of a column;
        `timesteps` are the mean t of a column.
        """
        total, terms = self.bits_per_dim, self.terms.mean(dim=0)
        return {
            "bits_per_dim": total.mean().item(),
            "standard_error": (total.std() / len(total) ** 0.5).item() if len(total) > 1 else math.nan,
            "prior": self.prior.mean().item(),
            "diffusion": (terms[1:] @ self.weights[1:]).item(),
            "decoder": terms[0].item(),
            "timesteps": self.timesteps.double().mean(dim=0).tolist(),
            "per_timestep": terms.tolist(),
            "weights": self.weights.tolist(),
        }


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    scheduler: DDPMNoiseScheduler,
    x_0: torch.Tensor,
    indices: torch.Tensor,
    condition: dict[str, torch.Tensor] | None = None,
    num_timesteps: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Bound:
    """The bound of one batch under a network and the chain of `scheduler`.

    Args:
        denoise: as `DDPMImagePipeline.denoise`; put the network in eval mode first.
        scheduler: clipping of x_0 (as in the paper) and the variance of p are as configured.
        x_0: 8-bit images in [-1, 1], float (B, C, H, W). Their values are checked where they are: on the CPU that waits for no accelerator.
        indices: each image's number in its data set, int64 (B,) on the CPU: with `seed` the key of its noise.
        condition: keyword tensors of the network, batch first, as `DDPMImagePipeline.encode` makes them.
        num_timesteps: how many timesteps are evaluated for each image; None is all of them, the exact sum.
        seed: of noise and timesteps.
        device: the model's, where the result is; None is that of x_0.

    Raises:
        ValueError: x_0 is not 8-bit images in [-1, 1], num_timesteps does not fit the chain, or the model's channels
            do not fit the variance type.
    """
    levels = (x_0.double() + 1) * 127.5
    if not ((levels - levels.round()).abs().max() < 1e-3 and levels.min() > -0.5 and levels.max() < 255.5):
        raise ValueError(
            "x_0 must hold 8-bit images scaled to [-1, 1] (k / 127.5 - 1); bits/dim of others has no meaning. Got"
            f" values from {x_0.min():.4f} to {x_0.max():.4f}, on the 256 levels or between them."
        )
    x_0 = ((levels.round() / 127.5) - 1).to(device, non_blocking=True)
    chain = scheduler.timesteps.flip(0).cpu()  # ascending: position 0 is the decoder's
    strata = split_chain(len(chain), num_timesteps)
    keys = keys_of(seed, indices.numpy())
    timesteps = chain[torch.from_numpy(draw_positions(strata, keys))]
    terms = []
    for column in timesteps.T:
        host = torch.stack([torch.from_numpy(outputs(keys, column.numpy())), column])
        noise_keys, t = host.to(x_0.device, non_blocking=True)
        noise = normal(noise_keys, x_0)
        x_t = scheduler.add_noise(x_0, noise, t)
        model_output = denoise(x_t, t, condition or {})
        terms.append(bound_term(scheduler, model_output, x_0, x_t, t))
    return Bound(
        prior=prior_term(scheduler, x_0),
        terms=torch.stack(terms, dim=1),
        timesteps=timesteps.to(x_0.device, non_blocking=True),
        weights=torch.tensor([len(stratum) for stratum in strata]).to(x_0, non_blocking=True),
    )


def split_chain(length: int, num_timesteps: int | None = None) -> list[range]:
    """Cut positions 0..length-1 into `num_timesteps` (None: `length`) strata; position 0, the decoder's, is the first.

    The others grow geometrically where they can hold more than one: terms fall about as 1 / t, so does their spread.
    """
    num_timesteps = length if num_timesteps is None else num_timesteps
    if not min(2, length) <= num_timesteps <= length:
        raise ValueError(
            f"num_timesteps={num_timesteps}: choose {min(2, length)} (the decoder and one more) to {length} (exact)."
        )
    edges = [0, 1]
    for i in range(1, num_timesteps):
        edges.append(max(edges[-1] + 1, round(length ** (i / (num_timesteps - 1)))))
    return [range(start, stop) for start, stop in pairwise(edges)]


def bound_term(
    scheduler: DDPMNoiseScheduler,
    model_output: torch.Tensor,
    x_0: torch.Tensor,
    x_t: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """L_{t-1}, or L_0 at the chain's last timestep, of each image: float64 (B,) bits/dim, differentiable in `model_output`.

    x_0, x_t: (B, C, H, W); model_output: the same, or (B, 2C, H, W) where the variance is learned; timesteps: int64 (B,), on the chain.
    """
    model_output, x_0, x_t = model_output.double(), x_0.double(), x_t.double()
    channels = x_0.shape[1] * (2 if scheduler.variance_type.startswith("learned") else 1)
    if model_output.shape[1] != channels:
        raise ValueError(
            f"The model gives {model_output.shape[1]} channels, but variance_type={scheduler.variance_type!r}"
            f" with images of {x_0.shape[1]} needs {channels}."
        )
    mean_p, log_variance_p, _ = scheduler.p_mean_variance(model_output, timesteps, x_t)
    mean_q, variance_q = scheduler.posterior(x_0, x_t, timesteps)
    kl = normal_kl(mean_q, variance_q.log(), mean_p, log_variance_p)
    decoder = -discretized_log_likelihood(x_0, mean_p, log_variance_p)
    is_last = (timesteps == scheduler.timesteps[-1].to(timesteps.device, non_blocking=True)).view(-1, 1, 1, 1)
    return _bits_per_dim(torch.where(is_last, decoder, kl))


def prior_term(scheduler: DDPMNoiseScheduler, x_0: torch.Tensor) -> torch.Tensor:
    """L_T of each image: (B,) bits per dimension; 0 for a chain that ends in noise."""
    mean, variance = scheduler.q_mean_variance(x_0, scheduler.timesteps[0].to(x_0.device, non_blocking=True))
    return _bits_per_dim(normal_kl(mean, variance.log(), torch.zeros_like(mean), torch.zeros_like(variance)))


def normal_kl(
    mean_q: torch.Tensor, log_variance_q: torch.Tensor, mean_p: torch.Tensor, log_variance_p: torch.Tensor
) -> torch.Tensor:
    """KL(q || p) between Gaussians with diagonal covariance, in nats for each element (broadcast)."""
    squares = (log_variance_q - log_variance_p).exp() + (mean_q - mean_p) ** 2 * (-log_variance_p).exp()
    return 0.5 * (squares - 1 + log_variance_p - log_variance_q)


def discretized_log_likelihood(x_0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mass that N(mean, exp(log_variance)) has in the bin of each x_0, in nats, float64 (Eq. 13).

    The bins are x_0 +- 1/255; the outermost reach to infinity.
    """
    inverse_std = (-0.5 * log_variance).exp()
    lower = torch.where(x_0 < -0.999, -torch.inf, (x_0 - 1 / 255 - mean) * inverse_std)
    upper = torch.where(x_0 > 0.999, torch.inf, (x_0 + 1 / 255 - mean) * inverse_std)
    # Above the mean both cdfs round to 1, below it never to 0: reflect the bin there and subtract in logarithms.
    above = lower + upper > 0
    lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(log_lower - log_upper))


def _bits_per_dim(nats: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) nats -> (B,) bits per dimension."""
    return nats.flatten(1).mean(dim=1) / math.log(2)
