"""What a run starts from: a fresh network of a preset, or the trained weights of a saved model."""

import copy
import logging
from dataclasses import dataclass

import torch
from accelerate.utils import set_seed
from diffusers import UNet2DModel

from .. import hub
from ..modeling_ddpm_unet import DDPMUNet2DModel
from ..pipeline_ddpm_image import DDPMImagePipeline
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from .config import TrainConfig
from .presets import FINE_TUNING, Preset, find_preset, preset_of

logger = logging.getLogger(__name__)


@dataclass
class Start:
    """A preset with the run's own choices, and the model whose weights are taken over, if there is one."""

    preset: Preset
    source: DDPMImagePipeline | None

    @property
    def image_shape(self) -> dict:
        """Channels and size of the images, as arguments of `load_image_dataset`."""
        return {"num_channels": self.preset.unet["in_channels"], "image_size": self.preset.unet["sample_size"]}


def find_start(config: TrainConfig) -> Start:
    """The preset and the source of a run. Raises ValueError or HubError where --init_from names no model that can be trained."""
    source = hub.load(config.init_from) if config.init_from else None
    if config.preset:
        preset = find_preset(config.preset)
    else:
        configs = dict(source.unet.config), dict(source.scheduler.config)
        if not isinstance(size := configs[0].get("sample_size"), int):
            raise ValueError(
                f"init_from={config.init_from!r} has sample_size={size!r}: it must be the pixels of a side."
            )
        sampling = {name: value for name, value in source.sampling.items() if name != "guidance_scale"}
        text = source.text_encoder and source.text_encoder.name_or_path
        options = {"network": type(source.unet), "text_encoder": text} | ({"sampling": sampling} if sampling else {})
        preset = preset_of(*configs, FINE_TUNING, **options)
    return Start(config.choose(preset), source)


def make_pipeline(start: Start, class_names: list[str] | None, config: TrainConfig) -> DDPMImagePipeline:
    """The pipeline that is trained: with a class for each name where the preset is conditional, and the last label as null."""
    preset, unet_config, sampling = start.preset, dict(start.preset.unet), dict(start.preset.sampling)
    network = preset.network or DDPMUNet2DModel
    id2label = dict(enumerate(class_names or [])) if preset.class_conditional else {}
    if id2label:
        sampling["guidance_scale"] = config.guidance_scale
        if issubclass(network, UNet2DModel):
            unet_config["num_class_embeds"] = len(id2label) + 1
    text = hub.load_text_encoder(preset.text_encoder) if preset.text_encoder else {}
    if start.source and start.source.text_encoder is not None:
        text = {"text_encoder": start.source.text_encoder, "tokenizer": start.source.tokenizer}
    set_seed(config.seed)
    unet = network.from_config(unet_config)
    scheduler = DDPMNoiseScheduler.from_config(preset.scheduler)
    pipeline = DDPMImagePipeline(unet, scheduler, id2label or None, sampling, **text)
    if pipeline.num_labels is not None and pipeline.null_label is None:
        raise ValueError(
            f"dataset={config.dataset!r} has {len(id2label)} classes: this network's table has {pipeline.num_labels} labels,"
            " the null label included."
        )
    _check_shapes(pipeline)
    if start.source:
        take_over(pipeline, start.source, config.init_from)
    return pipeline


def _check_shapes(pipeline: DDPMImagePipeline) -> None:
    """One pass on the meta device, which computes shapes alone: a size that the network cannot halve ends here."""
    network, config = copy.deepcopy(pipeline.unet).to("meta"), pipeline.unet.config
    size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    x_t = torch.empty(1, config.in_channels, *size, device="meta")
    condition = {name: rows.to("meta") for name, rows in pipeline.encode(batch_size=1).items()}
    pipeline.denoise(x_t, torch.zeros(1, dtype=torch.int64, device="meta"), condition, network)


def take_over(pipeline: DDPMImagePipeline, source: DDPMImagePipeline, name: str) -> None:
    """Copy the weights of `source` that fit; one line names those that are new and those that have no place here.

    A class table fits where the classes are the same ones.
    """
    state, trained = pipeline.unet.state_dict(), source.unet.state_dict()
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


def _class_tables(pipeline: DDPMImagePipeline) -> set[str]:
    """Names of the embeddings of class labels; DiT has one in each block."""
    return {
        f"{name}.weight"
        for name, module in pipeline.unet.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == pipeline.num_labels
    }
