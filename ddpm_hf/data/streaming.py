"""A data set that is never all on this machine: its images, one at a time, in an order that can be resumed."""

import itertools

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from ..images import to_x_0
from ..keys import is_flipped
from .images import decode


class StreamedImages(torch.utils.data.IterableDataset):
    """Images that are never all on this machine: yields, without end, what an `ImageDataset` yields for one sample.

    Call `shard` before the first sample. Shuffling is by shard and, within `buffer_size` undecoded samples, by
    (seed, epoch, block of the stream); "position" is unique over ranks. The position in the stream is `state_dict()`,
    one per rank: `load_state_dict` goes on with the very next sample. Read it with a DataLoader of `num_workers=0`.
    """

    def __init__(self, stream, image_column, label_column, shape, class_names, fingerprint):
        self.stream, self.image_column, self.label_column, self.shape = stream, image_column, label_column, shape
        self.num_channels, self.image_size, self.class_names = shape[0], shape[1:], class_names
        self.fingerprint, self.flip_seed, self.seed = fingerprint, None, 0
        self.rank, self.num_ranks, self.buffer_size = 0, 1, 1024
        self.load_state_dict({"epoch": 0, "block": 0, "offset": 0, "num_samples": 0, "stream": None})

    def shard(self, seed: int, rank: int = 0, num_ranks: int = 1, buffer_size: int = 1024) -> "StreamedImages":
        """Keep one rank's part of the stream, shuffled by `seed`; returns self."""
        # A buffer of one: datasets shuffles the shards, and its position stays exact (it forgets a larger buffer).
        stream = self.stream.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        self.stream = split_dataset_by_node(stream, rank, num_ranks)
        self.seed, self.rank, self.num_ranks, self.buffer_size = seed, rank, num_ranks, buffer_size
        return self

    def state_dict(self) -> dict:
        """Where the next sample is; plain numbers, lists and dicts."""
        return dict(self._state)

    def load_state_dict(self, state: dict):
        """Go on where `state`, from `state_dict`, was taken."""
        self._state = dict(state)

    def __iter__(self):
        if torch.utils.data.get_worker_info() is not None:
            raise ValueError("num_workers must be 0 for a streamed data set: its position is kept in the main process")
        state = self._state
        while True:
            self.stream.set_epoch(state["epoch"])
            self.stream.load_state_dict(state["stream"])
            rows = iter(self.stream)
            while block := list(itertools.islice(rows, self.buffer_size)):
                order = np.random.default_rng([self.seed, state["epoch"], state["block"]]).permutation(len(block))
                after_block = self.stream.state_dict()
                while state["offset"] < len(block):
                    position = state["num_samples"] * self.num_ranks + self.rank
                    row = block[order[state["offset"]]]
                    state.update(offset=state["offset"] + 1, num_samples=state["num_samples"] + 1)
                    yield self._sample(row, position)
                state.update(block=state["block"] + 1, offset=0, stream=after_block)
            if state["block"] == 0:
                raise ValueError(f"rank {self.rank} of {self.num_ranks} gets no image of the streamed data set")
            state.update(epoch=state["epoch"] + 1, block=0, stream=None)

    def _sample(self, row: dict, position: int) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(decode(row[self.image_column], f"sample {position}", self.shape))
        pixels = pixels.flip(-1) if is_flipped(self.flip_seed, position) else pixels
        sample = {"x_0": to_x_0(pixels), "position": torch.tensor(position)}
        if self.label_column is not None:
            sample["class_labels"] = torch.tensor(row[self.label_column])
        return sample
