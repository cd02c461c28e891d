"""The check that a Keras model can be worked on, and its messages, the same everywhere."""

from __future__ import annotations

import os
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import Functional

# What a caller needs of a model, the most first.
CONNECTED = "connected"  # functional or Sequential: which layer reads what is known
BUILT = "built"  # its weights exist, and it can be called
ANY = "any"  # a tf_keras model, built or not

_EXPECTED = "a tf_keras model"


def check_model(name: str, model: Any, needs: str = CONNECTED) -> Any:
    """Accepts a tf_keras model of which is known what `needs` says; returns it.

    Args:
        name: the argument, for the message.
        model: what the user passed.
        needs: `CONNECTED`: a built functional or Sequential model in float, whose layers
            can be followed; `BUILT`: any built model, also a subclassed or quantized one;
            `ANY`: any model.

    Raises:
        TypeError: for what is no tf_keras model; a Distiller is none, nor is a path.
        ValueError: for a model that is not built, or subclassed or quantized where layers
            are followed.
    """
    refuse_distiller(name, model)
    refuse_keras_3(name, model, _EXPECTED)
    if not isinstance(model, keras.Model):
        is_path = isinstance(model, (str, os.PathLike))
        fix = "Load it first: keras.models.load_model(path)." if is_path else None
        raise checks.type_error(name, _EXPECTED, model, fix)
    if needs == CONNECTED:
        _check_connected(name, model)
    elif needs == BUILT and not model.built:
        raise unbuilt(name, model)
    return model


def _check_connected(name: str, model: keras.Model) -> None:
    if hasattr(model, "check_calibrated"):
        raise quantized(name, model.name)
    if isinstance(model, keras.Sequential) and not model._graph_initialized:
        raise unbuilt(name, model)
    if not is_network(model):
        raise ValueError(
            f"`{name}`: expected a functional or Sequential model, received the subclassed "
            f"{type(model).__name__}, whose layers can't be followed. Build the same layers with "
            "keras.Model(inputs, outputs)."
        )


def unbuilt(name: str, model: keras.Model) -> ValueError:
    """Returns the error for a model that has no weights or no input shape yet."""
    without, fix = "without weights", ""
    if isinstance(model, keras.Sequential):
        without, fix = "without an input shape", ", or give it a keras.Input as its first layer"
    return ValueError(
        f"`{name}`: expected a model that is built, received the unbuilt {type(model).__name__} "
        f"{model.name!r}, {without}. Call it once on a batch{fix}."
    )


def quantized(name: str, part: str) -> ValueError:
    """Returns the error for a model of which `part`, or all, is quantized."""
    return ValueError(
        f"`{name}`: expected a float model, received {part!r}, quantized already. Pass the model "
        "that it was made from."
    )


def is_network(layer: Any) -> bool:
    """True for a model whose layers and connections are known, and that adds nothing to them."""
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "_is_graph_network", False))
        and type(layer).call in (Functional.call, keras.Sequential.call)
    )


def is_keras_3(target: Any) -> bool:
    """True for a layer or model of Keras 3, which is not imported for this."""
    modules = [kind.__module__ for kind in type(target).__mro__]
    of_keras = any(f"{module}.".startswith("keras.") for module in modules)
    return of_keras and callable(target) and hasattr(target, "variables")


def refuse_distiller(name: str, model: Any) -> None:
    """Raises TypeError for a Distiller of any kind: what holds a student."""
    if callable(getattr(model, "student", None)):
        raise TypeError(
            f"`{name}`: expected a plain model, received a {type(model).__name__}, which trains "
            "one. Pass distiller.student."
        )


def refuse_keras_3(name: str, model: Any, expected: str) -> None:
    """Raises TypeError for a model or layer of Keras 3, and names the way out."""
    if is_keras_3(model):
        fix = "This is a Keras 3 model: convert it with tfkd.from_keras3(model)."
        raise checks.type_error(name, expected, model, fix)
