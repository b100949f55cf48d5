"""Arrays to what a browser shows: grids, data URIs, the three downloads and the schedule's curves as SVG."""

import base64
import io
import json
import math
from functools import reduce
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps


def num_columns(num_images: int) -> int:
    """Of a grid a little wider than high, without holes where that can be."""
    root = math.ceil(math.sqrt(num_images))
    return next((columns for columns in range(root, 6) if num_images % columns == 0), root)


def make_grid(images: np.ndarray) -> Image.Image:
    """uint8 (N, H, W) or (N, H, W, 3) -> one picture, black lines between the images."""
    columns = num_columns(len(images))
    rows, (height, width) = math.ceil(len(images) / columns), images.shape[1:3]
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, *images.shape[3:]), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    return Image.fromarray(grid)


def enlarge(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def fit(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """A visitor's picture as upright, opaque and cropped to `size` (width, height), in mode "L" or "RGB"."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return ImageOps.fit(image, size, Image.Resampling.BOX).convert(mode)


def painted(editor: dict | None) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture on an ImageEditor, and where it is painted over: white in an "L" image; None where nothing is."""
    if not editor or editor["background"] is None or not editor["background"].getchannel("A").getbbox():
        return None, None
    masks = [layer.getchannel("A") for layer in editor["layers"]]
    mask = reduce(ImageChops.lighter, masks) if masks else None
    return editor["background"], mask if mask and mask.getbbox() else None


def to_data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_downloads(folder: Path, images: list[Image.Image], frames: list[np.ndarray], parameters: dict) -> list[str]:
    """Writes the grid as PNG, its denoising (`frames`, x_t in order of time) as GIF and the parameters as JSON."""
    paths = [folder / f"ddpm-seed-{parameters['seed']}.{suffix}" for suffix in ("png", "gif", "json")]
    enlarge(make_grid(np.stack([np.asarray(image) for image in images])), 6).save(paths[0])
    first, *rest = [enlarge(make_grid(frame), 3) for frame in frames]
    first.save(paths[1], save_all=True, append_images=rest, duration=[80] * len(rest) + [2000], loop=0)
    paths[2].write_text(json.dumps(parameters, indent=2) + "\n")
    return [str(path) for path in paths]


def draw_schedule(signal: np.ndarray, noise: np.ndarray, timestep: int) -> str:
    """SVG of the two factors of q(x_t | x_0) over t, each with shape (T,), with a mark at `timestep`."""
    width, height, last = 400, 140, len(signal) - 1

    def point(t: int, y: float) -> str:
        return f"{t / last * width:.1f},{(1 - y) * height:.1f}"

    def curve(values: np.ndarray, name: str) -> str:
        points = " ".join(point(t, values[t]) for t in np.linspace(0, last, 101).round().astype(int))
        x, y = point(timestep, values[timestep]).split(",")
        return f'<polyline class="{name}" points="{points}"/><circle class="{name}" cx="{x}" cy="{y}" r="6"/>'

    x = timestep / last * width
    return (
        f'<svg viewBox="-8 -8 {width + 16} {height + 32}" role="img" aria-label="The factors of signal and noise over t">'
        f'<path d="M0,0V{height}H{width}"/><path class="mark" d="M{x:.1f},0V{height}"/>'
        f"{curve(signal, 'signal')}{curve(noise, 'noise')}"
        f'<text x="0" y="{height + 18}">t = 0</text><text x="{width}" y="{height + 18}" text-anchor="end">{last}</text></svg>'
    )
