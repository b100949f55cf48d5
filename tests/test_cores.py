"""Threads of a rank on a CPU."""

import os
from types import SimpleNamespace

import pytest
import torch

from ddpm_hf.cores import use_all_cores


@pytest.mark.parametrize("device, num_ranks, threads", [("cpu", 1, 6), ("cpu", 4, 1), ("cpu", 8, 1), ("cuda", 1, 2)])
def test_ranks_share_the_cores(monkeypatch, device, num_ranks, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_all_cores(SimpleNamespace(device=torch.device(device), num_processes=num_ranks))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
