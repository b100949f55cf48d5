"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, Appendix B): x_t (B, C, H, W) and t -> the model's output (B, C', H, W).

    t -> sinusoids -> MLP (+ class embedding) = temb, added inside every residual block
    conv_in -> down blocks, each keeping its activations as skips -> middle block -> up blocks, each consuming its skips -> conv_out

    residual block   h = conv1(act(norm1(x)));  h = h + proj(act(temb));  out = shortcut(x) + conv2(dropout(act(norm2(h))))
    attention block  out = x + proj(softmax(q k^T / sqrt(d)) v),  q, k, v = linear(norm(x)) over the H*W positions

Parameter names, shapes, order and config are those of `diffusers.UNet2DModel`, so weights load in both directions, strictly; the layers
and the order in which they are made (and so their values for a seed) are written out here. The file stands alone (torch, diffusers): it is copied
into every saved model. What depends on t alone is computed once per call, and for one row only when the whole batch shares t.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


# ---------------------------------------------------------------------- time


class Timesteps(nn.Module):
    """Sinusoidal features of t: (N,) -> (N, num_channels) float32 (Vaswani et al. 2017, Section 3.5)."""

    def __init__(self, num_channels: int, flip_sin_to_cos: bool, freq_shift: float):
        super().__init__()
        self.num_channels, self.flip_sin_to_cos, self.freq_shift = num_channels, flip_sin_to_cos, freq_shift

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        half = self.num_channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(exponent / (half - self.freq_shift))
        features = [torch.cos(angles), torch.sin(angles)] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(features, dim=-1), (0, self.num_channels % 2))


class TimestepEmbedding(nn.Module):
    """Two-layer MLP on the sinusoids: (N, in_channels) -> (N, time_embed_dim)."""

    def __init__(self, in_channels: int, time_embed_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features)))


# ---------------------------------------------------------------------- layers


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm without a cliff: on a CPU its kernel for channels_last takes 20 times as long where groups have few channels."""

    @property
    def has_few_channels(self) -> bool:
        return self.num_channels < 16 * self.num_groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.contiguous() if x.device.type == "cpu" and self.has_few_channels else x)


class Downsample2D(nn.Module):
    """Halve H and W with a strided 3x3 convolution; padding 0 pads one row and column at the far end, as the paper's code does."""

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample2D(nn.Module):
    """Double H and W: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResnetBlock2D(nn.Module):
    """Residual block: x (B, in, H, W), act(temb) (B or 1, D) -> (B, out, H, W); resample: None, "down" (H/2) or "up" (2H)."""

    def __init__(self, in_channels: int, out_channels: int, options: dict, scale=1.0, resample: str | None = None):
        super().__init__()
        groups, eps, temb_channels = options["norm_num_groups"], options["norm_eps"], options["temb_channels"]
        self.scale_shift = options["resnet_time_scale_shift"] == "scale_shift"
        self.output_scale_factor, self.resample = scale, resample
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(options["dropout"])
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[options["act_fn"]]()
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def _resample(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample is None:
            return x
        return F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        temb = self.time_emb_proj(temb)[:, :, None, None]
        h = self.conv1(self._resample(self.nonlinearity(self.norm1(x))))
        if self.scale_shift:  # Improved DDPM (arXiv:2102.09672), Section 3: adaptive group normalisation
            scale, shift = temb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + temb)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        x = self._resample(x)
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return (x + h) / self.output_scale_factor if self.output_scale_factor != 1 else x + h


class Attention(nn.Module):
    """Multi-head self-attention over the positions of an image, with a residual connection: (B, C, H, W) -> the same."""

    # ModelMixin then renames query/key/value/proj_attn of the published google/ddpm-* weights.
    _from_deprecated_attn_block = True

    def __init__(self, channels: int, head_dim: int | None, num_groups: int | None, eps: float, scale: float = 1.0):
        super().__init__()
        head_dim = channels if head_dim is None else head_dim
        if not 0 < head_dim <= channels:
            raise ValueError(f"attention_head_dim={head_dim} must be from 1 to the {channels} channels of its block.")
        self.heads, self.rescale_output_factor = channels // head_dim, scale
        inner_dim = self.heads * head_dim
        self.group_norm = None if num_groups is None else GroupNorm(num_groups, channels, eps)
        self.to_q = nn.Linear(channels, inner_dim)
        self.to_k = nn.Linear(channels, inner_dim)
        self.to_v = nn.Linear(channels, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x if self.group_norm is None else self.group_norm(x)
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C), a view of channels_last memory
        q, k, v = (to(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        h = self.attend(q, k, v).transpose(1, 2).flatten(2)
        h = self.to_out[0](h).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return (x + h) / self.rescale_output_factor if self.rescale_output_factor != 1 else x + h

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) v, each (B, heads, H*W, d)."""
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":
            # Twice as fast as torch's fused kernel, for the scores of a few images fit the cache; the backward up to 8 times.
            parts = zip((q * q.shape[-1] ** -0.5).split(8), k.split(8), v.split(8))
            return torch.cat([(q @ k.transpose(2, 3)).softmax(dim=3) @ v for q, k, v in parts])
        return F.scaled_dot_product_attention(q, k, v)


