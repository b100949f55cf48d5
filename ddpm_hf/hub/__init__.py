"""A saved model is a Hub repo as it stands: save, load and push it."""

from .commits import HubError
from .models import load, load_text_encoder, save
from .pushing import prepare_push, push, push_space

__all__ = ["HubError", "load", "load_text_encoder", "prepare_push", "push", "push_space", "save"]
