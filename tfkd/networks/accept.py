"""Validation of model arguments: functional or Sequential, built, float, tf_keras."""

from __future__ import annotations

import os

import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import Functional

# What a caller requires of a model, from the most to the least.
CONNECTED = "connected"  # functional or Sequential: the connections between layers are known
BUILT = "built"  # its weights exist and it can be called
ANY = "any"  # a tf_keras model, built or not

_EXPECTED = "a tf_keras model"


def check_model(name: str, model: object, needs: str = CONNECTED) -> keras.Model:
    """Checks that `model` is a tf_keras model that meets `needs`, and returns it.

    Args:
        name: name of the argument, for the message.
        model: what the user passed.
        needs: `CONNECTED`: a built functional or Sequential float model, whose graph can
            be traversed; `BUILT`: any built model, including subclassed and quantized
            ones; `ANY`: any model.

    Raises:
        TypeError: if `model` is not a tf_keras model. A Distiller or a path is not one.
        ValueError: if the model is not built; with `CONNECTED`, also if it is subclassed
            or quantized.
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
    """Returns the error for a model without weights or without an input shape."""
    without, fix = "without weights", ""
    if isinstance(model, keras.Sequential):
        without, fix = "without an input shape", ", or give it a keras.Input as its first layer"
    return ValueError(
        f"`{name}`: expected a model that is built, received the unbuilt {type(model).__name__} "
        f"{model.name!r}, {without}. Call it once on a batch{fix}."
    )


def quantized(name: str, part: str) -> ValueError:
    """Returns the error for a model whose layer `part` (or the whole model) is quantized."""
    return ValueError(
        f"`{name}`: expected a float model, received {part!r}, quantized already. Pass the model "
        "that it was made from."
    )


def is_network(layer: object) -> bool:
    """True for a functional or Sequential model that does not override `call`.

    Only then does the graph of its layers describe all that it computes.
    """
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "_is_graph_network", False))
        and type(layer).call in (Functional.call, keras.Sequential.call)
    )


def is_keras_3(target: object) -> bool:
    """True for a layer or model of Keras 3; told by module name, without importing Keras 3."""
    modules = [kind.__module__ for kind in type(target).__mro__]
    of_keras = any(f"{module}.".startswith("keras.") for module in modules)
    return of_keras and callable(target) and hasattr(target, "variables")


def refuse_distiller(name: str, model: object) -> None:
    """Raises TypeError for a Distiller of any kind, which is told by its `student`."""
    if callable(getattr(model, "student", None)):
        raise TypeError(
            f"`{name}`: expected a plain model, received a {type(model).__name__}, which trains "
            "one. Pass distiller.student."
        )


def refuse_keras_3(name: str, model: object, expected: str) -> None:
    """Raises TypeError for a model or layer of Keras 3, and suggests the conversion."""
    if is_keras_3(model):
        fix = "This is a Keras 3 model: convert it with tfkd.from_keras3(model)."
        raise checks.type_error(name, expected, model, fix)
