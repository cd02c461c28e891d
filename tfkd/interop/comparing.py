"""Runs a Keras 3 model and its counterpart on the same inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.pruning.shrinking import random_inputs

TOLERANCE = 1e-5  # of the output's range
HALF_TOLERANCE = 1e-2  # where 16-bit numbers are computed with
_HALF = ("float16", "bfloat16")


def compare(source: Any, made: keras.Model, given: Any) -> None:
    """Raises ValueError if the two models differ.

    Args:
        source: the Keras 3 model.
        made: the tf_keras model.
        given: inputs; None: random ones.
    """
    if given is None and any(tensor.dtype == tf.string for tensor in made.inputs):
        raise ValueError(
            "`verify`: expected a batch (the model takes strings, which can't be drawn at "
            "random), received True. Give a batch, or verify=False."
        )
    half = any(layer.compute_dtype in _HALF for layer in made._flatten_layers())
    for batch in _batches(made) if given is None else [given]:
        worst, name = difference(source, made, batch)
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        if not worst <= tolerance:
            raise ValueError(
                f"`model`: expected the converted model to equal {source.name!r} to {tolerance:g} "
                f"of the output's range, received a difference of {worst:.3g} in {name!r}. If it "
                "has large or NaN outputs on random inputs, give a batch as `verify`; a function "
                "in `custom_layers` may be wrong; verify=False returns the model as it is."
            )


def difference(source: Any, made: keras.Model, batch: Any) -> tuple[float, str]:
    """(largest difference over the range of the output, name of that output)."""
    batch = tf.nest.map_structure(np.asarray, batch)
    for model in (source, made):
        model.reset_states() if hasattr(model, "reset_states") else None
    expected = tf.nest.flatten(source(batch, training=False))
    found = tf.nest.flatten(made(batch, training=False))
    worst, where = -1.0, ""
    for theirs, ours, name in zip(expected, found, made.output_names, strict=True):
        one = _distance(_numbers(theirs), _numbers(ours))
        if not one <= worst:
            worst, where = one, name
    return worst, where


def _numbers(tensor: Any) -> np.ndarray:
    detached = tensor.detach().cpu() if hasattr(tensor, "detach") else tensor
    return np.asarray(detached).astype("float64")


def _distance(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    spread = np.ptp(expected)
    scale = spread if spread > 0 else max(np.abs(expected).max(), 1.0)
    return float(np.abs(expected - found).max() / scale)


def _batches(made: keras.Model) -> list[Any]:
    """Random inputs; and, if there are whole numbers, the same with many zeros (masks)."""
    batch = random_inputs(made)
    if all(tensor.dtype.is_floating for tensor in made.inputs):
        return [batch]
    rng = np.random.default_rng(1)

    def thinned(value: tf.Tensor) -> tf.Tensor:
        if value.dtype.is_floating or value.dtype == tf.bool:
            return value
        return value * tf.cast(rng.integers(0, 2, value.shape), value.dtype)

    return [batch, tf.nest.map_structure(thinned, batch)]
