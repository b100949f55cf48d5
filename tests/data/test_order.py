"""The order of training: every image once an epoch, the same on every topology and after a resume; flips and captions by position."""

import itertools
import pickle

import numpy as np
import torch

from ddpm_hf.data import ImageDataset, SampleOrder, collate_batch
from ddpm_hf.images import to_x_0


def samples(steps, total=64, **topology):
    """The (position, index) pairs of each optimizer step, ranks and micro-batches joined in the order of positions."""
    num_ranks, accumulation = topology.get("num_ranks", 1), topology.get("gradient_accumulation_steps", 1)
    batch_size = total // num_ranks // accumulation
    ranks = [iter(SampleOrder(100, batch_size, 7, rank=rank, **topology)) for rank in range(num_ranks)]
    return [[pair for _ in range(accumulation) for rank in ranks for pair in next(rank)] for _ in range(steps)]


def test_order_shows_every_image_once_per_epoch():
    pairs = [pair for step in samples(25) for pair in step]  # 25 * 64 = 16 epochs of 100
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
        assert torch.equal(batch["x_0"], idx[indices]["x_0"]) and torch.equal(
            batch["class_labels"], idx.labels[indices]
        )


def test_flips_depend_on_the_position_alone(idx):
    flipping = ImageDataset(idx.images, idx.labels)
    flipping.seed, flipping.random_flip = 3, True
    pairs = [(position, 11) for position in range(2000)]
    x_0, plain = flipping[pairs]["x_0"], idx[11]["x_0"]
    flipped = torch.tensor([torch.equal(x, plain.flip(-1)) for x in x_0])
    assert all(torch.equal(x, plain.flip(-1) if flip else plain) for x, flip in zip(x_0, flipped))
    assert 900 < flipped.sum() < 1100  # 1000 +- 4.5 standard deviations of a fair coin
    pieces = [flipping[pairs[i : i + 50]]["x_0"] for i in range(0, 2000, 50)]
    assert torch.equal(torch.cat(pieces), x_0)
    assert torch.equal(flipping[[11]]["x_0"], idx[[11]]["x_0"])  # without a position: evaluation
    flipping.as_uint8 = True
    stored = flipping[pairs]["x_0"]
    assert stored.dtype == torch.uint8 and torch.equal(to_x_0(stored), x_0)
    flipping.seed = 4
    assert not torch.equal(flipping[pairs]["x_0"], stored)
