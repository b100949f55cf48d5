"""Measure a saved model: likelihood and fidelity on one rank or many, each figure beside its floor and its spread.

This file loads model and data (`hub`, `data`), draws the samples, and measures them and real images by the tables of `measures` and
`metrics`; `report` draws what comes out. Work is cut into batches whose borders depend on `batch_size` alone, and whole batches go to ranks: every image meets the same
arithmetic in the same company on any number of ranks, so the values are the same. Every finished batch is kept in the cache.

metrics.json, the dict that `evaluate` returns:
    metrics      name -> value, flat: what a model card shows
    floors       name -> the same function of as many real test images in place of samples; the best one can expect
    spreads      name -> standard error: how much the value would vary with other samples, as many (of bits_per_dim: other images, noise and t)
    unavailable  metric -> why it could not be measured
    details      what does not fit one number: terms of bits_per_dim, accuracy_of_class and its floors, seconds_per_image of sampling and the
                 evaluations of the network that an image takes
    sweep        with --sweep: a list of {sampler, num_inference_steps, evaluations (of the network), seconds_per_image, fid, spread}
    settings     every option with its resolved value, the model and a hash of its weights, fingerprints and sizes of the data, versions, ...
    seconds      phase -> wall time of this call; what came out of the cache took none
    command      what repeats it: as it was typed, and the options that it did not name
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import SchedulerMixin
from safetensors.torch import load_file
from tqdm.auto import tqdm

from .. import __version__, hub
from ..data import ImageDataset, load_image_dataset
from ..hardware import describe_hardware, runs_on_cpu, use_own_cores
from ..images import unit_to_uint8
from ..keys import sample_key
from ..likelihood import Bound, variational_bound
from ..pipeline_ddpm_image import DDPMImagePipeline
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from . import fidelity
from .config import CLASSIFIER, DATA_OPTIONS, MIN_IMAGES, SAMPLING, EvaluationConfig
from .measures import MEASURES, Measure, cache_path, concatenate, fingerprint, pixels, save
from .metrics import METRICS, Real, Tensors, spread
from .samplers import SAMPLERS, with_sampler

NUM_IMAGES = 10_000
MAX_ROWS = 12  # classes that the report draws


def evaluate(model: str, config: EvaluationConfig) -> tuple[dict, dict]:
    """Measure `model` (a folder or Hub id). Call it on every rank.

    Returns: the content of metrics.json, and what `report` draws; both empty on all ranks but the first.

    Raises:
        ValueError: an option, or a model and data set that do not go together, before anything is computed.
    """
    return Evaluation(model, config).run()


class Evaluation:
    """One model, its data, and what measures them."""

    def __init__(self, model: str, config: EvaluationConfig):
        self.model, self.state = model, PartialState(cpu=runs_on_cpu())
        use_own_cores(self.state)
        self.pipeline = hub.load(model, revision=config.revision).to(self.state.device)
        self.pipeline.unet.eval().to(memory_format=torch.channels_last)
        self.pipeline.set_progress_bar_config(disable=True)
        self.scheduler_config, self.weights = self.pipeline.scheduler.config, fingerprint(self.pipeline.unet)
        self.encoder = self.pipeline.text_encoder and fingerprint(self.pipeline.text_encoder)
        config = config.with_data_of(Path(self.pipeline.config["_name_or_path"]))
        self.train, self.test = (self._load_data(config, split) for split in ("train", "test"))
        self._check_data(config)
        if self.state.is_main_process:
            tqdm.write(f"train: {self.train.describe()}\ntest: {self.test.describe()}")
        self.config = dataclasses.replace(config, num_images=config.num_images or min(NUM_IMAGES, len(self.test)))
        self.points = self._resolve_sampling()
        self.metrics = self._choose_metrics()
        self.measures: dict[str, Measure] = {}
        self.unavailable: dict[str, str] = {}
        self._load_measures()
        dtype = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
        self.autocast = partial(torch.autocast, self.state.device.type, dtype, enabled=config.mixed_precision != "no")
        self.subset = self._choose(len(self.test), 0)  # test images: the floor, and what the samples are asked for
        self.seconds: dict[str, float] = {}

    # ------------------------------------------------------------------ what goes together

    def _load_data(self, config: EvaluationConfig, split: str) -> ImageDataset:
        unet = self.pipeline.unet.config
        if unet.sample_size is None:
            raise ValueError(
                f"model={self.model!r} has no unet.config.sample_size: the size of its images is unknown."
            )
        is_text = "prompt_embeds" in self.pipeline.takes
        options: dict[str, Any] = {name: getattr(config, name) for name in DATA_OPTIONS}
        options |= {"conditions": ("captions",) if is_text else ("class_labels",)}
        if is_text and config.label_column:  # what accuracy is about
            options["conditions"] += ("class_labels",)
        options |= {"num_channels": self.pipeline.num_channels, "image_size": unet.sample_size}
        options["image_condition"] = self.pipeline.image_condition
        data: Any = load_image_dataset(config.dataset, split=split, **options)
        if is_text:
            data.embed_captions(self.pipeline.embed_prompts, self.encoder)
        return data

    def _check_data(self, config: EvaluationConfig) -> None:
        pipeline, needed = self.pipeline, config.num_images or MIN_IMAGES
        if needed > len(self.test):
            raise ValueError(
                f"num_images={config.num_images}: there are {len(self.test)} test images, and the"
                f" floor takes as many as there are samples, {needed} or more."
            )
        if config.mixed_precision == "fp16" and self.state.device.type == "cpu":
            raise ValueError("mixed_precision='fp16' needs a GPU: choose bf16 or no.")
        if pipeline.num_channels == 3:
            images = pixels(self.train, range(min(100, len(self.train))))
            if (images == images[:, :1]).all():
                raise ValueError(
                    f"model={self.model!r} draws colour images, but those of dataset={config.dataset!r} are grey."
                )
        if "class_labels" not in pipeline.takes:
            return
        known, found = list(pipeline.id2label.values()), self.test.class_names or []
        if not found or len(found) > pipeline.num_labels or (known and known[: len(found)] != found):
            classes = known or f"{pipeline.num_labels} without names"
            raise ValueError(
                f"model={self.model!r} has the classes {classes}; dataset={config.dataset!r} has {found or 'none'}."
            )

    def _sampler(self, name: str | None) -> DDPMImagePipeline:
        return with_sampler(self.pipeline, name) if name else self.pipeline

    def _resolve_sampling(self) -> list[tuple[str | None, dict]]:
        """The sampler, None for the model's own, and all words to the pipeline: of each point of a sweep, or else of the one set of samples."""
        config, points = self.config, []
        named = {name: getattr(config, name) for name in SAMPLING}
        sweep = [(sampler, int(steps)) for sampler, _, steps in (point.partition(":") for point in config.sweep or ())]
        for sampler, steps in sweep or [(config.sampler, config.num_inference_steps)]:
            own = SAMPLERS[sampler][1] if sampler else {}
            asked = own | {name: value for name, value in named.items() if value is not None}
            asked |= {"num_inference_steps": steps, "is_conditional": bool(self.pipeline.takes)}
            if steps is not None and steps > len(self.pipeline.scheduler):
                raise ValueError(f"num_inference_steps={steps}: the model's chain has {len(self.pipeline.scheduler)}.")
            pipeline = self._sampler(sampler)
            points.append((sampler, pipeline.resolve_sampling(**asked)))
            pipeline.num_evaluations(points[-1][1])  # refuses timesteps that its scheduler does not take
        return points

    def _choose_metrics(self) -> list[str]:
        if self.config.sweep:
            return ["fid"]
        if self.config.metrics is None:
            suits = {"accuracy": bool(self.pipeline.takes and self.test.class_names)}
            return [name for name, metric in METRICS.items() if metric.by_default and suits.get(name, True)]
        if "accuracy" in self.config.metrics and not (self.pipeline.takes and self.test.class_names):
            raise ValueError(
                f"metrics has 'accuracy': model={self.model!r} takes {self.pipeline.takes or 'no condition'}, the test images"
                f" have the classes {self.test.class_names}; of a text model label_column names them."
            )
        return list(dict.fromkeys(self.config.metrics))

    def _load_measures(self) -> None:
        """Load what the metrics need. A metric that was named and is unavailable is an error, of the others the reason is told."""
        config, failed = self.config, {}
        path = str(CLASSIFIER) if config.classifier is None else config.classifier
        for need in dict.fromkeys(METRICS[name].measure for name in self.metrics):
            if need is not None:
                try:
                    self.measures[need] = MEASURES[need](path, self.train, self.state.device)
                except RuntimeError as error:
                    failed[need] = str(error)
        for name in self.metrics:
            need = METRICS[name].measure
            if reason := failed.get(need) or self._why_not(name):
                if config.metrics or config.sweep or (need in failed and config.classifier):
                    raise ValueError(f"{name} cannot be measured: {reason}")
                self.unavailable[name] = reason
        self.metrics = [name for name in self.metrics if name not in self.unavailable]
        needs = {METRICS[name].measure for name in self.metrics}
        self.measures = {need: measure for need, measure in self.measures.items() if need in needs}

    def _why_not(self, name: str) -> str | None:
        """Why a metric does not suit the data, or None."""
        measure, num_images = self.measures.get(METRICS[name].measure), self.config.num_images
        if METRICS[name].needs_full_rank and num_images <= measure.num_features:
            return (
                f"num_images={num_images} is too small: the covariance of {measure.num_features} features has full rank"
                f" from {measure.num_features + 1} images on"
            )
        if name == "accuracy" and measure.class_names != self.test.class_names:
            reason = f"the classifier knows {measure.class_names}, the data set {self.test.class_names}"
            return f"{reason}; scripts/train_classifier.py makes one that does"
        return None

    # ------------------------------------------------------------------ work, spread over ranks

    def _choose(self, num_images: int, key: int) -> np.ndarray:
        """num_images of a data set, as many as there are samples, by the seed; a larger number only adds to them."""
        return np.random.default_rng((self.config.seed, key)).permutation(num_images)[: self.config.num_images]

    def _over_batches(
        self, num_items: int, function: Callable[[range], Tensors], phase: str, *what: object
    ) -> list[Tensors]:
        """function(indices) of every batch, in order, on all ranks, where it depends on `what`: from the cache as far as it is there."""
        start, size = time.perf_counter(), self.config.batch_size
        folder = cache_path(self.config.cache_dir, phase, *what, self.state.device.type)
        batches = [range(i, min(i + size, num_items)) for i in range(0, num_items, size)]
        files = {folder / f"{batch.start}-{batch.stop}.safetensors": batch for batch in batches}
        mine = list(files)[self.state.process_index :: self.state.num_processes]
        missing = [file for file in mine if not file.exists()]
        known, is_quiet = len(mine) - len(missing), not self.state.is_main_process
        for file in tqdm(missing, phase, len(mine), initial=known, unit="batch", disable=is_quiet):
            save(file, function(files[file]))
        results = gather_object([(files[file].start, load_file(file)) for file in mine])
        self.seconds[phase] = self.seconds.get(phase, 0) + time.perf_counter() - start
        return [result for _, result in sorted(results, key=itemgetter(0))]

    def _measured(
        self, name: str, num_images: int, images: Callable[[range], torch.Tensor], of: str, *what: object
    ) -> Tensors:
        """One measure of images(indices), uint8."""
        measure = self.measures[name]

        def function(indices: range) -> Tensors:
            return measure.function(images(indices))

        return concatenate(self._over_batches(num_images, function, f"{name} of {of}", measure.key, *what))

    def real_images(self) -> dict[str, Real]:
        """Every measure of real images."""
        found = {}
        for name, measure in self.measures.items():
            splits: dict[str, Tensors] = {"train": {}, "test": {}}
            for split in measure.splits:
                dataset = getattr(self, split)
                read = partial(pixels, dataset)
                splits[split] = self._measured(name, len(dataset), read, "real images", dataset.fingerprint)
            if self.test.labels is not None:
                splits["test"]["labels"] = self.test.labels
            found[name] = Real(**splits, chosen=self._choose(len(self.train), 1), seed=self.config.seed)
        return found

    def samples(self, sampler: str | None, sampling: dict) -> tuple[torch.Tensor, dict[str, Tensors], float]:
        """num_images samples, uint8 (N, C, H, W); every measure of them; and the seconds that one took to draw."""
        pipeline, seed = self._sampler(sampler), self.config.seed

        def draw(indices: range) -> Tensors:
            start = time.perf_counter()
            generators = [torch.Generator().manual_seed(sample_key(seed, i)) for i in indices]
            batch = self.test[self.subset[indices.start : indices.stop].tolist()]
            asked = sampling | {name: batch[name] for name in pipeline.takes}
            with self.autocast():
                drawn: Any = pipeline(len(indices), generators, output_type="pt", autocast=False, **asked)
            return {
                "images": unit_to_uint8(drawn.images).cpu(),
                "seconds": torch.tensor([time.perf_counter() - start]),
            }

        title = f"{sampler}, {sampling['num_inference_steps']} steps" if self.config.sweep else "samples"
        what = (*self._model_key(pipeline.scheduler), sampling, seed, self.test.fingerprint)
        samples = concatenate(self._over_batches(self.config.num_images, draw, title, *what))
        images, measured = samples["images"], {}
        for name in self.measures:
            measured[name] = self._measured(
                name, len(images), lambda indices: images[indices.start : indices.stop], "samples", *what
            )
            if self.test.labels is not None:
                measured[name]["labels"] = self.test.labels[self.subset]
        return images, measured, samples["seconds"].sum().item() / len(images) / self.state.num_processes

    def bound(self) -> dict:
        """`Bound.summary` of num_images test images."""
        config, pipeline, num_timesteps = self.config, self.pipeline, self.config.bpd_timesteps or None
        scheduler = DDPMNoiseScheduler.from_config(self.scheduler_config)

        def compute(indices: range) -> Tensors:
            index = torch.from_numpy(self.subset[indices.start : indices.stop])
            batch = self.test[index.tolist()]
            condition = pipeline.encode(**{name: batch[name] for name in pipeline.takes}, batch_size=len(index))
            images = batch["x_0"], index, condition, num_timesteps, config.seed, self.state.device
            with self.autocast():
                found = variational_bound(pipeline.denoise, scheduler, *images)
            return {name: value.cpu() for name, value in vars(found).items()}

        what = (*self._model_key(scheduler), num_timesteps, config.seed, self.test.fingerprint)
        batches = self._over_batches(config.num_images, compute, "bpd", *what)
        return Bound.concatenate([Bound(**batch) for batch in batches]).summary()

    def _model_key(self, scheduler: SchedulerMixin) -> tuple:
        """What the outputs of the model depend on."""
        parts = (self.pipeline.unet.config, scheduler.config)
        configs = [{name: value for name, value in part.items() if name[0] != "_"} for part in parts]
        return self.weights, self.encoder, *configs, type(scheduler).__name__, self.config.mixed_precision

    # ------------------------------------------------------------------ figures

    def run(self) -> tuple[dict, dict]:
        """What `evaluate` returns."""
        result: dict[str, Any] = {name: {} for name in ("metrics", "floors", "spreads", "details")}
        drawn: dict = {}
        if "bpd" in self.metrics:
            details = result["details"]["bits_per_dim"] = self.bound()
            result["metrics"]["bits_per_dim"] = details["bits_per_dim"]
            result["spreads"]["bits_per_dim"] = details["standard_error"]
        if self.config.sweep:
            result["sweep"] = self._sweep(result)
        elif self.measures:
            real = self.real_images()
            images, measured, seconds = self.samples(*self.points[0])
            evaluations = self._sampler(self.points[0][0]).num_evaluations(self.points[0][1])
            result["details"] |= {"seconds_per_image": seconds, "evaluations": evaluations}
            if self.state.is_main_process:
                self._add_figures(result, measured, real)
                drawn = self._drawn(images, measured)
        if not self.state.is_main_process:
            return {}, {}
        return result | {"unavailable": self.unavailable, "settings": self._settings(), "seconds": self.seconds}, drawn

    def _sweep(self, result: dict) -> list[dict]:
        """FID and seconds per image of each sampler and number of steps; and the floor of FID."""
        real, points = self.real_images(), []
        for sampler, sampling in self.points:
            _, measured, seconds = self.samples(sampler, sampling)
            if self.state.is_main_process:
                self._add_figures(found := {"metrics": {}, "floors": result["floors"], "spreads": {}}, measured, real)
                figures = {"fid": found["metrics"]["fid"], "spread": found["spreads"]["fid"]}
                steps = sampling["num_inference_steps"]
                evaluations = self._sampler(sampler).num_evaluations(sampling)
                point = {"sampler": sampler, "num_inference_steps": steps, "evaluations": evaluations}
                points.append(point | {"seconds_per_image": seconds} | figures)
                tqdm.write(f"{sampler}, {steps} steps: FID {figures['fid']:.4g}, {seconds:.3g} s per image")
        return points

    def _add_figures(self, result: dict, samples: dict[str, Tensors], real: dict[str, Real]) -> None:
        """Every figure of the samples, its floor from as many test images, and its spread."""
        for name in self.metrics:
            if (metric := METRICS[name]).function is None:
                continue
            start, images, seen = time.perf_counter(), samples[metric.measure], real[metric.measure]
            floor = {key: values[self.subset] for key, values in seen.test.items()}
            result["metrics"] |= dict(zip(metric.figures, metric.function(images, seen)))
            result["floors"] |= dict(zip(metric.figures, metric.function(floor, seen)))
            result["spreads"] |= dict(zip(metric.figures, spread(metric.function, images, seen)))
            if name == "accuracy":
                for key, seen_as in {"accuracy_of_class": images, "floor_of_accuracy_of_class": floor}.items():
                    each = fidelity.class_accuracy(seen_as["logits"], seen_as["labels"])[1]
                    result["details"][key] = {self.test.class_names[i]: value for i, value in each.items()}
            self.seconds[name] = time.perf_counter() - start

    def _drawn(self, images: torch.Tensor, samples: dict[str, Tensors]) -> dict[str, dict[str, torch.Tensor]]:
        """What the report shows, a row for each class or one without a name.

        "samples": (n, C, H, W). "neighbors": the samples nearest to a training image with that image, (n, 2, C, H, W).
        """
        rows, num_samples, num_pairs = {"": np.arange(len(images))}, 64, 12
        if self.pipeline.takes and self.test.class_names:
            labels, num_samples, num_pairs = self.test.labels[self.subset].numpy(), 8, 3
            rows = {self.test.class_names[i]: (labels == i).nonzero()[0] for i in np.unique(labels)[:MAX_ROWS]}
        drawn: dict[str, dict] = {"samples": {name: images[row[:num_samples]] for name, row in rows.items()}}
        if nearest := samples.get("neighbors"):
            drawn["neighbors"] = {}
            for name, row in rows.items():
                row = row[nearest["distances"][row].argsort()[:num_pairs].numpy()]
                pairs = [images[row], pixels(self.train, nearest["neighbors"][row])]
                drawn["neighbors"][name] = torch.stack(pairs, dim=1)
        return drawn

    def _settings(self) -> dict:
        config = self.config
        options = dataclasses.asdict(config) | ({} if config.sweep else self.points[0][1])
        del options["cache_dir"]
        libraries = ("torch", "diffusers", "transformers", "torchmetrics", "accelerate", "numpy")
        scheduler = {
            key: value for key, value in self.scheduler_config.items() if key != "trained_betas"
        }  # a thousand
        return options | {
            "classifier": config.classifier or os.path.relpath(CLASSIFIER),
            "model": self.model,
            "weights": self.weights,
            "scheduler": scheduler,
            "data": {
                name: {"fingerprint": dataset.fingerprint, "num_images": len(dataset)}
                for name, dataset in (("train", self.train), ("test", self.test))
            },
            "measures": {name: measure.key for name, measure in self.measures.items()},
            "hardware": describe_hardware(self.state),
            "num_processes": self.state.num_processes,
            "versions": {"python": platform.python_version(), "ddpm_hf": __version__}
            | {name: version(name) for name in libraries},
        }
