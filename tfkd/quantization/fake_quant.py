"""Fake quantization: what a tensor would be after a trip through 8-bit integers.

A real number r becomes q = round(r / s) + z and comes back as s·(q − z). The
gradient passes straight through the rounding where r lies in the range, and is
0 where r is clipped (Bengio et al. 2013, https://arxiv.org/abs/1308.3432;
Jacob et al. 2018, https://arxiv.org/abs/1712.05877).

Activations have one range a tensor, kept in variables, since inference must
know it beforehand. Weights have one range an output channel, which is max|w| of
the weights as they are: nothing is stored that could go stale.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from tfkd import checks

# Weight of the old range in each training step: 100 steps to follow the network.
MOMENTUM = 0.99
# No grid is finer than this: a scale of 0 would divide by 0.
SMALLEST = 1e-6


class _State(threading.local):
    """What the quantizers of this thread do; replicas have threads of their own."""

    observer: Callable[[Any, Any], None] | None = None


_STATE = _State()


@contextlib.contextmanager
def observing(observer: Callable[[Any, Any], None]) -> Iterator[None]:
    """Activations pass unchanged and are shown to `observer(low, tensor)` instead."""
    before, _STATE.observer = _STATE.observer, observer
    try:
        yield
    finally:
        _STATE.observer = before


def is_observing() -> bool:
    """True inside `observing`."""
    return _STATE.observer is not None


@keras.saving.register_keras_serializable("tfkd")
class RangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Quantizes an activation over one range for the whole tensor.

    In training the range follows the smallest and largest value of the batches
    by a moving average, the mean over all replicas of a strategy. Before
    calibration the range is [0, 0], which no calibrated one is.

    Args:
        symmetric: a range [−a, a] and the codes −127 … 127, so that the code of 0
            is 0, as TensorRT wants it; otherwise a range that holds 0, and all
            256 codes.
        fixed: (low, high), if the range is known from the operation (softmax)
            and never moves.

    Raises:
        ValueError: if `fixed` does not hold 0, or is not symmetric where it must be.
    """

    def __init__(self, symmetric: bool, fixed: Sequence[float] | None = None):
        self.symmetric = bool(symmetric)
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        if self.fixed and not self.fixed[0] <= 0 <= self.fixed[1]:
            raise checks.value_error("fixed", "a range that holds 0", fixed)
        if self.fixed and symmetric and self.fixed[0] != -self.fixed[1]:
            raise checks.value_error("fixed", "a symmetric range", fixed)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Makes the variables `low` and `high` in `layer`."""
        start = self.fixed or (0.0, 0.0)
        return {
            key: layer.add_weight(
                f"{name}_{key}",
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=False,
                # Each replica sees its part of the batch: the mean of them all.
                aggregation=tf.VariableAggregation.MEAN,
            )
            for key, value in zip(("low", "high"), start, strict=True)
        }

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        """Any shape → the same shape, on the grid."""
        low, high = weights["low"], weights["high"]
        if _STATE.observer is not None:
            if self.fixed is None:
                _STATE.observer(low, inputs)
            return inputs
        if training and self.fixed is None:
            new_low, new_high = self._follow(inputs, low, high)
            low.assign(new_low)
            high.assign(new_high)
        high = tf.maximum(high, SMALLEST)
        low = -high if self.symmetric else tf.identity(low)
        return fake_quant(inputs, low, high, narrow_range=self.symmetric)

    def _follow(self, inputs: Any, low: Any, high: Any) -> tuple[Any, Any]:
        """The range after this batch."""
        inputs = tf.stop_gradient(inputs)
        batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)
        batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
        if self.symmetric:
            batch_high = tf.maximum(batch_high, -batch_low)
            batch_low = -batch_high
        # One batch with NaN or infinity must not spoil the range for good.
        step = tf.where(tf.math.is_finite(batch_high - batch_low), 1.0 - MOMENTUM, 0.0)
        batch_low = tf.where(step > 0, batch_low, low)
        batch_high = tf.where(step > 0, batch_high, high)
        return low + step * (batch_low - low), high + step * (batch_high - high)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"symmetric": self.symmetric, "fixed": self.fixed}


def fake_quant(inputs: Any, low: Any, high: Any, narrow_range: bool) -> Any:
    """Rounds to the grid of 8 bits from `low` to `high`, a scalar each, and clips."""
    return tf.quantization.fake_quant_with_min_max_vars(
        inputs, low, high, num_bits=8, narrow_range=narrow_range
    )


@keras.saving.register_keras_serializable("tfkd")
class WeightQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Quantizes weights to −127 … 127 times max|w| / 127.

    Args:
        axes: axes of the weights that count output channels, each with a range of
            its own; none: one range for all.
        keep_zeros: weights that are 0 when the layer is built stay 0 in training,
            so that what was pruned stays pruned.
    """

    def __init__(self, axes: Sequence[int] = (), keep_zeros: bool = False):
        self.axes = tuple(int(axis) for axis in axes)
        self.keep_zeros = bool(keep_zeros)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Makes the mask of the zeros in `layer`, all ones; `remember_zeros` sets it."""
        if not self.keep_zeros:
            return {}
        mask = layer.add_weight(
            f"{name}_mask", shape=tensor_shape, initializer="ones", trainable=False
        )
        return {"mask": mask}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        """Weights → the same shape, on the grid of each channel."""
        inputs = tf.convert_to_tensor(inputs)
        if self.keep_zeros:
            inputs = inputs * weights["mask"]
        shape, axes = inputs.shape, self.axes
        if not axes:
            high = tf.maximum(tf.reduce_max(tf.abs(tf.stop_gradient(inputs))), SMALLEST)
            return fake_quant(inputs, -high, high, narrow_range=True)
        # The operation wants the channels on the last axis, and there alone.
        rest = [axis for axis in range(len(shape)) if axis not in axes]
        order = [*rest, *axes]
        moved = order != list(range(len(shape)))
        if moved:
            inputs = tf.transpose(inputs, order)
        channels = int(np.prod([shape[axis] for axis in axes]))
        flat = tf.reshape(inputs, [-1, channels])
        high = tf.maximum(tf.reduce_max(tf.abs(tf.stop_gradient(flat)), axis=0), SMALLEST)
        flat = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            flat, -high, high, num_bits=8, narrow_range=True
        )
        result = tf.reshape(flat, [shape[axis] for axis in order])
        return tf.transpose(result, np.argsort(order)) if moved else result

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"axes": list(self.axes), "keep_zeros": self.keep_zeros}
