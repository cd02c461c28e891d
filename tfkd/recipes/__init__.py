"""Runs from a model and data to verified files, described by one JSON recipe.

recipe.py        `Recipe`: the document, its schema, all its mistakes at once
stages.py        the stages and their settings; fields.py, budget.py, consistency.py check them
run_folder.py    what a run leaves: run.json, sums of its files, status of its stages
data.py          `open_data`; models.py `open_model`
scaling.py       how pixels are scaled; preprocessing.py finds out how a model takes them
engine.py        `run` and `resume`: the stages in order

TensorFlow is not imported before a run starts.
"""

from __future__ import annotations

import importlib
from typing import Any

from tfkd.recipes.budget import Budget
from tfkd.recipes.fields import Mistake, RecipeError
from tfkd.recipes.recipe import GateSettings, Recipe

# Name → the module that holds it; these load TensorFlow, so when they are first used.
_LATER = {
    "run": "engine",
    "resume": "engine",
    "open_data": "data",
    "open_model": "models",
}

__all__ = [
    "Budget", "GateSettings", "Mistake", "Recipe", "RecipeError", "open_data", "open_model",
    "resume", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'tfkd.recipes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tfkd.recipes.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
