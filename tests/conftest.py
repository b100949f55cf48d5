# ruff: noqa: E402, F401
from pathlib import Path

from hub_server import use_local_hub

use_local_hub()  # before anything imports huggingface_hub

import pytest
import torch
from hub_fixtures import no_waiting, remote, saved, saved_once
from tiny import TINY_UNET

DATA = Path(__file__).parent / "data"


def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def generator():
    """A fresh CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
