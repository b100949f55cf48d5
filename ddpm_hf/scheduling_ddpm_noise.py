"""All the Gaussian mathematics of DDPM (Ho et al. 2020, arXiv:2006.11239), as a `diffusers` scheduler.

    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I)                        Eq. 2    alpha_t = 1 - beta_t
    q(x_t | x_0)     = N(sqrt(abar_t) x_0, (1 - abar_t) I)                       Eq. 4    abar_t = prod_{s<=t} alpha_s
    q(x_{t-1} | x_t, x_0) = N(mu~_t, beta~_t I)                                  Eq. 6
        mu~_t    = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0 + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t
        beta~_t  = (1 - abar_{t-1}) / (1 - abar_t) beta_t                        Eq. 7
    p(x_{t-1} | x_t) = q(x_{t-1} | x_t, x_0 = the model's x_0) with variance sigma_t^2       Eq. 11, Algorithm 2
    sigma_t^2 = exp(f log beta_t + (1 - f) log beta~_t), f = (v + 1) / 2         Improved DDPM (2102.09672) Eq. 15, v a model's output
    DDIM (2010.02502) Eq. 12, 16: x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - sigma^2) noise + sigma z
    DPM-Solver++(2M) (2211.01095) Algorithm 2: the same with x_0 + h_t / (2 h_{t+1}) (x_0 - x_0 of the step before), h_t its log-SNR's gain

The index: code t in 0..T-1 is the paper's t + 1, and abar before 0 is 1. On a chain with fewer steps (`set_timesteps`)
"t - 1" is the next timestep of the chain, and alpha_t = abar_t / abar_{t-1}.

This file imports torch, numpy and diffusers only: it is copied into every saved model. Each coefficient is a table over t, built once per
chain: in float32 with the arithmetic of `diffusers.DDPMScheduler`, so that `step` gives the same bits, and in float64 for float64 inputs.
"""

import math
import os
import shutil
from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from operator import gt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

logger = logging.get_logger("diffusers.ddpm_hf")  # `diffusers.logging.set_verbosity` holds for it

Timestep = int | torch.Tensor  # one t for the whole batch (int or 0-dim), or one per sample (B,)

Coefficients = namedtuple(  # what the equations multiply by: tables over t, each (T,)
    "Coefficients",
    "sqrt_abar sqrt_one_minus_abar one_minus_abar sqrt_abar_prev one_minus_abar_prev x_0_weight x_t_weight"
    " small large log_small log_large std std_ddim trend",
)

ALPHA_BAR = {  # abar as a function of time in [0, 1]
    "squaredcos_cap_v2": lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2,  # Improved DDPM Eq. 17
    "laplace": lambda u: math.sqrt((snr := math.exp(_laplace_log_snr(u))) / (1 + snr)),  # arXiv:2407.03297
}


def _laplace_log_snr(u: float) -> float:
    return -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)


