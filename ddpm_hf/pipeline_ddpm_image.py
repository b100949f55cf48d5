"""Algorithm 2 of DDPM (Ho et al. 2020, arXiv:2006.11239), and its result as images.

    x_T ~ N(0, I);  for t = T..1:  x_{t-1} ~ p(x_{t-1} | x_t)  =  scheduler.step(denoise(x_t, t, condition), t, x_t);  x_0 -> uint8

A condition is a dict of keyword tensors for the network, batch first. `encode` makes it from the user's words, `null` is its null, which
guidance subtracts, and `denoise` calls the network: training, likelihood and evaluation go through these three as well.
Classifier-free guidance (arXiv:2207.12598 Eq. 6, in the form diffusers uses): out = null + scale * (given - null), at all timesteps or
in an interval of them (arXiv:2404.07724).

`image` conditions a trained model on what is known of a picture, without training: `Measurement`, below (DDNM, arXiv:2212.00490). A model
with an `image_condition` was trained on it: what is known goes in as channels beside x_t (SR3, arXiv:2104.07636; Palette, arXiv:2111.05826).

Takes what `diffusers.DDPMPipeline` takes, in its order, then ours; any network and any scheduler of diffusers. The file stands alone: every
saved model has a copy.
"""

import copy
import inspect
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from numbers import Integral, Real
from operator import gt
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import diffusers
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils.torch_utils import get_device, randn_tensor

Condition = dict[str, torch.Tensor]  # keyword arguments of the network, batch first
Labels = int | str | Sequence[int | str] | torch.Tensor
Generator = torch.Generator | list[torch.Generator] | None


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; False for an accelerator other than CUDA's, of which nothing is known.

    A CPU that converts instead takes two to eight times as long as in float32.
    """
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported(False)
    if platform.machine() in ("x86_64", "AMD64"):  # where oneDNN calls the conversion support
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Measurement:
    """What is known of x_0: y = A x_0, its means over blocks of channels, rows and columns, where they are known.

    A+ repeats a mean over its block, so that A A+ = 1. With blocks of one value A is a mask, and the rest is repainted; with blocks of
    pixels the picture is enlarged, with blocks of channels coloured.

    Args:
        y: (B or 1, c, h, w) float32 in [-1, 1]; c, h and w divide those of x_0 (B, C, H, W).
        known: (B or 1, 1, h, w), 1 where y is known and 0 elsewhere.
    """

    def __init__(self, y: torch.Tensor, known: torch.Tensor):
        self.y, self.known = y, known

    def correct(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0 (B, C, H, W) projected on its range and on the measurement in turn: within the range, clamping spoils no mean."""
        if self.y.shape[1:] == x_0.shape[1:]:  # a mask: A x_0 is x_0 where it is known
            return torch.lerp(x_0.clamp(-1, 1), self.y, self.known)
        _, c, h, w = self.y.shape
        for _ in range(20):
            x_0 = x_0.clamp(-1, 1)
            missing = self.known * (self.y - F.adaptive_avg_pool3d(x_0, (c, h, w)))  # y - A x_0
            x_0 = x_0 + F.interpolate(missing[None], x_0.shape[1:])[0]  # x_0 + A+(y - A x_0), DDNM Eq. 13
        return x_0

    def as_channels(self, size: Sequence[int]) -> torch.Tensor:
        """What a network takes beside x_t (B, C, H, W), size (C, H, W): A+ y, and 1 where it is known; both are 0 elsewhere. (B or 1, C + 1, H, W)."""
        repeated = F.interpolate((self.known * self.y)[None], tuple(size))[0]
        known = F.interpolate(self.known, tuple(size[1:])).expand(len(repeated), -1, -1, -1)
        return torch.cat([repeated, known], dim=1)

    def correct_output(
        self, output: torch.Tensor, x_t: torch.Tensor, abar: torch.Tensor, prediction_type: str
    ) -> torch.Tensor:
        """The network's output (B, C or 2C, H, W) at x_t whose x_0 satisfies the measurement. abar: (), alphas_cumprod of t."""
        of_x_t, of_output = _x_0_weights(abar, prediction_type)
        prediction, variance = output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]
        known = of_x_t * x_t
        x_0 = self.correct(known + of_output * prediction)
        return torch.cat([(x_0 - known) / of_output, variance], dim=1)


