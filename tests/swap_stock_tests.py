"""diffusers' own tests of its DDPM parts, run with this project's parts in their place. Not part of the suite: it needs a checkout.

    git clone https://github.com/huggingface/diffusers CHECKOUT
    python tests/swap_stock_tests.py CHECKOUT            # ours
    python tests/swap_stock_tests.py CHECKOUT --stock    # diffusers' own classes: the line to compare with

Further arguments go to pytest. Left out are the NCSN++ classes: skip blocks and the Fourier embedding are another paper's. What needs the
Hub fails on both sides where there is no network, and some schedulers want scipy and torchsde. The tests run on the checkout's own diffusers.
"""

import os
import sys
from pathlib import Path

import pytest

TESTS = (
    "tests/schedulers",
    "tests/models/unets/test_models_unet_2d.py",
    "tests/pipelines/ddpm/test_ddpm.py",
)
SWAPS = {
    "UNet2DModel": "DDPMUNet2DModel",
    "DDPMScheduler": "DDPMNoiseScheduler",
    "DDPMPipeline": "DDPMImagePipeline",
}


class SwapParts:
    """A pytest plugin: `from diffusers import UNet2DModel` in a test module then gives ours."""

    def pytest_sessionstart(self):
        import diffusers

        import ddpm_hf

        for stock, ours in SWAPS.items():
            setattr(diffusers, stock, getattr(ddpm_hf, ours))


def main(checkout: str, *options: str) -> int:
    checkout = Path(checkout).resolve()
    if missing := [test for test in TESTS if not (checkout / test).exists()]:
        raise SystemExit(f"CHECKOUT={checkout}: no checkout of diffusers, it lacks {missing}.")
    plugins = [] if "--stock" in options else [SwapParts()]
    options = [option for option in options if option != "--stock"]
    sys.path[:0] = [str(checkout / "src"), str(Path(__file__).resolve().parents[1])]
    os.chdir(checkout)
    return pytest.main(["-q", "--tb=short", "-W", "ignore", "-k", "not NCSNpp", *TESTS, *options], plugins)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
