"""The sampling service behind the page: one worker per device, and every visitor's request is a job.

Jobs that ask for the same sampler, number of steps and guidance share a batch. Image i of a job draws all its noise from
its own generator, seeded `seed + i`, so a picture does not depend on who else is in the batch. `app.py` is the only user.

On ZeroGPU a GPU is lent to one call of a function, which runs in a process forked for it and is paid from the quota of the
visitor who asked: there the weights wait on the CPU, batches are not shared, and a few visitors have their GPUs at once.
"""

import contextvars
import copy
import inspect
import math
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from bounds import quote
from diffusers import DiffusionPipeline
from PIL import Image
from pipeline_ddpm_image import DDPMImagePipeline
from torch.overrides import TorchFunctionMode

try:
    import spaces  # on every Gradio Space

    ZERO_GPU = spaces.config.Config.zero_gpu
except ImportError:
    ZERO_GPU = False

OWN_SAMPLER = "Model's own"
FINEST = "Finest"
SAMPLERS: dict[str, tuple[int, dict]] = {  # number of steps, arguments to the pipeline
    "DPM++ SDE": (25, {"eta": 1.0, "solver_order": 2}),
    "DDIM": (50, {"eta": 0.0}),
    "DDPM": (250, {"eta": 1.0}),
}
FEW_STEPS = 8  # up to here a picture can follow the controls
MAX_IMAGES = 16
MAX_GUIDANCE = 10.0
MAX_SEED = 2**32 - 1
MAX_PROMPT = 300  # characters
MAX_EVALUATIONS = 8000  # of the U-Net in one job: images * steps, twice that with guidance
MAX_BATCH = 0 if ZERO_GPU else 32  # images of all jobs that share a batch
NUM_WORKERS = 4 if ZERO_GPU else 1
GPU_SECONDS = 30  # of ZeroGPU for one batch, at most; less is scheduled sooner
MAX_WAITING = 60
MAX_OF_VISITOR = 20  # of them, from one address
MAX_FRAMES = 40  # recorded per job: what a page holds and a GIF shows


@dataclass(frozen=True, eq=False)
class Parameters:
    """What a visitor asks for; the words are the pipeline's."""

    class_labels: tuple[str | None, ...] = ()  # image i is of class i modulo their number; none: no class
    batch_size: int = 10
    num_inference_steps: int = 25
    sampler: str = OWN_SAMPLER
    guidance_scale: float = 1.0
    seed: int = 0
    prompt: str = ""
    image: Image.Image | None = None  # of the model's size and mode
    mask_image: Image.Image | None = None  # the same; white is repainted
    strength: float = 1.0
    last_seed: int | None = None  # draws a strip from the image of `seed` to that of this seed

    @property
    def batch_key(self) -> tuple:
        """Jobs with equal keys can share a batch."""
        picture = self.image, self.mask_image, self.strength
        return self.sampler, self.num_inference_steps, float(self.guidance_scale), *picture

    @property
    def labels(self) -> list[str | None]:
        """The class name of each image."""
        names = self.class_labels or (None,)
        return [names[i % len(names)] for i in range(self.batch_size)]

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.batch_size)]

    @property
    def draws(self) -> list[tuple[int, int, float]]:
        """For each image a seed, another, and the part of the way from the noise of one to that of the other."""
        if self.last_seed is None:
            return [(seed, seed, 0.0) for seed in self.seeds]
        return [(self.seed, self.last_seed, i / (self.batch_size - 1)) for i in range(self.batch_size)]


@dataclass(frozen=True)
class Sampler:
    """A way to sample: a pipeline and what it is called with."""

    pipe: DiffusionPipeline
    num_inference_steps: int
    guidance_scale: float
    options: dict[str, Any] = field(default_factory=dict)
    is_saved: bool = False  # whether the options are those saved with the model for its number of steps

    def options_of(self, num_inference_steps: int) -> dict[str, Any]:
        """Those of a call; the saved ones are left to the model, which knows more of them."""
        return {} if self.is_saved and num_inference_steps == self.num_inference_steps else self.options

    @property
    def max_steps(self) -> int:
        """The most steps that the scheduler takes; LCMScheduler takes only those that its model was distilled from."""
        scheduler = self.pipe.scheduler
        return min(len(scheduler), scheduler.config.get("original_inference_steps") or len(scheduler))


