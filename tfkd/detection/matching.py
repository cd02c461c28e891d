"""Matches priors (anchors) with ground-truth objects, and encodes the targets.

As in SSD (Liu et al. 2016, section 2.2), every object is matched with the prior of the
largest IoU, and every other prior whose IoU with some object reaches the threshold is
matched with the object that it overlaps most. If two objects have the same best prior,
both are matched: pairs are assigned by decreasing IoU (bipartite matching).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.detection import boxes as box_math
from tfkd.types import Tensor

# Targets of priors without an object.
BACKGROUND = 0
NO_TARGET = -1


@keras.saving.register_keras_serializable(package="tfkd")
class Matcher:
    """Matches the objects of a batch with priors, and returns a target for every prior.

    Args:
        anchors: `tfkd.detection.Anchors`, or float (P, 4) priors as (cx, cy, w, h)
            relative to the image.
        threshold: IoU in (0, 1] from which a prior is matched with an object.
        ignore_from: IoU in (0, threshold] from which a prior without an object is
            ignored instead of background (RetinaNet: 0.4); None: no prior is ignored.
        variances: four numbers by which the offsets are divided.
        every_object: whether an object is matched with its best prior even if their IoU
            is below the threshold, as in SSD. False: such an object has no prior, as in
            keras-cv's RetinaNet.
        order: order of the offsets, "xywh", or "yxhw" (keras-cv's RetinaNet).

    A call takes {"boxes": float (B, M, 4) as corners relative to the image, "classes":
    int (B, M)}, padded with −1 or ragged, or one image without the batch axis. It returns
    {"boxes": float32 (B, P, 4) offsets, 0 where there is no object, "classes": int32
    (B, P)}: class c as c + 1, 0 for background, −1 for a prior to ignore. Shapes are
    static where those of the input are, so it runs both in `tf.data.Dataset.map` and in a
    training step.

    Objects without area are left out. If there are more objects than priors, the pairs of
    the largest IoU are kept. In an image whose classes are `tfkd.detection.UNLABELLED`
    all priors are ignored. Objects of class `tfkd.detection.IGNORED` take no prior from
    others: of the priors that are left, those that an object there would be matched with,
    or that the band of `ignore_from` would ignore, are ignored.

    Raises:
        TypeError: if `every_object` is not a bool.
        ValueError: for a threshold outside (0, 1], `ignore_from` above it, variances that
            are not positive, an unknown order; in a call, if boxes and classes do not fit together.

    Reference:
        Liu et al. 2016, "SSD: Single shot multibox detector", https://arxiv.org/abs/1512.02325

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from tfkd import detection
        >>> priors = np.array([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]], "float32")
        >>> matcher = detection.Matcher(priors)
        >>> left = {"boxes": tf.constant([[[0.0, 0.0, 0.5, 1.0]]]), "classes": tf.constant([[7]])}
        >>> matcher(left)["classes"].numpy().tolist()
        [[8, 0]]
    """

    def __init__(
        self,
        anchors: box_math.HasPriors | np.ndarray,
        threshold: float = 0.5,
        ignore_from: float | None = None,
        variances: Sequence[float] = box_math.VARIANCES,
        every_object: bool = True,
        order: str = "xywh",
    ):
        self.anchors = anchors
        self.priors = box_math.check_priors(anchors)
        if checks.fraction("threshold", threshold) == 0:
            raise checks.value_error("threshold", "an overlap in (0, 1]", threshold)
        self.threshold = float(threshold)
        if ignore_from is not None:
            ignore_from = float(checks.fraction("ignore_from", ignore_from))
            if not 0 < ignore_from <= threshold:
                expected = f"None, or an overlap in (0, {threshold}], up to the threshold"
                raise checks.value_error("ignore_from", expected, ignore_from)
        self.ignore_from = ignore_from
        self.variances = box_math.check_variances(variances)
        self.every_object = checks.instance("every_object", every_object, bool, "True or False")
        self.order = checks.one_of("order", order, box_math.ORDERS)

    def __call__(self, y: Mapping[str, Tensor]) -> dict[str, tf.Tensor]:
        """Returns a target for every prior, as described for the class."""
        boxes, classes = objects(y)
        if len(classes.shape) == 1:
            single = self({"boxes": boxes[None], "classes": classes[None]})
            return {name: value[0] for name, value in single.items()}
        given, overlap, positive, ignored = self._match(boxes, classes)
        unknown = tf.reduce_any(classes == box_math.UNLABELLED, 1)[:, None]
        positive &= ~unknown
        labels = tf.where(positive, tf.gather(classes, given, batch_dims=1) + 1, BACKGROUND)
        if self.ignore_from is not None:
            ignored |= tf.reduce_max(overlap, 1) >= self.ignore_from
        labels = tf.where((ignored & ~positive) | unknown, NO_TARGET, labels)
        nearest = tf.gather(boxes, given, batch_dims=1)
        offsets = box_math.encode(nearest, self.priors, self.variances, self.order)
        return {"boxes": tf.where(positive[..., None], offsets, 0.0), "classes": labels}

    def _match(self, boxes, classes):
        """Object of each prior (B, P), IoU (B, M, P); which priors are matched, and ignored."""
        has_area = tf.reduce_all(boxes[..., 2:] > boxes[..., :2], -1)
        every = box_math.iou(boxes, box_math.to_corners(tf.constant(self.priors)))

        def only(wanted):
            return tf.where((wanted & has_area)[..., None], every, -1.0)  # below every IoU

        ignored = self._near(only(classes == box_math.IGNORED))
        overlap = only(classes >= 0)
        nearest = tf.argmax(overlap, 1, output_type=tf.int32)
        positive = tf.reduce_max(overlap, 1) >= self.threshold
        if not self.every_object:
            return nearest, overlap, positive, ignored
        forced = bipartite(overlap)
        positive |= forced >= 0
        return tf.where(forced >= 0, forced, nearest), overlap, positive, ignored

    def _near(self, overlap):
        """Priors (B, P) of objects to ignore, whose IoU with the priors is (B, M, P)."""
        near = overlap >= (self.ignore_from or self.threshold)
        if self.every_object:
            near |= (overlap > 0.0) & (overlap == tf.reduce_max(overlap, 2, keepdims=True))
        return tf.reduce_any(near, 1)

    def get_config(self) -> dict[str, Any]:
        """Anchors (as their config, or as numbers) and thresholds, as JSON."""
        return {
            "anchors": box_math.serialize_anchors(self.anchors),
            "threshold": self.threshold,
            "ignore_from": self.ignore_from,
            "variances": list(self.variances),
            "every_object": self.every_object,
            "order": self.order,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Matcher:
        """Makes the matcher that `get_config` described."""
        return cls(**{**config, "anchors": box_math.deserialize_anchors(config["anchors"])})


def objects(y: Mapping[str, Tensor] | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns boxes float32 (B, M, 4) and classes int32 (B, M), M ≥ 1, padded with −1.

    Raises:
        ValueError: if y does not have both, or their shapes do not fit together.
    """
    if not isinstance(y, dict) or not {"boxes", "classes"} <= set(y):
        expected = "objects as {'boxes': (B, M, 4), 'classes': (B, M)}"
        raise checks.value_error("y", expected, y, _fix_of(y))
    boxes, classes = (_dense(y[name]) for name in ("boxes", "classes"))
    boxes, classes = tf.cast(boxes, tf.float32), tf.cast(classes, tf.int32)
    fits = len(boxes.shape) == len(classes.shape) + 1 and len(classes.shape) in (1, 2)
    if not fits or boxes.shape[-1] != 4 or not boxes.shape[:-1].is_compatible_with(classes.shape):
        raise ValueError(
            "`y`: expected boxes (B, M, 4) with classes (B, M), received boxes of shape "
            f"{tuple(boxes.shape)} with classes of shape {tuple(classes.shape)}. Boxes are "
            "(x1, y1, x2, y2) relative to the image, and both are padded with -1."
        )
    count = classes.shape[-1]
    if count:
        return boxes, classes
    # A batch without any object: one row of padding keeps every reduction defined.
    missing = 1 if count == 0 else tf.maximum(1 - tf.shape(classes)[-1], 0)
    pads = [[0, 0]] * (len(classes.shape) - 1) + [[0, missing]]
    boxes = tf.pad(boxes, [*pads, [0, 0]], constant_values=float(box_math.PADDING))
    return boxes, tf.pad(classes, pads, constant_values=box_math.PADDING)


