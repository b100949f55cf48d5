"""How close samples are to real images: FID, KID, precision and recall, class accuracy, nearest training image.

    FID = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))       Heusel et al. 2017 (arXiv:1706.08500)
    KID = MMD^2 with the kernel (x.y / d + 1)^3, unbiased             Binkowski et al. 2018 (arXiv:1801.01401)
    precision = share of samples inside the union of balls around     Kynkaanniemi et al. 2019 (arXiv:1904.06991)
                the real images, each reaching its k-th nearest fellow
    recall    = the same with the roles swapped

FID and KID are torchmetrics' own, in float64, on features that are given to them: every image is embedded once, by an
image classifier of transformers or by Inception, and the figure is made on one rank, which waits for no other. None
means much alone: `evaluation` puts each beside its floor, the same function of real test images in place of samples.
Images are uint8 first, for a saved file is.

Neighbours: images in, from `data` and from the pipeline; `evaluation` spreads the work over ranks and reports.
"""

import warnings

import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance

INCEPTION_FEATURES = 2048
BLOCK = 1000  # rows of a distance matrix held at once
MAX_VALUES = 2**25  # of images held at once as float32, 128 MiB


# ------------------------------------------------------------------ features


def to_pixel_values(x_0: torch.Tensor, image_size: int) -> torch.Tensor:
    """Images in [-1, 1], (B, C, H, W) -> what a classifier of `image_size` sees: (B, C, image_size, image_size)."""
    return nn.functional.interpolate(x_0, size=(image_size, image_size), mode="bilinear")


@torch.no_grad()
def classify(classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (B, C, H, W) -> pooled features (B, D) and logits (B, K), float32 on the CPU.

    classifier: a `transformers` image classification model with a convolutional backbone, as
        scripts/train_classifier.py makes one: in eval mode, for pixel values in [-1, 1] of size `config.image_size`.
    """
    x_0 = images.to(classifier.device, torch.float32) / 127.5 - 1
    features = classifier.base_model(to_pixel_values(x_0, classifier.config.image_size)).pooler_output
    logits = classifier.classifier(features)
    return features.flatten(1).float().cpu(), logits.float().cpu()


def load_inception() -> nn.Module:
    """The Inception v3 of published FIDs: uint8 (B, 3, H, W) -> (B, 2048).

    Raises: RuntimeError where torch-fidelity is not installed or its weights cannot be had.
    """
    try:
        return NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)]).eval()
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(f"Inception is not to be had here ({str(error).strip().splitlines()[0]})") from error


@torch.no_grad()
def embed_with_inception(inception: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, C, H, W), C 1 or 3 -> features (B, 2048), float32 on the CPU; a grey image is seen as a colour one."""
    return inception(images.to(next(inception.parameters()).device).expand(-1, 3, -1, -1)).float().cpu()


class _Given(nn.Identity):
    """Stands where torchmetrics wants a feature network: the features are given."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


# ------------------------------------------------------------------ distances between sets


def check_full_rank(num_images: int, num_features: int) -> None:
    """FID needs more images than features: a singular covariance says more of the number than of the images."""
    if num_images <= num_features:
        raise ValueError(
            f"num_images={num_images} is too small for FID: the covariance of {num_features} features has full rank"
            f" from {num_features + 1} images on."
        )


def frechet_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """FID between features (N, D) and (M, D); raises ValueError where N or M does not exceed D."""
    for features in (real, fake):
        check_full_rank(*features.shape)
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

    Our own lines: no kept library has them without torchvision.
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
        # |r|^2 - 2 q.r orders as |q - r|^2 does; rounding can only swap neighbours that are as good as equally near.
        score, nearest = ((block**2).sum(dim=1) - 2 * rows @ block.T).min(dim=1)
        index = torch.where(score < best, nearest + start, index)
        best = torch.minimum(score, best)
    difference = rows - references[index].flatten(1).float()
    return (difference**2).mean(dim=1).sqrt(), index


def memorized_share(distances: torch.Tensor, real_distances: torch.Tensor, quantile: float = 0.01) -> float:
    """Share of samples nearer to a training image than all but `quantile` of real test images: that is the floor."""
    return (distances < torch.quantile(real_distances, quantile)).double().mean().item()


def class_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, dict[int, float]]:
    """How often the classifier sees the class asked for: logits (N, K), labels (N,) -> overall, and of each class."""
    num_classes = logits.shape[1]
    accuracy = multiclass_accuracy(logits, labels, num_classes, average="micro").item()
    each = multiclass_accuracy(logits, labels, num_classes, average=None).tolist()
    return accuracy, {label: each[label] for label in labels.unique().tolist()}
