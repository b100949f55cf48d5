"""The order in which training sees the images of a data set, and which of them it sees mirrored.

The sample at position p of a run is the same image, flipped or not, on any number of ranks, any batch split and after any resume.
"""

import functools
import hashlib
import itertools

import numpy as np
import torch


def is_flipped(seed: int | None, position: int) -> bool:
    """A fair coin that depends on nothing but (seed, position); never heads for the seed None."""
    return seed is not None and hashlib.blake2b(f"flip {seed} {position}".encode(), digest_size=1).digest()[0] % 2 == 1


@functools.lru_cache(maxsize=2)  # batches straddle two epochs
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(num_images) in which epoch `epoch` sees the images; int64 (num_images,)."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(int(mixed))).numpy()


class SampleOrder(torch.utils.data.Sampler):
    """Batch sampler without end: a list of `batch_size` (position, index) pairs for each micro-batch of one rank.

    Position p is place p % num_images of epoch p // num_images. Optimizer step s owns the `total` positions from
    s * total, total = batch_size * num_ranks * gradient_accumulation_steps: micro-batch 0 of every rank, then 1...
    Every split of a total sees the same samples in a step; `start_step` resumes without skipping or decoding anything.
    """

    def __init__(
        self, num_images, batch_size, seed, *, rank=0, num_ranks=1, gradient_accumulation_steps=1, start_step=0
    ):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.num_ranks = rank, num_ranks
        self.first_micro_batch = start_step * gradient_accumulation_steps

    def __iter__(self):
        for micro_batch in itertools.count(self.first_micro_batch):
            start = (micro_batch * self.num_ranks + self.rank) * self.batch_size
            places = [divmod(position, self.num_images) for position in range(start, start + self.batch_size)]
            indices = (int(epoch_order(self.num_images, self.seed, epoch)[place]) for epoch, place in places)
            yield list(enumerate(indices, start))
