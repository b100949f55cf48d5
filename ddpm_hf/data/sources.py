"""Any data set -> x_0, float32 NCHW in [-1, 1], and its labels or captions.

Ho et al. 2020 (arXiv 2006.11239), section 3.3: "image data consists of integers in {0, 1, ..., 255} scaled linearly to [-1, 1]".

Upstream: a Hub id, or a folder or zip on this machine (`folders`, `idx`). Downstream: training, likelihood, fidelity.

One rule for held-out images, for every script: the split "test" is the set's own test split, else its validation split, else every tenth
image of train, which "train" is then without; copies of an image go where the first one goes. Where train has labels, a split without
labels is passed over.
"""

import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets.fingerprint import Hasher
from datasets.utils.file_utils import get_session

from ..pipeline_ddpm_image import IMAGE_CONDITIONS
from . import FASHION_MNIST, idx, images
from .folders import SPLIT_NAMES, load_folder, unzip
from .images import EncodedImages, Fields, ImageDataset, as_captions, cache_folder, list_some
from .streaming import StreamedImages

logger = logging.getLogger(__name__)

TEXT = ["string", "large_string"]
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
# Argument -> the type that tells its column, its usual names, and the other types that a column so named may have.
COLUMNS: dict[str, tuple] = {
    "image_column": (datasets.Image, ["image", "img"], ["binary", "large_binary"]),
    "label_column": (datasets.ClassLabel, ["label", "labels", "fine_label"], [*TEXT, *INTEGERS, "bool"]),
    "caption_column": (
        (),
        ["text", "caption", "captions", "prompt", "name"],
        [*TEXT, *(f"list of {x}" for x in TEXT)],
    ),
}
COLUMNS["image_condition"] = COLUMNS["image_column"]  # of a second image
Labels = dict[str, np.ndarray | None]  # of each split
Table: TypeAlias = datasets.Dataset | datasets.IterableDataset  # the latter of a stream
Images: TypeAlias = torch.Tensor | EncodedImages


