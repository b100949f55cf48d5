"""Measure a saved model: likelihood and fidelity, each figure with its floor and its spread."""

from .config import EvaluationConfig
from .run import evaluate

__all__ = ["EvaluationConfig", "evaluate"]
