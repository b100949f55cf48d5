"""What `evaluation` finds out about every image, sample or real: features, the class seen, the nearest training image.

A `Measure` maps uint8 (B, C, H, W) to named tensors (B, ...) on the CPU; the mathematics is `fidelity`'s. Real images
are measured once: the key of a measure and that of a data set name a file in the cache.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from ..images import to_uint8
from . import fidelity


@dataclass
class Measure:
    """`function`: uint8 (B, C, H, W) -> named tensors (B, ...). `key` identifies it in the cache."""

    key: str
    function: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    num_features: int = 0
    class_names: list[str] | None = None


def classifier_measure(path: str, num_channels: int, device: torch.device) -> Measure:
    """The "features" (D,) and "logits" (K,) of the classifier in a folder or on the Hub.

    Raises: OSError if it cannot be had, LookupError if it does not suit `fidelity.classify` or images of `num_channels`.
    """
    classifier = AutoModelForImageClassification.from_pretrained(path).to(device).eval()
    config = classifier.config
    if missing := [name for name in ("num_channels", "image_size", "hidden_sizes") if not hasattr(config, name)]:
        raise LookupError(f"classifier={path!r} has no {' and no '.join(missing)} in its config")
    if config.num_channels != num_channels:
        raise LookupError(f"classifier={path!r} sees {config.num_channels} channels, the images have {num_channels}")

    def function(images: torch.Tensor) -> dict[str, torch.Tensor]:
        features, logits = fidelity.classify(classifier, images)
        return {"features": features, "logits": logits}

    key = f"classifier-{fingerprint(classifier)}-{config.image_size}"
    return Measure(key, function, config.hidden_sizes[-1], [config.id2label[i] for i in sorted(config.id2label)])


def inception_measure(device: torch.device) -> Measure:
    """The "inception" (2048,) features of published FIDs; raises RuntimeError if they cannot be had."""
    inception = fidelity.load_inception().to(device)

    def function(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"inception": fidelity.embed_with_inception(inception, images)}

    return Measure("inception-v3-compat", function, fidelity.INCEPTION_FEATURES)


def neighbors_measure(train) -> Measure:
    """Distances () to the nearest image of the data set `train`, held in memory, and its index: "neighbors" ()."""
    references = torch.empty(len(train), *pixels(train, [0]).shape[1:], dtype=torch.uint8)
    for indices in torch.arange(len(train)).split(1000):
        references[indices] = pixels(train, indices)

    def function(images: torch.Tensor) -> dict[str, torch.Tensor]:
        distances, neighbors = fidelity.nearest_images(images, references)
        return {"distances": distances, "neighbors": neighbors}

    return Measure(f"nearest-{train.fingerprint}", function)


def fingerprint(model: torch.nn.Module) -> str:
    """Hash of a model's weights."""
    weights = b"".join(value.cpu().contiguous().float().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()[:16]


def pixels(dataset, indices) -> torch.Tensor:
    """Images of an `ImageDataset` as uint8 (B, C, H, W)."""
    return to_uint8(dataset[[int(i) for i in indices]]["x_0"])


def cache_path(cache_dir: str, name: str, *what) -> Path:
    """Where a result is kept that depends on `what`, and on the code that computes it: this package's and torch's."""
    code = [path.read_text() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    what = (*what, torch.__version__, code)
    return Path(cache_dir) / f"{name}-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}"


def cached(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The named tensors in a file of the cache, computed and written where it is missing; readers see all of it or nothing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file(compute(), Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    return load_file(path)


def concatenate(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batches of named tensors -> one for all images."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
