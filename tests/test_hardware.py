"""Threads of a rank on a CPU."""

import os
import platform
from types import SimpleNamespace

import pytest
import torch

from ddpm_hf.hardware import default_precision, describe_hardware, runs_on_cpu, use_own_cores
from ddpm_hf.pipeline_ddpm_image import has_bfloat16


@pytest.mark.parametrize(
    ("device", "num_ranks", "threads"), [("cpu", 1, 6), ("cpu", 4, 1), ("cpu", 8, 1), ("cuda", 1, 2)]
)
def test_ranks_share_the_cores(monkeypatch, device, num_ranks, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_own_cores(SimpleNamespace(device=torch.device(device), num_processes=num_ranks))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "native", "gpu", "expected"),
    [
        (None, True, False, "bf16"),
        (None, False, False, "no"),
        ("bf16", False, False, "no"),
        ("bf16", True, True, "bf16"),
        ("bf16", False, True, "no"),  # a T4 emulates it
        ("fp16", False, False, "fp16"),
        ("no", True, False, "no"),
    ],
)
def test_bfloat16_is_the_default_where_it_is_fast(monkeypatch, asked, native, gpu, expected):
    kind = "cuda" if gpu else "cpu"
    monkeypatch.setattr("ddpm_hf.hardware.has_bfloat16", lambda device: native and device.type == kind)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert default_precision() == expected


@pytest.mark.parametrize(("cores", "words"), [({3}, "1 CPU core"), ({3, 4}, "2 CPU cores")])
def test_hardware_in_words(monkeypatch, cores, words):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    assert describe_hardware(SimpleNamespace(device=torch.device("cpu"), num_processes=1)) == words


def test_a_gpu_that_is_not_cuda_has_its_kind_for_a_name():
    assert describe_hardware(SimpleNamespace(device=torch.device("xpu"), num_processes=2)) == "2 x XPU"


@pytest.mark.parametrize(("kind", "expected"), [("cuda", False), ("xpu", False), ("mps", True)])
def test_a_gpu_without_float64_is_left_alone(monkeypatch, kind, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    assert runs_on_cpu() is expected
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert runs_on_cpu()


def test_a_gpu_is_left_alone_where_the_launch_says_so(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("ddpm_hf.hardware.has_bfloat16", lambda device: device.type == "cuda")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert (runs_on_cpu(), default_precision()) == (False, "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert (runs_on_cpu(), default_precision()) == (True, "no")


def test_a_build_without_onednn_has_no_bfloat16(monkeypatch):
    """As PyTorch's for macOS."""
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert has_bfloat16(torch.device("cpu")) is False
