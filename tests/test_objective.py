"""Algorithm 1: its draws depend on (seed, position) alone, and its losses are what the equations say."""

import pytest
import torch

from ddpm_hf import DDPMNoiseScheduler
from ddpm_hf.objective import draw, drop_labels, training_losses

SHAPE = (1, 4, 4)


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
