"""Measure a saved model: likelihood and fidelity on one rank or many, each figure with its floor and its spread.

`scripts/evaluate.py` reads the arguments, this file loads model and data (`hub`, `data`) and measures (`likelihood`,
`fidelity`; `measures` is what is found out about each image), and `report` draws what comes out. Work is cut into
batches whose borders depend on `batch_size` alone, and whole batches go to ranks: every image meets the same
arithmetic in the same company on any number of ranks, so the values are the same.

metrics.json, the dict that `evaluate` returns:
    metrics      name -> value, flat: what a model card shows (bits_per_dim, fid, kid, precision, recall, accuracy,
                 nearest_distance, memorized_share, fid_inception, kid_inception, as measured), the mean over seeds
    floors       name -> the same function of as many real test images in place of samples; the best one can expect
    spreads      name -> standard deviation over seeds; of bits_per_dim the standard error over images, noise and t
    unavailable  metric -> why it could not be had
    details      what does not fit one number: terms of bits_per_dim, accuracy_of_class, each seed's values
    sweep        with --sweep: a list of {sampler, num_inference_steps, seconds_per_image, fid, spread}
    settings     every option, the model and a hash of its weights, fingerprints and sizes of the data, versions, ...
    seconds      phase -> wall time
    command      as it was typed, and the precision that it did not name
"""

import dataclasses
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
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from .. import __version__, hub
from ..data import load_image_dataset
from ..hardware import describe_hardware, runs_on_cpu, use_own_cores
from ..images import unit_to_uint8
from ..keys import sample_key
from ..likelihood import Bound, variational_bound
from ..scheduling_ddpm_noise import DDPMNoiseScheduler
from . import fidelity
from .config import NEEDS, PRECISIONS, SAMPLERS, EvaluationConfig
from .measures import (
    Measure,
    cache_path,
    cached,
    classifier_measure,
    concatenate,
    fingerprint,
    inception_measure,
    neighbors_measure,
    pixels,
)


def evaluate(model: str, config: EvaluationConfig) -> tuple[dict, dict]:
    """Measure `model` (a folder or Hub id). Call it on every rank.

    Returns: the content of metrics.json, and the tensors that `report` draws; both empty on all ranks but the first.

    Raises:
        ValueError: an option, or a model and data set that do not go together, before anything is computed.
    """
    return Evaluation(model, config).run()


