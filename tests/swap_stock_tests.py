"""diffusers' own tests of its schedulers, U-Net and DDPM pipeline, run with this project's parts in their place.

    git clone --branch v0.42.1 https://github.com/huggingface/diffusers CHECKOUT
    python tests/swap_stock_tests.py CHECKOUT            # ours
    python tests/swap_stock_tests.py CHECKOUT --stock    # diffusers' own classes: the line to compare with

Further arguments go to pytest. Left out are the NCSN++ classes: skip blocks and the Fourier embedding are another paper's. What needs the
Hub, scipy or torchsde is skipped where they are missing (one test of LMSDiscreteScheduler fails without scipy, on both sides). The tests run on the checkout's own diffusers. `test_stock_tests.py` runs those
that meet our parts, where $DIFFUSERS_CHECKOUT names a checkout.
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
NOT_OURS = "not NCSNpp"
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


class SkipWhatIsMissing:
    """A pytest plugin: a missing library or Hub skips a test and fails none."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report, error = (yield), call.excinfo and call.excinfo.value
        is_missing = isinstance(error, ImportError) and ("scipy" in str(error) or "torchsde" in str(error))
        if report.failed and (is_missing or isinstance(error, OSError)):
            report.outcome, reason = "skipped", " ".join(str(error).split())[:80]
            report.longrepr = (str(item.path), 0, f"{type(error).__name__}: {reason}")
        return report


def main(checkout: str, *options: str) -> int:
    checkout = Path(checkout).resolve()
    if missing := [test for test in TESTS if not (checkout / test).exists()]:
        raise SystemExit(f"CHECKOUT={checkout}: no checkout of diffusers, it lacks {missing}.")
    plugins = [SkipWhatIsMissing(), *([] if "--stock" in options else [SwapParts()])]
    options = [option for option in options if option != "--stock"]
    sys.path[:0] = [str(checkout / "src"), str(Path(__file__).resolve().parents[1])]
    os.chdir(checkout)
    return pytest.main(["-q", "--tb=short", "-W", "ignore", "-k", NOT_OURS, *TESTS, *options], plugins)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
