"""Images as numbers and as pictures: uint8 <-> x_0, and a labelled grid of samples.

Ho et al. 2020 (arXiv:2006.11239), Section 3.3: "image data consists of integers in {0, 1, ..., 255} scaled linearly to [-1, 1]".
"""

import torch
from PIL import Image, ImageDraw, ImageFont


def to_x_0(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 in {0, ..., 255}, any shape -> float32 in [-1, 1], same shape."""
    # In place: fresh memory costs as much as the arithmetic.
    return pixels.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(x_0: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] (clamped), any shape -> the nearest uint8 in {0, ..., 255}, same shape. Inverse of `to_x_0`."""
    return ((x_0.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def unit_to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [0, 1] -> uint8, rounded as when they are saved to a file; same shape."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def labelled_grid(rows: dict[str, list[Image.Image]], height: int = 56) -> Image.Image:
    """One picture of images by name: a row for each name, which stands on its left; images are enlarged to `height` pixels.

    A single row without a name is laid out as a square. Returns an RGB image.
    """
    if list(rows) == [""]:
        images = rows[""]
        side = -(-len(images) // max(round(len(images) ** 0.5), 1))
        rows = {" " * i: images[start : start + side] for i, start in enumerate(range(0, len(images), side))}
    font = ImageFont.load_default(height // 4)
    margin = max(int(font.getlength(name.strip())) for name in rows) + 12 if any(name.strip() for name in rows) else 0
    scale = max(height // next(iter(rows.values()))[0].height, 1)
    width, height = (side * scale for side in next(iter(rows.values()))[0].size)
    num_columns = max(len(images) for images in rows.values())
    grid = Image.new("RGB", (margin + num_columns * (width + 2), len(rows) * (height + 2)), "white")
    draw = ImageDraw.Draw(grid)
    for i, (name, images) in enumerate(rows.items()):
        top = i * (height + 2) + 1
        draw.text((margin - 6, top + height // 2), name.strip(), fill="black", font=font, anchor="rm")
        for j, image in enumerate(images):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            grid.paste(enlarged, (margin + j * (width + 2) + 1, top))
    return grid