# ---------------------------------------------------------------------- blocks: one resolution each


class UNetBlock(nn.Module):
    """Residual blocks, each followed by attention where `attentions` has one; what the three kinds of block share."""

    _gradient_checkpointing_func: Callable  # set, with the flag, by ModelMixin.enable_gradient_checkpointing

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = False
        self.attentions, self.resnets = nn.ModuleList(), nn.ModuleList()

    def add_layer(self, in_channels: int, out_channels: int, options: dict, attention: bool) -> None:
        self.resnets.append(ResnetBlock2D(in_channels, out_channels, options))
        if attention:
            head_dim, num_groups = options["attention_head_dim"], options["norm_num_groups"]
            self.attentions.append(Attention(out_channels, head_dim, num_groups, options["norm_eps"]))

    def layer(self, index: int, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        x = self.run(self.resnets[index], x, temb)
        return self.attentions[index](x) if self.attentions else x

    def run(self, module: nn.Module, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, x, temb)
        return module(x, temb)


class DownBlock2D(UNetBlock):
    """(B, in, H, W) -> (B, out, H/2, W/2) and the activations that the up path will consume."""

    attention = False

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, options: dict, downsample: bool):
        super().__init__()
        for i in range(num_layers):
            self.add_layer(out_channels if i else in_channels, out_channels, options, self.attention)
        self.downsamplers = nn.ModuleList([self.make_downsampler(out_channels, options)] if downsample else [])

    def make_downsampler(self, channels: int, options: dict) -> nn.Module:
        return Downsample2D(channels, options["downsample_padding"])

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, temb)
            skips.append(x)
        return x, skips


class ResnetDownsampleBlock2D(DownBlock2D):
    """A down block that shrinks inside a residual block (Improved DDPM's resblock_updown)."""

    def make_downsampler(self, channels: int, options: dict) -> nn.Module:
        return ResnetBlock2D(channels, channels, options, resample="down")


class AttnDownBlock2D(DownBlock2D):
    """A down block with attention; `downsample_type` says how it shrinks."""

    attention = True

    def make_downsampler(self, channels: int, options: dict) -> nn.Module:
        kind = ResnetDownsampleBlock2D if options["downsample_type"] == "resnet" else DownBlock2D
        return kind.make_downsampler(self, channels, options)


class UNetMidBlock2D(UNetBlock):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(self, channels: int, options: dict):
        super().__init__()
        scale, num_groups = options["mid_block_scale_factor"], options["attn_norm_num_groups"]
        if num_groups is None and options["resnet_time_scale_shift"] == "default":
            num_groups = options["norm_num_groups"]
        self.resnets.append(ResnetBlock2D(channels, channels, options, scale))
        if options["add_attention"]:
            head_dim = options["attention_head_dim"]
            self.attentions.append(Attention(channels, head_dim, num_groups, options["norm_eps"], scale))
        self.resnets.append(ResnetBlock2D(channels, channels, options, scale))

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return self.run(self.resnets[1], self.layer(0, x, temb), temb)


