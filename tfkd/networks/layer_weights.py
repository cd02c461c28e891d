"""The weights of layers and models that are arrays: listed, counted, checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.keras_internals import count_params
from tfkd.networks.layer_parts import flat_layers

FLOAT16_ENDS = "float16 ends at 65504: what is larger becomes infinite."


def arrays(layer: Any) -> list[Any]:
    """The weights of a layer or model that are arrays: Keras lists its tables with them.

    Example:
        >>> import tf_keras as keras
        >>> words = keras.layers.StringLookup()
        >>> words.adapt(["a", "b"])
        >>> len(words.weights), arrays(words)
        (1, [])
    """
    return [weight for weight in layer.weights if hasattr(weight, "shape")]


def count(weights: Iterable[Any]) -> int:
    """How many numbers weights hold; those of open size count as none, as in Keras."""
    return count_params(list(weights))


def check_finite(name: str, model: Any, but: Iterable[Any] = ()) -> None:
    """Raises if a weight is NaN or infinite.

    Args:
        name: of the argument that holds the model.
        model: any model or layer, or something else; what is not built has nothing to check.
        but: weights that may be.

    Raises:
        ValueError: that names the weight.

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
    for weight in _variables(model):
        if id(weight) in spared:
            continue
        value = tf.convert_to_tensor(weight)
        if not value.dtype.is_floating or not hasattr(value, "numpy"):
            continue
        if not np.isfinite(value.numpy()).all():  # an operation of TensorFlow takes longer
            fix = "It gives no finite outputs. Load or train it again."
            if value.dtype == tf.float16 and not bool(tf.reduce_any(tf.math.is_nan(value))):
                fix = f"{FLOAT16_ENDS} Make it in bfloat16."
            raise ValueError(
                f"`{name}`: expected finite weights, received NaN or infinity in "
                f"{weight.name!r} of shape {tuple(weight.shape)}{_owner(model, weight)}. {fix}"
            )


def in_float64(model: Any) -> str | None:
    """The name of a layer that computes in float64, None if there is none."""
    import tf_keras as keras

    hands_on = (keras.Model, keras.layers.InputLayer)  # what others compute
    for layer in getattr(model, "_flatten_layers", tuple)():
        if not isinstance(layer, hands_on) and layer.compute_dtype == "float64":
            return layer.name
    return None


def check_float32(name: str, model: Any, reader: str) -> None:
    """Raises for a model with layers in float64.

    Args:
        name: of the argument that holds the model.
        model: any model.
        reader: what takes float32 alone, such as "LiteRT".

    Raises:
        ValueError: that names a layer, and the way out.
    """
    layer = in_float64(model)
    if layer is not None:
        fix = (
            f"{reader} takes float32 alone. Make a copy: keras.backend.set_floatx('float32'), "
            "then tfkd.frozen_copy(model, dtype='float32'); to train it, set its trainable = True."
        )
        expected, received = "layers that compute in float32", f"{layer} in float64"
        raise checks.value_error(name, expected, received, fix)


def _owner(model: Any, weight: Any) -> str:
    """Which layer a weight belongs to: the innermost, where it is known."""
    names = [part.name for part in flat_layers(model) if any(weight is own for own in part.weights)]
    return f", a weight of {names[-1]!r}" if names else ""


def _variables(model: Any) -> list[Any]:
    """The variables of a model, none if it has not been built."""
    try:
        found = list(getattr(model, "variables", None) or ())
    except ValueError:
        return []
    return [variable for variable in found if hasattr(variable, "shape")]
