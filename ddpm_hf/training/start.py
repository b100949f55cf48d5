"""What a run starts from: a fresh network of a preset, or the trained weights of a saved model."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import UNet2DModel
from transformers import PreTrainedModel

from .. import hub
from ..data.recorded import recorded_options
from ..modeling_ddpm_unet import DDPMUNet2DModel
from ..pipeline_ddpm_image import DDPMImagePipeline, check_image_condition
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from . import checkpoints
from .config import TrainConfig
from .presets import FINE_TUNING, STUDENTS, Preset, find_preset, preset_of

logger = logging.getLogger(__name__)


@dataclass
class Start:
    """A preset with the run's own choices, the model whose weights are taken over, and the one that teaches, if there are such."""

    preset: Preset
    source: DDPMImagePipeline | None
    teacher: DDPMImagePipeline | None = None

    @property
    def image_shape(self) -> dict:
        """Channels and size of the images, as arguments of `load_image_dataset`."""
        return {"num_channels": self.preset.num_channels, "image_size": self.preset.unet["sample_size"]}


def find_start(config: TrainConfig) -> Start:
    """The preset and the source of a run. Raises ValueError or HubError where --init_from names no model that can be trained.

    A resumed run has all in its checkpoint but the teacher of a student of few steps.
    """
    model: str | Path | None = config.init_from
    if model and config.resume and config.objective not in STUDENTS:
        model = checkpoints.newest(Path(config.output_dir)) or model
    source = hub.load(model) if model else None
    if source and not (hasattr(source.scheduler, "alphas_cumprod") and (config.teacher or not source.is_student)):
        raise ValueError(
            f"init_from={config.init_from!r} samples in few steps or not by DDPM ({type(source.scheduler).__name__}):"
            " start from a model whose network predicts noise, x_0 or v of DDPM's process, or name the student's teacher."
        )
    is_taught = config.objective == "moment_matching" or config.distill_guidance is not None
    teacher = hub.load(config.teacher) if config.teacher else source if is_taught else None
    if config.preset:
        preset = find_preset(config.preset)
    else:
        configs = dict(source.unet.config), dict(source.scheduler.config)
        if not isinstance(size := configs[0].get("sample_size"), int):
            raise ValueError(
                f"init_from={config.init_from!r} has sample_size={size!r}: it must be the pixels of a side."
            )
        text, sampling = source.text_encoder and _name(source.text_encoder), source.sampling
        options: dict[str, Any] = {"network": type(source.unet), "text_encoder": text}
        options |= {"image_condition": source.image_condition}
        options |= {"sampling": sampling} if sampling else {}
        preset = preset_of(*configs, FINE_TUNING, **options)
    preset = config.choose(preset)
    if preset.image_condition is not None:
        check_image_condition(preset.image_condition, preset.unet)
    return Start(preset, source, teacher)


def find_data(config: TrainConfig, start: Start) -> None:
    """Fill in the data set of a run that names none: its own where it is resumed, else what the model that it starts from was trained on.

    Raises ValueError where nothing tells.
    """
    if config.dataset is None:
        is_resumed = config.resume and Path(config.output_dir, "run.yaml").exists()
        source = start.source and start.source.config["_name_or_path"]
        config.take_data(recorded_options(config.output_dir if is_resumed else source or config.preset))


def make_pipeline(start: Start, class_names: list[str] | None, config: TrainConfig) -> DDPMImagePipeline:
    """The pipeline that is trained: with a class for each name where the preset is conditional, and the last label as null."""
    preset, unet_config = start.preset, dict(start.preset.unet)
    network = preset.network or DDPMUNet2DModel
    id2label = dict(enumerate(class_names or [])) if preset.class_conditional else {}
    if class_names and not (preset.class_conditional or preset.text_encoder):
        logger.warning(f"dataset={config.dataset!r} has {len(class_names)} classes: this network does not take them.")
    if preset.class_conditional and not class_names:
        logger.warning(f"dataset={config.dataset!r} has no classes: the network is made without them.")
    if id2label and issubclass(network, UNet2DModel):
        unet_config["num_class_embeds"] = len(id2label) + 1
    sampling = _sampling(preset, config, bool(id2label or preset.text_encoder))
    text = {}
    if start.source and start.source.text_encoder is not None:
        text = {"text_encoder": start.source.text_encoder, "tokenizer": start.source.tokenizer}
    elif preset.text_encoder:
        text = hub.load_text_encoder(preset.text_encoder)
    set_seed(config.seed)
    unet = network.from_config(unet_config)
    scheduler = DDPMNoiseScheduler.from_config(preset.scheduler)
    options = {"image_condition": preset.image_condition, **text}
    pipeline = DDPMImagePipeline(unet, scheduler, id2label or None, sampling, **options)
    if pipeline.num_labels is not None and pipeline.null_label is None:
        raise ValueError(
            f"dataset={config.dataset!r} has {len(id2label)} classes: this network's table has {pipeline.num_labels} labels,"
            " the null label included."
        )
    _check_shapes(pipeline)
    if start.source:
        take_over(pipeline, start.source, config.init_from)
    return pipeline


