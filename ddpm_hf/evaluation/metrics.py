"""METRICS, what an evaluation reports: a new metric is a row of it, and its mathematics is `fidelity`'s.

`config` takes the names from here, so this file imports torch and `fidelity` no sooner than a figure is computed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]  # named, of a set of images, batch first, on the CPU


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
    from . import fidelity

    return (fidelity.frechet_distance(real.train["features"], images["features"]),)


def _kid(images: Tensors, real: Real) -> tuple[float]:
    from . import fidelity

    return (fidelity.kernel_distance(real.train["features"], images["features"], seed=real.seed),)


def _precision_recall(images: Tensors, real: Real) -> tuple[float, float]:
    from . import fidelity

    return fidelity.precision_recall(real.train["features"][real.chosen], images["features"])


def _accuracy(images: Tensors, real: Real) -> tuple[float]:
    from . import fidelity

    return (fidelity.class_accuracy(images["logits"], images["labels"])[0],)


def _memorization(images: Tensors, real: Real) -> tuple[float, float]:
    from . import fidelity

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
