"""The scheduler against the paper: the posterior, the round trips, and Gaussian data sampled with their exact denoiser."""

import itertools

import pytest
import torch

from ddpm_hf import DDPMNoiseScheduler

PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def test_an_earlier_state_is_of_the_posterior():
    """One level earlier it is Eq. 6 and 7; from any level it has the marginal of Eq. 4."""
    scheduler = DDPMNoiseScheduler()
    x_0, x_t = torch.full((100_000, 1, 1, 1), 0.5), torch.full((100_000, 1, 1, 1), -0.3)
    t = torch.full((100_000,), 500)
    torch.manual_seed(0)

    def drawn(s: torch.Tensor) -> torch.Tensor:
        mean, variance = scheduler.posterior(x_0, x_t, t, s)
        return mean + variance.sqrt() * torch.randn_like(x_t)

    x_s = drawn(t - 1)
    mean, variance = scheduler.posterior(x_0, x_t, t)
    assert torch.allclose(x_s.mean(), mean.mean(), atol=3e-3) and abs(x_s.var() / variance.mean() - 1) < 0.02
    x_t = scheduler.add_noise(x_0, torch.randn_like(x_0), t)
    for s in (0, 200, 499):
        x_s = drawn(torch.full_like(t, s))
        abar = scheduler.alphas_cumprod[s]
        assert abs(x_s.mean() - 0.5 * abar.sqrt()) < 0.02 and abs(x_s.var() / (1 - abar) - 1) < 0.02


def test_learned_range_interpolates_between_the_bounds():
    """v = 1 is beta, v = -1 is beta~, v = 0 their geometric mean (arXiv:2102.09672, Eq. 15)."""
    ours = DDPMNoiseScheduler(variance_type="learned_range")
    x_t, output = randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1)
    for t in (999, 400, 1):
        _, variance = ours.posterior(x_t, x_t, t)
        beta = 1 - ours.alphas_cumprod[t] / ours.alphas_cumprod[t - 1]
        for v, expected in ((1.0, beta), (-1.0, variance), (0.0, (beta * variance).sqrt())):
            model_output = torch.cat([output, torch.full_like(output, v)], dim=1)
            mean, log_variance, x_0 = ours.p_mean_variance(model_output, t, x_t)
            assert torch.allclose(log_variance.exp(), expected.expand_as(log_variance), rtol=1e-4)
            assert torch.equal(mean, ours.posterior(x_0, x_t, t)[0]) and x_0.abs().max() <= 1
            draws = ours.step(model_output, t, x_t, generator=seeded()).prev_sample
            z = torch.randn(1, 1, 2, 2, generator=seeded())
            assert torch.allclose(draws, mean + (0.5 * log_variance).exp() * z, atol=1e-6)


@pytest.mark.parametrize("n", [None, 20])
def test_posterior_is_the_product_of_its_two_gaussians(n):
    """q(x_s | x_t, x_0) is q(x_s | x_0) q(x_t | x_s) normalised: precisions add. In float64, from the betas alone."""
    ours = DDPMNoiseScheduler()
    if n is not None:
        ours.set_timesteps(n)
    abar = torch.cumprod(1 - ours.betas.double(), 0)
    x_0, x_t = randn(2, 3, dtype=torch.float64), randn(2, 3, seed=1, dtype=torch.float64)
    for t, s in zip(ours.timesteps[:-1].tolist(), ours.timesteps[1:].tolist()):
        alpha = abar[t] / abar[s]
        precision = 1 / (1 - abar[s]) + alpha / (1 - alpha)
        expected = (abar[s].sqrt() * x_0 / (1 - abar[s]) + alpha.sqrt() * x_t / (1 - alpha)) / precision
        mean, variance = ours.posterior(x_0, x_t, t)
        assert mean.dtype == torch.float64
        assert torch.allclose(mean, expected, atol=1e-9) and torch.allclose(variance, 1 / precision, rtol=1e-9)
    mean, variance = ours.posterior(x_0, x_t, int(ours.timesteps[-1]))
    assert torch.allclose(mean, x_0) and variance < 1e-19
    mean, variance = ours.q_mean_variance(x_0, 500)
    assert torch.allclose(mean, abar[500].sqrt() * x_0) and torch.allclose(variance, 1 - abar[500])


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_round_trips(prediction_type):
    """(x_0, noise) -> x_t and the model's target -> x_0 and noise again; and noise -> x_0 -> v -> noise."""
    ours = DDPMNoiseScheduler(prediction_type=prediction_type)
    t = torch.arange(1000)
    x_0, noise = randn(1000, 2, 2, seed=1, dtype=torch.float64), randn(1000, 2, 2, seed=2, dtype=torch.float64)
    x_t, target = ours.add_noise(x_0, noise, t), ours.get_target(x_0, noise, t)
    assert torch.allclose(ours.predict_x_0(target, t, x_t), x_0, atol=1e-9)
    assert torch.allclose(ours.predict_noise(target, t, x_t), noise, atol=1e-9)
    from_noise = DDPMNoiseScheduler().predict_x_0(noise, t, x_t)
    v = ours.get_velocity(from_noise, noise, t)
    again = DDPMNoiseScheduler(prediction_type="v_prediction").predict_noise(v, t, x_t)
    assert torch.allclose(again, noise, atol=1e-9)
    x_t, target = ours.add_noise(x_0.float(), noise.float(), t), ours.get_target(x_0.float(), noise.float(), t)
    signal = ours.alphas_cumprod.sqrt().view(-1, 1, 1)
    assert (
        (ours.predict_x_0(target, t, x_t) - x_0) * signal
    ).abs().max() < 1e-5  # rounding is divided by sqrt(abar) as x_t is


# ---------------------------------------------------------------------- closed form: Gaussian data, exact denoiser

