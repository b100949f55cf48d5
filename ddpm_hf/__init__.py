"""DDPM (Ho et al. 2020) from scratch, as first-class Hugging Face parts."""

import sys

from . import modeling_ddpm_unet, pipeline_ddpm_image, scheduling_ddpm_noise
from .modeling_ddpm_unet import DDPMUNet2DModel
from .pipeline_ddpm_image import DDPMImagePipeline
from .scheduling_ddpm_noise import DDPMNoiseScheduler

__version__ = "0.1.0"
__all__ = ["DDPMImagePipeline", "DDPMNoiseScheduler", "DDPMUNet2DModel"]

# Saved under either name, loaded as ours: the classes agree in config and weights.
DDPMImagePipeline.component_classes = {
    "DDPMUNet2DModel": DDPMUNet2DModel,
    "UNet2DModel": DDPMUNet2DModel,
    "DDPMNoiseScheduler": DDPMNoiseScheduler,
    "DDPMScheduler": DDPMNoiseScheduler,
}

# A saved model names its parts by their files, which diffusers' AutoModel looks for among the imported modules.
sys.modules.update(
    {
        part.__name__.removeprefix("ddpm_hf."): part
        for part in (modeling_ddpm_unet, pipeline_ddpm_image, scheduling_ddpm_noise)
    }
)
