"""Algorithm 1 under Accelerate, from data to a saved model."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .config import TrainConfig
from .presets import PRESETS, Preset

if TYPE_CHECKING:
    from .trainer import Trainer, train

__all__ = ["PRESETS", "Preset", "TrainConfig", "Trainer", "train"]
__getattr__ = lazy_names(__name__, {"Trainer": "trainer", "train": "trainer"}, extra="train")
