"""Algorithm 1 under Accelerate, from data to a saved model."""

from .config import TrainConfig
from .presets import PRESETS, Preset
from .trainer import Trainer, train

__all__ = ["PRESETS", "Preset", "TrainConfig", "Trainer", "train"]
