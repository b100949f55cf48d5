"""The three parts against their stock twins: same weights, same bits, same images; and right where stock is wrong."""

from itertools import product

import pytest
import torch
from conftest import TINY_UNET
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel

RESNET = {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}
CONFIGS = {
    "plain": {},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "class labels": {"num_class_embeds": 11},
    "labels like time": {"class_embed_type": "timestep"},
    "resnet sampling": RESNET | {"up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")},
    "attention and resnet sampling": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "the paper's details": {
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "attention_head_dim": None,
    },
    "no middle attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "scaled middle": {"mid_block_scale_factor": 1.41, "attn_norm_num_groups": 2},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "six channels, learned variance": {"in_channels": 6, "out_channels": 12},
    "odd head size": {"attention_head_dim": 3},
    "centred input, gelu": {"center_input_sample": True, "act_fn": "gelu"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_unet_is_stock_with_the_same_weights(name):
    config = TINY_UNET | CONFIGS[name]
    torch.manual_seed(0)
    stock = UNet2DModel(**config)
    torch.manual_seed(0)
    ours = DDPMUNet2DModel(**config)
    made, theirs = ours.state_dict(), stock.state_dict()
    assert made.keys() == theirs.keys() and all(torch.equal(made[key], theirs[key]) for key in made)
    UNet2DModel.from_config(ours.config).load_state_dict(made)
    x, t = torch.randn(3, config["in_channels"], 8, 12), torch.tensor([0, 10, 999])
    labels = torch.tensor([0, 1, 10]) if "num_class_embeds" in config or "class_embed_type" in config else None
    outputs = [model(x, t, labels).sample for model in (ours, stock)]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    gradients = [
        torch.autograd.grad(output.square().mean(), list(model.parameters()), allow_unused=True)
        for output, model in zip(outputs, (ours, stock))
    ]
    named = [
        dict(zip((key for key, _ in model.named_parameters()), grads))
        for model, grads in zip((ours, stock), gradients)
    ]
    for key, gradient in named[0].items():
        assert gradient is None or (gradient - named[1][key]).abs().max() < 1e-4


def test_unet_refuses_what_it_cannot_build_or_take():
    with pytest.raises(ValueError, match="SkipDownBlock2D.*AttnDownBlock2D"):
        DDPMUNet2DModel(**TINY_UNET | {"down_block_types": ("SkipDownBlock2D", "DownBlock2D")})
    with pytest.raises(ValueError, match="height 7.*6 or 8"):
        DDPMUNet2DModel(**TINY_UNET)(torch.zeros(1, 1, 7, 8), 0)
    with pytest.raises(ValueError, match="class_labels"):
        DDPMUNet2DModel(**TINY_UNET)(torch.zeros(1, 1, 8, 8), 0, torch.tensor([1]))


def test_gradient_checkpointing_changes_nothing():
    unet, x = DDPMUNet2DModel(**TINY_UNET), torch.randn(2, 1, 8, 8)
    plain = torch.autograd.grad(unet(x, 5).sample.square().mean(), list(unet.parameters()))
    unet.enable_gradient_checkpointing()
    again = torch.autograd.grad(unet(x, 5).sample.square().mean(), list(unet.parameters()))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, again))


PRODUCT = list(
    product(
        ["linear", "squaredcos_cap_v2", "sigmoid"],
        ["epsilon", "sample", "v_prediction"],
        ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"],
        ["leading", "linspace", "trailing"],
        [{}, {"clip_sample": False}, {"thresholding": True, "sample_max_value": 2.0}],
    )
)