def _fix_of(y: object) -> str | None:
    if isinstance(y, dict) and {"box", "classification"} & set(y):
        return "These look like targets that are already matched: pass the objects themselves."
    return None


def _dense(value: Tensor) -> tf.Tensor:
    if isinstance(value, tf.RaggedTensor):
        shape: list[int | None] = [None] * (value.shape.rank or 0)
        if value.shape.rank == 3:
            shape[-1] = 4
        padding = float(box_math.PADDING) if value.dtype.is_floating else box_math.PADDING
        return value.to_tensor(padding, shape=shape)
    return tf.convert_to_tensor(value)


def bipartite(overlap: tf.Tensor) -> tf.Tensor:
    """Greedy bipartite matching: each object gets a prior of its own, by decreasing IoU.

    It proceeds in rounds: a pair is matched as soon as each is the best of the other among
    those that are left. The result is that of a loop over all pairs sorted by IoU, but
    takes a few rounds instead of one per object. Among equal IoUs the first object wins,
    and for one object the first prior.

    Args:
        overlap: IoU, float (B, M, P); −1 for padding.

    Returns:
        int32 (B, P): the object that each prior is matched with, −1 for none. An object
        that overlaps no free prior has no prior.
    """
    shape = tf.shape(overlap)
    batch, count, priors = shape[0], shape[1], shape[2]
    earlier = tf.range(count)[None, :, None] < tf.range(count)[None, None, :]
    rows = tf.broadcast_to(tf.range(batch)[:, None], (batch, count))

    def best_of(left):
        best = tf.argmax(left, 2, output_type=tf.int32)
        return best, tf.gather(left, best, axis=2, batch_dims=2)

    def left_to_do(forced, left, best, value):
        return tf.reduce_any(value > 0.0)

    def make_pairs(forced, left, best, value):
        # rival[b, h, g]: the IoU of object h with the best prior of object g. An earlier
        # object h of equal IoU may have another best prior in this round and still get this
        # one in a later round, so g has to wait.
        rival = tf.gather(left, best, axis=2, batch_dims=1)
        beaten = (rival > value[:, None, :]) | ((rival == value[:, None, :]) & earlier)
        won = (value > 0.0) & ~tf.reduce_any(beaten, 1)
        pairs = tf.stack([rows, best], -1)
        # Objects that are not matched in this round add 0.
        numbers = tf.where(won, tf.range(1, count + 1)[None], 0)
        new = tf.scatter_nd(pairs, numbers, (batch, priors)) - 1
        new.set_shape(forced.shape)
        left = tf.where((new >= 0)[:, None, :] | won[..., None], -1.0, left)
        return (tf.where(new >= 0, new, forced), left, *best_of(left))

    start = tf.fill((batch, priors), -1)
    start.set_shape((overlap.shape[0], overlap.shape[2]))
    forced, *_ = tf.while_loop(left_to_do, make_pairs, (start, overlap, *best_of(overlap)))
    return forced
