"""Power-function averages and their reconstruction: a parameter that is 1 at one step alone keeps that step's weight, so T of them
keep the whole profile."""

import numpy as np
import pytest
import torch

from ddpm_hf.training import ema

T = 640


def profile(sigma_rel: float, step: int) -> torch.Tensor:
    """The weight of each step in the average: the power function's integral over it."""
    gamma = ema.power_of(sigma_rel)
    edges = (torch.arange(T + 1).clamp(max=step).double() / step) ** (gamma + 1)
    return edges.diff()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, parameters = tmp_path_factory.mktemp("run"), {"weight": torch.zeros(T)}
    averages = ema.PowerAverages(parameters, [0.05, 0.1])
    for step in range(1, T + 1):
        parameters["weight"].zero_()[step - 1] = 1
        averages.step()
        if step % 20 == 0:
            averages.save(folder)
    return folder, averages


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def test_sigma_rel_is_the_width_of_the_profile():
    for sigma_rel in (0.03, 0.1, 0.25):
        u = torch.linspace(0, 1, 100_001, dtype=torch.float64)
        p = u ** ema.power_of(sigma_rel)
        mean = (p * u).sum() / p.sum()
        assert abs(((p * (u - mean) ** 2).sum() / p.sum()).sqrt() - sigma_rel) < 1e-3


def test_averages_have_their_profiles(run):
    for sigma_rel, (average,) in run[1].averages.items():
        assert error(average, profile(sigma_rel, T)) < 1e-5


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.1, 0.15])
@pytest.mark.parametrize("step", [T, 400])
def test_other_lengths_are_rebuilt(run, sigma_rel, step, record_property):
    found = ema.reconstruct(run[0], sigma_rel, step)["weight"]
    record_property("error", error(found, profile(sigma_rel, step)))
    assert error(found, profile(sigma_rel, step)) < 0.02 and abs(found.sum() - 1) < 2e-3


def test_inner_products_are_integrals():
    tau = (np.arange(400_000) + 0.5) / 100_000  # up to 4
    for t_a, gamma_a, t_b, gamma_b in [(2, 1.5, 4, 6), (4, 6, 2, 1.5), (3, 2, 3, 2)]:
        a, b = (np.where(tau < t, (g + 1) * tau**g / t ** (g + 1), 0) for t, g in [(t_a, gamma_a), (t_b, gamma_b)])
        assert abs((a * b).mean() * 4 - ema.inner_product(t_a, gamma_a, t_b, gamma_b)) < 1e-4


def test_a_profile_out_of_reach_is_told(run, caplog):
    ema.reconstruct(run[0], 0.01)
    assert "misses" in caplog.text


def test_refusals(tmp_path, run):
    with pytest.raises(ValueError, match="ema_sigma_rels"):
        ema.reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match=r"step=3: .* has snapshots from step"):
        ema.reconstruct(run[0], 0.1, step=3)
    with pytest.raises(ValueError, match=r"step=1000000: .* has snapshots from step"):
        ema.reconstruct(run[0], 0.1, step=10**6)
    with pytest.raises(ValueError, match=r"sigma_rel=0\.3 must be"):
        ema.reconstruct(run[0], 0.3)


def test_the_widest_average_is_close_to_the_plain_mean():
    assert 0 < ema.power_of(ema.MAX_SIGMA_REL - 1e-4) < 0.02
