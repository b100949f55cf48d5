"""The Space: its service in this process, its page in a real browser, its API through gradio_client.

The browser is Debian's Chromium (apt package chromium) driven by Playwright. `SCREENSHOTS=docs MODEL_ID=$PWD/folder pytest
tests/spaces_app/test_app.py -k screenshots` looks at another model and keeps the pictures.
"""

import gc
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import packages_distributions
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import psutil
import pytest
import torch
import yaml
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LDMPipeline,
    PNDMScheduler,
    UNet2DModel,
)
from PIL import Image
from source import imports
from starlette.datastructures import QueryParams

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CLASS_NAMES = ["T-shirt/top", "Trouser", "Bag"]

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed")
from gradio.route_utils import delete_files_created_by_app

sys.path.insert(0, str(ROOT / "spaces_app"))
import app as space
import bounds
import service
from service import Parameters, SamplingService

UNET = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "num_class_embeds": len(CLASS_NAMES) + 1,
}
NAMES = dict(enumerate(CLASS_NAMES))
FAST = {"num_inference_steps": 25, "eta": 1.0, "solver_order": 2, "guidance_scale": 1.3}


def random_model(out_channels=1, **scheduler_config):
    """A random class-conditional model, small and quick."""
    return DDPMImagePipeline(
        make_unet(out_channels=out_channels), DDPMNoiseScheduler(**scheduler_config), id2label=NAMES, sampling=FAST
    )


def make_unet(kind=DDPMUNet2DModel, **config):
    torch.manual_seed(0)
    return kind(**{**UNET, **config})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# The card\n![samples](samples.png)\n")
    (folder / "metrics.json").write_text('{"fid": 12.5}')
    Image.new("L", (4, 4)).save(folder / "samples.png")
    return folder


@pytest.fixture
def pipe(model_folder):
    return space.load_model(str(model_folder))[0]


class Evaluations:
    """Records the batch size of each evaluation of a U-Net; `gate` holds the next one back."""

    def __init__(self, unet):
        self.batch_sizes, self.gate = [], threading.Event()
        self.gate.set()
        unet.register_forward_pre_hook(self)

    def __call__(self, unet, arguments):
        self.batch_sizes.append(len(arguments[0]))
        assert self.gate.wait(30)


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def finish(job):
    frames = [frame for new in job.frames() for frame in new]
    return frames, [np.asarray(image, int) for image in job.images]


# ---------------------------------------------------------------- the service


OFFERED = [service.OWN_SAMPLER, "DDIM", "DDPM"]  # the fixture's model saved the arguments of DPM++ SDE as its own


@pytest.mark.parametrize("sampler", OFFERED)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_frames_lead_to_the_images(pipe, sampler, guidance_scale):
    labels = (CLASS_NAMES[2], CLASS_NAMES[0])
    parameters = Parameters(labels, 3, 50, sampler, guidance_scale, seed=4)
    frames, images = finish(SamplingService(pipe).submit(parameters))
    assert len(frames) <= service.MAX_FRAMES
    assert frames[-1].step == 50
    assert [frame.timestep for frame in frames] == sorted((frame.timestep for frame in frames), reverse=True)
    assert np.array_equal(frames[-1].x_t, np.stack(images))
    assert frames[0].x_0.shape == frames[0].x_t.shape == (3, 16, 16)
    expected = {}

    def keep(pipe, step_index, timestep, tensors):
        expected[step_index + 1] = [service.to_uint8(x).astype(int) for x in tensors.values()]

    generator = [torch.Generator().manual_seed(seed) for seed in parameters.seeds]
    options = {"num_inference_steps": 50, "guidance_scale": guidance_scale}
    options |= SamplingService(pipe).samplers[sampler].options
    pipe(generator=generator, class_labels=parameters.labels, callback_on_step_end=keep, **options)
    for frame in frames:
        x_t, x_0 = expected[frame.step]
        assert max(np.abs(frame.x_t - x_t).max(), np.abs(frame.x_0 - x_0).max()) <= 1  # rounding
    assert parameters.labels == ["Bag", "T-shirt/top", "Bag"]


@pytest.mark.parametrize("sampler", OFFERED)
def test_a_model_that_predicts_its_variance(sampler):
    pipe = random_model(2, variance_type="learned_range", prediction_type="v_prediction")
    frames, images = finish(SamplingService(pipe).submit(Parameters(("Bag",), 2, 5, sampler, 3.0)))
    assert frames[-1].x_0.shape == frames[-1].x_t.shape == (2, 16, 16) and images[0].std() > 1


def test_a_picture_does_not_depend_on_who_shares_the_batch(pipe):
    sampling, evaluations = SamplingService(pipe), Evaluations(pipe.unet)
    wanted = Parameters(("Bag",), 2, 10, "DDPM", 1.0, seed=9)
    alone = finish(sampling.submit(wanted))[1]
    evaluations.batch_sizes.clear()
    evaluations.gate.clear()
    first = sampling.submit(Parameters(None, 1, 5))  # holds the worker while the others come together
    shared, other = sampling.submit(wanted), sampling.submit(Parameters(None, 3, 10, "DDPM", 1.0, seed=10))
    evaluations.gate.set()
    finish(first)
    assert np.abs(np.array(finish(shared)[1]) - np.array(alone)).max() <= 1
    assert evaluations.batch_sizes == [1] * 5 + [5] * 10
    # image 1 of seed 9 has the noise of image 0 of seed 10, but its class: only the class tells them apart
    assert np.abs(np.array(finish(other)[1][0]) - alone[1]).max() > 1


def test_a_batch_mixes_only_what_can_be_mixed(pipe):
    sampling, evaluations = SamplingService(pipe), Evaluations(pipe.unet)
    evaluations.gate.clear()
    jobs = [sampling.submit(Parameters(None, 1, 1))]
    jobs += [
        sampling.submit(Parameters(("Bag",), 2, steps, guidance_scale=scale))
        for steps, scale in ((2, 1.0), (2, 3.0), (3, 1.0))
    ]
    jobs += [
        sampling.submit(Parameters(None, service.MAX_IMAGES, 2)) for _ in range(2)
    ]  # 2 + 16 fit, 2 + 16 + 16 do not
    evaluations.gate.set()
    for job in jobs:
        finish(job)
    assert evaluations.batch_sizes == [1] + [18] * 2 + [4] * 2 + [2] * 3 + [16] * 2


def test_cancel_stops_the_computation(pipe):
    sampling, evaluations = SamplingService(pipe), Evaluations(pipe.unet)
    job = sampling.submit(Parameters(None, 1, 1000, "DDPM"))
    next(filter(None, job.frames()))
    sampling.cancel(job)
    finish(sampling.submit(Parameters(None, 1, 1)))  # runs after the cancelled one has stopped
    assert len(evaluations.batch_sizes) < 500


def test_cancel_leaves_the_others_in_the_batch(pipe):
    sampling, evaluations = SamplingService(pipe), Evaluations(pipe.unet)
    wanted = Parameters(("Trouser",), 1, 20, seed=3)
    alone = finish(sampling.submit(wanted))[1]
    evaluations.gate.clear()
    first = sampling.submit(Parameters(None, 1, 1))
    leaver, stayer = sampling.submit(Parameters(None, 2, 20)), sampling.submit(wanted)
    waiting = sampling.submit(Parameters(None, 1, 999, "DDPM"))
    sampling.cancel(waiting)  # never runs at all
    evaluations.gate.set()
    finish(first)
    next(filter(None, leaver.frames()))
    sampling.cancel(leaver)
    assert np.abs(finish(stayer)[1][0] - alone[0]).max() <= 1
    assert len(evaluations.batch_sizes) == 20 + 1 + 20


