"""What a run shows on the way: the grid of samples and the held-out loss."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from grids import images, levels

from ddpm_hf import DDPMImagePipeline, DDPMNoiseScheduler
from ddpm_hf.data import ImageDataset
from ddpm_hf.keys import draw
from ddpm_hf.training import validation


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests leave theirs
    return Accelerator(cpu=True, mixed_precision="no")


class TellingPipeline:
    """Images whose grey level tells their label and their place among those of the label, by the seed."""

    def __init__(self, num_classes: int):
        self.id2label = {label: f"class {label}" for label in range(num_classes)}
        self.takes = ("class_labels",) if num_classes else ()

    def __call__(self, batch_size, generators, callback_on_step_end=None, class_labels=None):
        seeds = [generator.initial_seed() for generator in generators]
        tells = [10 * label + seed % 8 for label, seed in zip(class_labels, seeds)] if class_labels else seeds
        return SimpleNamespace(images=images(*tells))


@pytest.mark.parametrize("num_classes", [2, 10, 1001])
def test_samples_stand_beside_their_class(accelerator, num_classes):
    """10 classes: 80 images, more than a batch. Of 1001 the first 16."""
    rows = [[10 * label + i for i in range(8)] for label in range(min(num_classes, 16))]
    grid = validation.draw_samples(accelerator, TellingPipeline(num_classes))
    assert levels(grid, len(rows), 8) == rows


def test_samples_without_classes_are_a_square(accelerator):
    grid = validation.draw_samples(accelerator, TellingPipeline(0))
    assert levels(grid, 8, 8) == torch.arange(64).view(8, 8).tolist()


def test_a_grid_that_a_signal_cut_short_is_none(accelerator):
    """Its last images may be half noise."""
    answers = iter([False, True])
    assert validation.draw_samples(accelerator, TellingPipeline(10), stop=lambda: next(answers)) is None


class EchoingPipeline:
    """Draws what is known of an image, half as bright."""

    takes, id2label, numpy_to_pil = ("condition_image",), {}, staticmethod(DDPMImagePipeline.numpy_to_pil)

    def __call__(self, batch_size, generators, callback_on_step_end=None, condition_image=None):
        return SimpleNamespace(images=[images(int(x * 127.5 + 127.5) // 2)[0] for x in condition_image[:, 0, 0, 0]])


def test_samples_of_condition_images_stand_between_condition_and_truth(accelerator):
    pixels = torch.arange(0, 240, 20, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 8, 8)
    data = ImageDataset(pixels, others=255 - pixels)
    data.image_condition = "negative"
    grid = validation.draw_samples(accelerator, EchoingPipeline(), data)
    truth = list(range(0, 240, 20))
    condition = [255 - level for level in truth]
    rows = [[*condition[:8]], [level // 2 for level in condition[:8]], truth[:8]]
    found = levels(grid, 6, 8)
    assert found[:3] == rows and found[5][:4] == truth[8:]


class Batches(list):
    def __getitem__(self, indices):
        return {"x_0": torch.stack([list.__getitem__(self, i) for i in indices])}


def test_held_out_loss_of_a_model_that_predicts_zero(accelerator):
    """It is the mean of noise ** 2, over all images and over those of each tenth of the timesteps."""
    x_0 = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scheduler = DDPMNoiseScheduler(40)
    parts = {"encode": lambda batch_size: {}, "denoise": lambda x_t, t, condition: 0 * x_t}
    pipeline = SimpleNamespace(takes=(), **parts)
    found = validation.held_out_loss(accelerator, pipeline, scheduler, Batches(x_0), 150)
    t, noise, _ = draw(x_0[:150], torch.arange(150), 0, 40)
    losses = noise.square().mean(dim=(1, 2, 3))
    expected = {f"validation_loss/t_{i}": losses[(t >= 4 * i) & (t < 4 * i + 4)].mean() for i in range(10)}
    expected = {"validation_loss": losses.mean()} | expected
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-6)
