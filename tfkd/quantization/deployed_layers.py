"""Layers of a deployed model: dilated convolutions, explicit kernel ranges, given weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import KerasTensor, squeeze_batch_dims
from tfkd.networks.copy_layer import copy_layer

layers = keras.layers


@keras.saving.register_keras_serializable("tfkd")
class DilatedConv2D(keras.layers.Conv2D):
    """A dilated convolution as one operation.

    TensorFlow emits SpaceToBatch, convolution and BatchToSpace, which converters fuse again
    only if the batch size is known and no other convolution reads the result of SpaceToBatch.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) → (B, H', W', filters)."""
        return _dilated(inputs, kernel, self.padding, self.dilation_rate)


@keras.saving.register_keras_serializable("tfkd")
class ImageConv1D(keras.layers.Conv1D):
    """A convolution as one operation on images of height 1, dilated or not.

    Keras adds the bias behind the squeeze to sequences. Where sizes are open, converters don't
    fuse that with the convolution, and compute both in float.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, T, C) → (B, T', filters)."""
        if self.padding == "causal":
            before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            inputs = tf.pad(inputs, [*[[0, 0]] * (inputs.shape.rank - 2), [before, 0], [0, 0]])
        compute = self.convolution_op
        if self.groups > 1:  # As in Keras: TensorFlow's CPU kernel has no groups.
            compute = tf.function(compute, jit_compile=True)
        outputs = compute(tf.expand_dims(inputs, -3), tf.expand_dims(self.kernel, 0))
        outputs = outputs + self.bias if self.use_bias else outputs
        outputs = outputs if self.activation is None else self.activation(outputs)
        return tf.squeeze(outputs, -3)

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """(B, 1, T, C) → (B, 1, T', filters)."""
        padding = "valid" if self.padding == "causal" else self.padding
        return _dilated(inputs, kernel, padding, (1, *self.dilation_rate), self.strides[0])


def _dilated(
    inputs: tf.Tensor, kernel: tf.Tensor, padding: str, rates: Sequence[int], stride: int = 1
) -> tf.Tensor:
    def one(images: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.Conv2D(
            input=images,
            filter=kernel,
            strides=[1, stride, stride, 1],
            padding=padding.upper(),
            dilations=[1, *rates, 1],
        )

    # Keras takes more than one axis of the batch.
    return one(inputs) if inputs.shape.rank == 4 else squeeze_batch_dims(inputs, one, 3)


@keras.saving.register_keras_serializable("tfkd")
class DilatedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A dilated depthwise convolution as one operation, for the reason of `DilatedConv2D`."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) → (B, H', W', C · depth_multiplier)."""
        outputs = tf.raw_ops.DepthwiseConv2dNative(
            input=inputs,
            filter=self.depthwise_kernel,
            strides=[1, 1, 1, 1],
            padding=self.padding.upper(),
            dilations=[1, *self.dilation_rate, 1],
        )
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable("tfkd")
class LimitedConv2D(keras.layers.Conv2D):
    """A convolution with an explicit quantization range for each filter.

    A converter derives the scale of a channel from its largest weight. That is wrong if the
    weights were quantized per tensor, where a channel need not reach the end of the range.

    Args:
        limits: upper end of the symmetric range of each filter, positive.
    """

    def __init__(self, *args: Any, limits: Sequence[float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.limits = tuple(float(limit) for limit in limits)

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) → (B, H', W', filters)."""
        ends = tf.constant(self.limits, tf.float32)
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -ends, ends, num_bits=8, narrow_range=True
        )
        return super().convolution_op(inputs, kernel)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "limits": list(self.limits)}


@keras.saving.register_keras_serializable("tfkd")
class FlatDense(keras.layers.Dense):
    """A Dense layer of positions, each a row of one matrix product.

    Keras adds the bias to the product in its final shape. Where sizes are open, converters
    don't fuse that with the product, and compute both in float.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, ..., C) → (B, ..., units)."""
        outputs = super().call(tf.reshape(inputs, (-1, inputs.shape[-1])))
        sizes = inputs.shape[1:-1]
        if sizes.is_fully_defined():
            return tf.reshape(outputs, (-1, *sizes, self.units))
        return tf.reshape(outputs, tf.concat([tf.shape(inputs)[:-1], [self.units]], 0))


def with_weights(
    layer: keras.layers.Layer,
    name: str,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    lite: bool = False,
) -> Weighted:
    """A copy of a layer with other weights, without regularizers and constraints.

    Args:
        layer: a convolution or Dense layer.
        name: name of the copy.
        kernel, bias: its weights; None: no bias.
        lite: choose forms that TFLite's converter fuses for open sizes as well.
    """
    copy = _plain(layer, name, bias is not None)
    forms: dict[type, Any] = {layers.Dense: FlatDense, layers.Conv1D: ImageConv1D}
    if lite and type(copy) in forms:
        copy = forms[type(copy)].from_config(copy.get_config())
    return Weighted(copy, kernel, bias)


class Weighted:
    """A layer together with the weights that are set when its first call builds it."""

    def __init__(self, layer: keras.layers.Layer, kernel: np.ndarray, bias: np.ndarray | None):
        self.layer = layer
        self._weights = [kernel] if bias is None else [kernel, _not_constant(bias)]

    def __call__(self, inputs: KerasTensor) -> KerasTensor:
        """The output of the layer."""
        built = self.layer.built
        outputs = self.layer(inputs)
        if not built:
            self.layer.set_weights(self._weights)
        return outputs


def _not_constant(bias: np.ndarray) -> np.ndarray:
    """A bias whose elements are not all equal: the last one may differ by one float32 step.

    TensorFlow's converter quantizes a bias of equal elements with the scale of the first
    channel for all of them.
    """
    bias = np.array(bias, np.float32)
    if bias.size > 1 and bias[0] != 0 and (bias == bias[0]).all():
        bias[-1] = np.nextafter(bias[-1], np.float32(0))
    return bias


def _plain(layer: Any, name: str, use_bias: bool) -> Any:
    """A copy without regularizers and constraints, which affect training only."""
    changes: dict[str, Any] = {"use_bias": use_bias, "activity_regularizer": None}
    changes["bias_regularizer"] = changes["bias_constraint"] = None
    start = "depthwise" if isinstance(layer, layers.DepthwiseConv2D) else "kernel"
    changes[f"{start}_regularizer"] = changes[f"{start}_constraint"] = None
    copy = copy_layer(layer, name, **changes)
    dilated: dict[type, Any] = {
        layers.Conv1D: ImageConv1D,
        layers.Conv2D: DilatedConv2D,
        layers.DepthwiseConv2D: DilatedDepthwiseConv2D,
    }
    one_op = (
        type(layer) in dilated
        and max(layer.dilation_rate) > 1
        and layer.data_format == "channels_last"
    )
    return dilated[type(layer)].from_config(copy.get_config()) if one_op else copy
