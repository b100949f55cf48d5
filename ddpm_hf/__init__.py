"""DDPM (Ho et al. 2020) from scratch, as first-class Hugging Face parts."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modeling_ddpm_unet import DDPMUNet2DModel
    from .pipeline_ddpm_image import DDPMImagePipeline
    from .scheduling_ddpm_noise import DDPMNoiseScheduler

__version__ = "0.1.0"
__all__ = ["DDPMImagePipeline", "DDPMNoiseScheduler", "DDPMUNet2DModel"]

_FILES = {
    "DDPMImagePipeline": "pipeline_ddpm_image",
    "DDPMNoiseScheduler": "scheduling_ddpm_noise",
    "DDPMUNet2DModel": "modeling_ddpm_unet",
}


def __getattr__(name: str) -> Any:
    """A part, imported when it is first used: options are read, and `--help` answers, before torch is imported."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for (
        file
    ) in _FILES.values():  # a saved model names its parts by their files, which AutoModel looks for in sys.modules
        sys.modules[file] = import_module(f".{file}", __name__)
    return getattr(sys.modules[_FILES[name]], name)
