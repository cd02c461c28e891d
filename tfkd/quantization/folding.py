"""Batch normalization as a part of the layer before it, exact on the integer grid.

In inference a batch normalization is y = k·x + o with one k = γ/√(σ² + ε) and
one o = β − μ·k for each channel. Behind a convolution whose kernel is s·q, with
integers q and one s for each output channel, it is the same convolution with
the kernel (s·k)·q: other scales, and the very same integers.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale

from tfkd.quantization.rewriting import copy_layer

layers = keras.layers


@keras.saving.register_keras_serializable("tfkd")
class DilatedConv2D(keras.layers.Conv2D):
    """A dilated convolution as one operation.

    TensorFlow writes one as SpaceToBatch, convolution and BatchToSpace, which
    converters put together again only where the batch size is known.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """(B, H, W, C) → (B, H', W', filters)."""
        return tf.raw_ops.Conv2D(
            input=inputs,
            filter=kernel,
            strides=[1, 1, 1, 1],
            padding=self.padding.upper(),
            dilations=[1, *self.dilation_rate, 1],
        )


@keras.saving.register_keras_serializable("tfkd")
class DilatedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A dilated depthwise convolution as one operation, likewise."""

    def call(self, inputs: Any) -> Any:
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
    """A convolution that says how far the grid of its kernel reaches.

    A converter takes the largest weight of a channel for the end of its grid.
    That is wrong where channels have got their weights off one common grid.

    Args:
        limits: the end of the grid of each filter, positive.
    """

    def __init__(self, *args: Any, limits: Sequence[float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.limits = tuple(float(limit) for limit in limits)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """(B, H, W, C) → (B, H', W', filters)."""
        ends = tf.constant(self.limits, tf.float32)
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -ends, ends, num_bits=8, narrow_range=True
        )
        return super().convolution_op(inputs, kernel)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "limits": list(self.limits)}


def scale_and_offset(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """(k, o) of a layer that computes k·x + o with one k and one o for each channel.

    Args:
        norm: a built BatchNormalization or Normalization over the last axis, a
            LayerScale, or a Rescaling.

    Returns:
        Arrays of shape (channels,), of a Rescaling by numbers (), in float64.
    """
    if isinstance(norm, layers.BatchNormalization):
        variance = _array(norm.moving_variance) + norm.epsilon
        gamma = 1.0 if norm.gamma is None else _array(norm.gamma)
        beta = 0.0 if norm.beta is None else _array(norm.beta)
        scale = gamma / np.sqrt(variance)
        return scale, beta - _array(norm.moving_mean) * scale
    if isinstance(norm, layers.Normalization):
        mean = _array(norm.mean).reshape(-1)
        # Keras divides by no less than this.
        deviation = np.maximum(np.sqrt(_array(norm.variance)), keras.backend.epsilon()).reshape(-1)
        if norm.invert:
            return deviation, mean
        return 1.0 / deviation, -mean / deviation
    if isinstance(norm, LayerScale):
        gamma = _array(norm.gamma)
        return gamma, np.zeros_like(gamma)
    return np.asarray(norm.scale, np.float64), np.asarray(norm.offset, np.float64)


def folded(
    layer: Any, kernel: np.ndarray, bias: np.ndarray | None, norm: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of `layer` that hold a batch normalization or the like after it, too.

    Args:
        layer: a convolution (also depthwise or transposed) or Dense layer.
        kernel: its kernel.
        bias: its bias (filters,), or None.
        norm: a layer that `scale_and_offset` takes.

    Returns:
        (kernel of the same shape, bias (filters,)), float32.
    """
    filters = _filters(layer, kernel)
    scale, offset = (np.broadcast_to(one, filters) for one in scale_and_offset(norm))
    if bias is not None:
        offset = offset + _array(bias) * scale
    if isinstance(layer, layers.DepthwiseConv2D):
        factor = scale.reshape(kernel.shape[2:])  # output channel c·m + j
    elif isinstance(layer, layers.Conv2DTranspose):
        factor = scale[:, None]  # (h, w, filters, channels)
    else:
        factor = scale
    return (_array(kernel) * factor).astype(np.float32), offset.astype(np.float32)


def _filters(layer: Any, kernel: np.ndarray) -> int:
    if isinstance(layer, layers.DepthwiseConv2D):
        return int(np.prod(kernel.shape[2:]))
    return kernel.shape[-2 if isinstance(layer, layers.Conv2DTranspose) else -1]


def with_weights(layer: Any, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> Weighted:
    """A plain layer like `layer` with other weights.

    Args:
        layer: a convolution or Dense layer.
        name: of the new one.
        kernel, bias: its weights; bias None: it has none.
    """
    return Weighted(_plain(layer, name, bias is not None), kernel, bias)


class Weighted:
    """A layer, and the weights that it gets with its first call."""

    def __init__(self, layer: Any, kernel: np.ndarray, bias: np.ndarray | None):
        self.layer = layer
        self._weights = [kernel] if bias is None else [kernel, bias]

    def __call__(self, inputs: Any) -> Any:
        """The layer's output."""
        built = self.layer.built
        outputs = self.layer(inputs)
        if not built:
            self.layer.set_weights(self._weights)
        return outputs


def _plain(layer: Any, name: str, use_bias: bool) -> Any:
    """A copy without what matters in training alone."""
    changes: dict[str, Any] = {"use_bias": use_bias, "activity_regularizer": None}
    changes["bias_regularizer"] = changes["bias_constraint"] = None
    start = "depthwise" if isinstance(layer, layers.DepthwiseConv2D) else "kernel"
    changes[f"{start}_regularizer"] = changes[f"{start}_constraint"] = None
    copy = copy_layer(layer, name, **changes)
    dilated: dict[type, Any] = {
        layers.Conv2D: DilatedConv2D,
        layers.DepthwiseConv2D: DilatedDepthwiseConv2D,
    }
    one_op = (
        type(layer) in dilated
        and max(layer.dilation_rate) > 1
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )
    return dilated[type(layer)].from_config(copy.get_config()) if one_op else copy


def _array(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)
