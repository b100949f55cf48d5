"""Algorithm 1: the losses are what the equations say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm_hf import DDPMNoiseScheduler
from ddpm_hf.objective import drop_condition, hybrid, make_objective, simple

SHAPE = torch.Size((1, 4, 4))


class Exact:
    """A "model" that knows x_0 and gives the exact target, plus an error of 0.5 everywhere."""

    def __init__(self, scheduler, x_0):
        self.scheduler, self.x_0 = scheduler, x_0

    def __call__(self, x_t, t, condition):
        signal = self.scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        noise = (x_t - signal * self.x_0) / (1 - signal**2).sqrt()
        return self.scheduler.get_target(self.x_0, noise, t) + 0.5


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_loss_is_the_squared_error(prediction_type):
    scheduler = DDPMNoiseScheduler(prediction_type=prediction_type)
    x_0, t = torch.rand(5, *SHAPE) * 2 - 1, torch.tensor([10, 100, 500, 900, 999])
    losses = simple(Exact(scheduler, x_0), scheduler, x_0, t, torch.randn(5, *SHAPE), {})
    assert losses.shape == (5,) and torch.allclose(losses, torch.full((5,), 0.25), atol=1e-3)


def test_min_snr_weighs_the_same_error_in_x_0_alike():
    """One error in x_0 is another in noise and in v; after the weight all three cost the same (arXiv:2303.09556, Section 3.4)."""
    x_0, noise, t = torch.rand(4, *SHAPE), torch.randn(4, *SHAPE), torch.tensor([50, 300, 600, 900])
    losses = []
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        scheduler = DDPMNoiseScheduler(prediction_type=prediction_type)
        abar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        scale = {"epsilon": -(abar / (1 - abar)).sqrt(), "sample": 1.0, "v_prediction": -1 / (1 - abar).sqrt()}
        output = scheduler.get_target(x_0, noise, t) + 0.1 * scale[prediction_type]
        losses.append(simple(lambda *_, output=output: output, scheduler, x_0, t, noise, {}, snr_gamma=5.0))
    assert torch.allclose(losses[0], losses[1], rtol=1e-3) and torch.allclose(losses[0], losses[2], rtol=1e-3)
    snr = abar.flatten() / (1 - abar.flatten())
    assert torch.allclose(losses[1], snr.clamp(max=5) * 0.01, rtol=1e-4)


@pytest.fixture(params=[("learned_range", "epsilon"), ("learned", "v_prediction"), ("learned_range", "sample")])
def learned(request):
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


def losses_of(objective, learned, snr_gamma=0.0):
    scheduler, inputs, output = learned
    return objective(lambda *_: output, scheduler, *inputs, {}, snr_gamma=snr_gamma)


def posterior_and_p(learned) -> tuple[Normal, Normal]:
    """q(x_{t-1} | x_t, x_0) and p(x_{t-1} | x_t), written out from the betas in float64: Eq. 6, 7, and Eq. 15 of Improved DDPM."""
    scheduler, (x_0, t, noise), output = learned
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


def test_hybrid_loss_is_eq_16(learned):
    """L_simple + 0.001 T L_{t-1}: the KL in bits/dim, and at the last step the mass of each pixel's bin."""
    x_0, t, _ = learned[1]
    q, p = posterior_and_p(learned)
    kl = kl_divergence(q, p)
    lower = torch.where(x_0 == -1, 0.0, p.cdf(x_0 - 1 / 255))
    upper = torch.where(x_0 == 1, 1.0, p.cdf(x_0 + 1 / 255))
    terms = torch.where(t.view(-1, 1, 1, 1) == 0, -(upper - lower).log(), kl).mean(dim=(1, 2, 3)) / np.log(2)
    extra = (losses_of(hybrid, learned) - losses_of(simple, learned)).double()
    assert torch.allclose(extra, 0.001 * 20 * terms, rtol=1e-4, atol=1e-6)
    weighed = losses_of(hybrid, learned, 5.0) - losses_of(simple, learned, 5.0)
    assert torch.allclose(weighed.double(), extra, atol=1e-6)  # min-SNR weighs L_simple alone


def test_the_bound_moves_the_variance_and_never_the_mean(learned):
    output, t = learned[2], learned[1][1]
    (both,) = torch.autograd.grad(losses_of(hybrid, learned).sum(), output)
    (plain,) = torch.autograd.grad(losses_of(simple, learned).sum(), output)
    assert torch.equal(both[:, :1], plain[:, :1]) and not plain[:, 1:].any()
    q, p = posterior_and_p(learned)
    by_log_variance = 0.5 * (1 - (q.variance + (q.mean - p.mean) ** 2) / p.variance)  # d KL / d log sigma^2
    scheduler, betas = learned[0], learned[0].betas.double()
    abar = (1 - betas).cumprod(0)
    small = torch.cat([betas[:1], (1 - abar[:-1]) / (1 - abar[1:]) * betas[1:]])
    slope = 1.0 if scheduler.variance_type == "learned" else ((betas / small).log() / 2)[t].view(-1, 1, 1, 1)
    expected = 0.001 * 20 * by_log_variance * slope / np.log(2) / SHAPE.numel()
    assert torch.allclose(both[:, 1:][t > 0].double(), expected[t > 0], rtol=1e-3, atol=1e-8)
    assert both.isfinite().all() and both[:, 1:].any(dim=(1, 2, 3)).all()


def test_the_objective_of_a_learned_variance_is_hybrid():
    for variance_type, expected in (("learned_range", hybrid), ("fixed_small", simple), (None, simple)):
        pipeline = SimpleNamespace(scheduler=DDPMNoiseScheduler(variance_type=variance_type))
        objective = make_objective(None, pipeline, snr_gamma=5.0)
        assert objective.func is expected and objective.keywords == {"snr_gamma": 5.0}
    pipeline = SimpleNamespace(scheduler=DDPMNoiseScheduler(variance_type="learned_range"))
    assert make_objective("simple", pipeline).func is simple


def test_a_condition_is_dropped_for_the_samples_that_are_told():
    uniform = torch.tensor([0.05, 0.1, 0.6, 0.95])
    given, null = {"class_labels": torch.tensor([4, 5, 6, 7])}, {"class_labels": torch.tensor([9, 9, 9, 9])}
    assert drop_condition(given, null, uniform, 0.1)["class_labels"].tolist() == [9, 5, 6, 7]


def test_each_part_of_a_condition_is_dropped_alone_and_with_the_other():
    """At a rate of 0.3: a tenth of the samples keeps the image alone, a tenth the label, a tenth neither."""
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    given = {"class_labels": torch.ones(1000), "image": torch.ones(1000, 2, 2)}
    found = drop_condition(given, {name: 0 * value for name, value in given.items()}, uniform, 0.3)
    pairs = torch.stack([found["class_labels"], found["image"].mean((1, 2))], dim=1).tolist()
    assert [pairs.count(pair) for pair in ([0, 1], [1, 0], [0, 0], [1, 1])] == [100, 100, 100, 700]


def test_hybrid_needs_a_learned_variance():
    pipeline = SimpleNamespace(scheduler=DDPMNoiseScheduler(variance_type="fixed_large"))
    with pytest.raises(ValueError, match=r"objective='hybrid' .* variance_type is 'fixed_large'"):
        make_objective("hybrid", pipeline)
