"""The two tables of evaluation: METRICS, what is reported, and MEASURES, what every image is measured with for it; and their cache.

A new metric is a row of METRICS; its mathematics is `fidelity`'s.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from ..data import ImageDataset
from ..images import to_uint8
from . import fidelity

Tensors = dict[str, torch.Tensor]  # named, of a set of images, batch first, on the CPU

# ------------------------------------------------------------------ what is reported


class Real(NamedTuple):
    """Real images as one measure sees them.

    train, test: the whole splits, the latter with "labels" if it has any; empty where the measure does not take them.
    chosen: indices of as many training images as there are samples.
    """

    train: Tensors
    test: Tensors
    chosen: np.ndarray
    seed: int


class Metric(NamedTuple):
    """A row of METRICS.

    figures: the names of what `function` returns for a set of images, samples or real ones, beside the real images.
    measure: a row of MEASURES, whose tensors `function` takes; None for bits/dim, which are the model's own and have no floor.
    by_default: whether it is measured if no metrics are named, as far as it suits the model.
    needs_full_rank: whether it takes more images than features.
    """

    figures: tuple[str, ...]
    measure: str | None = None
    function: Callable[[Tensors, Real], tuple[float, ...]] | None = None
    by_default: bool = True
    needs_full_rank: bool = False


def _fid(images: Tensors, real: Real) -> tuple[float]:
    return (fidelity.frechet_distance(real.train["features"], images["features"]),)


def _kid(images: Tensors, real: Real) -> tuple[float]:
    return (fidelity.kernel_distance(real.train["features"], images["features"], seed=real.seed),)


def _precision_recall(images: Tensors, real: Real) -> tuple[float, float]:
    return fidelity.precision_recall(real.train["features"][real.chosen], images["features"])


def _accuracy(images: Tensors, real: Real) -> tuple[float]:
    return (fidelity.class_accuracy(images["logits"], images["labels"])[0],)


def _memorization(images: Tensors, real: Real) -> tuple[float, float]:
    distances = images["distances"]
    return distances.median().item(), fidelity.memorized_share(distances, real.test["distances"])


METRICS: dict[str, Metric] = {
    "bpd": Metric(("bits_per_dim",)),
    "fid": Metric(("fid",), "classifier", _fid, needs_full_rank=True),
    "kid": Metric(("kid",), "classifier", _kid),
    "precision_recall": Metric(("precision", "recall"), "classifier", _precision_recall),
    "accuracy": Metric(("accuracy",), "classifier", _accuracy),
    "memorization": Metric(("nearest_distance", "memorized_share"), "neighbors", _memorization),
    "fid_imagenet": Metric(("fid_imagenet",), "imagenet", _fid, by_default=False, needs_full_rank=True),
    "fid_inception": Metric(("fid_inception",), "inception", _fid, by_default=False, needs_full_rank=True),
    "kid_inception": Metric(("kid_inception",), "inception", _kid, by_default=False),
}


def spread(function: Callable, images: Tensors, real: Real, num_groups: int = 10) -> tuple[float, ...]:
    """Standard errors of the figures function(images, real): how much they would vary with other images, as many.

    The jackknife that leaves out one of `num_groups` random groups at a time (Shao and Wu, The Jackknife and Bootstrap, 1995, Section 2.3). It draws
    no image twice, as a bootstrap does: these would be neighbours at distance 0 to recall and equal pairs to KID. Of a mean it is unbiased. FID
    and KID are quadratic near their floors, and it is up to twice too large there.
    """
    num_images = len(next(iter(images.values())))
    groups = np.array_split(np.random.default_rng((real.seed, 2)).permutation(num_images), num_groups)
    kept = [np.concatenate(groups[:i] + groups[i + 1 :]) for i in range(num_groups)]
    figures = [function({name: values[rows] for name, values in images.items()}, real) for rows in kept]
    return tuple((np.std(figures, axis=0) * (num_groups - 1) ** 0.5).tolist())


# ------------------------------------------------------------------ what every image is measured with


class Measure(NamedTuple):
    """function: uint8 (B, C, H, W) -> named tensors. key: identifies it in the cache. splits: the real images that are measured."""

    key: str
    function: Callable[[torch.Tensor], Tensors]
    num_features: int = 0
    class_names: list[str] | None = None
    splits: tuple[str, ...] = ("train", "test")


def load_classifier(path: str, train: ImageDataset, device: torch.device) -> Measure:
    """The "features" (B, D) and "logits" (B, K) of the classifier in a folder or on the Hub."""
    try:
        classifier = AutoModelForImageClassification.from_pretrained(path).to(device).eval()
    except Exception as error:  # transformers, the Hub's client and safetensors have errors of their own
        raise RuntimeError(f"classifier={path!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    config = classifier.config
    if missing := [name for name in ("num_channels", "image_size", "hidden_sizes") if not hasattr(config, name)]:
        raise RuntimeError(f"classifier={path!r} has no {' and no '.join(missing)} in its config")
    if config.num_channels != train.num_channels:
        theirs = f"the images have {train.num_channels}; scripts/train_classifier.py makes one for them"
        raise RuntimeError(f"classifier={path!r} takes {config.num_channels} channels, {theirs}")

    def function(images: torch.Tensor) -> Tensors:
        features, logits = fidelity.classify(classifier, images)
        return {"features": features, "logits": logits}

    names = [config.id2label[i] for i in sorted(config.id2label)]
    return Measure(f"{fingerprint(classifier)}-{config.image_size}", function, config.hidden_sizes[-1], names)


def load_inception(path: str, train: ImageDataset, device: torch.device) -> Measure:
    """The "features" (B, 2048) of published FIDs."""
    inception = fidelity.load_inception().to(device)
    function = partial(_features, fidelity.embed_with_inception, inception)
    return Measure("inception-v3-compat", function, fidelity.INCEPTION_FEATURES)


def load_imagenet(path: str, train: ImageDataset, device: torch.device) -> Measure:
    """The "features" (B, 1280) of EfficientNet-Lite0: a judge that was trained on other images, and elsewhere."""
    weights = {name: value.to(device) for name, value in fidelity.load_imagenet_weights().items()}
    function = partial(_features, fidelity.embed_with_imagenet, weights)
    return Measure("efficientnet-lite0", function, fidelity.IMAGENET_FEATURES)


def _features(embed: Callable, network: Any, images: torch.Tensor) -> Tensors:
    return {"features": embed(network, images)}


def load_neighbors(path: str, train: ImageDataset, device: torch.device) -> Measure:
    """The "distances" (B,) to the nearest image of the data set `train`, held in memory, and its index "neighbors" (B,)."""
    references = torch.cat([pixels(train, indices) for indices in torch.arange(len(train)).split(1000)])

    def function(images: torch.Tensor) -> Tensors:
        distances, neighbors = fidelity.nearest_images(images, references)
        return {"distances": distances, "neighbors": neighbors}

    return Measure(train.fingerprint, function, splits=("test",))


# Name -> loader(path of the classifier, training images, device); RuntimeError says why the measure is unavailable.
MEASURES: dict[str, Callable[..., Measure]] = {
    "classifier": load_classifier,
    "neighbors": load_neighbors,
    "imagenet": load_imagenet,
    "inception": load_inception,
}


def fingerprint(model: torch.nn.Module) -> str:
    """Hash of a model's weights."""
    weights = b"".join(value.cpu().contiguous().float().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()[:16]


def pixels(dataset: ImageDataset, indices: Iterable) -> torch.Tensor:
    """Images of a data set as uint8 (B, C, H, W)."""
    return to_uint8(dataset[[int(i) for i in indices]]["x_0"])


# ------------------------------------------------------------------ the cache


def cache_path(cache_dir: str, name: str, *what: object) -> Path:
    """The place of a result that depends on `what`, and on the code that computes it: the ground floor's, this folder's and torch's."""
    folder = Path(__file__).parent
    code = [path.read_text() for path in sorted([*folder.parent.glob("*.py"), folder / "fidelity.py"])]
    digest = hashlib.sha256(repr((*what, torch.__version__, code)).encode()).hexdigest()[:16]
    return Path(cache_dir) / f"{name.replace(' ', '-')}-{digest}"


def save(path: Path, tensors: Tensors) -> None:
    """Write a file of the cache; readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        save_file(tensors, Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)


def concatenate(batches: list[Tensors]) -> Tensors:
    """Batches of named tensors -> one for all images."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
