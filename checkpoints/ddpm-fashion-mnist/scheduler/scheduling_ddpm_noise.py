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

The index, once and for all: code t in 0..T-1 is the paper's t + 1, and abar before 0 is 1. On a chain with fewer steps (`set_timesteps`)
"t - 1" is the next timestep of the chain, and alpha_t = abar_t / abar_{t-1}.

The file stands alone (torch, numpy, diffusers): it is copied into every saved model. Each quantity is a table over t, built once per chain:
in float32 with the very arithmetic of `diffusers.DDPMScheduler`, so that `step` gives its bits, and in float64 for float64 inputs.
"""

import math
import shutil
from pathlib import Path

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

ALPHA_BAR = {  # abar as a function of time in [0, 1]
    "squaredcos_cap_v2": lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2,  # Improved DDPM Eq. 17
    "laplace": lambda u: math.sqrt((snr := math.exp(_laplace_log_snr(u))) / (1 + snr)),  # arXiv:2407.03297
}


def _laplace_log_snr(u: float) -> float:
    return -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)


def make_betas(schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """The noise schedule beta_0 .. beta_{T-1}: (T,) float32."""
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2
    if schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, num_train_timesteps)) * (beta_end - beta_start) + beta_start
    if schedule in ALPHA_BAR:
        alpha_bar, T = ALPHA_BAR[schedule], num_train_timesteps
        betas = [min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)]
        return torch.tensor(betas, dtype=torch.float32)
    known = ("linear", "scaled_linear", "sigmoid", *ALPHA_BAR)
    raise NotImplementedError(f"beta_schedule={schedule!r} is not one of {known}.")


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
        num_train_timesteps: T, the length of the chain that the model is trained on.
        beta_start, beta_end: ends of the linear, scaled_linear and sigmoid schedules.
        beta_schedule: linear, scaled_linear, squaredcos_cap_v2, sigmoid or laplace.
        trained_betas: the T betas themselves, instead of a named schedule. Coefficients are made of them once: what is written into
            `alphas_cumprod` later need not be followed.
        variance_type: sigma_t^2 of the reverse step: fixed_small(_log) is beta~_t, fixed_large(_log) is beta_t, learned is the model's
            second half of channels read as log sigma_t^2, learned_range as v in [-1, 1] between log beta~_t and log beta_t.
        clip_sample, clip_sample_range: clamp the predicted x_0 to +-clip_sample_range.
        prediction_type: what the model outputs: epsilon (the noise), sample (x_0) or v_prediction (arXiv:2202.00512).
        thresholding, dynamic_thresholding_ratio, sample_max_value: Imagen's dynamic thresholding of x_0 (arXiv:2205.11487).
        timestep_spacing, steps_offset: how fewer steps are chosen: leading, linspace or trailing (arXiv:2305.08891, Table 2).
        rescale_betas_zero_snr: make the last step pure noise.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        variance_type: str = "fixed_small",
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
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"prediction_type={prediction_type!r}: choose epsilon, sample or v_prediction.")
        named = (beta_schedule, num_train_timesteps, beta_start, beta_end)
        betas = make_betas(*named) if trained_betas is None else torch.tensor(trained_betas, dtype=torch.float32)
        self.betas = rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.init_noise_sigma = 1.0
        self.variance_type = variance_type
        self.custom_timesteps = False
        self.num_inference_steps: int | None = None
        self._set_chain(torch.arange(len(betas) - 1, -1, -1))
        if self.alphas_cumprod[-1] > 0.05:
            logger.warning(
                f"num_train_timesteps={num_train_timesteps} leaves alphas_cumprod at {self.alphas_cumprod[-1]:.3f}: the chain does not"
                " end in noise, but sampling starts from it. Raise beta_end in proportion, or use beta_schedule='squaredcos_cap_v2'."
            )

    # ------------------------------------------------------------------ the chain and its tables

    def _set_chain(self, timesteps: torch.Tensor, device: str | torch.device | None = None) -> None:
        """Make `timesteps` (strictly decreasing) the chain: remember who precedes whom and drop the old tables."""
        self.timesteps, self._last_two = timesteps.to(device), timesteps[-2:].tolist()
        self._chain = set(timesteps.tolist())
        self._previous = torch.full((len(self.betas),), -2)  # -2: not on the chain
        self._previous[timesteps] = torch.cat([timesteps[1:], torch.tensor([-1])])
        self._tables: dict[tuple[torch.device, torch.dtype], dict[str, torch.Tensor]] = {}
        self._tables_on(self.timesteps.device, torch.float32)

    def _tables_on(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        if (device, dtype) not in self._tables:
            self._tables[device, dtype] = {name: table.to(device) for name, table in self._make_tables(dtype).items()}
        return self._tables[device, dtype]

    def _make_tables(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Every coefficient for every t of the chain, each (T,); rows off the chain hold the full chain's values."""
        abar = torch.cumprod(1 - self.betas.double(), dim=0) if dtype == torch.float64 else self.alphas_cumprod
        previous = torch.where(self._previous == -2, torch.arange(len(abar)) - 1, self._previous)
        abar_prev = torch.cat([abar, abar.new_ones(1)])[previous]  # index -1 is the 1 at the end
        alpha = abar / abar_prev
        beta = 1 - alpha
        small = (1 - abar_prev) / (1 - abar) * beta  # Eq. 7
        # The last step's beta~ is 0. Where its logarithm is needed the one before stands in, and fixed_large takes that too, as in the
        # paper's code; the upper end of learned_range stays beta.
        stand_in = small[self._last_two[0]] if len(self._last_two) == 2 else beta
        small_clipped = torch.where(previous < 0, stand_in, small).clamp(min=1e-20)
        large_clipped = torch.where(previous < 0, small_clipped, beta) if "fixed" in self.variance_type else beta
        small = small.clamp(min=1e-20)
        std = (beta if "large" in self.variance_type else small) ** 0.5
        return {
            "sqrt_abar": abar**0.5,
            "sqrt_one_minus_abar": (1 - abar) ** 0.5,
            "one_minus_abar": 1 - abar,
            "x_0_coefficient": (abar_prev**0.5 * beta) / (1 - abar),  # Eq. 7
            "x_t_coefficient": alpha**0.5 * (1 - abar_prev) / (1 - abar),  # Eq. 7
            "small": small,
            "large": beta,
            "log_small_clipped": torch.log(small_clipped),
            "log_large_clipped": torch.log(large_clipped),
            "std": torch.exp(0.5 * torch.log(small)) if self.variance_type == "fixed_small_log" else std,
            "std_small": small**0.5,
            "sqrt_abar_prev": abar_prev**0.5,
            "one_minus_abar_prev": 1 - abar_prev,
            "trend": self._trend(abar, previous),
            "not_last": (previous >= 0).to(abar.dtype),
        }

    def _trend(self, abar: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """h_t / (2 h_{t+1}) of DPM-Solver++(2M) for every t, (T,); 0, the first order, at both ends of the chain."""
        chain = (self._previous != -2).nonzero().flatten()
        before = torch.arange(1, len(abar) + 1).clamp(max=len(abar) - 1)
        before[chain] = torch.cat([chain[1:], chain[-1:]])  # each t's step before; the first one's is itself
        log_snr = torch.log(abar / (1 - abar))
        trend = (log_snr[previous] - log_snr) / (log_snr - log_snr[before]) / 2
        return torch.where((previous >= 0) & trend.isfinite(), trend, 0)

    def _at(self, t: Timestep, like: torch.Tensor, *names: str) -> list[torch.Tensor]:
        """The named coefficients at t, in `like`'s compute dtype and device, shaped to multiply `like` (B, ...)."""
        tables = self._tables_on(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)
        if not isinstance(t, torch.Tensor):
            return [tables[name][t] for name in names]
        t, shape = t.to(like.device).reshape(-1), (-1,) + (1,) * (like.ndim - 1)
        return [tables[name][t].reshape(shape) for name in names]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Choose the chain to sample on: a number of evenly spaced steps, or any strictly decreasing list of timesteps."""
        if (num_inference_steps is None) == (timesteps is None):
            given = f"num_inference_steps={num_inference_steps}, timesteps={timesteps}"
            raise ValueError(f"Pass one of `num_inference_steps` and `timesteps`, and not both; got {given}.")
        T = len(self.betas)
        if timesteps is None:
            chain = self._spaced(num_inference_steps, T)
        else:
            chain = np.array(timesteps, dtype=np.int64)
            if (np.diff(chain) >= 0).any():
                raise ValueError(f"`timesteps` must be in descending order, got {list(timesteps)}.")
        if len(chain) == 0 or chain[0] >= T or chain[-1] < 0:
            why = f"must be a chain in 0 .. {T - 1} (steps_offset={self.config.steps_offset})"
            raise ValueError(f"timesteps={chain[:3].tolist()} .. {chain[-3:].tolist()} {why}.")
        self.custom_timesteps, self.num_inference_steps = timesteps is not None, num_inference_steps
        self._set_chain(torch.from_numpy(chain), device)

    def _spaced(self, n: int, T: int) -> np.ndarray:
        if not 1 <= n <= T:
            raise ValueError(f"num_inference_steps={n} must be at least 1 and at most num_train_timesteps={T}.")
        spacing = self.config.timestep_spacing
        if spacing == "linspace":
            return np.linspace(0, T - 1, n).round()[::-1].astype(np.int64)
        if spacing == "leading":
            ratio, offset = float(T // n), self.config.steps_offset
            if n * ratio < 0.9 * T:  # whole steps would start far below T, where x_t is not noise yet
                ratio = (T - offset) / n
            return (np.arange(n) * ratio).round()[::-1].astype(np.int64) + offset
        if spacing == "trailing":
            return np.round(np.arange(T, 0, -T / n)).astype(np.int64)[:n] - 1
        raise ValueError(f"timestep_spacing={spacing!r} is not one of 'linspace', 'leading' or 'trailing'.")

    def previous_timestep(self, timestep: Timestep) -> Timestep:
        """The chain's next timestep after `timestep` on the way down; -1 after the last."""
        if not (self.custom_timesteps or self.num_inference_steps):
            return timestep - 1
        previous = self._previous.to(timestep.device if isinstance(timestep, torch.Tensor) else "cpu")[timestep]
        if (previous == -2).any():
            raise IndexError(f"timestep={timestep} is not one of the chain's timesteps {self.timesteps.tolist()}.")
        return previous

    # ------------------------------------------------------------------ q, the forward process

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Timestep) -> torch.Tensor:
        """Draw x_t from q(x_t | x_0), Eq. 4. (B, ...) and t () or (B,) -> (B, ...), in the dtype of x_0; computed in float32 or better."""
        x_0, noise = _float(original_samples), _float(noise)
        signal, sigma = self._at(timesteps, x_0, "sqrt_abar", "sqrt_one_minus_abar")
        return (signal * x_0 + sigma * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Timestep) -> torch.Tensor:
        """v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (arXiv:2202.00512, Section 4); shapes and dtypes as in `add_noise`."""
        x_0, noise = _float(sample), _float(noise)
        signal, sigma = self._at(timesteps, x_0, "sqrt_abar", "sqrt_one_minus_abar")
        return (signal * noise - sigma * x_0).to(sample.dtype)

    def get_target(self, x_0: torch.Tensor, noise: torch.Tensor, timesteps: Timestep) -> torch.Tensor:
        """What the model should output for (x_0, noise, t): the noise, x_0 or v, as `prediction_type` says. (B, ...)"""
        if self.config.prediction_type == "v_prediction":
            return self.get_velocity(x_0, noise, timesteps)
        return noise if self.config.prediction_type == "epsilon" else x_0

    def q_mean_variance(self, x_0: torch.Tensor, timestep: Timestep) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, ...) and variance (broadcastable) of q(x_t | x_0), Eq. 4."""
        signal, variance = self._at(timestep, x_0, "sqrt_abar", "one_minus_abar")
        return signal * _float(x_0), variance

    def posterior(self, x_0: torch.Tensor, x_t: torch.Tensor, timestep: Timestep) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, ...) and variance (broadcastable) of q(x_{t-1} | x_t, x_0), Eq. 6 and 7; variance 0 is clamped to 1e-20."""
        a, b, variance = self._at(timestep, x_0, "x_0_coefficient", "x_t_coefficient", "small")
        return a * _float(x_0) + b * _float(x_t), variance

    # ------------------------------------------------------------------ p, the model's reverse process

    def _split(self, model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prediction, and the channels that parametrise the variance where it is learned."""
        model_output = _float(model_output)
        if self.variance_type in ("learned", "learned_range") and model_output.shape[1] == 2 * sample.shape[1]:
            prediction, v = model_output.chunk(2, dim=1)
            return prediction, v
        return model_output, None

    def predict_x_0(self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor) -> torch.Tensor:
        """x_0 (B, C, ...) that the model's output stands for at x_t = sample; not clipped. Eq. 15 for epsilon."""
        output, x_t = self._split(model_output, sample)[0], _float(sample)
        signal, sigma = self._at(timestep, x_t, "sqrt_abar", "sqrt_one_minus_abar")
        if self.config.prediction_type == "epsilon":
            return (x_t - sigma * output) / signal
        if self.config.prediction_type == "sample":
            return output
        return signal * x_t - sigma * output

    def predict_noise(self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor) -> torch.Tensor:
        """The noise (B, C, ...) that the model's output stands for at x_t = sample."""
        output, x_t = self._split(model_output, sample)[0], _float(sample)
        if self.config.prediction_type == "epsilon":
            return output
        signal, sigma = self._at(timestep, x_t, "sqrt_abar", "sqrt_one_minus_abar")
        if self.config.prediction_type == "sample":
            return (x_t - signal * output) / sigma
        return signal * output + sigma * x_t

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

    def _log_variance(self, t: Timestep, x_t: torch.Tensor, v: torch.Tensor | None) -> torch.Tensor:
        """log sigma_t^2 of p. v: the model's variance channels (B, C, ...), where they are learned."""
        log_small, log_large = self._at(t, x_t, "log_small_clipped", "log_large_clipped")
        if "fixed" in self.variance_type:
            return log_large if "large" in self.variance_type else log_small
        if v is None:
            raise ValueError(
                f"model_output: variance_type={self.variance_type!r} needs twice the channels of {tuple(x_t.shape)}."
            )
        if self.variance_type == "learned":
            return v
        frac = (v + 1) / 2
        return frac * log_large + (1 - frac) * log_small  # Improved DDPM Eq. 15

    def _get_variance(
        self, t: Timestep, predicted_variance: torch.Tensor | None = None, variance_type: str | None = None
    ) -> torch.Tensor:
        """sigma_t^2, as stock promises by this name (stock gives a logarithm or a deviation for some types)."""
        variance_type, v = variance_type or self.variance_type, predicted_variance
        if variance_type == "learned":
            return torch.exp(v)
        small, large = self._at(t, self.alphas_cumprod if v is None else v, "small", "large")
        if variance_type == "learned_range":
            return large ** ((v + 1) / 2) * small ** ((1 - v) / 2)  # Improved DDPM Eq. 15
        return large if "large" in variance_type else small

    def p_mean_variance(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The Gaussian p(x_{t-1} | x_t): its mean (B, ...), log variance (broadcastable), and the x_0 behind it, clipped as configured."""
        x_t = _float(sample)
        x_0 = self._clip(self.predict_x_0(model_output, timestep, x_t))
        mean, _ = self.posterior(x_0, x_t, timestep)  # Eq. 11
        return mean, self._log_variance(timestep, x_t, self._split(model_output, x_t)[1]), x_0

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
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Draw x_{t-1} from p(x_{t-1} | x_t): a line of Algorithm 2, or with `eta` a step of DDIM (0 is deterministic, 1 is DDPM with
        variance beta~, whatever the model says of it).

        Args:
            model_output: (B, C, ...), or (B, 2C, ...) with a learned variance.
            timestep: int, () or (B,): the chain's timestep of all samples or of each. An int, or a () on the CPU, off the chain is an
                IndexError. Others are not checked, which would wait for the device: off the chain they take a step of the full one.
            sample: x_t, (B, C, ...) in any float dtype; computed in float32 or better and returned in its own dtype.
            generator: for the noise; a list has one for each sample.
            use_clipped_model_output: with `eta`, take the noise from the clipped x_0, as the posterior does, and not from the output.
            previous_original_sample: `pred_original_sample` (B, C, ...) of the step before, which makes this one of second order:
                DPM-Solver++(2M) with eta=0, its SDE with eta=1 (arXiv:2211.01095).
        """
        x_t, timestep = _float(sample), _on_host(timestep)
        if isinstance(timestep, int) and timestep not in self._chain:
            raise IndexError(f"timestep={timestep} is not one of the chain's timesteps {self.timesteps.tolist()}.")
        x_0 = guess = self._clip(self.predict_x_0(model_output, timestep, x_t))
        if previous_original_sample is not None:
            (trend,) = self._at(timestep, x_t, "trend")
            x_0 = guess + trend * (guess - _float(previous_original_sample))
        if eta is None:
            x_prev, _ = self.posterior(x_0, x_t, timestep)  # Eq. 11
            if "fixed" in self.variance_type:
                (std,) = self._at(timestep, x_t, "std")
            else:
                std = torch.exp(0.5 * self._log_variance(timestep, x_t, self._split(model_output, x_t)[1]))
        else:
            signal, room, std = self._at(timestep, x_t, "sqrt_abar_prev", "one_minus_abar_prev", "std_small")
            noise = self.predict_noise(model_output, timestep, x_t)
            if use_clipped_model_output or previous_original_sample is not None:
                a, b = self._at(timestep, x_t, "sqrt_abar", "sqrt_one_minus_abar")
                noise = (x_t - a * x_0) / b  # Eq. 4 solved for the noise
            std = eta * std  # DDIM Eq. 16
            x_prev = signal * x_0 + (room - std**2).clamp(min=0) ** 0.5 * noise  # DDIM Eq. 12
        if eta != 0 and not (isinstance(timestep, int) and timestep == self._last_two[-1]):
            if isinstance(timestep, torch.Tensor):
                std = std * self._at(timestep, x_t, "not_last")[0]
            x_prev = x_prev + std * randn_tensor(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
        x_prev, guess = x_prev.to(sample.dtype), guess.to(sample.dtype)
        return DDPMSchedulerOutput(prev_sample=x_prev, pred_original_sample=guess) if return_dict else (x_prev, guess)

    # ------------------------------------------------------------------ the rest of a diffusers scheduler

    def scale_model_input(self, sample: torch.Tensor, timestep: Timestep | None = None) -> torch.Tensor:
        """The model's input for x_t: x_t itself."""
        return sample

    def __len__(self) -> int:
        return len(self.betas)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write scheduler_config.json with this very file beside it, so that the folder loads where ddpm_hf is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, Path(save_directory) / Path(__file__).name)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)


def _float(x: torch.Tensor) -> torch.Tensor:
    """At least float32: half precision would swallow the noise of the first timesteps."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _on_host(timestep: Timestep) -> Timestep:
    """t as an int, where reading it waits for no accelerator: plain indexing is faster, and the last step then draws no noise."""
    stays = isinstance(timestep, torch.Tensor) and (timestep.ndim > 0 or timestep.device.type != "cpu")
    return timestep if stays or torch.compiler.is_compiling() else int(timestep)
