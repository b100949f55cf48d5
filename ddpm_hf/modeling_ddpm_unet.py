"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, Appendix B): x_t (B, C, H, W) and t -> the model's output (B, C', H, W).

    t -> sinusoids -> MLP (+ class embedding) = temb, added inside every residual block
    conv_in -> down blocks, which keep their activations as skips -> middle block -> up blocks, which use the skips -> conv_out

    residual block   h = conv1(act(norm1(x)));  h = h + proj(act(temb));  out = shortcut(x) + conv2(dropout(act(norm2(h))))
    attention block  out = x + proj(softmax(q k^T / sqrt(d)) v),  q, k, v = linear(norm(x)) over the H*W positions

The config and the names, shapes and order of the parameters are those of `diffusers.UNet2DModel`: weights load in both directions, strictly.
The layers are this file's own. They are made in stock's order, so that a seed gives the same initial values. The file imports no sibling,
because it is copied into every saved model.
"""

import inspect
import json
import math
import os
import reprlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

# Names of blocks in a config.
Down = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]

# Limits of a config, which may be a stranger's.
MAX_NUMBER = 2**20
MAX_PIXELS = 2**26  # 8192 x 8192
MAX_PARAMETERS = 2**31  # 8 GiB in float32, about four times the U-Net of ADM for ImageNet 256 (arXiv:2105.05233)


# ---------------------------------------------------------------------- time


class Timesteps(nn.Module):
    """Sinusoidal features of t (Vaswani et al. 2017, Section 3.5)."""

    def __init__(self, num_channels: int, flip_sin_to_cos: bool, freq_shift: float):
        super().__init__()
        self.num_channels, self.flip_sin_to_cos, self.freq_shift = num_channels, flip_sin_to_cos, freq_shift

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """(N,) -> (N, num_channels) float32."""
        half = self.num_channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(exponent / (half - self.freq_shift))
        features = [torch.cos(angles), torch.sin(angles)] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(features, dim=-1), (0, self.num_channels % 2))


class TimestepEmbedding(nn.Module):
    """Two-layer MLP on the sinusoids."""

    def __init__(self, in_channels: int, time_embed_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, in_channels) -> (N, time_embed_dim)."""
        return self.linear_2(self.act(self.linear_1(features)))


# ---------------------------------------------------------------------- layers: made by (in_channels, out_channels), called with (x, temb)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, but fast on a CPU where groups have few channels: there its kernel for channels_last takes 20 times as long."""

    @property
    def has_few_channels(self) -> bool:
        """Whether a group has less than 16 channels, with which the CPU's kernel for channels_last is slow."""
        return self.num_channels < 16 * self.num_groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return super().forward(x.contiguous() if x.device.type == "cpu" and self.has_few_channels else x)


halve = partial(F.avg_pool2d, kernel_size=2)  # the mean of each 2x2 square
double = partial(F.interpolate, scale_factor=2.0, mode="nearest")  # each pixel becomes a 2x2 square


class Downsample2D(nn.Module):
    """Halve H and W with a strided 3x3 convolution. padding=0 pads one row and one column at the far end, as the paper's code does."""

    def __init__(self, in_channels: int, out_channels: int, *, padding: int):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=padding)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, H/2, W/2); temb is not used."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class Upsample2D(nn.Module):
    """Double H and W, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W); temb is not used."""
        return self.conv(double(x))


