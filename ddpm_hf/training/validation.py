"""What a run has learnt so far: the loss on held-out images, and a grid of samples. All ranks work on both.

`training` calls these with the averaged weights, as the pipeline that would be saved. The same noise and the same seeds every time, so
that figures and grids of one run can be compared.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data import ImageDataset, StreamedImages
from ..images import labelled_grid
from ..keys import draw
from ..objective import simple
from ..pipeline_ddpm_image import DDPMImagePipeline
from ..scheduling_ddpm_noise import DDPMNoiseScheduler

NUM_BUCKETS = 10  # of timesteps, in the held-out loss
IMAGES_PER_CLASS = 8  # in the sample grid
NUM_CONDITIONS = 32  # of the first images, in the grid of a model of condition images
MAX_ROWS = 16  # of the sample grid, one for each class


@torch.no_grad()
def held_out_loss(
    accelerator: Accelerator,
    pipeline: DDPMImagePipeline,
    scheduler: DDPMNoiseScheduler,
    data: ImageDataset,
    num_images: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Loss on the first `num_images` of a data set, all in all and for each tenth of the timesteps; {} once `stop()` is true."""
    batches = []
    with accelerator.split_between_processes(list(range(num_images))) as mine, accelerator.autocast():
        for start in range(0, len(mine), 128):
            if stop():
                break
            batches.append(losses_of(accelerator, pipeline, scheduler, data, mine[start : start + 128]))
    found = gather_object([pair for t, losses in batches for pair in zip(t.tolist(), losses.tolist())])
    if len(found) < num_images:
        return {}
    t, losses = map(torch.tensor, zip(*found))
    buckets = t * NUM_BUCKETS // len(scheduler)
    means = {f"validation_loss/t_{i}": losses[buckets == i].mean().item() for i in buckets.unique().tolist()}
    return {"validation_loss": losses.mean().item()} | means


def losses_of(
    accelerator: Accelerator,
    pipeline: DDPMImagePipeline,
    scheduler: DDPMNoiseScheduler,
    data: ImageDataset,
    indices: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timestep and loss of each of these images, both (B,), on the accelerator, for which this does not wait."""
    batch = data[indices]
    x_0 = batch["x_0"].to(accelerator.device, non_blocking=True)
    t, noise, _ = draw(x_0, torch.tensor(indices), 0, len(scheduler))
    condition = pipeline.encode(**{name: batch[name] for name in pipeline.takes}, batch_size=len(indices))
    return t, simple(pipeline.denoise, scheduler, x_0, t, noise, condition)


def draw_samples(
    accelerator: Accelerator,
    pipeline: DDPMImagePipeline,
    data: ImageDataset | StreamedImages | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> PIL.Image.Image | None:
    """A grid of samples, a row for each of the first classes, or of captions spread over a data set's.

    A model of condition images is asked for those of the first images, and the grid shows condition, sample and truth. None on all but the main
    process, and once `stop()` is true on any rank.

    data: what captions and condition images are from. Of a stream, which has no first images, the samples are unconditional.
    stop: asked between sampling steps.
    """

    def on_step_end(pipe: DDPMImagePipeline, index: int, t: torch.Tensor, tensors: dict) -> None:
        pipe._interrupt = stop()

    names, asked, shown = _questions(pipeline, data)
    images: list[PIL.Image.Image] = []
    with accelerator.split_between_processes(list(enumerate(asked))) as mine, accelerator.autocast():
        for start in range(0, len(mine), 64):
            seeds, words = zip(*mine[start : start + 64])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            given: dict[str, Any] = {name: _batch([word[name] for word in words]) for name in words[0]}
            drawn: Any = pipeline(len(seeds), generators, callback_on_step_end=on_step_end, **given)
            if stop():  # these may be half noise
                break
            images += drawn.images
    images = gather_object(images)
    if len(images) < len(asked) or not accelerator.is_main_process:
        return None
    if shown:
        return _beside_the_truth(pipeline, shown, images)
    if not names:
        return labelled_grid({"": images})
    return labelled_grid({name: images[i * IMAGES_PER_CLASS :][:IMAGES_PER_CLASS] for i, name in enumerate(names)})


def _questions(
    pipeline: DDPMImagePipeline, data: ImageDataset | StreamedImages | None
) -> tuple[list[str], list[dict], dict]:
    """Names of the grid's rows, what the pipeline is asked for each sample, and, for a model of condition images, the batch that they are from."""
    if "condition_image" in pipeline.takes and isinstance(data, ImageDataset):
        batch = data[list(range(min(NUM_CONDITIONS, len(data))))]
        return [], [{name: batch[name][i] for name in pipeline.takes} for i in range(len(batch["x_0"]))], batch
    if "prompt_embeds" in pipeline.takes and isinstance(data, ImageDataset):
        captions = data.captions
        names = [captions[i * len(captions) // MAX_ROWS][0] for i in range(min(MAX_ROWS, len(captions)))]
        asked = [{"prompt": name} for name in names]
    else:
        labels: list[Any] = list(islice(pipeline.id2label, MAX_ROWS))
        names, asked = [pipeline.id2label[label] for label in labels], [{"class_labels": label} for label in labels]
    return names, [row for row in asked for _ in range(IMAGES_PER_CLASS)] or [{}] * 64, {}


def _batch(values: list) -> list | torch.Tensor:
    return torch.stack(values) if isinstance(values[0], torch.Tensor) else values


def _beside_the_truth(pipeline: DDPMImagePipeline, batch: dict, samples: list) -> PIL.Image.Image:
    """Each sample between its condition, grey where nothing is known, and the image that this was made of."""
    x_0, rows = batch["x_0"], {}
    pictures = [
        pipeline.numpy_to_pil((x.permute(0, 2, 3, 1) / 2 + 0.5).numpy())
        for x in (batch["condition_image"][:, : x_0.shape[1]], x_0)
    ]
    for start in range(0, len(samples), IMAGES_PER_CLASS):
        for name, images in zip(("condition", "sample", "truth"), (pictures[0], samples, pictures[1])):
            rows[name + " " * start] = images[start : start + IMAGES_PER_CLASS]  # names must differ
    return labelled_grid(rows)
