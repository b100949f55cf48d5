import io
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from tiny import ASSETS

from ddpm_hf.data import idx as idx_module
from ddpm_hf.data import load_image_dataset


@pytest.fixture(autouse=True)
def own_cache(request, monkeypatch, tmp_path):
    """No test asks the Hub, but those of the local one, and each has a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", "remote" not in request.fixturenames)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(idx_module, "FASHION_MNIST_FOLDERS", [])
    monkeypatch.delenv("FASHION_MNIST_DIR", raising=False)


@pytest.fixture
def gray():
    return {"num_channels": 1, "image_size": 28}


@pytest.fixture(scope="session")
def idx(tmp_path_factory):
    """The 256 training images of tests/assets."""
    cache = tmp_path_factory.mktemp("cache")
    return load_image_dataset(str(ASSETS / "idx"), num_channels=1, image_size=28, cache_dir=str(cache))


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def write_parquet():
    """write_parquet(folder, train, num_shards=1, **others) writes the splits as on the Hub, returns the folder's name."""

    def write(folder: Path, train: datasets.Dataset, num_shards: int = 1, **others) -> str:
        folder.mkdir()
        for split, table in {"train": train, **others}.items():
            for i in range(num_shards):
                shard = table.shard(num_shards, i, contiguous=True)
                shard.to_parquet(folder / f"{split}-{i:05d}-of-{num_shards:05d}.parquet")
        return str(folder)

    return write


@pytest.fixture
def photos(tmp_path):
    """photos("cats/a.png", "b.png", ...) writes small images of distinct greys below a folder, returns its name."""
    folder = tmp_path / "photos"

    def write(*names: str, **options) -> str:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), 10 + 4 * len(list(folder.rglob("*.*"))) % 240, np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name, **options)
        return str(folder)

    return write
