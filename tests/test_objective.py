"""Algorithm 1: its draws depend on (seed, position) alone, and its losses are what the equations say."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm_hf import DDPMNoiseScheduler
from ddpm_hf.likelihood import bound_term
from ddpm_hf.objective import draw, drop_labels, training_losses

SHAPE = torch.Size((1, 4, 4))


def test_draws_do_not_depend_on_the_batch():
    x_0, positions = torch.zeros(6, *SHAPE), torch.arange(100, 106)
    whole = draw(x_0, positions, seed=3, num_train_timesteps=1000)
    split = [draw(x_0[i : i + 2], positions[i : i + 2], seed=3, num_train_timesteps=1000) for i in (0, 2, 4)]
    for one, parts in zip(whole, zip(*split)):
        assert torch.equal(one, torch.cat(parts))


def test_draws_differ_between_positions_and_seeds():
    x_0, positions = torch.zeros(64, *SHAPE), torch.arange(64)
    _, noise, _ = draw(x_0, positions, seed=0, num_train_timesteps=1000)
    _, other, _ = draw(x_0, positions, seed=1, num_train_timesteps=1000)
    flat = torch.cat([noise, other]).flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(len(flat)) * 100
    assert distances.min() > 1


def test_draws_have_their_distributions():
    n = 4000
    t, noise, u = draw(torch.zeros(n, *SHAPE), torch.arange(n), seed=0, num_train_timesteps=10)
    counts = t.bincount(minlength=10).double()
    assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 33.7  # chi-squared, 9 degrees of freedom, p = 1e-4
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5 and abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5
    labels = drop_labels(torch.zeros(n, dtype=torch.int64), u, 0.1, null_label=7)
    assert abs((labels == 7).double().mean() - 0.1) < 4 * (0.1 * 0.9 / n) ** 0.5
    assert abs(torch.corrcoef(torch.stack([t.double(), u]))[0, 1]) < 4 / n**0.5


class Exact:
    """A "model" that knows x_0 and gives the exact target, plus an error of 0.5 everywhere."""

    def __init__(self, scheduler, x_0):
        self.scheduler, self.x_0 = scheduler, x_0

    def __call__(self, x_t, t, return_dict=True):
        signal = self.scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        noise = (x_t - signal * self.x_0) / (1 - signal**2).sqrt()
        return (self.scheduler.get_target(self.x_0, noise, t) + 0.5,)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_loss_is_the_squared_error(prediction_type):
    scheduler = DDPMNoiseScheduler(prediction_type=prediction_type)
    x_0, t = torch.rand(5, *SHAPE) * 2 - 1, torch.tensor([10, 100, 500, 900, 999])
    losses = training_losses(Exact(scheduler, x_0), scheduler, x_0, t, torch.randn(5, *SHAPE))
    assert losses.shape == (5,) and torch.allclose(losses, torch.full((5,), 0.25), atol=1e-3)


def test_min_snr_weighs_the_same_error_in_x_0_alike():
    """One error in x_0 is another in noise and in v; after the weight all three cost the same (arXiv:2303.09556, Section 3.4)."""
    x_0, noise, t = torch.rand(4, *SHAPE), torch.randn(4, *SHAPE), torch.tensor([50, 300, 600, 900])
    losses = []
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        scheduler = DDPMNoiseScheduler(prediction_type=prediction_type)
        abar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        scale = {"epsilon": -(abar / (1 - abar)).sqrt(), "sample": 1.0, "v_prediction": -1 / (1 - abar).sqrt()}
        target = scheduler.get_target(x_0, noise, t)

        def model(x_t, t, return_dict=True, output=target + 0.1 * scale[prediction_type]):
            return (output,)

        losses.append(training_losses(model, scheduler, x_0, t, noise, snr_gamma=5.0))
    assert torch.allclose(losses[0], losses[1], rtol=1e-3) and torch.allclose(losses[0], losses[2], rtol=1e-3)
    snr = abar.flatten() / (1 - abar.flatten())
    assert torch.allclose(losses[1], snr.clamp(max=5) * 0.01, rtol=1e-4)


@pytest.fixture(params=[("learned_range", "epsilon"), ("learned", "v_prediction"), ("learned_range", "sample")])
def hybrid(request):
    """A scheduler with a learned variance; x_0, t, noise; an output of two halves. 8-bit images, black and white among them."""
    variance_type, prediction_type = request.param
    scheduler = DDPMNoiseScheduler(20, 1e-3, 0.4, variance_type=variance_type, prediction_type=prediction_type)
    generator, t = torch.Generator().manual_seed(0), torch.tensor([0, 1, 7, 19, 0])
    x_0 = torch.randint(256, (5, *SHAPE), generator=generator) / 127.5 - 1
    x_0[0, :, 0], x_0[0, :, 1] = -1, 1
    noise = torch.randn(5, *SHAPE, generator=generator)
    prediction = scheduler.get_target(x_0, noise, t) + 0.1 * torch.randn(5, *SHAPE, generator=generator)
    variance = torch.randn(5, *SHAPE, generator=generator) - (3 if variance_type == "learned" else 0)
    return scheduler, (x_0, t, noise), torch.cat([prediction, variance], dim=1).requires_grad_()


def hybrid_losses(hybrid, snr_gamma=None, bound_term=bound_term):
    scheduler, inputs, output = hybrid
    return training_losses(lambda *_, **__: (output,), scheduler, *inputs, None, snr_gamma, bound_term)


def posterior_and_p(hybrid) -> tuple[Normal, Normal]:
    """q(x_{t-1} | x_t, x_0) and p(x_{t-1} | x_t), written out from the betas in float64: Eq. 6, 7, and Eq. 15 of Improved DDPM."""
    scheduler, (x_0, t, noise), output = hybrid
    betas = scheduler.betas.double()
    abar = (1 - betas).cumprod(0)
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    beta, a, b = (table[t].view(-1, 1, 1, 1) for table in (betas, abar, before))
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
    prediction, v = output.double().chunk(2, dim=1)
    x_0_of = {
        "epsilon": (x_t - (1 - a).sqrt() * prediction) / a.sqrt(),
        "sample": prediction,
        "v_prediction": a.sqrt() * x_t - (1 - a).sqrt() * prediction,
    }[scheduler.config.prediction_type].clamp(-1, 1)
    mean_q, mean_p = (b.sqrt() * beta * x + (1 - beta).sqrt() * (1 - b) * x_t for x in (x_0, x_0_of))
    small = (1 - before) / (1 - abar) * betas
    small_log = small.clone()
    small_log[0] = small[1]  # beta~_0 is 0; its logarithm is the next one's
    small, small_log = small[t].view(-1, 1, 1, 1), small_log[t].view(-1, 1, 1, 1).log()
    log_variance = v if scheduler.variance_type == "learned" else (v + 1) / 2 * beta.log() + (1 - v) / 2 * small_log
    return Normal(mean_q / (1 - a), small.clamp(min=1e-20).sqrt()), Normal(mean_p / (1 - a), (log_variance / 2).exp())


def test_hybrid_loss_is_eq_16(hybrid):
    """L_simple + 0.001 T L_{t-1}: the KL in bits/dim, and at the last step the mass of each pixel's bin."""
    x_0, t, _ = hybrid[1]
    q, p = posterior_and_p(hybrid)
    kl = kl_divergence(q, p)
    lower = torch.where(x_0 == -1, 0.0, p.cdf(x_0 - 1 / 255))
    upper = torch.where(x_0 == 1, 1.0, p.cdf(x_0 + 1 / 255))
    terms = torch.where(t.view(-1, 1, 1, 1) == 0, -(upper - lower).log(), kl).mean(dim=(1, 2, 3)) / np.log(2)
    extra = (hybrid_losses(hybrid) - hybrid_losses(hybrid, bound_term=None)).double()
    assert torch.allclose(extra, 0.001 * 20 * terms, rtol=1e-4, atol=1e-6)
    weighed = hybrid_losses(hybrid, 5.0) - hybrid_losses(hybrid, 5.0, bound_term=None)
    assert torch.allclose(weighed.double(), extra, atol=1e-6)  # min-SNR weighs L_simple alone


