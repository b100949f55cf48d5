"""Another objective: the pseudo-Huber loss (arXiv:2310.14189, Section 3.3), less moved by outliers than a squared error.

    python examples/objective.py --output_dir runs/huber [any option of scripts/train.py]

An objective is a function (denoise, scheduler, x_0, t, noise, condition) -> losses (B,); see ddpm_hf/objective.py.
"""

import sys
from pathlib import Path

import torch

from ddpm_hf.cli.train import parse_args
from ddpm_hf.training import train


def pseudo_huber(denoise, scheduler, x_0, t, noise, condition, c: float = 0.1) -> torch.Tensor:
    """sqrt(error^2 + c^2) - c: a square for errors below c, an absolute value above it. -> losses (B,)."""
    x_t = scheduler.add_noise(x_0, noise, t)
    error = denoise(x_t, t, condition) - scheduler.get_target(x_0, noise, t)
    return ((error.square() + c**2).sqrt() - c).mean(dim=(1, 2, 3))


def main(arguments: list[str]) -> Path:
    """The folder of the run."""
    return train(parse_args(arguments), pseudo_huber)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
