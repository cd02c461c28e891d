"""Pseudo-labels for detection: the teacher's detections as objects where labels are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.detection import boxes as box_math
from tfkd.detection.decoding import decode
from tfkd.detection.matching import objects
from tfkd.types import Tensor

WHERE = ("unlabelled", "missing", "everywhere")


@keras.saving.register_keras_serializable(package="tfkd")
class TeacherBoxes:
    """Adds the teacher's detections to the objects of a batch, as pseudo-labels.

    `tfkd.losses.MultiBoxSelection` calls it once a step with the outputs that the
    teacher has already computed.

    Args:
        anchors: the teacher's `Anchors`, or float (P, 4) priors.
        score_threshold: confidence above which a detection becomes an object.
        where: "unlabelled": in images whose classes are `tfkd.detection.UNLABELLED`;
            labelled images keep their labels. "missing": also in labelled images, where
            no labelled box of any class has an IoU of `overlap` or more with the
            detection. "everywhere": instead of all labels.
        overlap: IoU from which a detection belongs to a labelled object.
        iou_threshold: of two detections of a class with a higher IoU, the one with the
            lower score is suppressed.
        max_boxes: the largest number of detections of an image.
        background, boxes, classes, order: as in `tfkd.detection.decode`.
        variances: the numbers by which the offsets were divided in training.

    A call takes the objects {"boxes": (B, M, 4), "classes": (B, M)} and the teacher's
    outputs, and returns objects with M + `max_boxes` rows.

    Raises:
        ValueError: for a threshold outside [0, 1], or an unknown `where`.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from tfkd import detection
        >>> priors = np.array([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]], "float32")
        >>> add = detection.TeacherBoxes(priors, max_boxes=2)
        >>> y = {"boxes": tf.fill((1, 1, 4), -1.0), "classes": [[detection.UNLABELLED]]}
        >>> teacher = {"boxes": tf.zeros((1, 2, 4)), "classes": [[[0.0, 9.0], [9.0, 0.0]]]}
        >>> add(y, teacher)["classes"].numpy().tolist()
        [[-1, 0, -1]]
    """

    def __init__(
        self,
        anchors: box_math.HasPriors | np.ndarray,
        score_threshold: float = 0.5,
        where: str = "unlabelled",
        overlap: float = 0.5,
        iou_threshold: float = 0.45,
        max_boxes: int = 50,
        background: bool = True,
        boxes: str = "boxes",
        classes: str = "classes",
        variances: Sequence[float] = box_math.VARIANCES,
        order: str = "xywh",
    ):
        self.anchors = anchors
        self.priors = box_math.check_priors(anchors)
        self.where = checks.one_of("where", where, WHERE)
        self.overlap = float(checks.fraction("overlap", overlap))
        self._options = {
            "score_threshold": float(checks.fraction("score_threshold", score_threshold)),
            "iou_threshold": float(checks.fraction("iou_threshold", iou_threshold)),
            "background": checks.instance("background", background, bool, "True or False"),
            "boxes": checks.instance("boxes", boxes, str, "a name of an output"),
            "classes": checks.instance("classes", classes, str, "a name of an output"),
            "variances": box_math.check_variances(variances),
            "order": checks.one_of("order", order, box_math.ORDERS),
        }
        self.max_boxes = checks.positive_int("max_boxes", max_boxes)

    def __call__(
        self, y: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns the objects of a batch together with the teacher's detections."""
        boxes, labels = objects(y)
        # Four candidates per kept box suffice; the cost of NMS is quadratic in their number.
        options = {**self._options, "candidates": 4 * self.max_boxes}
        found = decode(teacher, self.priors, max_detections=self.max_boxes, **options)
        unlabelled = tf.reduce_any(labels == box_math.UNLABELLED, 1, keepdims=True)
        if self.where == "everywhere":
            wanted = tf.ones_like(found["classes"], tf.bool)
            labels = tf.fill(tf.shape(labels), box_math.PADDING)
        else:
            labels = tf.where(unlabelled, box_math.PADDING, labels)
            wanted = tf.broadcast_to(unlabelled, tf.shape(found["classes"]))
            if self.where == "missing":
                # Padding becomes a box without area, which overlaps nothing.
                real = tf.where((labels >= 0)[..., None], boxes, -1.0)
                shared = box_math.iou(found["boxes"], real)
                wanted |= tf.reduce_max(shared, 2) < self.overlap
        kinds = tf.where(wanted, found["classes"], box_math.PADDING)
        boxes = tf.concat([boxes, found["boxes"]], 1)
        return {"boxes": boxes, "classes": tf.concat([labels, kinds], 1)}

    def get_config(self) -> dict[str, Any]:
        """Anchors (as their config, or as numbers) and settings, as JSON."""
        options = {**self._options, "variances": list(self._options["variances"])}
        return {
            "anchors": box_math.serialize_anchors(self.anchors),
            "where": self.where,
            "overlap": self.overlap,
            "max_boxes": self.max_boxes,
            **options,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TeacherBoxes:
        """Makes the object that `get_config` described."""
        return cls(**{**config, "anchors": box_math.deserialize_anchors(config["anchors"])})
