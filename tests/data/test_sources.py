"""data.py on real FashionMNIST images (tests/assets): sources, columns, order, flips, streams, refusals; no network."""

import gzip
import http.server
import io
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from tiny import ASSETS, ROOT

from ddpm_hf.data import FASHION_MNIST, SampleOrder, collate_batch, load_image_dataset
from ddpm_hf.data import sources as data
from ddpm_hf.images import to_uint8, to_x_0
from ddpm_hf.keys import is_flipped

IDX, IMAGEFOLDER = str(ASSETS / "idx"), str(ASSETS / "imagefolder")
GRAY = {"num_channels": 1, "image_size": 28}


FASHION_MNIST_FOLDERS = data.FASHION_MNIST_FOLDERS


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test asks the Hub, and each has a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDERS", [])
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)


@pytest.fixture(scope="module")
def idx():
    return load_image_dataset(IDX, **GRAY)


@pytest.fixture(scope="module")
def table(idx):
    """64 of the images as a data set like the Hub's: PNG bytes, class labels, and columns of other types."""
    buffers = [io.BytesIO() for _ in range(64)]
    for image, buffer in zip(idx.images, buffers):
        PIL.Image.fromarray(image[0].numpy()).save(buffer, "png")
    pngs, labels = [{"bytes": buffer.getvalue(), "path": None} for buffer in buffers], idx.labels[:64].tolist()
    columns = {"image": pngs, "label": labels, "word": [f"w{x}" for x in labels], "level": [x / 10 for x in labels]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("abcdefghij")))
    features.update(word=datasets.Value("string"), level=datasets.Value("float32"))
    return datasets.Dataset.from_dict(columns, features=features)


def parquet(folder: Path, table: datasets.Dataset, num_shards: int = 1) -> str:
    folder.mkdir()
    for i in range(num_shards):
        table.shard(num_shards, i, contiguous=True).to_parquet(folder / f"train-{i:05d}-of-{num_shards:05d}.parquet")
    return str(folder)


def test_uint8_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    x_0 = to_x_0(pixels)
    assert x_0.dtype == torch.float32 and (x_0.min(), x_0.max()) == (-1, 1) and torch.equal(to_uint8(x_0), pixels)
    assert to_uint8(torch.tensor([-9.0, 9.0, 0.003])).tolist() == [0, 255, 128]  # clamped; (0.003 + 1) * 127.5 = 127.9


def test_idx_folder(idx):
    content = gzip.decompress((ASSETS / "idx/train-images-idx3-ubyte.gz").read_bytes())
    assert idx.images.numpy().tobytes() == content[16:] and idx.images.shape == (256, 1, 28, 28) and len(idx) == 256
    assert idx.labels.dtype == torch.int64 and idx.labels.bincount().tolist() == [26] * 6 + [25] * 4
    assert idx.class_names == list("0123456789") and idx.num_channels == 1 and idx.image_size == (28, 28)
    batch = idx[[3, 5, 8]]
    assert set(batch) == {"x_0", "labels"} and torch.equal(batch["x_0"], to_x_0(idx.images[[3, 5, 8]]))
    assert idx[5]["x_0"].shape == (1, 28, 28) and idx[5]["labels"] == batch["labels"][1]


def test_idx_splits(tmp_path, idx):
    test = load_image_dataset(IDX, split="test", **GRAY)
    assert len(test) == 128 and test.fingerprint != idx.fingerprint
    both = load_image_dataset(IDX, split="train[:10%]+test[-3:]", **GRAY)
    assert torch.equal(both.images, torch.cat([idx.images[:26], test.images[-3:]]))
    assert torch.equal(both.labels, torch.cat([idx.labels[:26], test.labels[-3:]]))
    for file in Path(IDX).glob("train-*.gz"):  # not packed, as some copies are
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    assert load_image_dataset(str(tmp_path), **GRAY).fingerprint == idx.fingerprint


