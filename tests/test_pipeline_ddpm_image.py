"""The pipeline against `diffusers.DDPMPipeline`, then labels, guidance, generators and the rest of its arguments."""

import ast
import inspect
import json
import shutil
import types
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    ConfigMixin,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    ModelMixin,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import get_device
from PIL import Image
from tiny import ROOT, TINY_UNET

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel
from ddpm_hf.pipeline_ddpm_image import has_bfloat16

NAMES = {0: "T-shirt", 1: "Trouser", 2: "Bag"}
FAST = {"num_inference_steps": 25, "eta": 1.0, "solver_order": 2}


def make_unet(kind=DDPMUNet2DModel, **config):
    torch.manual_seed(0)
    return kind(**(TINY_UNET | config)).eval()


def make_pipeline(unet=None, scheduler=None, id2label=None, sampling=None, **config) -> DDPMImagePipeline:
    pipe = DDPMImagePipeline(unet or make_unet(**config), scheduler or DDPMNoiseScheduler(), id2label, sampling)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def labelled():
    """Three classes and a null label; keeps (x_t, class_labels) of each call of its U-Net."""
    pipe = make_pipeline(num_class_embeds=4, id2label=NAMES)
    pipe.calls = []
    keep = lambda module, args, options: pipe.calls.append((args[0], options["class_labels"]))  # noqa: E731
    pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    return pipe


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]


class ExactDenoiser(ModelMixin, ConfigMixin):
    """E[noise | x_t] of data N(mean, 0.25) in every pixel, label c at 0.1 c more: smooth, and the same arithmetic for a pixel in any batch."""

    @register_to_config
    def __init__(
        self, sample_size: int = 4, in_channels: int = 2, mean: float = 0.2, num_class_embeds: int | None = None
    ):
        super().__init__()
        self.register_buffer("alphas_cumprod", DDPMNoiseScheduler().alphas_cumprod)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        abar = self.alphas_cumprod[timestep.long()]
        scale = (1 - abar).sqrt() / (0.25 * abar + 1 - abar)
        mean = self.config.mean + (0 if class_labels is None else 0.1 * class_labels.reshape(-1, 1, 1, 1))
        return (scale * (sample - abar.sqrt() * mean),)