def test_the_line_has_an_end(pipe):
    sampling, evaluations = SamplingService(pipe, max_waiting=2), Evaluations(pipe.unet)
    evaluations.gate.clear()
    running = sampling.submit(Parameters(None, 1, 1))
    wait_for(lambda: evaluations.batch_sizes)
    waiting = [sampling.submit(Parameters(None, 1, 1)) for _ in range(2)]
    assert [sampling.num_ahead(job) for job in [running, *waiting]] == [None, 0, 1]
    assert next(waiting[0].frames()) == []  # so that who reads it can give up
    with pytest.raises(ValueError, match="2 requests are waiting already"):
        sampling.submit(Parameters(None, 1, 1))
    evaluations.gate.set()
    for job in [running, *waiting]:
        assert len(finish(job)[1]) == 1


def test_an_error_is_told_and_the_worker_lives_on(pipe):
    sampling = SamplingService(pipe)
    hook = pipe.unet.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finish(sampling.submit(Parameters(None, 1, 1)))
    hook.remove()
    assert len(finish(sampling.submit(Parameters(None, 1, 1)))[1]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "PNDM"}, "sampler='PNDM' is not one of Model's own, DDIM, DDPM"),
        ({"batch_size": 17}, "batch_size=17 is not a whole number from 1 to 16"),
        ({"batch_size": True}, "batch_size=True"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan is not a number from 0.0 to 10.0"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number"),
        ({"num_inference_steps": 1000, "batch_size": 9}, "9000 evaluations .* one request may take 8000"),
        ({"num_inference_steps": 1000, "batch_size": 5, "guidance_scale": 2.0}, "10000 evaluations"),
        ({"class_labels": ("Bag", "Hat"), "batch_size": 2}, "'Hat'.: this model knows T-shirt/top, Trouser, Bag"),
        ({"class_labels": ("Bag", "Hat"), "batch_size": 1}, "class_labels has 2 names for batch_size=1 images"),
    ],
)
def test_bad_parameters_are_named(pipe, change, message):
    with pytest.raises(ValueError, match=message):
        SamplingService(pipe).submit(Parameters(**change))


def test_a_model_of_few_steps(tmp_path):
    random_model(num_train_timesteps=15).save_pretrained(tmp_path)
    app = space.App(str(tmp_path))
    with pytest.raises(ValueError, match="num_inference_steps=16 is not a whole number from 1 to 15"):
        app.service.submit(Parameters(num_inference_steps=16))
    steps = [block for block in space.build_page(app).blocks.values() if getattr(block, "label", "") == "Steps"]
    assert [number.value for number in steps] == [15]


OURS, EULER = DDPMNoiseScheduler, EulerDiscreteScheduler  # our step alone takes both eta and solver_order
T = 100
UNEVEN = {
    "num_inference_steps": 10,
    "timesteps": [99, 80, 60, 45, 35, 25, 18, 10, 5, 2],
    "eta": 0.5,
    "solver_order": 2,
}


@pytest.mark.parametrize(
    ("scheduler", "sampling", "offered", "steps"),
    [
        (OURS(T), None, ["DPM++ SDE", "DDIM", "DDPM"], T),
        (OURS(T), FAST, ["DDIM", "DDPM"], 25),
        (OURS(T), {"num_inference_steps": 50, "eta": 0.0, "solver_order": 1}, ["DPM++ SDE", "DDPM"], 50),
        (OURS(T), UNEVEN, ["DPM++ SDE", "DDIM", "DDPM"], 10),
        (DDIMScheduler(T), None, ["DDIM", "DDPM"], T),
        (DDIMScheduler(T), FAST, ["DDIM", "DDPM"], 25),
        (DDPMScheduler(T), None, [], T),
        (DPMSolverMultistepScheduler(T), {"num_inference_steps": 20}, [], 20),
        (HeunDiscreteScheduler(T), {"num_inference_steps": 6}, [], 6),
        (PNDMScheduler(T), {"num_inference_steps": 6}, [], 6),
        (EULER(T), {"num_inference_steps": 6}, [], 6),
        (LCMScheduler(T), {"num_inference_steps": 4, "guidance_scale": 1.0}, [], 4),
        (OURS(T, timestep_spacing="trailing"), {"num_inference_steps": 4, "guidance_scale": 1.0}, [], 4),
        (LCMScheduler(T), None, [], 50),
    ],
)
def test_any_scheduler_and_the_models_own_way(tmp_path, scheduler, sampling, offered, steps):
    """The page's first choice is what the saved model does by itself, pixel by pixel."""
    DDPMImagePipeline(make_unet(), scheduler, id2label=NAMES, sampling=sampling).save_pretrained(tmp_path)
    app = space.App(str(tmp_path))
    assert list(app.service.samplers) == [service.OWN_SAMPLER, *offered]
    assert app.service.own.num_inference_steps == steps
    scale = app.service.own.guidance_scale
    assert scale == (sampling or {}).get("guidance_scale", 1.0)
    parameters = Parameters(("Bag",), 2, steps, service.OWN_SAMPLER, scale, seed=3)
    frames, images = finish(app.service.submit(parameters))
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    saved_or_possible = {"num_inference_steps": steps} if sampling is None else {}
    expected = app.pipe(2, generators, class_labels="Bag", output_type="pt", **saved_or_possible).images
    assert np.array_equal(np.stack(images), (expected[:, 0] * 255).round().numpy())
    assert all(frame.x_0.shape == (2, 16, 16) for frame in frames)
    for sampler in offered:
        finish(app.service.submit(Parameters(None, 1, 3, sampler)))
    name = type(scheduler).__name__
    assert len(frames) <= service.MAX_FRAMES and (name != "LCMScheduler" or steps != 4 or len(frames) == 4)
    blocks = {getattr(block, "label", ""): block for block in space.build_page(app).blocks.values()}
    assert app.service.own.max_steps == (50 if name == "LCMScheduler" else T)
    assert blocks["Guidance (1: none)"].value == blocks["guidance_scale"].value == scale


def test_a_picture_is_repainted_as_the_model_does_by_itself():
    """Which takes another eta than the saved one."""
    pipe = DDPMImagePipeline(make_unet(), OURS(T), id2label=NAMES, sampling=UNEVEN)
    picture, mask = Image.new("L", (16, 16), 90), Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    given = {"image": picture, "mask_image": mask}
    _, (image,) = finish(SamplingService(pipe).submit(Parameters(("Bag",), 1, 10, seed=3, **given)))
    expected, saved = (
        pipe(
            generator=torch.Generator().manual_seed(3), class_labels="Bag", guidance_scale=1.0, **given, **eta
        ).images[0]
        for eta in ({}, UNEVEN)
    )
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1
    assert np.abs(np.asarray(image, int) - np.asarray(saved, int)).max() > 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_x_0_where_the_scheduler_tells_none(prediction_type):
    """DPM-Solver's step gives no x_0; the frames show the one that ours tells for the same network, x_t and t."""
    scheduler = DPMSolverMultistepScheduler(prediction_type=prediction_type)
    pipe = DDPMImagePipeline(make_unet(), scheduler, id2label=NAMES)
    frames, _ = finish(SamplingService(pipe).submit(Parameters(("Bag",), 1, 1)))
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(frames[0].timestep)
    output = pipe.denoise(noise, t, pipe.encode("Bag", batch_size=1)).detach()
    x_0 = DDPMNoiseScheduler(prediction_type=prediction_type).predict_x_0(output, t, noise)
    assert np.abs(frames[0].x_0.astype(int) - service.to_uint8(x_0)).max() <= 1


DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 1, "num_layers": 1}
DIT |= {"sample_size": 16, "patch_size": 4, "num_embeds_ada_norm": 3}
MODELS = {
    "no classes": lambda: DDPMImagePipeline(make_unet(num_class_embeds=None), OURS()),
    "classes without names": lambda: DDPMImagePipeline(make_unet(), OURS()),
    "no null label": lambda: DDPMImagePipeline(make_unet(num_class_embeds=3), OURS(), id2label=NAMES),
    "colour": lambda: DDPMImagePipeline(make_unet(in_channels=3, out_channels=3), OURS(), id2label=NAMES),
    "another network": lambda: DDPMImagePipeline(DiTTransformer2DModel(**DIT), OURS(), id2label=NAMES),
    "stock": lambda: DDPMPipeline(make_unet(UNet2DModel, num_class_embeds=None), DDPMScheduler()),
    "stock with DDIM": lambda: DDIMPipeline(make_unet(UNet2DModel, num_class_embeds=None), DDIMScheduler()),
    "stock with classes": lambda: DDPMPipeline(make_unet(UNet2DModel), DDPMScheduler()),
}


GO = space.gr.EventData(space.gr.Button(render=False), None)


def click(app, mode=space.NEW, asked=(), n=1, steps=2, sampler=service.OWN_SAMPLER, scale=1.0, seed=0, **options):
    """What the page's handler yields at last, after a click on Generate."""
    given = [options.pop(name, None) for name in ("editor", "strength", "last_seed")]
    viewer, *others = list(app.click(mode, asked, n, steps, sampler, scale, seed, *given, options.pop("event", GO)))[
        -1
    ]
    return viewer.get("value", viewer), *others


@pytest.mark.parametrize(("kind", "offered"), [("lower_resolution", False), ("grey", False), ("masked", True)])
def test_pictures_are_offered_where_the_model_takes_those_of_the_page(tmp_path, kind, offered):
    """The page makes them as large and as colourful as the model's."""
    unet = make_unet(in_channels=7, out_channels=3, num_class_embeds=None)
    DDPMImagePipeline(unet, DDPMNoiseScheduler(), image_condition=kind).save_pretrained(tmp_path)
    assert space.App(str(tmp_path)).takes_pictures == offered


@pytest.mark.parametrize("kind", MODELS)
def test_any_saved_model(tmp_path, kind):
    """The page's own first click, its explanation and the API."""
    MODELS[kind]().save_pretrained(tmp_path)
    app = space.App(str(tmp_path))
    space.build_page(app)
    names = [] if kind in ("no classes", "stock", "stock with DDIM") else list("0123")
    assert app.class_names == (names if "without" in kind or "stock" in kind else names and CLASS_NAMES)
    asked = app.class_names[-1:]
    viewer, *_ = click(app, asked=asked, n=2, scale=app.service.own.guidance_scale)
    assert viewer["done"] and len(viewer["frames"]) == 2
    x_0, x_t, guess, weights = app.explain(None, 500)
    assert x_0.size == x_t.size == guess.size == (16, 16)
    assert weights["signal"] ** 2 + weights["noise"] ** 2 == pytest.approx(1)
    *_, (_, _, parameters) = app.generate(asked, 1, 2, service.OWN_SAMPLER, 1, 0)
    assert parameters["class_labels"] == (asked or [None])


@pytest.fixture
def text_folder(tmp_path, text_parts):
    unet = make_unet(num_class_embeds=None, class_embed_type="identity", time_embedding_dim=16)
    DDPMImagePipeline(unet, LCMScheduler(), sampling={"num_inference_steps": 4}, **text_parts).save_pretrained(
        tmp_path
    )
    (tmp_path / "README.md").write_text("---\ndatasets: cats\nwidget:\n- text: a sleepy cat\n---\n# The card\n")
    return tmp_path


def test_a_model_of_text(text_folder):
    app = space.App(str(text_folder))
    blocks = list(space.build_page(app).blocks.values())
    assert "trained on cats" in space.introduce(app)
    assert any("a sleepy cat" in str(getattr(block, "samples", "")) for block in blocks)
    cat, dog, again = (click(app, asked=f"a {pet}", steps=4)[0]["frames"][-1] for pet in ("cat", "dog", "cat"))
    assert cat == again != dog
    assert click(app, asked="a cat")[0]["link"]["prompt"] == ["a cat"]
    *_, (_, _, parameters) = app.generate(prompt="a dog", num_inference_steps=4, guidance_scale=2.0, seed=0)
    assert parameters["prompt"] == "a dog"
    with pytest.raises(space.gr.Error, match=r"prompt='aaaa.* is not a text of at most 300 characters"):
        click(app, asked="a" * 301)
    with pytest.raises(ValueError, match="prompt has 9 tokens: this text encoder takes at most 8"):
        app.service.submit(Parameters(prompt="a a a a a a a"))


def square(left, top, right, bottom):
    """What the editor holds: a grey picture, painted over in a box of the model's pixels."""
    layer = Image.new("RGBA", (336, 336))
    layer.paste((255, 0, 0, 255), tuple(21 * side for side in (left, top, right, bottom)))
    return {"background": Image.new("RGBA", (336, 336), (90, 90, 90, 255)), "layers": [layer], "composite": None}


def images_of(outputs):
    return [np.asarray(Image.open(image).resize((16, 16), Image.Resampling.NEAREST), int) for image, _ in outputs]


@pytest.mark.parametrize("sampler", [service.OWN_SAMPLER, "DDIM"])
def test_painted_pixels_are_repainted_and_no_others(model_folder, sampler):
    app = space.App(str(model_folder))
    picture, mask = space.painted(square(4, 2, 12, 10))
    wanted = app.pictures(picture, mask)
    frames, (image,) = finish(app.service.submit(Parameters(("Bag",), 1, 4, sampler, **wanted)))
    inside = np.zeros((16, 16), bool)
    inside[2:10, 4:12] = True
    assert np.abs(image - 90)[~inside].max() <= 1 < np.abs(image - 90)[inside].mean()
    assert np.array_equal(frames[-1].x_t[0], image)
    viewer, *_ = click(
        app, space.PICTURE, ["Bag"], steps=4, sampler=sampler, editor=square(4, 2, 12, 10), strength=1.0
    )
    assert viewer["done"] and viewer["link"] == {}  # a picture fits into no address


