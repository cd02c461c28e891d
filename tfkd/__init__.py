"""tfkd: make a trained Keras model small and fast without losing what it learned.

Import tfkd before TensorFlow, or set `TF_USE_LEGACY_KERAS=1`, so that
`tf.keras`, tfmot and keras-cv are Keras 2 (`tf_keras`), which they need.

The names below load when they are first used: `import tfkd` alone takes
milliseconds and does not load TensorFlow.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

__version__ = "0.1.0"

# Public name -> the module that holds it. A module maps to itself.
_NAMES = {
    "Distiller": "tfkd.distillation",
    "ProgressiveDistiller": "tfkd.progressive",
    "TeacherCache": "tfkd.teacher_cache",
    "frozen_copy": "tfkd.networks.frozen_copy",
    "from_keras3": "tfkd.interop",
}
_MODULES = (
    "artifacts", "callbacks", "checks", "curriculum", "data", "detection", "distillation",
    "example_inputs", "export", "interop", "losses", "models", "progressive", "pruning",
    "quantization", "recipes", "replicas", "report", "results", "runtime", "schedules",
    "teacher_cache",
)  # fmt: skip
# These do not use Keras, so they load whether `tf.keras` is Keras 2 or Keras 3.
_FREE_OF_KERAS = {
    "artifacts",
    "checks",
    "example_inputs",
    "recipes",
    "results",
    "runtime",
    "schedules",
}

__all__ = sorted([*_NAMES, *_MODULES, "__version__"])


def _require_keras_2(name: str) -> None:
    """Raises ImportError if `tf.keras` was already resolved to Keras 3."""
    import tensorflow as tf

    if not tf.keras.Model.__module__.startswith("tf_keras."):
        raise ImportError(
            f"tfkd.{name} needs Keras 2 (tf_keras), but `tf.keras` in this process is Keras 3: "
            "TensorFlow was imported, and `tf.keras` used, before tfkd (or "
            "TF_USE_LEGACY_KERAS is set to 0). Put `import tfkd` above `import tensorflow`, or "
            "set the environment variable TF_USE_LEGACY_KERAS=1, and start Python again."
        )


def __getattr__(name: str) -> Any:
    if name not in _NAMES and name not in _MODULES:
        raise AttributeError(f"module 'tfkd' has no attribute {name!r}")
    if name not in _FREE_OF_KERAS:
        _require_keras_2(name)
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    else:
        value = importlib.import_module(f"tfkd.{name}")
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return list(__all__)
