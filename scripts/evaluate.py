"""Measure a saved model: `python scripts/evaluate.py MODEL --metrics fid accuracy --output metrics.json`.

On many ranks: `accelerate launch --config_file ... scripts/evaluate.py ...`, as scripts/train.py.
"""

import sys

from ddpm_hf.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
