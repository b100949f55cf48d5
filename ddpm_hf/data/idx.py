"""Folders of IDX files, the format of MNIST, and where a copy of FashionMNIST may lie on this machine."""

import gzip
import math
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import Hasher

from .images import MAX_BYTES_IN_MEMORY, one_line_error

FASHION_MNIST_CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
_DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"  # of Debian's package, in / or in what `make data` unpacked
FASHION_MNIST_FOLDERS = [str(root / _DEBIAN_FOLDER) for root in (Path("/"), Path(__file__).parents[2] / ".data")]
SPLITS = {"train": "train", "test": "t10k"}


def find_fashion_mnist() -> Path | None:
    """$FASHION_MNIST_DIR or Debian's folder, whichever holds the images."""
    folders = [os.environ.get("FASHION_MNIST_DIR", "nowhere"), *FASHION_MNIST_FOLDERS]
    return next((folder for folder in map(Path, folders) if is_idx_folder(folder)), None)


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds a split's images as an IDX file."""
    return bool(_find(folder, "images"))


def load_idx(folder: Path) -> dict[str, datasets.Dataset]:
    """Split name -> columns "image", each uint8 image as a PGM file, and "label", uint8."""
    images, labels = (
        {name: _read(file) for name, file in _find(folder, kind).items()} for kind in ("images", "labels")
    )
    found = {}
    for name, pixels in images.items():
        if name not in labels or pixels.ndim != 3 or labels[name].shape != pixels.shape[:1]:
            raise ValueError(f"{folder}: the {name} images, of shape {pixels.shape}, need a file of as many labels")
        header = b"P5 %d %d 255\n" % pixels.shape[:0:-1]
        table = pa.table({"image": [header + image.tobytes() for image in pixels], "label": labels[name]})
        found[name] = datasets.Dataset(table, fingerprint=Hasher.hash_bytes([header, pixels, labels[name]]))
    return found


def _find(folder: Path, kind: str) -> dict[str, Path]:
    """Split name -> IDX file of `kind` ("images" or "labels") in the folder, for the splits that it holds."""
    found = {name: sorted(folder.glob(f"{part}-{kind}[-.]idx?-ubyte*")) for name, part in SPLITS.items()}
    return {name: files[0] for name, files in found.items() if files}


def _read(file: Path) -> np.ndarray:
    """An IDX file of uint8: two zero bytes, the type 8, the number of dimensions, their sizes (big-endian), the values."""
    with one_line_error(f"{file} is truncated or not an IDX file of bytes"):
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            *kind, num_dimensions = stream.read(4)
            shape = np.frombuffer(stream.read(4 * num_dimensions), ">u4", num_dimensions).tolist()
            size = math.prod(shape)
            if kind != [0, 0, 8] or size > MAX_BYTES_IN_MEMORY:
                raise ValueError(f"type {kind[2]}, {size:,} bytes; allowed are 8, {MAX_BYTES_IN_MEMORY:,} bytes")
            content = stream.read(size + 1)
        if len(content) != size:
            raise ValueError(f"it promises {size:,} bytes and holds {'more' if len(content) > size else len(content)}")
        return np.frombuffer(content, np.uint8).reshape(shape)
