"""Batch normalization and its kin as one scale and offset for each channel, and their folding.

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

layers = keras.layers


def scale_and_offset(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """(k, o) of a layer that computes k·x + o with one k and one o for each channel.

    Args:
        norm: a built layer that `is_per_channel` holds true for: a batch normalization
            or Normalization over the last axis, a LayerScale, or a Rescaling.

    Returns:
        Arrays of shape (channels,), of a Rescaling by numbers (), in float64.
    """
    if isinstance(norm, BatchNormalizationBase):
        variance = float64_array(norm.moving_variance) + norm.epsilon
        gamma = 1.0 if norm.gamma is None else float64_array(norm.gamma)
        beta = 0.0 if norm.beta is None else float64_array(norm.beta)
        scale = gamma / np.sqrt(variance)
        return scale, beta - float64_array(norm.moving_mean) * scale
    if isinstance(norm, layers.Normalization):
        mean = float64_array(norm.mean).reshape(-1)
        # Keras divides by no less than this.
        deviation = np.maximum(
            np.sqrt(float64_array(norm.variance)), keras.backend.epsilon()
        ).reshape(-1)
        if norm.invert:
            return deviation, mean
        return 1.0 / deviation, -mean / deviation
    if isinstance(norm, LayerScale):
        gamma = float64_array(norm.gamma)
        return gamma, np.zeros_like(gamma)
    scale, offset = (np.asarray(value, np.float64) for value in (norm.scale, norm.offset))
    # (1, 1, C) counts as (C,).
    return scale.reshape(scale.shape[-1:]), offset.reshape(offset.shape[-1:])


def float64_array(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


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