MEAN = torch.tensor([0.3, -0.5, 0.1])
COVARIANCE = torch.tensor([[0.30, 0.12, 0.0], [0.12, 0.20, -0.05], [0.0, -0.05, 0.10]])


def exact_output(scheduler, x_t, t, covariance, s) -> torch.Tensor:
    """What the perfect model of N(MEAN, covariance) outputs at x_t (B, 3, 1), with its log variance where one is wanted.

    E[x_0 | x_t] = m + a C (a^2 C + b^2 I)^-1 (x_t - a m) with a^2 = abar_t, b^2 = 1 - abar_t; Cov[x_0 | x_t] = C - a^2 C (...)^-1 C.
    s is the next timestep of the chain, for p(x_s | x_t): beta~ plus what the spread of x_0 adds.
    """
    abar = scheduler.alphas_cumprod.double()[t]
    a, covariance = abar.sqrt(), covariance.double()
    gain = a * covariance @ torch.linalg.inv(abar * covariance + (1 - abar) * torch.eye(3, dtype=torch.float64))
    x_0 = MEAN.double()[:, None] + gain @ (x_t.double() - a * MEAN.double()[:, None])
    noise = (x_t.double() - a * x_0) / (1 - abar).sqrt()
    output = scheduler.get_target(x_0, noise, torch.tensor(t)).float()
    if "learned" not in scheduler.config.variance_type:
        return output
    abar_s = scheduler.alphas_cumprod.double()[s] if s >= 0 else torch.ones((), dtype=torch.float64)
    beta, spread = 1 - abar / abar_s, torch.diag(covariance - a * gain @ covariance)
    small = (1 - abar_s) / (1 - abar) * beta
    log_variance = torch.log(small + abar_s * (beta / (1 - abar)) ** 2 * spread + 1e-20)
    if scheduler.config.variance_type == "learned_range":
        log_small = torch.log(small.clamp(min=1e-20))
        log_variance = 2 * (log_variance - log_small) / (torch.log(beta) - log_small) - 1
    return torch.cat([output, log_variance.float()[:, None].expand_as(output)], dim=1)


def sampled_moments(scheduler, steps, covariance: torch.Tensor, num_samples: int, eta=None, solver_order=1):
    """Mean and covariance of samples; `steps` is a number of steps or the chain itself."""
    scheduler.set_timesteps(**{"num_inference_steps" if isinstance(steps, int) else "timesteps": steps})
    chain, g = scheduler.timesteps.tolist(), seeded(7)
    x_t, options = torch.randn(num_samples, 3, 1, generator=g), {}
    for t, s in zip(chain, [*chain[1:], -1]):
        output = exact_output(scheduler, x_t, t, covariance, s)
        x_t, x_0 = scheduler.step(output, t, x_t, g, return_dict=False, eta=eta, **options)
        options = {"previous_original_sample": x_0} if solver_order == 2 else {}
    return x_t.mean(0).flatten(), x_t.squeeze(-1).T.cov()


def assert_moments(moments, covariance, num_samples):
    """Within 4.5 standard errors of a mean, and of a covariance ((c_ij^2 + c_ii c_jj) / N is its variance)."""
    mean, cov = moments
    diagonal = torch.diag(covariance)
    assert ((mean - MEAN).abs() < 4.5 * (diagonal / num_samples).sqrt()).all(), mean
    error = 4.5 * ((covariance**2 + diagonal[:, None] * diagonal[None]) / num_samples).sqrt()
    assert ((cov - covariance).abs() < error).all(), cov


CASES = [
    *itertools.product(PREDICTIONS, VARIANCES, (None,)),
    *itertools.product(PREDICTIONS, ("fixed_small",), (0.0, 0.5)),
]


@pytest.mark.parametrize(("prediction_type", "variance_type", "eta"), CASES)
def test_gaussian_data_comes_out(prediction_type, variance_type, eta):
    """A fixed variance and DDIM are exact in the limit of many steps (measured bias of the covariance: below 4 / n). A learned diagonal
    variance needs few, for a diagonal covariance: then p(x_s | x_t) is a Gaussian with exactly that mean and variance."""
    learned = "learned" in variance_type
    covariance = torch.diag(torch.diag(COVARIANCE)) if learned else COVARIANCE
    n, num_samples = (25, 20_000) if learned else (500, 4000)
    scheduler = DDPMNoiseScheduler(
        prediction_type=prediction_type, variance_type=variance_type, clip_sample=False, timestep_spacing="linspace"
    )
    moments = sampled_moments(scheduler, n, covariance, num_samples, eta)
    assert_moments(moments, covariance, num_samples)


UNEVEN = [999 - i // 2 * 66 - i % 2 * 24 for i in range(30)]  # steps of 24 and 42


@pytest.mark.parametrize("steps", [30, UNEVEN], ids=["trailing", "custom"])
@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_second_order_is_exact_in_fewer_steps(eta, steps):
    """In 30 steps, evenly spaced or not, where the first order is far outside of the bounds."""
    scheduler = DDPMNoiseScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    assert_moments(sampled_moments(scheduler, steps, COVARIANCE, 4000, eta, solver_order=2), COVARIANCE, 4000)
    with pytest.raises(AssertionError):
        assert_moments(sampled_moments(scheduler, steps, COVARIANCE, 4000, eta), COVARIANCE, 4000)


def test_the_closed_form_notices_a_wrong_variance():
    """The test above can fail: fewer steps with a fixed variance are outside its bounds."""
    scheduler = DDPMNoiseScheduler(variance_type="fixed_small", clip_sample=False, timestep_spacing="linspace")
    moments = sampled_moments(scheduler, 10, COVARIANCE, 4000)
    with pytest.raises(AssertionError):
        assert_moments(moments, COVARIANCE, 4000)