class DDPMImagePipeline(DiffusionPipeline):
    """Images from noise.

    Args:
        unet: the network, ours, diffusers' or any other ModelMixin that is called as (x_t, t, class_labels=...) and has sample_size and
            in_channels in its config.
        scheduler: ours or diffusers'; the network predicts what it expects.
        text_encoder, tokenizer: of transformers, frozen, for a model of text: one whose class labels are vectors
            (class_embed_type="identity"). A prompt's vector is the mean of its tokens, normalised, times sqrt(D).
        id2label: names of the classes; a label beyond them is the null label of classifier-free guidance.
        image_condition: how the image is made that the network takes beside x_t, one of IMAGE_CONDITIONS, or the name of the data set's
            column that has it. Of x_0 with C channels it takes C of what is known, and one that is 1 where it is known (`Measurement`).
        sampling: how the model wants to be sampled, any of {"num_inference_steps": int, "timesteps": list of as many int, "eta": float,
            "solver_order": int, "guidance_scale": float, "guidance_interval": list of two}. It is saved with the model, and holds where a
            call names no others. Without it a call does what `DDPMPipeline` does.
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "pred_original_sample"]
    interrupt = property(lambda self: self._interrupt)  # as in diffusers' pipelines: a callback sets the attribute

    # Optional: diffusers before 0.37 reads these annotations, and not `dict | None`.
    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        id2label: Optional[dict] = None,  # noqa: UP045
        sampling: Optional[dict] = None,  # noqa: UP045
        text_encoder: Optional[torch.nn.Module] = None,  # noqa: UP045
        tokenizer: Optional[object] = None,  # noqa: UP045
        image_condition: Optional[str] = None,  # noqa: UP045
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)
        self._null_vector: torch.Tensor | None = None
        self._compiled_step: Callable | None = None
        self.id2label = dict(sorted((int(label), name) for label, name in (id2label or {}).items()))
        self.sampling = _check_sampling(sampling or {})
        if image_condition is not None:
            check_image_condition(image_condition, unet.config)
        self.image_condition = image_condition
        told = {"id2label": self.id2label or None, "sampling": self.sampling or None}
        self.register_to_config(**told, image_condition=image_condition)

    # ------------------------------------------------------------------ a condition

    @property
    def num_channels(self) -> int:
        """Those of an image; the network takes more of them where it has an `image_condition`."""
        return num_image_channels(self.unet.config, self.image_condition)

    @property
    def num_labels(self) -> int | None:
        """How many class labels the network knows, a null label included; None for a network without classes."""
        config = self.unet.config
        if config.get("num_embeds_ada_norm") is not None:  # DiT's: its table has a null label beyond them
            return config["num_embeds_ada_norm"] + 1
        return config.get("num_class_embeds")

    @property
    def null_label(self) -> int | None:
        """The label that means "no class": the last one, where `id2label` names the classes and the model has more labels."""
        num_labels = self.num_labels
        return num_labels - 1 if num_labels is not None and num_labels > len(self.id2label) > 0 else None

    @property
    def is_student(self) -> bool:
        """Whether the model was made to sample in few steps, as its scheduler or its saved sampling says.

        Its x_0 is a sample. That of a model of many steps is the mean of all that are possible.
        """
        few = self.sampling.get("num_inference_steps", 1000) <= FEW_STEPS and self.sampling.get("guidance_scale") == 1
        is_own_rule = not {"eta", "solver_order"} & self.sampling.keys()
        return type(self.scheduler).__name__ in ("LCMScheduler", "TCDScheduler") or (few and is_own_rule)

    @property
    def takes(self) -> tuple[str, ...]:
        """The arguments of `encode` that a batch of training data has for this model."""
        words = ("prompt_embeds",) if self._takes_text else ("class_labels",) if self._takes_words else ()
        return words if self.image_condition is None else (*words, "condition_image")

    @property
    def _takes_words(self) -> bool:
        return self._takes_text or self.num_labels is not None

    @property
    def _takes_text(self) -> bool:
        return self.unet.config.get("class_embed_type") == "identity"

    def encode(
        self,
        class_labels: Labels | None = None,
        prompt: str | Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        batch_size: int | None = None,
        condition_image: torch.Tensor | None = None,
    ) -> Condition:
        """The condition of `batch_size` images, on the pipeline's device. With nothing given it is the null.

        Args:
            class_labels: a label or name for all images, or one for each.
            prompt: a text for all images, or one for each.
            prompt_embeds: its vector in place of a text, float (D,) or (B, D).
            batch_size: None is the number of labels, prompts, vectors or images.
            condition_image: what is known of the images, as a batch of data has it: float (1 or B, C + 1, H, W), `Measurement.as_channels`.

        Raises:
            ValueError: what is given is not what this model was trained on, or it has no null.
        """
        self._check_condition_image(condition_image)
        return self._condition(self._rows(class_labels, prompt, prompt_embeds), condition_image, batch_size)

    def _condition(self, rows: torch.Tensor | None, image: torch.Tensor | None, batch_size: int | None) -> Condition:
        """The condition of `_rows` and of what is known of the images."""
        condition, device = {}, self._execution_device
        if self._takes_words:
            rows = self._null_row(f"{self.takes[0]}=None") if rows is None else rows
            rows = rows[None] if rows.ndim == self._takes_text else rows  # one for all images
            condition["class_labels"] = rows.to(device, non_blocking=True)
        if self.image_condition is not None:
            image = torch.zeros(1, self.num_channels + 1, 1, 1) if image is None else image  # nothing is known
            condition["image"] = image.to(device, torch.float32, non_blocking=True)
        counts = {name: len(value) for name, value in condition.items() if len(value) > 1}
        batch_size = max(counts.values(), default=1) if batch_size is None else batch_size
        if any(count != batch_size for count in counts.values()):
            raise ValueError(f"batch_size={batch_size} must agree with the lengths of {counts}.")
        return {name: value.expand(batch_size, *value.shape[1:]) for name, value in condition.items()}

    def null(self, condition: Condition) -> Condition:
        """The null of a condition, of the same shape and dtype: the null label, or the vector of the prompt ""; of an image, 0: nothing is known.

        Raises:
            ValueError: the model has none.
        """
        null = {name: torch.zeros_like(value) for name, value in condition.items()}
        if "class_labels" in condition:
            rows = condition["class_labels"]
            null["class_labels"] = self._null_row("guidance_scale").to(rows, non_blocking=True).expand_as(rows)
        return null

    def _with_null(
        self, condition: Condition, negative_prompt: str | Sequence[str] | None, batch_size: int
    ) -> Condition:
        """The condition of B images, and then what guidance leads away from: of 2B."""
        null = self.null(condition)
        if negative_prompt is not None:
            null["class_labels"] = self.encode(prompt=negative_prompt, batch_size=batch_size)["class_labels"]
        return {name: torch.cat([condition[name], null[name]]) for name in condition}

    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """The vectors of texts: (N, D) float32 of length sqrt(D), the mean of each text's tokens."""
        if self.text_encoder is None:
            raise ValueError("prompt: this model came without its text encoder; give prompt_embeds.")
        most = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        if tokens.input_ids.shape[1] > most:
            raise ValueError(f"prompt has {tokens.input_ids.shape[1]} tokens: this text encoder takes at most {most}.")
        tokens = tokens.to(self._execution_device)
        with torch.no_grad():
            states = self.text_encoder(**tokens).last_hidden_state.float()
        mask = tokens.attention_mask[..., None]
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=1) * mean.shape[1] ** 0.5

    def denoise(
        self, x_t: torch.Tensor, t: torch.Tensor | int, condition: Condition, network: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """The network's output for x_t (B, C, H, W) at t, () or (B,): (B, C', H, W) float32, C' = 2C with a learned variance.

        network: what is called in place of `unet`: the same network under a wrapper (DDP, `torch.compile`), or another average of it.
        """
        network = self.unet if network is None else network
        if isinstance(t, torch.Tensor):
            t = t.to(x_t.device, non_blocking=True).reshape(-1)
        else:
            t = torch.full((1,), t, device=x_t.device)
        words = dict(condition)
        if (image := words.pop("image", None)) is not None:
            x_t = torch.cat([x_t, image.expand(-1, -1, *x_t.shape[2:])], dim=1)
        return network(x_t.to(self.unet.dtype), t, **words, return_dict=False)[0].float()

    def predict_x_0(self, output: torch.Tensor, t: torch.Tensor | int, x_t: torch.Tensor) -> torch.Tensor:
        """The x_0 (B, C, H, W) that the network's output at x_t and t, () or (B,), stands for; not clipped.

        For every scheduler that has alphas_cumprod and predicts noise, x_0 or v.
        """
        t = torch.as_tensor(t).to(x_t.device, non_blocking=True).long().reshape(-1, 1, 1, 1)
        abar = self.scheduler.alphas_cumprod.to(x_t.device, non_blocking=True)[t]
        of_x_t, of_output = _x_0_weights(abar, self.scheduler.config.prediction_type)
        return of_x_t * x_t + of_output * output[:, : x_t.shape[1]]

    def _guided(
        self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition, scale: float, rescale: float
    ) -> torch.Tensor:
        """`denoise`, under guidance where the scale is not 1, in one call. condition: that of the B images; for guidance, then their null."""
        if scale == 1:
            return self.denoise(x_t, t, condition)
        output = self.denoise(x_t.repeat(2, 1, 1, 1), t, condition)
        given, null = output[:, : x_t.shape[1]].chunk(2)  # learned variance channels are not guided
        guided = null + scale * (given - null)  # Eq. 6
        if rescale > 0:
            ratio = given.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
            guided = guided * (rescale * ratio + 1 - rescale)
        return torch.cat([guided, output[: len(guided), x_t.shape[1] :]], dim=1)

    def _output(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        condition: Condition,
        scale: float,
        rescale: float,
        drops_variance: bool,
        known: tuple[Measurement, torch.Tensor] | None,
        prediction_type: str,
    ) -> torch.Tensor:
        """`_guided`, as the scheduler and the measurement have it. known: the measurement, and alphas_cumprod of t."""
        output = self._guided(x_t, t, condition, scale, rescale)
        output = output[:, : x_t.shape[1]] if drops_variance else output
        return output if known is None else known[0].correct_output(output, x_t, known[1], prediction_type)

    def _step(
        self,
        scheduler: SchedulerMixin,
        latents: torch.Tensor,
        x_t: torch.Tensor,
        t: torch.Tensor,
        timestep: torch.Tensor,
        guided: tuple[Condition, float, float, bool],
        known: tuple[Measurement, torch.Tensor] | None,
        options: dict,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """A line of Algorithm 2: x_{t-1}, x_0 where the scheduler tells it, and the network's output. x_t: the network's input for latents."""
        output = self._output(x_t, t, *guided, known, scheduler.config.get("prediction_type"))
        step = scheduler.step(output, timestep, latents, **options)
        return step.prev_sample, getattr(step, "pred_original_sample", None), output

    def compile(self, **options: Any) -> None:
        """Compile a step of sampling into one graph: the network, guidance, what is known of a picture and, for our scheduler, its step.

        The first call compiles, which takes its time, and so does a call with other options than before.

        options: of `torch.compile`. Without a mode it is "reduce-overhead" (CUDA graphs) where the pipeline is on a GPU.
        """
        if self._execution_device.type == "cuda":
            options = {"mode": "reduce-overhead"} | options
        self._output = torch.compile(self._output, **options)  # type: ignore[method-assign]
        self._compiled_step = torch.compile(self._step, **options)

    # ------------------------------------------------------------------ Algorithm 2

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        eta: float | None = None,
        latents: torch.Tensor | None = None,
        autocast: bool | None = None,
        callback_on_step_end: Callable[["DDPMImagePipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "pred_original_sample"),
        solver_order: int | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        strength: float | None = None,
        num_resample: int = 1,
        condition_image: torch.Tensor | None = None,
        timesteps: Sequence[int] | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw `images`: in an `ImagePipelineOutput`, or in a tuple where return_dict is False.

        Args:
            batch_size: number of images; a list of class_labels gives it as well.
            generator: one for the whole batch, or a list with one for each image, whose picture then depends on its own generator only.
            num_inference_steps: None is the number saved with the model, or else 1000. The saved timesteps, eta and solver_order belong to
                the saved number: with another number or another of the three, those that are not named are the scheduler's own.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), both float32 in [0, 1], or "latent": x_0 as it is.
            class_labels: a label or name for all images, or one for each; None is unconditional.
            guidance_scale: 1 is plain conditional sampling, more is more typical of the class. None is the one saved with the model.
            guidance_rescale: 0 to 1, how much of the guided output's deviation is put back to the unguided one's (arXiv:2305.08891, Section 3.4).
            eta: None is the saved one, or else the scheduler's own rule (ours is ancestral, as in the paper); 0 is DDIM, 1 DDPM, for
                schedulers whose step takes it. Where a model repaints, enlarges or colours without having learnt it, 1 replaces a saved one.
                A DDIM step's noise goes by the clipped x_0: diffusers' `use_clipped_model_output=True`.
            latents: the initial noise x_T, (B, C, H, W), instead of a draw.
            autocast: run the network in bfloat16; None: a float32 one, for the saved number of steps, where the hardware has bfloat16.
                False is the reference.
            callback_on_step_end: called as f(pipe, step_index, t, tensors) after each step, under the network's autocast; a dict with "latents"
                that it returns replaces them. `pipe._interrupt = True` stops the loop.
            solver_order: 2 lets a step of our scheduler look back at the one before (DPM-Solver++ 2M); None is 1.
            prompt: a text for all images, or one for each, for a model of text. prompt_embeds: its vector, float (D,) or (B, D).
            negative_prompt: the text that guidance leads away from; None is "".
            image: a picture or a batch, as PIL, numpy (H, W, C) or (B, H, W, C), or tensor (C, H, W) or (B, C, H, W), floats in [0, 1].
                Of the model's size it is changed; where its sides are whole fractions of the model's it is enlarged, and a grey one is
                coloured by a model of colours: the result's block means are the picture. A model with an `image_condition` is conditioned
                on it as well, and takes what it was trained on alone.
            mask_image: of the image's size; white is repainted and black kept as it is.
            strength: above 0, up to 1: the share of the steps that is taken, from the image with noise. 1 starts from noise alone, and
                is the default of repainting, enlarging and colouring; 0.8 is that of changing. Saved timesteps that are closer where there
                is little noise start with less of it.
            num_resample: how often each step is taken, with noise put back in between (RePaint, arXiv:2201.09865, Algorithm 1): more of
                them join what is painted better to what is known.
            condition_image: what is known in place of image and mask_image, as `encode` takes it; it conditions, and is not imposed.
            timesteps: those that are taken, in descending order, for schedulers that take a list. None is the saved list with the saved
                number of steps, or else the scheduler's own spacing.
            guidance_interval: the least and the most timestep at which guidance acts; at the others a step costs half. None is the saved
                one, whatever the guidance_scale, or else all timesteps.

        Raises:
            ValueError: an argument that this model, its scheduler or another argument does not allow.
        """
        if isinstance(generator, list) and len(generator) == 1:  # as diffusers takes it
            (generator,) = generator
        rows = self._rows(class_labels, prompt, prompt_embeds)
        image = self._read_image(image)
        mask_image = self._read_mask(mask_image, image)
        self._check_condition_image(condition_image, image)
        batch_size = self._batch_size(batch_size, rows, generator, latents, image, mask_image, condition_image)
        is_imaged = self.image_condition is not None
        is_conditional = rows is not None or condition_image is not None or (is_imaged and image is not None)
        named = (num_inference_steps, eta, solver_order, guidance_scale, is_conditional, timesteps, guidance_interval)
        sampling = self.resolve_sampling(*named)
        steps, solver_order, named_eta = sampling["num_inference_steps"], sampling["solver_order"], eta
        if negative_prompt is not None and not (self._takes_text and sampling["guidance_scale"] != 1):
            raise ValueError(f"negative_prompt={negative_prompt!r} needs a model of text, a prompt and guidance.")
        callback_tensors = callback_on_step_end_tensor_inputs
        self._check_options(output_type, guidance_rescale, callback_tensors, num_resample)
        device = self._execution_device
        if autocast is None:
            is_fast = steps == self._saved_steps and self.unet.dtype == torch.float32
            autocast = is_fast and has_bfloat16(device)
        is_compiled = self._compiled_step is not None and self._looks_back
        # Ours takes a timestep on the CPU: its coefficients are numbers then, which need no launch. A compiled step reads none.
        on_cpu = self._looks_back and not is_compiled
        scheduler = self._chain(steps, sampling["timesteps"], torch.device("cpu") if on_cpu else device)
        noise = self._initial_noise(batch_size, generator, latents, device)
        measurement = self._measurement(image, mask_image, noise)
        if is_imaged and measurement is not None:
            condition_image = measurement.as_channels(noise.shape[1:])
        if condition_image is not None and condition_image.shape[2:] != noise.shape[2:]:
            sizes = ("{}x{}".format(*x.shape[2:]) for x in (condition_image, noise))
            raise ValueError("condition_image is {}: this model draws {}.".format(*sizes))
        condition = self._condition(rows, condition_image, batch_size)
        if image is not None and mask_image is None and image.shape[1:] == noise.shape[1:]:
            measurement = None  # the picture is changed, or conditions
        eta = sampling["eta"]
        if measurement is not None and not is_imaged and named_eta is None and eta is not None:
            eta = 1.0  # the noise joins what is drawn to what is known; the saved eta was chosen without a picture
        options = self._step_options(None if is_compiled else generator, eta)
        taken, latents = self._start(scheduler, steps, image, measurement, strength, noise)
        abar = None if measurement is None and num_resample == 1 else self._abar(scheduler, taken, num_resample)
        guided = plain = condition, 1.0, 0.0, not _knows_variance(scheduler)
        guides = _guides(taken, sampling)
        if any(guides):
            with_null = self._with_null(condition, negative_prompt, batch_size)
            guided = with_null, sampling["guidance_scale"], guidance_rescale, plain[-1]
        step, self._interrupt = self._compiled_step if is_compiled else self._step, False
        if is_compiled and solver_order == 2 and len(taken) == len(scheduler.timesteps):
            options["previous_original_sample"] = torch.zeros_like(latents)  # of weight 0: one graph for all steps
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():  # casts the weights once
            for i, t in enumerate(self.progress_bar(taken.to(device, non_blocking=True))):
                for again in reversed(range(num_resample)):
                    chain = copy.deepcopy(scheduler) if again else scheduler  # a step to be taken back leaves no trace
                    x_t = chain.scale_model_input(latents, t)
                    if is_compiled and eta != 0:  # drawn as the step does, which draws none at the end
                        is_last = i == len(taken) - 1
                        noise = torch.zeros_like(latents) if is_last else _randn(latents.shape, generator, device)
                        options["variance_noise"] = noise
                    known = None if measurement is None else (measurement, abar[i])
                    way = guided if guides[i] else plain
                    latents, x_0, output = step(chain, latents, x_t, t, taken[i], way, known, options)
                    if is_compiled:  # the memory of a CUDA graph's results is used by its next run
                        latents, x_0 = latents.clone(), x_0.clone()
                    if again:
                        latents = _noised_again(latents, abar[i] / abar[i + 1], generator)
                if solver_order == 2:  # a copy: a callback may write to its own
                    options["previous_original_sample"] = x_0.clone()
                if callback_on_step_end is not None:
                    if x_0 is None and _tells_x_0(scheduler):
                        x_0 = self.predict_x_0(output, t, x_t)
                    tensors = {"latents": latents, "pred_original_sample": x_0}
                    tensors = {name: tensors[name] for name in callback_tensors}
                    latents = _replaced(callback_on_step_end(self, i, t, tensors), latents)
                    if latents.shape != x_t.shape:  # nothing to look back at
                        options.pop("previous_original_sample", None)
                if self.interrupt:
                    break

        if measurement is not None:
            latents = measurement.correct(latents)
        images = self._to_images(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def invert(
        self,
        image: PipelineImageInput,
        num_inference_steps: int = 50,
        class_labels: Labels | None = None,
        prompt: str | Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The noise (B, C, H, W) from which DDIM draws the pictures.

        `pipe(latents=pipe.invert(image), eta=0, num_inference_steps=50)`, with the same condition and without guidance, gives them back.
        With abar = cos(angle)^2 a step from x_t to x_s is a turn: x_s = cos(turn) x_t - sin(turn) v(x_t). It is undone by two rounds of
        fixed-point iteration, x_t = (x_s + sin(turn) v(x_t)) / cos(turn) (arXiv:2309.04907); the first is DDIM inversion as it is known.

        Raises:
            ValueError: channels or a condition that the model does not take, or a scheduler without DDIM steps.
        """
        if "eta" not in self._step_takes:
            raise ValueError(
                f"invert: {type(self.scheduler).__name__} takes no eta; take a scheduler with DDIM steps."
            )
        device, rows = self._execution_device, self._rows(class_labels, prompt, prompt_embeds)
        x_s = self._read_image(image, may_be_grey=False).to(device)
        batch_size = self._batch_size(1, rows, None, None, x_s)
        condition = self._condition(rows, None, batch_size)
        scheduler = copy.copy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=device)
        options, drops_variance = self._step_options(None, 0.0), not _knows_variance(scheduler)
        abar = self._abar(scheduler, scheduler.timesteps, 1)
        angles = torch.atan2((1 - abar) ** 0.5, abar**0.5)
        steps = list(zip(scheduler.timesteps, angles, angles[:-1] - angles[1:]))
        x_s = x_s.expand(batch_size, -1, -1, -1)
        for t, angle, turn in self.progress_bar(steps[::-1]):
            x_t = x_s
            for _ in range(2):
                output = self.denoise(x_t, t, condition)
                output = output[:, : x_t.shape[1]] if drops_variance else output
                x_0 = scheduler.step(output, t, x_t, **options).pred_original_sample  # clipped as DDIM's
                v = (angle.cos() * x_t - x_0) / angle.sin()
                x_t = (x_s + turn.sin() * v) / turn.cos()
            x_s = x_t
        self.maybe_free_model_hooks()
        return x_s

    @staticmethod
    def slerp(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
        """From noise a to noise b, of one shape, on a sphere: a at weight 0, b at 1, and as large as they are in between (Shoemake 1985)."""
        angle = torch.acos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)).clamp(min=1e-4)
        return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)

    def _to_images(self, x_0: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list[PIL.Image.Image]:
        if output_type == "latent":
            return x_0
        images = (x_0 / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays

    # ------------------------------------------------------------------ arguments

    @property
    def _step_takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that this scheduler's step knows."""
        return inspect.signature(self.scheduler.step).parameters

    @property
    def _looks_back(self) -> bool:
        """Whether the scheduler is ours, whose step can be of second order."""
        return "previous_original_sample" in self._step_takes

    @property
    def _saved_steps(self) -> int | None:
        steps = self.sampling.get("num_inference_steps")
        return steps and min(steps, len(self.scheduler))

    def _chain(
        self, num_inference_steps: int, timesteps: Sequence[int] | None, device: torch.device | None = None
    ) -> SchedulerMixin:
        """A copy of the scheduler, with the timesteps of one call."""
        scheduler = copy.copy(self.scheduler)
        named = {"num_inference_steps": num_inference_steps} if timesteps is None else {"timesteps": timesteps}
        scheduler.set_timesteps(**named, device=device)
        return scheduler

    def num_evaluations(self, sampling: Mapping[str, Any]) -> int:
        """How many evaluations of the network an image takes, drawn as `resolve_sampling` returns it; a guided step takes two."""
        taken = self._chain(sampling["num_inference_steps"], sampling["timesteps"]).timesteps
        return len(taken) + sum(_guides(taken, sampling))

    def resolve_sampling(
        self,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        solver_order: int | None = None,
        guidance_scale: float | None = None,
        is_conditional: bool = True,
        timesteps: Sequence[int] | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """How a call with these arguments, without a picture, samples, by the same names: as named, else as saved, else as the scheduler does.

        is_conditional: whether the call names a condition.

        Raises:
            ValueError: a value that the scheduler or the model does not take.
        """
        steps, kind, looks_back = num_inference_steps, type(self.scheduler).__name__, self._looks_back
        if timesteps is not None:
            takes_list = "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters
            timesteps = timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps
            if not takes_list or not _descend(timesteps):
                wanted = "whole numbers in descending order" if takes_list else "none; name num_inference_steps"
                raise ValueError(f"timesteps={timesteps}: {kind} takes {wanted}.")
            timesteps = list(timesteps)
            if steps not in (None, len(timesteps)):
                raise ValueError(f"num_inference_steps={steps} and {len(timesteps)} timesteps: pass one of them.")
            steps = len(timesteps)
        if steps is None:
            steps = self._saved_steps or min(1000, len(self.scheduler))
        elif not isinstance(steps, Integral) or isinstance(steps, bool) or int(steps) < 1:
            raise ValueError(f"num_inference_steps={steps!r} must be a whole number of at least 1.")
        if not 0 <= (eta or 0) <= 1:
            raise ValueError(f"eta={eta} must be from 0 to 1.")
        if eta is not None and "eta" not in self._step_takes:
            raise ValueError(f"eta={eta}: {kind} takes none; None is its own rule.")
        if solver_order is not None and not (looks_back and solver_order in (1, 2)):
            raise ValueError(f"solver_order={solver_order}: {kind} takes {'1 or 2' if looks_back else 'none'}.")
        rule = {"timesteps": timesteps, "eta": eta, "solver_order": solver_order}
        saved = {name: self.sampling.get(name) for name in rule}
        is_saved = steps == self._saved_steps and all(rule[name] in (None, saved[name]) for name in rule)
        if looks_back and is_saved and (not saved["timesteps"] or saved["timesteps"][0] < len(self.scheduler)):
            rule = saved
        scale = self._guidance_scale(guidance_scale, is_conditional)
        if guidance_interval is None:
            guidance_interval = self.sampling.get("guidance_interval")
        elif not _is_interval(guidance_interval):
            raise ValueError(f"guidance_interval={guidance_interval!r} must be the least and the most timestep.")
        interval = None if scale == 1 or guidance_interval is None else list(guidance_interval)
        return {"num_inference_steps": steps, **rule, "guidance_scale": scale, "guidance_interval": interval}

    def _guidance_scale(self, guidance_scale: float | None, is_conditional: bool) -> float:
        if guidance_scale is None:
            has_null = self._takes_text or self.null_label is not None or not self._takes_words
            can_guide = is_conditional and has_null
            return self.sampling.get("guidance_scale", 1.0) if can_guide else 1.0
        if not (isinstance(guidance_scale, Real) and 0 <= guidance_scale < float("inf")):
            raise ValueError(f"guidance_scale={guidance_scale!r} must be a number of at least 0.")
        if guidance_scale != 1:
            if not is_conditional:
                words = {"prompt_embeds": "a prompt", "condition_image": "image"}
                needed = words.get(next(iter(self.takes), ""), "class_labels")
                raise ValueError(f"guidance_scale={guidance_scale} needs {needed} to guide to.")
            if self._takes_words:
                self._null_row(f"guidance_scale={guidance_scale}")
        return guidance_scale

    def _null_row(self, wanting: str) -> torch.Tensor:
        """The null of one image: label () or vector (D,)."""
        if self._takes_text:
            if self._null_vector is None:
                self._null_vector = self.embed_prompts([""])[0]
            return self._null_vector
        if self.null_label is None:
            raise ValueError(
                f"{wanting}: this model has no null label; name a class for each image, guidance_scale=1."
            )
        return torch.tensor(self.null_label)

    def _check_options(
        self, output_type: str, guidance_rescale: float, callback_tensors: Sequence[str], num_resample: int
    ) -> None:
        if output_type not in ("pil", "np", "numpy", "pt", "latent"):
            raise ValueError(f"output_type={output_type!r}: choose 'pil', 'np', 'pt' or 'latent'.")
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={guidance_rescale} must be from 0 to 1.")
        if not (isinstance(num_resample, int) and num_resample >= 1):
            raise ValueError(f"num_resample={num_resample!r} must be a whole number of at least 1.")
        if unknown := set(callback_tensors) - set(known := self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}: choose from {known}.")

    def _rows(
        self, class_labels: Labels | None, prompt: str | Sequence[str] | None, prompt_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """What the images are conditioned on: labels int64 () or (B,), or vectors float32 (D,) or (B, D); None where nothing is given."""
        given = {"class_labels": class_labels, "prompt": prompt, "prompt_embeds": prompt_embeds}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"Pass one of {' and '.join(given)}, and not both.")
        if "class_labels" in given and not self._takes_text:
            return self._labels(class_labels)
        if given and not (self._takes_text and "class_labels" not in given):
            trained = "text" if self._takes_text else "class labels" if self.num_labels is not None else "no condition"
            raise ValueError(
                f"{next(iter(given))}={next(iter(given.values()))!r}: this model was trained with {trained}."
            )
        if prompt is not None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not prompts or not all(isinstance(text, str) for text in prompts):
                raise ValueError(f"prompt={prompt!r} must be a text or a list of texts.")
            vectors = self.embed_prompts(prompts)
            return vectors[0] if isinstance(prompt, str) else vectors
        if prompt_embeds is not None and prompt_embeds.shape[-1] != (width := self.unet.config.time_embedding_dim):
            raise ValueError(f"prompt_embeds has shape {tuple(prompt_embeds.shape)}: the last size must be {width}.")
        return prompt_embeds

    def _labels(self, class_labels: Labels | None) -> torch.Tensor | None:
        """class_labels as int64, () for one label for all or (B,); checked against the model."""
        if kind := self.unet.config.get("class_embed_type"):
            raise ValueError(
                f"unet.config.class_embed_type={kind!r}: this pipeline takes labels of a table alone (None)."
            )
        if class_labels is None:
            return None
        if self.num_labels is None:
            raise ValueError(f"class_labels={class_labels}: this model was trained without class labels.")
        if isinstance(class_labels, str):
            class_labels = self.get_label_ids(class_labels)[0]
        elif not isinstance(class_labels, int | Integral | torch.Tensor):
            class_labels = [self.get_label_ids(c)[0] if isinstance(c, str) else c for c in class_labels]
        labels = torch.as_tensor(class_labels)
        is_whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
        if (
            labels.numel() == 0
            or labels.ndim > 1
            or not is_whole
            or labels.min() < 0
            or labels.max() >= self.num_labels
        ):
            raise ValueError(
                f"class_labels={class_labels}: give one label or a list; this model has labels 0 to {self.num_labels - 1}."
            )
        return labels.long()

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """Labels of class names, e.g. ["Sneaker", "Bag"] -> [7, 8]; case does not matter where it makes no difference."""
        names = [names] if isinstance(names, str) else list(names)
        exact = {name: label for label, name in self.id2label.items()}
        lower = {name.lower(): label for name, label in exact.items()}
        folded = {} if len(lower) < len(exact) else lower
        found = [exact.get(name, folded.get(name.lower())) for name in names]
        if unknown := [name for name, label in zip(names, found) if label is None]:
            raise ValueError(f"class_labels={unknown}: this model knows {list(self.id2label.values())}.")
        return found

    def _batch_size(
        self,
        batch_size: int,
        rows: torch.Tensor | None,
        generator: Generator,
        latents: torch.Tensor | None,
        *images: torch.Tensor | None,
    ) -> int:
        """The one number of images that all arguments agree on."""
        if not isinstance(generator, torch.Generator | list | None):
            raise ValueError(f"generator={generator!r} must be a torch.Generator, or a list with one for each image.")
        is_list = rows is not None and rows.ndim > self._takes_text
        word, own = (
            "prompt" if self._takes_text else "class_labels",
            generator if isinstance(generator, list) else None,
        )
        given: dict[str, Any] = {word: rows if is_list else None, "latents": latents, "generator": own}
        for name, value in zip(("image", "mask_image", "condition_image"), images):
            given[name] = None if value is None or len(value) == 1 else value  # one serves all
        counts = {name: len(value) for name, value in given.items() if value is not None}
        if batch_size == 1 and counts:
            batch_size = max(counts.values())
        if batch_size < 1 or any(count != batch_size for count in counts.values()):
            raise ValueError(f"batch_size={batch_size} must be at least 1 and agree with the lengths of {counts}.")
        return batch_size

    def _initial_noise(
        self, batch_size: int, generator: Generator, latents: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor:
        if latents is None:
            size = self.unet.config.sample_size
            if size is None:
                raise ValueError("latents=None: unet.config.sample_size is not set; give the initial noise.")
            shape = (batch_size, self.num_channels, *((size, size) if isinstance(size, int) else size))
            latents = _randn(shape, generator, device)
        return latents.to(device, torch.float32, non_blocking=True)

    def _read_image(self, image: PipelineImageInput | None, may_be_grey: bool = True) -> torch.Tensor | None:
        """`image` as float32 (N, C, H, W) in [-1, 1], of any size; C is the model's, or 1 where it may be grey."""
        if image is None:
            return None
        for picture in image if isinstance(image, list) else [image]:
            if isinstance(picture, PIL.Image.Image) and picture.mode not in ("L", "RGB"):
                raise ValueError(f"image has mode {picture.mode!r}: convert it to 'L' or 'RGB'.")
        num_channels = self.num_channels
        image = _preprocess("image", image, do_convert_grayscale=num_channels == 1)
        if image.shape[1] != num_channels and not (may_be_grey and image.shape[1] == 1):
            raise ValueError(f"image has {image.shape[1]} channels: this model draws {num_channels}.")
        return image

    def _read_mask(self, mask_image: PipelineImageInput | None, image: torch.Tensor | None) -> torch.Tensor | None:
        """`mask_image` as float32 (N, 1, h, w), 1 where it is white."""
        if mask_image is None:
            return None
        if image is None:
            raise ValueError("mask_image needs image, the picture that it hides a part of.")
        mask = _preprocess("mask_image", mask_image, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        if mask.shape[1:] != (1, *image.shape[2:]):
            raise ValueError(f"mask_image has shape {tuple(mask.shape)}: image has {tuple(image.shape)}.")
        return mask

    def _check_condition_image(self, condition_image: torch.Tensor | None, image: torch.Tensor | None = None) -> None:
        if condition_image is None:
            return
        if self.image_condition is None:
            raise ValueError("condition_image: this model was trained without one; give image.")
        if image is not None:
            raise ValueError("Pass one of condition_image and image, and not both.")
        if condition_image.ndim != 4 or condition_image.shape[1] != self.num_channels + 1:
            channels = self.num_channels + 1
            raise ValueError(
                f"condition_image has shape {tuple(condition_image.shape)}: it must be (B, {channels}, H, W)."
            )

    def _check_kind(self, image: torch.Tensor, mask: torch.Tensor | None, size: torch.Size) -> None:
        """A model that was trained on one kind of measurement of x_0, of size (C, H, W), takes no other."""
        ratios = {whole // part for part, whole in zip(image.shape[2:], size[1:])}
        told = {"masked": mask is not None, "grey": image.shape[1] != size[0], "lower_resolution": ratios != {1}}
        kind, kinds = self.image_condition, [name for name, is_so in told.items() if is_so]
        wanted = [kind] if kind in IMAGE_CONDITIONS else []
        if kinds != wanted or (kinds == ["lower_resolution"] and not any(ratios == {block} for block in BLOCKS)):
            words = IMAGE_CONDITIONS.get(kind, "an image of the model's size and channels, and no mask_image")
            given = f"image of {tuple(image.shape[1:])}{'' if mask is None else ', with mask_image'}"
            raise ValueError(f"{given}: this model was trained on image_condition={kind!r}; give {words}.")

    def _measurement(
        self, image: torch.Tensor | None, mask: torch.Tensor | None, noise: torch.Tensor
    ) -> Measurement | None:
        """What image and mask tell of x_0; None without an image."""
        if image is None:
            return None
        sizes = image.shape[2:], noise.shape[2:]
        if any(whole % part for part, whole in zip(*sizes)):
            given, drawn = ("{}x{}".format(*size) for size in sizes)
            raise ValueError(f"image is {given}: this model draws {drawn}; give that size, or one that divides it.")
        if self.image_condition is not None:
            self._check_kind(image, mask, noise.shape[1:])
        known = torch.ones_like(image[:, :1]) if mask is None else 1 - mask
        return Measurement(*(x.to(noise.device, non_blocking=True) for x in (image, known)))

    def _start(
        self,
        scheduler: SchedulerMixin,
        steps: int,
        image: torch.Tensor | None,
        measurement: Measurement | None,
        strength: float | None,
        noise: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The timesteps that are taken (n,), and the latents before the first: noise, or the image with noise where strength is below 1."""
        if strength is None:
            is_changed = image is not None and measurement is None and self.image_condition is None
            strength = 0.8 if is_changed else 1.0
        elif image is None:
            raise ValueError(f"strength={strength} needs image, the picture to start from.")
        if not (isinstance(strength, int | float) and 0 < strength <= 1 and int(steps * strength) > 0):
            raise ValueError(f"strength={strength} must be above 0 and at most 1, and leave one of {steps} steps.")
        start = (steps - int(steps * strength)) * scheduler.order
        timesteps = scheduler.timesteps[start:]
        if start == 0:
            return timesteps, noise * scheduler.init_noise_sigma
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        (whole,) = F.interpolate(
            image[None].to(noise.device, non_blocking=True), noise.shape[1:]
        )  # at the model's size
        return timesteps, scheduler.add_noise(whole.expand_as(noise), noise, timesteps[:1])

    def _abar(self, scheduler: SchedulerMixin, timesteps: torch.Tensor, num_resample: int) -> torch.Tensor:
        """alphas_cumprod of the timesteps (n,), and 1 after the last: (n + 1,)."""
        name, prediction_type = type(scheduler).__name__, scheduler.config.get("prediction_type")
        if not _tells_x_0(scheduler):
            raise ValueError(f"image: {name} with prediction_type={prediction_type!r} tells no x_0; take another.")
        if num_resample > 1 and scheduler.init_noise_sigma != 1:
            raise ValueError(f"num_resample={num_resample}: {name} scales its latents; take another.")
        abar = scheduler.alphas_cumprod.to(timesteps.device, non_blocking=True)[timesteps.long()]
        return torch.cat([abar, abar.new_ones(1)])

    def _step_options(self, generator: Generator, eta: float | None) -> dict[str, Any]:
        """What of generator and eta this scheduler's step takes."""
        takes, options = self._step_takes, {"generator": generator, "eta": eta}
        if eta is not None or ("eta" in takes and takes["eta"].default is not None):  # a DDIM step
            # Guidance overshoots, x_0 is clipped, and noise that does not know of it would put the excess back with the opposite sign.
            options["use_clipped_model_output"] = True
        return {name: value for name, value in options.items() if name in takes and value is not None}

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "DDPMImagePipeline":
        """Load a folder or a Hub repo, ours or stock, as the installed package's classes: no code of the repo is run.

        kwargs: `revision`, `token`, `dtype`, `variant`, `local_files_only`, ... of `DiffusionPipeline.from_pretrained`; `unet`, `scheduler`,
        `id2label`, `sampling` and `image_condition` replace a part, and a part that is None is not loaded. device_map="balanced" is the accelerator. The copy of this file in a saved model knows no installed classes and loads as diffusers does.
        """
        if __package__ != "ddpm_hf":
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        parts = {name: kwargs.pop(name) for name in _PARTS if name in kwargs}
        told = {name: kwargs.pop(name, None) for name in _TOLD}
        kwargs.pop("trust_remote_code", None)
        device_map = kwargs.pop("device_map", None)
        for name in {"dtype", "torch_dtype"} & kwargs.keys():
            if isinstance(kwargs[name], dict):  # of parts, as diffusers takes it
                kwargs[name] = kwargs[name].get("unet", kwargs[name].get("default", torch.float32))
        names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        hub_options = {name: kwargs[name] for name in names if name in kwargs}
        index = cls.load_config(pretrained_model_name_or_path, **hub_options)
        options = {
            "unet": {"use_safetensors": True, "disable_mmap": True, **kwargs},
            "text_encoder": {"use_safetensors": True, "variant": kwargs.get("variant"), **hub_options},
        }
        for name in _PARTS:
            if name not in parts and not (name in cls._optional_components and name not in index):
                saved = name, index.get(name), pretrained_model_name_or_path
                parts[name] = cls._load_part(*saved, hub_options, options.get(name, hub_options))
        told = {name: index.get(name) if value is None else value for name, value in told.items()}
        pipeline = cls(**parts, **told)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return (
            pipeline if device_map is None else pipeline.to(get_device() if device_map == "balanced" else device_map)
        )

    @staticmethod
    def find_class(name: str, library: ModuleType = diffusers) -> Any:
        """The class that a saved model names; None if neither this package nor the library has it.

        It is the package's own, also for stock ones that agree with it in config and weights, or else the library's.
        """
        ours = _OURS.get(name, name)
        package = import_module(__package__)
        return getattr(package, ours) if ours in package.__all__ else getattr(library, name, None)

    @classmethod
    def _load_part(
        cls, name: str, saved: list[str] | None, path: str | os.PathLike, hub_options: dict, options: dict
    ) -> Any:
        """A part as the class that model_index.json names, of this package, diffusers or transformers.

        From safetensors only: unpickling a .bin can run any code.
        """
        library, kind = _PARTS[name]
        _, saved_class = saved or (None, None)
        part_class = cls.find_class(str(saved_class), library())
        base = getattr(library(), kind)
        is_part = inspect.isclass(part_class) and issubclass(part_class, base)
        if not is_part:
            raise ValueError(f"model_index.json: {name}={saved} is no {kind} of {library().__name__}.")
        if name in cls._optional_components:
            return part_class.from_pretrained(path, subfolder=name, **options)
        with suppress(OSError):  # else all lies in the root, as in google/ddpm-*
            part_class.load_config(path, subfolder=name, **hub_options)
            options = {**options, "subfolder": name}
        return part_class.from_pretrained(path, **options)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "DDPMImagePipeline":
        """This class around the parts of another pipeline; diffusers would look for a U-Net of exactly the annotated class."""
        parts = {"unet": pipeline.unet, **{name: getattr(pipeline, name, None) for name in _TOLD}}
        return super().from_pipe(pipeline, **(parts | kwargs))

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json with this very file beside it, so that the folder loads where ddpm_hf is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        code = Path(save_directory) / Path(__file__).name
        if code.is_symlink():  # to this file, as in the repository's checkpoints
            code.unlink()
        shutil.copyfile(__file__, code)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """model_index.json, naming the code files as `trust_remote_code` loading wants them, and no local path."""
        index = json.loads(super().to_json_string())
        index.pop("_name_or_path", None)
        if index["image_condition"] is None:
            del index["image_condition"]
        index["_class_name"] = [Path(__file__).stem, type(self).__name__]
        for name, part in self.components.items():
            if part is None:  # an optional one
                index.pop(name, None)
                continue
            module, class_name = index[name]
            index[name] = [module.rpartition(".")[2], class_name]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"


# Stock classes -> those of this package with their config and their weights.
_OURS = {"UNet2DModel": "DDPMUNet2DModel", "DDPMScheduler": "DDPMNoiseScheduler"}
_PARTS = {  # library, in which a saved class is looked up, and what it must be
    "unet": (lambda: diffusers, "ModelMixin"),
    "scheduler": (lambda: diffusers, "SchedulerMixin"),
    "text_encoder": (lambda: import_module("transformers"), "PreTrainedModel"),
    "tokenizer": (lambda: import_module("transformers"), "PreTrainedTokenizerBase"),
}
_TOLD = ("id2label", "sampling", "image_condition")
FEW_STEPS = 8  # the most of a student
BLOCKS = (2, 4)  # sides of the blocks of pixels whose means a model of lower resolution is trained on
IMAGE_CONDITIONS = {  # -> what a call is given
    "lower_resolution": f"an image whose sides are the model's divided by {' or '.join(map(str, BLOCKS))}",
    "grey": "a grey image of the model's size",
    "masked": "an image of the model's size, and mask_image",
}
SAMPLING: dict[str, Any] = {  # word -> type, least and most
    "num_inference_steps": (Integral, 1, 10**6),
    "timesteps": (Integral, 0, 10**6),
    "eta": (Real, 0, 1),
    "solver_order": (Integral, 1, 2),
    "guidance_scale": (Real, 0, 10**6),
    "guidance_interval": (Integral, 0, 10**6),
}
LISTS = ("timesteps", "guidance_interval")  # of such values


def num_image_channels(unet_config: Mapping, image_condition: str | None) -> int:
    """C, of a network that takes C of x_t or, with a condition image, 2C + 1."""
    num_channels = unet_config.get("in_channels", 3)
    return num_channels if image_condition is None else (num_channels - 1) // 2


def check_image_condition(image_condition: str, unet_config: Mapping) -> None:
    """ValueError for a condition image that a network of this config cannot have."""
    num_channels, size = num_image_channels(unet_config, image_condition), unet_config.get("sample_size")
    refused = ""
    if num_channels < 1 or unet_config.get("in_channels", 3) != 2 * num_channels + 1:
        refused = f"the network takes {unet_config.get('in_channels')} channels, and not 2C + 1 for images of C"
    elif image_condition == "grey" and num_channels == 1:
        refused = "the model's images are grey themselves"
    elif (
        image_condition == "lower_resolution"
        and size
        and any(side % max(BLOCKS) for side in ([size] if isinstance(size, int) else size))
    ):
        refused = f"the sides of the model's images, {size}, must be multiples of {max(BLOCKS)}"
    if refused:
        raise ValueError(f"image_condition={image_condition!r}: {refused}.")


def _check_sampling(sampling: dict) -> dict:
    sampling = {name: list(value) if isinstance(value, tuple) else value for name, value in sampling.items()}
    for name, value in sampling.items():
        kind, least, most = SAMPLING.get(name, (str, "", ""))
        is_list = isinstance(value, list)
        fits = [
            isinstance(x, kind) and not isinstance(x, bool) and least <= x <= most
            for x in (value if is_list else [value])
        ]
        if name not in SAMPLING or is_list != (name in LISTS) or not fits or not all(fits):
            allowed = {word: f"{low} to {high}" for word, (_, low, high) in SAMPLING.items()}
            raise ValueError(f"sampling has {name}={value!r}: allowed are {allowed}; lists of them for {LISTS}.")
    steps, timesteps = sampling.get("num_inference_steps"), sampling.get("timesteps")
    if timesteps is not None and (len(timesteps) != steps or not _descend(timesteps)):
        raise ValueError(f"sampling has timesteps={timesteps}: give num_inference_steps={steps} in descending order.")
    if not _is_interval(interval := sampling.get("guidance_interval", [0, 0])):
        raise ValueError(f"sampling has guidance_interval={interval}: give the least and the most timestep.")
    return sampling


def _guides(timesteps: torch.Tensor, sampling: Mapping[str, Any]) -> list[bool]:
    """Whether guidance acts at each of the timesteps (n,). With an interval this reads them."""
    scale, interval = sampling["guidance_scale"], sampling["guidance_interval"]
    if scale == 1 or interval is None:
        return [scale != 1] * len(timesteps)
    return [interval[0] <= t <= interval[1] for t in timesteps.tolist()]


def _descend(values: Any) -> bool:
    """Whether these are whole numbers in descending order, one at least."""
    is_list = isinstance(values, list | tuple | range) and all(isinstance(t, Integral) for t in values)
    return is_list and len(values) > 0 and all(map(gt, values, values[1:]))


def _is_interval(values: Any) -> bool:
    is_pair = isinstance(values, list | tuple) and len(values) == 2 and all(isinstance(t, Integral) for t in values)
    return is_pair and values[0] <= values[1]


def _tells_x_0(scheduler: SchedulerMixin) -> bool:
    known = ("epsilon", "sample", "v_prediction")
    return hasattr(scheduler, "alphas_cumprod") and scheduler.config.get("prediction_type") in known


def _x_0_weights(abar: torch.Tensor, prediction_type: str) -> tuple[Any, Any]:
    """Weights of x_t and of the network's output, whose sum is x_0."""
    signal, sigma = abar**0.5, (1 - abar) ** 0.5
    return {
        "epsilon": (1 / signal, -sigma / signal),
        "sample": (0, 1),
        "v_prediction": (signal, -sigma),
    }[prediction_type]


def _knows_variance(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler's step takes the channels of a learned variance: ours and `DDPMScheduler`."""
    own = getattr(scheduler, "_get_variance", None)
    return own is not None and "predicted_variance" in inspect.signature(own).parameters


def _preprocess(name: str, image: PipelineImageInput, **options: bool) -> torch.Tensor:
    """Pictures, read by diffusers' image processor with its options, as float32 (N, C, H, W) in [-1, 1]."""
    try:
        processor = VaeImageProcessor(do_resize=False, vae_scale_factor=1, vae_latent_channels=0, **options)
        x = processor.preprocess(image).float()
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error
    if x.ndim != 4 or not (x.abs() <= 1).all():
        values = f"values from {x.min():.3g} to {x.max():.3g}"
        raise ValueError(f"{name} of shape {tuple(x.shape)} has {values}: give PIL, or (N, C, H, W) floats in [0, 1].")
    return x


def _randn(shape: Sequence[int], generator: Generator, device: torch.device) -> torch.Tensor:
    """Standard normals by diffusers' `randn_tensor`, float32, which does not wait for the device where the generator is on the CPU."""
    first = generator[0] if isinstance(generator, list) else generator
    own = device if first is None else first.device
    return randn_tensor(shape, generator=generator, device=own, dtype=torch.float32).to(device, non_blocking=True)


def _noised_again(x_s: torch.Tensor, ratio: torch.Tensor, generator: Generator) -> torch.Tensor:
    """A draw from q(x_t | x_s), s < t (RePaint, arXiv:2201.09865, Algorithm 1). ratio: (), alphas_cumprod of t by that of s."""
    return ratio**0.5 * x_s + (1 - ratio) ** 0.5 * _randn(x_s.shape, generator, x_s.device)


def _replaced(returned: dict | None, latents: torch.Tensor) -> torch.Tensor:
    """The latents that a callback wants, or those that are there."""
    if not isinstance(returned, dict | None):
        raise ValueError(
            f"callback_on_step_end returned a {type(returned).__name__}: return None or a dict with 'latents'."
        )
    return (returned or {}).get("latents", latents)
