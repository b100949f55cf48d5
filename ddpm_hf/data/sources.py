"""Any data set -> x_0, float32 NCHW in [-1, 1], and its labels.

Ho et al. 2020 (arXiv 2006.11239), section 3.3: "image data consists of integers in {0, 1, ..., 255} scaled linearly to
[-1, 1]": `to_x_0`, and `to_uint8` for the way back. `datasets` loads, caches and streams.

Upstream: a Hub id, a folder of images, or of IDX files. Downstream: training, likelihood, fidelity.
"""

import gzip
import logging
import math
import os
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import psutil
import torch
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetBuildError, FileNotFoundDatasetsError
from datasets.fingerprint import Hasher
from datasets.utils.file_utils import get_session

from .images import DecodedOnAccess, ImageDataset, decode
from .streaming import StreamedImages

logger = logging.getLogger(__name__)

FASHION_MNIST = "zalando-datasets/fashion_mnist"
FASHION_MNIST_CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
_DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"  # of Debian's package, in / or in what `make data` unpacked
FASHION_MNIST_FOLDERS = [str(root / _DEBIAN_FOLDER) for root in (Path("/"), Path(__file__).parents[2] / ".data")]

# Larger sets are read from datasets' memory-mapped files: each rank has its own copy of what it holds, and eight may share a machine.
MAX_BYTES_IN_MEMORY = min(4 * 2**30, psutil.virtual_memory().total // 4)

IDX_SPLITS = {"train": "train", "test": "t10k"}
IDX_FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(10)}
STRINGS = ["string", "large_string"]
# Argument -> the type that tells its column, its usual names, and the other types that a column so named may have.
COLUMNS = {
    "image_column": (datasets.Image, ["image", "img"], ["binary"]),
    "label_column": (datasets.ClassLabel, ["label", "labels", "fine_label"], [*STRINGS, "int64", "int32", "uint8"]),
}


def load_image_dataset(
    dataset: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    num_channels: int,
    image_size: int | tuple[int, int],
    cache_dir: str | None = None,
    token: str | None = None,
    streaming: bool = False,
) -> ImageDataset | StreamedImages:
    """Load `dataset`: a Hub id, a folder of images (or parquet...), or a folder with IDX files.

    `split` may be a part, as in datasets ("train[:90%]"). Images become `num_channels` (1 = grayscale, 3 = RGB) x
    `image_size` (H, W; one int for a square). Columns are found by their type, or named. FashionMNIST's id falls back
    to a local copy where the Hub cannot be reached. Raises ValueError or FileNotFoundError that names the argument.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if num_channels not in (1, 3) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"num_channels={num_channels}, image_size={image_size}: allowed are 1 or 3; positive sizes")
    folder, shape = Path(dataset).expanduser(), (num_channels, *size)
    columns = {"image_column": image_column, "label_column": label_column}
    if not folder.is_dir() and (folder.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1):
        raise FileNotFoundError(f"dataset={dataset!r}: there is no such folder")
    if _idx_files(folder, "images"):
        return _load_idx(folder, split, columns, shape, streaming)
    try:
        loaded = _load(folder if folder.is_dir() else dataset, split, cache_dir, token, streaming)
        found = _from_datasets(loaded, columns, shape, Hasher.hash([dataset, split, columns, shape]))
    except ConnectionError as error:
        if dataset != FASHION_MNIST:
            raise FileNotFoundError(f"dataset={dataset!r}: no such folder, not cached, and {error}") from error
        found = _load_idx(_local_fashion_mnist(error), split, columns, shape, streaming)
    if dataset == FASHION_MNIST:
        found.class_names = FASHION_MNIST_CLASSES
    return found


def _load(dataset, split, cache_dir, token, streaming):
    """datasets.load_dataset with clear errors; ConnectionError, soon, where the Hub is needed and out of reach."""
    offline, local = datasets.config.HF_HUB_OFFLINE, isinstance(dataset, Path)
    try:
        # The client would retry for half a minute; offline it goes to its cache at once.
        datasets.config.HF_HUB_OFFLINE = offline or not (local or _hub_answers(dataset))
        return datasets.load_dataset(str(dataset), split=split, cache_dir=cache_dir, token=token, streaming=streaming)
    except (FileNotFoundDatasetsError, EmptyDatasetError) as error:
        raise FileNotFoundError(f"dataset={str(dataset)!r}: no folder with images, nor a Hub id: {error}") from error
    except OSError as error:
        if local:
            raise
        raise ConnectionError(f"the Hub cannot be reached ({type(error).__name__})") from error
    except (ValueError, DatasetBuildError) as error:
        raise ValueError(f"dataset={str(dataset)!r}, split={split!r}: {error.__cause__ or error}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _hub_answers(dataset: str) -> bool:
    """Whether the Hub answers at all; whatever it answers is the client's to explain."""
    try:
        return get_session().head(f"{datasets.config.HF_ENDPOINT}/api/datasets/{dataset}", timeout=5).status_code < 500
    except Exception:  # the HTTP library under the client has errors of its own, and has changed
        return False


def _local_fashion_mnist(error: Exception) -> Path:
    folders = [os.environ.get("FASHION_MNIST_DIR", "$FASHION_MNIST_DIR"), *FASHION_MNIST_FOLDERS]
    for folder in map(Path, folders):
        if _idx_files(folder, "images"):
            logger.warning(f"{error}: FashionMNIST is read from {folder}")
            return folder
    ways = "give a way to the Hub; or get Debian's dataset-fashion-mnist (`make data`) or set $FASHION_MNIST_DIR"
    raise FileNotFoundError(f"dataset={FASHION_MNIST!r}: {error}, and no copy is in {folders}: {ways}") from error