@pytest.mark.parametrize("num_inference_steps", [None, 7, 50])
def test_step_gives_the_bits_of_stock(num_inference_steps):
    x = torch.randn(2, 3, 4, 4)
    for schedule, prediction_type, variance_type, spacing, clipping in PRODUCT:
        config = {"beta_schedule": schedule, "prediction_type": prediction_type, "variance_type": variance_type}
        config |= {"timestep_spacing": spacing} | clipping
        stock, ours = DDPMScheduler(**config), DDPMNoiseScheduler(**config)
        if num_inference_steps:
            stock.set_timesteps(num_inference_steps)
            ours.set_timesteps(num_inference_steps)
        assert torch.equal(stock.timesteps, ours.timesteps)
        output = torch.randn(2, 6 if variance_type == "learned_range" else 3, 4, 4)
        for t in stock.timesteps[[0, len(stock.timesteps) // 2, -1]]:
            if spacing == "trailing" and t == stock.timesteps[-1]:
                continue  # stock adds noise to the last image
            theirs, mine = (s.step(output, t, x, generator=torch.Generator().manual_seed(3)) for s in (stock, ours))
            assert torch.equal(theirs.prev_sample, mine.prev_sample), config
            assert torch.equal(theirs.pred_original_sample, mine.pred_original_sample), config


def test_the_last_image_gets_no_noise():
    x, output = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    noise = {}
    for kind in (DDPMScheduler, DDPMNoiseScheduler):
        scheduler = kind(variance_type="fixed_large", timestep_spacing="trailing")
        scheduler.set_timesteps(10)
        noise[kind] = scheduler.step(output, scheduler.timesteps[-1], x).prev_sample.std()
    assert noise[DDPMScheduler] > 0.1 and noise[DDPMNoiseScheduler] == 0


@pytest.mark.parametrize("variance_type", ["fixed_large_log", "learned"])
def test_variances_that_are_nan_in_stock(variance_type):
    output = -torch.rand(2, 6 if variance_type == "learned" else 3, 4, 4)
    results = [
        s(variance_type=variance_type).step(output, 500, torch.randn(2, 3, 4, 4))
        for s in (DDPMScheduler, DDPMNoiseScheduler)
    ]
    assert results[0].prev_sample.isnan().any() and results[1].prev_sample.isfinite().all()


def test_bf16_noising_keeps_the_first_timesteps():
    x_0, noise, t = torch.zeros(10, 1, 8, 8).bfloat16(), torch.randn(10, 1, 8, 8).bfloat16(), torch.arange(10)
    ours = DDPMNoiseScheduler()
    exact = ours.add_noise(x_0.float(), noise.float(), t)
    assert (DDPMScheduler().add_noise(x_0, noise, t) == 0).all()
    assert torch.equal(ours.add_noise(x_0, noise, t), exact.bfloat16())
    assert ours.alphas_cumprod.dtype == torch.float32


def test_add_noise_and_velocity_give_the_bits_of_stock():
    x_0, noise, t = torch.randn(1000, 1, 2, 2), torch.randn(1000, 1, 2, 2), torch.arange(1000)
    for name in ("add_noise", "get_velocity"):
        assert torch.equal(
            getattr(DDPMNoiseScheduler(), name)(x_0, noise, t), getattr(DDPMScheduler(), name)(x_0, noise, t)
        )


@pytest.mark.parametrize("use_clipped_model_output", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_eta_is_ddim(prediction_type, eta, use_clipped_model_output):
    stock, ours = (kind(prediction_type=prediction_type) for kind in (DDIMScheduler, DDPMNoiseScheduler))
    x, output = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(20)
    for t in stock.timesteps:
        options = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        steps = [
            s.step(output, t, x, generator=torch.Generator().manual_seed(0), **options).prev_sample
            for s in (stock, ours)
        ]
        if eta == 0 or t > 0:  # stock's DDIM draws noise on its last step too
            assert torch.allclose(*steps, atol=1e-6)


def test_one_timestep_per_sample():
    scheduler = DDPMNoiseScheduler()
    x, output, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([3, 500, 999])
    together = scheduler.step(output, t, x, generator=[torch.Generator().manual_seed(i) for i in range(3)]).prev_sample
    for i in range(3):
        alone = scheduler.step(output[i : i + 1], t[i], x[i : i + 1], generator=torch.Generator().manual_seed(i))
        assert torch.equal(together[i : i + 1], alone.prev_sample)


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_gaussian_with_its_exact_denoiser_is_sampled_exactly(prediction_type, eta, generator):
    """x_0 ~ N(m, s^2): E[x_0 | x_t] = m + abar^.5 s^2 (x_t - abar^.5 m) / (abar s^2 + 1 - abar); 200 steps give back m and s."""
    m, s, n = 0.3, 0.4, 20_000
    scheduler = DDPMNoiseScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(200)
    x = torch.randn(n, 1, 1, 1, generator=generator)
    for t in scheduler.timesteps:
        abar = scheduler.alphas_cumprod[t]
        x_0 = m + abar.sqrt() * s**2 * (x - abar.sqrt() * m) / (abar * s**2 + 1 - abar)
        noise = (x - abar.sqrt() * x_0) / (1 - abar).sqrt()
        x = scheduler.step(scheduler.get_target(x_0, noise, t), t, x, generator=generator, eta=eta).prev_sample
    assert abs(x.mean() - m) < 0.02 and abs(x.std() - s) < 0.02


def pipelines(**config):
    torch.manual_seed(0)
    ours = DDPMUNet2DModel(**TINY_UNET | config).eval()
    stock = UNet2DModel(**TINY_UNET | config).eval()
    stock.load_state_dict(ours.state_dict())
    pair = DDPMImagePipeline(ours, DDPMNoiseScheduler()), DDPMPipeline(stock, DDPMScheduler())
    for pipe in pair:
        pipe.set_progress_bar_config(disable=True)
    return pair


def test_pipeline_gives_the_images_of_stock():
    images = [pipe(2, torch.Generator().manual_seed(0), 20, "np").images for pipe in pipelines()]
    assert abs(images[0] - images[1]).max() < 1e-4


def test_guidance_is_the_two_call_formula_in_one():
    pipe = pipelines(num_class_embeds=11)[0]
    pipe.id2label = {i: f"class {i}" for i in range(10)}
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor(500), torch.tensor([1, 4])
    null = torch.full((2,), pipe.null_label)
    guided = pipe._predict(x, t, labels, null, 3.0, 0.0)
    with torch.no_grad():
        one, other = pipe.unet(x, t, labels).sample, pipe.unet(x, t, null).sample
    assert torch.allclose(guided, other + 3.0 * (one - other), atol=1e-5)


def test_callback_replaces_latents_and_interrupts():
    pipe, seen = pipelines()[0], []

    def callback(pipe, i, t, tensors):
        seen.append(int(t))
        pipe.interrupt = i == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = pipe(num_inference_steps=5, output_type="np", callback_on_step_end=callback).images
    assert len(seen) == 2 and (images == 0.5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"output_type": "gif"}, "output_type='gif'"),
        ({"class_labels": 3}, "without class labels"),
        ({"guidance_scale": 2.0}, "needs class_labels"),
        ({"batch_size": 3, "generator": [torch.Generator()] * 2}, "generator"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "'x'"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_pipeline_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipelines()[0](**arguments)
