"""Fake quantization of weights (per channel) and activations (per tensor), and observers.

A real value r is quantized to q = round(r / s) + z with scale s and zero point z, and
dequantized to s·(q − z). The straight-through estimator passes the gradient unchanged where
r lies in the range, and zeroes it where r is clipped (Bengio et al. 2013,
https://arxiv.org/abs/1308.3432; Jacob et al. 2018, https://arxiv.org/abs/1712.05877).

Activations have one range per tensor, stored in variables, since inference must know it in
advance. Weights have one range per output channel, computed as max|w| from the current
weights in every step, so that no stored range can become stale.
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

# Momentum of the moving average of ranges: its time constant is 100 training steps.
MOMENTUM = 0.99
# Smallest upper end of a range: an all-zero tensor would give a scale of 0.
SMALLEST = 1e-6


class _State(threading.local):
    """The observer of the current thread; replicas of a strategy run in separate threads."""

    observer: Callable[[tf.Variable, tf.Tensor], None] | None = None


_STATE = _State()


@contextlib.contextmanager
def observing(observer: Callable[[tf.Variable, tf.Tensor], None]) -> Iterator[None]:
    """In this context activations are passed to `observer(low, tensor)`, not quantized.

    `low` is the range variable of the activation, which identifies it.
    """
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
    """Per-tensor quantizer of an activation, with a moving-average min-max observer.

    In training the range is a moving average of the minimum and maximum of each batch,
    averaged over all replicas of a strategy. Before calibration the range is [0, 0], which
    marks it as unset.

    Args:
        symmetric: use a range [−a, a] with the codes −127 … 127, so that the zero point is
            0, as TensorRT requires; otherwise a range that contains 0, with all 256 codes.
        fixed: (low, high), if the operation determines the range (softmax: [0, 1]).

    Raises:
        ValueError: if `fixed` does not contain 0, or is not symmetric with `symmetric`.
    """

    def __init__(self, symmetric: bool, fixed: Sequence[float] | None = None):
        self.symmetric = bool(symmetric)
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        if self.fixed and not self.fixed[0] <= 0 <= self.fixed[1]:
            raise checks.value_error("fixed", "a range that contains 0", fixed)
        if self.fixed and symmetric and self.fixed[0] != -self.fixed[1]:
            raise checks.value_error("fixed", "a symmetric range", fixed)

    def build(
        self, tensor_shape: tf.TensorShape, name: str, layer: keras.layers.Layer
    ) -> dict[str, tf.Variable]:
        """Creates the variables `low` and `high` in `layer`."""
        start = self.fixed or (0.0, 0.0)
        return {
            key: layer.add_weight(
                f"{name}_{key}",
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=False,
                # Each replica sees a part of the batch: take the mean over replicas.
                aggregation=tf.VariableAggregation.MEAN,
            )
            for key, value in zip(("low", "high"), start, strict=True)
        }

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, tf.Variable], **kwargs: Any
    ) -> tf.Tensor:
        """Fake-quantizes a tensor of any shape; in training also updates the range."""
        low, high = weights["low"], weights["high"]
        if _STATE.observer is not None:
            if self.fixed is None:
                _STATE.observer(low, inputs)
            return inputs
        if training and self.fixed is None:
            new_low, new_high = self._moving_average(inputs, low, high)
            low.assign(new_low)
            high.assign(new_high)
        high = tf.maximum(high, SMALLEST)
        low = -high if self.symmetric else tf.identity(low)
        return fake_quant(inputs, low, high, narrow_range=self.symmetric)

    def _moving_average(
        self, inputs: tf.Tensor, low: tf.Variable, high: tf.Variable
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The updated range after a batch."""
        inputs = tf.stop_gradient(inputs)
        batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)
        batch_high = tf.maximum(tf.reduce_max(inputs), 0.0)
        if self.symmetric:
            batch_high = tf.maximum(batch_high, -batch_low)
            batch_low = -batch_high
        # A batch with NaN or infinity is ignored: the average would never recover.
        step = tf.where(tf.math.is_finite(batch_high - batch_low), 1.0 - MOMENTUM, 0.0)
        batch_low = tf.where(step > 0, batch_low, low)
        batch_high = tf.where(step > 0, batch_high, high)
        return low + step * (batch_low - low), high + step * (batch_high - high)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"symmetric": self.symmetric, "fixed": self.fixed}


def fake_quant(inputs: tf.Tensor, low: tf.Tensor, high: tf.Tensor, narrow_range: bool) -> tf.Tensor:
    """Fake-quantizes to 8 bits over the range from `low` to `high`, both scalars."""
    return tf.quantization.fake_quant_with_min_max_vars(
        inputs, low, high, num_bits=8, narrow_range=narrow_range
    )


@keras.saving.register_keras_serializable("tfkd")
class WeightQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Symmetric quantizer of weights: codes −127 … 127 with the scale max|w| / 127.

    Args:
        axes: the axes of output channels, for per-channel scales; empty: one scale per
            tensor.
        keep_zeros: keep weights at 0 in training that are 0 in the float model, to
            preserve the sparsity of a pruned model.
    """

    def __init__(self, axes: Sequence[int] = (), keep_zeros: bool = False):
        self.axes = tuple(int(axis) for axis in axes)
        self.keep_zeros = bool(keep_zeros)

    def build(
        self, tensor_shape: tf.TensorShape, name: str, layer: keras.layers.Layer
    ) -> dict[str, tf.Variable]:
        """Creates the sparsity mask in `layer`, all ones; `quantize` sets it later."""
        if not self.keep_zeros:
            return {}
        mask = layer.add_weight(
            f"{name}_mask", shape=tensor_shape, initializer="ones", trainable=False
        )
        return {"mask": mask}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, tf.Variable], **kwargs: Any
    ) -> tf.Tensor:
        """Fake-quantizes weights; the gradient reaches only weights that are not masked."""
        inputs = tf.convert_to_tensor(inputs)
        if self.keep_zeros:
            inputs = inputs * weights["mask"]
        # TFLite requires weights in [−127, 127] with zero point 0: narrow symmetric ranges.
        # https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
        shape, axes = inputs.shape, self.axes
        if not axes:
            high = tf.maximum(tf.reduce_max(tf.abs(tf.stop_gradient(inputs))), SMALLEST)
            return fake_quant(inputs, -high, high, narrow_range=True)
        # The per-channel operation requires all channels on a single, last axis.
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
