"""A data set that is never all on this machine: its images, one at a time, in an order that can be resumed."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from ..images import to_x_0
from ..keys import caption_index, is_flipped
from .conditions import make_condition
from .images import Fields, as_captions, decode, describe

logger = logging.getLogger(__name__)


class StreamedImages(torch.utils.data.IterableDataset):
    """Images that are never all on this machine: yields, without end, what an `ImageDataset` yields for one sample.

    Call `shard` before the first sample. Shuffling is by shard and, within `buffer_size` undecoded samples, by
    (seed, epoch, block of the stream); "position" is unique over ranks. The position in the stream is `state_dict()`,
    one per rank: `load_state_dict` goes on with the very next sample. Read it with a DataLoader of `num_workers=0`.
    `num_skipped` counts the images that this process could not decode, where `skip_undecodable` leaves them out.
    `fingerprint` is of the arguments that chose the images; it sees none of them.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        fields: Fields,
        fingerprint: str,
        skip_undecodable: bool = False,
        notes: list[str] | None = None,
    ):
        self.stream, self.fields, self.class_names = stream, fields, fields.class_names
        self.num_channels, self.image_size = fields.shape[0], fields.shape[1:]
        self.fingerprint, self.skip_undecodable, self.notes = fingerprint, skip_undecodable, notes or []
        self.num_skipped, self.seed, self.random_flip = 0, 0, False
        self.image_condition: str | None = None
        self.rank, self.num_ranks, self.buffer_size = 0, 1, 1024
        self.load_state_dict({"epoch": 0, "block": 0, "offset": 0, "num_samples": 0, "stream": None})

    def describe(self) -> str:
        """One line: the size of the images, which classes, what is held out, what was skipped."""
        height, width = self.image_size
        what = f"a stream of images of {height} x {width}"
        return describe(what, self.class_names, self.fields.caption is not None, self.notes)

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

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state`, from `state_dict`, was taken."""
        self._state = dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if torch.utils.data.get_worker_info() is not None:
            raise ValueError("num_workers must be 0 for a streamed data set: its position is kept in the main process")
        state, num_yielded = self._state, 0
        whole_epoch = state["block"] == state["offset"] == 0
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
                    if (sample := self._sample(row, position)) is not None:
                        num_yielded += 1
                        yield sample
                state.update(block=state["block"] + 1, offset=0, stream=after_block)
            if whole_epoch and num_yielded == 0:
                raise ValueError(f"rank {self.rank} of {self.num_ranks} gets no image of the streamed data set")
            whole_epoch = True
            state.update(epoch=state["epoch"] + 1, block=0, stream=None)

    def _sample(self, row: dict, position: int) -> dict[str, Any] | None:
        fields, name = self.fields, f"sample {position}"
        try:
            columns = [column for column in (fields.image, fields.condition) if column]
            images = [torch.from_numpy(decode(row[column], name, fields.shape)) for column in columns]
        except ValueError as error:
            if not self.skip_undecodable:
                raise
            self.num_skipped += 1
            logger.warning(f"{error}; {self.num_skipped} skipped so far")
            return None
        is_turned = self.random_flip and is_flipped(self.seed, np.array([position]))[0]
        x_0, *others = (to_x_0(pixels.flip(-1) if is_turned else pixels)[None] for pixels in images)
        sample: dict = {"x_0": x_0[0], "position": torch.tensor(position)}
        if self.image_condition is not None:
            sample["condition_image"] = make_condition(x_0, self.image_condition, self.seed, [position], *others)[0]
        if fields.label is not None:
            label = row[fields.label]
            if label is None or not 0 <= label < len(self.class_names):
                raise ValueError(f"{name} has the label {label}; allowed are 0 to {len(self.class_names) - 1}")
            sample["class_labels"] = torch.tensor(label)
        if fields.caption is not None:
            captions = as_captions(row[fields.caption], name)
            sample["prompt"] = captions[caption_index(self.seed, np.array([position]), len(captions))[0]]
        return sample
