"""load_image_dataset on real FashionMNIST images (tests/assets): sources, splits, columns, labels, refusals; no network."""

import gzip
import http.server
import os
import shutil
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ASSETS, ROOT

from ddpm_hf.data import FASHION_MNIST, ImageDataset, load_image_dataset
from ddpm_hf.data import idx as idx_module
from ddpm_hf.data import images as images_module
from ddpm_hf.images import to_uint8, to_x_0

IDX, IMAGEFOLDER = str(ASSETS / "idx"), str(ASSETS / "imagefolder")
GRAY = {"num_channels": 1, "image_size": 28}
FASHION_MNIST_FOLDERS = idx_module.FASHION_MNIST_FOLDERS


def with_labels(table, labels, feature=None):
    return table.remove_columns("label").add_column("label", labels, feature=feature)


def test_uint8_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    x_0 = to_x_0(pixels)
    assert x_0.dtype == torch.float32 and (x_0.min(), x_0.max()) == (-1, 1) and torch.equal(to_uint8(x_0), pixels)
    assert to_uint8(torch.tensor([-9.0, 9.0, 0.003])).tolist() == [0, 255, 128]  # clamped; (0.003 + 1) * 127.5 = 127.9


def test_idx_folder(idx, tmp_path):
    content = gzip.decompress((ASSETS / "idx/train-images-idx3-ubyte.gz").read_bytes())
    assert idx.images.numpy().tobytes() == content[16:] and idx.images.shape == (256, 1, 28, 28) and len(idx) == 256
    assert idx.labels.dtype == torch.int64 and idx.labels.bincount().tolist() == [26] * 6 + [25] * 4
    assert idx.class_names == list("0123456789") and idx.num_channels == 1 and idx.image_size == (28, 28)
    batch = idx[[3, 5, 8]]
    assert set(batch) == {"x_0", "class_labels"} and torch.equal(batch["x_0"], to_x_0(idx.images[[3, 5, 8]]))
    assert idx[5]["x_0"].shape == (1, 28, 28) and idx[5]["class_labels"] == batch["class_labels"][1]
    assert idx.describe() == f"256 images of 28 x 28; 10 classes ({', '.join('0123456789')})"
    for file in Path(IDX).glob("train-*.gz"):  # not packed, as some copies are
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    unpacked = load_image_dataset(str(tmp_path), **GRAY)
    assert len(unpacked) == 231 and torch.equal(unpacked.images[:9], idx.images[:9])  # a tenth is held out


def test_imagefolder(idx):
    folder = load_image_dataset(IMAGEFOLDER, **GRAY)
    assert folder.class_names == ["Bag", "Sneaker", "Trouser"] and folder.labels.bincount().tolist() == [4, 4, 3]
    assert torch.equal(folder.images[folder.labels == 1], idx.images[idx.labels == 7][:4])


# ---------------------------------------------------------------------- splits


def test_one_rule_for_held_out_images(tmp_path, write_parquet, table, idx):
    """The set's own test split, else its validation split, else every tenth image of train, which train is then without."""
    test, validation = table.select(range(5)), table.select(range(7))
    sets = {"both": {"validation": validation, "test": test}, "dev": {"dev": validation}, "none": {}}
    sizes, notes = {}, {}
    for name, others in sets.items():
        write_parquet(tmp_path / name, table, **others)
        parts = [load_image_dataset(str(tmp_path / name), split=split, **GRAY) for split in ("train", "test")]
        sizes[name], notes[name] = [len(part) for part in parts], [part.notes[0] for part in parts if part.notes]
    assert sizes == {"both": [64, 5], "dev": [64, 7], "none": [58, 6]}
    assert notes["both"] == ["the split 'test'"] and notes["dev"] == ["the split 'dev'"]
    assert notes["none"] == ["every tenth image is held out (6)", "every tenth image of 'train'"]
    assert torch.equal(parts[1].images, idx.images[9:64:10])
    assert torch.equal(parts[0].images, torch.stack([x for i, x in enumerate(idx.images[:64]) if i % 10 != 9]))
    assert len(load_image_dataset(str(tmp_path / "both"), split="validation", **GRAY)) == 7


