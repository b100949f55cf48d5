"""Random draws depend on (seed, position) alone, have their distributions, and are made of few operations on whole batches."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from operations import Operations

from ddpm_hf.keys import caption_index, draw, draw_positions, is_flipped, keys_of, normal, outputs

SHAPE = torch.Size((1, 4, 4))


def test_outputs_are_those_of_splitmix64():
    """The known answers of the published generator for the seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert outputs(np.array([1234567]), np.arange(1, 6)).view(np.uint64).tolist() == known


def test_tensors_give_the_bits_of_arrays():
    """numpy computes the noise on the CPU, torch on other devices."""
    keys, numbers = keys_of(2**64 - 1, np.arange(50))[:, None], np.arange(-3, 100)
    found = outputs(torch.from_numpy(keys), torch.from_numpy(numbers))
    assert np.array_equal(found.numpy(), outputs(keys, numbers))


def test_normals_are_the_inverse_of_their_distribution():
    """Of the 32 bits in each half of an output; to float32's last bit."""
    keys = keys_of(5, np.arange(20))
    halves = outputs(keys[:, None], np.arange(1, 9)).view(np.int32).ravel()
    expected = [NormalDist().inv_cdf((half + 0.5 + 2**31) / 2**32) for half in halves.tolist()]
    found = normal(torch.from_numpy(keys), torch.empty(20, *SHAPE)).flatten()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-7, atol=0)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 4, 5)])
def test_normals_have_the_layout_of_the_images(shape):
    """And the same values in each, also where an odd number of elements leaves half an output over."""
    x_0, keys = torch.empty(4, *shape), torch.from_numpy(keys_of(0, np.arange(4)))
    channels_last = normal(keys, x_0.to(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(channels_last, normal(keys, x_0))
    assert torch.equal(normal(keys, x_0.double()).float(), normal(keys, x_0))


@pytest.mark.parametrize("batch_size", [1, 16, 512])
def test_a_draw_is_few_operations_whatever_the_batch(batch_size):
    with Operations() as operations:
        draw(torch.empty(batch_size, 3, 32, 32, device="meta"), torch.arange(batch_size), 0, 1000)
    assert len(operations.launched) <= 20
    assert not operations.waits


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


def chi_square(values: np.ndarray, num_bins: int) -> float:
    """Deviations of chi-squared from its mean, of values in range(num_bins) that should be uniform."""
    expected = len(values) / num_bins
    statistic = ((np.bincount(values, minlength=num_bins) - expected) ** 2).sum() / expected
    return abs(statistic - (num_bins - 1)) / (2 * (num_bins - 1)) ** 0.5


def test_bits_are_uniform():
    """Each byte of the outputs, and each pair of bytes in a row, over neighbouring seeds, positions and elements."""
    bits = np.stack([outputs(keys_of(seed, np.arange(200))[:, None], np.arange(50)) for seed in range(20)])
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        words = np.ascontiguousarray(bits.transpose(order)).ravel().view(np.uint8).reshape(-1, 8).astype(np.int64)
        for byte in words.T:
            assert chi_square(byte, 256) < 5
            assert chi_square(byte[:-1] * 256 + byte[1:], 2**16) < 5


def test_normals_are_normal_and_independent_of_their_neighbours():
    """Moments, and correlations of noise and of its squares with that of the next seed, position and element."""
    like = torch.empty(500, 1, 10, 10, dtype=torch.float64)
    z = torch.stack([normal(torch.from_numpy(keys_of(seed, np.arange(500))), like).flatten(1) for seed in range(20)])
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4.5 * (variance / n) ** 0.5
    for dim in range(3):
        one, other = z.narrow(dim, 0, z.shape[dim] - 1).flatten(), z.narrow(dim, 1, z.shape[dim] - 1).flatten()
        for a, b in ((one, other), (one**2, other**2), (one.abs(), other)):
            assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4.5 / n**0.5
    share_beyond = (z.abs() > 3).double().mean()
    assert abs(share_beyond - 0.0026998) < 4.5 * (0.0027 / n) ** 0.5


def test_decisions_have_their_distributions():
    """t, the condition's u, flips and captions, and none of them tells anything of another or of the noise."""
    n = 20000
    positions = np.arange(n)
    t, noise, u = draw(torch.zeros(n, *SHAPE), torch.arange(n), seed=0, num_train_timesteps=10)
    captions, flips = caption_index(0, positions, 5), is_flipped(0, positions)
    assert t.dtype == torch.int64 and 0 <= u.min() and u.max() < 1
    assert chi_square(t.numpy(), 10) < 4 and chi_square(captions, 5) < 4 and chi_square(flips.astype(int), 2) < 4
    assert chi_square((u.numpy() * 100).astype(int), 100) < 4
    values = [t, u, noise[:, 0, 0, 0], noise[:, 0, -1, -1], *map(torch.from_numpy, (captions, flips))]
    correlations = torch.corrcoef(torch.stack([value.double() for value in values])) - torch.eye(len(values))
    assert correlations.abs().max() < 4.5 / n**0.5


def test_one_position_is_drawn_from_each_stratum():
    strata = [range(0, 1), range(1, 3), range(3, 10)]
    drawn = draw_positions(strata, keys_of(0, np.arange(7000)))
    assert drawn.shape == (7000, 3) and (drawn[:, 0] == 0).all()
    assert chi_square(drawn[:, 1] - 1, 2) < 4 and chi_square(drawn[:, 2] - 3, 7) < 4
