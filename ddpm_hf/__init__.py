"""DDPM (Ho et al. 2020) from scratch, as first-class Hugging Face parts."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from .lazy import lazy_names

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


__getattr__ = lazy_names(__name__, _FILES)

# A saved model names its parts by their files, which diffusers' AutoModel looks for in sys.modules.
for _file in _FILES.values():
    sys.modules[_file] = ModuleType(_file)
    vars(sys.modules[_file])["__getattr__"] = __getattr__