def test_copies_of_an_image_are_on_one_side(tmp_path, gray):
    """Every tenth of 30 images is 9, 19 and 29. Image 19 is a copy of 0 and is trained on, image 12 one of 9 and is held out."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(30):
        value = {19: 0, 12: 9}.get(i, i)
        Image.new("L", (4, 4), 8 * value).save(photos / f"{i:02}.png")
    held_out, trained = (
        {int(image[0, 0, 0]) // 8 for image in load_image_dataset(str(photos), split=split, **gray).images}
        for split in ("test", "train")
    )
    assert held_out == {9, 29} and not held_out & trained


def test_a_test_split_without_labels_is_passed_over(tmp_path, write_parquet, table):
    unlabelled = with_labels(table, [-1] * 64, table.features["label"])  # as ImageNet's
    folder = write_parquet(tmp_path / "table", table, validation=table.select(range(5)), test=unlabelled)
    assert len(load_image_dataset(folder, split="test", **GRAY)) == 5
    assert len(load_image_dataset(folder, split="test", conditions=(), **GRAY)) == 64


def test_the_only_split_is_train_whatever_its_name(tmp_path, table):
    datasets.DatasetDict(test=table).save_to_disk(tmp_path / "disk")
    folder = str(tmp_path / "disk")
    assert [len(load_image_dataset(folder, split=split, **GRAY)) for split in ("train", "test")] == [58, 6]


def test_fewer_than_ten_images_are_all_trained_on(tmp_path, write_parquet, table):
    folder = write_parquet(tmp_path / "table", table.select(range(9)))
    assert len(load_image_dataset(folder, **GRAY)) == 9
    with pytest.raises(ValueError, match=r"split='test': dataset=.* has no other split, .*nothing can be held out"):
        load_image_dataset(folder, split="test", **GRAY)


def test_names_of_splits_in_names_of_files_choose_nothing(tmp_path, table):
    (tmp_path / "tables [1]").mkdir()  # a path that is a pattern, too
    for name in ("holiday-train-ride", "other"):
        table.to_parquet(tmp_path / "tables [1]" / f"{name}.parquet")
    assert len(load_image_dataset(str(tmp_path / "tables [1]"), **GRAY)) == 128 - 12
    table.to_parquet(tmp_path / "tables [1]" / "test.parquet")
    assert len(load_image_dataset(str(tmp_path / "tables [1]"), **GRAY)) == 128


@pytest.mark.parametrize("with_test", [True, False])
def test_what_save_to_disk_wrote(tmp_path, table, idx, with_test):
    splits = datasets.DatasetDict(train=table, test=table.select([0]))
    (splits if with_test else table).save_to_disk(tmp_path / "disk")
    data = load_image_dataset(str(tmp_path / "disk"), **GRAY)
    assert len(data) == (64 if with_test else 58) and torch.equal(data.images[:9], idx.images[:9])


# ---------------------------------------------------------------------- in memory, on access, in the cache


def test_hub_like_table_in_memory_and_on_access(tmp_path, write_parquet, table, idx, monkeypatch):
    folder = write_parquet(tmp_path / "table", table, test=table)
    in_memory = load_image_dataset(folder, **GRAY)
    monkeypatch.setattr(images_module, "MAX_BYTES_IN_MEMORY", 64 * 28 * 28 - 1)
    on_access = load_image_dataset(folder, **GRAY)
    assert torch.equal(in_memory.images, idx.images[:64]) and on_access.images is None
    assert in_memory.class_names == on_access.class_names == list("abcdefghij")
    for name, values in in_memory[list(range(64))].items():
        assert torch.equal(values, on_access[list(range(64))][name])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("stored", ["files", "table"])
def test_the_fingerprint_sees_every_image(tmp_path, photos, table, monkeypatch, in_memory, stored):
    monkeypatch.setattr(images_module, "MAX_BYTES_IN_MEMORY", 2**30 if in_memory else 0)
    linspace = np.linspace
    monkeypatch.setattr(np, "linspace", lambda *args, **kwargs: linspace(*args, **kwargs) * 0)  # as of a large set
    if stored == "files":
        folder = Path(photos(*(f"{i}.png" for i in range(9))))
        first = load_image_dataset(str(folder), **GRAY)
        moved = shutil.copytree(folder, tmp_path / "moved")
        os.utime(moved / "5.png", (0, 0))
        again = load_image_dataset(str(moved), **GRAY)
        photos("5.png")
        second = load_image_dataset(str(folder), **GRAY)
    else:
        table.save_to_disk(tmp_path / "first")
        table.select([0, 1, 2, 4, 3, *range(5, 64)]).save_to_disk(tmp_path / "second")
        first, again, second = (load_image_dataset(str(tmp_path / x), **GRAY) for x in ("first", "first", "second"))
    assert first.fingerprint == again.fingerprint
    if in_memory or stored == "table":  # an image replaced by one of as many bytes is seen in memory alone
        assert first.fingerprint != second.fingerprint


def test_the_fingerprint_sees_labels_names_and_captions(idx):
    images, labels, names = idx.images[:2], idx.labels[:2], ["a", "b"]
    captions = [["x"], ["y"]]
    sets = [
        (images,),
        (images, labels),
        (images, 1 - labels, names),
        (images, labels, names),
        (images, None, None, captions),
    ]
    assert len({ImageDataset(*parts).fingerprint for parts in sets}) == len(sets)


def test_second_start_decodes_nothing(tmp_path, write_parquet, table, photos, monkeypatch):
    folders = [write_parquet(tmp_path / "table", table), photos("a.png", "b.png"), IDX]
    first = [load_image_dataset(folder, **GRAY) for folder in folders]
    monkeypatch.setattr(images_module, "decode", None)
    second = [load_image_dataset(folder, **GRAY) for folder in folders]
    assert all(torch.equal(one.images, other.images) for one, other in zip(first, second))


def test_an_image_that_is_replaced_is_decoded_anew(photos):
    folder = photos("a.png", "b.png")
    first = load_image_dataset(folder, **GRAY)
    photos("b.png")  # of another grey
    second = load_image_dataset(folder, **GRAY)
    assert torch.equal(first.images[0], second.images[0]) and not torch.equal(first.images[1], second.images[1])


@pytest.mark.parametrize("source", [IDX, IMAGEFOLDER])
def test_channels_and_size(source):
    gray, rgb = load_image_dataset(source, **GRAY), load_image_dataset(source, num_channels=3, image_size=28)
    assert torch.equal(rgb.images, gray.images.expand(-1, 3, -1, -1))
    resized = load_image_dataset(source, num_channels=3, image_size=[32, 16])  # a list, as JSON has it
    assert resized.images.shape[1:] == (3, 32, 16) and resized.image_size == (32, 16)
    assert resized[[0, 1]]["x_0"].shape == (2, 3, 32, 16)


# ---------------------------------------------------------------------- columns and labels


def test_columns_named(tmp_path, write_parquet, table):
    folder = write_parquet(tmp_path / "table", table)
    assert load_image_dataset(folder, label_column="word", **GRAY).class_names[:2] == ["w0", "w1"]
    renamed = table.rename_columns({"image": "photo", "label": "kind"}).add_column("label", [3] * 64)
    other = write_parquet(tmp_path / "other", renamed.cast_column("photo", datasets.Image()))
    assert load_image_dataset(other, **GRAY).class_names == list("abcdefghij")  # found by type, whatever their names
    named = load_image_dataset(other, label_column="label", **GRAY)
    assert named.class_names == ["3"] and named.labels.tolist() == [0] * 58
    twice = renamed.add_column("kinds", [0] * 64, feature=table.features["label"])
    folder = write_parquet(tmp_path / "twice", twice)
    with pytest.raises(ValueError, match=r"label_column=None: \['kind', 'kinds'\].*name one"):
        load_image_dataset(folder, **GRAY)
    assert load_image_dataset(folder, conditions=(), **GRAY).labels is None  # nothing is asked of labels


@pytest.mark.parametrize(
    ("values", "dtype", "names"),
    [
        ([1, 5, 9], "int64", ["1", "5", "9"]),
        ([7, 20_000_007], "int64", ["7", "20000007"]),
        ([3_000_000_000, 10, 9], "int64", ["9", "10", "3000000000"]),
        ([-1, 1], "int8", ["-1", "1"]),
        ([2, 1], "int16", ["1", "2"]),
        ([0, 65535], "uint16", ["0", "65535"]),
        ([2**32 - 1, 0], "uint32", ["0", "4294967295"]),
        ([2**64 - 1, 0], "uint64", ["0", "18446744073709551615"]),
        ([True, False], "bool", ["False", "True"]),
        (["b", "a"], "large_string", ["a", "b"]),
    ],
)
def test_classes_are_the_values_that_occur(tmp_path, write_parquet, table, values, dtype, names):
    column = [values[i % len(values)] for i in range(64)]
    folder = write_parquet(
        tmp_path / "table",
        with_labels(table, column, datasets.Value(dtype)),
        test=with_labels(table.select([0, 1]), values[:2], datasets.Value(dtype)),
    )
    for split in ("train", "test"):
        data = load_image_dataset(folder, split=split, **GRAY)
        assert data.class_names == names
        assert [names[label] for label in data.labels] == [str(value) for value in column[: len(data)]]


@pytest.mark.parametrize("streaming", [False, True])
def test_minus_one_throughout_is_no_label(tmp_path, write_parquet, table, streaming, caplog):
    folder = write_parquet(tmp_path / "unlabelled", with_labels(table, [-1] * 64, table.features["label"]))
    found = load_image_dataset(folder, streaming=streaming, **GRAY)
    assert "class_labels" not in next(iter(found)) and found.class_names is None
    assert streaming == ("the first row has no label, so none is used" in caplog.text)
    with pytest.raises(ValueError, match="label_column='label' holds no labels"):
        load_image_dataset(folder, label_column="label", streaming=streaming, **GRAY)


def test_images_without_a_label_among_labelled_ones_are_refused(tmp_path, write_parquet, table):
    labels = {
        "minus": ([-1] * 3 + table["label"][3:], table.features["label"]),
        "empty": ([""] * 3 + table["word"][3:], None),
        "none": ([None] * 3 + table["word"][3:], None),
    }
    for name, (column, feature) in labels.items():
        folder = write_parquet(
            tmp_path / name, with_labels(table, column, feature), test=with_labels(table, column, feature)
        )
        with pytest.raises(ValueError, match=r"label_column='label': 3 of 64 have no label"):
            load_image_dataset(folder, **GRAY)


def test_labels_beyond_the_names_are_refused(tmp_path, table):
    table = with_labels(table, [12] * 64, datasets.ClassLabel(num_classes=13))
    table.info.features["label"].names = list("abcdefghij")
    table.info.features["label"].num_classes = 10
    table.save_to_disk(tmp_path / "disk")
    with pytest.raises(ValueError, match="label_column='label': train has labels of 12 to 12, and 10 names"):
        load_image_dataset(str(tmp_path / "disk"), **GRAY)


def test_a_label_column_of_another_type_is_told(tmp_path, write_parquet, table, caplog):
    labels = [None, *map(float, table["label"][1:])]  # what a blank in a CSV makes of whole numbers
    assert load_image_dataset(write_parquet(tmp_path / "floats", with_labels(table, labels)), **GRAY).labels is None
    assert "label_column=None: 'label' holds float64 and is not used" in caplog.text


def test_classes_without_an_image_are_told(tmp_path, write_parquet, table):
    few = with_labels(table, [0, 2] * 32, datasets.ClassLabel(names=["a", "b", "c"]))
    data = load_image_dataset(write_parquet(tmp_path / "few", few), **GRAY)
    assert data.class_names == ["a", "b", "c"] and "1 classes have no image (b)" in data.describe()


# ---------------------------------------------------------------------- FashionMNIST and the Hub


def test_what_make_data_unpacked_is_found_from_anywhere():
    assert FASHION_MNIST_FOLDERS and all(map(os.path.isabs, FASHION_MNIST_FOLDERS))
    assert str(ROOT / ".data/usr/share/datasets/fashion-mnist") in FASHION_MNIST_FOLDERS


def test_fashion_mnist_without_the_hub(monkeypatch, idx):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens: refused at once
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"the Hub cannot be reached.*make data.*FASHION_MNIST_DIR"):
        load_image_dataset(FASHION_MNIST, **GRAY)
    monkeypatch.setenv("FASHION_MNIST_DIR", IDX)
    local = load_image_dataset(FASHION_MNIST, **GRAY)
    assert torch.equal(local.images, idx.images) and local.class_names == idx_module.FASHION_MNIST_CLASSES
    monkeypatch.delenv("FASHION_MNIST_DIR")
    monkeypatch.setattr(idx_module, "FASHION_MNIST_FOLDERS", ["/nowhere", IDX])
    test = load_image_dataset(FASHION_MNIST, split="test", **GRAY)
    assert len(test) == 128 and test.class_names == idx_module.FASHION_MNIST_CLASSES
    with pytest.raises(FileNotFoundError, match=r"dataset='ylecun/mnist'.*the Hub cannot be reached"):
        load_image_dataset("ylecun/mnist", **GRAY)
    assert time.perf_counter() - start < 20 and not datasets.config.HF_HUB_OFFLINE  # retries would take 23 s each time


def test_hub_data_set_in_the_cache_works_offline(tmp_path, write_parquet, table, idx):
    """datasets' cache of a Hub id, laid out as a download leaves it: NAMESPACE___NAME/CONFIG/VERSION/HASH."""
    folder = write_parquet(tmp_path / "fashion_mnist", table, test=table)
    datasets.load_dataset(folder, cache_dir=tmp_path / "built")
    (built,) = (tmp_path / "built").glob("*/*/*/*/dataset_info.json")
    shutil.copytree(built.parent, tmp_path / "cache/zalando-datasets___fashion_mnist/default/0.0.0" / ("a" * 40))
    cached = load_image_dataset(FASHION_MNIST, cache_dir=str(tmp_path / "cache"), **GRAY)
    assert torch.equal(cached.images, idx.images[:64]) and cached.class_names == idx_module.FASHION_MNIST_CLASSES


