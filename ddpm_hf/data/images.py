"""Images of a data set: decoded to uint8, in memory or on access, given out as x_0 in batches with what a model is conditioned on."""

import functools
import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import psutil
import pyarrow.compute as pc
import torch
from datasets.fingerprint import Hasher

from ..images import to_x_0
from ..keys import caption_index, is_flipped
from .conditions import make_condition

# Larger sets are read from datasets' memory-mapped files: each rank has its own copy of what it holds, and eight may share a machine.
MAX_BYTES_IN_MEMORY = min(4 * 2**30, psutil.virtual_memory().total // 4)
DECODING = 2  # part of the names of cached pixels: raise it where `decode` returns other pixels than before


Batch = TypeVar("Batch")


class Fields(NamedTuple):
    """Where a table has what a model is trained on: names of columns, and what becomes of their values."""

    image: str
    label: str | None
    caption: str | None
    shape: tuple[int, int, int]  # (C, H, W) of the decoded images
    class_names: list[str] | None
    condition: str | None = None  # a second image


def collate_batch(batch: Batch) -> Batch:
    """`collate_fn` for loaders of an `ImageDataset`, which returns whole batches: nothing is left to collate."""
    return batch


def list_some(names: list[str], limit: int = 10) -> str:
    """The first names, each cut at 40 characters, and dots for the others."""
    return ", ".join(printable(name[:40]) for name in names[:limit]) + (", ..." if len(names) > limit else "")


def printable(text: str) -> str:
    """One line that is safe on a terminal, whatever a file is called."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def describe(what: str, class_names: list[str] | None, captions: bool, notes: list[str]) -> str:
    """One line for people: what a model is trained on, and what was left out."""
    classes = [f"{len(class_names)} classes ({list_some(class_names)})"] if class_names else []
    return "; ".join([what, *(classes + ["captions"] * captions or ["no classes"]), *notes])


@contextmanager
def one_line_error(what: str) -> Iterator[None]:
    """Turn whatever a library raises on a strange file into a ValueError of one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        message = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(printable(f"{what}: {message[:300]}")) from error


def decode(value: dict[str, Any] | PIL.Image.Image | None, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """A cell of an image column or a PIL image -> uint8 of `shape` (C, H, W), C = 1 in grey or 3 in RGB.

    Greys of 16 bits are scaled to 8, transparent images composited on white; the short side is resized, the centre cropped.
    Raises a ValueError that starts with `name` for what is not such an image.
    """
    num_channels, height, width = shape
    path = value.get("path") if isinstance(value, dict) else None
    with one_line_error(f"{name}{f' ({path})' if path else ''} cannot be used"):
        if value is None:
            raise ValueError("it is empty")
        image = _to_8_bits(datasets.Image().decode_example(value))
        if image.has_transparency_data:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("L" if num_channels == 1 else "RGB")
        if image.size != (width, height):
            image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.LANCZOS)
        return np.array(image).reshape(height, width, num_channels).transpose(2, 0, 1)


def as_captions(value: str | list[str] | None, name: str) -> list[str]:
    """A cell of a caption column -> its captions: one, or several in a list."""
    captions = [value] if isinstance(value, str) else value or []
    if not captions or not all(captions):
        raise ValueError(f"{name} has no caption, or an empty one")
    return captions


def _to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    # Pillow's own conversions clip these values at 255.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r}, allowed are 8 bits per channel and greys of 16 bits")
    return image


def _decode_rows(
    rows: dict, indices: list[int], column: str, shape: tuple[int, int, int], keep_pixels: bool, skip: bool
) -> dict[str, list]:
    pixels, errors = [], []
    for value, i in zip(rows[column], indices):
        try:
            image, error = decode(value, f"image {i}", shape).tobytes(), ""
        except ValueError as reason:
            if not skip:
                raise ValueError(f"{reason} (skip_undecodable leaves such images out)") from reason
            image, error = b"", str(reason)
        pixels.append(image if keep_pixels else b"")
        errors.append(error)
    return {"pixels": pixels, "error": errors}


def _size_of(path: str | None) -> int:
    return os.path.getsize(path) if path and os.path.isfile(path) else 0


class EncodedImages:
    """Images as they are stored: `images[list of int]` decodes them, uint8 (B, C, H, W). Stands for a tensor of `shape` (N, C, H, W)."""

    def __init__(self, dataset: datasets.Dataset, column: str, rows: np.ndarray, shape: tuple[int, int, int]):
        self.dataset = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False))
        self.column, self.rows, self.shape = column, rows, (len(rows), *shape)

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        rows = self.rows[indices].tolist()
        values = self.dataset[rows][self.column]
        return torch.from_numpy(np.stack([decode(x, f"image {i}", self.shape[1:]) for x, i in zip(values, rows)]))

    def stored_sizes(self) -> np.ndarray:
        """Bytes of each image as it is stored, int64 (N,), 0 where there is none; reads none of them."""
        cells = self.dataset.data.column(self.column)
        sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        paths = pc.struct_field(cells, "path").to_pylist()
        return np.array([_size_of(paths[i]) if sizes[i] is None else sizes[i] for i in self.rows], np.int64)

    def first_copies(self) -> np.ndarray:
        """Of each image the first that is stored as the same bytes, int64 (N,). Those of a size of their own are not read."""
        cells, sizes = self.dataset.data.column(self.column), self.stored_sizes()
        shared, first = Counter(sizes.tolist()), np.arange(len(sizes))
        seen: dict[bytes, int] = {}
        for i in (i for i, size in enumerate(sizes.tolist()) if size and shared[size] > 1):
            cell = cells[int(self.rows[i])].as_py()
            content = Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]
            first[i] = seen.setdefault(hashlib.blake2b(content).digest(), i)
        return first

    def decode_all(
        self, keep_pixels: bool, skip_undecodable: bool, cache: Path
    ) -> tuple["torch.Tensor | EncodedImages", list[int], list[str]]:
        """-> the images as one tensor or, without `keep_pixels`, as `EncodedImages`; which of them are left, and the errors of the others.

        The result stays in the folder `cache`, so that the next start decodes nothing.
        """
        cache.mkdir(parents=True, exist_ok=True)
        shape = self.shape[1:]
        options = {"column": self.column, "shape": shape, "keep_pixels": keep_pixels, "skip": skip_undecodable}
        key = Hasher.hash([DECODING, self.dataset._fingerprint, self.rows, options])
        decoded = self.dataset.select(self.rows).map(
            _decode_rows,
            fn_kwargs=options,
            batched=True,
            batch_size=max(1, min(1000, 2**28 // math.prod(shape))),
            with_indices=True,
            remove_columns=self.dataset.column_names,
            features=datasets.Features(pixels=datasets.Value("large_binary"), error=datasets.Value("string")),
            cache_file_name=str(cache / f"pixels-{key}.arrow"),
            desc="Decoding images",
        )
        errors = decoded.data.column("error").to_pylist()
        left = [i for i, error in enumerate(errors) if not error]
        images: Any = EncodedImages(self.dataset, self.column, self.rows[left], shape)
        if keep_pixels:
            chunks = (b"".join(chunk.to_pylist()) for chunk in decoded.data.column("pixels").chunks)
            pixels = np.concatenate([np.frombuffer(chunk, np.uint8) for chunk in chunks])
            images = torch.from_numpy(pixels.reshape(images.shape))
        return images, left, [error for error in errors if error]


class ImageDataset(torch.utils.data.Dataset):
    """Images with what a model is conditioned on, read a batch at a time.

    images: uint8 (N, C, H, W), None where they are decoded on access. labels: int64 (N,) or None, with their class_names.
    captions: of each image a list of str, or None. notes: what was held out and skipped, for `describe`.
    others: second images, like pixels. image_condition: how `conditions` makes condition images; None is none.
    as_uint8: "x_0" is left as it is stored, a quarter of the bytes, for `to_x_0` on the device.
    seed, random_flip: half of the images are flipped, and one of several captions is drawn, by (seed, position in the run).
    """

    def __init__(
        self,
        pixels: torch.Tensor | EncodedImages,
        labels: torch.Tensor | None = None,
        class_names: list[str] | None = None,
        captions: list[list[str]] | None = None,
        notes: list[str] | None = None,
        others: torch.Tensor | EncodedImages | None = None,
    ):
        if pixels.shape[0] == 0:
            raise ValueError("split: it holds no images")
        self._pixels: Any = pixels
        self.labels, self.class_names, self.captions = labels, class_names, captions
        self.images = pixels if isinstance(pixels, torch.Tensor) else None
        self.num_channels, self.image_size = pixels.shape[1], tuple(pixels.shape[2:])
        self.notes, self.seed, self.random_flip = notes or [], 0, False
        self.image_condition: str | None = None
        self.as_uint8 = False
        self._others: Any = others
        self._embeddings: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return self._pixels.shape[0]

    def describe(self) -> str:
        """One line: how many images, which classes, what is held out, how many files were skipped and why."""
        height, width = self.image_size
        return describe(f"{len(self)} images of {height} x {width}", self.class_names, bool(self.captions), self.notes)

    def __getitem__(self, index: int | list) -> dict[str, Any]:
        batch = self.__getitems__(index if isinstance(index, list) else [index])
        return batch if isinstance(index, list) else {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: list) -> dict[str, Any]:
        """The batch of some indices, or of (position, index) pairs of a `SampleOrder`.

        "x_0": float32 (B, C, H, W) in [-1, 1]; "position": int64 (B,), for pairs; "class_labels": int64 (B,), of labelled images;
        "prompt": list of str, of images with captions, or, after `embed_captions`, "prompt_embeds": float32 (B, D);
        "condition_image": float32 (B, C + 1, H, W), where there is an image_condition.
        Without positions nothing is flipped, the first caption is taken, and the key of a random condition is the index.
        """
        positions, indices = map(list, zip(*indices)) if isinstance(indices[0], tuple) else (None, indices)
        pixels, *others = (
            self._read(images, indices, positions) for images in (self._pixels, self._others) if images is not None
        )
        batch: dict = {"x_0": pixels if self.as_uint8 else to_x_0(pixels)}
        if self.image_condition is not None:
            x_0, keys = to_x_0(pixels), positions or indices
            batch["condition_image"] = make_condition(x_0, self.image_condition, self.seed, keys, *map(to_x_0, others))
        if positions is not None:
            batch["position"] = torch.tensor(positions)
        if self.labels is not None:
            batch["class_labels"] = self.labels[indices]
        if self.captions is not None:
            several = [self.captions[i] for i in indices]
            prompt = [captions[0] for captions in several]
            if positions is not None:
                counts = np.array([len(captions) for captions in several])
                drawn = caption_index(self.seed, np.array(positions), counts)
                prompt = [captions[k] for k, captions in zip(drawn, several)]
            if self._embeddings is None:
                batch["prompt"] = prompt
            else:
                batch["prompt_embeds"] = torch.stack([self._embeddings[text].float() for text in prompt])
        return batch

    def _read(
        self, pixels: torch.Tensor | EncodedImages, indices: list[int], positions: list[int] | None
    ) -> torch.Tensor:
        images = pixels[indices]
        if self.random_flip and positions is not None:
            flipped = torch.from_numpy(is_flipped(self.seed, np.array(positions)))
            images[flipped] = images[flipped].flip(-1)
        return images

    def embed_captions(
        self, encode: Callable[[list[str]], torch.Tensor], encoder: str, cache_dir: str | None = None
    ) -> None:
        """Give batches "prompt_embeds" in place of "prompt".

        encode: n captions -> float (n, D); called once for all different captions. Its results are kept in memory and in datasets'
        cache as float16, under a hash of the captions and `encoder`, a name that no other encoder has.
        """
        texts = sorted({text for captions in self.captions for text in captions})
        path = cache_folder(cache_dir) / f"captions-{Hasher.hash([texts, encoder])}.npy"
        if not path.exists():
            chunks = [encode(texts[i : i + 256]).cpu() for i in range(0, len(texts), 256)]
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                np.save(Path(folder, path.name), torch.cat(chunks).half().numpy())
                os.replace(Path(folder, path.name), path)
        self._embeddings = dict(zip(texts, torch.from_numpy(np.load(path))))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of labels, class names, captions, images and second images.

        In memory it sees every pixel. Of images that are decoded on access it sees the stored size of each and the pixels of 256.
        """
        rows, seen = np.linspace(0, len(self) - 1, num=min(len(self), 256), dtype=int), []
        for pixels in (self._pixels, self._others):
            if isinstance(pixels, torch.Tensor):
                seen += [pixels.numpy()]
            elif pixels is not None:
                seen += [pixels.stored_sizes(), pixels[rows].numpy()]
        labels = b"" if self.labels is None else self.labels.numpy()
        facts = [tuple(self._pixels.shape), self.class_names, self.captions]
        return Hasher.hash_bytes([repr(facts).encode(), labels, *seen])


def cache_folder(cache_dir: str | None) -> Path:
    """Where decoded images, unpacked archives and embeddings are kept: in datasets' cache."""
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf"