class ResnetBlock2D(nn.Module):
    """Residual block, to which temb is added or, with scale_shift, gives scale and shift. resample: None, `halve` or `double` H and W."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Callable,
        temb_channels: int,
        act_fn: str,
        dropout: float,
        scale_shift: bool,
        resample: Callable | None = None,
    ):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample or nn.Identity()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = get_activation(act_fn)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """`x` (B, in, H, W) and act(temb) (B or 1, D) -> (B, out, H, W), with H and W halved or doubled by `resample`."""
        temb = self.time_emb_proj(temb)[:, :, None, None]
        h = self.conv1(self.resample(self.nonlinearity(self.norm1(x))))
        if self.scale_shift:  # adaptive group normalisation (Improved DDPM, arXiv:2102.09672, Section 3)
            scale, shift = temb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + temb)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        return self.conv_shortcut(self.resample(x)) + h


class Attention(nn.Module):
    """Multi-head self-attention over the positions of an image, with a residual connection."""

    # ModelMixin then loads the old names of google/ddpm-*: query, key, value, proj_attn.
    _from_deprecated_attn_block = True

    def __init__(self, channels: int, *, norm: Callable, head_dim: int | None):
        super().__init__()
        head_dim = channels if head_dim is None else head_dim
        if head_dim > channels:
            raise ValueError(f"attention_head_dim={head_dim}: expected 1 to the {channels} channels of its block.")
        self.heads = channels // head_dim
        inner_dim = self.heads * head_dim
        self.group_norm = norm(channels)
        self.to_q = nn.Linear(channels, inner_dim)
        self.to_k = nn.Linear(channels, inner_dim)
        self.to_v = nn.Linear(channels, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        h = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C), a view of channels_last memory
        q, k, v = (to(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        h = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](h).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) v, each (B, heads, H*W, d)."""
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":
            # Twice as fast as torch's fused kernel, the backward up to 8 times: the scores of 8 images fit into the cache.
            parts = zip((q * q.shape[-1] ** -0.5).split(8), k.split(8), v.split(8))
            return torch.cat([(q @ k.transpose(2, 3)).softmax(dim=3) @ v for q, k, v in parts])
        return F.scaled_dot_product_attention(q, k, v)


# ---------------------------------------------------------------------- blocks: one resolution each


class UNetBlock(nn.Module):
    """Residual blocks, each followed by attention unless that is None: what down, middle and up blocks share.

    in_channels lists the inputs of the residual blocks; resnet(in_channels, out_channels) and attention(channels) make the layers.
    """

    gradient_checkpointing = False  # ModelMixin.enable_gradient_checkpointing sets it, and the function below
    _gradient_checkpointing_func: Callable

    def __init__(self, in_channels: Sequence[int], out_channels: int, resnet: Callable, attention: Callable | None):
        super().__init__()
        self.attentions, self.resnets = nn.ModuleList(), nn.ModuleList()  # in stock's order
        for channels in in_channels:
            self.resnets.append(resnet(channels, out_channels))
            if attention is not None:
                self.attentions.append(attention(out_channels))

    def residual(self, i: int, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Residual block number i, whose activations are not kept under gradient checkpointing."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.resnets[i], x, temb)
        return self.resnets[i](x, temb)

    def layer(self, i: int, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Residual block number i and its attention, if there is one."""
        x = self.residual(i, x, temb)
        return self.attentions[i](x) if self.attentions else x


class DownBlock2D(UNetBlock):
    """Layers, then `downsample`, a layer that halves H and W, unless it is None."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        resnet: Callable,
        attention: Callable | None,
        downsample: Callable | None,
    ):
        super().__init__(in_channels, out_channels, resnet, attention)
        self.downsamplers = nn.ModuleList([downsample(out_channels, out_channels)] if downsample else [])

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """`x` (B, in, H, W) -> (B, out, H/2, W/2), or (B, out, H, W) without downsampling; and the output of each layer, the skips."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, temb)
            skips.append(x)
        return x, tuple(skips)


class UpBlock2D(UNetBlock):
    """Layers that take a skip each, then `upsample`, a layer that doubles H and W, unless it is None."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        resnet: Callable,
        attention: Callable | None,
        upsample: Callable | None,
    ):
        super().__init__(in_channels, out_channels, resnet, attention)
        self.upsamplers = nn.ModuleList([upsample(out_channels, out_channels)] if upsample else [])

    def forward(self, x: torch.Tensor, skips: tuple[torch.Tensor, ...], temb: torch.Tensor) -> torch.Tensor:
        """`x` (B, in, H, W) and the skips, of which the first layer takes the last -> (B, out, 2H, 2W), or (B, out, H, W)."""
        for i, skip in enumerate(reversed(skips)):
            x = self.layer(i, torch.cat([x, skip], dim=1), temb)
        for upsample in self.upsamplers:
            x = upsample(x, temb)
        return x


