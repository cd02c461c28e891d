"""Conversion of Keras 3 models to tf_keras (Keras 2): `from_keras3`.

Keras 3 is imported only when a Keras 3 model is passed.
"""

from __future__ import annotations

from tfkd.interop.converting import from_keras3

__all__ = ["from_keras3"]