def make_betas(schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """The noise schedule beta_0 .. beta_{T-1}: (T,) float32."""
    linspace = partial(torch.linspace, steps=num_train_timesteps, dtype=torch.float32, device="cpu")
    if schedule == "linear":
        return linspace(beta_start, beta_end)
    if schedule == "scaled_linear":
        return linspace(beta_start**0.5, beta_end**0.5) ** 2
    if schedule == "sigmoid":
        return torch.sigmoid(linspace(-6, 6)) * (beta_end - beta_start) + beta_start
    alpha_bar, T = ALPHA_BAR[schedule], num_train_timesteps
    betas = [min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)]
    return torch.tensor(betas, dtype=torch.float32, device="cpu")


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(abar) so that abar_{T-1} = 0 (arXiv:2305.08891, Algorithm 1). betas: (T,) -> (T,)."""
    sqrt_abar = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = sqrt_abar[0].clone(), sqrt_abar[-1].clone()
    sqrt_abar = (sqrt_abar - last) * (first / (first - last))
    abar = sqrt_abar**2
    return 1 - torch.cat([abar[0:1], abar[1:] / abar[:-1]])


class DDPMNoiseScheduler(SchedulerMixin, ConfigMixin):
    """The forward process q, its posterior, and the reverse step p; same config and calls as `diffusers.DDPMScheduler`.

    Args:
        num_train_timesteps: T, the length of the chain that the model is trained on; at most 100,000.
        beta_start, beta_end: ends of the linear, scaled_linear and sigmoid schedules.
        beta_schedule: linear, scaled_linear, squaredcos_cap_v2, sigmoid or laplace.
        trained_betas: the T betas themselves, instead of a named schedule. All coefficients are made from `betas`: a later change of
            `alphas_cumprod` has no effect.
        variance_type: sigma_t^2 of the reverse step: fixed_small(_log) is beta~_t, fixed_large(_log) is beta_t, learned is the model's
            second half of channels read as log sigma_t^2, learned_range as v in [-1, 1] between log beta~_t and log beta_t. None, which
            other samplers save, is fixed_small.
        clip_sample, clip_sample_range: clamp the predicted x_0 to +-clip_sample_range.
        prediction_type: what the model outputs: epsilon (the noise), sample (x_0) or v_prediction (arXiv:2202.00512).
        thresholding, dynamic_thresholding_ratio, sample_max_value: Imagen's dynamic thresholding of x_0 (arXiv:2205.11487).
        timestep_spacing, steps_offset: how fewer steps are chosen: leading, linspace or trailing (arXiv:2305.08891, Table 2).
        rescale_betas_zero_snr: make the last step pure noise.

    Raises:
        ValueError: an unknown name, a wrong type, a number out of bounds, or betas that give no noise at t = 0.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    @torch.inference_mode(False)  # what is made here may meet a backward pass later
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        variance_type: str | None = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):
        check_config(self.config)
        named = (beta_schedule, int(num_train_timesteps), beta_start, beta_end)
        betas = make_betas(*named) if trained_betas is None else torch.from_numpy(np.array(trained_betas, np.float32))
        self.betas = rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        if not self.alphas[0] < 1:
            raise ValueError(f"betas[0]={self.betas[0]} adds no noise: raise beta_start or trained_betas[0].")
        self.init_noise_sigma = 1.0
        self.variance_type = variance_type if variance_type in VARIANCE_TYPES else "fixed_small"
        self.custom_timesteps = False
        self.num_inference_steps: int | None = None
        self._set_chain(range(len(betas) - 1, -1, -1))
        if variance_type not in (*VARIANCE_TYPES, None):
            logger.warning(f"variance_type={variance_type!r} is unknown and read as fixed_small, as diffusers does.")
        if self.alphas_cumprod[-1] > 0.05:
            logger.warning(
                f"num_train_timesteps={num_train_timesteps} leaves alphas_cumprod at {self.alphas_cumprod[-1]:.3f}: the chain does not"
                " end in noise, but sampling starts from it. Raise beta_end in proportion, or use beta_schedule='squaredcos_cap_v2'."
            )

    # ------------------------------------------------------------------ the chain and its tables

    @property
    def timesteps(self) -> torch.Tensor:
        """The chain: int64, strictly decreasing. Assigning changes the chain, as in `scheduler.timesteps = scheduler.timesteps[k:]`."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: torch.Tensor) -> None:
        self._set_chain(timesteps)

    @torch.inference_mode(False)
    def _set_chain(
        self, timesteps: torch.Tensor | Sequence | np.ndarray, device: str | torch.device | None = None
    ) -> None:
        """Map each of `timesteps` to the next, and the last to -1. This reads the values, so it waits for the accelerator that has them."""
        given = timesteps if isinstance(timesteps, torch.Tensor) else torch.from_numpy(np.array(timesteps))
        chain, T = given.long().tolist(), len(self)
        if given.ndim != 1 or not chain or chain != given.tolist() or not all(map(gt, [T, *chain], [*chain, -1])):
            why = f"must be integers in descending order within 0 .. {T - 1} (steps_offset={self.config.steps_offset})"
            raise ValueError(f"timesteps={_ends(given.tolist())} {why}.")
        self._next = dict(zip(chain, [*chain[1:], -1]))
        self._timesteps = torch.from_numpy(np.array(chain)).to(
            given.device if device is None else device, non_blocking=True
        )
        key = self._timesteps.device, torch.float32
        self._tables = {key: self._make_tables(*key)}

    @torch.inference_mode(False)
    def _make_tables(self, device: torch.device, dtype: torch.dtype) -> Coefficients:
        """Every coefficient for every t; rows off the chain hold the full chain's values."""
        abar, chain = torch.cumprod(1 - self.betas.to("cpu", dtype), dim=0), list(self._next)
        before, after = np.minimum(np.arange(len(abar)) + 1, len(abar) - 1), np.arange(len(abar)) - 1
        before[chain], after[chain] = chain[:1] + chain[:-1], list(self._next.values())
        last = torch.from_numpy(after < 0)
        abar_prev = torch.where(last, 1, abar[after])
        alpha = abar / abar_prev
        beta = 1 - alpha
        small = (1 - abar_prev) / (1 - abar) * beta  # Eq. 7
        # The last step's beta~ is 0. Where its logarithm is needed the one before stands in, and fixed_large takes that too, as in the
        # paper's code; the upper end of learned_range stays beta.
        stand_in = small[chain[-2]] if len(chain) > 1 else beta
        small_clipped = torch.where(last, stand_in, small).clamp(min=1e-20)
        large_clipped = torch.where(last, small_clipped, beta) if "fixed" in self.variance_type else beta
        small = small.clamp(min=1e-20)
        std = (beta if "large" in self.variance_type else small) ** 0.5
        if self.variance_type == "fixed_small_log":
            std = torch.exp(0.5 * torch.log(small))
        log_snr = torch.log(abar / (1 - abar))
        trend = (log_snr[after] - log_snr) / (log_snr - log_snr[before]) / 2  # h_t / (2 h_{t+1})
        tables = Coefficients(
            sqrt_abar=abar**0.5,
            sqrt_one_minus_abar=(1 - abar) ** 0.5,
            one_minus_abar=1 - abar,
            sqrt_abar_prev=abar_prev**0.5,
            one_minus_abar_prev=1 - abar_prev,
            x_0_weight=(abar_prev**0.5 * beta) / (1 - abar),  # Eq. 7
            x_t_weight=alpha**0.5 * (1 - abar_prev) / (1 - abar),  # Eq. 7
            small=small,
            large=beta,
            log_small=torch.log(small_clipped),
            log_large=torch.log(large_clipped),
            std=torch.where(
                last, 0, std if "fixed" in self.variance_type else torch.ones_like(std)
            ),  # of the added noise
            std_ddim=torch.where(last, 0, small**0.5),  # times eta
            trend=torch.where(~last & trend.isfinite(), trend, 0),  # 0, the first order, at both ends of the chain
        )
        return Coefficients(*torch.stack(tables).to(device, non_blocking=True).unbind())  # one transfer

    def _at(self, t: Timestep, like: torch.Tensor) -> tuple[Coefficients, Timestep]:
        """The tables in `like`'s compute dtype, and t, shaped so that table[t] multiplies `like` (B, ...).

        For an int the tables stay on the CPU: a 0-dim tensor there multiplies one on any device, without a launch.
        """
        device = torch.device("cpu")
        if isinstance(t, torch.Tensor):
            device = like.device
            t = t.to(device, non_blocking=True).reshape(-1, *[1] * (like.ndim - 1))
        key = device, torch.float64 if like.dtype == torch.float64 else torch.float32
        if key not in self._tables:
            self._tables[key] = self._make_tables(*key)
        return self._tables[key], t

    def _on_chain(self, timestep: Timestep) -> Timestep:
        """The timestep as an int of the chain, where reading it waits for no accelerator; else the tensor."""
        if isinstance(timestep, torch.Tensor):
            if timestep.ndim > 0 or timestep.device.type != "cpu" or torch.compiler.is_compiling():
                return timestep
            t = timestep.item()
        else:
            t = timestep
        if t not in self._next:
            raise IndexError(f"timestep={t} is not one of the chain's timesteps {_ends(list(self._next))}.")
        return int(t)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Choose the chain to sample on: a number of evenly spaced steps, or any strictly decreasing list of timesteps."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(f"num_inference_steps={num_inference_steps}, timesteps={timesteps}: pass one of the two.")
        self._set_chain(self._spaced(num_inference_steps) if timesteps is None else timesteps, device)
        self.custom_timesteps, self.num_inference_steps = timesteps is not None, num_inference_steps

    def _spaced(self, n: int) -> np.ndarray:
        T, spacing = len(self), self.config.timestep_spacing
        if not (isinstance(n, Integral) and 1 <= n <= T):
            raise ValueError(f"num_inference_steps={n!r:.100} must be an integer from 1 to num_train_timesteps={T}.")
        if spacing == "linspace":
            return np.linspace(0, T - 1, n).round()[::-1]
        if spacing == "trailing":
            return np.round(np.arange(T, 0, -T / n))[:n] - 1
        ratio, offset = float(T // n), self.config.steps_offset
        if n * ratio < 0.9 * T:  # whole steps would start far below T, where x_t is not noise yet
            ratio = (T - offset) / n
        return (np.arange(n) * ratio).round()[::-1] + offset

    def previous_timestep(self, timestep: Timestep) -> Timestep:
        """The chain's next timestep after `timestep` on the way down; -1 after the last. Reads the values of a tensor."""
        if not isinstance(timestep, torch.Tensor):
            return self._next[self._on_chain(timestep)]
        previous = [self.previous_timestep(t) for t in timestep.flatten().tolist()]
        return timestep.new_tensor(previous).reshape(timestep.shape)

    # ------------------------------------------------------------------ q, the forward process

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Timestep) -> torch.Tensor:
        """Draw x_t from q(x_t | x_0), Eq. 4. (B, ...) and t () or (B,) -> (B, ...), in the dtype of x_0; computed in float32 or better."""
        x_0, noise = _float(original_samples), _float(noise)
        c, t = self._at(timesteps, x_0)
        return (c.sqrt_abar[t] * x_0 + c.sqrt_one_minus_abar[t] * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Timestep) -> torch.Tensor:
        """Velocity v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (arXiv:2202.00512, Section 4); shapes and dtypes as in `add_noise`."""
        x_0, noise = _float(sample), _float(noise)
        c, t = self._at(timesteps, x_0)
        return (c.sqrt_abar[t] * noise - c.sqrt_one_minus_abar[t] * x_0).to(sample.dtype)

    def get_target(self, x_0: torch.Tensor, noise: torch.Tensor, timesteps: Timestep) -> torch.Tensor:
        """What the model should output for (x_0, noise, t): (B, ...), the noise, x_0 or v, as `prediction_type` says."""
        if self.config.prediction_type == "v_prediction":
            return self.get_velocity(x_0, noise, timesteps)
        return noise if self.config.prediction_type == "epsilon" else x_0

    def q_mean_variance(self, x_0: torch.Tensor, timestep: Timestep) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, ...) and variance (broadcastable) of q(x_t | x_0), Eq. 4."""
        c, t = self._at(timestep, x_0)
        return c.sqrt_abar[t] * _float(x_0), c.one_minus_abar[t]

    def posterior(
        self, x_0: torch.Tensor, x_t: torch.Tensor, timestep: Timestep, earlier: Timestep | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, ...) and variance (broadcastable) of q(x_s | x_t, x_0), Eq. 6 and 7; s is t - 1, or any `earlier` timestep.

        A variance of 0, that of t = 0, is clamped to 1e-20.
        """
        c, t = self._at(timestep, x_0)
        if earlier is None:
            return c.x_0_weight[t] * _float(x_0) + c.x_t_weight[t] * _float(x_t), c.small[t]
        _, s = self._at(earlier, x_0)
        alpha, ratio = (c.sqrt_abar[t] / c.sqrt_abar[s]) ** 2, c.one_minus_abar[s] / c.one_minus_abar[t]
        x_0_weight = c.sqrt_abar[s] * (1 - alpha) / c.one_minus_abar[t]
        return x_0_weight * _float(x_0) + alpha**0.5 * ratio * _float(x_t), (1 - alpha) * ratio

    # ------------------------------------------------------------------ p, the model's reverse process

    def _split(self, model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prediction, and the channels that parametrise the variance where it is learned."""
        prediction, v = _float(model_output), None
        if "learned" in self.variance_type and model_output.shape[1] == 2 * sample.shape[1]:
            prediction, v = prediction.chunk(2, dim=1)
        if prediction.shape[1:] != sample.shape[1:]:
            shapes = f"{tuple(model_output.shape)} does not fit sample {tuple(sample.shape)}"
            raise ValueError(f"model_output: {shapes} with variance_type={self.variance_type!r}.")
        return prediction, v

    def predict_x_0(self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor) -> torch.Tensor:
        """x_0 (B, C, ...) that the model's output stands for at x_t = sample; not clipped. Eq. 15 for epsilon."""
        output, x_t = self._split(model_output, sample)[0], _float(sample)
        c, t = self._at(timestep, x_t)
        if self.config.prediction_type == "epsilon":
            return (x_t - c.sqrt_one_minus_abar[t] * output) / c.sqrt_abar[t]
        if self.config.prediction_type == "sample":
            return output
        return c.sqrt_abar[t] * x_t - c.sqrt_one_minus_abar[t] * output

    def predict_noise(self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor) -> torch.Tensor:
        """The noise (B, C, ...) that the model's output stands for at x_t = sample."""
        output, x_t = self._split(model_output, sample)[0], _float(sample)
        c, t = self._at(timestep, x_t)
        if self.config.prediction_type == "epsilon":
            return output
        if self.config.prediction_type == "sample":
            return (x_t - c.sqrt_abar[t] * output) / c.sqrt_one_minus_abar[t]
        return c.sqrt_abar[t] * output + c.sqrt_one_minus_abar[t] * x_t

    def _clip(self, x_0: torch.Tensor) -> torch.Tensor:
        if self.config.thresholding:
            return self._threshold_sample(x_0)
        limit = self.config.clip_sample_range
        return x_0.clamp(-limit, limit) if self.config.clip_sample else x_0

    def _threshold_sample(self, sample: torch.Tensor) -> torch.Tensor:
        """Clamp each x_0 to its own s-quantile, at least 1, and divide by it (arXiv:2205.11487, Section 2.3)."""
        x_0 = _float(sample).flatten(1)
        s = torch.quantile(x_0.abs(), self.config.dynamic_thresholding_ratio, dim=1, keepdim=True)
        s = s.clamp(min=1, max=self.config.sample_max_value)
        return (x_0.clamp(-s, s) / s).reshape(sample.shape).to(sample.dtype)

    def _log_variance(self, model_output: torch.Tensor, timestep: Timestep, x_t: torch.Tensor) -> torch.Tensor:
        """Logarithm of sigma_t^2 of p."""
        c, t = self._at(timestep, x_t)
        if "fixed" in self.variance_type:
            return c.log_large[t] if "large" in self.variance_type else c.log_small[t]
        _, v = self._split(model_output, x_t)
        if v is None:
            needs = f"needs twice the channels of {tuple(x_t.shape)}"
            raise ValueError(f"model_output: variance_type={self.variance_type!r} {needs}.")
        if self.variance_type == "learned":
            return v
        frac = (v + 1) / 2
        return frac * c.log_large[t] + (1 - frac) * c.log_small[t]  # Improved DDPM Eq. 15

    def _get_variance(
        self, t: Timestep, predicted_variance: torch.Tensor | None = None, variance_type: str | None = None
    ) -> torch.Tensor:
        """sigma_t^2, as stock promises by this name (stock gives a logarithm or a deviation for some types)."""
        variance_type, v = variance_type or self.variance_type, predicted_variance
        if variance_type == "learned":
            return torch.exp(v)
        c, t = self._at(t, self.alphas_cumprod if v is None else v)
        if variance_type == "learned_range":
            return c.large[t] ** ((v + 1) / 2) * c.small[t] ** ((1 - v) / 2)  # Improved DDPM Eq. 15
        return c.large[t] if "large" in variance_type else c.small[t]

    def p_mean_variance(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The Gaussian p(x_{t-1} | x_t): its mean (B, ...), log variance (broadcastable), and the x_0 behind it, clipped as configured."""
        x_t = _float(sample)
        x_0 = self._clip(self.predict_x_0(model_output, timestep, x_t))
        mean, _ = self.posterior(x_0, x_t, timestep)  # Eq. 11
        return mean, self._log_variance(model_output, timestep, x_t), x_0

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        previous_original_sample: torch.Tensor | None = None,
        variance_noise: torch.Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Draw x_{t-1} from p(x_{t-1} | x_t): a line of Algorithm 2, or with `eta` a step of DDIM.

        Args:
            model_output: (B, C, ...), or (B, 2C, ...) with a learned variance.
            timestep: int, () or (B,): the chain's timestep of all samples or of each. An int, or a () on the CPU, off the chain is an
                IndexError. Others are not checked, which would wait for the device: off the chain they take a step of the full one. On an
                accelerator an int is fastest: its coefficients need no launch, and the last step draws no noise.
            sample: x_t, (B, C, ...) in any float dtype; computed in float32 or better and returned in its own dtype.
            generator: for the noise; a list has one for each sample.
            return_dict: whether to return a `DDPMSchedulerOutput` instead of a tuple of its two fields.
            eta: None is Algorithm 2; 0 is DDIM, deterministic; 1 is DDPM with variance beta~, whatever the model says of it.
            use_clipped_model_output: with `eta`, take the noise from the clipped x_0, as the posterior does, and not from the output.
            previous_original_sample: `pred_original_sample` (B, C, ...) of the step before, which makes this one of second order:
                DPM-Solver++(2M) with eta=0, its SDE with eta=1 (arXiv:2211.01095).
            variance_noise: the noise itself, like sample, in place of generator's.

        Raises:
            ValueError: both generator and variance_noise are given, or a model_output that does not fit sample.
        """
        if generator is not None and variance_noise is not None:
            raise ValueError("Pass one of generator and variance_noise, and not both.")
        x_t = _float(sample)
        c, t = self._at(self._on_chain(timestep), x_t)
        x_0 = guess = self._clip(self.predict_x_0(model_output, t, x_t))
        if previous_original_sample is not None:
            x_0 = guess + c.trend[t] * (guess - _float(previous_original_sample))  # DPM-Solver++(2M)
        if eta is None:
            x_prev, std = self._ancestral(c, t, model_output, x_0, x_t)
        else:
            if use_clipped_model_output or previous_original_sample is not None:
                noise = (x_t - c.sqrt_abar[t] * x_0) / c.sqrt_one_minus_abar[t]  # Eq. 4 solved for the noise
            else:
                noise = self.predict_noise(model_output, t, x_t)
            x_prev, std = self._ddim(c, t, x_0, noise, eta)
        if eta != 0 and not (isinstance(t, int) and self._next[t] < 0):  # the last step adds no noise
            x_prev = x_prev + std * (randn_like(x_t, generator) if variance_noise is None else _float(variance_noise))
        x_prev, guess = x_prev.to(sample.dtype), guess.to(sample.dtype)
        return DDPMSchedulerOutput(prev_sample=x_prev, pred_original_sample=guess) if return_dict else (x_prev, guess)

    def _ancestral(
        self, c: Coefficients, t: Timestep, model_output: torch.Tensor, x_0: torch.Tensor, x_t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of p(x_{t-1} | x_t), Algorithm 2."""
        mean = c.x_0_weight[t] * x_0 + c.x_t_weight[t] * x_t  # Eq. 7 and 11
        if "fixed" in self.variance_type:
            return mean, c.std[t]
        return mean, c.std[t] * torch.exp(0.5 * self._log_variance(model_output, t, x_t))

    def _ddim(
        self, c: Coefficients, t: Timestep, x_0: torch.Tensor, noise: torch.Tensor, eta: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of DDIM's step to x_{t-1}."""
        std = eta * c.std_ddim[t]  # DDIM Eq. 16
        noise_weight = (c.one_minus_abar_prev[t] - std**2).clamp(min=0) ** 0.5
        return c.sqrt_abar_prev[t] * x_0 + noise_weight * noise, std  # DDIM Eq. 12

    # ------------------------------------------------------------------ the rest of a diffusers scheduler

    def scale_model_input(self, sample: torch.Tensor, timestep: Timestep | None = None) -> torch.Tensor:
        """The model's input for x_t: x_t itself."""
        return sample

    def __len__(self) -> int:
        return len(self.betas)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write scheduler_config.json with this very file beside it, so that the folder loads where ddpm_hf is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        code = Path(save_directory) / Path(__file__).name
        if code.is_symlink():  # to this file, as in the repository's checkpoints
            code.unlink()
        shutil.copyfile(__file__, code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


def randn_like(x: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
    """Standard normals by diffusers' `randn_tensor`, of the shape, dtype and device of x (B, ...), which does not wait where the generator is on the CPU."""
    first = generator[0] if isinstance(generator, list) else generator
    device = x.device if first is None else first.device
    noise = randn_tensor(x.shape, generator=generator, device=device, dtype=x.dtype)
    return noise.to(x.device, non_blocking=True)


def _float(x: torch.Tensor) -> torch.Tensor:
    """At least float32: half precision would swallow the noise of the first timesteps."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _ends(chain: list) -> str:
    return f"{chain[:3]} .. {chain[-3:]}"


# ---------------------------------------------------------------------- what a config may hold

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
CHOICES = {
    "num_train_timesteps": range(1, 100_001),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
    "clip_sample": (True, False),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "thresholding": (True, False),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": range(100_001),
    "rescale_betas_zero_snr": (True, False),
}
LIMITS = dict.fromkeys(("beta_start", "beta_end", "clip_sample_range", "sample_max_value"), 1e6)
LIMITS["dynamic_thresholding_ratio"] = 1


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse an unknown name, a wrong type or a number out of bounds before anything is allocated."""
    for key, choices in CHOICES.items():
        if config[key] not in choices:
            raise ValueError(f"{key}={config[key]!r:.100}: choose from {choices}.")
    for key, limit in LIMITS.items():
        if not _is_number(config[key], limit):
            raise ValueError(f"{key}={config[key]!r:.100} must be a number from 0 to {limit:g}.")
    if not isinstance(config["variance_type"], str | None):
        raise ValueError(f"variance_type={config['variance_type']!r:.100}: choose from {VARIANCE_TYPES}.")
    betas = config["trained_betas"]
    is_list = isinstance(betas, list | tuple | np.ndarray) and len(betas) in CHOICES["num_train_timesteps"]
    if betas is not None and not (is_list and all(_is_number(beta, 1) for beta in betas)):
        raise ValueError(f"trained_betas={betas!r:.100} must be 1 to 100000 numbers from 0 to 1.")


def _is_number(value: Any, limit: float) -> bool:
    return isinstance(value, int | float | np.floating) and bool(0 <= value <= limit)
