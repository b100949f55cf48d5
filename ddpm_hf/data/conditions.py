"""The condition image of a training image: what is known of it, made by the pipeline's `Measurement`, for a model with an `image_condition`.

Upstream: `images` and `streaming`. The network takes it beside x_t (SR3, arXiv:2104.07636; Palette, arXiv:2111.05826).
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..keys import condition_seeds
from ..pipeline_ddpm_image import BLOCKS, Measurement


def make_condition(
    x_0: torch.Tensor, kind: str, seed: int, positions: list[int], other: torch.Tensor | None = None
) -> torch.Tensor:
    """x_0 (B, C, H, W) in [-1, 1] -> float32 (B, C + 1, H, W), `Measurement.as_channels`.

    kind: one of IMAGE_CONDITIONS; random blocks and masks are keyed by (seed, position). other: a second image of each sample, like x_0,
    which is the condition where it is given.
    """
    if other is not None:
        return Measurement(other, torch.ones_like(other[:, :1])).as_channels(x_0.shape[1:])
    measured = []
    for image, key in zip(x_0.split(1), condition_seeds(seed, np.array(positions))):
        draw, (c, h, w) = np.random.default_rng(key), image.shape[1:]
        if kind == "grey":
            c = 1
        if kind == "lower_resolution":
            block = draw.choice(BLOCKS)
            h, w = h // block, w // block
        known = ~_hide(h, w, draw) if kind == "masked" else np.ones((h, w), bool)
        y = F.adaptive_avg_pool3d(image, (c, h, w))
        measured.append(Measurement(y, torch.from_numpy(known)[None, None].float()).as_channels(image.shape[1:]))
    return torch.cat(measured)


def _hide(height: int, width: int, draw: np.random.Generator) -> np.ndarray:
    """A random mask, bool (H, W): any share of the pixels, or a rectangle, which may reach beyond the border, so that halves occur."""
    if draw.random() < 0.5:
        return draw.random((height, width)) < draw.random()
    start, size = draw.uniform(-0.5, 0.75, 2), draw.uniform(0.25, 1.25, 2)
    ends = (np.stack([start, start + size]).clip(0, 1) * [height, width]).round().astype(int)
    hidden = np.zeros((height, width), bool)
    hidden[tuple(map(slice, *ends))] = True
    return hidden
