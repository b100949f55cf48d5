"""Algorithm 1 of DDPM (Ho et al. 2020, arXiv:2006.11239) under Accelerate, from a pipeline and data to a saved model.

    data -> pipeline.encode -> objective (scheduler.add_noise -> pipeline.denoise -> loss) -> optimizer, EMA -> hub.save

Everything counts optimizer steps, on any number of ranks. What is drawn for a sample depends on (seed, its position in the run) alone,
and dropout and an objective's own draws on (seed, forward pass, rank), never on the state of a global generator: that makes a resumed run
the same run, bit for bit where kernels are deterministic, as on a CPU.

    OUTPUT_DIR/                     the saved model, once the run has ended
    OUTPUT_DIR/run.yaml             the options asked for, the rest as comments; `train.py run.yaml --output_dir OTHER` runs it anew
    OUTPUT_DIR/checkpoints/step-N/  a saved model (the averaged weights) and state/, all that --resume needs
    OUTPUT_DIR/averages/            snapshots for averages of other lengths, where ema_sigma_rels asks for them
    OUTPUT_DIR/samples/, logs/      grids drawn on the way, the tracker's files
"""

import copy
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.models.embeddings import LabelEmbedding
from diffusers.optimization import get_scheduler
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tqdm.auto import tqdm

from .. import hub
from ..data import ImageDataset, SampleOrder, StreamedImages, collate_batch, load_image_dataset
from ..hardware import describe_hardware
from ..images import to_x_0
from ..keys import GENERATOR, draw, dropout_seed
from ..objective import Objective, drop_condition, make_objective
from ..pipeline_ddpm_image import Condition, DDPMImagePipeline
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from . import checkpoints, validation
from .config import TrainConfig
from .ema import NUM_SNAPSHOTS, ExponentialAverage, PowerAverages, full_tensor
from .launch import (
    StopSignals,
    end_rank,
    ignore_foreign_signals,
    is_sharded,
    local_main_process_first,
    make_accelerator,
    on_main_process,
)
from .start import Start, find_data, find_start, make_pipeline

logger = logging.getLogger(__name__)


def train(config: TrainConfig, objective: Objective | None = None) -> Path:
    """Run `config` to its end, or to a SIGTERM or Ctrl-C, after which `resume=True` goes on. Returns the run's folder.

    objective: a callable as `objective` describes it, in place of the one that `config` names.
    """
    return make_trainer(config, objective).run()


def make_trainer(config: TrainConfig, objective: Objective | None = None) -> "Trainer":
    """The run that the command line asks for: its data, its pipeline, its objective."""
    accelerator = make_accelerator(config)
    check_folder(config)
    start = find_start(config)
    find_data(config, start)
    if start.preset.text_encoder and config.streaming:
        raise ValueError("streaming=True: a model of text embeds all captions before it begins.")
    data = load_data(config, start, "train", accelerator)
    pipeline = make_pipeline(start, data.class_names, config)
    belongs = [
        name for name in ("objective", "snr_gamma", "distill_guidance", "teacher") if config.asked[name] is not None
    ]
    if objective is not None and belongs:
        raise ValueError(
            f"{belongs[0]}={config.asked[belongs[0]]!r} belongs to the objectives of ddpm_hf; train has another."
        )
    if objective is None:
        taught = config.distill_guidance, start.teacher
        objective = make_objective(config.objective, pipeline, config.snr_gamma, *taught)
    held_out = load_held_out(config, start, pipeline, accelerator)
    if start.preset.text_encoder:
        with local_main_process_first(accelerator):  # it fills the machine's cache
            sets: Any = data, held_out  # no streams: those are refused above
            for images in filter(None, sets):
                images.embed_captions(pipeline.embed_prompts, start.preset.text_encoder)
    return Trainer(pipeline, data, objective, config, held_out, accelerator)


