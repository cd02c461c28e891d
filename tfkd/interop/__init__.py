"""Models of other libraries as tf_keras models: `from_keras3` for today's Keras.

Keras 3 is not loaded before a Keras 3 model is given.
"""

from __future__ import annotations

from tfkd.interop.converting import from_keras3

__all__ = ["from_keras3"]