class UpBlock2D(UNetBlock):
    """(B, previous, H, W) and the skips -> (B, out, 2H, 2W). skip_channels: theirs, in the order of use."""

    attention = False

    def __init__(self, previous: int, skip_channels: list[int], out_channels: int, options: dict, upsample: bool):
        super().__init__()
        for i, skip in enumerate(skip_channels):
            self.add_layer((out_channels if i else previous) + skip, out_channels, options, self.attention)
        self.upsamplers = nn.ModuleList([self.make_upsampler(out_channels, options)] if upsample else [])

    def make_upsampler(self, channels: int, options: dict) -> nn.Module:
        return Upsample2D(channels)

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor], temb: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), temb)
        for upsampler in self.upsamplers:
            x = upsampler(x, temb)
        return x


class ResnetUpsampleBlock2D(UpBlock2D):
    """An up block that grows inside a residual block."""

    def make_upsampler(self, channels: int, options: dict) -> nn.Module:
        return ResnetBlock2D(channels, channels, options, resample="up")


class AttnUpBlock2D(UpBlock2D):
    """An up block with attention; `upsample_type` says how it grows."""

    attention = True

    def make_upsampler(self, channels: int, options: dict) -> nn.Module:
        kind = ResnetUpsampleBlock2D if options["upsample_type"] == "resnet" else UpBlock2D
        return kind.make_upsampler(self, channels, options)


DOWN_BLOCKS = {block.__name__: block for block in (DownBlock2D, AttnDownBlock2D, ResnetDownsampleBlock2D)}
UP_BLOCKS = {block.__name__: block for block in (UpBlock2D, AttnUpBlock2D, ResnetUpsampleBlock2D)}


# ---------------------------------------------------------------------- the model


