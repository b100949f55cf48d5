"""Folders that nobody would make on purpose: images come out, or one line that says what is wrong, and memory stays bounded."""

import gzip
import io
import json
import os
import resource
import shutil
import zipfile

import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_hf.data import load_image_dataset


def picture(mode: str, size: tuple[int, int], kind: str) -> bytes:
    buffer = io.BytesIO()
    try:
        PIL.Image.new(mode, size, 7).save(buffer, kind)
    except (OSError, ValueError):  # not every format has every mode
        PIL.Image.new("L", size, 7).save(buffer, "png")
    return buffer.getvalue()


def table(images: list[bytes], labels: list, names: list[str]) -> bytes:
    rows = min(len(images), len(labels))
    columns = {"image": images[:rows], "label": labels[:rows]}
    try:
        written = pa.table(dict(zip(names, columns.values())))
    except (pa.ArrowException, OverflowError):
        written = pa.table({"image": images})
    buffer = io.BytesIO()
    pa.parquet.write_table(written, buffer)
    return buffer.getvalue()


def idx_file(dimensions: list[int], values: bytes, packed: bool) -> bytes:
    content = b"\0\0\x08" + bytes([len(dimensions)]) + b"".join(size.to_bytes(4) for size in dimensions) + values
    return gzip.compress(content) if packed else content


def archive(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for name, content in dict(files).items():
            written.writestr(name, content)
    return buffer.getvalue()


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"]
SIZES = st.sampled_from([(1, 1), (3, 5), (8, 8), (1, 3000)])
IMAGES = st.builds(picture, st.sampled_from(MODES), SIZES, st.sampled_from(["png", "tiff", "gif", "jpeg", "webp"]))
BROKEN = st.one_of(
    st.builds(lambda image, end: image[: -end - 1], IMAGES, st.integers(0, 60)),
    st.builds(picture, st.sampled_from(["I", "F"]), SIZES, st.just("tiff")),
    st.binary(max_size=40),
)
PICTURES = st.one_of(IMAGES, IMAGES, IMAGES, BROKEN)
FOLDERS = st.sampled_from(["", "cats", "dogs", "train", "test", "dev", "train/cats", "test/dogs", "a [1] *", "é\n"])
NAMES = st.sampled_from(["0.png", "1.JPG", "2.tif", "test.png", "train-1.gif", "3.heic", "\x1b[0m.webp"])
INTEGERS = st.integers(-2, 3) | st.sampled_from([255, 2**31, 3 * 10**9, 2**63, -(2**63)])
VALUES = st.none() | st.booleans() | INTEGERS | st.floats() | st.sampled_from(["", "a", "é\n"])
ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(["file_name", "label", "text", "image", ""]),
        st.sampled_from(["0.png", "cats/0.png", "../0.png", "1.JPG"]) | VALUES | st.lists(VALUES, max_size=3),
    ),
    max_size=4,
)
METADATA = st.tuples(
    st.sampled_from(["metadata.jsonl", "metadata.csv", "metadata.parquet", "labels.csv", "state.json", "readme.md"]),
    st.one_of(
        ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        st.sampled_from([b"file_name,label\n0.png,1\n", b"file_name,file_name\n0.png,1\n", b"file_name\n\xff\n"]),
        st.builds(table, st.lists(PICTURES, max_size=2), st.lists(VALUES), st.just(["file_name", "label"])),
        st.binary(max_size=30),
    ),
)
COLUMNS = st.sampled_from([["image", "label"], ["image", "text"], ["img", "labels"], ["label", "image"], ["a", "b"]])
LABELS = st.one_of(*(st.lists(kind, max_size=12) for kind in (INTEGERS, st.booleans(), VALUES)))
TABLES = st.tuples(
    st.sampled_from(["train.parquet", "holiday-test.parquet", "dev-00000-of-00001.parquet", "x.parquet"]),
    st.builds(table, st.lists(PICTURES, max_size=12), LABELS, COLUMNS) | st.binary(max_size=30),
)
IDX = st.tuples(
    st.sampled_from(["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"]),
    st.builds(
        idx_file,
        st.lists(st.integers(0, 3) | st.sampled_from([2**16, 2**31, 2**32 - 1]), max_size=4),
        st.binary(max_size=27),
        st.booleans(),
    ),
).map(lambda file: (file[0] + (".gz" if file[1][:2] == b"\x1f\x8b" else ""), file[1]))
FILES = st.lists(st.tuples(FOLDERS, st.tuples(NAMES, PICTURES) | METADATA), max_size=12).map(
    lambda files: [(os.path.join(folder, name), content) for folder, (name, content) in files]
)
TREES = st.one_of(
    FILES,
    st.lists(IDX, max_size=4),
    st.tuples(st.lists(TABLES, max_size=2), FILES.map(lambda files: files[:1])).map(
        lambda parts: [*parts[0], *parts[1]]
    ),
    FILES.map(lambda files: [("photos.zip", archive(files))]),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "split": st.sampled_from(["train", "test", "validation", "extra"]),
        "conditions": st.sampled_from([(), ("captions",), ("class_labels", "captions")]),
        "label_column": st.sampled_from(["label", "text", "nope"]),
        "skip_undecodable": st.just(True),
        "streaming": st.just(True),
    },
)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(files=TREES, options=OPTIONS)
def test_images_come_out_or_one_line(tmp_path_factory, files, options):
    folder = tmp_path_factory.mktemp("strange")
    for name, content in dict(files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    peak, refusal = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
    try:
        data = load_image_dataset(str(folder), num_channels=3, image_size=(4, 6), **options)
        batch = next(iter(data)) if options.get("streaming") else data[list(range(len(data)))]
        assert batch["x_0"].shape[-3:] == (3, 4, 6) and batch["x_0"].isfinite().all()
        labels = batch.get("class_labels", torch.tensor(0))
        assert labels.min() >= 0 and labels.max() < len(data.class_names or ["none"])
        assert data.describe().isprintable()
    except (ValueError, OSError) as error:
        refusal = str(error)
    assert refusal.isprintable() and len(refusal) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KiB
    shutil.rmtree(folder)
