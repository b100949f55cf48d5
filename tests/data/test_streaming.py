"""Streams: every image once an epoch on any number of ranks, resumed at the next sample."""

import itertools
import json

import datasets
import pytest
import torch
from tiny import ASSETS

from ddpm_hf.data import load_image_dataset
from ddpm_hf.images import to_uint8
from ddpm_hf.keys import is_flipped

IMAGEFOLDER = str(ASSETS / "imagefolder")
GRAY = {"num_channels": 1, "image_size": 28}


def stream(folder, **shard):
    streamed = load_image_dataset(folder, streaming=True, **GRAY)
    return streamed.shard(**{"seed": 1, "buffer_size": 10, **shard})


@pytest.mark.parametrize(("num_shards", "num_ranks"), [(1, 1), (1, 2), (4, 2)])
def test_stream_shows_every_image_once_per_epoch(tmp_path, write_parquet, table, idx, num_shards, num_ranks):
    folder = write_parquet(tmp_path / "table", table, num_shards)
    ranks = [stream(folder, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    seen = [list(itertools.islice(rank, 2 * 64 // num_ranks)) for rank in ranks]
    assert sorted(x["position"].item() for rank in seen for x in rank) == list(range(128))
    whole = sorted(x.numpy().tobytes() for x in idx.images[:64])
    for epoch in (slice(None, 64 // num_ranks), slice(64 // num_ranks, None)):
        assert sorted(to_uint8(x["x_0"]).numpy().tobytes() for rank in seen for x in rank[epoch]) == whole
    labels = [
        [x["class_labels"].item() for x in seen[0][epoch]] for epoch in (slice(None, 32), slice(64 // num_ranks, None))
    ]
    assert labels[0] != labels[1][: len(labels[0])] and labels[0] != idx.labels[:32].tolist()


@pytest.mark.parametrize("num_shards", [1, 4])
def test_stream_resumes_at_the_next_sample(tmp_path, write_parquet, table, num_shards):
    folder = write_parquet(tmp_path / "table", table, num_shards)
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
    flipping.random_flip = True
    for x, y in itertools.islice(zip(flipping, plain), 24):
        assert torch.equal(x["x_0"], y["x_0"].flip(-1) if is_flipped(1, x["position"][None].numpy()) else y["x_0"])
    with pytest.raises(ValueError, match="rank 14 of 15 gets no image"):
        next(iter(stream(IMAGEFOLDER, rank=14, num_ranks=15)))
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "in a worker")
    with pytest.raises(ValueError, match="num_workers must be 0"):
        next(iter(streamed))


def test_a_stream_reads_no_column_that_it_does_not_use(tmp_path, write_parquet, table):
    broken = table.add_column("mask", [{"bytes": b"no image", "path": None}] * 64, feature=datasets.Image())
    streamed = load_image_dataset(
        write_parquet(tmp_path / "broken", broken), image_column="image", streaming=True, **GRAY
    )
    assert "class_labels" in next(iter(streamed))


def test_a_stream_of_a_folder_holds_out_what_is_held_out_of_the_folder(photos):
    folder = photos(*(f"{i:02}.png" for i in range(20)))
    kinds = [
        [to_uint8(x["x_0"]).numpy().tobytes() for x in itertools.islice(load_image_dataset(folder, **options), 18)]
        for options in (GRAY | {"streaming": True}, GRAY)
    ]
    assert sorted(kinds[0]) == sorted(kinds[1])
    assert "every tenth image is held out (2)" in load_image_dataset(folder, streaming=True, **GRAY).describe()


def test_a_stream_without_a_test_split_has_no_held_out_images(tmp_path, write_parquet, table):
    with pytest.raises(ValueError, match=r"split='test'.*nothing can be held out"):
        load_image_dataset(write_parquet(tmp_path / "table", table), streaming=True, split="test", **GRAY)


def test_a_stream_skips_and_counts_what_cannot_be_decoded(tmp_path, write_parquet, table):
    broken = table.cast_column("image", datasets.Image(decode=False)).map(
        lambda row, i: {"image": {"bytes": b"broken", "path": None} if i % 4 == 0 else row["image"]}, with_indices=True
    )
    folder = write_parquet(tmp_path / "table", broken.cast_column("image", datasets.Image()))
    skipping = load_image_dataset(folder, streaming=True, skip_undecodable=True, **GRAY)
    labels = [sample["class_labels"].item() for sample in itertools.islice(skipping, 48)]
    assert sorted(labels) == sorted(label for i, label in enumerate(table["label"]) if i % 4) and skipping.num_skipped
    with pytest.raises(ValueError, match=r"sample .* cannot be used"):
        list(itertools.islice(load_image_dataset(folder, streaming=True, **GRAY), 48))
    nothing = broken.select(range(0, 64, 4)).cast_column("image", datasets.Image())
    nothing = load_image_dataset(
        write_parquet(tmp_path / "nothing", nothing), streaming=True, skip_undecodable=True, **GRAY
    )
    with pytest.raises(ValueError, match="rank 0 of 1 gets no image"):
        next(iter(nothing))


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_label_without_a_class_is_refused_in_a_stream(tmp_path, write_parquet, table, label):
    labels = [3, label, *table["label"][2:]]
    feature = datasets.ClassLabel(num_classes=11)  # so that 10 can be written
    odd = table.remove_columns("label").add_column("label", labels, feature=feature)
    streamed = load_image_dataset(write_parquet(tmp_path / "odd", odd), streaming=True, **GRAY)
    streamed.class_names = streamed.class_names[:10]
    with pytest.raises(ValueError, match=f"has the label {label}; allowed are 0 to 9"):
        list(itertools.islice(streamed, 64))