def test_the_bound_moves_the_variance_and_never_the_mean(hybrid):
    output, t = hybrid[2], hybrid[1][1]
    (both,) = torch.autograd.grad(hybrid_losses(hybrid).sum(), output)
    (simple,) = torch.autograd.grad(hybrid_losses(hybrid, bound_term=None).sum(), output)
    assert torch.equal(both[:, :1], simple[:, :1]) and not simple[:, 1:].any()
    q, p = posterior_and_p(hybrid)
    by_log_variance = 0.5 * (1 - (q.variance + (q.mean - p.mean) ** 2) / p.variance)  # d KL / d log sigma^2
    scheduler, betas = hybrid[0], hybrid[0].betas.double()
    abar = (1 - betas).cumprod(0)
    small = torch.cat([betas[:1], (1 - abar[:-1]) / (1 - abar[1:]) * betas[1:]])
    slope = 1.0 if scheduler.variance_type == "learned" else ((betas / small).log() / 2)[t].view(-1, 1, 1, 1)
    expected = 0.001 * 20 * by_log_variance * slope / np.log(2) / SHAPE.numel()
    assert torch.allclose(both[:, 1:][t > 0].double(), expected[t > 0], rtol=1e-3, atol=1e-8)
    assert both.isfinite().all() and both[:, 1:].any(dim=(1, 2, 3)).all()
