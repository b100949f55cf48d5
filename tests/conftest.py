# ruff: noqa: F401
import os
from pathlib import Path

from hub_server import use_local_hub


def use_own_cores():
    """Give this worker of pytest-xdist, and all that it starts, its part of the cores: threads of two would wait for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
        number, count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])


use_own_cores()  # before anything imports torch
use_local_hub()  # before anything imports huggingface_hub

import pytest
import torch
from hub_fixtures import no_waiting, remote, saved, saved_once
from training_fixtures import text_parts, tiny_preset

from ddpm_hf.hardware import num_cores


def pytest_configure(config):
    """Keep the suite on the CPU where there is a GPU, too; `pytest -m cuda` is for that."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return num_cores()  # those that we may use, where xdist counts the machine's


def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def generator():
    """A fresh CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
