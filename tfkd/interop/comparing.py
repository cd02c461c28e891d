"""Numerical verification of a converted model: tells float32 rounding from real differences.

Mathematically equal models differ in float32 if they round at different points, and a deep
network amplifies the difference: to 2e-4 of the output's range in an EfficientNetB3 with
random weights. The cause is batch normalization: tf_keras has one fused kernel for it, and
Keras 3 computes a·x + (β − a·μ) with a = γ / √(σ² + ε). If a comparison fails, the next one
of these, from cheap to expensive, is made:

1. the models as they are;
2. the tf_keras model with its normalizations computed as in Keras 3. On a CPU, with the
   TensorFlow backend of Keras 3, equal models are then bit-identical;
3. both models in float64, which also covers other backends and convolutions on a GPU.

A difference that falls below the tolerance in 2 or 3 is rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks.layer_parts import flat_layers
from tfkd.pruning.masking import random_inputs
from tfkd.types import Structure

TOLERANCE = 1e-5  # as a fraction of the output's range
HALF_TOLERANCE = 1e-2  # for models that compute in 16-bit floating point
_HALF = ("float16", "bfloat16")
# Layer classes with a fused kernel, and the attribute that selects it.
_FUSED = {keras.layers.BatchNormalization: "fused", keras.layers.LayerNormalization: "_fused"}


def compare_outputs(
    source: Any,
    made: keras.Model,
    given: Structure | None,
    tolerance: float | None,
    in_float64: Callable[[], tuple[Any, keras.Model]],
) -> None:
    """Raises ValueError if the two models differ by more than rounding.

    Args:
        source: the Keras 3 model.
        made: the tf_keras model.
        given: a batch of inputs; None: random inputs.
        tolerance: largest difference as a fraction of the output's range; None: 1e-5, or
            1e-2 in half precision.
        in_float64: builds both models again in float64; may raise any exception.
    """
    if given is None and any(tensor.dtype == tf.string for tensor in made.inputs):
        raise ValueError(
            "`verify`: expected examples (the model takes strings, which can't be drawn at "
            "random), received True. Give examples, or verify=False."
        )
    types = {layer.compute_dtype for layer in flat_layers(made)}
    if tolerance is None:
        tolerance = HALF_TOLERANCE if types & set(_HALF) else TOLERANCE
    for batch in _batches(made) if given is None else [given]:
        worst, name = difference(source, made, batch)
        if worst <= tolerance:
            continue
        found = f"a difference of {worst:.3g} in {name!r}"
        if np.isfinite(worst):
            if difference_in_order(source, made, batch) <= tolerance:
                continue
            if not types & set(_HALF):
                exact, text = _float64(batch, in_float64)
                if exact <= tolerance:
                    continue
                found += f" (in float64: {text})"
        raise ValueError(
            f"`model`: expected the converted model to equal {source.name!r} to {tolerance:g} "
            f"of the output's range, received {found}. If it has large or NaN outputs on random "
            "inputs, give examples as `verify`; a function in `custom_layers` may be wrong; a "
            "larger `tolerance` accepts more; verify=False returns the model as it is."
        )


def _float64(batch: Any, make: Callable[[], tuple[Any, keras.Model]]) -> tuple[float, str]:
    """(difference in float64, the same as text); infinity if it can't be computed."""

    def cast(value: Any) -> np.ndarray:
        array = np.asarray(value)
        return array.astype("float64") if array.dtype == np.float32 else array

    try:
        worst, _ = difference(*make(), tf.nest.map_structure(cast, batch))
    except Exception as error:  # Layers without float64 support raise many kinds of errors.
        return np.inf, f"it can't be built, {type(error).__name__}"
    return worst, f"{worst:.3g}"


def difference(source: Any, made: keras.Model, batch: Structure) -> tuple[float, str]:
    """(largest difference as a fraction of the output's range, name of that output)."""
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


def difference_in_order(source: Any, made: keras.Model, batch: Structure) -> float:
    """`difference` without fused kernels in tf_keras, in the order of operations of Keras 3."""
    with _without_fused_kernels(made):
        return difference(source, made, batch)[0]


@contextlib.contextmanager
def _without_fused_kernels(model: keras.Model) -> Iterator[None]:
    before = [
        (layer, attribute, getattr(layer, attribute))
        for layer in flat_layers(model)
        for kind, attribute in _FUSED.items()
        if isinstance(layer, kind)
    ]
    try:
        for layer, attribute, _ in before:
            setattr(layer, attribute, False)
        yield
    finally:
        for layer, attribute, value in before:
            setattr(layer, attribute, value)


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
    """Random inputs; with integer inputs also a copy with many zeros, to exercise masking."""
    batch = random_inputs(made)
    if all(tensor.dtype.is_floating for tensor in made.inputs):
        return [batch]
    rng = np.random.default_rng(1)

    def thinned(value: tf.Tensor) -> tf.Tensor:
        if value.dtype.is_floating or value.dtype == tf.bool:
            return value
        return value * tf.cast(rng.integers(0, 2, value.shape), value.dtype)

    return [batch, tf.nest.map_structure(thinned, batch)]