class Evaluation:
    """One model, its data, and what measures them."""

    def __init__(self, model: str, config: EvaluationConfig):
        self.model, self.state = model, _join_ranks()
        use_own_cores(self.state)
        self.pipeline = hub.load(model, revision=config.revision).to(self.state.device)
        self.pipeline.unet.eval().to(memory_format=torch.channels_last)
        self.pipeline.set_progress_bar_config(disable=True)
        self.scheduler_config = self.pipeline.scheduler.config
        self.config = self._resolve_sampling(config.with_data_of(Path(self.pipeline.config["_name_or_path"])))
        self.is_conditional = self.pipeline.unet.config.num_class_embeds is not None
        self.train, self.test = (self._load_data(split) for split in (config.split, config.test_split))
        self.metrics = self._choose_metrics()
        self._check_data()
        self._check_sampling()
        dtype = PRECISIONS[self.config.mixed_precision]
        self.autocast = partial(torch.autocast, self.state.device.type, dtype, enabled=dtype != torch.float32)
        self.measures: dict[str, Measure] = {}
        self.unavailable: dict[str, str] = {}
        self._load_measures()
        self.seconds: dict[str, float] = {}

    # ------------------------------------------------------------------ what goes together

    def _load_data(self, split: str):
        config, unet = self.config, self.pipeline.unet.config
        if unet.sample_size is None:
            raise ValueError(
                f"model={self.model!r} has no unet.config.sample_size: the size of its images is unknown."
            )
        columns: dict[str, Any] = {"image_column": config.image_column, "label_column": config.label_column}
        shape: dict[str, Any] = {"num_channels": unet.in_channels, "image_size": unet.sample_size}
        return load_image_dataset(config.dataset, split=split, **columns, **shape)

    def _choose_metrics(self) -> list[str]:
        if self.config.sweep:
            return ["fid"]
        if self.config.metrics is not None:
            if "accuracy" in self.config.metrics and not self.is_conditional:
                raise ValueError(f"metrics has 'accuracy', but model={self.model!r} takes no class labels.")
            return list(dict.fromkeys(self.config.metrics))
        left_out = {"fid_inception", "kid_inception"} | (set() if self.is_conditional else {"accuracy"})
        return [name for name in NEEDS if name not in left_out]

    def _check_data(self) -> None:
        config, unet = self.config, self.pipeline.unet.config
        if config.num_images > len(self.test):
            raise ValueError(
                f"num_images={config.num_images}: the {config.test_split!r} split has {len(self.test)} images, and the"
                " floor takes as many as there are samples."
            )
        if unet.in_channels == 3:
            images = pixels(self.train, range(min(100, len(self.train))))
            if (images == images[:, :1]).all():
                raise ValueError(
                    f"model={self.model!r} draws colour images, but those of dataset={config.dataset!r} are grey."
                )
        if not self.is_conditional:
            return
        known = [name for _, name in sorted(self.pipeline.id2label.items())]
        found = self.test.class_names or []
        if not found or len(found) > unet.num_class_embeds or (known and known[: len(found)] != found):
            classes = known or f"{unet.num_class_embeds} without names"
            raise ValueError(
                f"model={self.model!r} has the classes {classes}; dataset={config.dataset!r} has {found or 'none'}."
            )

    def _resolve_sampling(self, config: EvaluationConfig) -> EvaluationConfig:
        """The config with the sampler and the number of steps that the pipeline would take by itself."""
        sampler, steps, num_train = config.sampler, config.num_inference_steps, len(self.pipeline.scheduler)
        saved = self.pipeline.sampling
        if sampler is None and isinstance(self.pipeline.scheduler, DDPMNoiseScheduler):
            rule = {name: saved[name] for name in ("eta", "solver_order") if name in saved}
            own = [
                name for name, (kind, options) in SAMPLERS.items() if kind is DDPMNoiseScheduler and options == rule
            ]
            sampler = own[0] if own and steps is None else "ddpm"
        if steps is None:
            steps = num_train if sampler == "ddpm" else min(saved.get("num_inference_steps", num_train), num_train)
        return dataclasses.replace(config, sampler=sampler, num_inference_steps=steps)

    def _check_sampling(self) -> None:
        config, scheduler = self.config, self.scheduler_config
        if config.guidance_scale != 1 and self.pipeline.null_label is None:
            lacks = "has no null label" if self.is_conditional else "takes no class labels"
            raise ValueError(f"guidance_scale={config.guidance_scale}, but model={self.model!r} {lacks}.")
        if config.mixed_precision == "fp16" and self.state.device.type == "cpu":
            raise ValueError("mixed_precision='fp16' needs a GPU: choose bf16 or no.")
        chosen = [(config.sampler, config.num_inference_steps)]
        for _, steps in config.parse_sweep_points() if config.sweep else chosen:
            if not 1 <= steps <= scheduler.num_train_timesteps:
                raise ValueError(f"{steps} steps: model={self.model!r} has 1 to {scheduler.num_train_timesteps}.")

    def _load_measures(self) -> None:
        """Load what the metrics need; one whose weights cannot be had, or do not suit the images, is unavailable."""
        config, channels, device = self.config, self.pipeline.unet.config.in_channels, self.state.device
        loaders = {
            "classifier": lambda: classifier_measure(config.classifier, channels, device),
            "inception": lambda: inception_measure(device),
            "neighbors": lambda: neighbors_measure(self.train),
        }
        for need in sorted({need for metric in self.metrics for need in NEEDS[metric]}):
            wanting = [metric for metric in self.metrics if need in NEEDS[metric]]
            try:
                measure = self.measures[need] = loaders[need]()
            except (OSError, RuntimeError, LookupError) as error:
                self.unavailable |= dict.fromkeys(wanting, str(error).strip().splitlines()[0])
                continue
            if any(metric.startswith("fid") for metric in wanting):
                fidelity.check_full_rank(config.num_images, measure.num_features)
            if "accuracy" in wanting and measure.class_names != self.test.class_names:
                reason = f"the classifier knows {measure.class_names}, the data set {self.test.class_names}"
                self.unavailable["accuracy"] = f"{reason}; scripts/train_classifier.py makes one that does"
        if config.sweep and self.unavailable:
            raise ValueError(f"sweep: FID cannot be had ({self.unavailable['fid']}).")
        self.metrics = [metric for metric in self.metrics if metric not in self.unavailable]

    # ------------------------------------------------------------------ work, spread over ranks

    def _over_batches(self, num_items: int, function: Callable[[range], object], phase: str, title: str = "") -> list:
        """function(indices) of every batch, in order, on all ranks; whole batches are dealt out."""
        start, size = time.perf_counter(), self.config.batch_size
        batches = [range(i, min(i + size, num_items)) for i in range(0, num_items, size)]
        mine = list(enumerate(batches))[self.state.process_index :: self.state.num_processes]
        bar = tqdm(mine, desc=title or phase, unit="batch", disable=not self.state.is_main_process)
        results = gather_object([(number, function(indices)) for number, indices in bar])
        self.seconds[phase] = self.seconds.get(phase, 0) + time.perf_counter() - start
        return [result for _, result in sorted(results, key=itemgetter(0))]

    def subset(self, seed: int) -> np.ndarray:
        """The num_images test images that are this seed's floor, and whose labels its samples are asked for."""
        return np.random.default_rng((seed, 0)).permutation(len(self.test))[: self.config.num_images]

    def real(self, dataset, name: str) -> dict[str, torch.Tensor] | None:
        """One measure of all images of a data set, from the cache if it is there; on the first rank only."""
        measure = self.measures[name]
        what = measure.key, dataset.fingerprint, self.state.device.type
        path = cache_path(self.config.cache_dir, "measure", *what)

        def function(indices: range) -> dict[str, torch.Tensor]:
            return measure.function(pixels(dataset, indices))

        is_known = broadcast_object_list([path.exists()])[0]
        batches = [] if is_known else self._over_batches(len(dataset), function, f"{name} of real images")
        return cached(path, lambda: concatenate(batches)) if self.state.is_main_process else None

    def samples(self, seed: int, sampler: str | None, num_inference_steps: int) -> dict[str, torch.Tensor]:
        """num_images samples as uint8 "images", their "labels" if asked for, and every measure of them."""
        labels = self.test.labels[self.subset(seed)] if self.is_conditional else None
        options: dict = {"num_inference_steps": num_inference_steps, "guidance_scale": self.config.guidance_scale}
        if sampler is not None:
            scheduler_class, own_options = SAMPLERS[sampler]
            options |= own_options
            self.pipeline.scheduler = scheduler_class.from_config(self.scheduler_config)

        def draw(indices: range) -> dict[str, torch.Tensor]:
            generators = [torch.Generator().manual_seed(sample_key(seed, i)) for i in indices]
            asked = {} if labels is None else {"labels": labels[indices.start : indices.stop]}
            with self.autocast():
                images = self.pipeline(
                    batch_size=len(indices),
                    generator=generators,
                    output_type="pt",
                    class_labels=asked.get("labels"),
                    **options,
                ).images
            return {"images": unit_to_uint8(images).cpu()} | asked

        title = f"{sampler or 'samples'}, {num_inference_steps} steps, seed {seed}"
        samples = concatenate(self._over_batches(self.config.num_images, draw, "samples", title))
        images = samples["images"]
        for name, measure in self.measures.items():

            def measure_rows(indices: range, function=measure.function) -> dict[str, torch.Tensor]:
                return function(images[indices.start : indices.stop])

            samples |= concatenate(self._over_batches(len(images), measure_rows, f"{name} of samples"))
        return samples

    def bound(self) -> dict:
        """`Bound.summary` of num_images test images. Finished batches stay in the cache: a run that was cut off goes on."""
        config, unet, denoise, seed = self.config, self.pipeline.unet, self.pipeline.denoise, self.config.seeds[0]
        scheduler = DDPMNoiseScheduler.from_config(self.scheduler_config)
        num_timesteps, chosen = config.bpd_timesteps or None, self.subset(seed)
        parts = [{k: v for k, v in part.config.items() if k[0] != "_"} for part in (unet, scheduler)]
        what = fingerprint(unet), parts, self.test.fingerprint, seed, num_timesteps, config.num_images
        how = config.batch_size, config.mixed_precision, self.state.device.type
        folder = cache_path(config.cache_dir, "bound", *what, *how)

        def compute(indices: range) -> dict[str, torch.Tensor]:
            index = torch.from_numpy(chosen[indices.start : indices.stop])
            batch = self.test[index.tolist()]
            condition = self.pipeline.encode(
                **{name: batch[name] for name in self.pipeline.takes}, batch_size=len(index)
            )
            with self.autocast():
                x_0 = batch["x_0"].to(self.state.device)
                return vars(variational_bound(denoise, scheduler, x_0, index, condition, num_timesteps, seed))

        def measure(indices: range) -> Bound:
            return Bound(**cached(folder / f"{indices.start}.safetensors", partial(compute, indices)))

        return Bound.concatenate(self._over_batches(len(chosen), measure, "bpd")).summary()

    # ------------------------------------------------------------------ figures

    def run(self) -> tuple[dict, dict]:
        config, drawn = self.config, {}
        result: dict[str, Any] = {name: {} for name in ("metrics", "floors", "spreads", "details")}
        result["unavailable"] = self.unavailable
        if config.sweep:
            self.sweep(result)
        if not config.sweep and "bpd" in self.metrics:
            details = result["details"]["bits_per_dim"] = self.bound()
            result["metrics"]["bits_per_dim"] = details["bits_per_dim"]
            result["spreads"]["bits_per_dim"] = details["standard_error"]
        fidelity_metrics = [name for name in self.metrics if NEEDS[name] and not config.sweep]
        if fidelity_metrics:
            real = self.real_images()
            samples = [self.samples(seed, config.sampler, config.num_inference_steps) for seed in config.seeds]
            if self.state.is_main_process:
                for name in fidelity_metrics:
                    self._add_figures(result, name, samples, real)
            drawn = self._drawn(samples[0])
        if not self.state.is_main_process:
            return {}, {}
        return result | {"settings": self._settings(), "seconds": self.seconds}, drawn

    def real_images(self) -> dict[str, dict[str, torch.Tensor]] | None:
        """Every measure of the "train" and "test" images (neighbours of the latter only); on the first rank only."""
        real: dict[str, dict[str, torch.Tensor]] = {"train": {}, "test": {}}
        for name in self.measures:
            for split, dataset in (("train", self.train), ("test", self.test)):
                if (name, split) != ("neighbors", "train"):
                    real[split] |= self.real(dataset, name) or {}
        if self.test.labels is not None:
            real["test"]["labels"] = self.test.labels
        return real if self.state.is_main_process else None

    def _add_figures(self, result: dict, name: str, samples: list[dict], real: dict) -> None:
        """One metric of each seed's samples, and of as many real test images: mean, floor, spread."""
        start, config = time.perf_counter(), self.config
        figures, floors = [], []
        for seed, fake in zip(config.seeds, samples):
            test = {key: values[self.subset(seed)] for key, values in real["test"].items()}
            figures.append(self._figures(name, fake, real, seed))
            floors.append(self._figures(name, test, real, seed))
        for key, value in figures[0].items():
            each = [figure[key] for figure in figures]
            if isinstance(value, dict):  # of classes; a small set may lack one
                parts = {part: [figure[part] for figure in each if part in figure] for part in set().union(*each)}
                result["details"][key] = {part: float(np.mean(values)) for part, values in sorted(parts.items())}
                continue
            result["metrics"][key] = float(np.mean(each))
            result["floors"][key] = float(np.mean([floor[key] for floor in floors]))
            if len(each) > 1:
                result["spreads"][key] = float(np.std(each, ddof=1))
            result["details"].setdefault("seeds", {})[key] = dict(zip(map(str, config.seeds), each))
        self.seconds[name] = time.perf_counter() - start

    def _figures(self, name: str, fake: dict, real: dict, seed: int) -> dict:
        """The figures of one metric. `fake` are samples, or the test images that give the floor."""
        train = real["train"]
        features = "inception" if name.endswith("inception") else "features"
        if name.startswith("fid"):
            return {name: fidelity.frechet_distance(train[features], fake[features])}
        if name.startswith("kid"):
            return {name: fidelity.kernel_distance(train[features], fake[features], seed=seed)}
        if name == "precision_recall":
            chosen = np.random.default_rng((seed, 1)).permutation(len(self.train))[: self.config.num_images]
            return dict(
                zip(("precision", "recall"), fidelity.precision_recall(train[features][chosen], fake[features]))
            )
        if name == "accuracy":
            accuracy, each = fidelity.class_accuracy(fake["logits"], fake["labels"])
            return {"accuracy": accuracy, "accuracy_of_class": {self.test.class_names[i]: v for i, v in each.items()}}
        return {
            "nearest_distance": fake["distances"].median().item(),
            "memorized_share": fidelity.memorized_share(fake["distances"], real["test"]["distances"]),
        }

    def sweep(self, result: dict) -> None:
        """FID and seconds per image of each sampler and number of steps: a list "sweep"; and the floor of FID."""
        real, config, points = self.real_images(), self.config, []
        for sampler, steps in config.parse_sweep_points():
            before = self.seconds.get("samples", 0)
            samples = [self.samples(seed, sampler, steps) for seed in config.seeds]
            seconds = (self.seconds["samples"] - before) / config.num_images / len(config.seeds)
            if self.state.is_main_process:
                found: dict[str, dict] = {"metrics": {}, "floors": result["floors"], "spreads": {}, "details": {}}
                self._add_figures(found, "fid", samples, real)
                figures = {"fid": found["metrics"]["fid"], "spread": found["spreads"].get("fid")}
                point = {"sampler": sampler, "num_inference_steps": steps, "seconds_per_image": seconds}
                points.append(point | figures)
                tqdm.write(f"{sampler}, {steps} steps: FID {figures['fid']:.4g}, {seconds:.3g} s per image")
        result["sweep"] = points

    def _drawn(self, samples: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the report shows: 64 samples, and the 8 that lie nearest to a training image with that image."""
        drawn = {"samples": samples["images"][:64]}
        if "distances" in samples:
            nearest = samples["distances"].argsort()[:8]
            drawn["nearest_samples"] = samples["images"][nearest]
            drawn["nearest_training_images"] = pixels(self.train, samples["neighbors"][nearest])
        return drawn

    def _settings(self) -> dict:
        options = dataclasses.asdict(self.config)
        del options["cache_dir"]
        libraries = ("torch", "diffusers", "transformers", "torchmetrics", "accelerate", "numpy")
        return options | {
            "model": self.model,
            "weights": fingerprint(self.pipeline.unet),
            "scheduler": {
                k: v for k, v in self.scheduler_config.items() if k != "trained_betas"
            },  # a thousand figures
            "data": {
                name: {"fingerprint": dataset.fingerprint, "num_images": len(dataset)}
                for name, dataset in ((self.config.split, self.train), (self.config.test_split, self.test))
            },
            "measures": {name: measure.key for name, measure in self.measures.items()},
            "hardware": describe_hardware(self.state),
            "num_processes": self.state.num_processes,
            "versions": {"python": platform.python_version(), "ddpm_hf": __version__}
            | {name: version(name) for name in libraries},
        }


def _join_ranks() -> PartialState:
    """The ranks of this launch; without an accelerator, accelerate alone would make independent jobs of them."""
    return PartialState(cpu=runs_on_cpu())
