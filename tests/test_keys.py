"""Random draws depend on (seed, position) alone, and have their distributions."""

import torch

from ddpm_hf.keys import draw

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
    assert abs((u < 0.1).double().mean() - 0.1) < 4 * (0.1 * 0.9 / n) ** 0.5
    assert abs(torch.corrcoef(torch.stack([t.double(), u]))[0, 1]) < 4 / n**0.5
