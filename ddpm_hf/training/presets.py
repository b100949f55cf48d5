"""PRESETS: architectures and recipes as data. The configs of a saved model serve as one, too."""

import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import FASHION_MNIST

if TYPE_CHECKING:
    from diffusers import ModelMixin

DOWN, ATTN_DOWN, UP, ATTN_UP = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"


FAST = {"num_inference_steps": 25, "eta": 1.0, "solver_order": 2}


def spaced(num_steps: int, power: float = 1.5) -> list[int]:
    """Timesteps of 1000, the closer the less noise there is."""
    return [round(999 * (1 - i / num_steps) ** power) for i in range(num_steps)]


GARMENTS = {  # docs/numbers.md tells how it was chosen
    "num_inference_steps": 12,
    "timesteps": spaced(12),
    "eta": 0.6,
    "solver_order": 2,
    "guidance_scale": 1.7,
    "guidance_interval": [150, 800],
}


@dataclass(frozen=True)
class Preset:
    """A model and a recipe to train it by.

    unet, scheduler: constructor arguments. training: defaults of `TrainConfig`. class_conditional: labels are used where the data has them.
    text_encoder: Hub id of the frozen encoder of a model of text, whose class labels are vectors (class_embed_type="identity").
    image_condition: how the image is made that the network takes beside x_t (`DDPMImagePipeline`), with unet's in_channels to suit.
    sampling: how the pipeline samples by default. network: the class of the network, DDPMUNet2DModel by default, or any ModelMixin that is
    called as (x_t, t, class_labels=...) and whose config has sample_size, in_channels and out_channels.
    """

    unet: dict
    scheduler: dict
    training: dict
    class_conditional: bool = False
    sampling: dict = field(default_factory=lambda: dict(FAST))
    network: "type[ModelMixin] | None" = None
    text_encoder: str | None = None
    image_condition: str | None = None

    @property
    def num_channels(self) -> int:
        """C of the images; a network takes 2C + 1 where it has a condition image."""
        in_channels = self.unet.get("in_channels", 3)
        return in_channels if self.image_condition is None else (in_channels - 1) // 2

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is read beside the images."""
        return ("captions",) if self.text_encoder else ("class_labels",)


def _paper_unet(sample_size: int, block_out_channels: tuple[int, ...], attention_level: int, dropout: float) -> dict:
    """Ho et al. 2020, Appendix B: self-attention at one resolution (16 x 16), one head; the details of google/ddpm-*."""
    levels = range(len(block_out_channels))
    return dict(
        sample_size=sample_size,
        block_out_channels=block_out_channels,
        down_block_types=tuple(ATTN_DOWN if i == attention_level else DOWN for i in levels),
        up_block_types=tuple(ATTN_UP if i == attention_level else UP for i in reversed(levels)),
        dropout=dropout,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def _log_snr_linear_betas(first: float, last: float, num_train_timesteps: int = 1000) -> tuple[float, ...]:
    """The betas whose log-SNR falls linearly from `first` to `last`.

    All t then weigh the same in the bound, and L_simple is the bound but for its decoder (Kingma et al. 2021, arXiv:2107.00630, Eq. 13).
    """
    step = (last - first) / (num_train_timesteps - 1)
    alphas_cumprod = [1.0, *(1 / (1 + math.exp(-first - step * t)) for t in range(num_train_timesteps))]
    return tuple(1 - after / before for before, after in pairwise(alphas_cumprod))


_PAPER_ADAM = dict(adam_beta2=0.999, weight_decay=0.0)


_PAPER_SCHEDULER = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, variance_type="fixed_large")


# x_0-prediction under min-SNR weights learns a small model's garments in fewer steps than v, and much sooner than noise.
_COSINE = dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing")


def _small_unet(block_out_channels: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """28 x 28 in grey: levels of 28, 14 and 7 pixels, attention at the lowest.

    A group of GroupNorm has at least 16 channels: with fewer, a CPU cannot use channels_last, which is faster (`modeling_ddpm_unet.GroupNorm`).
    """
    unet = dict(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=block_out_channels,
        down_block_types=(DOWN, DOWN, ATTN_DOWN),
        up_block_types=(ATTN_UP, UP, UP),
    )
    return unet | options


_SMALL_RECIPE = dict(  # ten epochs of FashionMNIST
    dataset=FASHION_MNIST,
    train_batch_size=32,
    learning_rate=2e-3,
    lr_warmup_steps=500,
    max_train_steps=18_750,
    ema_decay=0.999,
)


_SMALL = Preset(  # 1.8 M parameters
    unet=_small_unet((32, 64, 96), layers_per_block=1, norm_num_groups=2, attention_head_dim=None),
    scheduler=_COSINE,
    training=_SMALL_RECIPE | dict(snr_gamma=5.0),
    class_conditional=True,
    sampling=GARMENTS,
)


PRESETS = {
    "fashion-mnist-quick": Preset(  # 0.64 M parameters; many small steps learn more in the same time than few large ones
        unet=_small_unet(
            (16, 32, 64),
            layers_per_block=1,
            norm_num_groups=1,
            down_block_types=(DOWN, DOWN, DOWN),
            up_block_types=(UP, UP, UP),
        ),
        scheduler=_COSINE,
        training=dict(
            dataset=FASHION_MNIST,
            train_batch_size=16,
            learning_rate=2e-3,
            lr_warmup_steps=100,
            max_train_steps=6000,
            ema_decay=0.998,
            snr_gamma=5.0,
        ),
        class_conditional=True,
        sampling=GARMENTS,
    ),
    "fashion-mnist": _SMALL,
    "fashion-mnist-nll": Preset(  # for bits/dim; noise from a third of a grey level to all but the prior
        unet=_small_unet((32, 64, 64), layers_per_block=1, norm_num_groups=2, attention_head_dim=None, out_channels=2),
        scheduler=dict(trained_betas=_log_snr_linear_betas(12.0, -7.0), variance_type="learned_range"),
        training=_SMALL_RECIPE,
    ),
    "mnist": replace(_SMALL, training=_SMALL.training | {"dataset": "ylecun/mnist"}),
    "emoji-32": Preset(  # 10.8 M parameters, colour, drawn from words; `make emoji` leaves its data
        unet=dict(
            sample_size=32,
            block_out_channels=(32, 64, 128, 256),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=None,
            down_block_types=(DOWN, DOWN, ATTN_DOWN, DOWN),
            up_block_types=(UP, ATTN_UP, UP, UP),
            class_embed_type="identity",
            time_embedding_dim=384,
        ),
        scheduler=_COSINE | {"prediction_type": "v_prediction"},
        training=dict(
            dataset=".data/emoji",
            train_batch_size=32,
            learning_rate=1e-3,
            lr_warmup_steps=200,
            max_train_steps=10_000,
            ema_decay=0.999,
            snr_gamma=5.0,
        ),
        sampling=FAST | {"guidance_scale": 3.0},
        text_encoder="sentence-transformers/all-MiniLM-L6-v2",
    ),
    "cifar10": Preset(  # the paper's CIFAR-10 model: FID 3.17
        unet=_paper_unet(32, (128, 256, 256, 256), attention_level=1, dropout=0.1),
        scheduler=_PAPER_SCHEDULER,
        training=dict(
            dataset="uoft-cs/cifar10",
            train_batch_size=128,
            learning_rate=2e-4,
            lr_warmup_steps=5000,
            lr_scheduler="constant_with_warmup",
            **_PAPER_ADAM,
            max_train_steps=800_000,
            ema_decay=0.9999,
            random_flip=True,
        ),
    ),
    "celebahq-256": Preset(  # the paper's 256 x 256 model
        unet=_paper_unet(256, (128, 128, 256, 256, 512, 512), attention_level=4, dropout=0.0),
        scheduler=_PAPER_SCHEDULER,
        training=dict(
            dataset="korexyz/celeba-hq-256x256",
            train_batch_size=64,
            learning_rate=2e-5,
            lr_warmup_steps=5000,
            lr_scheduler="constant_with_warmup",
            **_PAPER_ADAM,
            max_train_steps=500_000,
            ema_decay=0.9999,
            random_flip=True,
        ),
    ),
}


_STOCK_RECIPE = dict(  # train_unconditional.py's, for a network that no preset knows
    train_batch_size=16, learning_rate=1e-4, lr_warmup_steps=500, max_train_steps=50_000, ema_decay=0.9999
)
FINE_TUNING = dict(  # from trained weights
    train_batch_size=32, learning_rate=2e-4, lr_warmup_steps=100, max_train_steps=2000, ema_decay=0.995, snr_gamma=5.0
)
CONSISTENCY = dict(
    train_batch_size=64,
    learning_rate=2e-4,
    lr_warmup_steps=100,
    max_train_steps=4000,
    ema_decay=0.998,
    lr_scheduler="constant_with_warmup",
    weight_decay=0.0,
    snr_gamma=0.0,
)
MOMENT_MATCHING = CONSISTENCY | dict(learning_rate=5e-5, max_train_steps=1000, ema_decay=0.99, lr_scheduler="cosine")
STUDENTS = {
    "consistency": CONSISTENCY,
    "moment_matching": MOMENT_MATCHING,
}  # objective -> recipe of a student of few steps


def find_preset(preset: str) -> Preset:
    """One of PRESETS, or the network and the noise schedule of a folder such as a saved model, ours or stock."""
    if preset in PRESETS:
        return PRESETS[preset]
    places = (Path(preset) / "unet" / "config.json", Path(preset) / "scheduler" / "scheduler_config.json")
    paths = [path if path.parent.is_dir() else Path(preset, path.name) for path in places]  # google/ddpm-*: the root
    if not all(path.is_file() for path in paths):
        raise ValueError(
            f"preset={preset!r}: choose one of {', '.join(PRESETS)}, or a folder with unet/config.json and"
            " scheduler/scheduler_config.json."
        )
    try:
        unet, scheduler = (json.loads(path.read_text()) | {} for path in paths)
    except (ValueError, TypeError) as error:
        raise ValueError(f"preset={preset!r}: one of its configs is no JSON object ({error}).") from error
    if not isinstance(unet.get("sample_size"), int):
        raise ValueError(f"preset={preset!r}: {paths[0]} must have the pixels of a side as its sample_size.")
    index = Path(preset) / "model_index.json"
    options = json.loads(index.read_text()) if index.is_file() else {}
    return preset_of(unet, scheduler, _STOCK_RECIPE, image_condition=options.get("image_condition"))


def preset_of(unet: dict, scheduler: dict, training: dict, **options: Any) -> Preset:
    """A preset of the configs of a model."""
    unet, scheduler = ({k: v for k, v in config.items() if not k.startswith("_")} for config in (unet, scheduler))
    is_conditional = unet.pop("num_class_embeds", None) is not None or unet.get("num_embeds_ada_norm") is not None
    return Preset(unet, scheduler, training, is_conditional, **options)