class DDPMUNet2DModel(UNet2DModel):
    """The U-Net, with the config, weights and call of `diffusers.UNet2DModel`; `isinstance` of it, with layers of its own.

    Args:
        sample_size: height and width of the images, H or (H, W); each a multiple of 2 ** (number of levels - 1).
        in_channels, out_channels: C and C'; C' = 2 C for a learned variance.
        center_input_sample: map an input in [0, 1] to [-1, 1] first.
        time_embedding_type: positional (sinusoids) or learned (a table of num_train_timesteps rows).
        time_embedding_dim: width of temb; 4 * block_out_channels[0] if None. freq_shift, flip_sin_to_cos: details of the sinusoids.
        down_block_types, up_block_types: a block for each level, DownBlock2D, AttnDownBlock2D or ResnetDownsampleBlock2D and their Up twins.
        mid_block_type: UNetMidBlock2D or None. add_attention: whether the middle block has attention.
        block_out_channels: channels of each level. layers_per_block: residual blocks of each level.
        attention_head_dim: channels of a head, at most a block's; None is one head.
        resnet_time_scale_shift: default (add temb) or scale_shift (adaptive group normalisation).
        num_class_embeds: number of class labels, the null label of classifier-free guidance included (by convention the last).
        class_embed_type: None (a table), timestep (labels are embedded like t) or identity (labels are (B, time_embedding_dim) vectors).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ):
        ModelMixin.__init__(self)  # not UNet2DModel's, which would build the stock layers
        options = dict(self.config)
        _check(options)
        self.sample_size = sample_size
        options["temb_channels"] = temb_channels = time_embedding_dim or block_out_channels[0] * 4
        levels = list(block_out_channels)
        width = levels[0]

        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_proj: nn.Module = Timesteps(width, flip_sin_to_cos, freq_shift)
        if time_embedding_type == "learned":
            self.time_proj = nn.Embedding(num_train_timesteps, width)
        self.time_embedding = TimestepEmbedding(width, temb_channels)
        self.class_embedding: nn.Module | None = None
        if class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(width, temb_channels)
        elif class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, temb_channels)

        self.down_blocks, self.mid_block, self.up_blocks = nn.ModuleList(), None, nn.ModuleList()
        channels, skips = width, [width]
        for i, (kind, out) in enumerate(zip(down_block_types, levels)):
            downsample = i < len(levels) - 1
            self.down_blocks.append(DOWN_BLOCKS[kind](channels, out, layers_per_block, options, downsample))
            skips += [out] * (layers_per_block + downsample)
            channels = out
        if mid_block_type is not None:
            self.mid_block = UNetMidBlock2D(channels, options)
        for i, (kind, out) in enumerate(zip(up_block_types, reversed(levels))):
            used = [skips.pop() for _ in range(layers_per_block + 1)]
            self.up_blocks.append(UP_BLOCKS[kind](channels, used, out, options, upsample=i < len(levels) - 1))
            channels = out
        assert not skips, "every skip connection is used"

        self.conv_norm_out = GroupNorm(norm_num_groups, width, norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        self._temb_act = ACTIVATIONS[act_fn]()

    def embed(
        self, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None, sample: torch.Tensor
    ) -> torch.Tensor:
        """act(temb), (B, D), or (1, D) when one t serves the whole batch and there are no labels."""
        timestep = torch.as_tensor(timestep, device=sample.device)
        features = self.time_proj(timestep.reshape(-1))
        temb = self.time_embedding(features.to(self.dtype))
        if (self.class_embedding is None) != (class_labels is None):
            needs = "needs class_labels" if class_labels is None else "is without class labels (num_class_embeds)"
            raise ValueError(f"class_labels={class_labels}: this model {needs}.")
        if class_labels is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(self.dtype)
            temb = temb + self.class_embedding(class_labels).to(self.dtype)
        return self._temb_act(temb)

    def read(self, sample: torch.Tensor) -> torch.Tensor:
        """conv_in in float32 also under autocast: bfloat16 would round away the noise of the first timesteps."""
        device = sample.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                h = self.conv_in(sample.to(self.dtype)).to(torch.get_autocast_dtype(device))
        else:
            h = self.conv_in(sample)
        if device == "cpu" and not self.conv_norm_out.has_few_channels:
            h = h.contiguous(memory_format=torch.channels_last)  # oneDNN's and attention's layout: 5 to 10% faster
        return h

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Args:
            sample: x_t, (B, C, H, W) in the model's dtype.
            timestep: t for all images (a number, () or (1,)) or for each (B,).
            class_labels: int64 (B,), if the model has classes.

        Returns: `UNet2DOutput` with `sample` (B, C', H, W), or a tuple of it.
        """
        height, width = sample.shape[-2:]
        multiple = 2 ** (len(self.down_blocks) - 1)
        if height % multiple or width % multiple:
            near = [f"{max(s // multiple, 1) * multiple} or {-(-s // multiple) * multiple}" for s in (height, width)]
            raise ValueError(
                f"sample of height {height} and width {width}: {len(self.down_blocks)} levels need multiples of"
                f" {multiple}; the nearest are height {near[0]}, width {near[1]}."
            )
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        temb = self.embed(timestep, class_labels, sample)
        h = self.read(sample)
        skips = [h]
        for block in self.down_blocks:
            h, kept = block(h, temb)
            skips += kept
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        for block in self.up_blocks:
            h = block(h, skips, temb)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return UNet2DOutput(sample=h) if return_dict else (h,)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write config.json with this very file beside it, so that the folder loads where ddpm_hf is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, Path(save_directory) / Path(__file__).name)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """config.json without the path that the model was loaded from."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _check(config: dict) -> None:
    """Refuse a config that this U-Net cannot build, with what it can."""
    levels = len(config["block_out_channels"])
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        if len(config[name]) != levels:
            raise ValueError(
                f"Must provide the same number of `{name}` as `block_out_channels`:"
                f" {name}={config[name]}, block_out_channels={config['block_out_channels']}."
            )
        if unknown := [kind for kind in config[name] if kind not in known]:
            raise ValueError(f"{name} has {', '.join(unknown)}: DDPMUNet2DModel builds {', '.join(known)}.")
    for name, allowed in {
        "time_embedding_type": ("positional", "learned"),
        "mid_block_type": ("UNetMidBlock2D", None),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "class_embed_type": ("timestep", "identity", None),
        "act_fn": tuple(ACTIVATIONS),
    }.items():
        if config[name] not in allowed:
            raise ValueError(f"{name}={config[name]!r}: choose one of {allowed}.")
    groups, widths = config["norm_num_groups"], config["block_out_channels"]
    if not groups or any(channels % groups for channels in widths):
        raise ValueError(f"norm_num_groups={groups} must divide each of block_out_channels={tuple(widths)}.")
    if config["time_embedding_type"] == "learned" and config["num_train_timesteps"] is None:
        raise ValueError("num_train_timesteps=None: time_embedding_type='learned' needs the number of timesteps.")
