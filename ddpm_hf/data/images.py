"""Images of a data set: decoded to uint8, in memory or on access, given out as x_0 in batches."""

import functools

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets.fingerprint import Hasher

from ..images import to_x_0
from ..keys import is_flipped


def collate_batch(batch):
    """`collate_fn` for loaders of an `ImageDataset`, which returns whole batches: nothing is left to collate."""
    return batch


def decode(value, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """A cell of an image column or a PIL image -> uint8 of `shape` (C, H, W): converted to "L" or "RGB", short side
    resized, centre cropped. ValueError that starts with `name` where it cannot be."""
    num_channels, height, width = shape
    try:
        image = datasets.Image().decode_example(value)
        if image.mode[0] in "IF":  # PIL would clip 16-bit, 32-bit and float values to 255
            raise ValueError(f"mode {image.mode!r}, allowed are 8 bits per channel")
        image = image.convert("L" if num_channels == 1 else "RGB")
        if image.size != (width, height):
            image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.LANCZOS)
        return np.array(image).reshape(height, width, num_channels).transpose(2, 0, 1)
    except Exception as error:  # PIL raises whatever a broken file leads it to
        path = value.get("path") if isinstance(value, dict) else None
        raise ValueError(f"{name}{f' ({path})' if path else ''} cannot be used: {error}") from error


def _decode_rows(rows: dict, indices: list[int], column: str, shape: tuple[int, int, int]) -> dict:
    return {"pixels": [decode(x, f"image {i}", shape).tobytes() for x, i in zip(rows[column], indices)]}


class DecodedOnAccess:
    """Stands for the uint8 tensor (N, C, H, W) of a data set too large for memory; indexed by lists only."""

    def __init__(self, dataset: datasets.Dataset, column: str, shape: tuple[int, int, int]):
        self.dataset, self.column, self.shape = dataset, column, (len(dataset), *shape)

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        values = self.dataset[indices][self.column]
        return torch.from_numpy(np.stack([decode(x, f"image {i}", self.shape[1:]) for x, i in zip(values, indices)]))

    def in_memory(self) -> torch.Tensor:
        """The whole tensor. The decoded bytes stay in datasets' cache, so that the next start decodes nothing."""
        decoded = self.dataset.map(
            _decode_rows,
            fn_kwargs={"column": self.column, "shape": self.shape[1:]},
            batched=True,
            with_indices=True,
            remove_columns=self.dataset.column_names,
            desc="Decoding images",
        )
        chunks = (b"".join(chunk.to_pylist()) for chunk in decoded.data.column("pixels").chunks)
        pixels = np.concatenate([np.frombuffer(chunk, np.uint8) for chunk in chunks])
        return torch.from_numpy(pixels.reshape(self.shape))


class ImageDataset(torch.utils.data.Dataset):
    """Images with their labels, read a batch at a time.

    `images`: uint8 (N, C, H, W), None where they are decoded on access; `labels`: int64 (N,) or None; `class_names` or
    None. With an int as `flip_seed`, half of the images are flipped, decided per (flip_seed, position).
    """

    def __init__(self, pixels, labels: torch.Tensor | None = None, class_names: list[str] | None = None):
        self._pixels, self.labels, self.class_names = pixels, labels, class_names
        self.images = pixels if isinstance(pixels, torch.Tensor) else None
        self.num_channels, self.image_size = pixels.shape[1], tuple(pixels.shape[2:])
        if len(self) == 0:
            raise ValueError("split: it holds no images")
        self.flip_seed: int | None = None

    def __len__(self):
        return self._pixels.shape[0]

    def __getitem__(self, index):
        batch = self.__getitems__(index if isinstance(index, list) else [index])
        return batch if isinstance(index, list) else {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: list[int] | list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """Indices, or (position, index) pairs of a `SampleOrder` -> "x_0": float32 (B, C, H, W) in [-1, 1], "class_labels":
        int64 (B,) when there are labels, "position": int64 (B,) for pairs."""
        positions, indices = map(list, zip(*indices)) if isinstance(indices[0], tuple) else (None, indices)
        pixels = self._pixels[indices]
        if self.flip_seed is not None and positions is not None:
            flipped = torch.tensor([is_flipped(self.flip_seed, position) for position in positions])
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        batch = {"x_0": to_x_0(pixels)}
        if self.labels is not None:
            batch["class_labels"] = self.labels[indices]
        if positions is not None:
            batch["position"] = torch.tensor(positions)
        return batch

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of shape, labels and 256 images spread evenly: the same whether or not the set fits in memory."""
        spread = np.linspace(0, len(self) - 1, num=min(len(self), 256), dtype=int).tolist()
        labels = b"" if self.labels is None else self.labels.numpy()
        return Hasher.hash_bytes([str(tuple(self._pixels.shape)).encode(), labels, self._pixels[spread].numpy()])

    @functools.cached_property
    def cache_key(self) -> str:
        """Of every image: the pixels in memory, or datasets' own fingerprint of the files."""
        every = self._pixels.dataset._fingerprint.encode() if self.images is None else self.images.numpy()
        return Hasher.hash_bytes([self.fingerprint.encode(), every])
