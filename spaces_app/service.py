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
from contextlib import closing, suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

try:
    import spaces  # on every Gradio Space

    ZERO_GPU = spaces.config.Config.zero_gpu
except ImportError:
    ZERO_GPU = False

OWN_SAMPLER = "Model's own"
SAMPLERS: dict[str, tuple[int, dict]] = {  # number of steps, arguments to the pipeline
    "DPM++ SDE": (25, {"eta": 1.0, "solver_order": 2}),
    "DDIM": (50, {"eta": 0.0}),
    "DDPM": (250, {"eta": 1.0}),
}
MAX_IMAGES = 16
MAX_GUIDANCE = 10.0
MAX_SEED = 2**32 - 1
MAX_EVALUATIONS = 8000  # of the U-Net in one job: images * steps, twice that with guidance
MAX_BATCH = 0 if ZERO_GPU else 32  # images of all jobs that share a batch
NUM_WORKERS = 4 if ZERO_GPU else 1
GPU_SECONDS = 30  # of ZeroGPU for one batch, at most; less is scheduled sooner
MAX_WAITING = 60
MAX_FRAMES = 40  # recorded per job: what a page holds and a GIF shows


@dataclass(frozen=True)
class Parameters:
    """What a visitor asks for; the words are the pipeline's."""

    class_labels: tuple[str, ...] | None = None  # image i is of class i modulo their number; none: no class
    batch_size: int = 10
    num_inference_steps: int = 25
    sampler: str = OWN_SAMPLER
    guidance_scale: float = 1.0
    seed: int = 0

    @property
    def batch_key(self) -> tuple:
        """Jobs with equal keys can share a batch."""
        return self.sampler, self.num_inference_steps, float(self.guidance_scale)

    @property
    def labels(self) -> list[str | None]:
        """The class name of each image."""
        names = self.class_labels or (None,)
        return [names[i % len(names)] for i in range(self.batch_size)]

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.batch_size)]


def check_range(name: str, value, low, high, types) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
        kind = "a whole number" if types is int else "a number"
        raise ValueError(f"{name}={value!r} is not {kind} from {low} to {high}.")


def find_samplers(pipe: DiffusionPipeline) -> dict[str, tuple[int, dict]]:
    """The model's own sampler, and those of SAMPLERS whose arguments its scheduler's step takes, as rows of that table."""
    takes = inspect.signature(pipe.scheduler.step).parameters
    looks_back = "previous_original_sample" in takes  # else the pipeline takes no solver_order, and no saved rule
    own = {name: pipe.sampling[name] for name in ("eta", "solver_order") if looks_back and name in pipe.sampling}
    samplers = {OWN_SAMPLER: (pipe.sampling.get("num_inference_steps", 1000), own)}
    for name, (steps, options) in SAMPLERS.items():
        options = {"solver_order": 1, **options} if looks_back else options  # both, so that no saved value is put in
        if "eta" in takes and (looks_back or "solver_order" not in options) and options != own:
            samplers[name] = steps, options
    return {name: (min(steps, max_steps(pipe.scheduler)), options) for name, (steps, options) in samplers.items()}


def max_steps(scheduler) -> int:
    """The most steps that a scheduler takes; LCMScheduler takes only those that its model was distilled from."""
    return min(len(scheduler), scheduler.config.get("original_inference_steps") or len(scheduler))


@dataclass(frozen=True)
class Frame:
    """One moment of a job's denoising: uint8 arrays with shape (batch_size, H, W) or (batch_size, H, W, 3)."""

    step: int  # 1 .. num_inference_steps
    timestep: int
    x_t: np.ndarray
    x_0: np.ndarray  # what the model believes, at this step, the end will be