class NoiseBetween(TorchFunctionMode):
    """While it is on, a draw from a generator in `partners` goes a part of the way to the draw of its partner, on a sphere (`DDPMImagePipeline.slerp`). All noise
    of a run goes the same part, so that both ends are what their seeds draw.

    Args:
        partners: {generator: (its partner, the part of the way)}
    """

    def __init__(self, partners: dict[torch.Generator, tuple[torch.Generator, float]]):
        super().__init__()
        self.partners = partners

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = function(*args, **kwargs)
        if function is not torch.randn or kwargs.get("generator") not in self.partners:
            return first
        partner, part = self.partners[kwargs["generator"]]
        return DDPMImagePipeline.slerp(first, function(*args, **{**kwargs, "generator": partner}), part)


def check_range(name: str, value, low, high, types) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
        kind = "a whole number" if types is int else "a number"
        raise ValueError(f"{name}={quote(value)} is not {kind} from {low} to {high}.")


def can_guide(pipe: DiffusionPipeline) -> bool:
    return "prompt_embeds" in pipe.takes or pipe.null_label is not None


def find_samplers(pipe: DiffusionPipeline, finest: DiffusionPipeline | None = None) -> dict[str, Sampler]:
    """The model's own sampler, that of the many-step model it was distilled from, and those of SAMPLERS whose arguments its scheduler's
    step takes; a student of few steps is trained for its own alone."""
    takes = inspect.signature(pipe.scheduler.step).parameters
    looks_back = "previous_original_sample" in takes  # else the pipeline takes no solver_order, and no saved rule
    own = {name: pipe.sampling[name] for name in ("eta", "solver_order") if looks_back and name in pipe.sampling}
    scale = pipe.sampling.get("guidance_scale", 1.0) if can_guide(pipe) else 1.0
    samplers = {OWN_SAMPLER: Sampler(pipe, pipe.sampling.get("num_inference_steps", 1000), scale, own, is_saved=True)}
    if finest is not None:
        samplers[FINEST] = find_samplers(finest)[OWN_SAMPLER]
    is_few = pipe.sampling.get("num_inference_steps", 1000) <= FEW_STEPS
    is_student = is_few and pipe.sampling.get("guidance_scale") == 1 and not own
    for name, (steps, options) in () if is_student else SAMPLERS.items():
        options = {"solver_order": 1, **options} if looks_back else options  # both, so that no saved value is put in
        if "eta" in takes and (looks_back or "solver_order" not in options) and options != own:
            samplers[name] = Sampler(pipe, steps, scale, options)
    return {
        name: replace(sampler, num_inference_steps=min(sampler.num_inference_steps, sampler.max_steps))
        for name, sampler in samplers.items()
    }


@dataclass(frozen=True)
class Frame:
    """One moment of a job's denoising: uint8 arrays with shape (batch_size, H, W) or (batch_size, H, W, 3)."""

    step: int  # 1 .. the number of steps that are taken
    timestep: int
    x_t: np.ndarray
    x_0: np.ndarray  # what the model believes, at this step, the end will be


@dataclass(eq=False)
class Job:
    """A request on its way. The worker writes into it, one reader iterates over it."""

    parameters: Parameters
    words: dict[str, torch.Tensor]  # what the pipeline takes of the class or prompt of each image
    visitor: str | None = None
    cancelled: bool = False
    images: list[Image.Image] = field(default_factory=list)  # filled when the last frame has been read
    events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # says to ZeroGPU who asked

    def frames(self) -> Iterator[list[Frame]]:
        """Yields the frames that came since the last time, [] after a second without one, so that the reader can give up;
        returns when the images are there."""
        while True:
            events = []
            with suppress(queue.Empty):
                events.append(self.events.get(timeout=1))
                while True:
                    events.append(self.events.get_nowait())
            yield [event for event in events if isinstance(event, Frame)]
            if events and isinstance(events[-1], Exception):
                raise events[-1]
            if events and events[-1] is None:
                return


