"""Every random key: what is random about a sample depends on (seed, its position) alone, never on the state of a global generator."""

import functools
import hashlib

import numpy as np
import torch


def mixed_key(seed: int, position: int) -> int:
    """A well-mixed 63-bit key (splitmix64): generators on the CPU look at 32 bits of it, so neighbours must differ everywhere."""
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1


def draw(
    x_0: torch.Tensor, positions: torch.Tensor, seed: int, num_train_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each sample of a batch: t int64 (B,), noise like x_0 (B, C, H, W), and u in [0, 1) (B,) to decide on its condition.

    positions: int64 (B,) on the CPU, each sample's number in the whole run.
    """
    generator = torch.Generator(x_0.device)
    noise, uniform = torch.empty_like(x_0), x_0.new_empty(len(x_0), 2, dtype=torch.float64)
    for i, position in enumerate(positions.tolist()):
        generator.manual_seed(mixed_key(seed, position))
        uniform[i].uniform_(generator=generator)
        noise[i].normal_(generator=generator)
    t = (uniform[:, 0] * num_train_timesteps).long()
    return t, noise, uniform[:, 1]


def is_flipped(seed: int | None, position: int) -> bool:
    """A fair coin that depends on nothing but (seed, position); never heads for the seed None."""
    return seed is not None and hashlib.blake2b(f"flip {seed} {position}".encode(), digest_size=1).digest()[0] % 2 == 1


def caption_index(seed: int, position: int, num_captions: int) -> int:
    """Which of its captions the sample at `position` is given: uniform in range(num_captions)."""
    digest = hashlib.blake2b(f"caption {seed} {position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % num_captions


@functools.lru_cache(maxsize=2)  # batches straddle two epochs
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(num_images) in which epoch `epoch` sees the images; int64 (num_images,)."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(int(mixed))).numpy()


def sample_key(seed: int, index: int) -> int:
    """The seed of sample number `index`, far from those of all other (seed, index)."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def draw_positions(strata: list[range], seed: int, index: int) -> torch.Tensor:
    """One position from each stratum, keyed by (seed, image); the third word is no timestep: no noise has that key."""
    uniforms = np.random.default_rng((seed, index, 2**32 - 1)).random(len(strata))
    return torch.tensor([stratum[int(u * len(stratum))] for stratum, u in zip(strata, uniforms)])


def draw_noise(shape: torch.Size, seed: int, index: int, t: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng((seed, index, t)).standard_normal(tuple(shape)))
