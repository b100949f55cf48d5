"""MEASURES, what every image is measured with for the `metrics`, and the cache of the results."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from ..data import ImageDataset
from ..images import to_uint8
from . import fidelity
from .metrics import Tensors

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
