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
# Thresholds that are fitted are at least LEAST, since what scores less is hardly an object
# however few there are, and at most DEFAULT.
LEAST, DEFAULT = 0.1, 0.5


@keras.saving.register_keras_serializable(package="tfkd")
class TeacherBoxes:
    """Adds the teacher's detections to the objects of a batch, as pseudo-labels.

    `tfkd.losses.MultiBoxSelection` calls it once a step with the outputs that the
    teacher has already computed.

    Args:
        anchors: the teacher's `Anchors`, or float (P, 4) priors.
        score_threshold: confidence above which a detection becomes an object; one number,
            or one for each class. None: 0.5, but `tfkd.data.teacher_labels` fits one for
            each class to the labelled images if `where` is "unlabelled".
        ignore_from: confidence above which another detection becomes an object to ignore
            (`tfkd.detection.IGNORED`): there the student learns neither the object nor
            background. None: what is not above `score_threshold` is background.
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
        ValueError: for a threshold outside [0, 1], or an unknown `where`; in a call, if there
            are not as many thresholds as classes.

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
        score_threshold: float | Sequence[float] | None = None,
        where: str = "unlabelled",
        overlap: float = 0.5,
        iou_threshold: float = 0.45,
        max_boxes: int = 50,
        background: bool = True,
        boxes: str = "boxes",
        classes: str = "classes",
        variances: Sequence[float] = box_math.VARIANCES,
        order: str = "xywh",
        ignore_from: float | None = None,
    ):
        self.anchors = anchors
        self.priors = box_math.check_priors(anchors)
        self.where = checks.one_of("where", where, WHERE)
        self.overlap = float(checks.fraction("overlap", overlap))
        self.score_threshold = checks.optional(_thresholds, "score_threshold", score_threshold)
        if ignore_from is not None:
            ignore_from = float(checks.fraction("ignore_from", ignore_from))
        self.ignore_from = ignore_from
        self._options = {
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
        return self.add(y, self.detect(teacher))

    def detect(self, teacher: Mapping[str, Tensor]) -> dict[str, tf.Tensor]:
        """Decodes the teacher's outputs to all detections that may have an effect."""
        limits = np.ravel(self._limits())
        lowest = min(limits) if self.ignore_from is None else min(*limits, self.ignore_from)
        # Four candidates per kept box suffice; the cost of NMS is quadratic in their number.
        found = decode(
            teacher,
            self.priors,
            score_threshold=float(lowest),
            max_detections=self.max_boxes,
            candidates=4 * self.max_boxes,
            **self._options,
        )
        logits = tf.convert_to_tensor(teacher[self._options["classes"]])
        classes = logits.shape[-1] - self._options["background"]
        if len(limits) not in (1, classes):
            expected = f"one number, or one for each of the {classes} classes"
            raise checks.value_error("score_threshold", expected, self.score_threshold)
        return found

    def add(self, y: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, tf.Tensor]:
        """Returns the objects of a batch together with what `detect` returned."""
        boxes, labels = objects(y)
        kinds = self._judged(found)
        unlabelled = tf.reduce_any(labels == box_math.UNLABELLED, 1, keepdims=True)
        if self.where == "everywhere":
            wanted = tf.ones_like(kinds, tf.bool)
            labels = tf.fill(tf.shape(labels), box_math.PADDING)
        else:
            labels = tf.where(unlabelled, box_math.PADDING, labels)
            wanted = tf.broadcast_to(unlabelled, tf.shape(kinds))
            if self.where == "missing":
                # Padding becomes a box without area, which overlaps nothing.
                real = tf.where(box_math.has_box(labels)[..., None], boxes, -1.0)
                shared = box_math.iou(found["boxes"], real)
                wanted |= tf.reduce_max(shared, 2) < self.overlap
        kinds = tf.where(wanted, kinds, box_math.PADDING)
        boxes = tf.concat([boxes, found["boxes"]], 1)
        return {"boxes": boxes, "classes": tf.concat([labels, kinds], 1)}

    def _limits(self) -> float | tuple[float, ...]:
        return DEFAULT if self.score_threshold is None else self.score_threshold

    def _judged(self, found: Mapping[str, Tensor]) -> tf.Tensor:
        """The classes of detections: objects, objects to ignore, and padding."""
        kinds, scores, limits = found["classes"], found["confidence"], self._limits()
        if isinstance(limits, tuple):
            limits = tf.gather(tf.constant(limits), tf.maximum(kinds, 0))
        low = 1.0 if self.ignore_from is None else self.ignore_from
        doubtful = tf.where(scores > low, box_math.IGNORED, box_math.PADDING)
        return tf.where(scores > limits, kinds, doubtful)

    def get_config(self) -> dict[str, Any]:
        """Anchors (as their config, or as numbers) and settings, as JSON."""
        options = {**self._options, "variances": list(self._options["variances"])}
        several = isinstance(self.score_threshold, tuple)
        return {
            "anchors": box_math.serialize_anchors(self.anchors),
            "score_threshold": list(self.score_threshold) if several else self.score_threshold,
            "ignore_from": self.ignore_from,
            "where": self.where,
            "overlap": self.overlap,
            "max_boxes": self.max_boxes,
            **options,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TeacherBoxes:
        """Makes the object that `get_config` described."""
        return cls(**{**config, "anchors": box_math.deserialize_anchors(config["anchors"])})


def fit_thresholds(found: Mapping[str, np.ndarray], counts: Sequence[float]) -> tuple[float, ...]:
    """Lowers the score threshold of classes of which fewer objects are found than expected.

    A teacher that has learned few labels is sure of the frequent classes alone; at one
    threshold for all it misses most objects of the others. The threshold of such a class is
    the one that as many detections pass as objects are expected (adaptive thresholds: Chen
    et al. 2022, "Label matching semi-supervised object detection",
    https://arxiv.org/abs/2206.06608).

    Args:
        found: detections {"confidence": (N, K), "classes": (N, K)}, padded with class -1.
        counts: the expected number of objects of each class in these N images.

    Returns:
        A threshold for each class, halfway between the last detection that passes and the
        first that does not, from 0.1 to 0.5.

    Example:
        >>> from tfkd.detection import fit_thresholds
        >>> found = {
        ...     "confidence": np.array([[0.9, 0.6, 0.3], [0.7, 0.4, 0.0]]),
        ...     "classes": np.array([[0, 0, 1], [0, 1, -1]]),
        ... }
        >>> [round(value, 2) for value in fit_thresholds(found, [2, 1])]
        [0.5, 0.35]
    """
    fitted = []
    for kind, count in enumerate(counts):
        scores = np.sort(np.asarray(found["confidence"])[np.asarray(found["classes"]) == kind])
        # From 1 above all scores down to 0 below them.
        steps = np.concatenate([[1.0], scores[::-1], [0.0]])
        last = min(round(float(count)), len(scores))
        fitted.append(float(np.clip(steps[last : last + 2].mean(), LEAST, DEFAULT)))
    return tuple(fitted)


def _thresholds(name: str, value: Any) -> float | tuple[float, ...]:
    """One checked threshold, or one for each class."""
    if np.ndim(value) != 1 or not len(value):
        return float(checks.fraction(name, value))
    return tuple(float(checks.fraction(name, number)) for number in value)
