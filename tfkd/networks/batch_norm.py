"""Batch-norm folding: normalization layers as a per-channel affine map, merged into a convolution.

In inference a batch normalization is y = k·x + o with k = γ/√(σ² + ε) and
o = β − μ·k per channel. After a convolution whose kernel is s·q, with integers q
and one scale s per output channel, the folded kernel is (s·k)·q: the scales change,
the integers do not.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import ArrayLike

from tfkd.keras_internals import BatchNormalizationBase, LayerScale

layers = keras.layers


def scale_and_offset(norm: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Scale k and offset o of a layer that computes k·x + o per channel.

    Args:
        norm: a built layer for which `is_per_channel` is true: a batch normalization
            or Normalization over the last axis, a LayerScale, or a Rescaling.

    Returns:
        (k, o) in float64, of shape (channels,), or () for a Rescaling by scalars.
    """
    if isinstance(norm, BatchNormalizationBase):
        variance = float64_array(norm.moving_variance) + norm.epsilon
        gamma = 1.0 if norm.gamma is None else float64_array(norm.gamma)
        beta = 0.0 if norm.beta is None else float64_array(norm.beta)
        scale = gamma / np.sqrt(variance)
        return scale, beta - float64_array(norm.moving_mean) * scale
    if isinstance(norm, layers.Normalization):
        mean = float64_array(norm.mean).reshape(-1)
        # Keras clips the standard deviation at epsilon before it divides.
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
    # A Rescaling may hold its numbers as (1, 1, C) for broadcasting.
    return scale.reshape(scale.shape[-1:]), offset.reshape(offset.shape[-1:])


def float64_array(value: ArrayLike) -> np.ndarray:
    """An array or variable as a float64 array, so that folding rounds once only, at its end."""
    return np.asarray(value, np.float64)


def is_per_channel(norm: keras.layers.Layer, shape: Sequence[int | None]) -> bool:
    """True for a layer that computes k·x + o with one scale k and offset o per channel.

    Args:
        norm: a built layer of any kind.
        shape: shape of its input, including the batch axis; channels come last.
    """
    if isinstance(norm, (BatchNormalizationBase, layers.Normalization)):
        axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
        last = all(axis is None or axis % len(shape) == len(shape) - 1 for axis in axes)
        return last and (_inherits_call(norm) or _is_affine(norm, len(shape)))
    if type(norm) is LayerScale:
        return tuple(norm.gamma.shape) == (shape[-1],)
    if type(norm) is layers.Rescaling:
        return all(_is_row(value, shape) for value in (norm.scale, norm.offset))
    return False


def is_norm_elsewhere(norm: keras.layers.Layer, shape: Sequence[int | None]) -> bool:
    """True for one of Keras's batch normalizations over an axis other than the last."""
    return (
        isinstance(norm, BatchNormalizationBase)
        and _inherits_call(norm)
        and not is_per_channel(norm, shape)
    )


def _is_row(value: ArrayLike, shape: Sequence[int | None]) -> bool:
    """True for a scalar, or one number per channel after any number of axes of size 1."""
    sizes = np.shape(value)
    outer = all(size == 1 for size in sizes[:-1])
    return len(sizes) <= len(shape) and outer and (not sizes or sizes[-1] in (1, shape[-1]))


def _inherits_call(norm: Any) -> bool:
    """False for a subclass that overrides `call` and may compute anything."""
    return type(norm).call in (BatchNormalizationBase.call, layers.Normalization.call)


def _is_affine(norm: Any, rank: int) -> bool:
    """Whether the layer's outputs on random inputs equal its scale and offset applied."""
    scale, offset = scale_and_offset(norm)
    # Spread enough to reveal clipping and other nonlinearities.
    x = np.random.default_rng(0).normal(0, 3, (4, *[1] * (rank - 2), scale.size))
    try:
        with tf.init_scope():
            made = norm(tf.constant(x, norm.compute_dtype), training=False)
        return bool(np.allclose(made, x * scale + offset, rtol=1e-3, atol=1e-3))
    except Exception:  # A custom layer may want another shape or more arguments.
        return False


def as_rescaling(
    norm: keras.layers.BatchNormalization, rank: int, name: str
) -> keras.layers.Rescaling:
    """A batch normalization over any axes as a Rescaling, which every converter accepts.

    Args:
        norm: a built layer with Keras's own `call`.
        rank: rank of its input, including the batch axis.
        name: name of the new layer.
    """
    axes = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
    axes = [axis % rank for axis in axes]
    scale, offset = scale_and_offset(norm)
    sizes = [dict(norm.input_spec.axes)[axis] if axis in axes else 1 for axis in range(1, rank)]
    return layers.Rescaling(scale.reshape(sizes), offset.reshape(sizes), name=name)


def folded(
    layer: keras.layers.Layer, kernel: np.ndarray, bias: np.ndarray | None, norm: keras.layers.Layer
) -> tuple[np.ndarray, np.ndarray]:
    """Folds the normalization that follows a layer into the layer's kernel and bias.

    Args:
        layer: a convolution (regular, depthwise or transposed) or a Dense layer.
        kernel: its kernel.
        bias: its bias of shape (filters,), or None.
        norm: the normalization, a layer that `scale_and_offset` accepts.

    Returns:
        (kernel of the same shape, bias of shape (filters,)), both float32.
    """
    filters = _filters(layer, kernel)
    scale, offset = (np.broadcast_to(one, filters) for one in scale_and_offset(norm))
    if bias is not None:
        offset = offset + float64_array(bias) * scale
    if isinstance(layer, layers.DepthwiseConv2D):
        # Kernel (h, w, channels, multiplier m); output channel c·m + j is its [..., c, j].
        factor = scale.reshape(kernel.shape[2:])
    elif isinstance(layer, layers.Conv2DTranspose):
        factor = scale[:, None]  # The kernel is (h, w, filters, channels).
    else:
        factor = scale
    return (float64_array(kernel) * factor).astype(np.float32), offset.astype(np.float32)


def _filters(layer: Any, kernel: np.ndarray) -> int:
    if isinstance(layer, layers.DepthwiseConv2D):
        return int(np.prod(kernel.shape[2:]))
    return kernel.shape[-2 if isinstance(layer, layers.Conv2DTranspose) else -1]
