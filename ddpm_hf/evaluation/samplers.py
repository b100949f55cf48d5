"""Samplers by name, for any trained model."""

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch, which no --help has to wait for
    from ..pipeline_ddpm_image import DDPMImagePipeline

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> class of the scheduler, its words to the pipeline
    "own": ("", {}),  # the model's
    "ddpm": ("DDPMNoiseScheduler", {}),
    "ddim": ("DDPMNoiseScheduler", {"eta": 0.0}),
    "sde-dpmsolver++": ("DDPMNoiseScheduler", {"eta": 1.0, "solver_order": 2}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),  # arXiv:2211.01095
    "unipc": ("UniPCMultistepScheduler", {}),  # arXiv:2302.04867
}


def with_sampler(pipeline: "DDPMImagePipeline", name: str) -> "DDPMImagePipeline":
    """A copy of the pipeline with this sampler's scheduler; the model's number of steps and guidance stay its defaults."""
    if name == "own":
        return pipeline
    pipeline = copy.copy(pipeline)
    pipeline.scheduler = pipeline.find_class(SAMPLERS[name][0]).from_config(pipeline.scheduler.config)
    rule = ("timesteps", "eta", "solver_order")
    pipeline.sampling = {key: value for key, value in pipeline.sampling.items() if key not in rule}
    return pipeline
