"""Measure a saved model: likelihood and fidelity, each figure with its floor and its spread."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .config import EvaluationConfig

if TYPE_CHECKING:
    from . import fidelity, report
    from .run import evaluate

__all__ = ["EvaluationConfig", "evaluate", "fidelity", "report"]
__getattr__ = lazy_names(__name__, {"evaluate": "run", "fidelity": "fidelity", "report": "report"}, extra="eval")
