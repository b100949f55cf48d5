"""A saved model is a Hub repo as it stands: save, load and push it."""

from .commits import HubError
from .models import load, save
from .pushing import prepare_push, push, push_space

__all__ = ["HubError", "load", "prepare_push", "push", "push_space", "save"]
