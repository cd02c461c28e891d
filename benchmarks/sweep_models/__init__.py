"""Small models of other people's habits, for `model_sweep.py`: `MODELS`, by name."""

from sweep_models import forms, images, sequences, tables  # noqa: F401  (they fill the list)
from sweep_models.base import MODELS, Entry

__all__ = ["MODELS", "Entry"]
