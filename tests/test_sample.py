"""scripts/sample.py: pictures in, a file for each image, interpolation, and what it refuses."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT, TINY_UNET

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler, DDPMUNet2DModel, hub

sys.path.insert(0, str(ROOT / "scripts"))
import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    unet = DDPMUNet2DModel(**TINY_UNET | {"num_class_embeds": 3})
    pipe = DDPMImagePipeline(unet, DDPMNoiseScheduler(), {0: "Trouser", 1: "Bag"}, {"num_inference_steps": 3})
    return hub.save(pipe, tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """The script in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["sample.py", str(folder), *map(str, options)])
        sample.main()

    return run


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
    middle = sample.slerp(a, b, 0.5)
    assert abs(middle.std() - 1) < 0.02 and torch.allclose(sample.slerp(a, b, 1.0), b, atol=1e-5)
    assert torch.allclose(sample.slerp(a, a, 0.5), a, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "9" * 23], "torch takes 0 to 2**64 - 1"),
        (["--interpolate", "9" * 23, "2"], "torch takes 0 to 2**64 - 1"),
        (["--interpolate", "1", "2", "--num_images", "1"], "--num_images of at least 2"),
        (["--interpolate", "1", "2", "--image", "x.png"], "--interpolate takes no --image"),
        (["--prompt", "a", "--class_labels", "Bag"], "not allowed with argument"),
        (["--output", "grid.gif"], "--output grid.gif: give a file that ends in"),
    ],
)
def test_refuses_options(run, options, message, capsys):
    with pytest.raises(SystemExit):
        run(*options)
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance_scale", "nan", "--class_labels", "Bag"], "guidance_scale=nan"),
        (["--guidance_scale", "-1", "--class_labels", "Bag"], "guidance_scale=-1.0"),
        (["--prompt", "a cat"], "prompt"),
        (["--strength", "0.5"], "strength=0.5 needs image"),
        (["--image", "nothere.png"], "nothere.png"),
    ],
)
def test_refuses_values(run, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(*options, "--num_images", "1")
