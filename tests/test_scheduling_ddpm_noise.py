"""The scheduler: bit for bit `diffusers.DDPMScheduler` where stock is right, and right where it is wrong."""

import copy
import itertools
import math
import os

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf import DDPMNoiseScheduler

PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
SPACINGS = ("leading", "linspace", "trailing")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
CLIPPINGS = (
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"clip_sample": False},
    {"clip_sample": False, "thresholding": True, "sample_max_value": 2.0},
)
NUM_STEPS = (None, 1, 7, 50, 600, 1000)
STRIDE = int(os.environ.get("STRIDE", 31))  # through the product of all axes; STRIDE=1 is the whole of it, in minutes


def pair(**config) -> tuple[DDPMScheduler, DDPMNoiseScheduler]:
    return DDPMScheduler(**config), DDPMNoiseScheduler(**config)


def randn(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_bits(ours: torch.Tensor, stock: torch.Tensor, where=None) -> None:
    torch.testing.assert_close(ours, stock, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}")


# ---------------------------------------------------------------------- parity where stock is right


@pytest.mark.parametrize(("prediction_type", "variance_type"), list(itertools.product(PREDICTIONS, VARIANCES)))
def test_step_has_the_bits_of_stock(prediction_type, variance_type):
    """Of the product of the other five axes every STRIDE-th (prime to their lengths) is taken, from another start in each case."""
    axes = itertools.product(SCHEDULES, SPACINGS, (False, True), CLIPPINGS, NUM_STEPS)
    x_t, wrong = randn(2, 3, 8, 8), ("fixed_large_log", "learned")
    start = PREDICTIONS.index(prediction_type) * len(VARIANCES) + VARIANCES.index(variance_type)
    model_output = randn(2, 6 if "learned" in variance_type else 3, 8, 8, seed=1)
    for schedule, spacing, zero_snr, clipping, n in itertools.islice(axes, start % STRIDE, None, STRIDE):
        config = {"beta_schedule": schedule, "timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr}
        config |= {"prediction_type": prediction_type, "variance_type": variance_type} | clipping
        stock, ours = pair(**config)
        if n is not None:
            for scheduler in (stock, ours):
                scheduler.set_timesteps(n) if n != 600 else scheduler.set_timesteps(timesteps=list(range(998, 0, -3)))
        assert torch.equal(ours.timesteps, stock.timesteps)
        for i in (0, len(ours.timesteps) // 2, len(ours.timesteps) - 1):
            t = stock.timesteps[i]
            expected = stock.step(model_output, t, x_t, generator=seeded())
            last_at_above_0 = i == len(ours.timesteps) - 1 and t > 0  # stock adds noise to the final image there
            for timestep in (t, int(t)):
                got = ours.step(model_output, timestep, x_t, generator=seeded())
                assert_same_bits(got.pred_original_sample, expected.pred_original_sample, (config, n, t))
                if not last_at_above_0 and (t == 0 or variance_type not in wrong):
                    assert_same_bits(got.prev_sample, expected.prev_sample, (config, n, t))


@pytest.mark.parametrize(("schedule", "zero_snr"), list(itertools.product(SCHEDULES, (False, True))))
def test_noising_has_the_bits_of_stock(schedule, zero_snr):
    for config in ({}, {"num_train_timesteps": 100}, {"trained_betas": np.linspace(0.001, 0.03, 1000)}):
        config = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr} | config
        stock, ours = pair(**config)
        assert_same_bits(ours.betas, stock.betas)
        assert_same_bits(ours.alphas_cumprod, stock.alphas_cumprod)
        t = torch.arange(len(ours))
        x_0, noise = randn(len(t), 2, 3, seed=1), randn(len(t), 2, 3, seed=2)
        for name in ("add_noise", "get_velocity"):
            assert_same_bits(getattr(ours, name)(x_0, noise, t), getattr(stock, name)(x_0, noise, t))
            for one in (t[7], t[7:8]):
                assert_same_bits(
                    getattr(ours, name)(x_0, noise, one), getattr(stock, name)(x_0, noise, one[None].flatten())
                )
        assert ours.scale_model_input(x_0, 5) is x_0 and ours.init_noise_sigma == stock.init_noise_sigma == 1.0
        assert len(ours) == len(stock)


@pytest.mark.parametrize(("spacing", "offset"), [*itertools.product(SPACINGS, (0,)), ("leading", 1)])
def test_timesteps_are_stocks_for_every_number_of_steps(spacing, offset):
    """The two deliberate exceptions: "leading" where whole steps would start below 0.9 T, and a timestep of -1 that stock adds to "trailing"."""
    stock, ours = pair(timestep_spacing=spacing, steps_offset=offset)
    T = len(ours)
    for n in range(1, T - offset + 1):
        stock.set_timesteps(n)
        ours.set_timesteps(n)
        expected = stock.timesteps
        assert len(ours.timesteps) == n and (ours.timesteps.diff() < 0).all() and ours.timesteps.min() >= 0
        if spacing == "leading" and n * (T // n) < 0.9 * T:
            assert expected[0] < 0.9 * T <= ours.timesteps[0] + T / n and ours.timesteps[-1] == offset
        else:
            assert torch.equal(ours.timesteps, expected[expected >= 0])
        for i in {0, n // 2, n - 1}:
            t, stock_previous = ours.timesteps[i], ours.timesteps[i + 1] if i + 1 < n else -1
            assert ours.previous_timestep(t) == ours.previous_timestep(int(t)) == stock_previous
            if torch.equal(ours.timesteps, expected):
                assert stock.previous_timestep(t) == stock_previous
    assert ours.num_inference_steps == stock.num_inference_steps == T - offset


def test_previous_timestep_before_set_timesteps_and_off_the_chain():
    stock, ours = pair()
    assert [ours.previous_timestep(t) for t in (999, 1, 0)] == [stock.previous_timestep(t) for t in (999, 1, 0)]
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        with pytest.raises(IndexError):
            scheduler.previous_timestep(5)
        with pytest.raises(IndexError):
            scheduler.step(randn(1, 1, 4, 4), 5, randn(1, 1, 4, 4))


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_a_model_that_says_no_variance_is_refused_where_it_should(variance_type):
    ours, inputs = DDPMNoiseScheduler(variance_type=variance_type), (randn(1, 1, 4, 4), 500, randn(1, 1, 4, 4, seed=1))
    for method in (ours.p_mean_variance, ours.step):
        with pytest.raises(ValueError, match=f"variance_type='{variance_type}' needs twice the channels"):
            method(*inputs)


@pytest.mark.parametrize("chain", [[999, 998, 3], [0], [500, 20], list(range(999, -1, -1)), [100, 87, 50, 1, 0]])
def test_any_strictly_decreasing_list_is_a_chain(chain):
    stock, ours = pair(variance_type="fixed_large", clip_sample=False)
    x_t, model_output = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(timesteps=chain)
    assert ours.timesteps.tolist() == chain and ours.custom_timesteps
    for t in chain[:-1][:5]:
        got, expected = (s.step(model_output, t, x_t, generator=seeded()).prev_sample for s in (ours, stock))
        assert_same_bits(got, expected)
    final = ours.step(model_output, chain[-1], x_t)
    assert torch.allclose(final.prev_sample, final.pred_original_sample, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_inference_steps": 1001}, "num_inference_steps=1001 .*1 to num_train_timesteps=1000"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 .*integer from 1"),
        ({"num_inference_steps": 5.0}, "num_inference_steps=5.0 .*integer from 1"),
        ({"num_inference_steps": "5"}, "num_inference_steps='5' .*integer from 1"),
        ({"num_inference_steps": 5, "timesteps": [1, 0]}, "num_inference_steps=5, timesteps=.1, 0.: pass one"),
        ({}, "num_inference_steps=None, timesteps=None: pass one"),
        ({"timesteps": [5, 6]}, r"timesteps=\[5, 6\].*descending order within 0 .. 999"),
        ({"timesteps": [5, 5]}, r"timesteps=\[5, 5\].*descending"),
        ({"timesteps": [1000, 5]}, r"timesteps=\[1000, 5\].*within 0 .. 999"),
        ({"timesteps": [5, -1]}, r"timesteps=\[5, -1\].*within 0 .. 999"),
        ({"timesteps": [9.5, 3]}, r"timesteps=\[9.5, 3.0\].*integers"),
        ({"timesteps": [[9, 3]]}, r"timesteps=\[\[9, 3\]\].*integers in descending order"),
        ({"timesteps": []}, r"timesteps=\[\]"),
    ],
)
def test_refuses_a_chain(kwargs, words):
    stock, ours = pair()
    with pytest.raises(ValueError, match=words):
        ours.set_timesteps(**kwargs)
    if kwargs in ({"num_inference_steps": 1001}, {"timesteps": [5, 6]}, {"timesteps": [1000, 5]}):
        with pytest.raises(ValueError, match="timesteps"):
            stock.set_timesteps(**kwargs)
    assert len(ours.timesteps) == 1000, "a refused chain leaves the old one"


def test_refuses_a_step_between_two_timesteps():
    ours, x_t = DDPMNoiseScheduler(), randn(1, 1, 4, 4)
    for t in (7.9, torch.tensor(7.9), 1000, -1):
        with pytest.raises(IndexError, match="is not one of the chain's timesteps"):
            ours.step(x_t, t, x_t)


def test_refuses_a_model_of_other_channels():
    """Broadcasting would make (B, 2, ...) of one channel."""
    for variance_type, channels in (("fixed_small", 2), ("learned_range", 3)):
        ours = DDPMNoiseScheduler(variance_type=variance_type)
        for method in (ours.step, ours.p_mean_variance, ours.predict_x_0, ours.predict_noise):
            with pytest.raises(
                ValueError, match=rf"model_output: \(1, {channels}, 4, 4\) does not fit .*{variance_type}"
            ):
                method(randn(1, channels, 4, 4), 500, randn(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("num_train_timesteps", value) for value in (0, -1, 10**8, 10**400, 0.5, math.nan, "1000", None, [1000])],
        *[("beta_start", value) for value in (math.nan, -0.1, math.inf, 10**400, "0.1", None, 0, 1e-12)],
        *[("beta_end", value) for value in (math.nan, -math.inf, [0.02])],
        *[("trained_betas", value) for value in ([0.1, math.nan], [0.1, 2], ["x"], [], [[0.1]], {}, 0.1, "0.1")],
        *[("trained_betas", value) for value in ([0, 0.1], np.full(100_001, 0.1), [10**400])],
        *[("beta_schedule", value) for value in ("cubic", None, 3, ["linear"])],
        *[("variance_type", value) for value in (3, ["fixed_small"], {})],
        *[("prediction_type", value) for value in ("score", None, {})],
        *[("timestep_spacing", value) for value in ("even", None, 1)],
        *[("steps_offset", value) for value in (-1, 0.5, None, 10**9)],
        *[
            (key, value)
            for key in ("clip_sample", "thresholding", "rescale_betas_zero_snr")
            for value in ("no", None, 2)
        ],
        *[(key, value) for key in ("clip_sample_range", "sample_max_value") for value in (-1, None, math.nan, "1")],
        *[("dynamic_thresholding_ratio", value) for value in (-0.1, 1.1, None, math.nan)],
        ("beta_schedule", "x" * 10**6),
    ],
)
def test_refuses_a_config(key, value):
    """One line that names the key and the value, before anything of that size is made."""
    for make in (DDPMNoiseScheduler, lambda **config: DDPMNoiseScheduler.from_config(config)):
        with pytest.raises(ValueError, match=key) as caught:
            make(**{key: value})
        message = str(caught.value)
        assert len(message) < 300 and "\n" not in message
        assert f"{value!r:.40}" in message or key in ("beta_start", "trained_betas")


def test_refuses_more_steps_than_the_offset_leaves():
    with pytest.raises(ValueError, match=r"timesteps=\[1000.*steps_offset=1"):
        DDPMNoiseScheduler(steps_offset=1).set_timesteps(1000)


@pytest.mark.parametrize(
    "kind",
    [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler],
)
@pytest.mark.parametrize("given", [{}, {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}])
def test_config_goes_to_other_samplers_and_back(kind, given, tmp_path):
    given = given | (
        {"prediction_type": "v_prediction", "num_train_timesteps": 500, "clip_sample": False} if given else {}
    )
    ours = DDPMNoiseScheduler(**given)
    other = kind.from_config(ours.config)
    assert torch.allclose(other.alphas_cumprod, ours.alphas_cumprod) and kind in ours.compatibles
    back = DDPMNoiseScheduler.from_config(other.config)
    public = {name: value for name, value in ours.config.items() if not name.startswith("_")}
    assert {name: back.config[name] for name in public} == public
    ours.save_pretrained(tmp_path)
    for loaded in (kind.from_pretrained(tmp_path), DDPMNoiseScheduler.from_pretrained(tmp_path)):
        assert loaded.config.num_train_timesteps == ours.config.num_train_timesteps
        assert torch.equal(loaded.alphas_cumprod, other.alphas_cumprod)


def test_every_sampler_comes_and_goes():
    """From each one's own config, as it is saved, and back: no key is lost or changed."""
    for kind in DDPMNoiseScheduler().compatibles:
        if kind.__name__ in ("DPMSolverSDEScheduler", "LMSDiscreteScheduler"):
            continue  # want torchsde, scipy
        other = kind()
        ours = DDPMNoiseScheduler.from_config(other.config)
        ours.set_timesteps(5)
        x_t = randn(1, 1, 4, 4)
        assert ours.step(x_t, ours.timesteps[0], x_t).prev_sample.isfinite().all(), kind
        back = kind.from_config(ours.config)
        assert {name: back.config[name] for name in other.config} == dict(other.config), kind


def test_no_variance_type_is_fixed_small(tmp_path, caplog):
    """DPM-Solver saves None, and knows of no variance in the model's output."""
    DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    ours, small = DDPMNoiseScheduler.from_pretrained(tmp_path), DDPMNoiseScheduler(timestep_spacing="linspace")
    assert ours.config.variance_type is None and ours.variance_type == "fixed_small"
    x_t, output = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for scheduler in (ours, small):
        scheduler.set_timesteps(10)
    for t in ours.timesteps:
        got, expected = (s.step(output, t, x_t, generator=seeded()).prev_sample for s in (ours, small))
        assert torch.equal(got, expected)
        assert torch.equal(ours.p_mean_variance(output, t, x_t)[1], small.p_mean_variance(output, t, x_t)[1])
    assert not caplog.records


def test_an_unknown_variance_type_is_fixed_small_with_a_warning(caplog):
    """As with stock, whose own tests ask for it; stock is silent."""
    stock, ours = pair(variance_type="other")
    assert "variance_type='other' is unknown and read as fixed_small" in caplog.text
    x_t, output = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for t in (999, 500, 0):
        got, expected = (s.step(output, t, x_t, generator=seeded()).prev_sample for s in (ours, stock))
        assert_same_bits(got, expected)


# ---------------------------------------------------------------------- the chain follows `timesteps`


@pytest.mark.parametrize("cut", [slice(3, None), slice(None, 7), slice(0, None, 2), slice(4, 5)])
@pytest.mark.parametrize("kind", [lambda t: t, lambda t: t.tolist(), lambda t: t.numpy(), lambda t: t.double()])
def test_assigned_timesteps_are_the_chain(cut, kind):
    """As img2img code does after `set_timesteps`; bit for bit what `set_timesteps(timesteps=...)` gives."""
    assigned, chosen = DDPMNoiseScheduler(), DDPMNoiseScheduler()
    assigned.set_timesteps(10)
    chosen.set_timesteps(timesteps=assigned.timesteps[cut].tolist())
    assigned.timesteps = kind(assigned.timesteps[cut])
    assert torch.equal(assigned.timesteps, chosen.timesteps) and assigned.timesteps.dtype == torch.int64
    x_t, output, before = randn(3, 2, 3, 4, 4).unbind()
    for t, eta in itertools.product(chosen.timesteps, (None, 0.5)):
        options = {"eta": eta, "previous_original_sample": before}
        steps = [s.step(output, t, x_t, generator=seeded(), **options).prev_sample for s in (assigned, chosen)]
        assert torch.equal(*steps) and assigned.previous_timestep(t) == chosen.previous_timestep(t)
    last = assigned.step(output, assigned.timesteps[-1], x_t)
    assert torch.allclose(last.prev_sample, last.pred_original_sample, atol=1e-4), "the last step goes to x_0"
    with pytest.raises(IndexError):
        assigned.step(output, 999, x_t)


def test_assigned_timesteps_without_set_timesteps():
    ours = DDPMNoiseScheduler()
    ours.timesteps = ours.timesteps[500:]
    assert (ours.previous_timestep(499), ours.previous_timestep(0)) == (498, -1)
    ours.timesteps = torch.tensor([400, 20])
    assert ours.previous_timestep(torch.tensor([400, 20])).tolist() == [20, -1]


def test_assigned_timesteps_that_are_no_chain_are_refused():
    ours = DDPMNoiseScheduler()
    ours.set_timesteps(10)
    before = ours.timesteps
    for timesteps in (before.flip(0), before + 500, before.double() + 0.5, before[:0], before.double() * math.nan):
        with pytest.raises(ValueError, match=r"timesteps=.*descending order"):
            ours.timesteps = timesteps
    assert ours.timesteps is before and ours.previous_timestep(before[0]) == before[1]


def test_a_copy_has_its_own_chain():
    """Two threads with different numbers of steps sample on copies."""
    ours = DDPMNoiseScheduler()
    ours.set_timesteps(10)
    other = copy.copy(ours)
    other.set_timesteps(7)
    x_t, fresh = randn(1, 1, 4, 4), DDPMNoiseScheduler()
    fresh.set_timesteps(10)
    assert len(ours.timesteps) == 10 and len(other.timesteps) == 7
    for t in ours.timesteps:
        got, expected = (s.step(x_t, t, x_t, generator=seeded()).prev_sample for s in (ours, fresh))
        assert torch.equal(got, expected)


# ---------------------------------------------------------------------- the faults of stock, one by one


@pytest.mark.parametrize("variance_type", ["fixed_large_log", "learned"])
def test_fault_nan_with_two_variance_types(variance_type):
    stock, ours = pair(variance_type=variance_type, clip_sample=False)
    log_beta = ours.betas.log().view(-1, 1, 1, 1, 1)
    x_t, output = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for t in (999, 500, 1):
        both = torch.cat([output, log_beta[t].expand(2, 3, 4, 4)], dim=1)
        model_output = both if variance_type == "learned" else output
        assert stock.step(model_output, t, x_t, generator=seeded()).prev_sample.isnan().all()
        large = DDPMNoiseScheduler(variance_type="fixed_large", clip_sample=False)
        expected = large.step(output, t, x_t, generator=seeded()).prev_sample  # the same Gaussian by another name
        assert torch.allclose(ours.step(model_output, t, x_t, generator=seeded()).prev_sample, expected, atol=1e-5)


def test_fault_a_deviation_or_a_logarithm_where_a_variance_is_promised():
    beta_tilde = DDPMNoiseScheduler()._get_variance(500)
    stock, ours = pair(variance_type="fixed_small_log")
    assert torch.allclose(stock._get_variance(500), beta_tilde.sqrt()) and ours._get_variance(500) == beta_tilde
    stock, ours = pair(variance_type="fixed_large_log")
    assert stock._get_variance(500) < 0 and torch.allclose(ours._get_variance(500), ours.betas[500], rtol=1e-4)
    stock, ours = pair(variance_type="learned")
    v = torch.linspace(-9, -1, 5)
    assert (stock._get_variance(500, v) < 0).all() and torch.equal(ours._get_variance(500, v), v.exp())
    stock, ours = pair(variance_type="learned_range")
    v = torch.linspace(-1, 1, 5)
    assert torch.allclose(ours._get_variance(500, v), stock._get_variance(500, v).exp(), rtol=1e-4)


@pytest.mark.parametrize(("spacing", "variance_type"), list(itertools.product(SPACINGS, VARIANCES)))
def test_fault_noise_on_the_final_image(spacing, variance_type):
    stock, ours = pair(timestep_spacing=spacing, variance_type=variance_type)
    x_t, output = randn(1, 3, 8, 8), randn(1, 6 if "learned" in variance_type else 3, 8, 8, seed=1)
    finals = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        t = scheduler.timesteps[-1]
        finals.append([scheduler.step(output, t, x_t, generator=seeded(seed)).prev_sample for seed in (0, 1)])
    assert torch.equal(*finals[1]), "the final image does not depend on the generator"
    of_numpy = ours.step(output, np.int64(ours.timesteps[-1]), x_t, generator=seeded(1)).prev_sample
    assert torch.equal(of_numpy, finals[1][1])
    per_sample = ours.step(output, ours.timesteps[-1:], x_t)
    assert torch.allclose(per_sample.prev_sample, per_sample.pred_original_sample, atol=1e-4)
    if spacing == "trailing" and variance_type == "fixed_large":
        assert (finals[0][0] - finals[0][1]).std() > 0.2, "stock's does"


@pytest.mark.parametrize("n", [334, 501, 600, 667])
def test_fault_leading_starts_far_from_noise(n):
    stock, ours = pair(timestep_spacing="leading")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(n)
    assert stock.timesteps[0] < 0.7 * 1000
    assert ours.timesteps[0] >= 0.9 * 1000 and ours.alphas_cumprod[ours.timesteps[0]] < 5e-4
    if n == 600:
        assert stock.alphas_cumprod[stock.timesteps[0]] > 0.02


def test_fault_trailing_goes_one_step_too_far():
    """T / n is no binary fraction, and np.arange(T, 0, -T / n) then holds one value near 0: a step at t = -1."""
    stock, ours = pair(timestep_spacing="trailing")
    for scheduler in (stock, ours):
        scheduler.set_timesteps(61)
    assert len(stock.timesteps) == 62 and stock.timesteps[-1] == -1
    assert torch.equal(ours.timesteps, stock.timesteps[:-1])


def test_fault_a_short_linear_chain_is_silent_and_ours_warns(caplog):
    stock = DDPMScheduler(num_train_timesteps=200)
    assert not caplog.records and stock.alphas_cumprod[-1] > 0.1
    ours = DDPMNoiseScheduler(num_train_timesteps=200)
    assert "num_train_timesteps=200" in caplog.text and "squaredcos_cap_v2" in caplog.text
    assert_same_bits(ours.alphas_cumprod, stock.alphas_cumprod)
    caplog.clear()
    for schedule in SCHEDULES:
        DDPMNoiseScheduler(beta_schedule=schedule)
    DDPMNoiseScheduler(num_train_timesteps=200, beta_schedule="squaredcos_cap_v2")
    assert not [r for r in caplog.records if "num_train_timesteps=200" in r.getMessage()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fault_half_precision_noising(dtype):
    stock, ours = pair()
    t = torch.arange(1000)
    x_0, noise = randn(1000, 1, 8, 8, seed=1).to(dtype), randn(1000, 1, 8, 8, seed=2).to(dtype)
    if dtype == torch.bfloat16:
        assert torch.equal(stock.add_noise(x_0, noise, t)[:10], x_0[:10]), "stock adds exactly no noise at t < 10"
    for name in ("add_noise", "get_velocity"):
        exact = getattr(ours, name)(x_0.float(), noise.float(), t)
        got = getattr(ours, name)(x_0, noise, t)
        assert got.dtype == dtype and torch.equal(got, exact.to(dtype)), "the float32 result, rounded once"
    assert (ours.add_noise(x_0, noise, t)[:10] != x_0[:10]).any(dim=(1, 2, 3)).all()


def test_fault_noising_moves_the_schedule():
    stock, ours = pair()
    elsewhere = torch.zeros(2, 1, 2, 2, device="meta")
    for scheduler in (stock, ours):
        scheduler.add_noise(elsewhere, elsewhere, torch.tensor([1, 2]))
    assert stock.alphas_cumprod.device.type == "meta" and ours.alphas_cumprod.device.type == "cpu"
    before = ours.alphas_cumprod.clone()
    ours.add_noise(randn(2, 1, dtype=torch.float64), randn(2, 1, dtype=torch.float64), torch.tensor([1, 2]))
    assert torch.equal(ours.alphas_cumprod, before)


@pytest.mark.parametrize(
    ("variance_type", "eta"), [*[(v, None) for v in VARIANCES], ("fixed_small", 0.0), ("fixed_small", 0.7)]
)
def test_fault_one_timestep_for_all(variance_type, eta):
    stock, ours = pair(variance_type=variance_type)
    x_t, output = randn(4, 3, 4, 4), randn(4, 6 if "learned" in variance_type else 3, 4, 4, seed=1)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(20)
    t = ours.timesteps[[0, 5, 18, 19]]
    with pytest.raises((RuntimeError, IndexError)):
        stock.step(output, t, x_t)
    together = ours.step(output, t, x_t, generator=[seeded(i) for i in range(4)], eta=eta)
    for i in range(4):
        alone = ours.step(output[i : i + 1], t[i], x_t[i : i + 1], generator=seeded(i), eta=eta)
        assert torch.equal(together.prev_sample[i], alone.prev_sample[0])
        assert torch.equal(together.pred_original_sample[i], alone.pred_original_sample[0])


# ---------------------------------------------------------------------- beyond stock


@pytest.mark.parametrize(("prediction_type", "clipped"), list(itertools.product(PREDICTIONS, (False, True))))
def test_eta_has_the_bits_of_ddim(prediction_type, clipped):
    for eta, clipping, n in itertools.product((0.0, 0.5, 1.0), CLIPPINGS, (5, 20)):
        ours = DDPMNoiseScheduler(prediction_type=prediction_type, **clipping)
        ddim = DDIMScheduler.from_config(ours.config)
        samples = []
        for scheduler in (ours, ddim):
            scheduler.set_timesteps(n)
            x_t, g = randn(2, 3, 4, 4), seeded()
            for t in scheduler.timesteps:
                output = torch.tanh(3 * x_t + t / 1000)
                step = scheduler.step(output, t, x_t, eta=eta, use_clipped_model_output=clipped, generator=g)
                x_t = step.prev_sample
            samples.append(x_t)
        assert_same_bits(*samples, (eta, clipping, n))


def test_eta_1_is_the_ancestral_step():
    ours = DDPMNoiseScheduler(clip_sample=False)
    ours.set_timesteps(25)
    x_t, output = randn(2, 3, 4, 4, dtype=torch.float64), randn(2, 3, 4, 4, seed=1, dtype=torch.float64)
    for t in ours.timesteps:
        ancestral, ddim = (ours.step(output, t, x_t, generator=seeded(), eta=eta).prev_sample for eta in (None, 1.0))
        assert torch.allclose(ancestral, ddim, atol=1e-8)


@pytest.mark.parametrize(("eta", "algorithm"), [(0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_second_order_is_dpm_solver(prediction_type, eta, algorithm):
    """On any chain, and for a t of each sample; what is handed on is the guess itself."""
    for spacing, n in itertools.product(SPACINGS, (5, 25)):
        config = {"prediction_type": prediction_type, "clip_sample": False, "timestep_spacing": spacing}
        ours = DDPMNoiseScheduler(**config, beta_schedule="squaredcos_cap_v2", steps_offset=1)
        stock = DPMSolverMultistepScheduler.from_config(
            ours.config, algorithm_type=algorithm, final_sigmas_type="zero"
        )
        ours.set_timesteps(n)
        stock.set_timesteps(timesteps=ours.timesteps.tolist())
        samples = []
        for scheduler in (ours, stock):
            x_t, g, options = randn(2, 3, 4, 4), seeded(), {"eta": eta} if scheduler is ours else {}
            for t in ours.timesteps:
                output = torch.tanh(x_t + t / 1000)
                ts = t.expand(2) if scheduler is ours else t
                step = scheduler.step(output, ts, x_t, generator=g, **options)
                x_t = step.prev_sample
                if scheduler is ours:
                    options["previous_original_sample"] = step.pred_original_sample
            samples.append(x_t)
        assert (samples[0] - samples[1]).abs().max() < 3e-4 * samples[1].abs().max(), (spacing, n)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_ends_are_of_first_order(spacing):
    """The first step has none before it, the last goes to no noise at all; with zero terminal SNR the second has no trend either."""
    for zero_snr, n in itertools.product((False, True), (1, 2, 10, 1000)):
        ours = DDPMNoiseScheduler(timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr, prediction_type="sample")
        ours.set_timesteps(n)
        x_t, x_0, before = randn(3, 1, 4, 4).unbind()
        for i, t in enumerate(ours.timesteps):
            one, two = (
                ours.step(x_0, t, x_t, eta=0.5, use_clipped_model_output=True, **o, generator=seeded())
                for o in ({}, {"previous_original_sample": before})
            )
            first_order = i in (0, n - 1) or (i == 1 and ours.alphas_cumprod[ours.timesteps[0]] == 0)
            assert torch.equal(one.prev_sample, two.prev_sample) == first_order, (n, i)
            assert two.prev_sample.isfinite().all() and torch.equal(one.pred_original_sample, two.pred_original_sample)


def test_second_order_of_equal_guesses_is_first_order():
    ours = DDPMNoiseScheduler(prediction_type="sample")
    ours.set_timesteps(20)
    x_t, x_0 = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1).clamp(-1, 1)
    for t, eta in itertools.product(ours.timesteps, (None, 0.5)):
        options = {"eta": eta, "use_clipped_model_output": eta is not None}
        one = ours.step(x_0, t, x_t, seeded(), **options)
        two = ours.step(x_0, t, x_t, seeded(), previous_original_sample=x_0, **options)
        assert torch.equal(one.prev_sample, two.prev_sample)


@pytest.mark.parametrize(("prediction_type", "variance_type"), list(itertools.product(PREDICTIONS, VARIANCES)))
def test_a_custom_chain_takes_every_option(prediction_type, variance_type):
    """eta, second order and a t for each sample: each sample by itself gives the same bits."""
    ours = DDPMNoiseScheduler(prediction_type=prediction_type, variance_type=variance_type)
    ours.set_timesteps(timesteps=[990, 640, 639, 310, 77, 12, 3])
    t = ours.timesteps[[0, 2, 3, 6]]
    x_t, before, output = randn(4, 1, 4, 4), randn(4, 1, 4, 4, seed=1), randn(4, 2, 4, 4, seed=2)
    output = output if "learned" in variance_type else output[:, :1]
    for eta, clipped, previous in itertools.product((None, 0.0, 0.7, 1.0), (False, True), (None, before)):
        options = {"eta": eta, "use_clipped_model_output": clipped}
        together = ours.step(
            output, t, x_t, [seeded(i) for i in range(4)], previous_original_sample=previous, **options
        ).prev_sample
        for i in range(4):
            row = slice(i, i + 1)
            one = None if previous is None else previous[row]
            alone = ours.step(output[row], int(t[i]), x_t[row], seeded(i), previous_original_sample=one, **options)
            assert torch.equal(together[row], alone.prev_sample), (eta, clipped, i)


@pytest.mark.parametrize("options", [{}, {"eta": 0.5}])
def test_the_noise_may_be_given(options):
    ours, x_t, output, noise = (
        DDPMNoiseScheduler(),
        randn(2, 1, 2, 2),
        randn(2, 1, 2, 2, seed=1),
        randn(2, 1, 2, 2, seed=2),
    )
    drawn, given = (
        ours.step(output, 500, x_t, **options, **noisy).prev_sample
        for noisy in ({"generator": torch.Generator().manual_seed(2)}, {"variance_noise": noise})
    )
    assert torch.equal(drawn, given)
    with pytest.raises(ValueError, match="one of generator and variance_noise"):
        ours.step(output, 500, x_t, torch.Generator(), variance_noise=noise)


# ---------------------------------------------------------------------- graphs and devices


@pytest.mark.parametrize("eta", [None, 0.0])
def test_step_compiles_to_one_graph(eta):
    ours = DDPMNoiseScheduler(variance_type="learned_range")
    ours.set_timesteps(10)
    x_t, output = randn(2, 1, 2, 2), randn(2, 2, 2, 2, seed=1)
    compiled = torch.compile(ours.step, backend="aot_eager", fullgraph=True)
    last = ours.timesteps[-1]  # the last step is the same with and without the draw
    assert torch.allclose(
        compiled(output, last, x_t, eta=eta).prev_sample, ours.step(output, last, x_t, eta=eta).prev_sample
    )
    t = ours.timesteps[:2]
    x_0 = compiled(output, t, x_t, eta=eta).pred_original_sample
    assert torch.allclose(x_0, ours.step(output, t, x_t, eta=eta).pred_original_sample)


@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range"])
@pytest.mark.parametrize("eta", [None, 0.0, 0.5])
def test_no_value_travels_to_the_host_in_the_loop(eta, variance_type):
    """A tensor on "meta" has no values: reading one on the host is an error."""
    ours = DDPMNoiseScheduler(variance_type=variance_type, thresholding=True)
    ours.set_timesteps(10, device="meta")
    x_t, output = (torch.zeros(2, channels, 4, 4, device="meta") for channels in (3, 6))
    output, options = output if variance_type == "learned_range" else x_t, {"eta": eta}
    for t in ours.timesteps:
        for timestep in (t, t.expand(2)):
            x_t, x_0 = ours.step(output, timestep, x_t, return_dict=False, **options)
        options["previous_original_sample"] = x_0
    assert x_t.shape == (2, 3, 4, 4)
    stock = DDPMScheduler()
    stock.set_timesteps(10, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        stock.step(x_t, stock.timesteps[0], x_t)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_no_value_travels_to_the_host_in_training(prediction_type):
    ours = DDPMNoiseScheduler(prediction_type=prediction_type, variance_type="learned_range")
    x_0, noise = torch.zeros(2, 2, 3, 4, 4, device="meta").unbind()
    t, output = torch.zeros(2, dtype=torch.int64, device="meta"), torch.zeros(2, 6, 4, 4, device="meta")
    output.requires_grad_()
    x_t, target = ours.add_noise(x_0, noise, t), ours.get_target(x_0, noise, t)
    mean, log_variance, guess = ours.p_mean_variance(output, t, x_t)
    q_mean, q_variance = ours.posterior(x_0, x_t, t)
    noise_guess = ours.predict_noise(output, t, x_t)
    terms = (output[:, :3] - target, mean - q_mean, log_variance - q_variance.log(), guess, noise_guess)
    sum(term.square().sum() for term in terms).backward()
    assert output.grad.shape == output.shape and ours.q_mean_variance(x_0, t)[1].device.type == "meta"


@pytest.mark.parametrize(("eta", "expected"), [(None, 10), (0.0, 7), (1.0, 10)])
def test_a_step_at_an_int_launches_nothing_for_its_coefficients(eta, expected):
    """Operations on the accelerator in a step at an int t: those of the equations, for coefficients stay on the host."""

    class Count(TorchDispatchMode):
        num_launches = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.num_launches += isinstance(out, torch.Tensor) and out.device.type == "meta"
            return out

    ours, x_t = DDPMNoiseScheduler(), torch.zeros(2, 3, 4, 4, device="meta")
    with Count() as count:
        ours.step(x_t, 500, x_t, eta=eta)
    assert count.num_launches <= expected


@pytest.mark.parametrize(
    "context", [lambda: torch.device("meta"), lambda: init_empty_weights(include_buffers=True), torch.inference_mode]
)
def test_tables_are_made_on_the_host_whatever_the_default_device(context):
    expected, x_t = DDPMNoiseScheduler(), randn(2, 1, 4, 4)
    expected.set_timesteps(10)
    with context():
        for schedule in SCHEDULES:
            made = DDPMNoiseScheduler(beta_schedule=schedule, rescale_betas_zero_snr=True)
            assert made.alphas_cumprod.device.type == "cpu" and made.alphas_cumprod.isfinite().all()
        ours = DDPMNoiseScheduler()
        ours.set_timesteps(10)
        ours.timesteps = ours.timesteps
    for t in expected.timesteps:
        steps = [s.step(x_t, t, x_t, generator=seeded()).prev_sample for s in (ours, expected)]
        assert torch.equal(*steps)
    assert torch.equal(ours.timesteps, expected.timesteps) and ours.timesteps.device.type == "cpu"


def test_tables_made_in_inference_mode_take_part_in_training():
    x_0, noise, t = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1), torch.tensor([3, 500])
    with torch.inference_mode():
        ours = DDPMNoiseScheduler(variance_type="learned_range")
        ours.set_timesteps(1000)
        ours.add_noise(x_0.double(), noise.double(), t)
    for dtype in (torch.float32, torch.float64):
        output = torch.cat([noise, noise], dim=1).to(dtype).requires_grad_()
        x_t = ours.add_noise(x_0.to(dtype), noise.to(dtype), t)
        sum(term.sum() for term in ours.p_mean_variance(output, t, x_t)).backward()
        assert output.grad.isfinite().all()
    weight = torch.ones(2, requires_grad=True)
    (weight * ours.alphas_cumprod[t]).sum().backward()  # as in min-SNR weights
    assert torch.equal(weight.grad, ours.alphas_cumprod[t])


def test_a_schedule_that_was_moved_makes_the_same_tables():
    """Training scripts write `scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)`."""
    ours, x_t = DDPMNoiseScheduler(), randn(1, 1, 4, 4)
    expected = ours.step(x_t, 999, x_t, generator=seeded()).prev_sample
    ours.alphas_cumprod = ours.alphas_cumprod.to("meta")
    ours.set_timesteps(1000)
    assert torch.equal(ours.step(x_t, 999, x_t, generator=seeded()).prev_sample, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_step_keeps_the_dtype_and_computes_in_float32_or_better(dtype):
    ours = DDPMNoiseScheduler()
    x_t, output = randn(2, 3, 4, 4).to(dtype), randn(2, 3, 4, 4, seed=1).to(dtype)
    got = ours.step(output, 300, x_t, generator=seeded()).prev_sample
    assert got.dtype == dtype
    if dtype != torch.float64:
        exact = ours.step(output.float(), 300, x_t.float(), generator=seeded()).prev_sample
        assert torch.equal(got, exact.to(dtype))
