"""Condition images: what is known of an image, made by its key, or a second image."""

from pathlib import Path

import datasets
import pytest
import torch

from ddpm_hf.data import load_image_dataset
from ddpm_hf.data.conditions import make_condition
from ddpm_hf.images import to_uint8

X_0 = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
KEYS = list(range(40))


def test_a_masked_image_is_known_where_its_last_channel_says_so():
    *_, known = torch.tensor_split(given := make_condition(X_0, "masked", 0, KEYS), 4, dim=1)
    assert given.shape == (40, 4, 8, 8) and set(known.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(given[:, :3], X_0 * known)
    shares = known.mean((1, 2, 3))
    assert shares.min() < 0.2 and shares.max() > 0.8
    halves = make_condition(torch.zeros(2000, 1, 8, 8), "masked", 0, list(range(2000)))[:, 1].unique(dim=0)
    assert any(torch.equal(half, torch.tensor([[1.0] * 4 + [0.0] * 4] * 8)) for half in halves)


def test_a_lower_resolution_is_block_means_of_two_or_four_pixels():
    given = make_condition(X_0, "lower_resolution", 0, KEYS)
    assert (given[:, 3] == 1).all()
    sizes = set()
    for image, blocks in zip(X_0, given[:, :3]):
        block = 4 if torch.equal(blocks[:, :4, :4], blocks[:, :1, :1].expand(3, 4, 4)) else 2
        means = image.view(3, 8 // block, block, 8 // block, block).mean((2, 4))
        assert torch.allclose(blocks, means.repeat_interleave(block, 1).repeat_interleave(block, 2), atol=1e-6)
        sizes.add(block)
    assert sizes == {2, 4}


def test_a_grey_image_is_the_mean_of_the_channels():
    given = make_condition(X_0, "grey", 0, KEYS)
    assert torch.allclose(given[:, :3], X_0.mean(1, keepdim=True).expand_as(X_0)) and (given[:, 3] == 1).all()


@pytest.mark.parametrize("kind", ["masked", "lower_resolution"])
def test_a_condition_depends_on_its_key_alone(kind):
    together = make_condition(X_0[:1].repeat(40, 1, 1, 1), kind, 0, KEYS)
    for i in (0, 7, 39):
        assert torch.equal(make_condition(X_0[:1], kind, 0, [i])[0], together[i])
    assert len(together.unique(dim=0)) == 2 if kind == "lower_resolution" else len(together.unique(dim=0)) > 35
    assert not torch.equal(make_condition(X_0[:1].repeat(40, 1, 1, 1), kind, 1, KEYS), together)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_condition_is_made_of_the_flipped_image(photos, streaming):
    folder, options = photos("a.png", "b.png"), {"num_channels": 1, "image_size": 8, "streaming": streaming}
    data = load_image_dataset(folder, image_condition="masked", **options)
    data.random_flip = True
    pairs = [(position, position % 2) for position in range(16)]
    samples = [sample for sample, _ in zip(data.shard(0), pairs)] if streaming else [data[[pair]] for pair in pairs]
    for sample in samples:
        x_0, given = (sample[name].view(-1, 8, 8) for name in ("x_0", "condition_image"))
        assert torch.equal(given[:1], x_0 * given[1:])


@pytest.fixture
def pairs(photos):
    """Four images, each with a second one, 16 grey levels above it; the second of the last is none."""
    folder = Path(photos(*(f"{kind}{i}.png" for kind in "ab" for i in range(4))))
    (folder / "b3.png").write_text("none")
    images = [{"bytes": (folder / f"{kind}{i}.png").read_bytes(), "path": None} for i in range(4) for kind in "ab"]
    features = datasets.Features(photo=datasets.Image(), sketch=datasets.Image())
    columns = {"photo": images[::2], "sketch": images[1::2]}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(folder.parent / "pairs" / "train.parquet")
    return str(folder.parent / "pairs")


OPTIONS = {"num_channels": 1, "image_size": 8, "conditions": ()}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_second_image(pairs, streaming, in_memory, monkeypatch):
    if not in_memory:
        monkeypatch.setattr("ddpm_hf.data.images.MAX_BYTES_IN_MEMORY", 0)
    options = OPTIONS | {"image_column": "photo", "skip_undecodable": True, "streaming": streaming}
    data = load_image_dataset(pairs, image_condition="sketch", **options)
    samples = [sample for sample, _ in zip(data.shard(0), range(3))] if streaming else [data[i] for i in range(3)]
    found = {int(to_uint8(sample["x_0"])[0, 0, 0]): to_uint8(sample["condition_image"])[:, 0, 0] for sample in samples}
    assert {level: int(given[0]) for level, given in found.items()} == {10: 26, 14: 30, 18: 34}
    assert all(given[1] == 255 for given in found.values())  # known everywhere
    if not streaming:
        assert len(data) == 3 and "skipped 1 images that cannot be decoded: image 3" in data.describe()
        plain = load_image_dataset(pairs, **options)
        assert "condition_image" not in plain[0] and plain.fingerprint != data.fingerprint


def test_a_condition_that_is_no_kind_and_no_column_of_images_is_refused(pairs):
    kinds = r"image_condition='gray': allowed are lower_resolution, grey, masked or \['photo', 'sketch'\]"
    with pytest.raises(ValueError, match=kinds):
        load_image_dataset(pairs, image_column="photo", image_condition="gray", **OPTIONS)
