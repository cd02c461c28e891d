"""Bounding boxes: formats, intersection over union, and encoding as offsets from priors.

Boxes are (x1, y1, x2, y2) relative to the image, keras-cv's "rel_xyxy". Priors are
(cx, cy, w, h), also relative. `keras_cv.bounding_box.convert_format` converts from the
seven other formats of keras-cv.

A detector learns a box as offsets from a prior (Ren et al. 2015, Liu et al. 2016),
divided by variances so that all offsets are of the order of 1:

    (cx − pcx) / pw / v₀,  (cy − pcy) / ph / v₁,  log(w / pw) / v₂,  log(h / ph) / v₃

Some detectors, such as keras-cv's RetinaNet, have y before x and height before width:
the argument `order` names the order.
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

# The variances of SSD and Faster R-CNN.
VARIANCES = (0.1, 0.1, 0.2, 0.2)

# Orders of the four offsets in a detector's outputs.
ORDERS = ("xywh", "yxhw")

# Special class numbers: a row that is padding, an image that has not been labelled, and an
# object to ignore: what is predicted there is neither right nor wrong (a crowd in COCO).
PADDING = -1
UNLABELLED = -2
IGNORED = -3

# The largest decoded side is 62.5 times that of its prior, so that exp can't overflow
# (the limit of torchvision and Detectron2).
_MAX_LOG_SIZE = math.log(1000.0 / 16.0)
# The smallest side, relative to the image, whose logarithm is taken.
_SMALLEST = 1e-6


class HasPriors(Protocol):
    """Anchors of any kind, such as `Anchors` or `RetinaNetAnchors`."""

    @property
    def priors(self) -> np.ndarray:
        """float32 (P, 4), as (cx, cy, w, h) relative to the image."""


def has_box(classes: Any) -> Any:
    """Which rows hold a box, of an object or of one to ignore: bool, like the classes."""
    return (classes >= 0) | (classes == IGNORED)


def check_priors(priors: HasPriors | np.ndarray) -> np.ndarray:
    """Accepts `Anchors` or an array of priors; returns float32 (P, 4).

    Raises:
        TypeError: if it is neither, or not numeric.
        ValueError: for another shape, NaN, or a side that is not positive.
    """
    values = getattr(priors, "priors", priors)
    if not hasattr(values, "shape") or not hasattr(values, "dtype"):
        fix = "Make them with tfkd.detection.Anchors."
        raise checks.type_error("priors", "Anchors, or an array (P, 4)", priors, fix)
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise checks.type_error("priors", "numbers, as (P, 4)", values)
    values = values.astype(np.float32)
    if values.ndim != 2 or values.shape[1] != 4 or not len(values):
        raise checks.value_error("priors", "at least one prior, as (P, 4)", values)
    if not np.isfinite(values).all() or (values[:, 2:] <= 0).any():
        fix = "Are they corners? tfkd.detection.boxes.to_centers turns corners into centers."
        raise checks.value_error("priors", "finite (cx, cy, w, h) with sides above 0", values, fix)
    return values


def serialize_anchors(anchors: HasPriors | np.ndarray) -> dict[str, Any] | list[list[float]]:
    """Serializes `Anchors` as their config and an array of priors as lists, for JSON."""
    if hasattr(anchors, "get_config"):
        return keras.saving.serialize_keras_object(anchors)
    return check_priors(anchors).tolist()


def deserialize_anchors(config: dict[str, Any] | list[list[float]]) -> HasPriors | np.ndarray:
    """Restores what `serialize_anchors` returned."""
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
    """Converts (cx, cy, w, h) to (x1, y1, x2, y2), for tensors (..., 4)."""
    half = boxes[..., 2:] / 2.0
    return tf.concat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def to_centers(boxes: tf.Tensor) -> tf.Tensor:
    """Converts (x1, y1, x2, y2) to (cx, cy, w, h), for tensors (..., 4)."""
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
    # One coordinate at a time: six times as fast as with tensors (..., N, M, 2).
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
    """Encodes boxes as offsets from their priors.

    Args:
        boxes: float (..., P, 4) as corners, one for each prior.
        priors: float (P, 4) as centers.
        variances: four numbers by which the offsets are divided, in the order of these.
        order: order of the offsets, "xywh" or "yxhw".

    Returns:
        float (..., P, 4), finite and with finite gradients also for boxes without area,
        whose sides are taken to be 1e-6 of the image.
    """
    centers = to_centers(boxes)
    sides = tf.maximum(centers[..., 2:], _SMALLEST)
    shift = (centers[..., :2] - priors[..., :2]) / priors[..., 2:]
    offsets = tf.concat([shift, tf.math.log(sides / priors[..., 2:])], -1)
    return _reordered(offsets, order) / tf.constant(variances, offsets.dtype)


def decode_offsets(
    offsets: tf.Tensor, priors: Tensor, variances: Sequence[float] = VARIANCES, order: str = "xywh"
) -> tf.Tensor:
    """Decodes offsets, as the inverse of `encode`, to corners not clipped to the image.

    Logarithms of sizes are limited to log(62.5), so that no output overflows.
    """
    offsets = _reordered(offsets * tf.constant(variances, offsets.dtype), order)
    centers = offsets[..., :2] * priors[..., 2:] + priors[..., :2]
    sides = tf.exp(tf.minimum(offsets[..., 2:], _MAX_LOG_SIZE)) * priors[..., 2:]
    return to_corners(tf.concat([centers, sides], -1))


def _reordered(offsets: tf.Tensor, order: str) -> tf.Tensor:
    """Converts offsets from "xywh" to `order` or back; the permutation is its own inverse."""
    return offsets if order == "xywh" else tf.gather(offsets, [1, 0, 3, 2], axis=-1)


def clip(boxes: tf.Tensor) -> tf.Tensor:
    """Clips corners to the image."""
    return tf.clip_by_value(boxes, 0.0, 1.0)
