"""The variational bound against Gaussian data, whose exact denoiser and expected bound are known in closed form."""

import math

import numpy as np
import pytest
import torch

from ddpm_hf.keys import keys_of, normal, outputs
from ddpm_hf.likelihood import Bound, discretized_log_likelihood, split_chain, variational_bound
from ddpm_hf.scheduling_ddpm_noise import DDPMNoiseScheduler

MEAN, STD = 0.1, 0.25  # of every pixel of the data
SHAPE = (1, 4, 4)
LEVELS = np.arange(256) / 127.5 - 1
BETAS = np.geomspace(1e-4, 0.6, 40).astype(np.float32).astype(np.float64)  # as the scheduler holds them
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)
VARIANCE_TYPES = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]


def make_scheduler(**config) -> DDPMNoiseScheduler:
    return DDPMNoiseScheduler(len(BETAS), trained_betas=BETAS.astype(np.float32), **({"clip_sample": False} | config))


def exact_x_0(x_t, t):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""
    abar = ALPHAS_CUMPROD[t]
    gain = abar**0.5 * STD**2 / (abar * STD**2 + 1 - abar)
    return MEAN + gain * (x_t - abar**0.5 * MEAN)


def variance_channels(variance_type: str, x_t):
    """What the model says about the variance: a function of x_t, so that a mix-up of pixels or samples would show."""
    return {"learned": -4 + 0.5 * x_t, "learned_range": 0.3 * x_t}.get(variance_type)


class ExactDenoiser:
    """Answers as a U-Net does, with the exact E[x_0 | x_t] in the wanted parametrisation."""

    def __init__(self, prediction_type="epsilon", variance_type="fixed_small"):
        self.prediction_type, self.variance_type = prediction_type, variance_type

    def __call__(self, x_t, timesteps, condition):
        abar = torch.from_numpy(ALPHAS_CUMPROD)[timesteps].view(-1, 1, 1, 1)
        x_0 = torch.stack([exact_x_0(x, int(t)) for x, t in zip(x_t, timesteps)])
        noise = (x_t - abar**0.5 * x_0) / (1 - abar) ** 0.5
        output = {"epsilon": noise, "sample": x_0, "v_prediction": abar**0.5 * noise - (1 - abar) ** 0.5 * x_0}
        output = output[self.prediction_type]
        extra = variance_channels(self.variance_type, x_t)
        return output if extra is None else torch.cat([output, extra], dim=1)


def gaussian_images(n: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(MEAN, STD, (n, *SHAPE))
    return torch.from_numpy(np.clip(np.round((values + 1) * 127.5), 0, 255) / 127.5 - 1)


def cdf(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5))


def reference_term(x_0, x_t, t, variance_type):
    """The term at t in nats for each element, from the betas alone, by the formulas as the paper prints them."""
    abar, abar_prev = ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[t - 1] if t else 1.0
    posterior_mean = (
        abar_prev**0.5 * BETAS[t] / (1 - abar) * x_0 + (1 - BETAS[t]) ** 0.5 * (1 - abar_prev) / (1 - abar) * x_t
    )
    model_mean = posterior_mean + abar_prev**0.5 * BETAS[t] / (1 - abar) * (exact_x_0(x_t, t) - x_0)
    small = (1 - abar_prev) / (1 - abar) * BETAS[t]
    stand_in = (1 - ALPHAS_CUMPROD[0]) / (1 - ALPHAS_CUMPROD[1]) * BETAS[1]  # for t = 0, where `small` is 0
    if variance_type == "learned":
        model_variance = np.exp(variance_channels(variance_type, x_t))
    elif variance_type == "learned_range":
        v = (variance_channels(variance_type, x_t) + 1) / 2
        model_variance = np.exp(v * np.log(BETAS[t]) + (1 - v) * np.log(small or stand_in))
    elif "large" in variance_type:
        model_variance = BETAS[t] if t else stand_in
    else:
        model_variance = small or stand_in
    if t:
        ratio = small / model_variance
        return 0.5 * (ratio - 1 - np.log(ratio) + (posterior_mean - model_mean) ** 2 / model_variance)
    std = model_variance**0.5
    upper = np.where(x_0 > 0.999, 1.0, cdf((x_0 + 1 / 255 - model_mean) / std))
    lower = np.where(x_0 < -0.999, 0.0, cdf((x_0 - 1 / 255 - model_mean) / std))
    return -np.log(upper - lower)


