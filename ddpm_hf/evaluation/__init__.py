"""Measure a saved model: likelihood and fidelity, each figure with its floor and its spread."""

try:
    from . import report
    from .config import EvaluationConfig
    from .run import evaluate
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'No module {error.name!r}: pip install -e ".[eval]"', name=error.name) from error

__all__ = ["EvaluationConfig", "evaluate", "report"]