class SamplingService:
    """Runs the jobs of many visitors on one pipeline.

    Args:
        pipe: A DDPMImagePipeline, on the device it shall run on.
        finest: The many-step model that a few-step `pipe` was distilled from.
        max_waiting: Jobs that may wait; `submit` refuses more.
    """

    def __init__(
        self, pipe: DiffusionPipeline, finest: DiffusionPipeline | None = None, max_waiting: int = MAX_WAITING
    ):
        self.pipe, self.max_waiting = pipe, max_waiting
        self.num_timesteps = len(pipe.scheduler.alphas_cumprod)
        self.samplers = find_samplers(pipe, finest)
        for sampler in self.samplers.values():
            sampler.pipe.set_progress_bar_config(disable=True)
        self.own = self.samplers[OWN_SAMPLER]
        self.follows = self.own.num_inference_steps <= FEW_STEPS and not ZERO_GPU  # where each run costs quota
        size, channels = pipe.unet.config.sample_size, pipe.num_channels
        self.shape = channels, *((size, size) if isinstance(size, int) else size)
        self.takes_text = "prompt_embeds" in pipe.takes
        names = pipe.id2label or {label: str(label) for label in range(pipe.num_labels or 0)}
        self.labels = {} if self.takes_text else {name: label for label, name in names.items()}
        self.class_names = list(self.labels)
        self.can_guide = can_guide(pipe)
        self.has_null_label = not self.class_names or self.can_guide
        self._sample = spaces.GPU(self._denoise, duration=GPU_SECONDS) if ZERO_GPU else self._denoise
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._tokenizing = threading.Lock()
        for _ in range(NUM_WORKERS):
            threading.Thread(target=self._work, daemon=True, name="sampling").start()

    def submit(self, parameters: Parameters, visitor: str | None = None) -> Job:
        """Puts a job in line. Raises ValueError for what the service or the model does not do, or when the line is full."""
        self._check(parameters)
        job = Job(parameters, self._words(parameters), visitor)
        with self._changed:
            if len(self._waiting) >= self.max_waiting:
                raise ValueError(f"{self.max_waiting} requests are waiting already. Please try again in a minute.")
            if visitor and sum(other.visitor == visitor for other in self._waiting) >= MAX_OF_VISITOR:
                raise ValueError(f"{MAX_OF_VISITOR} requests of yours are waiting already.")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _check(self, wanted: Parameters) -> None:
        sampler = self.samplers.get(wanted.sampler) if isinstance(wanted.sampler, str) else None
        if sampler is None:
            raise ValueError(f"sampler={quote(wanted.sampler)} is not one of {', '.join(self.samplers)}.")
        check_range("batch_size", wanted.batch_size, 1, MAX_IMAGES, int)
        check_range("num_inference_steps", wanted.num_inference_steps, 1, sampler.max_steps, int)
        check_range(
            "guidance_scale", wanted.guidance_scale, 0.0, max(MAX_GUIDANCE, sampler.guidance_scale), (int, float)
        )
        check_range("seed", wanted.seed, 0, MAX_SEED, int)
        if wanted.guidance_scale != 1 and not self.can_guide:
            raise ValueError(
                f"guidance_scale={wanted.guidance_scale}: this model was not trained for guidance, use 1."
            )
        self._check_words(wanted)
        self._check_mode(wanted)
        evaluations = wanted.batch_size * self.num_evaluations(wanted)
        if evaluations > MAX_EVALUATIONS:
            raise ValueError(
                f"batch_size={wanted.batch_size} images of num_inference_steps={wanted.num_inference_steps} take "
                f"{evaluations} evaluations of the U-Net (guidance doubles them); one request may take {MAX_EVALUATIONS}."
            )

    def _check_words(self, wanted: Parameters) -> None:
        if not isinstance(wanted.prompt, str) or len(wanted.prompt) > MAX_PROMPT:
            raise ValueError(f"prompt={quote(wanted.prompt)} is not a text of at most {MAX_PROMPT} characters.")
        if wanted.prompt and not self.takes_text:
            raise ValueError(f"prompt={quote(wanted.prompt)}: this model was not trained with text.")
        names = wanted.class_labels or (None,)
        if len(names) > wanted.batch_size:
            raise ValueError(f"class_labels has {len(names)} names for batch_size={wanted.batch_size} images.")
        known = [*self.class_names, *([None] if self.has_null_label else [])]
        if unknown := [name for name in names if name not in known]:
            listed = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
            raise ValueError(f"class_labels={quote(unknown)}: this model knows {listed}.")

    def _check_mode(self, wanted: Parameters) -> None:
        check_range("strength", wanted.strength, 0.0, 1.0, (int, float))
        if wanted.image is None and (wanted.mask_image is not None or wanted.strength != 1):
            raise ValueError("mask_image and strength need image, the picture that they change.")
        if int(wanted.num_inference_steps * wanted.strength) < 1:
            raise ValueError(f"strength={wanted.strength} leaves none of {wanted.num_inference_steps} steps.")
        if wanted.last_seed is None:
            return
        check_range("last_seed", wanted.last_seed, 0, MAX_SEED, int)
        if wanted.image is not None or wanted.batch_size < 2 or len(wanted.class_labels) > 1:
            raise ValueError("last_seed draws at least two images, of one class at most, and without image.")

    def num_evaluations(self, wanted: Parameters) -> int:
        """Evaluations of the network for one image."""
        return self.num_timesteps_of(wanted) * (1 if wanted.guidance_scale == 1 else 2)

    def num_timesteps_of(self, wanted: Parameters) -> int:
        """Timesteps that are taken. A second-order scheduler has more of them than steps."""
        steps, scheduler = wanted.num_inference_steps, copy.copy(self.samplers[wanted.sampler].pipe.scheduler)
        scheduler.set_timesteps(steps)
        return len(scheduler.timesteps) - (steps - int(steps * wanted.strength)) * scheduler.order

    def num_ahead(self, job: Job) -> int | None:
        """Jobs that wait before this one; None when it waits no more."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else None

    def cancel(self, job: Job) -> None:
        """Takes a job out of the line, or stops it: its batch goes on only for the others in it."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while True:
            jobs = self._next_batch()
            try:
                jobs[0].context.run(self._run, jobs)
                outcome = None
            except Exception as error:  # whatever it is, the visitor is told and the worker lives on
                outcome = error
            for job in jobs:
                job.events.put(outcome)

    def _next_batch(self) -> list[Job]:
        """Waits for a job; takes it and those behind it that fit into its batch."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            first = self._waiting[0]
            jobs, num_images = [], 0
            for job in list(self._waiting):
                if job.parameters.batch_key != first.parameters.batch_key:
                    continue
                if not jobs or num_images + job.parameters.batch_size <= MAX_BATCH:
                    jobs.append(job)
                    num_images += job.parameters.batch_size
                    self._waiting.remove(job)
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        wanted = jobs[0].parameters
        draws = [draw for job in jobs for draw in job.parameters.draws]
        words = {name: torch.cat([job.words[name] for job in jobs]) for name in jobs[0].words}
        stops = np.cumsum([job.parameters.batch_size for job in jobs])
        parts = [slice(stop - job.parameters.batch_size, stop) for job, stop in zip(jobs, stops, strict=True)]
        with closing(self._sample(wanted, draws, words)) as steps:
            for shown in steps:
                if all(job.cancelled for job in jobs):
                    return
                if shown:
                    step, timestep, x_t, x_0 = shown
                    for job, part in zip(jobs, parts, strict=True):
                        job.events.put(Frame(step, timestep, x_t[part], x_0[part]))
        for job, part in zip(jobs, parts, strict=True):
            job.images = [Image.fromarray(image) for image in x_t[part]]

    def _denoise(self, wanted: Parameters, draws, words) -> Iterator[tuple]:
        """Yields a Frame's (step, timestep, x_t, x_0) of the whole batch at the steps that are shown, the last among them,
        and () at the others. Closed early, it ends the computation. Its arguments and what it yields can be pickled."""
        sampler, num_timesteps = self.samplers[wanted.sampler], self.num_timesteps_of(wanted)
        if ZERO_GPU:
            sampler.pipe.to("cuda")  # only this process has one
        every = math.ceil(num_timesteps / MAX_FRAMES)
        steps, closed = queue.SimpleQueue(), threading.Event()

        def on_step_end(pipe, step_index, timestep, tensors):
            pipe._interrupt = closed.is_set()
            step = step_index + 1
            shown = (num_timesteps - step) % every == 0
            x_t, x_0 = tensors["latents"], tensors["pred_original_sample"]
            steps.put((step, int(timestep), to_uint8(x_t), to_uint8(x_0)) if shown else ())

        generators = [torch.Generator().manual_seed(seed) for seed, _, _ in draws]
        partners = {
            generator: (torch.Generator().manual_seed(last), part)
            for generator, (_, last, part) in zip(generators, draws, strict=True)
            if part > 0
        }

        def sample(**options):
            with NoiseBetween(partners) if partners else nullcontext():  # of this thread alone
                return sampler.pipe(**options).images

        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(
                sample,
                batch_size=len(draws),
                generator=generators,
                num_inference_steps=wanted.num_inference_steps,
                output_type="latent",
                guidance_scale=wanted.guidance_scale,
                image=wanted.image,
                mask_image=wanted.mask_image,
                strength=None if wanted.image is None else wanted.strength,
                callback_on_step_end=on_step_end,
                callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
                **words,
                **sampler.options_of(wanted.num_inference_steps),
            )
            run.add_done_callback(lambda _: steps.put(None))
            try:
                yield from iter(steps.get, None)
            finally:
                closed.set()
        images = to_uint8(run.result())
        if wanted.image is not None:
            yield num_timesteps, 0, images, images  # what is known of the picture is put in after the last step

    def _words(self, wanted: Parameters) -> dict[str, torch.Tensor]:
        if self.takes_text:
            with self._tokenizing:  # a tokenizer serves one thread at a time
                vectors = self.pipe.encode(prompt=wanted.prompt, batch_size=wanted.batch_size)["class_labels"]
            return {"prompt_embeds": vectors.cpu()}
        if not self.class_names:
            return {}
        null = self.pipe.null_label
        return {"class_labels": torch.tensor([null if name is None else self.labels[name] for name in wanted.labels])}

    def noise(self, seed: int) -> torch.Tensor:
        """x_T (1, C, H, W) of a seed, as the pipeline draws it."""
        return torch.randn((1, *self.shape), generator=torch.Generator().manual_seed(seed))

    def draw_noise(self, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """What a job of these seeds starts from, and the grey that one believes of it: uint8 arrays as in a Frame."""
        noise = torch.cat([self.noise(seed + i) for i in range(batch_size)])
        return to_uint8(noise), to_uint8(torch.zeros_like(noise))

    @torch.inference_mode()
    def noise_and_guess(self, x_0: torch.Tensor, timestep: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """x_0 (1, C, H, W) -> x_t ~ q(x_t | x_0), and the x_0 the model predicts from it, untold of its class. Runs beside the
        worker: it is one evaluation."""
        pipe, device = self.pipe, self.pipe.device
        check_range("timestep", timestep, 0, self.num_timesteps - 1, int)
        x_0 = x_0.to(device)
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        timesteps = torch.tensor([timestep], device=device)
        abar = pipe.scheduler.alphas_cumprod[timestep].item()
        x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise
        condition = pipe.encode(None if self.has_null_label else 0, batch_size=1)
        return x_t, pipe.predict_x_0(pipe.denoise(x_t, timesteps, condition), timesteps, x_t)


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """float (B, C, H, W), [-1, 1] shown and the rest clipped -> uint8 (B, H, W) or (B, H, W, 3)."""
    x = ((x.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
