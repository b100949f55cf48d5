"""Algorithm 1 of DDPM (Ho et al. 2020, arXiv:2006.11239): the loss of one batch.

    repeat:  x_0 ~ q(x_0);  t ~ Uniform({0..T-1});  noise ~ N(0, I)
             gradient step on || noise - noise_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, t) ||^2             Eq. 14

An objective is a function (denoise, scheduler, x_0, t, noise, condition) -> losses:
    denoise     denoise(x_t, t, condition) -> the network's output, (B, C, H, W), or (B, 2C, H, W) with a learned variance;
                with network=TEACHER another network's, under the same autocast
    scheduler   a `DDPMNoiseScheduler`, which does the mathematics
    x_0         float32 (B, C, H, W) in [-1, 1];  noise: like x_0;  t: int64 (B,)
    condition   keyword tensors of the network, batch first
    losses      float32 (B,)
One that changes over the run has an attribute `progress`, the share of the run that is done, set before each step; one whose network is to
be sampled in another way has a method `student`.
Everything but the network runs in float32, whatever the autocast dtype. `keys` draws t and noise; `training` takes the gradient step.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import LCMScheduler
from diffusers.training_utils import compute_snr

from .likelihood import Denoise, bound_term
from .pipeline_ddpm_image import Condition, DDPMImagePipeline
from .scheduling_ddpm_noise import DDPMNoiseScheduler

Objective = Callable[..., torch.Tensor]

# lambda of Improved DDPM, Section 3.1: of the whole bound, T terms, in bits/dim as in the paper's code
VLB_WEIGHT = 0.001


def simple(
    denoise: Denoise,
    scheduler: DDPMNoiseScheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    condition: Condition,
    *,
    snr_gamma: float = 0.0,
) -> torch.Tensor:
    """L_simple, Eq. 14, for what the scheduler's `prediction_type` asks of the network.

    snr_gamma: weigh by min(SNR, gamma), as a weight on the loss in x_0 (arXiv:2303.09556); 0 is the plain loss.
    """
    output = denoise(scheduler.add_noise(x_0, noise, t), t, condition)  # Eq. 4
    return _simple(output, scheduler, x_0, t, noise, snr_gamma)


def hybrid(
    denoise: Denoise,
    scheduler: DDPMNoiseScheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    condition: Condition,
    *,
    snr_gamma: float = 0.0,
) -> torch.Tensor:
    """L_hybrid = L_simple + lambda L_vlb of a learned variance, in which the mean of L_vlb is held fixed (arXiv:2102.09672, Eq. 16)."""
    x_t = scheduler.add_noise(x_0, noise, t)
    output = denoise(x_t, t, condition)
    prediction, variance = output.split(x_0.shape[1], dim=1)
    frozen = torch.cat([prediction.detach(), variance], dim=1)
    bound = VLB_WEIGHT * len(scheduler) * bound_term(scheduler, frozen, x_0, x_t, t).float()
    return _simple(output, scheduler, x_0, t, noise, snr_gamma) + bound


class Consistency:
    """Consistency tuning and distillation (Song et al. 2023, arXiv:2303.01469; ECT, arXiv:2406.14548): x_0 in few steps.

        f(x_t, t) = f(x_r, r),  r < t on the same path;   loss = |f(x_t, t) - stopgrad f(x_r, r)| / (kappa_t - kappa_r)

    f is the network's x_0, kappa = sqrt(1 - abar) / sqrt(abar) the noise over the signal. r comes nearer to t as the run goes on
    (ECT Eq. 15): kappa_r = kappa_t (1 - n / q), n = 1 + 8 sigmoid(-kappa_t), q = 8, 16, 32, 64. Where kappa_r is below ANCHOR the target
    is x_0 itself: without this end the constant function is a solution.

    Args:
        pipeline: the trained model; its weights as they are now are the teacher's.
        guidance: the path follows the teacher's x_0 under this guidance scale (distillation), so that the student needs none;
            None is the straight line from x_0 to its noise (tuning), with no teacher.

    Raises:
        ValueError: guidance for a model without a condition.
    """

    ANCHOR, LEAST_GAP = 0.15, 0.2

    def __init__(self, pipeline: DDPMImagePipeline, guidance: float | None = None):
        if guidance is not None and not pipeline.takes:
            raise ValueError(f"distill_guidance={guidance}: the model has no condition to be guided by.")
        self.pipeline, self.guidance, self.progress = pipeline, guidance, 0.0
        self.teacher = None if guidance is None else copy.deepcopy(pipeline.unet).eval().requires_grad_(False)
        abar = pipeline.scheduler.alphas_cumprod.double()
        self.kappa = ((1 - abar) / abar).sqrt()
        uniform = (torch.arange(len(abar), dtype=torch.float64) + 0.5) / len(abar)
        wanted = torch.distributions.Normal(0.5, 2.0).icdf(uniform).exp()  # kappa_t is log-normal
        self.t_of = torch.searchsorted(self.kappa, wanted).clamp(1, len(abar) - 1)

    def __call__(
        self,
        denoise: Denoise,
        scheduler: DDPMNoiseScheduler,
        x_0: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor,
        condition: Condition,
    ) -> torch.Tensor:
        """Losses (B,), arguments as this file's docstring has them; t is drawn anew, log-normal in kappa, from the t that is given."""
        kappa, t_of = (table.to(t.device, non_blocking=True) for table in (self.kappa, self.t_of))
        t = t_of[t]
        q = 8 * 2 ** int(4 * self.progress)
        wanted = kappa[t] * (1 - (1 + 8 * torch.sigmoid(-kappa[t])) / q)
        r = torch.minimum((torch.searchsorted(kappa, wanted, right=True) - 1).clamp(min=0), t - 1)
        x_t = scheduler.add_noise(x_0, noise, t)
        with torch.no_grad(), torch.random.fork_rng(_cuda(x_0)):  # the same dropout on both sides
            x_r = scheduler.add_noise(x_0, noise, r)
            if self.teacher is not None:
                guided = self._guided(denoise, scheduler, x_t, t, condition)
                x_r = scheduler.add_noise(guided, self._noise(scheduler, x_t, guided, t), r)  # a DDIM step, Eq. 12
            target = scheduler.predict_x_0(denoise(x_r, r, condition), r, x_r).clamp(-1, 1)
            target = torch.where((kappa[r] < self.ANCHOR).view(-1, 1, 1, 1), x_0, target)
        student = scheduler.predict_x_0(denoise(x_t, t, condition), t, x_t)
        distance = ((student - target).square().mean(dim=(1, 2, 3)) + 1e-8).sqrt()
        return distance / (kappa[t] - kappa[r]).clamp(min=self.LEAST_GAP).float()

    def _guided(
        self,
        denoise: Denoise,
        scheduler: DDPMNoiseScheduler,
        x_t: torch.Tensor,
        t: torch.Tensor,
        condition: Condition,
    ) -> torch.Tensor:
        """The teacher's x_0 under guidance."""
        teacher = self.teacher.to(x_t.device)  # it was copied before the run placed its network
        given, null = (
            scheduler.predict_x_0(denoise(x_t, t, words, network=teacher), t, x_t)
            for words in (condition, self.pipeline.null(condition))
        )
        return (null + self.guidance * (given - null)).clamp(-1, 1)

    @staticmethod
    def _noise(scheduler: DDPMNoiseScheduler, x_t: torch.Tensor, x_0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Eq. 4 solved for the noise."""
        mean, variance = scheduler.q_mean_variance(x_0, t)
        return (x_t - mean) / variance.sqrt()

    def student(self, pipeline: DDPMImagePipeline) -> dict[str, Any]:
        """What a saved student has in place of the trained pipeline's: LCM's rule (arXiv:2310.04378), x_s = a_s x_0 + s_s z, in four steps."""
        config = {name: value for name, value in pipeline.scheduler.config.items() if name != "variance_type"}
        return {
            "scheduler": LCMScheduler.from_config(config),  # which has no variance
            "sampling": {"num_inference_steps": 4, "guidance_scale": 1.0},
        }


def make_objective(
    name: str | None, pipeline: DDPMImagePipeline, snr_gamma: float = 0.0, guidance: float | None = None
) -> Objective:
    """The objective of a run, by its name. None is hybrid where the variance is learned, and simple elsewhere.

    Raises:
        ValueError: hybrid for a variance that is not learned, or guidance for a model without a condition.
    """
    if name == "consistency":
        return Consistency(pipeline, guidance)
    variance_type = pipeline.scheduler.config.variance_type
    is_learned = variance_type.startswith("learned")
    if name is None:
        name = "hybrid" if is_learned else "simple"
    if name == "hybrid" and not is_learned:
        raise ValueError(
            f"objective='hybrid' trains a learned variance; this model's variance_type is {variance_type!r}."
        )
    return partial({"simple": simple, "hybrid": hybrid}[name], snr_gamma=snr_gamma)


def drop_condition(given: Condition, null: Condition, uniform: torch.Tensor, rate: float) -> Condition:
    """Replace the condition by its null where uniform, (B,) in [0, 1), is below `rate`.

    For classifier-free guidance (arXiv:2207.12598, Algorithm 1). Of a condition of two parts the first, the second and both are dropped a third
    of these times each (arXiv:2211.09800, Section 3.2.1).
    """
    subset = 1 + (uniform / rate * (2 ** len(given) - 1)).long()  # its bits say which parts
    dropped = {name: (uniform < rate) & (subset >> i & 1).bool() for i, name in enumerate(given)}
    return {
        name: torch.where(
            dropped[name].view(-1, *[1] * (value.ndim - 1)).to(value.device, non_blocking=True), null[name], value
        )
        for name, value in given.items()
    }


def _cuda(x: torch.Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []


def _simple(
    output: torch.Tensor,
    scheduler: DDPMNoiseScheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    snr_gamma: float,
) -> torch.Tensor:
    prediction = output[:, : x_0.shape[1]]
    losses = (prediction - scheduler.get_target(x_0, noise, t)).square().mean(dim=(1, 2, 3))
    return losses * _min_snr_weight(scheduler, t, snr_gamma) if snr_gamma else losses


def _min_snr_weight(scheduler: DDPMNoiseScheduler, t: torch.Tensor, gamma: float) -> torch.Tensor:
    snr = compute_snr(scheduler, t)
    weight = snr.clamp(max=gamma)  # of a loss in x_0; in noise it is smaller by SNR, in v by SNR + 1
    return weight / {"epsilon": snr, "sample": 1.0, "v_prediction": snr + 1}[scheduler.config.prediction_type]
