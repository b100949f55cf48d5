"""The labelled grid, and what training sees of a run on the way: the grid of samples and the held-out loss."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from ddpm_hf import DDPMNoiseScheduler, validation
from ddpm_hf.images import labelled_grid
from ddpm_hf.objective import draw


def levels(grid: Image.Image, num_rows: int, num_columns: int) -> list[list[int]]:
    """The grey level in the middle of each place, 56 pixels and a margin of 2 wide and high, from the right edge."""
    left = grid.width - num_columns * 58
    assert grid.height == num_rows * 58 and left >= 0
    middles = [[(left + j * 58 + 29, i * 58 + 29) for j in range(num_columns)] for i in range(num_rows)]
    return [[grid.getpixel(middle)[0] for middle in row] for row in middles]


def images(*levels: int) -> list[Image.Image]:
    return [Image.new("L", (28, 28), level) for level in levels]


def test_images_stand_beside_their_name_in_order():
    grid = labelled_grid({"Bag": images(10, 20, 30), "Ankle boot": images(40, 50)})
    assert levels(grid, 2, 3) == [[10, 20, 30], [40, 50, 255]]
    alone = labelled_grid({"Bag": images(10), "": images(40)})
    names = alone.crop((0, 0, alone.width - 58, alone.height)).convert("L").point(lambda level: 255 - level)
    _, top, _, bottom = names.getbbox()
    assert 0 < top < bottom < 58  # in its own row


def test_a_row_without_a_name_is_a_square():
    assert levels(labelled_grid({"": images(*range(9))}), 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    grid = labelled_grid({"": images(1, 2, 3, 4, 5)})
    assert levels(grid, 2, 3) == [[1, 2, 3], [4, 5, 255]] and grid.width == 3 * 58  # no margin for names


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests leave theirs
    return Accelerator(cpu=True, mixed_precision="no")


class TellingPipeline:
    """Images whose grey level tells their label and their place among those of the label, by the seed."""

    def __init__(self, num_classes: int):
        self.id2label = {label: f"class {label}" for label in range(num_classes)}

    def __call__(self, batch_size, generators, class_labels=None, guidance_scale=None):
        seeds = [generator.initial_seed() for generator in generators]
        tells = [10 * label + seed % 8 for label, seed in zip(class_labels, seeds)] if class_labels else seeds
        return SimpleNamespace(images=images(*tells))


@pytest.mark.parametrize("num_classes", [2, 10, 1001])
def test_samples_stand_beside_their_class(accelerator, num_classes):
    """10 classes: 80 images, more than a batch. Of 1001 the first 16."""
    rows = [[10 * label + i for i in range(8)] for label in range(min(num_classes, 16))]
    grid = validation.draw_samples(accelerator, TellingPipeline(num_classes), 1.3)
    assert levels(grid, len(rows), 8) == rows


def test_samples_without_classes_are_a_square(accelerator):
    grid = validation.draw_samples(accelerator, TellingPipeline(0), 1.3)
    assert levels(grid, 8, 8) == torch.arange(64).view(8, 8).tolist()


class Batches(list):
    def __getitem__(self, indices):
        return {"x_0": torch.stack([list.__getitem__(self, i) for i in indices])}


def test_held_out_loss_of_a_model_that_predicts_zero(accelerator):
    """It is the mean of noise ** 2, over all images and over those of each tenth of the timesteps."""
    x_0 = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scheduler = DDPMNoiseScheduler(40)
    pipeline = SimpleNamespace(scheduler=scheduler, id2label={}, unet=lambda x_t, t, return_dict: (0 * x_t,))
    found = validation.held_out_loss(accelerator, pipeline, Batches(x_0), 150)
    t, noise, _ = draw(x_0[:150], torch.arange(150), 0, 40)
    losses = noise.square().mean(dim=(1, 2, 3))
    expected = {f"validation_loss/t_{i}": losses[(t >= 4 * i) & (t < 4 * i + 4)].mean() for i in range(10)}
    expected = {"validation_loss": losses.mean()} | expected
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-6)
