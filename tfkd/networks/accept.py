"""The check that a Keras model can be followed layer by layer, and its message."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd import checks


def check_model(name: str, model: Any) -> None:
    """Raises unless `model` is a built functional or Sequential model."""
    checks.instance(name, model, keras.Model, "a tf_keras model (Keras 2)")
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
    """True for a model whose layers and connections are known."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "_is_graph_network", False))
