"""Captions: found, drawn by the sample's key, and embedded once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_hf.data import load_image_dataset

OPTIONS = {"num_channels": 1, "image_size": 8, "conditions": ("captions",)}


@pytest.fixture
def captioned(photos):
    """captioned(captions of the first image, of the second, ...) writes an image folder with them."""

    def write(*captions, column: str = "text") -> str:
        folder = photos(*(f"{i}.png" for i in range(len(captions))))
        rows = [{"file_name": f"{i}.png", column: text} for i, text in enumerate(captions)]
        Path(folder, "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    return write


class Encoder:
    """Stands for a text encoder: a vector for each text, and the texts that it was given."""

    def __init__(self):
        self.seen: list[str] = []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.seen += texts
        return torch.tensor([[len(text), ord(text[0])] for text in texts]) / 3


def test_captions_are_found_by_name_and_type(captioned):
    for column in ("text", "caption", "prompt", "name"):
        data = load_image_dataset(captioned("a cat", "a dog", column=column), **OPTIONS)
        assert data.captions == [["a cat"], ["a dog"]] and data[[1, 0]]["prompt"] == ["a dog", "a cat"]
        assert data.describe() == "2 images of 8 x 8; captions"
    folder = captioned("a cat", "a dog", column="words")
    assert load_image_dataset(folder, caption_column="words", **OPTIONS).captions == [["a cat"], ["a dog"]]
    with pytest.raises(
        ValueError, match=r"caption_column=None: no column suits; the columns are \['image', 'words'\]"
    ):
        load_image_dataset(folder, **OPTIONS)


def test_labels_and_captions_of_one_set(captioned):
    folder = captioned(["a cat", "cat"], ["a dog"])
    options = OPTIONS | {"conditions": ("captions", "class_labels"), "label_column": "kind"}
    metadata = Path(folder, "metadata.jsonl")
    rows = [json.loads(line) | {"kind": kind} for line, kind in zip(metadata.read_text().splitlines(), "xy")]
    metadata.write_text("\n".join(map(json.dumps, rows)))
    batch = load_image_dataset(folder, **options)[[0, 1]]
    assert batch["class_labels"].tolist() == [0, 1] and batch["prompt"] == ["a cat", "a dog"]
    assert "prompt" not in load_image_dataset(folder, num_channels=1, image_size=8, label_column="kind")[[0]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("nothing", [None, "", []])
def test_an_image_without_a_caption_is_refused(captioned, nothing, streaming):
    folder = captioned(["a cat"], [nothing] if nothing is None else nothing or [])
    with pytest.raises(ValueError, match=r"(image|sample) 1 has no caption, or an empty one"):
        list(zip(range(2), load_image_dataset(folder, streaming=streaming, **OPTIONS)))


def test_one_of_several_captions_is_drawn_by_seed_and_position(captioned):
    data = load_image_dataset(captioned(["a", "b", "c"], ["d"]), **OPTIONS)
    pairs = [(position, position % 2) for position in range(3000)]
    drawn = data[pairs]["prompt"]
    assert set(drawn[1::2]) == {"d"}
    counts = np.unique(drawn[::2], return_counts=True)[1]
    assert len(counts) == 3 and (abs(counts - 500) < 5 * (500 * 2 / 3) ** 0.5).all()  # five standard deviations
    pieces = [data[pairs[i : i + 50]]["prompt"] for i in range(0, 3000, 50)]
    assert [text for piece in pieces for text in piece] == drawn  # whatever the batches
    data.seed = 1
    assert data[pairs]["prompt"] != drawn
    assert data[[0, 0, 1]]["prompt"] == ["a", "a", "d"]  # without a position: the first


def test_a_stream_draws_captions_too(captioned):
    streamed = load_image_dataset(captioned(["a", "b", "c"], ["d"]), streaming=True, **OPTIONS)
    drawn = [sample["prompt"] for _, sample in zip(range(60), streamed)]
    assert drawn.count("d") == 30 and set(drawn) == set("abcd")
    batch = next(iter(torch.utils.data.DataLoader(streamed, batch_size=4)))
    assert len(batch["prompt"]) == 4 and all(isinstance(text, str) for text in batch["prompt"])


def test_embeddings_are_computed_once_and_cached(captioned):
    folder, first, second, other = captioned(["cat", "a cat"], ["dog"], ["cat"]), Encoder(), Encoder(), Encoder()
    data = load_image_dataset(folder, **OPTIONS)
    data.embed_captions(first, "encoder 1")
    assert sorted(first.seen) == ["a cat", "cat", "dog"]  # each text once
    batch = data[[(0, 1), (1, 2)]]
    assert batch["prompt_embeds"].dtype == torch.float32 and "prompt" not in batch
    assert torch.equal(batch["prompt_embeds"], first(["dog", "cat"]).half().float())
    again = load_image_dataset(folder, **OPTIONS)
    again.embed_captions(second, "encoder 1")
    assert not second.seen and torch.equal(again[[(0, 1), (1, 2)]]["prompt_embeds"], batch["prompt_embeds"])
    again.embed_captions(other, "encoder 2")
    assert other.seen
