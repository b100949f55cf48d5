"""The scheduler: bit for bit `diffusers.DDPMScheduler` where stock is right, and right where it is wrong."""

import itertools
import os

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

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


@pytest.mark.parametrize("prediction_type, variance_type", list(itertools.product(PREDICTIONS, VARIANCES)))
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


@pytest.mark.parametrize("schedule, zero_snr", list(itertools.product(SCHEDULES, (False, True))))
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


@pytest.mark.parametrize("spacing, offset", [*itertools.product(SPACINGS, (0,)), ("leading", 1)])
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
    "kwargs, words",
    [
        ({"num_inference_steps": 1001}, "num_inference_steps=1001.*1000"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 .*at least 1"),
        ({"num_inference_steps": 5, "timesteps": [1, 0]}, "num_inference_steps=5, timesteps=.1, 0."),
        ({}, "num_inference_steps=None, timesteps=None"),
        ({"timesteps": [5, 6]}, r"timesteps.*descending.*\[5, 6\]"),
        ({"timesteps": [5, 5]}, r"timesteps.*descending.*\[5, 5\]"),
        ({"timesteps": [1000, 5]}, r"timesteps=\[1000, 5\].*chain in 0 .. 999"),
        ({"timesteps": [5, -1]}, r"timesteps=\[5, -1\].*chain in 0 .. 999"),
        ({"timesteps": []}, r"timesteps=\[\]"),
    ],
)
def test_refuses_a_chain(kwargs, words):
    stock, ours = pair()
    with pytest.raises(ValueError, match=words):
        ours.set_timesteps(**kwargs)
    if kwargs in ({"num_inference_steps": 1001}, {"timesteps": [5, 6]}, {"timesteps": [1000, 5]}):
        with pytest.raises(ValueError):
            stock.set_timesteps(**kwargs)
    assert len(ours.timesteps) == 1000, "a refused chain leaves the old one"


def test_refuses_unknown_names():
    for scheduler in pair(timestep_spacing="even"):
        with pytest.raises(ValueError, match="even.*'linspace', 'leading' or 'trailing'"):
            scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="score.*epsilon.*sample.*v_prediction"):
        DDPMNoiseScheduler(prediction_type="score")  # stock refuses it in the first step
    for kind in (DDPMScheduler, DDPMNoiseScheduler):
        with pytest.raises(NotImplementedError, match="cubic"):
            kind(beta_schedule="cubic")
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


@pytest.mark.parametrize("spacing, variance_type", list(itertools.product(SPACINGS, VARIANCES)))
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
    "variance_type, eta", [*[(v, None) for v in VARIANCES], ("fixed_small", 0.0), ("fixed_small", 0.7)]
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


@pytest.mark.parametrize("prediction_type, clipped", list(itertools.product(PREDICTIONS, (False, True))))
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


@pytest.mark.parametrize("eta, algorithm", [(0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")])
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


@pytest.mark.parametrize("eta", [None, 0.0, 0.5])
def test_no_value_travels_to_the_host_in_the_loop(eta):
    """A tensor on "meta" has no values: reading one on the host is an error."""
    ours = DDPMNoiseScheduler(variance_type="fixed_large", thresholding=True)
    ours.set_timesteps(10, device="meta")
    x_t = torch.zeros(2, 3, 4, 4, device="meta")
    for t in ours.timesteps:
        x_t = ours.step(x_t, t, x_t, eta=eta).prev_sample
    assert x_t.shape == (2, 3, 4, 4)
    stock = DDPMScheduler()
    stock.set_timesteps(10, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        stock.step(x_t, stock.timesteps[0], x_t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_step_keeps_the_dtype_and_computes_in_float32_or_better(dtype):
    ours = DDPMNoiseScheduler()
    x_t, output = randn(2, 3, 4, 4).to(dtype), randn(2, 3, 4, 4, seed=1).to(dtype)
    got = ours.step(output, 300, x_t, generator=seeded()).prev_sample
    assert got.dtype == dtype
    if dtype != torch.float64:
        exact = ours.step(output.float(), 300, x_t.float(), generator=seeded()).prev_sample
        assert torch.equal(got, exact.to(dtype))