@dataclass(eq=False)
class Job:
    """A request on its way. The worker writes into it, one reader iterates over it."""

    parameters: Parameters
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
        max_waiting: Jobs that may wait; `submit` refuses more.
    """

    def __init__(self, pipe: DiffusionPipeline, max_waiting: int = MAX_WAITING):
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.max_waiting = pipe, max_waiting
        self.num_timesteps = len(pipe.scheduler.alphas_cumprod)
        self.max_steps = max_steps(pipe.scheduler)
        self.samplers = find_samplers(pipe)
        names = pipe.id2label or {label: str(label) for label in range(pipe.num_labels or 0)}
        self.labels = {name: label for label, name in names.items()}
        self.class_names = list(self.labels)
        self.can_guide = pipe.null_label is not None
        self.has_null_label = not self.class_names or self.can_guide
        self.guidance_scale = pipe.sampling.get("guidance_scale", 1.0) if self.can_guide else 1.0
        self._sample = spaces.GPU(self._denoise, duration=GPU_SECONDS) if ZERO_GPU else self._denoise
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        for _ in range(NUM_WORKERS):
            threading.Thread(target=self._work, daemon=True, name="sampling").start()

    def submit(self, parameters: Parameters) -> Job:
        """Puts a job in line. Raises ValueError for what the service or the model does not do, or when the line is full."""
        self._check(parameters)
        with self._changed:
            if len(self._waiting) >= self.max_waiting:
                raise ValueError(f"{self.max_waiting} requests are waiting already. Please try again in a minute.")
            job = Job(parameters)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _check(self, wanted: Parameters) -> None:
        if wanted.sampler not in self.samplers:
            raise ValueError(f"sampler={wanted.sampler!r} is not one of {', '.join(self.samplers)}.")
        check_range("batch_size", wanted.batch_size, 1, MAX_IMAGES, int)
        check_range("num_inference_steps", wanted.num_inference_steps, 1, self.max_steps, int)
        check_range("guidance_scale", wanted.guidance_scale, 0.0, max(MAX_GUIDANCE, self.guidance_scale), (int, float))
        check_range("seed", wanted.seed, 0, MAX_SEED, int)
        evaluations = wanted.batch_size * self.num_evaluations(wanted.num_inference_steps, wanted.guidance_scale)
        if evaluations > MAX_EVALUATIONS:
            raise ValueError(
                f"batch_size={wanted.batch_size} images of num_inference_steps={wanted.num_inference_steps} take "
                f"{evaluations} evaluations of the U-Net (guidance doubles them); one request may take {MAX_EVALUATIONS}."
            )
        if wanted.guidance_scale != 1 and not self.can_guide:
            raise ValueError(
                f"guidance_scale={wanted.guidance_scale}: this model was not trained for guidance, use 1."
            )
        names = wanted.class_labels or (None,)
        if len(names) > wanted.batch_size:
            raise ValueError(f"class_labels has {len(names)} names for batch_size={wanted.batch_size} images.")
        known = [*self.class_names, *([None] if self.has_null_label else [])]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"class_labels={unknown}: this model knows {', '.join(map(str, known))}.")

    def num_evaluations(self, num_inference_steps: int, guidance_scale: float = 1.0) -> int:
        """Evaluations of the network for one image. A second-order scheduler has more timesteps than steps."""
        scheduler = copy.copy(self.pipe.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        return len(scheduler.timesteps) * (1 if guidance_scale == 1 else 2)

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
            except Exception as error:  # noqa: BLE001 (whatever it is, the visitor is told and the worker lives on)
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
        seeds = [seed for job in jobs for seed in job.parameters.seeds]
        label_ids = self._label_ids([name for job in jobs for name in job.parameters.labels])
        stops = np.cumsum([job.parameters.batch_size for job in jobs])
        parts = [slice(stop - job.parameters.batch_size, stop) for job, stop in zip(jobs, stops, strict=True)]
        with closing(self._sample(*jobs[0].parameters.batch_key, seeds, label_ids)) as steps:
            for shown in steps:
                if all(job.cancelled for job in jobs):
                    return
                if shown:
                    step, timestep, x_t, x_0 = shown
                    for job, part in zip(jobs, parts, strict=True):
                        job.events.put(Frame(step, timestep, x_t[part], x_0[part]))
        for job, part in zip(jobs, parts, strict=True):
            job.images = [Image.fromarray(image) for image in x_t[part]]

    def _denoise(self, sampler, num_steps, guidance_scale, seeds, label_ids) -> Iterator[tuple]:
        """Yields a Frame's (step, timestep, x_t, x_0) of the whole batch at the steps that are shown, the last among them,
        and () at the others. Closed early, it ends the computation. Its arguments and what it yields can be pickled."""
        if ZERO_GPU:
            self.pipe.to("cuda")  # only this process has one
        num_timesteps = self.num_evaluations(num_steps)
        every = math.ceil(num_timesteps / MAX_FRAMES)
        steps, closed = queue.SimpleQueue(), threading.Event()

        def on_step_end(pipe, step_index, timestep, tensors):
            pipe._interrupt = closed.is_set()
            step = step_index + 1
            shown = (num_timesteps - step) % every == 0
            x_t, x_0 = tensors["latents"], tensors["pred_original_sample"]
            steps.put((step, int(timestep), to_uint8(x_t), to_uint8(x_0)) if shown else ())

        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(
                self.pipe,
                batch_size=len(seeds),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=num_steps,
                output_type="pt",
                class_labels=label_ids,
                guidance_scale=guidance_scale,
                callback_on_step_end=on_step_end,
                callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
                **self.samplers[sampler][1],
            )
            run.add_done_callback(lambda _: steps.put(None))
            try:
                yield from iter(steps.get, None)
            finally:
                closed.set()
        run.result()

    def draw_noise(self, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """What a job of these seeds starts from, and the grey that one believes of it: uint8 arrays as in a Frame."""
        unet = self.pipe.unet
        size = unet.config.sample_size
        shape = (1, self.pipe.num_channels, *((size, size) if isinstance(size, int) else size))
        generators = [torch.Generator().manual_seed(seed + i) for i in range(batch_size)]
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
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

    def _label_ids(self, names: list[str | None]) -> list[int] | None:
        if not self.class_names:
            return None
        return [self.pipe.null_label if name is None else self.labels[name] for name in names]


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """float (B, C, H, W), [-1, 1] shown and the rest clipped -> uint8 (B, H, W) or (B, H, W, 3)."""
    x = ((x.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return x.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
