"""diffusers' own tests pass with this project's parts in their place: those of its suite that meet them (`swap_stock_tests`)."""

import os
import subprocess
import sys

import pytest
from swap_stock_tests import NOT_OURS
from tiny import ROOT

CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT")


@pytest.mark.skipif(not CHECKOUT, reason="$DIFFUSERS_CHECKOUT names no checkout of diffusers")
def test_stock_tests_pass_with_our_parts():
    """Of the schedulers' tests ours, and those that make one scheduler from another's config; all of the U-Net and the pipeline."""
    ours = f"{NOT_OURS} and (ddpm or unet_2d or compatibles or SchedulerBaseTests)"
    command = [
        sys.executable,
        str(ROOT / "tests" / "swap_stock_tests.py"),
        CHECKOUT,
        "-k",
        ours,
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