class UNetMidBlock2D(UNetBlock):
    """Residual block, attention, residual block, the output of each divided by `scale`."""

    def __init__(self, channels: int, resnet: Callable, attention: Callable | None, scale: float):
        super().__init__([channels], channels, resnet, attention)
        self.resnets.append(resnet(channels, channels))
        self.scale = scale

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        x = self.residual(0, x, temb) / self.scale
        for attention in self.attentions:
            x = attention(x) / self.scale
        return self.residual(1, x, temb) / self.scale


# The other types of block are these two with other parts. They have classes, as in stock, because wrappers choose blocks by class name.
class AttnDownBlock2D(DownBlock2D):
    """With attention after each residual block."""


class ResnetDownsampleBlock2D(DownBlock2D):
    """With a residual block that halves H and W in place of the convolution."""


class AttnUpBlock2D(UpBlock2D):
    """With attention after each residual block."""


class ResnetUpsampleBlock2D(UpBlock2D):
    """With a residual block that doubles H and W in place of the convolution."""


# ---------------------------------------------------------------------- the model


class DDPMUNet2DModel(UNet2DModel):
    """The U-Net, with the config, weights and call of `diffusers.UNet2DModel`: a subclass of it, with layers of its own.

    A config that cannot be built is a ValueError that names the option and its value, before memory is allocated. Integers are from 1 to
    2**20, an image has at most 2**26 pixels, a model at most 2**31 parameters.

    Args:
        sample_size: height and width of the images in pixels, H or (H, W). Each must be a multiple of 2 ** (number of levels - 1).
            The pipeline draws images of this size; the U-Net itself takes others as well.
        in_channels: C, the channels of x_t.
        out_channels: C', the channels of the output. 2 * in_channels for a learned variance.
        center_input_sample: whether to map x_t from [0, 1] to [-1, 1] first.
        time_embedding_type: "positional" (sinusoids of t) or "learned" (a table of num_train_timesteps rows).
        time_embedding_dim: D, the width of temb. None is 4 * block_out_channels[0].
        freq_shift: 0 or 1. The frequencies are 10000 ** (-i / (n - freq_shift)), i = 0..n-1, with n = block_out_channels[0] // 2.
        flip_sin_to_cos: the sinusoids are [cos, sin] if True, [sin, cos] if False.
        down_block_types: a block for each level, from the highest resolution to the lowest: "DownBlock2D", "AttnDownBlock2D" with
            attention, or "ResnetDownsampleBlock2D", which halves H and W inside a residual block (Improved DDPM).
        mid_block_type: "UNetMidBlock2D", or None for no middle block.
        up_block_types: a block for each level, from the lowest resolution to the highest: "UpBlock2D", "AttnUpBlock2D" with
            attention, or "ResnetUpsampleBlock2D", which doubles H and W inside a residual block.
        block_out_channels: channels of each level, from the highest resolution to the lowest.
        layers_per_block: residual blocks of each down block; an up block has one more.
        mid_block_scale_factor: divides the output of each layer of the middle block.
        downsample_padding: padding of the convolution that halves H and W. 0 pads at the far end only, as the paper's code does.
        downsample_type: how AttnDownBlock2D halves H and W, with a convolution ("conv") or a residual block ("resnet").
        upsample_type: how AttnUpBlock2D doubles H and W, with a convolution ("conv") or a residual block ("resnet").
        dropout: probability of dropout inside residual blocks, 0 to 1.
        act_fn: activation of the residual blocks: "silu" (also named "swish"), "mish", "gelu" or "relu".
        attention_head_dim: channels of an attention head, at most those of its block. None is one head.
        norm_num_groups: groups of every group normalisation. It must divide each of block_out_channels.
        attn_norm_num_groups: groups of the normalisation in the middle block's attention. None is norm_num_groups, or no
            normalisation where resnet_time_scale_shift is "scale_shift".
        norm_eps: epsilon of the group normalisations.
        resnet_time_scale_shift: how temb enters a residual block. "default" adds it; "scale_shift" is adaptive group normalisation.
        add_attention: whether the middle block has attention.
        class_embed_type: how class_labels enter temb. None looks up int64 (B,) in a table, "timestep" embeds (B,) like t, "identity"
            adds float vectors (B, D), such as embeddings of text.
        num_class_embeds: rows of the table of class labels, including the null label of classifier-free guidance, by convention the
            last. None is no table, and without a class_embed_type no classes.
        num_train_timesteps: rows of the table of a learned time embedding.
    """

    # For device_map="auto": all layers of a block take its skips, and so stay on one device.
    _no_split_modules = [*get_args(Down), "UNetMidBlock2D", *get_args(Up)]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: Literal["positional", "learned"] = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: Literal[0, 1] = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[Down, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: Literal["UNetMidBlock2D", None] = "UNetMidBlock2D",
        up_block_types: tuple[Up, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: Literal[0, 1] = 1,
        downsample_type: Literal["conv", "resnet"] = "conv",
        upsample_type: Literal["conv", "resnet"] = "conv",
        dropout: float = 0.0,
        act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: Literal["default", "scale_shift"] = "default",
        add_attention: bool = True,
        class_embed_type: Literal["timestep", "identity", None] = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ):
        ModelMixin.__init__(self)  # not UNet2DModel's, which would build the stock layers
        _check(self.config)
        self.sample_size = sample_size
        width = block_out_channels[0]
        self.temb_channels = temb_channels = time_embedding_dim or 4 * width

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
        self.temb_act = get_activation(act_fn)

        norm = partial(GroupNorm, norm_num_groups, eps=norm_eps)
        attention = partial(Attention, norm=norm, head_dim=attention_head_dim)
        resnet = partial(
            ResnetBlock2D,
            norm=norm,
            temb_channels=temb_channels,
            act_fn=act_fn,
            dropout=dropout,
            scale_shift=resnet_time_scale_shift == "scale_shift",
        )
        self._make_blocks(resnet, attention)

        self.conv_norm_out = norm(width)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def _make_blocks(self, resnet: Callable, attention: Callable) -> None:
        c, widths = self.config, self.config.block_out_channels
        down = {"conv": partial(Downsample2D, padding=c.downsample_padding), "resnet": partial(resnet, resample=halve)}
        up = {"conv": Upsample2D, "resnet": partial(resnet, resample=double)}
        block_types: dict[str, tuple] = {  # what they differ in: attention, and the layer that resamples
            "DownBlock2D": (DownBlock2D, None, down["conv"]),
            "AttnDownBlock2D": (AttnDownBlock2D, attention, down[c.downsample_type]),
            "ResnetDownsampleBlock2D": (ResnetDownsampleBlock2D, None, down["resnet"]),
            "UpBlock2D": (UpBlock2D, None, up["conv"]),
            "AttnUpBlock2D": (AttnUpBlock2D, attention, up[c.upsample_type]),
            "ResnetUpsampleBlock2D": (ResnetUpsampleBlock2D, None, up["resnet"]),
        }
        before, after = [widths[0], *widths[:-1]], [*widths[1:], widths[-1]]  # channels of the levels above and below
        last, repeats = len(widths) - 1, c.layers_per_block - 1
        self.down_blocks, self.mid_block, self.up_blocks = nn.ModuleList(), None, nn.ModuleList()  # in stock's order
        for i, kind in enumerate(c.down_block_types):
            block, attn, downsample = block_types[kind]
            inputs = [before[i]] + [widths[i]] * repeats
            self.down_blocks.append(block(inputs, widths[i], resnet, attn, downsample if i < last else None))
        if c.mid_block_type is not None:
            scale_shift = c.resnet_time_scale_shift == "scale_shift"
            groups = c.attn_norm_num_groups or (None if scale_shift else c.norm_num_groups)
            norm = partial(GroupNorm, groups, eps=c.norm_eps) if groups else nn.Identity
            attn = partial(attention, norm=norm) if c.add_attention else None
            self.mid_block = UNetMidBlock2D(widths[-1], resnet, attn, c.mid_block_scale_factor)
        for i, kind in zip(range(last, -1, -1), c.up_block_types):
            block, attn, upsample = block_types[kind]
            inputs = [after[i] + widths[i]] + [2 * widths[i]] * repeats + [widths[i] + before[i]]  # each with its skip
            self.up_blocks.append(block(inputs, widths[i], resnet, attn, upsample if i > 0 else None))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The model's output for x_t at t.

        Args:
            sample: x_t, (B, C, H, W) in the model's dtype.
            timestep: t, for all images (a number, () or (1,)) or for each (B,).
            class_labels: for a model with classes, int64 (B,), or floats (B, D) where class_embed_type is "identity".
            return_dict: whether to return a `UNet2DOutput` instead of a tuple.

        Returns: the output, (B, C', H, W), as `sample` or as the only item of the tuple.
        """
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        self._check_inputs(sample, timestep, class_labels)
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        dtype = self.dtype
        temb = self._embed(timestep, class_labels, dtype)
        h = self._first_convolution(sample, dtype)
        skips: tuple[torch.Tensor, ...] = (h,)
        for block in self.down_blocks:
            h, kept = block(h, temb)
            skips += kept
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        num_skips = self.config.layers_per_block + 1
        for block in self.up_blocks:
            skips, used = skips[:-num_skips], skips[-num_skips:]
            h = block(h, used, temb)
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return UNet2DOutput(sample=h) if return_dict else (h,)

    def _embed(self, timestep: torch.Tensor, class_labels: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """act(temb): (B, D), or (1, D) if all images share t and there are no labels, so that what depends on t is computed once."""
        temb = self.time_embedding(self.time_proj(timestep).to(dtype))
        if class_labels is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels.reshape(-1)).to(dtype)
            temb = temb + self.class_embedding(class_labels).to(temb.device, dtype)
        return self.temb_act(temb)

    def _first_convolution(self, sample: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """conv_in, in float32 also under autocast: bfloat16 would round away the noise of the first timesteps."""
        device = sample.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                h = self.conv_in(sample.to(dtype)).to(torch.get_autocast_dtype(device))
        else:
            h = self.conv_in(sample)
        if device == "cpu" and not self.conv_norm_out.has_few_channels:
            h = h.contiguous(memory_format=torch.channels_last)  # oneDNN's and attention's layout: 5 to 10% faster
        return h

    def _check_inputs(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None) -> None:
        if sample.ndim != 4:
            raise ValueError(f"sample of shape {tuple(sample.shape)}: expected (B, C, H, W).")
        batch_size, _, height, width = sample.shape
        multiple = 2 ** (len(self.down_blocks) - 1)
        if height % multiple or width % multiple:
            near = [f"{max(s // multiple, 1) * multiple} or {-(-s // multiple) * multiple}" for s in (height, width)]
            raise ValueError(
                f"sample of height {height} and width {width}: {len(self.down_blocks)} levels need multiples of"
                f" {multiple}; the nearest are height {near[0]}, width {near[1]}."
            )
        if class_labels is None and self.class_embedding is not None:
            raise ValueError("class_labels=None: this model needs class labels.")
        if class_labels is not None and self.class_embedding is None:
            raise ValueError(f"class_labels of shape {tuple(class_labels.shape)}: this model takes no class labels.")
        label = (self.temb_channels,) if self.config.class_embed_type == "identity" else ()
        for name, value, shape in (("timestep", timestep, ()), ("class_labels", class_labels, label)):
            if value is not None and value.shape not in (shape, (1, *shape), (batch_size, *shape)):
                raise ValueError(f"{name} of shape {tuple(value.shape)}: expected {(batch_size, *shape)}.")

    def _refuse_attention_backend(self, backend: bool | str = True, *args: Any, **kwargs: Any) -> None:
        """Attention is torch's scaled_dot_product_attention ("native"), which picks a kernel itself. Other backends are refused."""
        if backend not in (False, "native"):
            raise ValueError(
                "DDPMUNet2DModel has no attention backends: it uses torch's scaled_dot_product_attention ('native'), which"
                " is memory-efficient without xFormers. To choose its kernel, use torch.nn.attention.sdpa_kernel."
            )

    set_attention_backend = set_use_memory_efficient_attention_xformers = _refuse_attention_backend
    set_use_npu_flash_attention = set_use_xla_flash_attention = _refuse_attention_backend

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json with this very file beside it, so that the folder loads where ddpm_hf is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        code = Path(save_directory) / Path(__file__).name
        if code.is_symlink():  # to this file, as in the repository's checkpoints
            code.unlink()
        shutil.copyfile(__file__, code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """config.json without the path that the model was loaded from."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


# ---------------------------------------------------------------------- checks of a config


def _check(c: FrozenDict) -> None:
    """Raise a ValueError for values that are not of the types of `__init__`, that do not fit together, or that make a giant model."""
    kinds = {name: parameter.annotation for name, parameter in inspect.signature(DDPMUNet2DModel).parameters.items()}
    for name, kind in kinds.items():
        if not _is(c[name], kind):
            expected = inspect.formatannotation(kind).replace("typing.", "")
            limits = {"int": f", from 1 to {MAX_NUMBER}", "float": f", from 0 to {MAX_NUMBER}"}
            expected += "".join(limit for number, limit in limits.items() if number in expected)
            raise ValueError(f"{name}={reprlib.repr(c[name])}: expected {expected}.")
    widths, levels = c.block_out_channels, f"block_out_channels={reprlib.repr(c.block_out_channels)}"
    size = c.sample_size if isinstance(c.sample_size, list | tuple) else [c.sample_size or 1] * 2
    learned = c.time_embedding_type == "learned"
    for name, fits, expected in (
        ("sample_size", math.prod(size) <= MAX_PIXELS, f"at most {MAX_PIXELS} pixels"),
        ("down_block_types", len(c.down_block_types) == len(widths), f"one for each of {levels}"),
        ("up_block_types", len(c.up_block_types) == len(widths), f"one for each of {levels}"),
        ("layers_per_block", c.layers_per_block * len(widths) <= 1024, f"at most 1024 over all of {levels}"),
        ("norm_num_groups", not any(width % c.norm_num_groups for width in widths), f"a divisor of each of {levels}"),
        ("attn_norm_num_groups", not widths[-1] % (c.attn_norm_num_groups or 1), f"a divisor of the last of {levels}"),
        ("freq_shift", c.freq_shift < widths[0] // 2, f"less than half of the first of {levels}"),
        ("mid_block_scale_factor", c.mid_block_scale_factor > 0, "more than 0"),
        ("dropout", c.dropout <= 1, "at most 1"),
        ("num_train_timesteps", c.num_train_timesteps or not learned, "an int, as time_embedding_type is 'learned'"),
    ):
        if not fits:
            raise ValueError(f"{name}={reprlib.repr(c[name])}: expected {expected}.")
    if torch.get_default_device().type != "meta":  # count the parameters before they are allocated
        with torch.device("meta"):
            size = DDPMUNet2DModel(**{name: c[name] for name in kinds}).num_parameters()
        if size > MAX_PARAMETERS:
            given = ", ".join(f"{name}={reprlib.repr(c[name])}" for name, kind in kinds.items() if "int" in str(kind))
            raise ValueError(f"{given}: {size} parameters, expected at most {MAX_PARAMETERS}.")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type of `__init__`. JSON's lists count as tuples."""
    kinds = get_args(kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(kind) and value == kind for kind in kinds)
    if get_origin(kind) is UnionType:
        return any(_is(value, kind) for kind in kinds)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not value:
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    if kind in (int, float):
        return type(value) in (int, kind) and (1 if kind is int else 0) <= value <= MAX_NUMBER
    return type(value) is kind  # bool or None