def load_image_dataset(
    dataset: str,
    *,
    num_channels: int,
    image_size: int | tuple[int, int],
    split: str = "train",
    conditions: Collection[str] = ("class_labels",),
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    skip_undecodable: bool = False,
    streaming: bool = False,
    cache_dir: str | None = None,
    token: str | None = None,
    image_condition: str | None = None,
) -> ImageDataset | StreamedImages:
    """Load `dataset`: a Hub id; a folder or zip of images; a folder of tables (parquet, arrow, tar), of `save_to_disk`, of IDX files.

    `folders` has the rules for folders; a Hub id has the splits and labels that `datasets` and the Hub's viewer give it.

    Args:
        num_channels, image_size: 1 is grey, 3 is RGB; (H, W), or one int for a square.
        split: "train", "test" (by the rule above), or the name of another split.
        conditions: what is read beside the images: "class_labels", where there are any, "captions", both or neither.
        image_column, label_column, caption_column: found by type and usual names if not given.
        skip_undecodable: leave out images that cannot be decoded, and count them; otherwise the first of them is an error.
        streaming: read a Hub set as it is needed, never as a whole. No image of its train split is held out.
        image_condition: how the condition image of each is made, one of IMAGE_CONDITIONS or the column of a second image (`conditions`).
        cache_dir: of datasets, which also keeps decoded images. token: for private sets of the Hub.

    Raises:
        ValueError, OSError: one line that names the argument or the file.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if num_channels not in (1, 3) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"num_channels={num_channels}, image_size={image_size}: allowed are 1 or 3; positive sizes")
    if not set(conditions) <= {"class_labels", "captions"}:
        raise ValueError(f"conditions={conditions!r}: allowed are 'class_labels' and 'captions'")
    named: dict[str, str | None] = {"image_column": image_column}
    named |= {"label_column": label_column} if "class_labels" in conditions else {}
    named |= {"caption_column": caption_column} if "captions" in conditions else {}
    named |= {"image_condition": image_condition} if image_condition not in (None, *IMAGE_CONDITIONS) else {}
    class_folders = "class_labels" in conditions and label_column in (None, "label")
    splits, notes = _open(dataset, class_folders, cache_dir, token, streaming)
    features = next(iter(splits.values())).features or {}
    columns = {argument: _find_column(features, argument, name) for argument, name in named.items()}
    labels, class_names = _read_labels(splits, columns.get("label_column"))
    name, rows, note = _choose(dataset, split, splits, labels, columns["image_column"])
    if dataset == FASHION_MNIST and len(class_names or []) == len(idx.FASHION_MNIST_CLASSES):
        class_names = idx.FASHION_MNIST_CLASSES
    captions, shape, notes = columns.get("caption_column"), (num_channels, *size), note + notes
    told = columns.get("label_column"), captions, shape, class_names, columns.get("image_condition")
    fields = Fields(columns["image_column"], *told)
    found: ImageDataset | StreamedImages
    if streaming:
        fingerprint = Hasher.hash([dataset, split, named, shape])
        found = _stream(splits[name], rows, labels[name], fields, skip_undecodable, notes, fingerprint)
    else:
        found = _read(splits[name], rows, labels[name], fields, skip_undecodable, notes, cache_folder(cache_dir))
    found.image_condition = image_condition
    if named.get("label_column") and not found.class_names:
        raise ValueError(f"label_column={label_column!r} holds no labels")
    return found


# ---------------------------------------------------------------------- where a data set is


def _open(
    dataset: str, class_folders: bool, cache_dir: str | None, token: str | None, streaming: bool
) -> tuple[dict[str, Table], list[str]]:
    """-> the splits by name, and notes on files that were skipped."""
    folder, cache = Path(dataset).expanduser(), cache_folder(cache_dir)
    if folder.is_file():
        if folder.suffix.lower() != ".zip":
            raise ValueError(f"dataset={dataset!r} is a file; allowed are a Hub id, a folder and a zip")
        folder = unzip(str(folder), cache)
    if not folder.is_dir():
        if folder.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1:
            raise FileNotFoundError(f"dataset={dataset!r}: there is no such folder")
        try:
            return _load_from_hub(dataset, cache_dir, token, streaming), []
        except ConnectionError as error:
            folder = idx.find_fashion_mnist() if dataset == FASHION_MNIST else None
            if folder is None:
                ways = "; `make data` gets a copy, $FASHION_MNIST_DIR names one" if dataset == FASHION_MNIST else ""
                raise FileNotFoundError(
                    f"dataset={dataset!r}: no such folder, not cached, and {error}{ways}"
                ) from error
            logger.warning(f"{error}: FashionMNIST is read from {folder}")
    if idx.is_idx_folder(folder):
        return idx.load_idx(folder), []
    return load_folder(folder, cache, class_folders, streaming)


def _load_from_hub(dataset: str, cache_dir: str | None, token: str | None, streaming: bool) -> dict[str, Table]:
    """datasets.load_dataset with clear errors; ConnectionError, soon, where the Hub is needed and out of reach."""
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        # The client would retry for half a minute; offline it goes to its cache at once.
        datasets.config.HF_HUB_OFFLINE = offline or not _hub_answers(dataset)
        return dict(datasets.load_dataset(dataset, cache_dir=cache_dir, token=token, streaming=streaming))
    except Exception as error:  # what the HTTP library and pyarrow raise, too
        told = error if isinstance(error, OSError) else error.__cause__ or error  # a failed build hides its cause
        reason = " ".join(str(told).split())[:300]
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"dataset={dataset!r}: no folder, nor a Hub id: {reason}") from error
        if isinstance(error, OSError):
            raise ConnectionError(f"the Hub cannot be reached ({type(error).__name__}: {reason})") from error
        raise ValueError(f"dataset={dataset!r}: {reason}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _hub_answers(dataset: str) -> bool:
    """Whether the Hub answers at all; whatever it answers is the client's to explain."""
    try:
        return get_session().head(f"{datasets.config.HF_ENDPOINT}/api/datasets/{dataset}", timeout=5).status_code < 500
    except Exception:  # the HTTP library under the client has errors of its own, and has changed
        return False


# ---------------------------------------------------------------------- which columns, labels and rows