def test_imagefolder(idx):
    folder = load_image_dataset(IMAGEFOLDER, **GRAY)
    assert (
        folder.class_names == ["Bag", "Sneaker", "Trouser"] and folder.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    assert torch.equal(folder.images[folder.labels == 1], idx.images[idx.labels == 7][:4])


def test_folders_of_splits_without_classes(tmp_path):
    folder = tmp_path / "photos"
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (28, 28), 100).save(folder / name)
    data = load_image_dataset(str(folder), split="train", **GRAY)
    assert len(data) == 2 and data.labels is None and data.class_names is None
    streamed = load_image_dataset(str(folder), split="train", streaming=True, **GRAY)
    assert "labels" not in next(iter(streamed)) and streamed.class_names is None
    for streaming in (False, True):
        with pytest.raises(ValueError, match="label_column='label' holds no labels"):
            load_image_dataset(str(folder), label_column="label", streaming=streaming, **GRAY)


def test_a_stream_reads_no_column_that_it_does_not_use(tmp_path, table):
    broken = table.add_column("mask", [{"bytes": b"no image", "path": None}] * 64, feature=datasets.Image())
    streamed = load_image_dataset(parquet(tmp_path / "broken", broken), image_column="image", streaming=True, **GRAY)
    assert "labels" in next(iter(streamed))


@pytest.mark.parametrize("streaming", [False, True])
def test_minus_one_throughout_is_no_label(tmp_path, table, streaming, caplog):
    unlabelled = table.remove_columns("label").add_column("label", [-1] * 64, feature=table.features["label"])
    folder = parquet(tmp_path / "unlabelled", unlabelled)
    found = load_image_dataset(folder, streaming=streaming, **GRAY)
    assert "labels" not in next(iter(found)) and found.class_names is None
    assert streaming == ("the first row has no label, so none is used" in caplog.text)
    with pytest.raises(ValueError, match="label_column='label' holds no labels"):
        load_image_dataset(folder, label_column="label", streaming=streaming, **GRAY)


def test_a_label_column_of_another_type_is_told(tmp_path, table, caplog):
    labels = [None, *map(float, table["label"][1:])]  # what a blank in a CSV makes of whole numbers
    floats = table.remove_columns("label").add_column("label", labels)
    assert load_image_dataset(parquet(tmp_path / "floats", floats), **GRAY).labels is None
    assert "label_column=None: 'label' holds float64 and is not used" in caplog.text