class NotFound(http.server.BaseHTTPRequestHandler):
    """A Hub that has nothing."""

    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD


def test_wrong_hub_id_says_so_and_never_falls_back(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("FASHION_MNIST_DIR", IDX)
    for name in ("zalando/fashion", FASHION_MNIST):
        with pytest.raises(FileNotFoundError, match=f"dataset='{name}'.*doesn't exist on the Hub"):
            load_image_dataset(name, **GRAY)
    server.shutdown()


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (RuntimeError("peer closed\nconnection"), ValueError, "dataset='me/set': peer closed connection"),
        (
            PermissionError(13, "denied", "/cache"),
            FileNotFoundError,
            "Hub cannot be reached .PermissionError: .*denied",
        ),
    ],
)
def test_whatever_a_download_raises_is_one_line(monkeypatch, raised, error, message):
    def load_dataset(*args, **kwargs):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(error, match=message) as caught:
        load_image_dataset("me/set", **GRAY)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- refusals


def damaged(tmp_path, change):
    change(shutil.copytree(IDX, tmp_path / "damaged"))
    return {"dataset": str(tmp_path / "damaged")}


def empty(tmp_path, *files):
    (tmp_path / "empty").mkdir()
    for name, content in files:
        (tmp_path / "empty" / name).write_bytes(content)
    return {"dataset": str(tmp_path / "empty")}


