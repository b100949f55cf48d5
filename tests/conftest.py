# ruff: noqa: E402, F401
from pathlib import Path

from hub_server import use_local_hub

use_local_hub()  # before anything imports huggingface_hub

import pytest
import torch
from hub_fixtures import no_waiting, remote, saved, saved_once

DATA = Path(__file__).parent / "data"
TINY_UNET = dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def generator():
    """A fresh CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
