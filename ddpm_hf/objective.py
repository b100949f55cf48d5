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
An objective may have more, as those of few steps in `distillation`:
    progress    the share of the run that is done, set before each step
    teacher     the `Teacher` that it learns from, or None
    auxiliary   a second network, which is trained as well;  AUXILIARY_RATE: its learning rate over that of the first
    student     a method that gives what a saved model has in place of the pipeline's parts, where it is to be sampled in another way
Everything but the network runs in float32, whatever the autocast dtype. `keys` draws t and noise; `training` takes the gradient step.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers.training_utils import compute_snr

from .distillation import STUDENTS, Consistency, Teacher
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


def make_objective(
    name: str | None,
    pipeline: DDPMImagePipeline,
    snr_gamma: float = 0.0,
    guidance: float | None = None,
    teacher: DDPMImagePipeline | None = None,
) -> Objective:
    """The objective of a run, by its name. None is hybrid where the variance is learned, and simple elsewhere.

    guidance, teacher: of an objective of few steps: the trained model that teaches, None is `pipeline` as it is now, and its guidance scale.

    Raises:
        ValueError: hybrid for a variance that is not learned, or a teacher that cannot teach this pipeline.
    """
    if name == "consistency" and guidance is None and teacher is None:
        return Consistency(pipeline)
    if name in STUDENTS:
        return STUDENTS[name](pipeline, Teacher(teacher or pipeline, pipeline, 1.0 if guidance is None else guidance))
    variance_type = pipeline.scheduler.variance_type
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
