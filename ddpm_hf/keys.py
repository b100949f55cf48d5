"""Every random key: what is random about a sample depends on (seed, its position) alone, never on the state of a global generator.

A key is the state of a SplitMix64 generator (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), which is counter-based: any output is
computed without those before it. Its outputs have numbers from 1. Output p + 1 of the seed is the key of position p. The key itself decides
on t and on the condition; its outputs 1, 2, ... are the sample's noise, and those below 0 its other decisions. All of it is arithmetic on
whole batches of int64, which gives the same bits on every device.
"""

import functools
from typing import Any, TypeVar

import numpy as np
import torch

Bits = TypeVar("Bits", np.ndarray, torch.Tensor)  # int64

GENERATOR = "SplitMix64"  # in a checkpoint's manifest: from another generator the same seed draws other noise
# Its constants, as int64.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)

FLIP, CAPTION, CONDITION = np.array([[-1], [-2], [-3]])  # numbers of the outputs that decide on these
LOW = 2**32 - 1
HALF = torch.tensor(2**-32, dtype=torch.float64)


def outputs(keys: Bits, numbers: Bits) -> Bits:
    """The outputs of these numbers of the generators with these keys, 64 bits each: int64 arrays or tensors, which broadcast. Products wrap."""
    return _mixed(keys + numbers * GAMMA)


def _mixed(z: Bits) -> Bits:
    """SplitMix64's finaliser, in place."""
    for shift, factor in zip((30, 27), FACTORS):
        z ^= _shifted(z, shift)
        z *= factor
    z ^= _shifted(z, 31)
    return z


def _shifted(z: Bits, shift: int) -> Bits:
    high = z >> shift
    high &= 2 ** (64 - shift) - 1  # int64 shifts its sign in
    return high


def keys_of(seed: int, positions: np.ndarray) -> np.ndarray:
    """The keys of the samples at `positions`; both int64 (B,)."""
    return outputs(np.array([seed % 2**64], np.uint64).view(np.int64), positions + 1)


def below(limits: int | np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Uniform numbers in range(limit), int64, from the upper half of the bits. limits: up to 2**31."""
    return (bits >> 32 & LOW) * limits >> 32


@functools.lru_cache(maxsize=8)
def _increments(count: int, device: torch.device) -> np.ndarray | torch.Tensor:
    """`count` increments of the state from the first: an array for the CPU, where numpy's loops are faster, or a tensor."""
    increments = np.arange(1, count + 1) * GAMMA
    return increments if device.type == "cpu" else torch.from_numpy(increments).to(device, non_blocking=True)


def normal(keys: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Standard normals like `like` (B, ...), two from each output of the keys, int64 (B,) on its device.

    They are made in float64, by the inverse of the normal distribution at 32 bits, so that devices differ in float32's last bit at most.
    """
    size, states = like[0].numel(), keys[:, None]
    first: Any = states.numpy() if like.device.type == "cpu" else states  # as the increments are
    bits = _mixed(first + _increments((size + 1) // 2, like.device))
    halves = torch.as_tensor(bits).view(torch.int32)[:, :size]
    noise = torch.add(HALF, halves, alpha=2**-31)  # uniform in (-1, 1), float64, in one operation
    return torch.empty_like(like).copy_(noise.erfinv_().mul_(2**0.5).view(like.shape))


def draw(
    x_0: torch.Tensor, positions: torch.Tensor, seed: int, num_train_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each sample of a batch: t int64 (B,), noise like x_0 (B, C, H, W), and u in [0, 1) to decide on its condition, float64 (B,).

    positions: int64 (B,), each sample's number in the whole run. They and u are on the CPU, t and the noise where x_0 is.
    """
    keys = keys_of(seed, positions.numpy())
    uniform = torch.from_numpy((keys & LOW) * 2.0**-32)
    both = torch.from_numpy(np.stack([keys, below(num_train_timesteps, keys)]))
    keys, t = both.to(x_0.device, non_blocking=True)
    return t, normal(keys, x_0), uniform


def is_flipped(seed: int, positions: np.ndarray) -> np.ndarray:
    """A fair coin for each sample: bool (B,)."""
    return outputs(keys_of(seed, positions), FLIP) < 0


def caption_index(seed: int, positions: np.ndarray, num_captions: int | np.ndarray) -> np.ndarray:
    """Which of its captions each sample is given: int64 (B,), uniform in range(num_captions)."""
    return below(num_captions, outputs(keys_of(seed, positions), CAPTION))


def dropout_seed(seed: int, forward: int) -> int:
    """The seed of the global generator, which dropout draws from, for the run's forward pass of this number."""
    return int(keys_of(seed, np.array([-1 - forward]))[0])  # keys from 0 on are the samples'


def draw_positions(strata: list[range], keys: np.ndarray) -> np.ndarray:
    """One position from each stratum for each key: int64 (B, S). No timestep has these numbers, so no noise has these bits."""
    starts, lengths = np.array([(stratum.start, len(stratum)) for stratum in strata]).T
    return starts + below(lengths, outputs(keys[:, None], -1 - np.arange(len(strata))))


def condition_seeds(seed: int, positions: np.ndarray) -> np.ndarray:
    """Seeds of what is random in the condition images of the samples at `positions`: uint64 (B,)."""
    return outputs(keys_of(seed, positions), CONDITION).view(np.uint64)


@functools.lru_cache(maxsize=2)  # batches straddle two epochs
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(num_images) in which epoch `epoch` sees the images; int64 (num_images,)."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(int(mixed))).numpy()


def sample_key(seed: int, index: int) -> int:
    """The seed of sample number `index`, far from those of all other (seed, index)."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])