def test_strength_is_how_much_changes(model_folder):
    app = space.App(str(model_folder))
    wanted = app.pictures(Image.new("RGB", (50, 30), "gray"))
    runs = [finish(app.service.submit(Parameters((), 1, 20, "DDIM", strength=s, **wanted))) for s in (0.1, 0.5, 1.0)]
    assert [len(frames) for frames, _ in runs] == [2 + 1, 10 + 1, 20 + 1]
    distances = [np.abs(image - 128).mean() for _, (image,) in runs]
    assert distances == sorted(distances)


@pytest.mark.parametrize("sampler", OFFERED)
def test_a_strip_goes_from_one_result_to_the_other(pipe, sampler):
    sampling = SamplingService(pipe)

    def draw(n=1, **seeds):
        return np.array(finish(sampling.submit(Parameters(("Bag",), n, 10, sampler, 2.0, **seeds)))[1])

    strip = draw(5, seed=3, last_seed=8)
    assert np.abs(strip[[0, 4]] - np.concatenate([draw(seed=3), draw(seed=8)])).max() <= 1
    assert all(np.abs(a - b).max() > 1 for a, b in itertools.pairwise(strip))


def test_noise_between_two_is_as_large_as_they_are():
    first, last = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    with service.NoiseBetween({first: (last, 0.5)}):
        noise = torch.randn((1, 3, 64, 64), generator=first)
        other = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(other, torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def student_folder(tmp_path):
    for name, scheduler, sampling in (
        ("teacher", OURS(), FAST),
        ("student", LCMScheduler(), {"num_inference_steps": 4}),
    ):
        DDPMImagePipeline(make_unet(), scheduler, id2label=NAMES, sampling=sampling).save_pretrained(tmp_path / name)
    (tmp_path / "student" / "README.md").write_text("---\nbase_model: you/teacher\n---\n# The card\n")
    return tmp_path / "student"


def test_finest_is_the_teacher(student_folder):
    app = space.App(str(student_folder))
    assert list(app.service.samplers) == [service.OWN_SAMPLER, service.FINEST] and app.service.follows
    assert app.rule_of(service.FINEST) == (25, 1.3)
    images = finish(app.service.submit(Parameters(("Bag",), 2, 25, service.FINEST, 1.3, seed=3)))[1]
    teacher, _ = space.load_model(str(student_folder.parent / "teacher"))
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = teacher(2, generators, class_labels="Bag", output_type="pt").images
    assert np.array_equal(np.stack(images), (expected[:, 0] * 255).round().numpy())


def test_only_what_is_there_at_once_follows_the_controls(student_folder):
    app = space.App(str(student_folder))
    moved = space.gr.EventData(space.gr.Slider(render=False), None)
    assert click(app, steps=4, event=moved)[0]["link"]["num_inference_steps"] == ["4"]
    assert all(value == space.gr.skip() for value in click(app, steps=25, sampler=service.FINEST, event=moved))


def test_a_link_draws_the_same_again(model_folder):
    app = space.App(str(model_folder))
    viewer, *_ = click(app, space.STRIP, ["Bag"], n=3, seed=5, last_seed=9)
    query = QueryParams([(name, value) for name, values in viewer["link"].items() for value in values])
    mode, asked, n, sampler, steps, scale, seed, last_seed, linked = app.restore(SimpleNamespace(query_params=query))
    assert linked
    again = click(app, mode, asked, n, steps, sampler, scale, seed, last_seed=last_seed)[0]
    assert again["frames"] == viewer["frames"]
    assert app.restore(SimpleNamespace(query_params=QueryParams()))[-1] == space.gr.skip()
    with pytest.raises(space.gr.Error, match="The address is not one of this page"):
        app.restore(SimpleNamespace(query_params=QueryParams(seed="x")))


FLOW = DPMSolverMultistepScheduler(prediction_type="flow_prediction")


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (LDMPipeline(None, make_unet(), DDIMScheduler()), "a LDMPipeline of vqvae, unet, scheduler: supported are"),
        (DDPMImagePipeline(make_unet(), FLOW), "with prediction_type='flow_prediction' tells no x_0"),
    ],
)
def test_an_unsupported_model_is_named(monkeypatch, tmp_path, pipe, message):
    monkeypatch.setattr(space.DiffusionPipeline, "from_pretrained", lambda *_, **__: pipe)
    with pytest.raises(SystemExit, match=message):
        space.load_model(str(tmp_path))


@pytest.mark.parametrize("fault", ["seed", "network"])
def test_a_click_that_fails_does_not_look_as_if_it_went_on(model_folder, fault):
    app = space.App(str(model_folder))
    if fault == "network":
        app.pipe.unet.register_forward_pre_hook(lambda *_: 1 / 0)
    seed = -5 if fault == "seed" else 0
    request, views = app.click(space.NEW, ["Bag"], 1, 1, "DDIM", 1, seed, None, 1.0, None, GO), []
    with pytest.raises((space.gr.Error, ZeroDivisionError)):
        views.extend(viewer.get("value") for viewer, *_ in request)
    assert views[-1]["done"] and views[-1]["status"] == {"seed": "not possible", "network": "failed"}[fault]


def test_the_first_click_is_within_the_limit(tmp_path):
    """10 images of 1000 steps, or 5 with guidance, would be refused."""
    sampling = {"num_inference_steps": 1000, "guidance_scale": 2.0}
    DDPMImagePipeline(make_unet(), OURS(), id2label=NAMES, sampling=sampling).save_pretrained(tmp_path)
    blocks = space.build_page(space.App(str(tmp_path))).blocks.values()
    assert next(block.value for block in blocks if getattr(block, "label", "") == "Images") == 4


def test_noise_and_guess_is_the_schedulers_forward_process(pipe):
    x_0 = space.to_x_0(Image.effect_noise((16, 16), 90))
    assert x_0.shape == (1, 1, 16, 16) and -1 <= x_0.min() < x_0.max() <= 1
    sampling = SamplingService(pipe)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    for timestep in (0, 500, 999):
        signal = pipe.scheduler.alphas_cumprod[timestep].sqrt()
        x_t, guess = sampling.noise_and_guess(x_0, timestep)
        torch.testing.assert_close(x_t, signal * x_0 + (1 - signal**2).sqrt() * noise, atol=1e-5, rtol=1e-5)
        assert guess.shape == x_0.shape


@pytest.mark.parametrize("handler", ["click", "generate"])
def test_nothing_is_in_line_before_gradio_can_end_it(model_folder, handler):
    app = space.App(str(model_folder))
    evaluations = Evaluations(app.pipe.unet)
    arguments = (
        [space.NEW, [], 1, 1, "DDIM", 1, 0, None, 1.0, None, GO] if handler == "click" else [None, 1, 1, "DDIM", 1, 0]
    )
    request = getattr(app, handler)(*arguments)
    next(request)
    finish(app.service.submit(Parameters(None, 1, 1)))
    assert evaluations.batch_sizes == [1]
    assert next(request)


def test_memory_is_flat_over_500_requests(model_folder):
    """The handlers of the page themselves, with what they write for the downloads."""
    handlers, process = space.App(str(model_folder)), psutil.Process()
    modes = [{}, {"mode": space.PICTURE, "editor": square(2, 2, 9, 9), "strength": 1.0}]
    modes += [{"mode": space.STRIP, "n": 2, "last_seed": 3}]
    for i in range(500):
        final = click(handlers, steps=1, sampler="DDIM", seed=i, **modes[i % 3])
        assert len(final[0]["frames"]) == (2 if i % 3 == 1 else 1)
        if i == 100:
            before = process.memory_info().rss
    assert (process.memory_info().rss - before) / 2**20 < 20