def _find_column(features: dict, argument: str, named: str | None) -> str | None:
    """The named column; else the one of the type that tells it; else one with a usual name. Without any, None for labels alone."""
    kind, usual, other_types = COLUMNS[argument]
    types = {column: _type_name(feature) for column, feature in features.items()}
    typed = [column for column, feature in features.items() if isinstance(feature, kind)]
    suiting = [column for column in features if column in typed or types[column] in other_types]
    if named is not None:
        if named not in suiting:
            kinds = f"{', '.join(IMAGE_CONDITIONS)} or " if argument == "image_condition" else ""
            raise ValueError(
                f"{argument}={named!r}: allowed are {kinds}{suiting}, of the data set's columns {list(features)}"
            )
        return named
    usual_typed = [column for column in usual if column in typed]
    if len(typed) > 1 and not usual_typed:
        raise ValueError(f"{argument}=None: {typed} all hold {kind.__name__} values; name one of them")
    if found := usual_typed or typed or [column for column in usual if column in suiting]:
        return found[0]
    if argument != "label_column":
        raise ValueError(f"{argument}=None: no column suits; the columns are {list(features)}")
    for column in usual:
        if column in features:
            logger.warning(f"{argument}=None: {column!r} holds {types[column]} and is not used")
    return None


def _type_name(feature: Any) -> str:
    if isinstance(feature, datasets.List):
        return f"list of {_type_name(feature.feature)}"
    return getattr(feature, "dtype", "binary" if isinstance(feature, dict) else "")


def _read_labels(splits: dict[str, Table], column: str | None) -> tuple[Labels, list[str] | None]:
    """Of each split its labels, int64 (N,), -1 where an image has none, or None where no image has one; and the names of the classes.

    Without names in the data the classes are the values that occur in any split, in their order.
    """
    none: Labels = dict.fromkeys(splits)
    stored = {name: part for name, part in splits.items() if column and column in (part.features or {})}
    features = {name: part.features[column] for name, part in stored.items()}
    names = next((feature.names for feature in features.values() if isinstance(feature, datasets.ClassLabel)), None)
    if any(isinstance(part, datasets.IterableDataset) for part in stored.values()):
        if names is None:
            raise ValueError(f"label_column={column!r}: {next(iter(features.values()))}, streaming needs ClassLabel")
        return none, names
    values = {name: part.data.column(column) for name, part in stored.items()}
    values = {name: x for name, x in values.items() if not set(x.unique().to_pylist()) <= {None, -1, ""}}
    if not values:
        return none, None
    if len({str(features[name]) for name in values}) > 1:
        raise ValueError(f"label_column={column!r}: the splits have labels of different kinds, {features}")
    if names is None:
        occurring = sorted({value for x in values.values() for value in x.unique().to_pylist()} - {None, ""})
        names = [str(value) for value in occurring]
        values = {name: pc.index_in(x, pa.array(occurring, x.type)) for name, x in values.items()}
    labels = {name: x.fill_null(-1).to_numpy().astype(np.int64) for name, x in values.items()}
    for name, x in labels.items():
        if x.min() < -1 or x.max() >= len(names):
            raise ValueError(
                f"label_column={column!r}: {name} has labels of {x.min()} to {x.max()}, and {len(names)} names"
            )
    return none | labels, names


def _choose(
    dataset: str, split: str, splits: dict[str, Table], labels: Labels, column: str
) -> tuple[str, np.ndarray | None, list[str]]:
    """The rule for held-out images -> the name of a split, its rows (None of a streamed one), and a note."""
    roles = {SPLIT_NAMES.get(name, name): name for name in reversed(splits)}
    train = roles.get("train", next(iter(splits)) if len(splits) == 1 else None)
    if train is None or split not in ("train", "test"):
        if split not in splits:
            raise ValueError(f"split={split!r}: dataset={dataset!r} has the splits {list(splits)}")
        return split, _rows(splits[split]), []
    own = [roles[role] for role in ("test", "validation") if roles.get(role, train) != train]
    if isinstance(splits[train], datasets.Dataset):
        own = [name for name in own if labels[train] is None or labels[name] is not None]
    if own and split == "test":
        return own[0], _rows(splits[own[0]]), [f"the split {own[0]!r}"]
    rows = _rows(splits[train])
    if own or rows is None or len(rows) < 10:
        if split == "train":
            return train, rows, []
        raise ValueError(
            f"split='test': dataset={dataset!r} has no other split, and of {train!r} nothing can be held out"
        )
    tenth = EncodedImages(splits[train], column, rows, (1, 1, 1)).first_copies() % 10 == 9
    if split == "train":
        return train, rows[~tenth], [f"every tenth image is held out ({tenth.sum()})"]
    return train, rows[tenth], [f"every tenth image of {train!r}"]