def _idx_files(folder: Path, kind: str) -> dict[str, Path]:
    """Split name -> IDX file of `kind` ("images" or "labels") in the folder, for the splits that it holds."""
    found = {name: sorted(folder.glob(f"{part}-{kind}[-.]idx?-ubyte*")) for name, part in IDX_SPLITS.items()}
    return {name: files[0] for name, files in found.items() if files}


def _read_idx(file: Path) -> np.ndarray:
    """An IDX file of uint8: two zero bytes, the type 8, the number of dimensions, their sizes, the values."""
    try:
        content = (gzip.decompress if file.suffix == ".gz" else bytes)(file.read_bytes())
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is truncated or not an IDX file of bytes: {error}") from error


def _load_idx(folder: Path, split: str, columns: dict, shape: tuple[int, int, int], streaming: bool) -> ImageDataset:
    if streaming:
        raise ValueError(f"streaming=True: the IDX files of {folder} can only be read whole")
    for argument, named in columns.items():
        _find_column(IDX_FEATURES, argument, named)
    found = (_idx_files(folder, kind) for kind in ("images", "labels"))
    images, labels = ({name: _read_idx(file) for name, file in files.items()} for files in found)
    for name, pixels in images.items():
        if name not in labels or pixels.ndim != 3 or labels[name].shape != pixels.shape[:1]:
            raise ValueError(f"{folder}: the {name} images, of shape {pixels.shape}, need a file of as many labels")
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(x) for name, x in images.items()})
    pixels, targets = (np.concatenate([x[p.splitname][p.from_ : p.to] for p in parts]) for x in (images, labels))
    if shape != (1, *pixels.shape[1:]):
        pixels = np.stack([decode(PIL.Image.fromarray(image), str(folder), shape) for image in pixels])
    class_names = [str(label) for label in range(max(x.max() for x in labels.values()) + 1)]
    return ImageDataset(torch.from_numpy(pixels.reshape(-1, *shape)), torch.from_numpy(targets).long(), class_names)


def _from_datasets(loaded, columns: dict, shape: tuple[int, int, int], fingerprint: str):
    """What datasets loaded (`Dataset` or `IterableDataset`) -> `ImageDataset` or `StreamedImages`."""
    features = loaded.features or {}
    image_column, label_column = (_find_column(features, argument, named) for argument, named in columns.items())
    if image_column is None:
        raise ValueError(f"image_column=None: no column holds images; the columns are {list(features)}")
    loaded = loaded.cast_column(image_column, datasets.Image(decode=False))
    if label_column and _is_unlabelled(loaded, label_column):
        if columns["label_column"]:
            raise ValueError(f"label_column={label_column!r} holds no labels")
        label_column = None
    loaded = loaded.select_columns([name for name in (image_column, label_column) if name is not None])
    class_names = getattr(features.get(label_column), "names", None)
    if isinstance(loaded, datasets.IterableDataset):
        if label_column is not None and class_names is None:
            raise ValueError(f"label_column={label_column!r}: {features[label_column]}, streaming needs ClassLabel")
        return StreamedImages(loaded, image_column, label_column, shape, class_names, fingerprint)
    labels = None
    if label_column is not None:
        if getattr(features[label_column], "dtype", None) in STRINGS:
            loaded = loaded.class_encode_column(label_column)
            class_names = loaded.features[label_column].names
        labels = torch.from_numpy(loaded.data.column(label_column).fill_null(-1).to_numpy().astype(np.int64))
        if (labels < 0).any():
            raise ValueError(f"label_column={label_column!r}: {(labels < 0).sum()} of {len(labels)} have no label")
        class_names = class_names or [str(label) for label in range(labels.max() + 1)]
    stored = DecodedOnAccess(loaded, image_column, shape)
    pixels = stored.in_memory() if 0 < math.prod(stored.shape) <= MAX_BYTES_IN_MEMORY else stored
    return ImageDataset(pixels, labels, class_names)


def _is_unlabelled(loaded, label_column: str) -> bool:
    """Whether the column says -1 throughout, as unlabelled splits on the Hub do, or nothing, as where folders train/ and
    test/ hold no classes. Of a stream the first row tells."""
    if not isinstance(loaded, datasets.IterableDataset):
        return set(loaded.unique(label_column)) <= {None, -1}
    # Where there are no classes the column is promised, but not there.
    first: dict = next(iter(loaded.decode(False)), {})
    if unlabelled := first.get(label_column) in (None, -1):
        logger.warning(f"label_column={label_column!r}: the first row has no label, so none is used")
    return unlabelled


def _find_column(features: dict, argument: str, named: str | None) -> str | None:
    """The named column; else the one of the type that tells it; else one with a usual name; else None."""
    kind, usual, other_dtypes = COLUMNS[argument]
    dtypes = {c: getattr(f, "dtype", "binary" if isinstance(f, dict) else "") for c, f in features.items()}
    typed = [c for c, feature in features.items() if isinstance(feature, kind)]
    suiting = [c for c in features if c in typed or dtypes[c] in other_dtypes]
    if named is not None:
        if named not in suiting:
            raise ValueError(
                f"{argument}={named!r}: allowed are {suiting}, of the data set's columns {list(features)}"
            )
        return named
    usual_typed = [c for c in usual if c in typed]
    if len(typed) > 1 and not usual_typed:
        raise ValueError(f"{argument}=None: {typed} all hold {kind.__name__} values; name one of them")
    if found := usual_typed or typed or [c for c in usual if c in suiting]:
        return found[0]
    for c in usual:
        if c in features:
            logger.warning(f"{argument}=None: {c!r} holds {dtypes[c]} and is not used")
    return None