def reference_prior(x_0):
    abar = ALPHAS_CUMPROD[-1]
    return 0.5 * (1 - abar + abar * x_0**2 - 1 - np.log(1 - abar))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_every_term_equals_the_formula(prediction_type, variance_type):
    """Same x_0 and noise, each term computed independently: every parametrisation agrees to 1e-9 bits/dim."""
    x_0 = gaussian_images(3)
    scheduler = make_scheduler(prediction_type=prediction_type, variance_type=variance_type)
    model = ExactDenoiser(prediction_type, variance_type)
    bound = variational_bound(model, scheduler, x_0, torch.tensor([5, 0, 9]), seed=3)
    assert bound.timesteps.tolist() == [list(range(len(BETAS)))] * 3
    for row, index in enumerate([5, 0, 9]):
        for t in range(len(BETAS)):
            key = outputs(keys_of(3, np.array([index])), np.array([t]))
            noise = normal(torch.from_numpy(key), x_0[:1])[0].numpy()
            x_t = ALPHAS_CUMPROD[t] ** 0.5 * x_0[row].numpy() + (1 - ALPHAS_CUMPROD[t]) ** 0.5 * noise
            expected = reference_term(x_0[row].numpy(), x_t, t, variance_type).mean() / math.log(2)
            assert bound.terms[row, t].item() == pytest.approx(expected, abs=1e-9)
        assert bound.prior[row].item() == pytest.approx(
            reference_prior(x_0[row].numpy()).mean() / math.log(2), abs=1e-12
        )


def expected_bound() -> tuple[float, float]:
    """(bound, entropy) of the quantised Gaussian in bits/dim: sums over 256 levels, Gauss-Hermite over the noise."""
    edges = np.concatenate([[-np.inf], LEVELS[:-1] + 1 / 255, [np.inf]])
    mass = np.diff(cdf((edges - MEAN) / STD))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nodes, weights = nodes[abs(nodes) < 6], weights[abs(nodes) < 6]  # a difference of cdfs is 0 further out
    weights = weights / weights.sum()
    nats = (mass * reference_prior(LEVELS)).sum()
    for t in range(len(BETAS)):
        x_t = ALPHAS_CUMPROD[t] ** 0.5 * LEVELS[:, None] + (1 - ALPHAS_CUMPROD[t]) ** 0.5 * nodes
        nats += mass @ reference_term(LEVELS[:, None], x_t, t, "fixed_small") @ weights
    seen = mass[mass > 0]
    return nats / math.log(2), -(seen * np.log2(seen)).sum()


@pytest.mark.parametrize("num_timesteps", [None, 12])
def test_the_bound_of_gaussian_data_is_its_closed_form(num_timesteps):
    """Exact and stratified estimates meet the quadrature within their standard error, which is small."""
    expected, entropy = expected_bound()
    x_0 = gaussian_images(600)
    bound = variational_bound(ExactDenoiser(), make_scheduler(), x_0, torch.arange(600), num_timesteps=num_timesteps)
    summary = bound.summary()
    assert summary["standard_error"] < 0.05
    assert abs(summary["bits_per_dim"] - expected) < 3 * summary["standard_error"]
    assert entropy < expected  # it is an upper bound on -log p, and so on the entropy
    parts = summary["prior"] + summary["diffusion"] + summary["decoder"]
    assert summary["bits_per_dim"] == pytest.approx(parts, abs=1e-12)


def test_strata_estimate_the_exact_sum_without_bias():
    """The same images and seeds: the mean of the estimate approaches the mean of the exact sum."""
    x_0, indices, scheduler = gaussian_images(50), torch.arange(50), make_scheduler()
    difference = torch.cat(
        [
            variational_bound(ExactDenoiser(), scheduler, x_0, indices, num_timesteps=5, seed=seed).bits_per_dim
            - variational_bound(ExactDenoiser(), scheduler, x_0, indices, seed=seed).bits_per_dim
            for seed in range(6)
        ]
    )
    assert abs(difference.mean()) < 3 * difference.std() / len(difference) ** 0.5


@pytest.mark.parametrize("num_timesteps", [None, 7])
def test_a_value_does_not_depend_on_the_batch_it_is_in(num_timesteps):
    x_0, indices, scheduler = gaussian_images(6), torch.arange(6) + 100, make_scheduler()

    def bound(rows):
        return variational_bound(
            ExactDenoiser(), scheduler, x_0[rows], indices[rows], num_timesteps=num_timesteps, seed=1
        )

    whole, parts = bound(slice(0, 6)), Bound.concatenate([bound(slice(0, 1)), bound(slice(1, 4)), bound(slice(4, 6))])
    assert torch.equal(whole.timesteps, parts.timesteps)
    assert torch.allclose(whole.terms, parts.terms, rtol=0, atol=1e-12)
    assert torch.allclose(whole.bits_per_dim, parts.bits_per_dim, rtol=0, atol=1e-12)


