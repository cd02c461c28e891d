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

from tfkd.keras_internals import BatchNormalizationBase, LayerScale
from tfkd.networks.batch_norm import float64_array, scale_and_offset
from tfkd.networks.rebuild import copy_layer

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


def is_per_channel(norm: Any, shape: Sequence[int | None]) -> bool:
    """True for a layer that computes k·x + o with one k and one o for each channel.

    Args:
        norm: a built layer of any kind.
        shape: of what it reads, with the batch; channels are the last axis.
    """
    if isinstance(norm, (BatchNormalizationBase, layers.Normalization)):
        axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
        last = all(axis is None or axis % len(shape) == len(shape) - 1 for axis in axes)
        return last and (_inherits_call(norm) or _computes_so(norm, len(shape)))
    if type(norm) is LayerScale:
        return tuple(norm.gamma.shape) == (shape[-1],)
    if type(norm) is layers.Rescaling:
        return all(_is_row(value, shape) for value in (norm.scale, norm.offset))
    return False


def is_norm_elsewhere(norm: Any, shape: Sequence[int | None]) -> bool:
    """True for one of Keras's batch normalizations over other axes than the last."""
    return (
        isinstance(norm, BatchNormalizationBase)
        and _inherits_call(norm)
        and not is_per_channel(norm, shape)
    )


def _is_row(value: Any, shape: Sequence[int | None]) -> bool:
    """One number, or one for each channel, however many axes of size 1 stand before."""
    sizes = np.shape(value)
    outer = all(size == 1 for size in sizes[:-1])
    return len(sizes) <= len(shape) and outer and (not sizes or sizes[-1] in (1, shape[-1]))


def _inherits_call(norm: Any) -> bool:
    """False for a user's class with a `call` of its own, which may do anything."""
    return type(norm).call in (BatchNormalizationBase.call, layers.Normalization.call)


def _computes_so(norm: Any, rank: int) -> bool:
    """Whether the layer's values are those of its scale and offset."""
    scale, offset = scale_and_offset(norm)
    x = np.random.default_rng(0).normal(0, 3, (4, *[1] * (rank - 2), scale.size))
    try:
        with tf.init_scope():
            made = norm(tf.constant(x, norm.compute_dtype), training=False)
        return bool(np.allclose(made, x * scale + offset, rtol=1e-3, atol=1e-3))
    except Exception:  # It asks for another shape, or more arguments: nothing is known of it.
        return False


def as_rescaling(norm: Any, rank: int, name: str) -> Any:
    """A batch normalization over any axes as a Rescaling, which every converter takes.

    Args:
        norm: built, with Keras's own `call`.
        rank: of what it reads, with the batch.
        name: of the new layer.
    """
    axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
    axes = [axis % rank for axis in axes]
    scale, offset = scale_and_offset(norm)
    sizes = [dict(norm.input_spec.axes)[axis] if axis in axes else 1 for axis in range(1, rank)]
    return layers.Rescaling(scale.reshape(sizes), offset.reshape(sizes), name=name)


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
        offset = offset + float64_array(bias) * scale
    if isinstance(layer, layers.DepthwiseConv2D):
        factor = scale.reshape(kernel.shape[2:])  # output channel c·m + j
    elif isinstance(layer, layers.Conv2DTranspose):
        factor = scale[:, None]  # (h, w, filters, channels)
    else:
        factor = scale
    return (float64_array(kernel) * factor).astype(np.float32), offset.astype(np.float32)


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
