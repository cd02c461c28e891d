"""Validation of model arguments: functional or Sequential, built, float, tf_keras."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.call_graph import CallGraph, graph_of
from tfkd.networks.layer_parts import flat_layers

# What a caller requires of a model, from the most to the least.
CONNECTED = "connected"  # a float model whose connections between layers are known
CALLED = "called"  # it is built, and the form of its inputs is known
BUILT = "built"  # its weights exist and it can be called
ANY = "any"  # a tf_keras model, built or not

# The largest float16 number is (2 − 2⁻¹⁰)·2¹⁵ = 65504.
FLOAT16_ENDS = "float16 ends at 65504: what is larger becomes infinite."

_EXPECTED = "a tf_keras model"


def check_model(
    name: str,
    model: object,
    needs: str = BUILT,
    finite: bool = False,
    float32: str | None = None,
) -> keras.Model:
    """Checks that `model` is a tf_keras model that meets the needs, and returns it.

    Args:
        name: name of the argument, for the message.
        model: what the user passed.
        needs: `CALLED` or `BUILT`: any such model, including subclassed and quantized
            ones; `ANY`: any model. For `CONNECTED` see `check_graph`.
        finite: whether its weights must be finite: see `check_finite`.
        float32: name of what accepts float32 only: see `check_float32`; None: any dtype.

    Raises:
        TypeError: if `model` is not a tf_keras model. A Distiller or a path is not one.
        ValueError: if the model does not meet the needs.
    """
    refuse_distiller(name, model)
    refuse_keras_3(name, model, _EXPECTED)
    if not isinstance(model, keras.Model):
        is_path = isinstance(model, (str, os.PathLike))
        fix = "Load it first: keras.models.load_model(path)." if is_path else None
        raise checks.type_error(name, _EXPECTED, model, fix)
    if needs == CONNECTED and hasattr(model, "check_calibrated"):
        raise quantized(name, model.name)
    if not _is_ready(model, needs):
        raise _unbuilt(name, model)
    if finite:
        check_finite(name, model)
    if float32:
        check_float32(name, model, float32)
    return model


def check_graph(
    name: str, model: object, finite: bool = False, float32: str | None = None
) -> CallGraph:
    """Checks that a model is functional or Sequential, built and float; returns its graph.

    Args:
        name, model, finite, float32: as in `check_model`.

    Raises:
        TypeError: as `check_model`.
        ValueError: if the model is not built, quantized, or subclassed, so that its layers
            can't be followed; or as `check_model`.
    """
    model = check_model(name, model, CONNECTED, finite, float32)
    graph = graph_of(model)
    if graph is None:
        raise ValueError(
            f"`{name}`: expected a functional or Sequential model, received the subclassed "
            f"{type(model).__name__}, whose layers can't be followed. Build the same layers with "
            "keras.Model(inputs, outputs)."
        )
    return graph


def _is_ready(model: keras.Model, needs: str) -> bool:
    if needs == CONNECTED:
        return not isinstance(model, keras.Sequential) or model._graph_initialized
    if needs == CALLED:
        return model.built and model.save_spec() is not None
    return needs == ANY or model.built


def _unbuilt(name: str, model: keras.Model) -> ValueError:
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


def check_finite(name: str, model: object, but: Iterable[tf.Variable] = ()) -> None:
    """Raises if a weight holds NaN or infinity.

    Args:
        name: name of the argument that holds the model.
        model: any model or layer. One that is not built, and anything else, passes.
        but: weights that are not checked.

    Raises:
        ValueError: if there is such a weight; the message names it.

    Example:
        >>> import numpy as np, tf_keras as keras
        >>> layer = keras.layers.Dense(1)
        >>> layer.build((None, 1))
        >>> layer.set_weights([np.full((1, 1), np.nan), np.zeros(1)])
        >>> check_finite("model", layer)
        Traceback (most recent call last):
        ...
        ValueError: `model`: expected finite weights, received NaN or infinity in 'kernel:0' ...
    """
    spared = {id(weight) for weight in but}
    try:
        variables = list(getattr(model, "variables", None) or ())
    except ValueError:  # Keras raises it for a model that is not built.
        return
    for weight in variables:
        if id(weight) in spared or not hasattr(weight, "shape"):
            continue
        value = tf.convert_to_tensor(weight)
        if not value.dtype.is_floating or not hasattr(value, "numpy"):
            continue
        # NumPy, since starting a TensorFlow operation per weight takes longer.
        if not np.isfinite(value.numpy()).all():
            fix = "It gives no finite outputs. Load or train it again."
            if value.dtype == tf.float16 and not bool(tf.reduce_any(tf.math.is_nan(value))):
                fix = f"{FLOAT16_ENDS} Make it in bfloat16."
            raise ValueError(
                f"`{name}`: expected finite weights, received NaN or infinity in "
                f"{weight.name!r} of shape {tuple(weight.shape)}{_owner(model, weight)}. {fix}"
            )


def in_float64(model: keras.Model) -> str | None:
    """Name of the first layer that computes in float64, or None."""
    containers = (keras.Model, keras.layers.InputLayer)  # These compute nothing themselves.
    for layer in flat_layers(model):
        if not isinstance(layer, containers) and layer.compute_dtype == "float64":
            return layer.name
    return None


def check_float32(name: str, model: keras.Model, reader: str) -> None:
    """Raises for a model with layers that compute in float64.

    Args:
        name: name of the argument that holds the model.
        model: any model.
        reader: name of what accepts float32 only, such as "LiteRT".

    Raises:
        ValueError: if there is such a layer; the message names it.
    """
    layer = in_float64(model)
    if layer is not None:
        fix = (
            f"{reader} takes float32 alone. Make a copy: keras.backend.set_floatx('float32'), "
            "then tfkd.frozen_copy(model, dtype='float32'); to train it, set its trainable = True."
        )
        expected, received = "layers that compute in float32", f"{layer} in float64"
        raise checks.value_error(name, expected, received, fix)


def _owner(model: object, weight: tf.Variable) -> str:
    """Text that names the innermost layer that holds a weight; "" if none is found."""
    names = [part.name for part in flat_layers(model) if any(weight is own for own in part.weights)]
    return f", a weight of {names[-1]!r}" if names else ""
