"""Train a DDPM: `python scripts/train.py --preset cifar10`, or `python scripts/train.py run.yaml --learning_rate 1e-3`.

On many ranks: `accelerate launch --config_file accelerate_configs/multi_gpu.yaml scripts/train.py ...`. Without a config file of its own or of this
project, `accelerate launch` asks for float32.
"""

import sys

from ddpm_hf.training.config import parse_args

if __name__ == "__main__":
    config = parse_args(sys.argv[1:])
    try:
        from ddpm_hf.training import train  # and torch, which options do not wait for

        train(config)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}")
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, FloatingPointError) else 2)
    except KeyboardInterrupt:  # a second signal: at once
        sys.exit(130)
