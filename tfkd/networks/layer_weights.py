"""Weights of layers and models: listing, parameter counts, checks of finiteness and dtype."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.keras_internals import count_params
from tfkd.networks.layer_parts import flat_layers

# The largest float16 number is (2 − 2⁻¹⁰)·2¹⁵ = 65504.
FLOAT16_ENDS = "float16 ends at 65504: what is larger becomes infinite."


def arrays(layer: keras.layers.Layer) -> list[tf.Variable]:
    """The weights of a layer or model without lookup tables, which Keras lists among them.

    Example:
        >>> import tf_keras as keras
        >>> words = keras.layers.StringLookup()
        >>> words.adapt(["a", "b"])
        >>> len(words.weights), arrays(words)
        (1, [])
    """
    return [weight for weight in layer.weights if hasattr(weight, "shape")]


def count(weights: Iterable[tf.Variable]) -> int:
    """Number of parameters in `weights`; one of unknown shape counts as 0, as in Keras."""
    return count_params(list(weights))


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