class Trainer:
    """One run: trains the network of a pipeline.

    Args:
        pipeline: it has a `DDPMNoiseScheduler`, of any network; it is trained in place.
        data: its batches have what the pipeline's `encode` takes.
        objective: a callable as `objective` describes it.
        config: the options; `preset`, `init_from`, `dataset` and `objective` are told on the card only.
        validation_data: images of the held-out loss, or None.
        accelerator: None is one made from the config.

    Raises:
        ValueError: a scheduler, data or an option that do not go with the pipeline, or a folder that holds another run.
    """

    def __init__(
        self,
        pipeline: DDPMImagePipeline,
        data: ImageDataset | StreamedImages,
        objective: Objective,
        config: TrainConfig,
        validation_data: ImageDataset | None = None,
        accelerator: Accelerator | None = None,
    ):
        self.data, self.objective, self.config, self.folder = data, objective, config, Path(config.output_dir)
        self.validation_data = validation_data
        self.accelerator = accelerator or make_accelerator(config)
        self.signals = StopSignals(self.accelerator)
        check_folder(config)
        checkpoint = broadcast_object_list([checkpoints.newest(self.folder) if config.resume else None])[0]
        self.pipeline, self.scheduler = pipeline, pipeline.scheduler
        self.null: Condition | None = None
        _check_parts(pipeline, data, config)
        for module in pipeline.unet.modules():  # DiT's own dropout of labels, on top of `label_dropout`
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0
        unet, self.average = pipeline.unet, self._averaged(pipeline)
        teacher = getattr(objective, "teacher", None)
        self.teacher = None if teacher is None else checkpoints.fingerprint(teacher.network)
        auxiliary = getattr(objective, "auxiliary", None)
        networks = [unet] if auxiliary is None else [unet, auxiliary]
        if not is_sharded(self.accelerator):  # FSDP2 wants its parameters contiguous
            for network in networks:
                network.to(memory_format=torch.channels_last)
        elif auxiliary is not None:
            raise ValueError(
                f"objective={config.objective!r} trains two networks, which FSDP cannot share out: use DDP."
            )
        for network in networks if config.gradient_checkpointing else ():
            network.enable_gradient_checkpointing()
        self.rates = (1.0, getattr(objective, "AUXILIARY_RATE", 1.0))  # of each network's learning rate
        optimizer = torch.optim.AdamW(
            [
                {"params": list(network.parameters()), "lr": rate * config.learning_rate}
                for network, rate in zip(networks, self.rates)
            ],
            betas=(0.9, config.adam_beta2),
            weight_decay=config.weight_decay,
            # A fused one hides from Accelerate the steps that fp16 skips; None is the fastest of the others.
            fused=config.mixed_precision != "fp16" or None,
        )
        if config.torch_compile:
            networks = [torch.compile(network) for network in networks]
        *self.trained, self.optimizer = self.accelerator.prepare(*networks, optimizer)
        self.model = self.trained[0]
        if auxiliary is not None:
            objective.auxiliary = self.trained[1]  # type: ignore[attr-defined]
        # Not prepared: Accelerate would step it once per rank, and it counts optimizer steps.
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.ema = ExponentialAverage(self.model.parameters(), decay=config.ema_decay, foreach=True)
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)  # names as in a saved model
        parameters = {name.removeprefix("_orig_mod."): parameter for name, parameter in bare.named_parameters()}
        self.parameter_names = list(parameters)
        self.averages = PowerAverages(parameters, config.ema_sigma_rels) if config.ema_sigma_rels else None
        stateful = (self.lr_scheduler, self.ema, self.averages)
        self.accelerator.register_for_checkpointing(*filter(None, stateful))
        self.step, self.began = self._load_checkpoint(checkpoint) if checkpoint else (0, time.perf_counter())

    def _averaged(self, pipeline: DDPMImagePipeline) -> DDPMImagePipeline:
        """A pipeline with a network of its own, in eval mode, for the averaged weights: what is validated and saved."""
        unet = copy.deepcopy(pipeline.unet).eval().requires_grad_(False)
        parts = {**pipeline.components, **pipeline.parameters, "unet": unet}
        if hasattr(self.objective, "student"):
            parts |= self.objective.student(pipeline)
        average = DDPMImagePipeline(**parts)
        average.set_progress_bar_config(disable=True)
        average.to(self.accelerator.device)
        unet.to(memory_format=torch.channels_last)
        return average

    # ------------------------------------------------------------------ the loop

    def run(self) -> Path:
        """Train to the last step, or to a SIGTERM or Ctrl-C, and save. Returns the run's folder."""
        config, accelerator, lock = self.config, self.accelerator, FileLock(self.folder / ".lock")
        on_main_process(accelerator, partial(self._claim_folder, lock))
        self._announce()
        with ExitStack() as stack:
            stack.callback(lock.release)
            stack.enter_context(self.signals)
            options = asdict(config).items()
            tracked = {name: value if isinstance(value, (int, float)) else str(value) for name, value in options}
            accelerator.init_trackers("ddpm_hf", config=tracked)
            self._loop()
            if self.signals.on_any_rank(may_wait=False) or not self._finish():
                self._say(f"Stopped by {self.signals.name} at step {self.step}, saved. --resume goes on.")
        self.model = accelerator.unwrap_model(self.model)
        end_rank(accelerator)
        return self.folder

    def _announce(self) -> None:
        """What is trained, on what, for how long and where."""
        config, images = self.config, self.total_batch_size
        epochs = (
            f", {config.max_train_steps * images / len(self.data):.1f} epochs" if hasattr(self.data, "__len__") else ""
        )
        self._say(self.data.describe())
        self._say(
            f"{self.average.unet.num_parameters():,} parameters, {config.max_train_steps} steps of {images} images{epochs},"
            f" mixed_precision {config.mixed_precision}, on {describe_hardware(self.accelerator)}, to {self.folder}."
            " Ctrl-C saves and stops; --resume goes on."
        )

    def _claim_folder(self, lock: FileLock) -> None:
        """Keep other runs out of this folder, until the lock or its process ends, and bring it to the step at which the run begins."""
        config = self.config
        if config.push_to_hub:
            hub.prepare_push(self.folder, self.repo_id, private=config.hub_private_repo)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"output_dir={config.output_dir!r}: another run is training there.") from error
        config.save(self.folder / "run.yaml")
        checkpoints.remove_old(self.folder, self.step, config.checkpoints_total_limit)
        if self.averages:
            self.averages.drop_later(self.folder)

    def _loop(self) -> None:
        config, accelerator = self.config, self.accelerator
        silent = not accelerator.is_main_process
        bar = tqdm(total=config.max_train_steps, initial=self.step, unit="step", disable=silent)
        snapshot_steps = -(-config.max_train_steps // NUM_SNAPSHOTS)  # rounded up: no more than those
        batches, figures, since, stopping = iter(self._loader()), [], time.perf_counter(), False
        while self.step < config.max_train_steps and not stopping:
            figures.append(self.train_step(batches))
            self.step += 1
            bar.update()
            is_last, logging_now = self.step == config.max_train_steps, self.step % config.logging_steps == 0
            stopping = self.signals.on_any_rank(may_wait=logging_now)
            saving = is_last or stopping or self.step % config.checkpointing_steps == 0
            validating = not is_last and config.validation_steps and self.step % config.validation_steps == 0
            if self.averages and (is_last or self.step % snapshot_steps == 0):
                with self._writing("averages"):
                    self.averages.save(self.folder, accelerator.is_main_process)
            if saving or validating or logging_now:
                self._log(figures, time.perf_counter() - since, bar)  # first: what is not finite is never saved
                if validating:
                    self.validate()
                if saving:
                    self.save_checkpoint()
                figures, since = [], time.perf_counter()
        bar.close()

    def train_step(self, batches: Iterator[dict[str, Any]]) -> torch.Tensor:
        """One optimizer step: the gradient step of Algorithm 1 on `total_batch_size` images.

        Returns this rank's mean loss and the norm of the gradient over all ranks, before it was clipped: float32 (2,).
        """
        config, accelerator, device = self.config, self.accelerator, self.accelerator.device
        losses: list[torch.Tensor] = []
        if hasattr(self.objective, "progress"):
            self.objective.progress = self.step / config.max_train_steps
        for i in range(config.gradient_accumulation_steps):
            batch = next(batches)
            x_0 = batch["x_0"].to(device, memory_format=torch.channels_last, non_blocking=True)
            x_0 = to_x_0(x_0) if x_0.dtype == torch.uint8 else x_0
            t, noise, uniform = draw(x_0, batch["position"], config.seed, len(self.scheduler))
            condition = self._condition(batch, uniform)
            with accelerator.accumulate(*self.trained):
                forward = (self.step * config.gradient_accumulation_steps + i) * accelerator.num_processes
                torch.manual_seed(dropout_seed(config.seed, forward + accelerator.process_index))
                loss = self.objective(self._denoise, self.scheduler, x_0, t, noise, condition).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    parameters = [parameter for network in self.trained for parameter in network.parameters()]
                    grad_norm = full_tensor(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        if accelerator.optimizer_step_was_skipped:  # as fp16 does where the gradients overflow
            grad_norm = torch.zeros_like(grad_norm)
        else:
            self.lr_scheduler.step()
            self.ema.step(self.model.parameters())
            if self.averages:
                self.averages.step()
        return torch.stack([sum(losses[1:], losses[0]) / len(losses), grad_norm])

    def _denoise(
        self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition, network: torch.nn.Module | None = None
    ) -> torch.Tensor:
        """`pipeline.denoise` under the run's autocast. network: another one than the trained, such as a teacher."""
        with self.accelerator.autocast():
            return self.pipeline.denoise(x_t, t, condition, network=self.model if network is None else network)

    def _condition(self, batch: dict[str, Any], uniform: torch.Tensor) -> Condition:
        """The condition of a batch, at times its null (`label_dropout`). uniform: in [0, 1), (B,), on the CPU."""
        given = self.pipeline.encode(**{name: batch[name] for name in self.pipeline.takes}, batch_size=len(uniform))
        if not (given and self.config.label_dropout):
            return given
        if self.null is None:  # of one sample, kept on the device
            self.null = self.pipeline.null({name: value[:1] for name, value in given.items()})
        return drop_condition(given, self.null, uniform, self.config.label_dropout)

    @property
    def total_batch_size(self) -> int:
        """Images of one optimizer step, over all ranks."""
        return self.config.train_batch_size * self.config.gradient_accumulation_steps * self.accelerator.num_processes

    def _loader(self) -> torch.utils.data.DataLoader:
        config, accelerator = self.config, self.accelerator
        if isinstance(self.data, StreamedImages):
            return torch.utils.data.DataLoader(self.data, batch_size=config.train_batch_size)
        order = SampleOrder(
            len(self.data),
            config.train_batch_size,
            config.seed,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            start_step=self.step,
        )
        data = copy.copy(self.data)
        data.as_uint8 = True  # what workers hand over and what is moved to the device
        return torch.utils.data.DataLoader(
            data,
            batch_sampler=order,
            collate_fn=collate_batch,
            num_workers=config.dataloader_num_workers,
            worker_init_fn=ignore_foreign_signals,
            pin_memory=accelerator.device.type == "cuda",
        )

    def _log(self, figures: list[torch.Tensor], seconds: float, bar: tqdm) -> None:
        """Report the means over steps and ranks; end the run if a loss or a gradient is not finite."""
        means = self.accelerator.reduce(torch.stack(figures), reduction="mean")
        if not (finite := means.isfinite().all(dim=1)).all():
            step = self.step - len(figures) + 1 + int((~finite).nonzero()[0])
            raise FloatingPointError(
                f"The loss or its gradient is no longer finite at step {step}. The last checkpoint is"
                f" {checkpoints.last(self.folder)}: go on from it with a lower learning_rate, or with mixed_precision bf16 or no."
            )
        (loss, grad_norm), lr = means.mean(dim=0).tolist(), self.lr_scheduler.get_last_lr()[0]
        speed = len(figures) * self.total_batch_size / seconds
        self.accelerator.log(
            {"loss": loss, "grad_norm": grad_norm, "lr": lr, "images_per_second": speed}, step=self.step
        )
        bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")

    # ------------------------------------------------------------------ looking at what was learnt

    def averaged(self) -> DDPMImagePipeline:
        """The model as it would be saved now: the averaged weights, in eval mode."""
        self.ema.copy_to(self.average.unet.parameters())
        return self.average

    def validate(self) -> tuple[dict[str, float], PIL.Image.Image | None]:
        """Report the held-out loss and draw the grid, which only the main process gets; returns them. A signal cuts them short."""
        config, accelerator, pipeline, figures = self.config, self.accelerator, self.averaged(), {}
        if self.validation_data:
            num_images = min(config.num_validation_images, len(self.validation_data))
            images = self.scheduler, self.validation_data, num_images
            figures = validation.held_out_loss(accelerator, pipeline, *images, stop=self.signals.is_caught)
            accelerator.log(figures, step=self.step)
        data = self.validation_data or self.data
        grid = validation.draw_samples(accelerator, pipeline, data, stop=self.signals.is_caught)
        if grid is not None:
            path = self.folder / "samples" / f"step-{self.step}.png"
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
        return figures, grid

    # ------------------------------------------------------------------ the run's folder

    def save_checkpoint(self) -> None:
        """Write checkpoints/step-N, all of it or nothing, then remove the oldest."""
        with self._writing("checkpoint"):
            self._write_checkpoint(checkpoints.staging(self.folder, self.step))

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """One error for a full disk; which one it is depends on the writer."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            kept = checkpoints.last(self.folder)
            raise OSError(f"The {what} of step {self.step} could not be written ({error}); {kept} is kept.") from error

    def _write_checkpoint(self, staging: Path) -> None:
        accelerator = self.accelerator
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
        self._save_model(staging)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staging / "state"))
        if isinstance(self.data, StreamedImages):
            path = staging / "state" / f"stream-{accelerator.process_index}.json"
            path.write_text(json.dumps(self.data.state_dict()))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            limit, seconds = self.config.checkpoints_total_limit, time.perf_counter() - self.began
            facts = {"data": self.data.fingerprint, "parameters": self.parameter_names, "seconds": seconds}
            facts |= {"seed": self.config.seed, "hardware": describe_hardware(self.accelerator)}
            facts |= {"teacher": self.teacher, "noise": GENERATOR}
            checkpoints.commit(self.folder, self.step, limit, total_batch_size=self.total_batch_size, **facts)
        accelerator.wait_for_everyone()

    def _save_model(self, folder: Path, figures: dict[str, float] | None = None, **extras: Any) -> None:
        pipeline = self.averaged()  # all ranks together: they may share its weights out
        if not self.accelerator.is_main_process:
            return
        seconds, samples = time.perf_counter() - self.began, self.step * self.total_batch_size
        results: dict = {"train_runtime": round(seconds, 1), "train_steps": self.step, "train_samples": samples}
        results |= {"num_processes": self.accelerator.num_processes, "hardware": describe_hardware(self.accelerator)}
        results |= figures or {}
        recipe = self.config.recipe()
        if name := getattr(self.objective, "__name__", None):  # a function of the caller's
            recipe |= {"objective": name, "snr_gamma": None}
        hub.save(pipeline, folder, train_config=recipe, train_results=results, **extras)

    def _load_checkpoint(self, checkpoint: Path) -> tuple[int, float]:
        config, manifest = self.config, checkpoints.read_manifest(checkpoint)
        if manifest["data"] != self.data.fingerprint:
            raise ValueError(f"dataset={config.dataset!r} does not hold the images that {checkpoint} was trained on.")
        if manifest.get("parameters") != self.parameter_names:  # the optimizer's state goes by position
            raise ValueError(
                f"resume: {checkpoint} is of another version of ddpm_hf, with its parameters in another order."
            )
        if manifest.get("seed", config.seed) != config.seed:
            raise ValueError(f"resume: {checkpoint} is of another run, with seed={manifest['seed']}.")
        if manifest.get("teacher", self.teacher) != self.teacher:
            name = "teacher" if config.teacher else "init_from"
            raise ValueError(
                f"{name}={getattr(config, name)!r} does not have the weights that {checkpoint} was taught by."
            )
        if manifest["step"] > config.max_train_steps:
            raise ValueError(f"max_train_steps={config.max_train_steps}: {checkpoint} is already beyond it.")
        if isinstance(self.data, StreamedImages):
            positions, num_ranks = list(checkpoint.glob("state/stream-*.json")), self.accelerator.num_processes
            if len(positions) != num_ranks:
                raise ValueError(
                    f"--resume on {num_ranks} rank(s): {checkpoint} keeps the place of {len(positions)} in the streamed"
                    f" data set, each in its own part; resume on {len(positions)}."
                )
            path = checkpoint / "state" / f"stream-{self.accelerator.process_index}.json"
            self.data.load_state_dict(json.loads(path.read_text()))
        if manifest["total_batch_size"] != self.total_batch_size:
            raise ValueError(
                f"train_batch_size={config.train_batch_size} makes steps of {self.total_batch_size} images with accumulation and"
                f" ranks; those of {checkpoint} have {manifest['total_batch_size']}, and go on with as many."
            )
        self.accelerator.load_state(str(checkpoint / "state"))
        self.accelerator.step = 0  # its count of forward passes: a step begins here, whatever the accumulation was
        self._follow_config()
        self._say(f"Resumed from {checkpoint}.")
        if manifest.get("noise") != GENERATOR:
            self._say(
                "An earlier version of ddpm_hf wrote it: from here on the run draws other noise than that version would."
            )
        if manifest.get("hardware", hardware := describe_hardware(self.accelerator)) != hardware:
            self._say(f"It was written on {manifest['hardware']}: on {hardware} the same steps can round differently.")
        return manifest["step"], time.perf_counter() - manifest.get("seconds", 0.0)

    def _follow_config(self) -> None:
        """What a resumed run may have changed; the checkpoint brought it back as it was."""
        config, schedule = self.config, self.lr_scheduler
        self.ema.decay = config.ema_decay  # a longer run has a longer average
        factor = schedule.lr_lambdas[0](schedule.last_epoch)
        schedule.base_lrs = [rate * config.learning_rate for rate, _ in zip(self.rates, self.trained)]
        schedule._last_lr = [factor * lr for lr in schedule.base_lrs]
        for group, initial_lr, lr in zip(self.optimizer.param_groups, schedule.base_lrs, schedule._last_lr):
            group |= {"lr": lr, "initial_lr": initial_lr}
            group |= {"betas": (0.9, config.adam_beta2), "weight_decay": config.weight_decay}

    def _finish(self) -> bool:
        """Leave the saved model in the run's folder, and push it where that was asked for; False where a signal came before."""
        config = self.config
        figures, grid = self.validate()
        if self.signals.on_any_rank(may_wait=True):
            return False
        with self._writing("model"):
            self._save_model(self.folder, figures, samples=grid)
        if self.accelerator.is_main_process:
            held_out = f", held-out loss {figures['validation_loss']:.4f}" if figures else ""
            self._say(f"Saved {self.folder} after {self.step} steps{held_out}. Look at {self.folder / 'samples.png'}.")
            if config.push_to_hub:
                try:
                    commit = hub.push(self.folder, self.repo_id, private=config.hub_private_repo)
                    self._say(f"Pushed to {commit.repo_url}.")
                except hub.HubError as error:  # the run is saved: a failed push must not look like a failed run
                    self._say(f"{error} Push it with ddpm-push {self.folder} --repo_id {self.repo_id}.")
        return True

    @property
    def repo_id(self) -> str:
        """Where the run is pushed to."""
        return self.config.hub_model_id or self.folder.resolve().name

    def _say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(message)


def _check_parts(pipeline: DDPMImagePipeline, data: ImageDataset | StreamedImages, config: TrainConfig) -> None:
    """See that the pipeline can be trained on the data."""
    if not isinstance(pipeline.scheduler, DDPMNoiseScheduler):
        raise ValueError(
            f"pipeline.scheduler is a {type(pipeline.scheduler).__name__}: training takes a DDPMNoiseScheduler, such as"
            " DDPMNoiseScheduler.from_config(pipeline.scheduler.config)."
        )
    columns = {"class_labels"} if data.class_names else set()
    columns |= {"condition_image"} if data.image_condition else set()
    if not isinstance(data, StreamedImages):
        columns = set(data[[0]])
    if missing := set(pipeline.takes) - columns:
        raise ValueError(f"data has {sorted(columns)}: this pipeline is trained with {', '.join(missing)} as well.")
    if pipeline.image_condition and data.image_condition not in (None, pipeline.image_condition):
        raise ValueError(
            f"data has image_condition={data.image_condition!r}: this pipeline takes {pipeline.image_condition!r}."
        )
    num_channels, num_classes = pipeline.num_channels, len(data.class_names or ())
    if data.num_channels != num_channels:
        raise ValueError(f"data has images of {data.num_channels} channels: this network takes {num_channels}.")
    if "class_labels" in pipeline.takes and num_classes > (known := len(pipeline.id2label) or pipeline.num_labels):
        raise ValueError(f"data has {num_classes} classes: this pipeline knows {known}.")
    if config.label_dropout:
        try:
            pipeline.encode()
        except ValueError as error:
            raise ValueError(
                f"label_dropout={config.label_dropout} puts in the null, and 0 is none: {error}"
            ) from error


# ---------------------------------------------------------------------- what a run of the command line is made of


def check_folder(config: TrainConfig) -> None:
    """See that the run's folder is free for it, or holds this very run."""
    folder = Path(config.output_dir)
    path = folder / "run.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir={config.output_dir!r} is a file: a run is a folder.")
    if not ((folder / "model_index.json").exists() or any(folder.glob("checkpoints/step-*"))):
        return  # a run that was refused in its first step leaves no more than its run.yaml
    if not (config.resume and path.exists()):
        raise ValueError(
            f"output_dir={config.output_dir!r} already holds a run: --resume goes on with it, another folder is a new one."
        )
    if different := config.differences(path):
        raise ValueError(
            f"output_dir={config.output_dir!r} holds a run with another {', '.join(different)}: choose another folder."
        )


def load_data(
    config: TrainConfig, start: Start, split: str, accelerator: Accelerator
) -> ImageDataset | StreamedImages:
    """The images of a split, as the run's network takes them."""
    options: dict = {"image_column": config.image_column, "skip_undecodable": config.skip_undecodable}
    options |= {"label_column": config.label_column, "caption_column": config.caption_column}
    options |= {"conditions": start.preset.conditions, "streaming": config.streaming}
    options["image_condition"] = start.preset.image_condition
    with local_main_process_first(accelerator):  # it fills the machine's cache, the others read it
        data = load_image_dataset(config.dataset, split=split, **options, **start.image_shape)
    data.seed, data.random_flip = config.seed, split == "train" and config.random_flip
    if isinstance(data, StreamedImages):
        data.shard(config.seed, accelerator.process_index, accelerator.num_processes)
    return data


def load_held_out(
    config: TrainConfig, start: Start, pipeline: DDPMImagePipeline, accelerator: Accelerator
) -> ImageDataset | None:
    """The images of the held-out loss; None, with a warning, where there are none of the pipeline's classes."""
    if not config.num_validation_images:
        return None
    if config.streaming:
        logger.warning("No held-out loss: the data set is streamed. num_validation_images=0 asks for none.")
        return None
    try:
        data: Any = load_data(config, start, "test", accelerator)  # never a stream
    except ValueError as error:
        logger.warning(f"No held-out loss: {error}")
        return None
    if pipeline.id2label and data.class_names != list(pipeline.id2label.values()):
        logger.warning(f"No held-out loss: the held-out images have classes of their own, {data.class_names}.")
        return None
    return data