def test_a_shorter_chain_is_bounded_as_it_stands():
    """After set_timesteps the bound is that of the shorter chain: fewer terms, and looser for the exact denoiser."""
    x_0, indices = gaussian_images(200), torch.arange(200)
    scheduler = make_scheduler(timestep_spacing="linspace")
    full = variational_bound(ExactDenoiser(), scheduler, x_0, indices)
    scheduler.set_timesteps(10)
    short = variational_bound(ExactDenoiser(), scheduler, x_0, indices)
    assert short.timesteps[0].tolist() == scheduler.timesteps.flip(0).tolist()
    assert short.bits_per_dim.mean() > full.bits_per_dim.mean()


def test_clipping_follows_the_scheduler():
    """A model that overshoots is clipped by clip_sample, as in the paper, and pays for it otherwise."""

    class Overshoots(ExactDenoiser):
        def __call__(self, x_t, timesteps, condition):
            return torch.full_like(x_t, 3.0)

    x_0, indices = torch.ones(2, *SHAPE, dtype=torch.float64), torch.arange(2)
    clipped = variational_bound(Overshoots(), make_scheduler(prediction_type="sample", clip_sample=True), x_0, indices)
    free = variational_bound(Overshoots(), make_scheduler(prediction_type="sample"), x_0, indices)
    assert clipped.terms[:, 1:].abs().max() < 1e-9 and free.terms[:, 1].min() > 10


def test_the_bins_of_the_decoder_share_out_all_mass():
    """256 bins sum to 1 for any Gaussian; far in the tail a bin keeps its logarithm (a difference of cdfs is 0)."""
    levels = torch.from_numpy(LEVELS)
    for mean, std in [(0.0, 0.3), (0.9, 0.05), (-1.7, 0.02), (4.0, 2.0)]:
        log_mass = discretized_log_likelihood(
            levels, torch.tensor(mean).double(), 2 * torch.tensor(std).double().log()
        )
        assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-6)
        assert torch.isfinite(log_mass).all()
    far = discretized_log_likelihood(levels[[0]], levels[[-1]], torch.tensor([1e-4], dtype=torch.float64).log())
    # log Phi(-z) = -z^2 / 2 - log(z sqrt(2 pi)) up to 1 / z^2
    z = (2 - 1 / 255) / 0.01
    assert far.item() == pytest.approx(-(z**2) / 2 - math.log(z * (2 * math.pi) ** 0.5), abs=1e-3)


@pytest.mark.parametrize(("length", "num_timesteps"), [(1000, 50), (1000, 2), (1000, 999), (7, 7), (2, 2), (1, 1)])
def test_strata_cover_the_chain_once_and_keep_the_decoder_apart(length, num_timesteps):
    strata = split_chain(length, num_timesteps)
    assert [position for stratum in strata for position in stratum] == list(range(length))
    assert len(strata) == num_timesteps and list(strata[0]) == [0]
    assert split_chain(length) == [range(i, i + 1) for i in range(length)]


def test_class_labels_reach_the_model():
    seen = []

    class Conditional(ExactDenoiser):
        def __call__(self, x_t, timesteps, condition):
            seen.append(condition["class_labels"].tolist())
            return super().__call__(x_t, timesteps, condition)

    variational_bound(
        Conditional(), make_scheduler(), gaussian_images(2), torch.arange(2), {"class_labels": torch.tensor([4, 2])}, 3
    )
    assert seen == [[4, 2]] * 3


@pytest.mark.parametrize(
    ("x_0", "options", "message"),
    [
        (torch.zeros(1, *SHAPE) + 0.0001, {}, "8-bit images scaled to"),
        (torch.full((1, *SHAPE), 3.0), {}, "8-bit images scaled to"),
        (torch.full((1, *SHAPE), torch.nan), {}, "8-bit images scaled to"),
        (torch.ones(1, *SHAPE), {"num_timesteps": 41}, r"num_timesteps=41: choose 2 .* to 40"),
        (torch.ones(1, *SHAPE), {"num_timesteps": 1}, "num_timesteps=1: choose 2"),
    ],
)
def test_refusals(x_0, options, message):
    with pytest.raises(ValueError, match=message):
        variational_bound(ExactDenoiser(), make_scheduler(), x_0, torch.arange(1), **options)


def test_channels_that_do_not_fit_the_variance_type_are_refused():
    with pytest.raises(ValueError, match="variance_type='learned_range' with images of 1 needs 2"):
        variational_bound(
            ExactDenoiser(), make_scheduler(variance_type="learned_range"), gaussian_images(1), torch.arange(1)
        )