# ---------------------------------------------------------------- the running app


@contextmanager
def running(script, model_folder):
    """A process of its own that serves the page: its URL, and the rest of what it prints."""
    environment = os.environ | {"MODEL_ID": os.environ.get("MODEL_ID", str(model_folder)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", str(ROOT / script)]
    process = subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.PIPE, text=True)
    try:
        yield (
            next(match[0] for line in process.stdout if (match := re.search(r"http://[\w.:]+", line))),
            process.stdout,
        )
    finally:
        for child in psutil.Process(process.pid).children():  # those that ZeroGPU's client forked
            child.kill()
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def url(model_folder):
    """The app as a visitor meets it."""
    with running("spaces_app/app.py", model_folder) as (url, _):
        yield url


@pytest.fixture
def here(model_folder):
    """(App, its URL, Evaluations): the app in this process."""
    app = space.App(str(model_folder))
    with launched(app) as (url, evaluations):
        yield app, url, evaluations


@contextmanager
def launched(app):
    server, url, _ = space.launch(app, prevent_thread_lock=True, quiet=True)
    app.page, evaluations = server.get_blocks(), Evaluations(app.pipe.unet)
    yield url, evaluations
    evaluations.gate.set()
    app.page.close()


@pytest.fixture(scope="module")
def client(url):
    return gradio_client.Client(url, verbose=False)


def test_api_gives_the_pipelines_own_images(client, pipe):
    png, gif, parameters = client.predict(
        class_labels=["Bag", "Trouser"],
        batch_size=3,
        num_inference_steps=8,
        sampler="DDIM",
        seed=5,
        api_name="/generate",
    )
    generators = [torch.Generator().manual_seed(seed) for seed in parameters["seeds"]]
    images = pipe(
        3, generators, num_inference_steps=8, class_labels=["Bag", "Trouser", "Bag"], eta=0.0, output_type="np"
    ).images
    grid = np.asarray(Image.open(png).resize((50, 16), Image.Resampling.NEAREST), float)
    tiles = np.stack([grid[:, left : left + 16] for left in (0, 17, 34)])
    assert np.abs(tiles - images[..., 0] * 255).max() <= 1.01
    assert Image.open(gif).n_frames == 8
    assert parameters["seeds"] == [5, 6, 7]


@pytest.mark.parametrize(
    ("asked", "given"), [("Bag", ["Bag", "Bag"]), (["Bag", "Trouser"], ["Bag", "Trouser"]), ([], [None, None])]
)
def test_api_says_how_to_make_the_images_again(client, asked, given):
    parameters = client.predict(class_labels=asked, batch_size=2, num_inference_steps=2, seed=3, api_name="/generate")[
        2
    ]
    again = {
        "sampler": space.OWN_SAMPLER,
        "num_inference_steps": 2,
        "guidance_scale": 1.3,
        "eta": 1.0,
        "solver_order": 2,
        "seed": 3,
        "seeds": [3, 4],
    }
    assert parameters == parameters | again | {"class_labels": given, "batch_size": 2}


def test_api_explains_by_name(client, tmp_path):
    returns = client.view_api(return_format="dict")["named_endpoints"]["/explain"]["returns"]
    assert [value["label"] for value in returns] == ["x_0", "x_t", "predicted_x_0", "weights"]
    Image.new("RGB", (40, 20), "white").save(tmp_path / "white.png")
    picture = gradio_client.handle_file(str(tmp_path / "white.png"))
    *pictures, weights = client.predict(image=picture, timestep=999, api_name="/explain")
    assert [Image.open(path).size for path in pictures] == [(16, 16)] * 3
    assert Image.open(pictures[0]).getextrema() == (255, 255)
    assert weights["signal"] == pytest.approx(0.00635, abs=1e-5) and weights["timestep"] == 999
    drawn, *_ = client.predict(timestep=0, api_name="/explain")
    assert Image.open(drawn).getextrema() != (255, 255)


def test_api_changes_a_picture(client, tmp_path):
    Image.new("L", (16, 16), 90).save(tmp_path / "grey.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 16, 8))
    mask.save(tmp_path / "mask.png")
    files = {name: gradio_client.handle_file(str(tmp_path / name)) for name in ("grey.png", "mask.png")}
    arguments = {"image": files["grey.png"], "mask_image": files["mask.png"], "num_inference_steps": 4, "seed": 0}
    png, _, parameters = client.predict(**arguments, api_name="/generate")
    image = np.asarray(Image.open(png).resize((16, 16), Image.Resampling.NEAREST), int)
    assert np.abs(image[8:] - 90).max() <= 1 < np.abs(image[:8] - 90).max()
    assert parameters["image"].startswith("data:image/png;base64,")


def test_api_is_documented(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/generate", "/explain"}
    names = [parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]]
    assert names[:6] == ["class_labels", "batch_size", "num_inference_steps", "sampler", "guidance_scale", "seed"]
    assert names[6:] == ["prompt", "image", "mask_image", "strength", "last_seed"]
    assert "seed + i" in endpoints["/generate"]["description"]


@pytest.mark.parametrize(
    ("endpoint", "arguments", "message"),
    [
        ("/generate", {"batch_size": 99}, "batch_size=99 is not a whole number from 1 to 16"),
        ("/generate", {"num_inference_steps": 2.5}, "num_inference_steps=2.5 is not a whole number"),
        ("/generate", {"batch_size": "four"}, "four"),
        ("/generate", {"sampler": "Euler"}, "Euler"),
        ("/generate", {"num_inference_steps": None}, "num_inference_steps=None is not a whole number from 1 to 1000"),
        ("/generate", {"class_labels": ["Bag", "Trouser"]}, "class_labels has 2 names for batch_size=1 images"),
        ("/generate", {"class_labels": ["Bag", "Hat"], "batch_size": 2}, "'Hat'"),
        ("/generate", {"sampler": "e" * 999}, "sampler='e{98}… is not one of"),
        ("/generate", {"seed": "e" * 999}, "seed='e{98}… is not a whole number"),
        ("/generate", {"prompt": "a cat"}, "prompt='a cat': this model was not trained with text"),
        ("/generate", {"strength": 0.5}, "strength need image"),
        ("/generate", {"last_seed": 3}, "last_seed draws at least two images"),
        ("/explain", {"timestep": 3.7}, "timestep=3.7 is not a whole number from 0 to 999"),
        ("/explain", {"timestep": 1000}, "1000"),
    ],
)
def test_api_names_what_is_wrong(client, endpoint, arguments, message):
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(**arguments, api_name=endpoint)


def test_twenty_clients_at_once(client, url):
    """Each gets the pictures of its own seed."""

    def ask(seed):
        return client.predict(batch_size=1, num_inference_steps=10, seed=seed, api_name="/generate")

    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, range(20)))
    assert [parameters["seed"] for _, _, parameters in together] == list(range(20))
    for seed in (0, 19):
        a, b = (np.asarray(Image.open(result[0]), int) for result in (together[seed], ask(seed)))
        assert np.abs(a - b).max() <= 1


