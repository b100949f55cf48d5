"""What a run has learnt so far: the loss on held-out images, and a grid of samples. All ranks work on both.

`training` calls these with the averaged weights, as the pipeline that would be saved. The same noise and the same seeds every time, so
that figures and grids of one run can be compared.
"""

from itertools import islice

import torch
from accelerate.utils import gather_object

from ..images import labelled_grid
from ..keys import draw
from ..objective import simple

NUM_BUCKETS = 10  # of timesteps, in the held-out loss
IMAGES_PER_CLASS = 8  # in the sample grid
MAX_ROWS = 16  # of the sample grid, one for each class


@torch.no_grad()
def held_out_loss(accelerator, pipeline, scheduler, data, num_images: int, stop=lambda: False) -> dict[str, float]:
    """Loss on the first `num_images` of an `ImageDataset`, all in all and for each tenth of the timesteps; {} once `stop()` is true."""
    found: list[tuple[int, float]] = []
    with accelerator.split_between_processes(list(range(num_images))) as mine, accelerator.autocast():
        for start in range(0, len(mine), 128):
            if stop():
                break
            indices = mine[start : start + 128]
            batch = data[indices]
            x_0 = batch["x_0"].to(accelerator.device)
            t, noise, _ = draw(x_0, torch.tensor(indices), 0, len(scheduler))
            condition = pipeline.encode(**{name: batch[name] for name in pipeline.takes}, batch_size=len(indices))
            losses = simple(pipeline.denoise, scheduler, x_0, t, noise, condition)
            found += list(zip(t.tolist(), losses.tolist()))
    found = gather_object(found)
    if len(found) < num_images:
        return {}
    t, losses = map(torch.tensor, zip(*found))
    buckets = t * NUM_BUCKETS // len(scheduler)
    means = {f"validation_loss/t_{i}": losses[buckets == i].mean().item() for i in buckets.unique().tolist()}
    return {"validation_loss": losses.mean().item()} | means


def draw_samples(accelerator, pipeline, captions=None, stop=lambda: False):
    """A grid of samples as a PIL image, a row for each of the first classes, or of captions spread over a data set's. None on all but the
    main process, and once `stop()` is true on any rank.

    captions: a list of texts for each image of the data set, for a model of text.
    stop: asked between sampling steps.
    """

    def on_step_end(pipe, index, t, tensors):
        pipe._interrupt = stop()

    if pipeline.takes == ("prompt_embeds",):
        word, rows = (
            "prompt",
            [captions[i * len(captions) // MAX_ROWS][0] for i in range(min(MAX_ROWS, len(captions)))],
        )
        names = rows
    else:
        word, rows = "class_labels", list(islice(pipeline.id2label, MAX_ROWS))
        names = [pipeline.id2label[label] for label in rows]
    asked = [row for row in rows for _ in range(IMAGES_PER_CLASS)] or [None] * 64
    images = []
    with accelerator.split_between_processes(list(enumerate(asked))) as mine, accelerator.autocast():
        for start in range(0, len(mine), 64):
            seeds, words = zip(*mine[start : start + 64])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            given = {word: list(words)} if rows else {}
            drawn = pipeline(len(seeds), generators, callback_on_step_end=on_step_end, **given).images
            if stop():  # these may be half noise
                break
            images += drawn
    images = gather_object(images)
    if len(images) < len(asked) or not accelerator.is_main_process:
        return None
    if not rows:
        return labelled_grid({"": images})
    return labelled_grid({name: images[i * IMAGES_PER_CLASS :][:IMAGES_PER_CLASS] for i, name in enumerate(names)})
