"""Algorithm 2 of DDPM (Ho et al. 2020, arXiv:2006.11239), and its result as images.

    x_T ~ N(0, I);  for t = T..1:  x_{t-1} ~ p(x_{t-1} | x_t)  =  scheduler.step(unet(x_t, t), t, x_t);  x_0 -> uint8

With class labels, classifier-free guidance (arXiv:2207.12598 Eq. 6, in the form diffusers uses): out = null + scale * (class - null).
Takes what `diffusers.DDPMPipeline` takes, in its order, then ours, and any U-Net and scheduler of diffusers. Stands alone: every model has a copy.
"""

import inspect
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from numbers import Integral
from pathlib import Path
from typing import Any, Optional

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

DEFAULT_NUM_INFERENCE_STEPS = 25  # of second order, with eta=1; `scripts/evaluate.py --sweep` tells what more bring


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; a CPU that converts instead takes two to eight times as long as in float32. Of an
    accelerator other than CUDA's nothing is known: no."""
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported(False)
    if platform.machine() in ("x86_64", "AMD64"):  # where oneDNN calls the conversion support
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class DDPMImagePipeline(DiffusionPipeline):
    """Images from noise.

    Args:
        unet, scheduler: ours or diffusers'; the U-Net predicts what the scheduler expects from x_t, t and a class label, if it has any.
        id2label: names of the classes; a label beyond them is the null label of classifier-free guidance.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents", "pred_original_sample"]
    component_classes: dict[str, Any] = {}  # saved class name -> class to load; the package fills it
    interrupt = property(lambda self: self._interrupt)  # as in diffusers' pipelines: a callback sets the attribute

    # Optional: diffusers before 0.37 reads these annotations, and not `dict | None`.
    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, id2label: Optional[dict] = None):  # noqa: UP045
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.id2label = {int(label): name for label, name in (id2label or {}).items()}
        self.register_to_config(id2label=self.id2label or None)

    @property
    def null_label(self) -> int | None:
        """The label that means "no class": the last one, where `id2label` names the classes and the model has more labels."""
        num_labels = self.unet.config.num_class_embeds
        return num_labels - 1 if num_labels is not None and num_labels > len(self.id2label) > 0 else None

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """Labels of class names, e.g. ["Sneaker", "Bag"] -> [7, 8]; case does not matter."""
        known = {name.lower(): label for label, name in self.id2label.items()}
        names = [names] if isinstance(names, str) else list(names)
        if unknown := [name for name in names if name.lower() not in known]:
            raise ValueError(f"class_labels={unknown}: this model knows {list(self.id2label.values())}.")
        return [known[name.lower()] for name in names]

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        eta: float | None = None,
        latents: torch.Tensor | None = None,
        autocast: bool | None = None,
        callback_on_step_end: Callable[["DDPMImagePipeline", int, torch.Tensor, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "pred_original_sample"),
        solver_order: int | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw `images`: in an `ImagePipelineOutput`, or in a tuple where return_dict is False.

        Args:
            batch_size: number of images; a list of class_labels gives it as well.
            generator: one for the whole batch, or a list with one for each image, whose picture then depends on its own generator only.
            num_inference_steps: None is the fast default: 25 steps, ancestral and of second order; a number alone is the scheduler's rule.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), both float32 in [0, 1].
            class_labels: a label or name for all images, or one for each; None is unconditional.
            guidance_scale: 1 is plain conditional sampling, more is more typical of the class.
            guidance_rescale: 0 to 1, how much of the guided output's deviation is put back to the unguided one's (arXiv:2305.08891, Section 3.4).
            eta: None is the scheduler's own rule (ours is ancestral, as in the paper); 0 is DDIM, 1 DDPM, for schedulers whose step takes it.
                A DDIM step's noise goes by the clipped x_0: diffusers' `use_clipped_model_output=True`.
            latents: the initial noise x_T, (B, C, H, W), instead of a draw.
            autocast: run the U-Net in bfloat16; None: only a float32 one in the fast default, where the hardware has bfloat16. False is the reference.
            callback_on_step_end: called as f(pipe, step_index, t, tensors) after each step, under the U-Net's autocast; a dict with "latents" that it returns replaces them. `pipe._interrupt = True` stops the loop.
            solver_order: 2 lets a step of our scheduler look back at the one before (DPM-Solver++ 2M); None: 1, but 2 in the fast default without eta.
        """
        if isinstance(generator, list) and len(generator) == 1:  # as diffusers takes it
            (generator,) = generator
        labels = self._labels(class_labels)
        batch_size = self._batch_size(batch_size, labels, generator, latents)
        labels = self._broadcast_labels(labels, batch_size, guidance_scale)
        self._check_options(output_type, guidance_rescale, eta, solver_order, callback_on_step_end_tensor_inputs)
        device = self._execution_device
        if num_inference_steps is None:  # the fast default
            num_inference_steps = min(DEFAULT_NUM_INFERENCE_STEPS, len(self.scheduler))
            if eta is None:
                eta, order = (1.0, 2) if "previous_original_sample" in self._step_takes else (0.0, 1)
                solver_order = solver_order or order
            if autocast is None:
                autocast = self.unet.dtype == torch.float32 and has_bfloat16(device)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        options = self._step_options(generator, eta)
        latents = self._initial_noise(batch_size, generator, latents, device)
        self._interrupt = False
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():  # casts the weights once
            for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
                x_t = self.scheduler.scale_model_input(latents, t)
                output = self._predict(x_t, t, labels, guidance_scale, guidance_rescale)
                step = self.scheduler.step(output, t, latents, **options)
                latents = step.prev_sample
                if solver_order == 2:  # a copy: a callback may write to its own
                    options["previous_original_sample"] = step.pred_original_sample.clone()
                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "pred_original_sample": getattr(step, "pred_original_sample", None)}
                    tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)
                    if latents.shape != x_t.shape:  # nothing to look back at
                        options.pop("previous_original_sample", None)
                if self.interrupt:
                    break

        images = (latents / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(self, x_t, t, labels, guidance_scale: float, guidance_rescale: float) -> torch.Tensor:
        """The U-Net's output for x_t (B, C, H, W), float32; with labels (2 B,), guided in one batched call."""
        given, copies = ((), 1) if labels is None else ((labels,), len(labels) // len(x_t))
        output = self.unet(x_t.repeat(copies, 1, 1, 1).to(self.unet.dtype), t, *given, return_dict=False)[0].float()
        if copies == 1:
            return output
        cond, null = output[:, : x_t.shape[1]].chunk(2)  # learned variance channels are not guided
        guided = null + guidance_scale * (cond - null)
        if guidance_rescale > 0:
            ratio = cond.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
            guided = guided * (guidance_rescale * ratio + 1 - guidance_rescale)
        return torch.cat([guided, output[: len(guided), x_t.shape[1] :]], dim=1)

    # ------------------------------------------------------------------ arguments

    @property
    def _step_takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments that this scheduler's step knows."""
        return inspect.signature(self.scheduler.step).parameters

    def _check_options(self, output_type, guidance_rescale, eta, solver_order, callback_tensors) -> None:
        name, looks_back = type(self.scheduler).__name__, "previous_original_sample" in self._step_takes
        if output_type not in ("pil", "np", "numpy", "pt"):
            raise ValueError(f"output_type={output_type!r}: choose 'pil', 'np' or 'pt'.")
        for option, value in {"eta": eta, "guidance_rescale": guidance_rescale}.items():
            if not 0 <= (value or 0) <= 1:
                raise ValueError(f"{option}={value} must be from 0 to 1.")
        if eta is not None and "eta" not in self._step_takes:
            raise ValueError(f"eta={eta}: {name} takes none; None is its own rule.")
        if solver_order is not None and not (looks_back and solver_order in (1, 2)):
            raise ValueError(f"solver_order={solver_order}: {name} takes {'1 or 2' if looks_back else 'none'}.")
        if unknown := set(callback_tensors) - set(known := self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}: choose from {known}.")

    def _labels(self, class_labels) -> torch.Tensor | None:
        """class_labels as int64, () for one label for all or (B,); checked against the model."""
        if kind := self.unet.config.get("class_embed_type"):
            raise ValueError(
                f"unet.config.class_embed_type={kind!r}: this pipeline takes labels of a table alone (None)."
            )
        num_labels = self.unet.config.num_class_embeds
        if class_labels is None:
            return None
        if num_labels is None:
            raise ValueError(f"class_labels={class_labels}: this model was trained without class labels.")
        if isinstance(class_labels, str):
            class_labels = self.get_label_ids(class_labels)[0]
        elif not isinstance(class_labels, Integral | torch.Tensor):
            class_labels = [self.get_label_ids(c)[0] if isinstance(c, str) else c for c in class_labels]
        labels = torch.as_tensor(class_labels, dtype=torch.int64)
        if labels.numel() == 0 or labels.min() < 0 or labels.max() >= num_labels:
            raise ValueError(f"class_labels={class_labels}: this model has labels 0 to {num_labels - 1}.")
        return labels.to(self._execution_device)

    def _batch_size(self, batch_size: int, labels, generator, latents) -> int:
        """The one number of images that all arguments agree on."""
        given = {"class_labels": labels if labels is not None and labels.ndim else None, "latents": latents}
        given["generator"] = generator if isinstance(generator, list) else None
        counts = {name: len(value) for name, value in given.items() if value is not None}
        if batch_size == 1 and counts:
            batch_size = max(counts.values())
        if batch_size < 1 or any(count != batch_size for count in counts.values()):
            raise ValueError(f"batch_size={batch_size} must be at least 1 and agree with the lengths of {counts}.")
        return batch_size

    def _broadcast_labels(self, labels: torch.Tensor | None, batch_size: int, guidance_scale: float):
        """Labels (B,) of the images, None where not used; with guidance, null labels for them follow."""
        if labels is None:
            if guidance_scale != 1:
                raise ValueError(f"guidance_scale={guidance_scale} needs class_labels to guide to.")
            if self.unet.config.num_class_embeds is None:
                return None
        elif guidance_scale == 1:
            return labels.expand(batch_size)
        if self.null_label is None:
            need = "class_labels=None" if labels is None else f"guidance_scale={guidance_scale}"
            raise ValueError(f"{need}: this model has no null label; name a class for each image, guidance_scale=1.")
        null = torch.full((batch_size,), self.null_label, device=self._execution_device)
        return null if labels is None else torch.cat([labels.expand(batch_size), null])

    def _initial_noise(self, batch_size: int, generator, latents, device: torch.device) -> torch.Tensor:
        if latents is None:
            size = self.unet.config.sample_size
            if size is None:
                raise ValueError("latents=None: unet.config.sample_size is not set; give the initial noise.")
            shape = (batch_size, self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def _step_options(self, generator, eta: float | None) -> dict:
        """What of generator and eta this scheduler's step takes."""
        takes, options = self._step_takes, {"generator": generator, "eta": eta}
        if eta is not None or ("eta" in takes and takes["eta"].default is not None):  # a DDIM step
            # Guidance overshoots, x_0 is clipped, and noise that does not know of it would put the excess back with the opposite sign.
            options["use_clipped_model_output"] = True
        return {name: value for name, value in options.items() if name in takes and value is not None}

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "DDPMImagePipeline":
        """Load a folder or a Hub repo, ours or stock, as the installed package's classes: no code of the repo is run.

        kwargs: `revision`, `token`, `dtype`, `local_files_only`, ... of `DiffusionPipeline.from_pretrained`; `unet`, `scheduler` and
        `id2label` replace a part. The copy of this file in a saved model knows no installed classes and loads as diffusers does.
        """
        if not cls.component_classes:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        parts = {name: kwargs.pop(name, None) for name in ("unet", "scheduler")}
        id2label = kwargs.pop("id2label", None)
        kwargs.pop("trust_remote_code", None)
        for name in {"dtype", "torch_dtype"} & kwargs.keys():
            if isinstance(kwargs[name], dict):  # of parts, as diffusers takes it
                kwargs[name] = kwargs[name].get("unet", kwargs[name].get("default", torch.float32))
        names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        hub_options = {name: kwargs[name] for name in names if name in kwargs}
        index = cls.load_config(pretrained_model_name_or_path, **hub_options)
        for name, kind in {"unet": ModelMixin, "scheduler": SchedulerMixin}.items():
            if parts[name] is not None:
                continue
            _, saved_class = index.get(name) or (None, None)
            part_class: Any = cls.component_classes.get(saved_class) or getattr(diffusers, str(saved_class), None)
            fits = inspect.isclass(part_class) and issubclass(part_class, kind)
            if not fits:
                raise ValueError(f"model_index.json: {name}={index.get(name)} is no {kind.__name__} of diffusers.")
            options = dict(hub_options)
            if kind is ModelMixin:  # safetensors only: unpickling a .bin can run any code
                options = {"use_safetensors": True, "disable_mmap": True, **kwargs}
            with suppress(OSError):  # else all lies in the root, as in google/ddpm-*
                part_class.load_config(pretrained_model_name_or_path, subfolder=name, **hub_options)
                options["subfolder"] = name
            parts[name] = part_class.from_pretrained(pretrained_model_name_or_path, **options)
        pipeline = cls(**parts, id2label=index.get("id2label") if id2label is None else id2label)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "DDPMImagePipeline":
        """This class around the parts of another pipeline; diffusers would look for a U-Net of exactly the annotated class."""
        parts = {"unet": pipeline.unet, "id2label": getattr(pipeline, "id2label", None)}
        return super().from_pipe(pipeline, **(parts | kwargs))

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json with this very file beside it, so that the folder loads where ddpm_hf is not installed."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, Path(save_directory) / Path(__file__).name)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """model_index.json, naming the code files as `trust_remote_code` loading wants them, and no local path."""
        index = json.loads(super().to_json_string())
        index.pop("_name_or_path", None)
        index["_class_name"] = [Path(__file__).stem, type(self).__name__]
        for name in self.components:
            module, class_name = index[name]
            index[name] = [module.rpartition(".")[2], class_name]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"