def _sampling(preset: Preset, config: TrainConfig, is_conditional: bool) -> dict:
    """How the model samples by default."""
    sampling, asked = dict(preset.sampling), config.guidance_scale
    own = sampling.pop("guidance_scale", 1.3)
    if asked is not None and (config.objective in STUDENTS or not is_conditional):
        why = "the network has no condition" if not is_conditional else "a student of few steps draws without"
        logger.warning(f"guidance_scale={asked} is not used: {why}.")
    if not is_conditional:
        sampling.pop("guidance_interval", None)
        return sampling
    return sampling | {"guidance_scale": own if asked is None else asked}


def _name(text_encoder: PreTrainedModel) -> str:
    """By which the cache of embedded captions knows it."""
    return getattr(text_encoder.config, "hub_id", text_encoder.name_or_path)


def _check_shapes(pipeline: DDPMImagePipeline) -> None:
    """One pass on the meta device, which computes shapes alone: a size that the network cannot halve ends here, and channels without a variance."""
    network, config = copy.deepcopy(pipeline.unet).to("meta"), pipeline.unet.config
    size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    x_t = torch.empty(1, pipeline.num_channels, *size, device="meta")
    condition = {name: rows.to("meta") for name, rows in pipeline.encode(batch_size=1).items()}
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    copy.copy(pipeline.scheduler).p_mean_variance(pipeline.denoise(x_t, t, condition, network), t, x_t)


def take_over(pipeline: DDPMImagePipeline, source: DDPMImagePipeline, name: str) -> None:
    """Copy the weights of `source` that fit; one line names those that are new and those that have no place here.

    A class table fits where the classes are the same ones. The channels of a condition image, which are new, begin with weights of 0: the
    model starts as the one that it was (InstructPix2Pix, arXiv:2211.09800, Section 3.2).
    """
    state, trained = pipeline.unet.state_dict(), source.unet.state_dict()
    if pipeline.image_condition is not None and source.image_condition is None:
        trained = {key: _widened(value, source, state.get(key)) for key, value in trained.items()}
    fits = {key: value for key, value in trained.items() if key in state and state[key].shape == value.shape}
    if source.id2label != pipeline.id2label:
        tables = _class_tables(pipeline)
        fits = {key: value for key, value in fits.items() if key not in tables}
    if not fits:
        raise ValueError(f"init_from={name!r}: none of its weights fit this network.")
    with torch.no_grad():
        for key, value in fits.items():
            state[key].copy_(value)
    new, unused = (
        ", ".join(sorted(keys)) or "none" for keys in (state.keys() - fits.keys(), trained.keys() - state.keys())
    )
    logger.warning(f"init_from={name!r}: {len(fits)} tensors taken over; made anew: {new}; left out: {unused}.")


def _widened(value: torch.Tensor, source: DDPMImagePipeline, like: torch.Tensor | None) -> torch.Tensor:
    """Weights of the layer that takes x_t, with 0 for what `like` takes beside it; others as they are."""
    takes_x_t = value.ndim == 4 and value.shape[1] == source.num_channels and like is not None
    new = like.shape[1] - value.shape[1] if takes_x_t else 0
    return torch.nn.functional.pad(value, (0, 0, 0, 0, 0, new)) if new > 0 else value


def _class_tables(pipeline: DDPMImagePipeline) -> set[str]:
    """Names of the embeddings of class labels; DiT has one in each block."""
    return {
        f"{name}.weight"
        for name, module in pipeline.unet.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == pipeline.num_labels
    }
