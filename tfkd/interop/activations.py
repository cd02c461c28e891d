"""Activation functions of Keras 3 for tf_keras.

Most names mean the same in both. An exception is `hard_sigmoid`: 0.2x + 0.5 in Keras 2 and
x/6 + 0.5 in Keras 3. Functions that differ or that Keras 2 lacks are registered with Keras
under "tfkd>name", so that a converted model can be saved and loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

# Identical in both: leaky_relu has slope 0.2, and gelu is the exact one.
SAME = frozenset(
    "elu exponential gelu leaky_relu linear log_softmax mish relu relu6 selu sigmoid silu "
    "softmax softplus softsign swish tanh".split()
)
_OWN: dict[str, Callable[..., tf.Tensor]] = {}


def _own(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Registers a function under its name."""
    _OWN[function.__name__] = function
    return keras.saving.register_keras_serializable(package="tfkd")(function)


@_own
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    return tf.nn.relu6(x + 3.0) / 6.0


@_own
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """x · hard_sigmoid(x)."""
    return x * hard_sigmoid(x)


@_own
def hard_tanh(x: tf.Tensor) -> tf.Tensor:
    """min(max(x, -1), 1)."""
    return tf.clip_by_value(x, -1.0, 1.0)


@_own
def hard_shrink(x: tf.Tensor) -> tf.Tensor:
    """x where |x| > 0.5, else 0."""
    return tf.where(tf.abs(x) > 0.5, x, tf.zeros_like(x))


@_own
def soft_shrink(x: tf.Tensor) -> tf.Tensor:
    """sign(x)·max(|x| − 0.5, 0)."""
    return tf.sign(x) * tf.nn.relu(tf.abs(x) - 0.5)


@_own
def tanh_shrink(x: tf.Tensor) -> tf.Tensor:
    """x - tanh(x)."""
    return x - tf.tanh(x)


@_own
def celu(x: tf.Tensor) -> tf.Tensor:
    """max(x, 0) + exp(min(x, 0)) − 1, which is CELU with alpha = 1."""
    return tf.nn.elu(x)


@_own
def log_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """log(1 / (1 + exp(-x)))."""
    return tf.math.log_sigmoid(x)


@_own
def squareplus(x: tf.Tensor) -> tf.Tensor:
    """(x + sqrt(x² + 4)) / 2."""
    return (x + tf.sqrt(x * x + 4.0)) / 2.0


@_own
def glu(x: tf.Tensor) -> tf.Tensor:
    """The first half of the last axis times the sigmoid of the second."""
    first, second = tf.split(x, 2, axis=-1)
    return first * tf.sigmoid(second)


_OWN["hard_swish"] = hard_silu


def counterpart(name: str) -> str | Callable[..., tf.Tensor] | None:
    """The `activation` argument of tf_keras for a Keras 3 name; None if there is none."""
    return name if name in SAME else _OWN.get(name)
