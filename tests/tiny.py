"""What the tests share: places, and the smallest U-Net with attention that they train."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "tests" / "assets"  # a few real images of FashionMNIST: idx/, and imagefolder/ of three classes

TINY_UNET = dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
)