def test_imagefolder_with_metadata(tmp_path):
    shutil.copytree(Path(IMAGEFOLDER, "Sneaker"), tmp_path / "photos")
    rows = [{"file_name": f"{i}.png", "label": "left" if i % 2 else "right"} for i in range(4)]
    (tmp_path / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    photos = load_image_dataset(str(tmp_path / "photos"), **GRAY)
    assert photos.class_names == ["left", "right"] and photos.labels.tolist() == [1, 0, 1, 0]


def test_images_without_labels(tmp_path):
    shutil.copytree(Path(IMAGEFOLDER, "Bag"), tmp_path / "photos")
    photos = load_image_dataset(str(tmp_path / "photos"), **GRAY)
    assert photos.labels is None and photos.class_names is None and set(photos[[0, 1]]) == {"x_0"}


def test_hub_like_table_in_memory_and_on_access(tmp_path, table, idx, monkeypatch):
    folder = parquet(tmp_path / "table", table)
    in_memory = load_image_dataset(folder, **GRAY)
    monkeypatch.setattr(data, "MAX_BYTES_IN_MEMORY", 64 * 28 * 28 - 1)
    on_access = load_image_dataset(folder, **GRAY)
    assert torch.equal(in_memory.images, idx.images[:64]) and on_access.images is None
    assert in_memory.class_names == on_access.class_names == list("abcdefghij")
    for name, values in in_memory[list(range(64))].items():
        assert torch.equal(values, on_access[list(range(64))][name])
    assert in_memory.fingerprint == on_access.fingerprint


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_cache_key_is_of_every_image(tmp_path, idx, table, monkeypatch, in_memory):
    monkeypatch.setattr(data, "MAX_BYTES_IN_MEMORY", 2**30 if in_memory else 0)
    monkeypatch.setattr(np, "linspace", lambda start, stop, num, dtype: np.zeros(1, dtype))  # as if of a large set
    first = load_image_dataset(parquet(tmp_path / "first", table), **GRAY)
    changed = table.select([0, 2, *range(2, 64)]).remove_columns("label").add_column("label", table["label"])
    changed = changed.cast_column("label", table.features["label"])
    second = load_image_dataset(parquet(tmp_path / "second", changed), **GRAY)
    again = load_image_dataset(str(tmp_path / "first"), **GRAY)
    assert first.fingerprint == second.fingerprint  # it did not look at the image that differs
    assert first.cache_key == again.cache_key != second.cache_key


def test_second_start_decodes_nothing(tmp_path, table, monkeypatch):
    folder = parquet(tmp_path / "table", table)
    first = load_image_dataset(folder, **GRAY)
    monkeypatch.setattr(data, "decode", None)
    assert torch.equal(load_image_dataset(folder, **GRAY).images, first.images)


def test_fingerprint_is_the_same_in_another_process_and_place(tmp_path, idx):
    shutil.copytree(IDX, tmp_path / "elsewhere")
    code = (
        f"from ddpm_hf.data import *; print(load_image_dataset({str(tmp_path / 'elsewhere')!r}, **{GRAY}).fingerprint)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == idx.fingerprint
    changed = data.ImageDataset(idx.images, (idx.labels + 1) % 10)
    assert changed.fingerprint != idx.fingerprint != data.ImageDataset(255 - idx.images, idx.labels).fingerprint


@pytest.mark.parametrize("source", [IDX, IMAGEFOLDER])
def test_channels_and_size(source):
    gray, rgb = load_image_dataset(source, **GRAY), load_image_dataset(source, num_channels=3, image_size=28)
    assert torch.equal(rgb.images, gray.images.expand(-1, 3, -1, -1))
    resized = load_image_dataset(source, num_channels=3, image_size=(32, 16))
    assert resized.images.shape[1:] == (3, 32, 16) and resized.image_size == (32, 16)


def test_resize_covers_then_crops_the_centre():
    stripes = np.zeros((20, 60), np.uint8)
    stripes[:, 20:40] = 200  # the centre third of a wide image is all that a square keeps
    assert (data.decode(PIL.Image.fromarray(stripes), "", (1, 20, 20)) == 200).all()
    assert data.decode(PIL.Image.fromarray(stripes), "", (1, 10, 30)).mean() == pytest.approx(200 / 3, abs=0.5)


def test_columns_named(tmp_path, table):
    folder = parquet(tmp_path / "table", table)
    assert load_image_dataset(folder, label_column="word", **GRAY).class_names[:2] == ["w0", "w1"]
    renamed = table.rename_columns({"image": "photo", "label": "kind"}).add_column("label", [3] * 64)
    other = parquet(tmp_path / "other", renamed.cast_column("photo", datasets.Image()))
    assert load_image_dataset(other, **GRAY).class_names == list("abcdefghij")  # found by type, whatever their names
    assert load_image_dataset(other, label_column="label", **GRAY).labels.tolist() == [3] * 64
    twice = renamed.add_column("kinds", [0] * 64, feature=table.features["label"])
    with pytest.raises(ValueError, match=r"label_column=None: \['kind', 'kinds'\].*name one"):
        load_image_dataset(parquet(tmp_path / "twice", twice), **GRAY)


def samples(steps, total=64, **topology):
    """The (position, index) pairs of each optimizer step, ranks and micro-batches joined in the order of positions."""
    num_ranks, accumulation = topology.get("num_ranks", 1), topology.get("gradient_accumulation_steps", 1)
    batch_size = total // num_ranks // accumulation
    ranks = [iter(SampleOrder(100, batch_size, 7, rank=rank, **topology)) for rank in range(num_ranks)]
    return [sum((next(rank) for _ in range(accumulation) for rank in ranks), []) for _ in range(steps)]


def test_order_shows_every_image_once_per_epoch():
    pairs = sum(samples(25), [])  # 25 * 64 = 16 epochs of 100
    assert [position for position, _ in pairs] == list(range(1600))
    epochs = np.array([index for _, index in pairs]).reshape(16, 100)
    assert (np.sort(epochs, axis=1) == np.arange(100)).all() and len({tuple(epoch) for epoch in epochs.tolist()}) == 16
    assert samples(1)[0] != [(p, i) for p, i in next(iter(SampleOrder(100, 64, 8)))]


def test_order_is_the_same_on_every_topology():
    for num_ranks, accumulation in [(2, 1), (1, 4), (2, 2), (4, 16)]:
        assert samples(10, num_ranks=num_ranks, gradient_accumulation_steps=accumulation) == samples(10)


def test_order_resumes_at_a_step():
    topology = {"num_ranks": 2, "gradient_accumulation_steps": 2}
    assert samples(3, start_step=7, **topology) == samples(10)[7:]
    assert next(iter(SampleOrder(100, 64, 7, start_step=10**12)))[0][0] == 64 * 10**12  # at once: nothing is skipped


def test_loader_with_workers_keeps_the_order(idx):
    order = SampleOrder(len(idx), 32, 0, start_step=5)
    pickled = pickle.loads(pickle.dumps(idx))  # what a worker gets where processes are not forked
    assert pickle.loads(pickle.dumps(collate_batch)) is collate_batch
    loader = torch.utils.data.DataLoader(pickled, batch_sampler=order, collate_fn=collate_batch, num_workers=2)
    for batch, pairs in itertools.islice(zip(loader, order), 5):
        positions, indices = map(list, zip(*pairs))
        assert batch["position"].tolist() == positions and batch["position"].dtype == torch.int64
        assert torch.equal(batch["x_0"], idx[indices]["x_0"]) and torch.equal(batch["labels"], idx.labels[indices])


def test_flips_depend_on_the_position_alone(idx):
    flipping = data.ImageDataset(idx.images, idx.labels)
    flipping.flip_seed = 3
    pairs = [(position, 11) for position in range(2000)]
    x_0, plain = flipping[pairs]["x_0"], idx[11]["x_0"]
    flipped = torch.tensor([torch.equal(x, plain.flip(-1)) for x in x_0])
    assert all(torch.equal(x, plain.flip(-1) if flip else plain) for x, flip in zip(x_0, flipped))
    assert 900 < flipped.sum() < 1100  # 1000 +- 4.5 standard deviations of a fair coin
    pieces = [flipping[pairs[i : i + 50]]["x_0"] for i in range(0, 2000, 50)]
    assert torch.equal(torch.cat(pieces), x_0)
    assert torch.equal(flipping[[11]]["x_0"], idx[[11]]["x_0"])  # without a position: evaluation
    flipping.flip_seed = 4
    assert not torch.equal(flipping[pairs]["x_0"], x_0)


def stream(folder, **shard):
    streamed = load_image_dataset(folder, streaming=True, **GRAY)
    return streamed.shard(**{"seed": 1, "buffer_size": 10, **shard})


@pytest.mark.parametrize(("num_shards", "num_ranks"), [(1, 1), (1, 2), (4, 2)])
def test_stream_shows_every_image_once_per_epoch(tmp_path, table, idx, num_shards, num_ranks):
    folder = parquet(tmp_path / "table", table, num_shards)
    ranks = [stream(folder, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    seen = [list(itertools.islice(rank, 2 * 64 // num_ranks)) for rank in ranks]
    assert sorted(x["position"].item() for rank in seen for x in rank) == list(range(128))
    whole = sorted(x.numpy().tobytes() for x in idx.images[:64])
    for epoch in (slice(None, 64 // num_ranks), slice(64 // num_ranks, None)):
        assert sorted(to_uint8(x["x_0"]).numpy().tobytes() for rank in seen for x in rank[epoch]) == whole
    labels = [
        [x["labels"].item() for x in seen[0][epoch]] for epoch in (slice(None, 32), slice(64 // num_ranks, None))
    ]
    assert labels[0] != labels[1][: len(labels[0])] and labels[0] != idx.labels[:32].tolist()


@pytest.mark.parametrize("num_shards", [1, 4])
def test_stream_resumes_at_the_next_sample(tmp_path, table, num_shards):
    folder = parquet(tmp_path / "table", table, num_shards)
    whole = list(itertools.islice(stream(folder), 150))
    for num_seen in (0, 7, 10, 63, 64, 71, 128):  # in a block, at its end, at the end of an epoch, in the next
        first = stream(folder)
        loader = iter(torch.utils.data.DataLoader(first, batch_size=None))
        list(itertools.islice(loader, num_seen))
        state = json.loads(json.dumps(first.state_dict()))
        resumed = stream(folder)
        resumed.load_state_dict(state)
        for sample, expected in zip(itertools.islice(resumed, 20), whole[num_seen:]):
            assert all(torch.equal(sample[name], expected[name]) for name in expected)


def test_stream_of_an_imagefolder(monkeypatch):
    streamed = stream(IMAGEFOLDER)
    batch = next(iter(torch.utils.data.DataLoader(streamed, batch_size=6)))
    assert batch["x_0"].shape == (6, 1, 28, 28) and streamed.class_names == ["Bag", "Sneaker", "Trouser"]
    flipping, plain = stream(IMAGEFOLDER), stream(IMAGEFOLDER)
    flipping.flip_seed = 3
    for x, y in itertools.islice(zip(flipping, plain), 24):
        assert torch.equal(x["x_0"], y["x_0"].flip(-1) if is_flipped(3, x["position"].item()) else y["x_0"])
    with pytest.raises(ValueError, match="rank 14 of 15 gets no image"):
        next(iter(stream(IMAGEFOLDER, rank=14, num_ranks=15)))
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "in a worker")
    with pytest.raises(ValueError, match="num_workers must be 0"):
        next(iter(streamed))


def test_what_make_data_unpacked_is_found_from_anywhere():
    assert FASHION_MNIST_FOLDERS and all(map(os.path.isabs, FASHION_MNIST_FOLDERS))
    assert str(ROOT / ".data/usr/share/datasets/fashion-mnist") in FASHION_MNIST_FOLDERS


def test_fashion_mnist_without_the_hub(monkeypatch, idx):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens: refused at once
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached.*dataset-fashion-mnist.*FASHION_MNIST_DIR"):
        load_image_dataset(FASHION_MNIST, **GRAY)
    monkeypatch.setenv("FASHION_MNIST_DIR", IDX)
    local = load_image_dataset(FASHION_MNIST, **GRAY)
    assert local.fingerprint == idx.fingerprint and local.class_names == data.FASHION_MNIST_CLASSES
    monkeypatch.delenv("FASHION_MNIST_DIR")
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDERS", ["/nowhere", IDX])
    assert load_image_dataset(FASHION_MNIST, split="test", **GRAY).class_names == data.FASHION_MNIST_CLASSES
    with pytest.raises(FileNotFoundError, match="dataset='ylecun/mnist'.*the Hub cannot be reached"):
        load_image_dataset("ylecun/mnist", **GRAY)
    assert time.perf_counter() - start < 20 and not datasets.config.HF_HUB_OFFLINE  # retries would take 23 s each time


def test_hub_data_set_in_the_cache_works_offline(tmp_path, table, idx):
    """datasets' cache of a Hub id, laid out as a download leaves it: NAMESPACE___NAME/CONFIG/VERSION/HASH."""
    datasets.load_dataset(parquet(tmp_path / "fashion_mnist", table), cache_dir=tmp_path / "built")
    (built,) = (tmp_path / "built").glob("*/*/*/*/dataset_info.json")
    shutil.copytree(built.parent, tmp_path / "cache/zalando-datasets___fashion_mnist/default/0.0.0" / ("a" * 40))
    cached = load_image_dataset(FASHION_MNIST, cache_dir=str(tmp_path / "cache"), **GRAY)
    assert torch.equal(cached.images, idx.images[:64]) and cached.class_names == data.FASHION_MNIST_CLASSES


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


def deep_png(tmp_path):
    PIL.Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    return (tmp_path / "deep.png").read_bytes()


REFUSALS = {
    "no such folder": (
        lambda p: {"dataset": "./nowhere"},
        FileNotFoundError,
        r"dataset='./nowhere': there is no such",
    ),
    "empty folder": (empty, FileNotFoundError, r"dataset='.*empty': no folder with images"),
    "no images": (lambda p: empty(p, ("a.txt", b"words")), ValueError, r"image_column=None: no column .*\['text'\]"),
    "broken image": (lambda p: empty(p, ("a.png", b"\x89PNG")), ValueError, r"image 0 \(.*a.png\) cannot be used"),
    "deep image": (
        lambda p: empty(p, ("a.png", deep_png(p))),
        ValueError,
        r"a.png\) .*mode 'I;16', allowed are 8 bits",
    ),
    "idx split": (lambda p: {"dataset": IDX, "split": "valid"}, ValueError, r"\"valid\".*\['train', 'test'\]"),
    "split": (lambda p: {"split": "test"}, ValueError, r"split='test'.*\['train'\]"),
    "empty split": (lambda p: {"dataset": IDX, "split": "train[:0]"}, ValueError, r"split: it holds no images"),
    "stream split": (lambda p: {"split": "test", "streaming": True}, ValueError, r"split='test'.*\['train'\]"),
    "image column": (lambda p: {"image_column": "nope"}, ValueError, r"image_column='nope'.*\['image', 'label'\]"),
    "label column": (lambda p: {"label_column": "nope"}, ValueError, r"label_column='nope'.*\['image', 'label'\]"),
    "idx column": (lambda p: {"dataset": IDX, "label_column": "nope"}, ValueError, r"label_column='nope'.*'label'"),
    "not images": (lambda p: {"image_column": "label"}, ValueError, r"image_column='label': allowed are \['image'\]"),
    "truncated gz": (
        lambda p: damaged(p, lambda f: truncate(f, True)),
        ValueError,
        r"images-idx3-ubyte.gz is truncated",
    ),
    "truncated idx": (
        lambda p: damaged(p, lambda f: truncate(f, False)),
        ValueError,
        r"images-idx3-ubyte is truncated",
    ),
    "no labels": (lambda p: damaged(p, lambda f: next(f.glob("train-l*")).unlink()), ValueError, r"as many labels"),
    "channels": (lambda p: {"num_channels": 2}, ValueError, r"num_channels=2.*allowed are 1 or 3"),
    "size": (lambda p: {"image_size": (28, 0)}, ValueError, r"image_size=\(28, 0\).*positive"),
    "idx stream": (lambda p: {"dataset": IDX, "streaming": True}, ValueError, r"streaming=True: the IDX files"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path, case):
    arguments, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        load_image_dataset(**{"dataset": IMAGEFOLDER, **GRAY, **arguments(tmp_path)})


def test_unlabelled_images_are_refused(tmp_path, table):
    labels = [-1] * 3 + table["label"][3:]
    partly = table.remove_columns("label").add_column("label", labels, feature=table.features["label"])
    with pytest.raises(ValueError, match=r"label_column='label': 3 of 64 have no label"):
        load_image_dataset(parquet(tmp_path / "partly", partly), **GRAY)
