"""Draw images: `python scripts/sample.py MODEL --num_images 64 --class_labels Sneaker Bag --guidance_scale 1.3 --output grid.png`."""

import sys

from ddpm_hf.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
