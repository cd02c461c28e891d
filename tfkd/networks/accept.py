"""The check that a Keras model can be followed layer by layer, and its message."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import Functional


def check_model(name: str, model: Any) -> None:
    """Raises unless `model` is a built functional or Sequential model."""
    if not isinstance(model, keras.Model):
        keras_3 = any(base.__module__.startswith("keras.") for base in type(model).__mro__)
        raise checks.type_error(
            name,
            "a tf_keras model (Keras 2)",
            model,
            "tfkd.interop.from_keras3 makes one of a Keras 3 model." if keras_3 else None,
        )
    if hasattr(model, "student") and hasattr(model, "teacher"):
        raise checks.value_error(name, "the network alone", model, "Pass distiller.student.")
    if isinstance(model, keras.Sequential) and not model._graph_initialized:
        raise ValueError(
            f"`{name}`: expected a model whose layers are connected, received a Sequential model "
            "without an input shape. Give it a keras.Input as its first layer."
        )
    if not is_network(model):
        raise ValueError(
            f"`{name}`: expected a functional or Sequential model, received the subclassed "
            f"{type(model).__name__}, whose layers can't be followed. Build the same layers with "
            "keras.Model(inputs, outputs)."
        )


def is_network(layer: Any) -> bool:
    """True for a model whose layers and connections are known, and that adds nothing to them."""
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "_is_graph_network", False))
        and type(layer).call in (Functional.call, keras.Sequential.call)
    )