def wait_in_line(here, num_visitors):
    """One visitor's request is held at its first evaluation, the others' wait behind it."""
    app, url, evaluations = here
    evaluations.gate.clear()
    with httpx2.Client() as visitors:
        for i in range(1 + num_visitors):
            arguments = {"data": [None, 1, 1, "DDPM", 1, i, "", None, None, 1, None]}
            headers = {"x-forwarded-for": f"10.0.0.{i % 5}"}  # five visitors, as a proxy tells them
            visitors.post(f"{url}gradio_api/call/generate", json=arguments, headers=headers).raise_for_status()
            wait_for(lambda: evaluations.batch_sizes)
    wait_for(lambda: len(app.service._waiting) == num_visitors)


def test_the_next_after_sixty_is_refused(here):
    wait_in_line(here, 60)
    client = gradio_client.Client(here[1], verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="60 requests are waiting already"):
        client.predict(api_name="/generate")


def test_gradio_keeps_nothing_of_a_request(here):
    """Neither of the API's nor of the page's, in one session: of an update that a plain value follows it would keep a component."""
    _, url, _ = here
    client, browser = gradio_client.Client(url, verbose=False), httpx2.Client(timeout=30)
    dependencies = browser.get(f"{url}config").json()["dependencies"]
    click = next(d["id"] for d in dependencies if len(d["inputs"]) == 10 and len(d["outputs"]) == 5)
    arguments = {"data": [space.NEW, [], 1, 2, "DDIM", 1, 0, None, 1, None], "fn_index": click, "session_hash": "page"}

    def components_after_a_request() -> int:
        client.predict(num_inference_steps=2, api_name="/generate")
        browser.post(f"{url}gradio_api/queue/join", json=arguments).raise_for_status()
        assert '"success":true' in browser.get(f"{url}gradio_api/queue/data?session_hash=page").text
        gc.collect()
        return sum(isinstance(thing, space.gr.blocks.Block) for thing in gc.get_objects())

    after = [components_after_a_request() for _ in range(5)]
    assert after[1:] == after[1:2] * 4, after


# ---------------------------------------------------------------- strangers


JOIN, UPLOAD = "gradio_api/queue/join", "gradio_api/upload"
UNKNOWN = {"data": [], "fn_index": 999, "session_hash": "stranger"}


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("gradio_api/call/nothing", {"json": {"data": []}}, 404),
        ("gradio_api/call/v2/nothing", {"json": {}}, 404),
        ("gradio_api/run/generate", {"json": {"data": []}}, 404),
        ("gradio_api/run/predict", {"json": {"data": []}}, 404),
        ("gradio_api/component_server", {"json": {}}, 404),
        (JOIN, {"json": UNKNOWN}, 404),
        (JOIN, {"content": b"no JSON"}, 422),
        (JOIN, {"content": b"a" * 2**16}, 413),
        (UPLOAD, {"files": {"files": ("a.png", b"a" * (bounds.MAX_UPLOAD + 1))}}, 413),
        (UPLOAD, {"files": {"files": ("a.png", b"a" * 2**20)}}, 200),
    ],
)
def test_what_the_page_does_not_need_is_refused(url, path, options, status):
    assert httpx2.post(f"{url}/{path}", **options).status_code == status


def test_nothing_is_written_for_a_link(url):
    assert httpx2.get(f"{url}/gradio_api/deep_link?session_hash=stranger").status_code == 404


def test_uploads_are_few_and_removed(monkeypatch, here):
    app, url, _ = here
    monkeypatch.setattr(bounds, "MAX_UPLOADS", 1)
    files = {"files": ("a.png", b"a")}
    (path,) = httpx2.post(url + UPLOAD, files=files).json()
    assert Path(path).is_file()
    refused = httpx2.post(url + UPLOAD, files=files)
    assert (refused.status_code, refused.text[:27]) == (503, "1 pictures are kept already")
    page = app.page
    assert page.delete_cache == (60, bounds.UPLOAD_SECONDS)
    delete_files_created_by_app(page, age=-1)  # what gradio does every minute with what is that old
    assert not Path(path).exists()
    assert httpx2.post(url + UPLOAD, files=files).status_code == 200


def test_a_visitor_asks_so_often_and_no_other_is_disturbed(monkeypatch, here):
    monkeypatch.setattr(bounds, "MAX_POSTS", 3)
    ask = partial(httpx2.post, here[1] + JOIN, json=UNKNOWN)
    assert {ask(headers={"x-forwarded-for": "10.0.0.1"}).status_code for _ in range(9)} == {404, 429}
    assert ask(headers={"x-forwarded-for": "10.0.0.2"}).status_code == 404


def test_a_visitor_does_not_fill_the_line(pipe):
    sampling, evaluations = SamplingService(pipe), Evaluations(pipe.unet)
    evaluations.gate.clear()
    sampling.submit(Parameters(None, 1, 1))
    wait_for(lambda: evaluations.batch_sizes)
    for _ in range(service.MAX_OF_VISITOR):
        sampling.submit(Parameters(None, 1, 1), "10.0.0.1")
    with pytest.raises(ValueError, match="20 requests of yours are waiting already"):
        sampling.submit(Parameters(None, 1, 1), "10.0.0.1")
    sampling.submit(Parameters(None, 1, 1), "10.0.0.2")
    evaluations.gate.set()


def test_a_flood_leaves_the_memory_as_it_was(model_folder):
    with running("spaces_app/app.py", model_folder) as (url, _), httpx2.Client(timeout=60) as stranger:
        process = max(psutil.Process().children(), key=lambda child: child.create_time())
        words = {"data": [None, 1, 1, "s" * 30_000, 1, 0, "", None, None, 1, None]}
        ends = []
        for rounds in (10, 60):
            for _ in range(rounds):
                event = stranger.post(f"{url}/gradio_api/call/generate", json=words).json()["event_id"]
                stranger.get(f"{url}/gradio_api/call/generate/{event}")
                stranger.post(f"{url}/{UPLOAD}", files={"files": ("a.png", b"a" * 2**20)})
                assert stranger.post(f"{url}/{JOIN}", content=b"a" * 2 * 10**7).status_code == 413
            ends.append(process.memory_info().rss)
        assert ends[1] < 1.05 * ends[0], ends


def test_a_card_shows_its_own_pictures_alone(tmp_path, capsys):
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "metrics.json").write_text("{broken")
    names = ("../secret.png", "link.png", "drawing.svg", "none.png", str(tmp_path / "secret.png"))
    (folder / "README.md").write_bytes(b"---\n: [\n---\n\xff" + "".join(f"![a]({name})" for name in names).encode())
    assert space.read_card(folder) == "\ufffd" + "a" * len(names)
    assert space.read_metrics(folder) is None and space.read_metadata(folder) == {}
    assert "drawing.svg is left out" in capsys.readouterr().out


@pytest.fixture(scope="module")
def zero_gpu(model_folder):
    """A client of the app on what stands in for ZeroGPU, and what that prints."""
    pytest.importorskip("spaces", reason="spaces is not installed")
    with running("tests/spaces_app/zero_gpu_app.py", model_folder) as (url, printed):
        yield gradio_client.Client(url, verbose=False, headers={"x-ip-token": "visitor"}), printed


