"""The order in which training sees the images of a data set, and which of them it sees mirrored.

The sample at position p of a run is the same image, flipped or not, on any number of ranks, any batch split and after any resume.
"""

import itertools
from collections.abc import Iterator

import torch

from ..keys import epoch_order


class SampleOrder(torch.utils.data.Sampler):
    """Batch sampler without end: a list of `batch_size` (position, index) pairs for each micro-batch of one rank.

    Position p is place p % num_images of epoch p // num_images. Optimizer step s owns the `total` positions from
    s * total, total = batch_size * num_ranks * gradient_accumulation_steps: micro-batch 0 of every rank, then 1...
    Every split of a total sees the same samples in a step; `start_step` resumes without skipping or decoding anything.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        gradient_accumulation_steps: int = 1,
        start_step: int = 0,
    ):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.num_ranks = rank, num_ranks
        self.first_micro_batch = start_step * gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for micro_batch in itertools.count(self.first_micro_batch):
            start = (micro_batch * self.num_ranks + self.rank) * self.batch_size
            places = [divmod(position, self.num_images) for position in range(start, start + self.batch_size)]
            indices = (int(epoch_order(self.num_images, self.seed, epoch)[place]) for epoch, place in places)
            yield list(enumerate(indices, start))
