"""Box arithmetic: forms, overlap, and offsets from priors.

Boxes are (x1, y1, x2, y2) relative to the image, keras-cv's "rel_xyxy". Priors are
(cx, cy, w, h), also relative. `keras_cv.bounding_box.convert_format` makes them from
the seven other formats that keras-cv knows.

An object's place is learned as offsets from a prior (Ren et al. 2015, Liu et al.
2016), divided by variances so that every number has about unit size:

    (cx − pcx) / pw / v₀,  (cy − pcy) / ph / v₁,  log(w / pw) / v₂,  log(h / ph) / v₃

Some detectors, keras-cv's RetinaNet among them, have y before x and height before
width: `order` says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.types import Tensor

VARIANCES = (0.1, 0.1, 0.2, 0.2)

# In which order a detector's outputs hold the four offsets.
ORDERS = ("xywh", "yxhw")

# Class numbers that are none.
PADDING = -1
UNLABELLED = -2

# A side of 62.5 times its prior's: no real object has more, and exp can't overflow.
_MAX_LOG_SIZE = math.log(1000.0 / 16.0)
# The smallest side, relative to the image, whose logarithm is taken.
_SMALLEST = 1e-6


class HasPriors(Protocol):
    """Anchors of any kind, such as `Anchors` or `RetinaNetAnchors`."""

    @property
    def priors(self) -> np.ndarray:
        """float32 (P, 4), as (cx, cy, w, h) relative to the image."""


def check_priors(priors: HasPriors | np.ndarray) -> np.ndarray:
    """Accepts `Anchors` or an array of priors; returns them as float32 (P, 4).

    Raises:
        TypeError: if it is neither, or holds no numbers.
        ValueError: for another shape, NaN, or a side that is not positive.
    """
    values = getattr(priors, "priors", priors)
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        fix = "Make them by tfkd.detection.Anchors."
        raise checks.type_error("priors", "Anchors, or an array (P, 4)", priors, fix)
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise checks.type_error("priors", "numbers, as (P, 4)", values)
    values = values.astype(np.float32)
    if values.ndim != 2 or values.shape[1] != 4 or not len(values):
        raise checks.value_error("priors", "at least one prior, as (P, 4)", values)
    if not np.isfinite(values).all() or (values[:, 2:] <= 0).any():
        raise checks.value_error(
            "priors",
            "finite (cx, cy, w, h) with sides above 0",
            values,
            "Are they corners? tfkd.detection.boxes.to_centers turns corners into centers.",
        )
    return values


def serialize_anchors(anchors: HasPriors | np.ndarray) -> dict[str, Any] | list[list[float]]:
    """`Anchors` as their config, an array of priors as numbers: JSON."""
    if hasattr(anchors, "get_config"):
        return keras.saving.serialize_keras_object(anchors)
    return check_priors(anchors).tolist()


def deserialize_anchors(
    config: dict[str, Any] | Sequence[Sequence[float]],
) -> HasPriors | np.ndarray:
    """The inverse of `serialize_anchors`."""
    if isinstance(config, dict):
        return keras.saving.deserialize_keras_object(config)
    return np.asarray(config, np.float32)


def check_variances(variances: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    """Accepts four numbers above 0."""
    values = variances.tolist() if isinstance(variances, np.ndarray) else variances
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        raise checks.value_error("variances", "four numbers above 0", variances)
    a, b, c, d = (float(checks.positive("variances", value)) for value in values)
    return a, b, c, d


def to_corners(boxes: tf.Tensor) -> tf.Tensor:
    """(cx, cy, w, h) → (x1, y1, x2, y2), for tensors (..., 4)."""
    half = boxes[..., 2:] / 2.0
    return tf.concat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def to_centers(boxes: tf.Tensor) -> tf.Tensor:
    """(x1, y1, x2, y2) → (cx, cy, w, h), for tensors (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return tf.concat([(low + high) / 2.0, high - low], -1)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas (...,) of boxes (..., 4) as corners; 0 where a side is not positive."""
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box of `first` with every box of `second`.

    Args:
        first: float (..., N, 4) as corners.
        second: float (..., M, 4) as corners.

    Returns:
        float (..., N, M) in [0, 1]; 0 for boxes without area.

    Example:
        >>> import tensorflow as tf
        >>> from tfkd import detection
        >>> a = tf.constant([[0.0, 0.0, 0.5, 0.5]])
        >>> b = tf.constant([[0.0, 0.0, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])
        >>> detection.iou(a, b).numpy().tolist()
        [[0.5, 0.0]]
    """
    # A side at a time: sixfold faster than on (..., N, M, 2).
    a = [first[..., :, None, k] for k in range(4)]
    b = [second[..., None, :, k] for k in range(4)]
    width = tf.maximum(tf.minimum(a[2], b[2]) - tf.maximum(a[0], b[0]), 0.0)
    height = tf.maximum(tf.minimum(a[3], b[3]) - tf.maximum(a[1], b[1]), 0.0)
    overlap = width * height
    union = area(first)[..., :, None] + area(second)[..., None, :] - overlap
    return tf.math.divide_no_nan(overlap, union)


def encode(
    boxes: tf.Tensor, priors: Tensor, variances: Sequence[float] = VARIANCES, order: str = "xywh"
) -> tf.Tensor:
    """Offsets of boxes from their priors.

    Args:
        boxes: float (..., P, 4) as corners, one for each prior.
        priors: float (P, 4) as centers.
        variances: four numbers that the offsets are divided by, in their order.
        order: of the offsets: "xywh" or "yxhw".

    Returns:
        float (..., P, 4). Finite, with finite gradients, for boxes without area too:
        a side is taken as at least 1e-6 of the image.
    """
    centers = to_centers(boxes)
    sides = tf.maximum(centers[..., 2:], _SMALLEST)
    shift = (centers[..., :2] - priors[..., :2]) / priors[..., 2:]
    offsets = tf.concat([shift, tf.math.log(sides / priors[..., 2:])], -1)
    return _reordered(offsets, order) / tf.constant(variances, offsets.dtype)


def decode_offsets(
    offsets: tf.Tensor, priors: Tensor, variances: Sequence[float] = VARIANCES, order: str = "xywh"
) -> tf.Tensor:
    """The inverse of `encode`: boxes as corners, not clipped to the image.

    Log sizes are limited to log(62.5), so that no network's output overflows.
    """
    offsets = _reordered(offsets * tf.constant(variances, offsets.dtype), order)
    centers = offsets[..., :2] * priors[..., 2:] + priors[..., :2]
    sides = tf.exp(tf.minimum(offsets[..., 2:], _MAX_LOG_SIZE)) * priors[..., 2:]
    return to_corners(tf.concat([centers, sides], -1))


def _reordered(offsets: tf.Tensor, order: str) -> tf.Tensor:
    """From "xywh" to `order`, or back: either is the other's inverse."""
    return offsets if order == "xywh" else tf.gather(offsets, [1, 0, 3, 2], axis=-1)


def clip(boxes: tf.Tensor) -> tf.Tensor:
    """Corners moved into the image."""
    return tf.clip_by_value(boxes, 0.0, 1.0)
