"""Training on a condition image: one option, from the command line to the saved model."""

import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ASSETS
from training_fixtures import tiny
from training_runs import differences, kill, run

from ddpm_hf import hub
from ddpm_hf.cli.train import parse_args
from ddpm_hf.data import load_image_dataset
from ddpm_hf.training import PRESETS, train
from ddpm_hf.training.start import find_start, make_pipeline

IMAGE = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))


def test_a_killed_run_goes_on_with_the_same_conditions(tmp_path):
    options = {"image_condition": "masked", "gradient_accumulation_steps": 2}
    assert run(tmp_path / "whole", **options) == [0]
    halfway = ("torch.optim:AdamW.step", 5)
    assert run(tmp_path / "killed", interrupt=(kill, *halfway), **options) == [-signal.SIGKILL]
    assert run(tmp_path / "killed", resume=True, **options) == [0]
    assert set(differences(tmp_path / "whole", tmp_path / "killed").values()) == {0.0}
    pipe = hub.load(tmp_path / "whole")
    assert pipe.image_condition == "masked" and pipe.unet.config.in_channels == 3
    mask = Image.fromarray(np.uint8([[0] * 4 + [255] * 4] * 8))
    (drawn,) = pipe(image=IMAGE, mask_image=mask, num_inference_steps=2).images
    assert np.array_equal(np.asarray(drawn)[:, :4], np.asarray(IMAGE)[:, :4])
    assert "image_condition: masked" in (tmp_path / "whole" / "training_config.yaml").read_text()


@pytest.mark.parametrize(("kind", "num_channels"), [("lower_resolution", 1), ("grey", 3)])
def test_every_kind_trains_and_is_validated(tmp_path, tiny_preset, kind, num_channels):
    PRESETS["tiny"].unet.update(in_channels=num_channels, out_channels=num_channels)
    pipe = hub.load(train(tiny(tmp_path, image_condition=kind, max_train_steps=2)))
    assert pipe.image_condition == kind and pipe.unet.config.in_channels == 2 * num_channels + 1
    assert (tmp_path / "run" / "samples.png").exists()


def test_a_column_of_second_images(tmp_path, tiny_preset):
    """The saved model remembers its name, and a run that starts from it goes on with it."""
    data = load_image_dataset(str(ASSETS / "idx"), num_channels=1, image_size=28)
    photos = [Image.fromarray(image[0].numpy()) for image in data.images[:40]]
    columns = {"photo": photos, "sketch": [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos]}
    features = datasets.Features(photo=datasets.Image(), sketch=datasets.Image())
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "pairs" / "train.parquet")
    options = {"dataset": str(tmp_path / "pairs"), "image_column": "photo", "max_train_steps": 2}
    options |= {"num_validation_images": 4, "label_dropout": 0.5}
    model = train(tiny(tmp_path, image_condition="sketch", **options))
    pipe = hub.load(model)
    assert (pipe.image_condition, pipe.takes) == ("sketch", ("condition_image",))
    given = tiny(tmp_path, preset=None, init_from=str(model), **options)
    for start in (find_start(given), find_start(tiny(tmp_path, preset=str(model), **options))):
        assert (start.preset.image_condition, start.preset.unet["in_channels"]) == ("sketch", 3)
        assert start.image_shape == {"num_channels": 1, "image_size": 28}
    tuned = train(tiny(tmp_path / "tuned", preset=None, init_from=str(model), **options))
    assert hub.load(tuned).image_condition == "sketch"
    (drawn,) = pipe(image=photos[0], num_inference_steps=2).images
    assert drawn.size == (28, 28)


def test_an_unconditioned_model_becomes_a_conditioned_one(tmp_path, tiny_preset, caplog):
    plain = train(tiny(tmp_path / "plain", max_train_steps=1, num_validation_images=0))
    options = {"preset": None, "init_from": str(plain), "max_train_steps": 1, "num_validation_images": 0}
    config = tiny(tmp_path, image_condition="masked", **options)
    start, source, x_t = find_start(config), hub.load(plain), torch.randn(2, 1, 28, 28)
    begun = make_pipeline(start, list(source.id2label.values()), config)
    assert "made anew: none; left out: none" in caplog.text
    given = begun.encode(class_labels=[1, 2], condition_image=torch.rand(2, 2, 28, 28))
    begun.unet.eval()
    with torch.no_grad():  # it starts as the model that it was
        as_it_was = source.denoise(x_t, 5, source.encode(class_labels=[1, 2]))
        assert (begun.denoise(x_t, 5, given) - as_it_was).abs().max() < 1e-5
    assert hub.load(train(config)).image_condition == "masked"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_condition": "grey"}, "image_condition='grey': the model's images are grey themselves"),
        ({"image_condition": "lower_resolution"}, "image_condition='lower_resolution': .* 30, must be multiples of 4"),
    ],
)
def test_a_condition_that_does_not_suit_the_preset_is_refused(tmp_path, tiny_preset, options, words):
    PRESETS["tiny"].unet["sample_size"] = 30
    with pytest.raises(ValueError, match=words):
        train(tiny(tmp_path, **options))
    assert not Path(tmp_path, "run", "run.yaml").exists()


def test_another_condition_is_another_run(tmp_path, tiny_preset):
    config = tiny(tmp_path, image_condition="masked", max_train_steps=1, num_validation_images=0)
    train(config)
    for other in ("lower_resolution", None):
        with pytest.raises(ValueError, match=r"holds a run with another .*image_condition"):
            train(tiny(tmp_path, image_condition=other, max_train_steps=1, num_validation_images=0, resume=True))
    assert parse_args(["--image_condition", "masked"]).image_condition == "masked"
