"""Train a DDPM: `accelerate launch scripts/train.py --help`, or `python scripts/train.py run.yaml --learning_rate 1e-3`."""

import sys

from ddpm_hf.config import parse_args
from ddpm_hf.training import train

if __name__ == "__main__":
    try:
        train(parse_args(sys.argv[1:]))
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, FloatingPointError) else 2)