def _rows(table: Table) -> np.ndarray | None:
    return np.arange(table.num_rows) if isinstance(table, datasets.Dataset) else None


# ---------------------------------------------------------------------- images


def _read(
    table: datasets.Dataset,
    rows: np.ndarray,
    labels: np.ndarray | None,
    fields: Fields,
    skip_undecodable: bool,
    notes: list[str],
    cache: Path,
) -> ImageDataset:
    if missing := [
        name for name in (fields.image, fields.caption, fields.condition) if name and name not in table.column_names
    ]:
        raise ValueError(f"the split has no column {missing[0]!r}; it has {table.column_names}")
    others, left, skipped = None, list(range(len(rows))), list[str]()
    if fields.condition is not None:
        others, left, skipped = _decode(table, fields.condition, rows, fields, skip_undecodable, cache)
    rows = rows[left]
    pixels, left, errors = _decode(table, fields.image, rows, fields, skip_undecodable, cache)
    if others is not None:
        others = (
            others[left]
            if isinstance(others, torch.Tensor)
            else EncodedImages(table, fields.condition, rows[left], fields.shape)
        )
    rows, errors = rows[left], skipped + errors
    notes = notes + ([f"skipped {len(errors)} images that cannot be decoded: {errors[0]}"] if errors else [])
    if labels is not None and (unlabelled := int((labels[rows] < 0).sum())):
        raise ValueError(f"label_column={fields.label!r}: {unlabelled} of {len(rows)} have no label")
    captions = None
    if fields.caption is not None:
        cells = table.data.column(fields.caption).take(rows).to_pylist()
        captions = [as_captions(cell, f"image {i}") for cell, i in zip(cells, rows)]
    if labels is None:
        return ImageDataset(pixels, captions=captions, notes=notes, others=others)
    unseen = [
        name
        for name, count in zip(fields.class_names, np.bincount(labels[rows], minlength=len(fields.class_names)))
        if not count
    ]
    notes = notes + ([f"{len(unseen)} classes have no image ({list_some(unseen)})"] if unseen else [])
    return ImageDataset(pixels, torch.from_numpy(labels[rows]), fields.class_names, captions, notes, others)


def _decode(
    table: datasets.Dataset, column: str, rows: np.ndarray, fields: Fields, skip_undecodable: bool, cache: Path
) -> tuple[Images, list[int], list[str]]:
    """The images of a column, decoded where they fit in memory; which rows are left; and the errors of the others."""
    pixels = EncodedImages(table, column, rows, fields.shape)
    fits = 0 < math.prod(pixels.shape) <= images.MAX_BYTES_IN_MEMORY
    if not (fits or (skip_undecodable and len(rows))):
        return pixels, list(range(len(rows))), []
    found, left, errors = pixels.decode_all(fits, skip_undecodable, cache)
    if not left:
        raise ValueError(f"no image can be decoded: {errors[0]}")
    return found, left, errors


def _stream(
    table: Table,
    rows: np.ndarray | None,
    labels: np.ndarray | None,
    fields: Fields,
    skip_undecodable: bool,
    notes: list[str],
    fingerprint: str,
) -> StreamedImages:
    if isinstance(table, datasets.Dataset):
        table = table.select_columns([name for name in (fields.image, fields.caption, fields.condition) if name])
        fields = fields._replace(label=None if labels is None else "class_labels")
        if labels is not None:
            table = table.add_column("class_labels", labels)
        table = table.select(rows).to_iterable_dataset(num_shards=min(len(rows), 1024))
    for column in filter(None, (fields.image, fields.condition)):
        table = table.cast_column(column, datasets.Image(decode=False))
    if fields.label and _is_unlabelled(table, fields.label):
        logger.warning(f"label_column={fields.label!r}: the first row has no label, so none is used")
        fields = fields._replace(label=None)
    columns = (fields.image, fields.label, fields.caption, fields.condition)
    table = table.select_columns([name for name in columns if name])
    if fields.label is None:
        fields = fields._replace(class_names=None)
    return StreamedImages(table, fields, fingerprint, skip_undecodable, notes)


def _is_unlabelled(stream: datasets.IterableDataset, column: str) -> bool:
    """Whether the first row has no label: -1, as in unlabelled splits on the Hub, or nothing where the column is promised, but not there."""
    first: dict = next(iter(stream.decode(False)), {})
    return first.get(column) in (None, -1)
