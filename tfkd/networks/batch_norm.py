"""Batch normalization and its kin as one scale and one offset for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.keras_internals import BatchNormalizationBase, LayerScale


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
    if isinstance(norm, keras.layers.Normalization):
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