def truncate(folder, packed):
    file = folder / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()[:50_000] if packed else gzip.decompress(file.read_bytes())[:50_000]
    file.unlink()
    (file if packed else file.with_suffix("")).write_bytes(content)


def promise(folder, *sizes):
    """A header of the given sizes, and no values."""
    header = b"\0\0\x08" + bytes([len(sizes)]) + b"".join(size.to_bytes(4) for size in sizes)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header))


REFUSALS = {
    "no such folder": (
        lambda p: {"dataset": "./nowhere"},
        FileNotFoundError,
        r"dataset='./nowhere': there is no such",
    ),
    "a file": (
        lambda p: {"dataset": str(Path(__file__))},
        ValueError,
        "is a file; allowed are a Hub id, a folder and",
    ),
    "empty folder": (empty, FileNotFoundError, r"dataset='.*empty': no images or tables among 0 files"),
    "no images": (
        lambda p: empty(p, ("a.txt", b"words")),
        FileNotFoundError,
        r"no images or tables among 1 files a.txt",
    ),
    "broken image": (lambda p: empty(p, ("a.png", b"\x89PNG")), ValueError, r"image 0 \(.*a.png\) cannot be used"),
    "idx split": (lambda p: {"dataset": IDX, "split": "valid"}, ValueError, r"'valid'.*\['train', 'test'\]"),
    "split": (lambda p: {"split": "extra"}, ValueError, r"split='extra'.*\['train'\]"),
    "image column": (lambda p: {"image_column": "nope"}, ValueError, r"image_column='nope'.*\['image', 'label'\]"),
    "label column": (lambda p: {"label_column": "nope"}, ValueError, r"label_column='nope'.*\['image'\]"),
    "idx column": (lambda p: {"dataset": IDX, "label_column": "nope"}, ValueError, r"label_column='nope'.*'label'"),
    "not images": (lambda p: {"image_column": "label"}, ValueError, r"image_column='label': allowed are \['image'\]"),
    "no captions": (lambda p: {"conditions": ["captions"]}, ValueError, r"caption_column=None: no column suits"),
    "conditions": (lambda p: {"conditions": ["labels"]}, ValueError, r"allowed are 'class_labels' and 'captions'"),
    "truncated gz": (lambda p: damaged(p, lambda f: truncate(f, True)), ValueError, r"idx3-ubyte.gz is truncated"),
    "truncated idx": (lambda p: damaged(p, lambda f: truncate(f, False)), ValueError, r"idx3-ubyte is truncated"),
    "idx of gigabytes": (
        lambda p: damaged(p, lambda f: promise(f, 2**31, 28, 28)),
        ValueError,
        "1,683,627,180,032 bytes; allowed",
    ),
    "idx of nothing": (lambda p: damaged(p, lambda f: promise(f, 256, 0, 0)), ValueError, "image 0 cannot be used"),
    "idx of one dimension": (lambda p: damaged(p, lambda f: promise(f, 0)), ValueError, r"of shape \(0,\), need"),
    "no labels": (lambda p: damaged(p, lambda f: next(f.glob("train-l*")).unlink()), ValueError, r"as many labels"),
    "channels": (lambda p: {"num_channels": 2}, ValueError, r"num_channels=2.*allowed are 1 or 3"),
    "size": (lambda p: {"image_size": (28, 0)}, ValueError, r"image_size=\(28, 0\).*positive"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path, case):
    arguments, error, message = REFUSALS[case]
    with pytest.raises(error, match=message) as raised:
        load_image_dataset(**{"dataset": IMAGEFOLDER, **GRAY, **arguments(tmp_path)})
    assert "\n" not in str(raised.value)


def test_idx_label_255_is_a_class(tmp_path):
    def relabel(folder):
        labels = folder / "train-labels-idx1-ubyte.gz"
        content = gzip.decompress(labels.read_bytes())
        labels.write_bytes(gzip.compress(content[:-1] + b"\xff"))

    data = load_image_dataset(damaged(tmp_path, relabel)["dataset"], **GRAY)
    assert data.class_names == [*"0123456789", "255"] and data.labels[-1] == 10
