"""Train a DDPM: `python scripts/train.py --preset cifar10`, or `python scripts/train.py run.yaml --learning_rate 1e-3`.

On many ranks: `accelerate launch --config_file accelerate_configs/multi_gpu.yaml scripts/train.py ...`. Without a config file of its own or of this
project, `accelerate launch` asks for float32.
"""

import sys

from ddpm_hf.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