def test_zero_gpu_lends_a_process_of_its_own(zero_gpu, pipe):
    client, printed = zero_gpu
    arguments = {"class_labels": ["Bag"], "batch_size": 2, "num_inference_steps": 10, "sampler": "DDIM", "seed": 5}
    png = client.predict(**arguments, api_name="/generate")[0]
    lines = "".join(takewhile(lambda line: "/release" not in line, printed))
    borrower = re.search(r'/allow .*"pid": \["(\d+)"', lines)[1]
    assert re.search('/schedule .*"visitor"', lines) and f"moved: cuda in {borrower}" in lines
    grid = np.asarray(Image.open(png).resize((33, 16), Image.Resampling.NEAREST), int)
    wanted = Parameters(("Bag",), 2, 10, "DDIM", FAST["guidance_scale"], seed=5)
    images = finish(SamplingService(pipe).submit(wanted))[1]
    assert np.abs(np.stack([grid[:, :16], grid[:, 17:]]) - np.stack(images)).max() <= 1


def test_zero_gpu_is_given_back_by_who_cancels(zero_gpu):
    client, printed = zero_gpu
    job = client.submit(num_inference_steps=1000, sampler="DDPM", api_name="/generate")
    assert any("moved: cuda" in line for line in printed)
    job.cancel()
    assert "".join(takewhile(lambda line: "/release" not in line, printed)).count("evaluation") < 500


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser tests: playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no browser tests: Chromium (Debian's package chromium) is not installed")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)


@pytest.fixture
def open_page(browser, url):
    """Opens the page on a screen of a size and a colour scheme; what the page loads from elsewhere, or logs, fails the test."""
    pages, complaints = [], []

    def open_page(width=1200, height=900, color_scheme="light", url=url, query=""):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=color_scheme)
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("request", lambda r: r.url.startswith(("data:", "blob:", url)) or complaints.append(r.url))
        page.set_default_timeout(60_000)
        page.goto(url + query)
        page.locator("#generate").wait_for()
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def generate(page, seed=42):
    """Sets the seed, clicks, waits for the end, returns the two pictures that the viewer shows."""
    fill(page.locator("#seed input"), seed)
    page.click("#generate")
    page.locator(".viewer .status", has_text=f"seed {seed},").wait_for()
    return [image.get_attribute("src") for image in page.locator(".viewer img").all()]


def fill(field, value):
    field.fill(str(value))
    field.press("Tab")


def test_a_click_makes_images_that_the_seed_repeats(open_page):
    page = open_page()
    first, other, again = (generate(page, seed) for seed in (42, 43, 42))
    assert again == first
    assert other != first
    assert page.locator(".samples img").count() == 10
    page.get_by_role("button", name="roll").click()
    page.wait_for_function("document.querySelector('#seed input').value !== '42'")


def test_scrubbing_shows_what_was(open_page):
    page = open_page()
    x_t, x_0 = generate(page)
    slider = page.locator(".viewer input[type=range]")
    assert slider.get_attribute("aria-valuetext") == "step 25 of 25, t = 0"
    slider.press("Home")
    images = page.locator(".viewer img")
    assert "step 1 of 25" in page.locator(".viewer output").inner_text()
    assert images.nth(0).get_attribute("src") != x_t
    assert images.nth(1).get_attribute("src") != x_0
    slider.press("End")
    assert images.nth(0).get_attribute("src") == x_t


