"""ddpm-sample: pictures in, a file for each image, interpolation, and what it refuses."""

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image
from tiny import TINY_UNET

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub
from ddpm_hf.cli import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    unet = DDPMUNet2DModel(**TINY_UNET | {"num_class_embeds": 3})
    pipe = DDPMImagePipeline(unet, DDPMNoiseScheduler(), {0: "Trouser", 1: "Bag"}, {"num_inference_steps": 3})
    return hub.save(pipe, tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """The command in a folder of its own -> exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *options: sample.main([str(folder), *map(str, options)])


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def test_a_picture_is_repainted_into_a_file_each(run, tmp_path):
    """A photo larger than the model is fitted as training images are; what is black in the mask stays."""
    Image.effect_noise((16, 16), 80).convert("RGBA").resize((8, 8)).save("photo.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save("mask.PNG")
    run(
        "--image",
        "photo.png",
        "--mask_image",
        "mask.PNG",
        "--num_images",
        3,
        "--class_labels",
        "Bag",
        "--num_resample",
        2,
        "--output_dir",
        "out",
        "--output",
        "GRID.PNG",
        "--seed",
        2**64 - 3,
    )
    drawn = [pixels(tmp_path / "out" / f"{2**64 - 3 + i}.png") for i in range(3)]
    assert all(np.array_equal(image[:, :4], pixels("photo.png")[:, :4]) for image in drawn)
    assert not np.array_equal(drawn[0], drawn[1]) and Image.open("GRID.PNG").height == 58


def test_a_small_picture_is_enlarged_and_one_changed(run):
    Image.effect_noise((4, 4), 80).save("small.png")
    run("--image", "small.png", "--num_images", 2, "--output_dir", "large")
    assert np.abs(pixels("large/0.png").reshape(4, 2, 4, 2).mean((1, 3)) - pixels("small.png")).max() < 1
    run(
        "--image", "large/0.png", "--strength", 0.4, "--num_images", 2, "--output_dir", "changed", "--gif", "steps.gif"
    )
    assert pixels("changed/1.png").shape == (8, 8)


def test_interpolation_begins_and_ends_where_it_should(run):
    """With a seed at each end: the images of those seeds by DDIM. With files: strips of as many images, and an animation."""
    run(
        "--interpolate",
        3,
        5,
        "--class_labels",
        "Bag",
        "--num_images",
        4,
        "--num_inference_steps",
        4,
        "--output",
        "grid.png",
        "--output_dir",
        "strip",
        "--gif",
        "strip.gif",
    )
    for seed, i in ((3, 0), (5, 3)):
        run(
            "--seed",
            seed,
            "--num_images",
            1,
            "--class_labels",
            "Bag",
            "--eta",
            0,
            "--num_inference_steps",
            4,
            "--output_dir",
            "ends",
        )
        assert np.abs(pixels(f"ends/{seed}.png").astype(int) - pixels(f"strip/{i}.png")).max() <= 1
    assert Image.open("strip.gif").n_frames == 4 and Image.open("grid.png").height == 58
    run(
        "--interpolate",
        "ends/3.png",
        5,
        "--num_images",
        2,
        "--num_inference_steps",
        4,
        "--class_labels",
        "Bag",
        "--output_dir",
        "files",
    )
    assert pixels("files/1.png").shape == (8, 8)


def test_slerp_keeps_the_size_of_noise(generator):
    a, b = torch.randn(2, 1, 1, 64, 64, generator=generator)
    middle = DDPMImagePipeline.slerp(a, b, 0.5)
    assert abs(middle.std() - 1) < 0.02 and torch.allclose(DDPMImagePipeline.slerp(a, b, 1.0), b, atol=1e-5)
    assert torch.allclose(DDPMImagePipeline.slerp(a, a, 0.5), a, atol=1e-3)


def test_one_file_an_image_or_one_grid(run, tmp_path):
    assert run("--num_images", 3, "--class_labels", "Bag", "--batch_size", 2, "--output_dir", "each") == 0
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["0.png", "1.png", "2.png"]
    assert run("--num_images", 3) == 0 and (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(("sampler", "options"), [("ddim", ["--eta", 0]), ("sde-dpmsolver++", None), ("unipc", None)])
def test_a_sampler_by_name(run, sampler, options):
    common = ["--num_images", 2, "--class_labels", "Bag", "--num_inference_steps", 4, "--output_dir"]
    assert run(*common, "named", "--sampler", sampler) == 0
    assert run(*common, "other", *(options or [])) == 0
    same = [np.array_equal(pixels(f"named/{i}.png"), pixels(f"other/{i}.png")) for i in range(2)]
    assert all(same) if options else not any(same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "9" * 23], "torch takes 0 to 2**64 - 1"),
        (["--interpolate", "9" * 23, "2"], "torch takes 0 to 2**64 - 1"),
        (["--interpolate", "1", "2", "--num_images", "1"], "--num_images of at least 2"),
        (["--interpolate", "1", "2", "--image", "x.png"], "--interpolate takes no --image"),
        (["--interpolate", "1", "2", "--sampler", "unipc"], "no --image, --sampler"),
        (["--interpolate", "1", "2", "--eta", "1"], "no --image, --sampler or --eta"),
        (["--prompt", "a", "--class_labels", "Bag"], "not allowed with argument"),
        (["--output", "grid.gif"], "--output grid.gif: give a file that ends in"),
        (["--sampler", "euler"], "invalid choice: 'euler'"),
        (["--num_inference_steps", "0"], "--num_inference_steps 0 must be at least 1"),
        (["--guidance_scale", "nan"], "--guidance_scale nan must be at least 0"),
        (["--guidance_scale", "-1"], "--guidance_scale -1.0 must be at least 0"),
        (["--guidance_scale", "inf"], "--guidance_scale inf must be at least 0"),
        (["--eta", "1.5"], "--eta 1.5 must be from 0 to 1"),
        (["--strength", "nan"], "--strength nan must be from 0 to 1"),
    ],
)
def test_refuses_options(run, options, message, capsys):
    with pytest.raises(SystemExit):
        run(*options)
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a cat"], "prompt"),
        (["--strength", "0.5"], "strength=0.5 needs image"),
        (["--image", "nothere.png"], "nothere.png"),
        (["--sampler", "unipc", "--eta", "1"], "eta=1.0: UniPCMultistepScheduler takes none"),
    ],
)
def test_refuses_values(run, options, message, capsys):
    assert run(*options, "--num_images", "1") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_refuses_a_strip_of_a_student(tmp_path, capsys):
    """Its scheduler has no DDIM steps: the message names the option that was typed."""
    hub.save(DDPMImagePipeline(DDPMUNet2DModel(**TINY_UNET), LCMScheduler()), tmp_path)
    assert sample.main([str(tmp_path), "--interpolate", "1", "2", "--num_images", "2"]) == 2
    assert "--interpolate draws by DDIM, which the model's LCMScheduler is not" in capsys.readouterr().err