# ---------------------------------------------------------------------- a drop-in for DDPMPipeline


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_stock_parts_give_the_images_of_stock(prediction_type, output_type):
    unet, scheduler = (
        make_unet(UNet2DModel, in_channels=3, out_channels=3),
        DDPMScheduler(prediction_type=prediction_type),
    )
    results = []
    for kind in (DDPMPipeline, DDPMImagePipeline):
        pipe = kind(unet=unet, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        results.append(
            pipe(2, seeds(5)[0], 6, output_type, return_dict=False)[0]
        )  # stock's arguments in stock's order
    stock, ours = ([np.asarray(image) for image in images] for images in results)
    assert type(results[0]) is type(results[1]) and np.array_equal(stock, ours)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("given", ["one", "one in a list", "list"])
def test_our_parts_give_the_images_of_stock(prediction_type, given):
    """One part at a time: the scheduler has stock's bits; the U-Net agrees to rounding, which an untrained chain of steps may enlarge."""
    generators = {"one": lambda: seeds(1)[0], "one in a list": lambda: seeds(1), "list": lambda: seeds(1, 2)}
    images = []
    for scheduler_kind, pipeline_kind in ((DDPMScheduler, DDPMPipeline), (DDPMNoiseScheduler, DDPMImagePipeline)):
        scheduler = scheduler_kind(prediction_type=prediction_type)
        pipe = pipeline_kind(unet=make_unet(UNet2DModel), scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        images.append(
            pipe(batch_size=2, generator=generators[given](), num_inference_steps=5, output_type="np").images
        )
    assert np.array_equal(*images)
    whole = make_pipeline(make_unet(), DDPMNoiseScheduler(prediction_type=prediction_type))
    image = whole(batch_size=2, generator=generators[given](), num_inference_steps=5, output_type="np").images
    assert np.abs(image - images[0]).max() < 1e-5


def test_takes_all_of_stocks_arguments_in_its_order():
    stock, ours = (list(inspect.signature(kind.__call__).parameters) for kind in (DDPMPipeline, DDPMImagePipeline))
    assert ours[: len(stock)] == stock


@pytest.mark.parametrize(
    "kind",
    [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler],
)
def test_any_scheduler_of_diffusers_samples_the_data(kind):
    """With the exact denoiser of N(0.2, 0.25) every sampler must give that mean and deviation, to its own bias at 200 steps."""
    scheduler = kind.from_config(DDPMNoiseScheduler(clip_sample=False, timestep_spacing="trailing").config)
    pipe = make_pipeline(ExactDenoiser(sample_size=32), scheduler)
    x_0 = []
    pipe(16, seeds(0)[0], 200, "pt", callback_on_step_end=lambda pipe, i, t, tensors: x_0.append(tensors["latents"]))
    assert abs(x_0[-1].mean() - 0.2) < 0.02 and abs(x_0[-1].std() - 0.5) < 0.03


# ---------------------------------------------------------------------- outputs, steps, latents


def test_output_types():
    pipe = make_pipeline(in_channels=3, out_channels=3, sample_size=(8, 12))
    options = {"batch_size": 2, "num_inference_steps": 2}
    as_np = pipe(generator=seeds(0)[0], output_type="np", **options).images
    as_pt = pipe(generator=seeds(0)[0], output_type="pt", **options).images
    as_pil = pipe(generator=seeds(0)[0], **options).images
    assert as_np.shape == (2, 8, 12, 3) and as_np.dtype == np.float32 and as_np.min() >= 0 and as_np.max() <= 1
    assert as_pt.shape == (2, 3, 8, 12) and np.array_equal(as_pt.permute(0, 2, 3, 1).numpy(), as_np)
    assert all(isinstance(image, Image.Image) and image.size == (12, 8) for image in as_pil)
    assert np.array_equal(np.stack([np.asarray(image) for image in as_pil]), (as_np * 255).round().astype(np.uint8))
    assert make_pipeline()(num_inference_steps=1).images[0].mode == "L"
    (images,) = pipe(num_inference_steps=1, output_type="np", return_dict=False)
    assert images.shape == (1, 8, 12, 3)


@pytest.mark.parametrize("T", [1000, 20])
def test_the_saved_way_of_sampling_is_the_default(T):
    """Naming a part of it changes nothing, naming another leaves it."""
    scheduler = DDPMNoiseScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2")
    pipe, steps = make_pipeline(scheduler=scheduler, sampling=FAST), min(25, T)

    def draw(pipe=pipe, **options):
        return pipe(generator=seeds(0)[0], output_type="pt", **options).images

    image = draw()
    for named in (
        {"num_inference_steps": steps},
        {"eta": 1.0},
        {"solver_order": 2},
        {"eta": 1, "num_inference_steps": steps},
    ):
        assert torch.equal(draw(**named), image), named
    plain = make_pipeline(scheduler=scheduler)
    rule = {"num_inference_steps": steps, "eta": 1.0, "solver_order": 2}
    assert torch.equal(draw(autocast=False), draw(plain, **rule))
    assert torch.equal(draw(num_inference_steps=10), draw(plain, num_inference_steps=10))  # the scheduler's own rule
    assert torch.equal(draw(eta=0.0, autocast=False), draw(plain, num_inference_steps=steps, eta=0.0))


@pytest.mark.parametrize("named", [{}, {"num_inference_steps": 10}, {"eta": 0.0}, {"solver_order": 1, "eta": 0.5}])
def test_resolve_sampling_returns_what_a_call_does(named):
    pipe = make_pipeline(sampling=FAST | {"num_inference_steps": 5})
    resolved = pipe.resolve_sampling(**named, is_conditional=False)
    assert named.items() <= resolved.items() and resolved["guidance_scale"] == 1
    images = [pipe(generator=seeds(0)[0], output_type="pt", **words).images for words in (named, resolved)]
    assert torch.equal(*images)


def test_the_saved_timesteps_belong_to_the_saved_rule():
    """Naming its number, or a part of the rule, keeps them; another number or rule has the scheduler's own spacing."""
    own = [900, 500, 200, 50]
    saved = {"num_inference_steps": 4, "timesteps": own, "eta": 0.5, "solver_order": 2}
    pipe, spaced = make_pipeline(sampling=saved), [750, 500, 250, 0]

    def taken(**options) -> list[int]:
        times = []
        pipe(**options, callback_on_step_end=lambda pipe, i, t, tensors: times.append(int(t)))
        return times

    assert taken() == taken(num_inference_steps=4) == taken(eta=0.5) == taken(timesteps=own) == own
    assert taken(eta=0.0) == taken(solver_order=1) == spaced
    assert taken(num_inference_steps=2) == [500, 0] and taken(timesteps=np.array([700, 30])) == [700, 30]
    pipe.scheduler = DDPMNoiseScheduler(num_train_timesteps=500, beta_schedule="squaredcos_cap_v2")  # which is shorter
    assert taken() == [375, 250, 125, 0]
    pipe.scheduler = DPMSolverMultistepScheduler()  # which is not the one that they were chosen for
    pipe.scheduler.set_timesteps(4)
    assert taken() == pipe.scheduler.timesteps.tolist() != own
    image = make_pipeline(sampling=saved)(generator=seeds(0)[0], output_type="pt", autocast=False).images
    named = make_pipeline()(generator=seeds(0)[0], output_type="pt", timesteps=own, eta=0.5, solver_order=2).images
    assert torch.equal(image, named)


@pytest.mark.parametrize("kind", [DDPMNoiseScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_guidance_acts_in_its_interval_alone(labelled, kind):
    """Outside of it a step is one of the condition without guidance; `num_evaluations` counts what is computed."""
    labelled.scheduler = kind()
    options = {"num_inference_steps": 5, "class_labels": [0, 1], "output_type": "pt"}

    def draw(guidance_scale=3.0, **named):
        labelled.calls.clear()
        sampling = labelled.resolve_sampling(5, guidance_scale=guidance_scale, **named)
        images = labelled(generator=seeds(0)[0], guidance_scale=guidance_scale, **named, **options).images
        assert sum(len(x_t) for x_t, _ in labelled.calls) == 2 * labelled.num_evaluations(sampling)
        return images

    plain, guided = draw(1.0), draw()
    labelled.scheduler.set_timesteps(5)
    times = labelled.scheduler.timesteps.tolist()
    assert torch.equal(draw(guidance_interval=(0, 1000)), guided)
    assert torch.equal(draw(guidance_interval=[times[0] + 1, 1000]), plain)
    some = draw(guidance_interval=(times[3], times[1]))
    assert [len(x_t) for x_t, _ in labelled.calls] == [2, 4, 4, 4, 2]
    assert not torch.equal(some, guided) and not torch.equal(some, plain)
    labelled.sampling = {"guidance_interval": [times[3], times[1]]}
    assert torch.equal(draw(), some) and torch.equal(draw(guidance_interval=(0, 1000)), guided)
    assert labelled.resolve_sampling(5, guidance_scale=1.0)["guidance_interval"] is None


def test_without_a_saved_way_the_default_is_stocks():
    timesteps = []
    make_pipeline(scheduler=DDPMNoiseScheduler(num_train_timesteps=50))(
        callback_on_step_end=lambda pipe, i, t, tensors: timesteps.append(int(t))
    )
    assert timesteps == list(range(49, -1, -1))


def test_the_saved_guidance_is_that_of_named_classes():
    options = {"generator": None, "num_inference_steps": 2, "output_type": "pt"}
    plain, saved = (make_pipeline(**WITH_NULL, sampling=s) for s in (None, {"guidance_scale": 3.0}))
    for labels, scale in (("Bag", 3.0), (None, 1.0)):
        options["generator"] = seeds(0)[0]
        image = saved(class_labels=labels, **options).images
        options["generator"] = seeds(0)[0]
        assert torch.equal(image, plain(class_labels=labels, guidance_scale=scale, **options).images)


@pytest.mark.parametrize(
    "sampling",
    [
        {"steps": 4},
        {"eta": 2.0},
        {"eta": [0.5]},
        {"num_inference_steps": 2.5},
        {"solver_order": True},
        {"timesteps": 5, "num_inference_steps": 1},
        {"timesteps": [5, 0.5], "num_inference_steps": 2},
        {"timesteps": [], "num_inference_steps": 0},
        {"timesteps": [5, 9], "num_inference_steps": 2},
        {"timesteps": [9, 5], "num_inference_steps": 3},
        {"guidance_interval": [100]},
        {"guidance_interval": [800, 100]},
        {"guidance_interval": (100, True)},
    ],
)
def test_a_way_of_sampling_that_no_call_takes_is_refused(sampling):
    with pytest.raises(ValueError, match=f"sampling has {next(iter(sampling))}="):
        make_pipeline(sampling=sampling)


@pytest.mark.parametrize("steps", [None, 4])
def test_eta_is_refused_where_the_step_takes_none(steps):
    """Ancestral samples are not what eta=0 asks for. The fast default asks for nothing, and takes the scheduler's rule."""
    pipe = make_pipeline(scheduler=DDPMScheduler())
    assert len(pipe(num_inference_steps=steps).images) == 1
    pipe.unet.forward = None
    with pytest.raises(ValueError, match=r"eta=0.0: DDPMScheduler takes none"):
        pipe(num_inference_steps=steps, eta=0.0)
    with pytest.raises(ValueError, match="solver_order=2: DDPMScheduler takes none"):
        pipe(num_inference_steps=steps, solver_order=2)


def test_the_saved_rule_is_the_saved_schedulers():
    """Another scheduler takes the saved number of steps, by its own rule."""
    pipe = make_pipeline(scheduler=DDIMScheduler(), sampling=FAST)
    plain = make_pipeline(scheduler=DDIMScheduler())
    image = pipe(generator=seeds(0)[0], autocast=False, output_type="pt").images
    assert torch.equal(image, plain(generator=seeds(0)[0], num_inference_steps=25, output_type="pt").images)


def test_a_callback_does_what_it_likes_in_steps_of_second_order():
    """It may write to the tensors that it gets, and give latents of another shape: the next step is then of first order."""
    pipe, options = make_pipeline(sampling=FAST), {"autocast": False, "output_type": "pt"}

    def previews(pipe, i, t, tensors):
        tensors["pred_original_sample"].div_(2).add_(0.5)

    def halves(pipe, i, t, tensors):
        return {"latents": tensors["latents"][:1]} if i == 3 else None

    alone, watched = (pipe(generator=seeds(0)[0], callback_on_step_end=c, **options).images for c in (None, previews))
    assert torch.equal(alone, watched)
    assert len(pipe(2, callback_on_step_end=halves, **options).images) == 1


def test_second_order_samples_the_data_in_25_steps():
    """The deviation of N(0.2, 0.25), which 25 steps of first order miss."""
    scheduler = DDPMNoiseScheduler(clip_sample=False, timestep_spacing="trailing")
    pipe, ends = make_pipeline(ExactDenoiser(sample_size=64), scheduler), {}
    for order in (1, 2):
        keep = lambda pipe, i, t, tensors, order=order: ends.update({order: tensors["latents"]})  # noqa: E731
        pipe(16, seeds(0)[0], 25, eta=1.0, solver_order=order, callback_on_step_end=keep)
    errors = [abs(ends[order].std() - 0.5) for order in (1, 2)]
    assert errors[1] < 0.01 < 0.03 < errors[0] and abs(ends[2].mean() - 0.2) < 0.01


def test_ddim_depends_on_the_latents_alone():
    pipe = make_pipeline(sampling=FAST)
    latents = torch.randn(2, 1, 8, 8, generator=seeds(0)[0])
    images = [pipe(latents=latents, generator=seeds(s)[0], eta=0.0, output_type="pt").images for s in (1, 2)]
    assert torch.equal(*images) and len(images[0]) == 2
    named = pipe(num_inference_steps=25, latents=latents, eta=0.0, autocast=False, output_type="pt").images
    images.append(pipe(latents=latents, eta=0.0, autocast=False, output_type="pt").images)
    assert torch.equal(named, images[-1])  # whoever names eta gets DDIM
    drawn = pipe(batch_size=2, generator=seeds(0)[0], eta=0.0, output_type="pt").images
    assert torch.equal(images[0], drawn)


def test_a_bf16_unet_keeps_float32_latents():
    pipe = make_pipeline(make_unet().to(torch.bfloat16))
    dtypes = []
    image = pipe(
        num_inference_steps=3,
        output_type="pt",
        callback_on_step_end=lambda pipe, i, t, tensors: dtypes.append(tensors["latents"].dtype),
    ).images
    assert set(dtypes) == {torch.float32} and image.dtype == torch.float32 and pipe.unet.dtype == torch.bfloat16


def test_no_value_travels_to_the_host_in_the_loop():
    """A U-Net on "meta" computes shapes and no values: whatever the loop read on the host would be an error."""
    with torch.device("meta"):
        unet = make_unet(num_class_embeds=4)
    pipe = make_pipeline(unet, id2label=NAMES)
    repaint = {"image": np.zeros((8, 8)), "mask_image": np.ones((8, 8)), "num_resample": 2}
    change = {"image": np.zeros((8, 8)), "strength": 0.5}
    for given in ({}, {"eta": 0.0}, {"eta": 0.5}, repaint, change, {"image": np.zeros((4, 4))}):
        images = pipe(
            num_inference_steps=4, class_labels=["Bag", 0], guidance_scale=2.0, output_type="pt", **given
        ).images
        assert images.shape == (2, 1, 8, 8) and images.device.type == "meta"


# ---------------------------------------------------------------------- one generator for each image


@pytest.mark.parametrize("options", [{}, {"num_inference_steps": 20}, {"num_inference_steps": 20, "eta": 0.5}])
def test_an_image_depends_on_its_own_generator_only(options):
    """Bit for bit, with a model that gives a pixel the same arithmetic in every batch: noise, steps and images know no batch."""
    pipe = make_pipeline(ExactDenoiser())
    together = pipe(generator=seeds(1, 2, 3), output_type="pt", **options).images
    for i, seed in enumerate((1, 2, 3)):
        alone = pipe(generator=seeds(seed), output_type="pt", **options).images
        assert torch.equal(together[i], alone[0])
        assert torch.equal(pipe(generator=seeds(9, seed), output_type="pt", **options).images[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_an_image_of_a_unet_depends_on_its_batch_by_rounding_only():
    """Kernels sum in another order for another batch size; one call differs by rounding, and a model that predicts x_0 does not enlarge it."""
    pipe = make_pipeline(scheduler=DDPMNoiseScheduler(prediction_type="sample"))
    together = pipe(generator=seeds(1, 2, 3), num_inference_steps=20, output_type="np").images
    for i, seed in enumerate((1, 2, 3)):
        alone = pipe(generator=seeds(seed), num_inference_steps=20, output_type="np").images
        assert np.abs(together[i] - alone[0]).max() < 1e-5


# ---------------------------------------------------------------------- class labels and guidance


def test_fault_stock_cannot_sample_a_class_conditional_model():
    pipe = DDPMPipeline(make_unet(UNet2DModel, num_class_embeds=4), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="class_labels"):
        pipe(num_inference_steps=2)
    ours = make_pipeline(make_unet(UNet2DModel, num_class_embeds=4), DDPMScheduler(), NAMES)
    assert len(ours(num_inference_steps=2, class_labels=[0, 1]).images) == 2


@pytest.mark.parametrize("given", [[2, 0], ["Bag", "T-shirt"], ["bag", 0], torch.tensor([2, 0]), (2, 0)], ids=str)
def test_labels_by_number_and_name(labelled, given):
    options = {"num_inference_steps": 2, "output_type": "pt"}
    images = labelled(generator=seeds(1, 2), class_labels=given, **options).images
    assert all(args[1].tolist() == [2, 0] for args in labelled.calls) and len(labelled.calls) == 2
    assert torch.equal(images, labelled(generator=seeds(1, 2), class_labels=[2, 0], **options).images)
    assert not torch.equal(images, labelled(generator=seeds(1, 2), class_labels=[1, 1], **options).images)


@pytest.mark.parametrize("given", [2, np.int64(2), "Bag", torch.tensor(2)])
def test_one_label_serves_all_images(labelled, given):
    assert len(labelled(batch_size=3, class_labels=given, num_inference_steps=1).images) == 3
    assert labelled.calls[0][1].tolist() == [2, 2, 2]


def test_no_label_is_the_null_label(labelled):
    labelled(batch_size=2, num_inference_steps=1)
    assert labelled.null_label == 3 and labelled.calls[0][1].tolist() == [3, 3]
    assert make_pipeline().null_label is None
    assert make_pipeline(num_class_embeds=3, id2label=NAMES).null_label is None
    assert make_pipeline(num_class_embeds=3).null_label is None  # a stock model's: classes all of them


def test_get_label_ids(labelled):
    assert labelled.get_label_ids(["bag", "T-SHIRT"]) == [2, 0] and labelled.get_label_ids("Trouser") == [1]


def test_encode_null_and_denoise(labelled):
    """The user's words -> the network's keywords; its null has the same shape; the network gets them as they are."""
    condition = labelled.encode("Bag", batch_size=2)
    assert condition["class_labels"].tolist() == [2, 2] and labelled.takes == ("class_labels",)
    assert labelled.encode(batch_size=3)["class_labels"].tolist() == [3, 3, 3]
    assert labelled.null(condition)["class_labels"].tolist() == [3, 3]
    x_t = torch.randn(2, 1, 8, 8, generator=seeds(0)[0])
    with torch.no_grad():
        output = labelled.denoise(x_t, torch.tensor(7), condition)
        assert torch.equal(output, labelled.unet(x_t, 7, class_labels=condition["class_labels"]).sample)
        other = labelled.denoise(x_t, torch.tensor([7, 7]), condition, network=make_unet(num_class_embeds=4))
    assert (output - other).abs().max() < 1e-5 and len(labelled.calls) == 2  # another network is not the pipeline's
    plain = make_pipeline()
    assert plain.takes == () and plain.encode(batch_size=2) == {} == plain.null({})


def test_the_network_is_called_in_one_place():
    """Read from the source: `denoise` alone calls a network; everybody else goes through it."""
    calls = []
    for path in [
        *(ROOT / "ddpm_hf").rglob("*.py"),
        *(path for path in (ROOT / "spaces_app").glob("*.py") if not path.is_symlink()),
        *(ROOT / "scripts").glob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("unet", "network", "model", "eval_unet"):
                    calls.append((path.name, name))
    assert calls == [("pipeline_ddpm_image.py", "network")]


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_in_one_call_is_the_formula_in_two(labelled, rescale):
    """null + w (cond - null), then its deviation put back to cond's by a share of `rescale` (arXiv:2305.08891, Eq. 15, 16)."""
    labels, w, options = torch.tensor([0, 2]), 3.0, {"num_inference_steps": 4, "output_type": "pt", "eta": 0.0}
    got = labelled(
        generator=seeds(1, 2), class_labels=labels, guidance_scale=w, guidance_rescale=rescale, **options
    ).images
    assert len(labelled.calls) == 4 and all(len(args[0]) == 4 for args in labelled.calls), (
        "one batched call for each step"
    )
    x_t = torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in seeds(1, 2)])
    scheduler = DDPMNoiseScheduler()
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            cond, null = (labelled.unet(x_t, t, class_labels=y).sample for y in (labels, torch.full_like(labels, 3)))
            guided = null + w * (cond - null)
            ratio = cond.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
            guided = guided * (rescale * ratio + 1 - rescale)
            x_t = scheduler.step(guided, t, x_t, eta=0.0, use_clipped_model_output=True).prev_sample
    assert (got - (x_t / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-5


def test_a_cpu_that_converts_has_no_bfloat16(monkeypatch):
    for machine, avx512, amx, onednn, expected in [
        ("x86_64", False, False, True, False),  # most laptops: oneDNN says yes, and is slow
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("aarch64", False, False, True, True),
        ("aarch64", False, False, False, False),
    ]:
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda onednn=onednn: onednn)
        assert has_bfloat16(torch.device("cpu")) is expected, (machine, avx512, amx, onednn)


@pytest.mark.parametrize("native", [True, False])
def test_the_fast_default_computes_in_bfloat16_where_the_hardware_does(monkeypatch, native):
    monkeypatch.setattr("ddpm_hf.pipeline_ddpm_image.has_bfloat16", lambda device: native)
    pipe, dtypes = make_pipeline(sampling=FAST), []
    pipe.unet.conv_out.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    calls = [
        ({}, torch.bfloat16 if native else torch.float32),
        ({"autocast": False}, torch.float32),
        ({"num_inference_steps": 25}, torch.bfloat16 if native else torch.float32),  # naming a default changes nothing
        ({"num_inference_steps": 1}, torch.float32),
    ]
    for options, dtype in [*calls, ({"num_inference_steps": 1, "autocast": True}, torch.bfloat16)]:
        dtypes.clear()
        pipe(batch_size=2, **options)
        assert set(dtypes) == {dtype}, options
    dtypes.clear()
    pipe.to(torch.float64)(batch_size=2)  # who chose a precision has it
    assert set(dtypes) == {torch.float64}


def test_guidance_scale_1_is_one_plain_call(labelled):
    labelled(class_labels=[0, 1], num_inference_steps=1)
    assert len(labelled.calls[0][0]) == 2


def test_guidance_leaves_the_learned_variance_alone():
    options = {"out_channels": 2, "num_class_embeds": 4, "id2label": NAMES}
    pipe = make_pipeline(**options, scheduler=DDPMNoiseScheduler(variance_type="learned_range"))
    x_t, t = torch.randn(2, 1, 8, 8, generator=seeds(0)[0]), torch.tensor(500)
    labels, null = torch.tensor([0, 1]), torch.tensor([3, 3])
    with torch.no_grad():
        cond, uncond = pipe.unet(x_t, t, labels).sample, pipe.unet(x_t, t, null).sample
        for rescale in (0.0, 1.0):
            output = pipe._guided(x_t, t, {"class_labels": torch.cat([labels, null])}, 3.0, rescale)
            assert (output[:, 1:] - cond[:, 1:]).abs().max() < 1e-5
            if rescale:
                deviation = [x[:, :1].std((1, 2, 3)) for x in (output, cond)]
                assert torch.allclose(*deviation, rtol=1e-4)
            else:
                assert (output[:, :1] - (uncond + 3 * (cond - uncond))[:, :1]).abs().max() < 1e-5
    assert pipe(num_inference_steps=3, class_labels=[0, 1], guidance_scale=2.0, output_type="np").images.shape == (
        2,
        8,
        8,
        1,
    )


def test_another_scheduler_gets_no_learned_variance():
    """`from_config` of a model with one: the U-Net still predicts it, DDIM does not know it."""
    config = {"out_channels": 2}
    ours = DDPMNoiseScheduler(variance_type="learned_range")
    for kind in (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler):
        pipe = make_pipeline(scheduler=kind.from_config(ours.config), **config)
        assert pipe(2, num_inference_steps=3, output_type="np").images.shape == (2, 8, 8, 1), kind
    images = [
        make_pipeline(scheduler=kind.from_config(ours.config), **config)
        for kind in (DDPMScheduler, DDPMNoiseScheduler)
    ]
    images = [pipe(generator=seeds(0)[0], num_inference_steps=4, output_type="pt").images for pipe in images]
    assert torch.equal(*images)


COMPILED = [
    {},
    {"eta": 0.5, "num_resample": 2},
    {"eta": 1.0, "solver_order": 2, "class_labels": [0, 1], "guidance_scale": 2.0, "guidance_rescale": 0.5},
    {"image": Image.new("L", (4, 4), 50)},
    {"class_labels": [0, 1], "guidance_scale": 2.0, "guidance_interval": (100, 600)},
]


@pytest.mark.parametrize("options", COMPILED)
@pytest.mark.parametrize("kind", [DDPMNoiseScheduler, LCMScheduler])
def test_a_compiled_pipeline_draws_the_same_images(kind, options):
    """Of our scheduler the step is in the graph; nothing breaks it, and all steps of all calls share it, or one of two with an interval."""
    options = {name: value for name, value in options.items() if kind is DDPMNoiseScheduler or name not in FAST}
    unet = ExactDenoiser(sample_size=8, in_channels=1, num_class_embeds=4)
    pipe = make_pipeline(unet, kind(), NAMES)
    call = partial(pipe, 2, num_inference_steps=4, output_type="pt", **options)
    expected = [call(generator=seeds(i)[0]).images for i in range(2)]
    graphs, counts = [], []
    torch._dynamo.reset()
    pipe.compile(fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for i in range(2):
        torch.testing.assert_close(call(generator=seeds(i)[0]).images, expected[i], rtol=0, atol=1e-4)
        counts.append(len(graphs))
    assert counts == ([2, 2] if "guidance_interval" in options else [1, 1])


def test_two_calls_at_once_do_not_share_a_chain():
    pipe, inner = make_pipeline(), []

    def callback(outer, i, t, tensors):
        if i == 0:
            inner.append(pipe(generator=seeds(1)[0], num_inference_steps=7, output_type="pt").images)

    options = {"num_inference_steps": 3, "output_type": "pt"}
    image = pipe(generator=seeds(0)[0], callback_on_step_end=callback, **options).images
    assert torch.equal(image, pipe(generator=seeds(0)[0], **options).images) and len(inner) == 1


def test_latents_as_they_are():
    pipe, ends = make_pipeline(), []
    keep = lambda pipe, i, t, tensors: ends.append(tensors["latents"])  # noqa: E731
    latents = pipe(num_inference_steps=2, output_type="latent", callback_on_step_end=keep).images
    assert torch.equal(latents, ends[-1])


def test_names_that_differ_by_case():
    pipe = make_pipeline(num_class_embeds=3, id2label={0: "apple", 1: "Apple"})
    assert pipe.get_label_ids(["Apple", "apple"]) == [1, 0]
    with pytest.raises(ValueError, match=r"class_labels=.'APPLE'"):
        pipe.get_label_ids("APPLE")


# ---------------------------------------------------------------------- text


@pytest.fixture
def of_text(text_parts):
    unet = make_unet(class_embed_type="identity", time_embedding_dim=16)
    pipe = DDPMImagePipeline(unet, DDPMNoiseScheduler(), **text_parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_prompt_is_the_mean_of_its_tokens(of_text):
    """Normalised, times sqrt(D); a shorter text in a batch is not changed by its padding."""
    one = of_text.encode(prompt="a cat")["class_labels"]
    both = of_text.encode(prompt=["a sleepy cat", "a cat"])["class_labels"]
    tokens = of_text.tokenizer("a cat", return_tensors="pt")
    with torch.no_grad():
        mean = of_text.text_encoder(**tokens).last_hidden_state.mean(dim=1)
    assert torch.allclose(one, mean / mean.norm() * 4, atol=1e-6) and torch.allclose(both[1:], one, atol=1e-5)
    assert of_text.takes == ("prompt_embeds",) and of_text.encode(prompt="a cat", batch_size=3)[
        "class_labels"
    ].shape == (3, 16)
    null = of_text.null(of_text.encode(prompt_embeds=torch.zeros(2, 16)))["class_labels"]
    assert torch.equal(null, of_text.encode(prompt="", batch_size=2)["class_labels"])


def test_images_of_prompts(of_text):
    options = {"num_inference_steps": 3, "output_type": "pt"}

    def draw(**words):
        return of_text(generator=seeds(1, 2), **options, **words).images

    cats = draw(prompt="a cat")
    vector = of_text.embed_prompts(["a cat"])[0]
    assert torch.allclose(cats, draw(prompt_embeds=vector), atol=1e-5) and not torch.equal(cats, draw(prompt="a dog"))
    assert torch.equal(draw(), draw(prompt=""))
    guided = draw(prompt=["a cat", "a dog"], guidance_scale=3.0)
    assert torch.equal(guided, draw(prompt=["a cat", "a dog"], guidance_scale=3.0, negative_prompt=""))
    away = draw(prompt=["a cat", "a dog"], guidance_scale=3.0, negative_prompt="a sleepy cat")
    assert not torch.equal(guided, away)


def test_a_model_of_text_is_saved_with_its_encoder(of_text, tmp_path):
    of_text.save_pretrained(tmp_path)
    options = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt"}
    expected = of_text(generator=seeds(0)[0], **options).images
    for load in (
        DDPMImagePipeline.from_pretrained,
        partial(DiffusionPipeline.from_pretrained, trust_remote_code=True),
    ):
        pipe = load(tmp_path)
        assert torch.allclose(pipe(generator=seeds(0)[0], **options).images, expected, atol=1e-4)
    make_pipeline().save_pretrained(tmp_path / "plain")
    assert "text_encoder" not in json.loads((tmp_path / "plain" / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompt": "a cat", "class_labels": 1}, "class_labels and prompt, and not both"),
        ({"class_labels": 1}, "class_labels=1: this model was trained with text"),
        ({"prompt": "a a a a a a a a a"}, "prompt has 11 tokens: .* at most 8"),
        ({"prompt": ["a cat", 3]}, "must be a text or a list of texts"),
        ({"prompt_embeds": torch.zeros(2, 5)}, r"prompt_embeds has shape \(2, 5\): the last size must be 16"),
        ({"guidance_scale": 3.0}, "guidance_scale=3.0 needs a prompt"),
        ({"prompt": "a cat", "negative_prompt": "a dog"}, "negative_prompt='a dog' needs .* guidance"),
        ({"prompt": ["a cat", "a dog"], "batch_size": 3}, "batch_size=3.*'prompt': 2"),
    ],
)
def test_refuses_text(of_text, words, message):
    of_text.unet.forward = None
    with pytest.raises(ValueError, match=message):
        of_text(**words)


def test_a_prompt_for_a_model_without_text(labelled, of_text):
    with pytest.raises(ValueError, match="prompt='a cat': this model was trained with class labels"):
        labelled(prompt="a cat")
    with pytest.raises(ValueError, match="negative_prompt='a cat' needs a model of text"):
        labelled(class_labels=1, guidance_scale=3.0, negative_prompt="a cat")
    with pytest.raises(ValueError, match="came without its text encoder"):
        DDPMImagePipeline(of_text.unet, of_text.scheduler)(prompt="a cat")


# ---------------------------------------------------------------------- what is known of a picture


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


GREY = np.full((8, 8), 0.5)
LEFT = np.repeat([[0.0] * 4 + [1.0] * 4], 8, axis=0)  # a mask: the right half is white
SAMPLERS = [
    (DDPMNoiseScheduler(prediction_type="epsilon"), {}),
    (DDPMNoiseScheduler(prediction_type="sample"), {"eta": 1.0, "solver_order": 2}),
    (DDPMNoiseScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), {"eta": 0.0}),
    (DDPMScheduler(prediction_type="v_prediction"), {}),
    (DDIMScheduler(), {"eta": 0.5}),
    (DPMSolverMultistepScheduler(), {}),
    (UniPCMultistepScheduler(prediction_type="sample"), {}),
    (LCMScheduler(prediction_type="sample"), {}),
    (EulerDiscreteScheduler(timestep_spacing="linspace"), {"num_resample": 1}),
]
of_samplers = pytest.mark.parametrize(("scheduler", "options"), SAMPLERS, ids=lambda x: type(x).__name__)


@pytest.mark.parametrize("given", [{"mask_image": LEFT}, {"strength": 0.5}, {}])
def test_the_saved_eta_is_1_where_a_picture_is_imposed(given):
    """Repainted and enlarged; one that is changed is drawn as saved."""
    pipe = make_pipeline(sampling={"num_inference_steps": 4, "eta": 0.5, "solver_order": 2})
    image = GREY if given else GREY[:4, :4]
    draw = partial(pipe, image=image, output_type="pt", **given)
    own, named = (draw(generator=seeds(0)[0], **options).images for options in ({}, {"eta": 0.5, "solver_order": 2}))
    assert torch.equal(own, named) == ("strength" in given)
    if "strength" not in given:
        assert torch.equal(own, draw(generator=seeds(0)[0], eta=1.0, solver_order=2).images)


@of_samplers
def test_the_result_satisfies_the_measurement(scheduler, options):
    """Whatever the sampler: known pixels are equal after uint8, means of blocks and of channels within a grey level."""
    options = {"num_inference_steps": 4, "num_resample": 2, "output_type": "np"} | options
    grey, colour = (
        make_pipeline(scheduler=scheduler),
        make_pipeline(scheduler=scheduler, in_channels=3, out_channels=3),
    )
    picture = random_pixels(8, 8)
    images = grey(image=Image.fromarray(picture), mask_image=LEFT, generator=seeds(1, 2), **options).images
    pixels = (images[..., 0] * 255).round()
    assert np.array_equal(pixels[:, :, :4], np.stack([picture[:, :4]] * 2))
    assert not np.array_equal(pixels[0, :, 4:], picture[:, 4:])
    small = random_pixels(4, 2)  # another factor in each direction
    image = grey(image=Image.fromarray(small), **options).images[0, ..., 0]
    assert np.abs(image.reshape(4, 2, 2, 4).mean((1, 3)) * 255 - small).max() < 1
    image = colour(image=Image.fromarray(picture), **options).images[0]
    assert image.std(axis=-1).max() > 0.01 and np.abs(image.mean(axis=-1) * 255 - picture).max() < 1
    top = np.float32([[0, 0], [0, 0], [1, 1], [1, 1]])  # of a smaller picture, the upper half is known
    image = grey(image=Image.fromarray(small), mask_image=top, **options).images[0, ..., 0]
    off = np.abs(image.reshape(4, 2, 2, 4).mean((1, 3)) * 255 - small)
    assert off[:2].max() < 1 < off[2:].max()
    image = colour(image=Image.fromarray(small), **options).images[0]
    assert np.abs(image.reshape(4, 2, 2, 4, 3).mean((1, 3, 4)) * 255 - small).max() < 1


@of_samplers
def test_the_rest_is_drawn_as_ever(scheduler, options):
    """Pixels of the exact denoiser do not depend on each other: hidden ones are those of plain sampling, whatever the image has there."""
    pipe = make_pipeline(
        ExactDenoiser(sample_size=8, in_channels=1),
        type(scheduler).from_config(scheduler.config, clip_sample=True, prediction_type="epsilon"),
    )
    options = {"num_inference_steps": 5, "output_type": "pt"} | options | {"num_resample": 1}
    plain = pipe(generator=seeds(1)[0], **options).images
    for image in (random_pixels(8, 8), random_pixels(8, 8)[::-1].copy()):
        repainted = pipe(generator=seeds(1)[0], image=Image.fromarray(image), mask_image=LEFT, **options).images
        assert (repainted - plain)[..., 4:].abs().max() < 1e-4


def test_a_step_taken_again_draws_from_the_same_distribution():
    """The noise put back is as much as the step took: hidden pixels keep the data's mean and deviation."""
    pipe = make_pipeline(ExactDenoiser(sample_size=32, mean=0.0), DDPMNoiseScheduler(timestep_spacing="trailing"))
    black = np.zeros((32, 32, 2), np.float32)
    ends = [
        pipe(8, seeds(0)[0], 200, "latent", image=black, mask_image=np.ones((32, 32)), num_resample=n).images
        for n in (1, 3)
    ]
    assert all(abs(x_0.mean()) < 0.01 for x_0 in ends) and abs(ends[0].std() - ends[1].std()) < 0.02


@pytest.mark.parametrize("kind", [DDPMNoiseScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_changing_a_picture_starts_in_its_noise(kind):
    """`strength` of the steps, as a loop by hand takes them; little strength changes little."""
    pipe, picture = make_pipeline(ExactDenoiser(in_channels=1), kind()), np.float32(random_pixels(4, 4) / 255)
    options = {"generator": None, "num_inference_steps": 10, "output_type": "latent"}
    got = pipe(**options | {"generator": seeds(3)[0]}, image=picture, strength=0.3).images
    scheduler, generator = kind(), seeds(3)[0]
    scheduler.set_timesteps(10)
    noise = torch.randn(1, 1, 4, 4, generator=generator)
    x_t = scheduler.add_noise(torch.tensor(picture)[None, None] * 2 - 1, noise, scheduler.timesteps[7:8])
    takes = {"generator": generator} if kind is not DDIMScheduler else {}
    takes |= {"use_clipped_model_output": True} if kind is DDIMScheduler else {}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(7)
    for t in scheduler.timesteps[7:]:
        x_t = scheduler.step(pipe.unet(x_t, t[None])[0], t, x_t, **takes).prev_sample
    assert torch.equal(got, x_t)
    steps = []
    for strength in (None, 1.0, 0.1):
        keep = lambda pipe, i, t, tensors: steps.append(i)  # noqa: E731
        pipe(**options, image=picture, strength=strength, callback_on_step_end=keep)
    assert steps == [*range(8), *range(10), 0]


def test_pictures_go_with_everything_else(labelled):
    """Labels, guidance, few steps, callbacks, a picture and a generator for each image: each image is its own."""
    pictures, masks = list(random_pixels(3, 8, 8)), [LEFT, LEFT[::-1, ::-1].copy(), np.ones((8, 8))]
    options = {"num_inference_steps": 3, "eta": 1.0, "solver_order": 2, "num_resample": 2, "output_type": "np"}
    options |= {"guidance_scale": 2.0, "callback_on_step_end": lambda pipe, i, t, tensors: {}}

    def draw(*which):
        given = {"image": [Image.fromarray(pictures[i]) for i in which], "mask_image": [masks[i] for i in which]}
        return labelled(generator=seeds(*which), class_labels=list(which), **given, **options).images

    together = draw(0, 1, 2)
    assert all(np.abs(together[i] - draw(i)[0]).max() < 1e-3 for i in range(3))
    assert labelled(image=pictures[0] / 255, mask_image=masks, **options | {"guidance_scale": None}).images.shape == (
        3,
        8,
        8,
        1,
    )
    assert len(labelled(5, image=pictures[0] / 255, **options | {"guidance_scale": None}).images) == 5


@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_picture_may_be_pil_numpy_or_tensor(num_channels):
    pipe = make_pipeline(in_channels=num_channels, out_channels=num_channels)
    pixels = random_pixels(8, 8, 3) if num_channels == 3 else random_pixels(8, 8)
    array, hidden = np.float32(pixels / 255), Image.fromarray(np.uint8(LEFT * 255))
    tensor = torch.from_numpy(array.reshape(8, 8, -1)).permute(2, 0, 1)
    forms = [
        Image.fromarray(pixels),
        [Image.fromarray(pixels)],
        array,
        array.reshape(1, 8, 8, -1),
        tensor,
        tensor[None],
    ]
    masks = [
        hidden,
        hidden.convert("1"),
        LEFT,
        LEFT[None, ..., None],
        torch.tensor(LEFT),
        torch.tensor(LEFT)[None, None] > 0,
    ]
    options = {"num_inference_steps": 2, "output_type": "pt"}
    images = [
        pipe(image=image, mask_image=mask, generator=seeds(0)[0], **options).images
        for image, mask in zip(forms, masks)
    ]
    assert all(torch.allclose(image, images[0], atol=1e-6) for image in images)
    assert torch.allclose(images[0][0, :, :, :4], tensor[:, :, :4])


# ---------------------------------------------------------------------- a model that was trained on a condition image


def make_conditioned(kind: str = "masked", num_channels: int = 1, **options) -> DDPMImagePipeline:
    """Keeps what its U-Net is given, of each call, in `seen`."""
    unet = make_unet(in_channels=2 * num_channels + 1, out_channels=num_channels, num_class_embeds=4)
    pipe = DDPMImagePipeline(unet, DDPMNoiseScheduler(), NAMES, image_condition=kind, **options)
    pipe.set_progress_bar_config(disable=True)
    pipe.seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: pipe.seen.append(args[0]))
    return pipe


def test_what_is_known_goes_in_beside_x_t_and_its_null_is_zero():
    pipe, x_t = make_conditioned(), torch.randn(2, 1, 8, 8)
    assert pipe.takes == ("class_labels", "condition_image")
    known = torch.rand(2, 2, 8, 8)
    condition = pipe.encode(class_labels=1, condition_image=known)
    assert condition["class_labels"].tolist() == [1, 1] and torch.equal(condition["image"], known)
    null = pipe.null(condition)
    assert null["class_labels"].tolist() == [3, 3] and torch.equal(null["image"], torch.zeros(2, 2, 8, 8))
    for given in (condition, null, pipe.encode(batch_size=2)):
        pipe.denoise(x_t, 5, given)
    assert torch.equal(pipe.seen[0], torch.cat([x_t, known], dim=1))
    assert torch.equal(pipe.seen[1], torch.cat([x_t, torch.zeros(2, 2, 8, 8)], dim=1))
    assert torch.equal(pipe.seen[2], pipe.seen[1])  # nothing given is the null


def test_guidance_leads_away_from_nothing_known():
    pipe, x_t, t = make_conditioned(), torch.randn(2, 1, 8, 8), torch.tensor(5)
    condition = pipe.encode(class_labels=[0, 2], condition_image=torch.rand(2, 2, 8, 8))
    null = pipe.null(condition)
    given, without = (pipe.denoise(x_t, t, words) for words in (condition, null))
    both = {name: torch.cat([condition[name], null[name]]) for name in condition}
    for scale in (0.0, 1.0, 2.5):
        words = condition if scale == 1 else both
        expected = without + scale * (given - without)
        assert (pipe._guided(x_t, t, words, scale, 0.0) - expected).abs().max() < 1e-5


PICTURE = random_pixels(8, 8)
CONDITIONS = {
    "masked": (1, {"image": Image.fromarray(PICTURE), "mask_image": LEFT}),
    "lower_resolution": (1, {"image": Image.fromarray(PICTURE[:4, :4])}),
    "grey": (3, {"image": Image.fromarray(PICTURE)}),
    "sketch": (1, {"image": Image.fromarray(PICTURE)}),
}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_a_call_conditions_on_the_picture_and_keeps_what_is_known_of_it(kind):
    """With labels, guidance, few steps and a generator for each image."""
    num_channels, given = CONDITIONS[kind]
    pipe = make_conditioned(kind, num_channels)
    options = {"num_inference_steps": 3, "eta": 1.0, "solver_order": 2, "guidance_scale": 2.0, "output_type": "pt"}
    images = pipe(generator=seeds(1, 2), class_labels=["Bag", "Trouser"], **given, **options).images
    pixels = torch.tensor(PICTURE).float() / 255
    known = torch.ones(8, 8)
    if kind == "masked":
        known = 1 - torch.tensor(LEFT).float()
        assert (images[:, 0] - pixels)[:, :, :4].abs().max() < 0.5 / 255
    if kind == "lower_resolution":
        pixels = pixels[:4, :4]
        assert (images.view(2, 4, 2, 4, 2).mean((2, 4)) - pixels).abs().max() < 1 / 255
        pixels = pixels.repeat_interleave(2, 0).repeat_interleave(2, 1)
    if kind == "grey":
        assert (images.mean(1) - pixels).abs().max() < 1 / 255
    expected = torch.cat([(2 * pixels - 1)[None].expand(num_channels, 8, 8) * known, known[None]])
    assert len(pipe.seen) == 3
    for seen in pipe.seen:  # the two images, then their null
        assert torch.allclose(seen[:2, num_channels:], expected.expand(2, -1, -1, -1), atol=1e-6)
        assert not seen[2:, num_channels:].any()
    alone = pipe(generator=seeds(2), class_labels="Trouser", **given, **options).images
    assert (alone[0] - images[1]).abs().max() < 1e-3


@pytest.mark.parametrize("counts", [(2, 1), (1, 2), (2, 2)])
def test_one_picture_or_mask_serves_a_batch(counts):
    pipe, pictures, masks = make_conditioned(), [PICTURE, PICTURE[::-1]], [LEFT, LEFT[::-1]]
    given = {"image": [Image.fromarray(np.ascontiguousarray(x)) for x in pictures[: counts[0]]]}
    given["mask_image"] = [np.ascontiguousarray(x) for x in masks[: counts[1]]]
    assert len(pipe(num_inference_steps=1, **given).images) == 2
    assert (pipe.seen[0][:, 2] == 1 - torch.tensor(LEFT)).all()  # LEFT is the same upside down
    with pytest.raises(ValueError, match=r"batch_size=3 must agree with the lengths of {'class_labels': 2}"):
        pipe.encode(class_labels=[0, 1], batch_size=3)


def test_without_a_picture_nothing_is_known():
    pipe = make_conditioned()
    ready = torch.zeros(2, 2, 8, 8)
    options = {"class_labels": [0, 1], "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    plain = pipe(generator=seeds(1, 2), **options).images
    assert all(not seen[:, 1:].any() for seen in pipe.seen)
    assert torch.equal(pipe(generator=seeds(1, 2), condition_image=ready, **options).images, plain)


def test_what_is_known_of_a_batch_of_data_conditions_as_a_picture_does():
    """Without labels, and with a guidance of its own: the image alone is something to be guided to."""
    pipe = make_conditioned()
    known = torch.cat([torch.tensor(1 - LEFT).float() * (torch.tensor(PICTURE) / 127.5 - 1), torch.tensor(1 - LEFT)])
    known = known.view(1, 2, 8, 8).float()
    options = {"num_inference_steps": 2, "guidance_scale": 1.5, "generator": seeds(1, 2)}
    assert len(pipe(condition_image=known, **options).images) == 2
    ready, pipe.seen = pipe.seen, []
    pipe(**options | {"generator": seeds(1, 2)}, **CONDITIONS["masked"][1])
    assert torch.allclose(ready[0], pipe.seen[0], atol=1e-6)


def test_a_conditioned_model_loads_by_all_ways(tmp_path):
    pipe = make_conditioned(sampling=FAST | {"num_inference_steps": 2})
    pipe.save_pretrained(tmp_path)
    given = {"image": Image.fromarray(PICTURE), "mask_image": LEFT, "class_labels": "Bag", "output_type": "np"}
    expected = pipe(generator=seeds(0)[0], **given).images
    ours = DDPMImagePipeline.from_pretrained(tmp_path)
    anywhere = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    shared = DDPMImagePipeline.from_pipe(ours)
    again = DDPMImagePipeline(**ours.components, **ours.parameters)
    for other in (ours, anywhere, shared, again):
        assert other.image_condition == "masked" and other.num_channels == 1
        other.set_progress_bar_config(disable=True)
        assert np.array_equal(other(generator=seeds(0)[0], **given).images, expected)
    assert "image_condition" not in make_pipeline().to_json_string()


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("masked", {"image": GREY}, "'masked'; give an image of the model's size, and mask_image"),
        (
            "masked",
            {"image": GREY[:4, :4]},
            r"image of \(1, 4, 4\): this model was trained on image_condition='masked'",
        ),
        ("lower_resolution", {"image": GREY}, "give an image whose sides are the model's divided by 2 or 4"),
        ("lower_resolution", {"image": GREY[:1, :1]}, "divided by 2 or 4"),
        ("lower_resolution", {"image": GREY[:4, :2]}, "divided by 2 or 4"),
        ("lower_resolution", {"image": GREY[:4, :4], "mask_image": LEFT[:4, :4]}, "with mask_image: this model"),
        ("sketch", {"image": GREY, "mask_image": LEFT}, "'sketch'; give an image of the model's size and channels"),
        ("masked", {"condition_image": torch.zeros(1, 3, 8, 8)}, r"\(1, 3, 8, 8\): it must be \(B, 2, H, W\)"),
        ("masked", {"condition_image": torch.zeros(2, 2, 8, 8), "batch_size": 3}, "'condition_image': 2"),
        ("masked", {"condition_image": torch.zeros(1, 2, 8, 8), "image": GREY}, "condition_image and image"),
        ("masked", {"condition_image": torch.zeros(1, 2, 4, 4)}, "condition_image is 4x4: this model draws 8x8"),
        (None, {"condition_image": torch.zeros(1, 2, 8, 8)}, "this model was trained without one"),
    ],
)
def test_a_model_takes_the_condition_that_it_was_trained_on(kind, given, words):
    pipe = make_pipeline() if kind is None else make_conditioned(kind)
    pipe.unet.forward = None
    with pytest.raises(ValueError, match=words):
        pipe(**given)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("masked", {}, "takes 1 channels, and not 2C [+] 1"),
        ("masked", {"in_channels": 4}, "takes 4 channels"),
        ("grey", {"in_channels": 3}, "grey themselves"),
        ("lower_resolution", {"in_channels": 3, "sample_size": 10}, "images, 10, must be multiples of 4"),
    ],
)
def test_a_network_without_the_channels_of_its_condition_is_refused(kind, config, words):
    with pytest.raises(ValueError, match=f"image_condition='{kind}': .*{words}"):
        DDPMImagePipeline(make_unet(**config), DDPMNoiseScheduler(), image_condition=kind)


def test_invert_finds_the_noise_of_a_picture():
    """On the exact denoiser of a Gaussian DDIM is linear: its inverse gives back the very noise, and the noise the picture."""
    scheduler = DDPMNoiseScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=False)
    pipe, noise = make_pipeline(ExactDenoiser(), scheduler), torch.randn(2, 2, 4, 4, generator=seeds(0)[0])
    pipe.unet.alphas_cumprod.copy_(scheduler.alphas_cumprod)
    options = {"eta": 0.0, "num_inference_steps": 50, "output_type": "pt"}
    images = pipe(latents=noise * 0.3, **options).images
    assert 0 < images.min() and images.max() < 1  # nothing is cut off
    latents = pipe.invert(images)
    assert (latents - noise * 0.3).abs().max() < 1e-2
    assert (pipe(latents=latents, **options).images - images).abs().max() < 1e-3


def test_invert_takes_a_condition(labelled, of_text):
    assert labelled.invert(Image.fromarray(random_pixels(8, 8)), 2, class_labels=["Bag", 0]).shape == (2, 1, 8, 8)
    assert labelled.calls[0][1].tolist() == [2, 0]
    assert of_text.invert(random_pixels(2, 8, 8) / 255, 1, prompt=["a cat", "a dog"]).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="invert: DDPMScheduler takes no eta"):
        make_pipeline(scheduler=DDPMScheduler()).invert(GREY)
    with pytest.raises(ValueError, match="image has 1 channels: this model draws 3"):
        make_pipeline(in_channels=3, out_channels=3).invert(GREY)
    with pytest.raises(ValueError, match=r"'class_labels': 2, .*'image': 3"):
        labelled.invert(random_pixels(3, 8, 8) / 255, class_labels=[0, 1])


# ---------------------------------------------------------------------- callback and interrupt


def test_callback_sees_and_replaces_the_latents():
    pipe, seen = make_pipeline(), []

    def callback(pipe, i, t, tensors):
        seen.append((i, int(t), set(tensors), tensors["latents"].shape))
        return {"latents": torch.full_like(tensors["latents"], 0.5)} if i == 2 else None

    image = pipe(num_inference_steps=3, output_type="pt", callback_on_step_end=callback).images
    names = {"latents", "pred_original_sample"}
    assert seen == [(i, t, names, (1, 1, 8, 8)) for i, t in enumerate((666, 333, 0))]
    assert torch.equal(image, torch.full_like(image, 0.75))


def test_callback_sees_only_what_it_asked_for():
    pipe, seen = make_pipeline(), []
    pipe(
        num_inference_steps=1,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(list(tensors)),
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
    )
    assert seen == [["pred_original_sample"]]


def test_interrupt_stops_the_loop_and_the_next_call_runs_again():
    pipe, steps = make_pipeline(), []

    def callback(pipe, i, t, tensors):
        steps.append(i)
        pipe._interrupt = i == 1

    assert len(pipe(num_inference_steps=5, callback_on_step_end=callback).images) == 1
    assert steps == [0, 1] and pipe.interrupt
    steps.clear()
    pipe(num_inference_steps=2, callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i))
    assert steps == [0, 1]


# ---------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline(num_class_embeds=4, id2label=NAMES).save_pretrained(folder)
    return folder


def test_loading_takes_what_diffusers_takes(folder):
    assert DDPMImagePipeline.from_pretrained(folder, dtype=torch.float64).unet.dtype == torch.float64
    for dtypes in ({"unet": torch.float64}, {"default": torch.float64}):
        assert DDPMImagePipeline.from_pretrained(folder, torch_dtype=dtypes).unet.dtype == torch.float64
    assert DDPMImagePipeline.from_pretrained(folder, id2label={0: "Sock"}).id2label == {0: "Sock"}


def test_loads_as_the_stock_pipeline_does(folder, of_text, tmp_path):
    """On the accelerator, without a part, as a variant; an absent variant is named."""
    pipe = DDPMImagePipeline.from_pretrained(folder, device_map="balanced")
    assert pipe.device.type == get_device() and len(pipe(num_inference_steps=1).images) == 1
    bare = DDPMImagePipeline.from_pretrained(folder, unet=None)
    assert bare.unet is None and bare.scheduler.config == pipe.scheduler.config
    of_text.save_pretrained(tmp_path, variant="fp16")
    assert DDPMImagePipeline.from_pretrained(tmp_path, variant="fp16").encode(prompt="a cat")
    for path, options, missing in (
        (folder, {"variant": "fp16"}, "fp16.safetensors"),
        (tmp_path, {}, "model.safetensors"),
    ):
        with pytest.raises(OSError, match=missing):
            DDPMImagePipeline.from_pretrained(path, **options)


def test_a_stock_pipeline_of_ours_is_a_stock_pipeline(folder):
    """`from_pipe` with the parts that it takes; its `from_pretrained` names the code that it would have to run instead."""
    pipe = make_pipeline()
    with pytest.raises(ValueError, match=r"DDIMPipeline.* expected"):
        DDIMPipeline.from_pipe(pipe)
    stock = DDIMPipeline.from_pipe(pipe, unet=pipe.unet)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is DDIMPipeline and isinstance(stock.scheduler, DDIMScheduler)
    image = pipe(generator=seeds(0)[0], num_inference_steps=4, eta=0.0, output_type="np").images
    options = {"num_inference_steps": 4, "use_clipped_model_output": True, "output_type": "np"}
    assert np.abs(stock(generator=seeds(0)[0], **options).images - image).max() < 1e-5
    with pytest.raises(ValueError, match=r"contains custom code in pipeline_ddpm_image.py"):
        DDIMPipeline.from_pretrained(folder)


def test_more_than_ten_classes_keep_their_order(tmp_path):
    names = {label: f"class {label}" for label in range(12)}
    make_pipeline(num_class_embeds=13, id2label=names, sampling=FAST).save_pretrained(tmp_path)
    pipe = DDPMImagePipeline.from_pretrained(tmp_path)
    assert list(pipe.id2label.items()) == list(names.items()) and pipe.sampling == FAST
    again = DDPMImagePipeline(**pipe.components, **pipe.parameters)
    assert again.id2label == names and again.sampling == FAST


def test_from_pipe_shares_the_parts_and_the_names(folder):
    pipe = DDPMImagePipeline.from_pretrained(folder)
    other = DDPMImagePipeline.from_pipe(pipe, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    assert other.unet is pipe.unet and other.id2label == NAMES and isinstance(other.scheduler, DDIMScheduler)
    stock = DDPMPipeline(make_unet(UNet2DModel), DDPMScheduler())
    assert DDPMImagePipeline.from_pipe(stock).unet is stock.unet


def test_old_diffusers_can_read_the_annotations():
    """Before 0.37 it knows classes and typing's unions; `dict | None` is neither."""
    annotations = inspect.get_annotations(DDPMImagePipeline.__init__).values()
    assert not [a for a in annotations if isinstance(a, types.UnionType)]


@pytest.mark.parametrize(
    "part", [["diffusers", "DiffusionPipeline"], ["diffusers", "utils"], ["x", "MyNet"], [None, None], None]
)
def test_a_part_that_is_no_model_and_no_scheduler_is_not_loaded(folder, tmp_path, part):
    """A pipeline within the pipeline would be loaded by diffusers' rules, pickles and all."""
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": part}
    shutil.copytree(folder, tmp_path / "evil")
    (tmp_path / "evil" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index.json: scheduler=.* is no SchedulerMixin of diffusers"):
        DDPMImagePipeline.from_pretrained(tmp_path / "evil")


# ---------------------------------------------------------------------- what it refuses, before any work


NULL_LESS = {"num_class_embeds": 3, "id2label": NAMES}
WITH_NULL = {"num_class_embeds": 4, "id2label": NAMES}


@pytest.mark.parametrize(
    ("config", "kwargs", "words"),
    [
        ({}, {"output_type": "jpg"}, "output_type='jpg'.*'pil', 'np', 'pt' or 'latent'"),
        ({}, {"class_labels": [1]}, r"class_labels=\[1\].*without class labels"),
        ({}, {"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels"),
        ({}, {"batch_size": 0}, "batch_size=0"),
        ({}, {"eta": 1.5}, "eta=1.5 must be from 0 to 1"),
        ({}, {"solver_order": 3}, "solver_order=3: DDPMNoiseScheduler takes 1 or 2"),
        ({}, {"guidance_rescale": -0.1}, "guidance_rescale=-0.1 must be from 0 to 1"),
        ({}, {"batch_size": 3, "generator": seeds(1, 2)}, "batch_size=3.*'generator': 2"),
        ({}, {"batch_size": 3, "latents": torch.zeros(2, 1, 8, 8)}, "batch_size=3.*'latents': 2"),
        ({}, {"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs.*noise.*latents"),
        ({"sample_size": None}, {}, "latents=None.*sample_size"),
        ({"class_embed_type": "timestep"}, {"class_labels": [1]}, "class_embed_type='timestep'.*table"),
        ({}, {"num_inference_steps": 1001}, "num_inference_steps=1001.*1000"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps=0"),
        ({}, {"timesteps": [9, 3], "num_inference_steps": 3}, "num_inference_steps=3 and 2 timesteps"),
        ({}, {"timesteps": 9}, "timesteps=9: DDPMNoiseScheduler takes whole numbers in descending order"),
        ({}, {"timesteps": []}, r"timesteps=\[\]: DDPMNoiseScheduler takes whole"),
        ({}, {"timesteps": [3, 9]}, r"timesteps=\[3, 9\]: DDPMNoiseScheduler takes whole"),
        ({}, {"timesteps": [1000, 9]}, r"timesteps=\[1000, 9\].*must be integers in descending order within 0 .. 999"),
        ({}, {"guidance_interval": 9}, "guidance_interval=9 must be the least and the most timestep"),
        (WITH_NULL, {"class_labels": 0, "guidance_interval": (9, 3)}, r"guidance_interval=\(9, 3\) must be"),
        (NULL_LESS, {}, "class_labels=None.*no null label"),
        (NULL_LESS, {"class_labels": 0, "guidance_scale": 2.0}, "guidance_scale=2.0.*null label"),
        (WITH_NULL, {"class_labels": "Shoe"}, r"class_labels=\['Shoe'\].*Trouser"),
        (WITH_NULL, {"class_labels": ["Bag", "Shoe"]}, r"class_labels=\['Shoe'\].*Trouser"),
        (WITH_NULL, {"class_labels": 4}, "class_labels=4.*0 to 3"),
        (WITH_NULL, {"class_labels": [-1]}, r"class_labels=\[-1\].*0 to 3"),
        (WITH_NULL, {"class_labels": []}, r"class_labels=\[\]"),
        (WITH_NULL, {"class_labels": [0, 1], "batch_size": 3}, "batch_size=3.*'class_labels': 2"),
        (WITH_NULL, {"class_labels": [0, 1], "generator": seeds(1, 2, 3)}, "'class_labels': 2.*'generator': 3"),
        (WITH_NULL, {"class_labels": [1.9]}, r"class_labels=\[1.9\].*one label or a list"),
        (WITH_NULL, {"class_labels": torch.zeros(2, 1)}, "one label or a list"),
        (WITH_NULL, {"class_labels": 0, "guidance_scale": float("nan")}, "guidance_scale=nan must be a number"),
        (WITH_NULL, {"class_labels": 0, "guidance_scale": -1.0}, "guidance_scale=-1.0 must be"),
        ({}, {"generator": 0}, "generator=0 must be a torch.Generator"),
        ({}, {"num_inference_steps": 5.0}, "num_inference_steps=5.0"),
        ({}, {"mask_image": LEFT}, "mask_image needs image"),
        (
            {},
            {"image": GREY, "mask_image": LEFT[:4]},
            r"mask_image has shape \(1, 1, 4, 8\): image has \(1, 1, 8, 8\)",
        ),
        ({}, {"image": GREY[:, :5]}, "image is 8x5: this model draws 8x8; give that size, or one that divides it"),
        ({}, {"image": np.zeros((16, 16))}, "image is 16x16: this model draws 8x8"),
        ({}, {"image": np.zeros((1, 8, 8, 3))}, "image has 3 channels: this model draws 1"),
        (
            {},
            {"image": np.zeros((8, 8), np.uint8) + 9},
            r"image of shape .* values from 17 to 17.* floats in \[0, 1\]",
        ),
        ({}, {"image": GREY * np.nan}, "image of shape .* values from nan"),
        ({}, {"image": Image.new("RGBA", (8, 8))}, "image has mode 'RGBA': convert it to 'L' or 'RGB'"),
        (
            {},
            {"image": [Image.new("L", (8, 8)), Image.new("L", (4, 4))]},
            "image: all input arrays must have the same",
        ),
        ({}, {"image": "cat.png"}, "image: .*format"),
        ({}, {"image": []}, "image: "),
        ({}, {"image": np.zeros((2, 8, 8)), "batch_size": 3}, "batch_size=3.*'image': 2"),
        ({}, {"strength": 0.5}, "strength=0.5 needs image"),
        ({}, {"image": GREY, "strength": 1.5}, "strength=1.5 must be above 0 and at most 1"),
        ({}, {"image": GREY, "strength": 0.0}, "strength=0.0 must be above 0"),
        ({}, {"image": GREY, "strength": float("nan")}, "strength=nan must be"),
        ({}, {"image": GREY, "strength": 0.1, "num_inference_steps": 5}, "strength=0.1 .* leave one of 5 steps"),
        ({}, {"image": GREY, "num_resample": 0}, "num_resample=0 must be a whole number of at least 1"),
    ],
)
def test_refuses(config, kwargs, words):
    pipe = make_pipeline(**config)
    pipe.unet.forward = None  # no work is done before the refusal
    with pytest.raises(ValueError, match=words):
        pipe(**kwargs)


def test_refuses_pictures_where_the_scheduler_cannot_take_them():
    euler, edm = make_pipeline(scheduler=EulerDiscreteScheduler()), make_pipeline(scheduler=EDMEulerScheduler())
    with pytest.raises(ValueError, match="num_resample=2: EulerDiscreteScheduler scales its latents"):
        euler(image=GREY, mask_image=LEFT, num_resample=2, num_inference_steps=2)
    with pytest.raises(ValueError, match=r"image: EDMEulerScheduler .* tells no x_0"):
        edm(image=GREY, mask_image=LEFT, num_inference_steps=2)


def test_saving_over_a_folder_whose_code_files_are_links(tmp_path):
    """As in checkpoints/ of the repository: the links become copies, what they lead to stays."""
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    links = sorted(tmp_path.rglob("*.py"))
    for path in links:
        source = ROOT / "ddpm_hf" / path.name
        path.unlink()
        path.symlink_to(source)
    pipe.save_pretrained(tmp_path)
    assert len(links) == 3
    for path in links:
        assert not path.is_symlink() and path.read_bytes() == (ROOT / "ddpm_hf" / path.name).read_bytes()