def test_downloads(open_page):
    page = open_page()
    generate(page)
    files = {}
    for name in ("PNG", "GIF", "Parameters"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        files[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    assert Image.open(io.BytesIO(files["ddpm-seed-42.gif"])).n_frames == 25
    assert Image.open(io.BytesIO(files["ddpm-seed-42.png"])).format == "PNG"
    assert json.loads(files["ddpm-seed-42.json"])["seeds"] == list(range(42, 52))


@pytest.fixture
def slow(here):
    """(url, Evaluations) of an app whose U-Net is slowed down: a thousand steps would take 50 seconds."""
    app, url, evaluations = here
    app.pipe.unet.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    return url, evaluations


def test_stop(slow, open_page):  # in this order: the page is closed before its app
    page = open_page(url=slow[0])
    page.get_by_label("DDPM").check()
    page.wait_for_function("document.querySelector('#steps input').value == '250'")
    page.click("#generate")
    page.wait_for_function("document.querySelector('.viewer input').value >= 1")
    page.click("#stop")
    page.locator(".viewer .status", has_text="stopped").wait_for()
    page.get_by_label("DDIM").check()
    page.wait_for_function("document.querySelector('#steps input').value == '50'")
    generate(page)
    assert "DDIM, 50 steps" in page.locator(".viewer .status").inner_text()


def ends_early(evaluations):
    seen = 0
    while seen != (seen := len(evaluations.batch_sizes)):
        time.sleep(1)
    return 0 < seen < 500


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_stopping_and_leaving_end_the_computation(browser, slow, how):
    url, evaluations = slow
    page = browser.new_page()
    try:
        page.goto(url)
        page.get_by_label("DDPM").check()
        fill(page.locator("input[type=number][aria-label*=Images]"), 4)
        fill(page.locator("#steps input"), 1000)
        page.click("#generate")
        page.wait_for_function("document.querySelector('.viewer input').value >= 1")
        page.click("#stop") if how == "stop" else page.close()
        assert ends_early(evaluations)
    finally:
        page.close()


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_stopping_and_leaving_the_api_end_the_computation(slow, how):
    url, evaluations = slow
    if how == "stop":
        client = gradio_client.Client(url, verbose=False)
        job = client.submit(num_inference_steps=1000, sampler="DDPM", api_name="/generate")
    else:
        call = f"{url}gradio_api/call/generate"
        event = httpx2.post(call, json={"data": [None, 1, 1000, "DDPM", 1, None, "", None, None, 1, None]}).json()[
            "event_id"
        ]
        stream = httpx2.Client().send(httpx2.Request("GET", f"{call}/{event}"), stream=True)
    wait_for(lambda: evaluations.batch_sizes)
    job.cancel() if how == "stop" else stream.close()
    assert ends_early(evaluations)


def test_the_place_in_line_is_told(browser, here):
    wait_in_line(here, 25)
    page = browser.new_page()
    page.goto(here[1])
    page.click("#generate")
    page.get_by_text("waiting for 25 before you").wait_for()
    here[2].gate.set()
    page.locator(".viewer .status", has_text="seed 42,").wait_for()
    page.close()


def test_wrong_input_is_told(open_page):
    page = open_page()
    fill(page.locator("#seed input"), -1)
    page.click("#generate")
    page.get_by_text("seed=-1 is not a whole number from 0 to 4294967295.").wait_for()
    page.locator(".viewer .status", has_text="not possible").wait_for()


def test_how_it_works(open_page):
    page = open_page()
    page.get_by_role("tab", name="How it works").click()
    pictures = page.locator("#explanation .pictures img")
    pictures.last.wait_for()
    real, noised, guessed = (image.get_attribute("src") for image in pictures.all())
    assert len({real, noised, guessed}) == 3
    fill(page.locator("#t input[type=number]"), 999)
    page.get_by_text("0.006").wait_for()  # sqrt(alphas_cumprod) of the last step
    assert pictures.nth(0).get_attribute("src") == real
    assert pictures.nth(1).get_attribute("src") != noised


def results(page):
    return [image.get_attribute("src") for image in page.locator(".samples .thumbnail-lg img").all()]


def test_the_address_draws_the_same_run_again(open_page):
    page = open_page()
    fill(page.locator("input[type=number][aria-label*=Images]"), 3)
    pictures = generate(page, 7)
    assert "seed=7" in page.url and "batch_size=3" in page.url
    page = open_page(query="/?" + page.url.split("?")[1])
    page.locator(".viewer .status", has_text="seed 7,").wait_for()
    assert [image.get_attribute("src") for image in page.locator(".viewer img").all()] == pictures
    assert page.locator("#seed input").input_value() == "7"


def test_results_are_shown_with_their_own_run_alone(slow, open_page):
    url, evaluations = slow
    page = open_page(url=url)
    generate(page)
    assert page.locator(".samples").is_visible() and page.get_by_role("button", name="PNG").is_visible()
    assert not page.locator(".viewer .panels").is_visible()  # they would show the same once more
    page.locator(".viewer input").press("Home")
    assert page.locator(".viewer .panels").is_visible() and not page.locator(".samples").is_visible()
    page.locator(".viewer input").press("End")
    evaluations.gate.clear()
    page.click("#generate")
    page.locator(".viewer .status", has_text="starting").wait_for()
    assert not page.locator(".samples").is_visible() and not page.get_by_role("button", name="PNG").is_visible()
    page.click("#stop")
    evaluations.gate.set()
    page.locator(".viewer .status", has_text="stopped").wait_for()
    assert not page.locator(".samples").is_visible()


def test_keyboard_alone(open_page):
    """A class is searched and chosen, the list closes behind it, what has the focus has a ring, Enter starts."""
    page = open_page()
    page.locator("#classes input").focus()
    page.keyboard.type("Bag")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.locator("ul.options").wait_for(state="hidden")
    page.locator("#generate").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    ring = "(s => s.outlineStyle + s.outlineWidth)(getComputedStyle(document.querySelector('#generate:focus')))"
    page.wait_for_function(f"{ring} == 'solid2px'")  # Gradio's buttons change their style in 0.2 s
    page.keyboard.press("Enter")
    page.locator(".viewer .status", has_text="seed 42,").wait_for()
    assert set(page.locator(".samples .caption-label").all_inner_texts()) == {"Bag"}


def test_a_result_is_painted_over(open_page):
    page = open_page()
    generate(page)
    page.locator(".samples .thumbnail-lg").nth(1).click()
    page.get_by_role("button", name="Change the chosen one").click()
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(2000)  # the picture comes onto it
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)  # and is sent
    fill(page.locator("#seed input"), 5)
    page.click("#generate")
    page.locator(".viewer .status", has_text="seed 5,").wait_for()
    shoot(page, "space-repaint")
    assert "seed=" not in page.url
    assert (
        len(set(page.locator(".samples .caption-label").all_inner_texts())) == 1
    )  # the class of what is painted over


def test_a_strip_between_two_results(open_page):
    page = open_page()
    generate(page)
    page.locator(".samples .thumbnail-lg").nth(2).click()
    page.get_by_role("button", name="From the first to it").click()
    page.wait_for_function("document.querySelector('#last-seed input')?.value === '44'")
    page.click("#generate")
    page.wait_for_url("**last_seed=44**")
    assert page.locator(".samples .caption-label").last.inner_text() == "seed 44"
    shoot(page, "space-strip")


@pytest.fixture
def student_url(student_folder):
    with launched(space.App(str(student_folder))) as (url, _):
        yield url


def test_the_picture_follows_the_controls(student_url, open_page):
    page = open_page(url=student_url)
    fill(page.locator("#seed input"), 8)
    page.locator(".viewer .status", has_text="seed 8,").wait_for()
    before = results(page)
    fill(page.locator("#seed input"), 9)
    page.locator(".viewer .status", has_text="seed 9,").wait_for()
    assert results(page) != before
    page.get_by_label("Finest").check()
    page.wait_for_function("document.querySelector('#steps input').value === '25'")
    page.click("#generate")
    page.locator(".viewer .status", has_text="seed 9, Finest, 25 steps").wait_for()


@pytest.fixture
def text_url(text_folder):
    with launched(space.App(str(text_folder))) as (url, _):
        yield url


def test_a_prompt_is_typed(text_url, open_page):
    page = open_page(url=text_url)
    page.get_by_text("a sleepy cat").click()
    page.wait_for_function("document.querySelector('#prompt textarea, #prompt input').value === 'a sleepy cat'")
    page.locator("#prompt textarea, #prompt input").press("Enter")
    page.locator(".viewer .status", has_text="seed 42,").wait_for()
    assert "prompt=a+sleepy+cat" in page.url


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [("light", (1200, 800), "light"), ("dark", (1200, 800), "dark"), ("phone", (390, 844), "light")],
)
def test_screenshots_show_no_overflow(open_page, name, size, scheme):
    page = open_page(*size, scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    if (finest := page.get_by_label("Finest")).count():
        finest.check()
        page.wait_for_timeout(1000)
    page.click("#generate")
    page.wait_for_function("document.querySelector('.viewer input').value >= 7")
    shoot(page, f"space-{name}-live")
    page.locator(".samples img").last.wait_for()
    shoot(page, f"space-{name}")
    for tab in ("How it works", "The model"):
        page.get_by_role("tab", name=tab).click()
        page.locator("#explanation img, .prose h1").last.wait_for()
        shoot(page, f"space-{name}-{tab.lower().replace(' ', '-')}")


def shoot(page, name):
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True, animations="disabled")


# ---------------------------------------------------------------- what the Hub reads


def read_pins(path):
    """{package: version}, on the Python that a Space has."""
    return dict(re.findall(r"^([\w-]+)==([\w.]+)(?:; python_version >=.*)?$", path.read_text(), re.M))


def test_each_package_that_the_app_imports_is_pinned_as_tested():
    files = list((ROOT / "spaces_app").glob("*.py"))
    modules = {name.split(".")[0] for path in files for name in imports(path)}
    others = modules - sys.stdlib_module_names - {path.stem for path in files}
    packages = {packages_distributions()[module][0].lower() for module in others}
    tested = read_pins(ROOT / "constraints.txt")
    assert read_pins(ROOT / "spaces_app" / "requirements.txt") == {name: tested[name] for name in packages}


def test_space_metadata():
    text = (ROOT / "spaces_app" / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["sdk"] == "gradio"
    assert metadata["sdk_version"] == read_pins(ROOT / "constraints.txt")["gradio"]
    assert (ROOT / "spaces_app" / metadata["app_file"]).is_file()
    assert len(metadata["short_description"]) <= 60  # the Hub's limit
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {metadata["colorFrom"], metadata["colorTo"]} <= colors


@pytest.mark.parametrize("model_id", ["no/such/folder", "you/none"])
def test_a_model_that_is_nowhere_is_named(model_id):
    with pytest.raises(SystemExit, match=f"MODEL_ID='{model_id}' is neither a folder here nor an available model"):
        space.load_model(model_id)


def test_card_is_shown_without_metadata_and_with_its_pictures(model_folder):
    card = space.read_card(model_folder)
    assert card.startswith("# The card\n![samples](data:image/png;base64,")
    assert space.read_metrics(model_folder) == {"fid": 12.5}
