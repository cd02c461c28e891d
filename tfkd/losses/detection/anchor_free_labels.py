"""Loss on the labels of an anchor-free detector: task-aligned assignment, BCE and CIoU.

The model's own label encoder assigns objects to points by the network's current
predictions (task-aligned assignment: Feng et al. 2021, TOOD). Both terms are those of
`YOLOV8Detector.compute_loss` in keras-cv, as terms of a Distiller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.detection.boxes import IGNORED, UNLABELLED
from tfkd.detection.keras_cv_models import check_size, import_keras_cv
from tfkd.detection.matching import objects
from tfkd.losses.base import Elements, ElementwiseLoss, Shared, only, register
from tfkd.losses.detection.anchor_free import DenseHead
from tfkd.losses.detection.selection import Objects, Outputs

STRIDES = (8, 16, 32)  # of the levels P3, P4 and P5, in pixels


class Assigned(NamedTuple):
    """Targets for all points of one batch; lengths are in units of the point's stride.

    Attributes:
        boxes: float32 (B, P, 4): corners of the object, or of a unit box without one.
        scores: float32 (B, P, C): the alignment of the point with its object, in the
            channel of the object's class, 0 in all others.
        predicted: float32 (B, P, 4): the student's corners, with their gradient, or those
            of a unit box without an object.
        weight: float32 (B, P): the sum of the scores, 0 without an object.
        known: bool (B, P): whether the point counts: the image has been labelled, and the point
            has an object or is in none to ignore (`tfkd.detection.IGNORED`).
        count: float32 scalar: Σ weight of the batch.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    predicted: tf.Tensor
    weight: tf.Tensor
    known: tf.Tensor
    count: tf.Tensor


@register
class DenseAssignment(DenseHead):
    """Assigns objects to the points of a detector's grids by the model's own label encoder.

    Args:
        encoder: the model's `label_encoder`: keras-cv's YOLOV8LabelEncoder, or a function
            of the same arguments (scores, boxes, points, classes, objects' boxes, mask).
        image_size: (height, width) in pixels.
        strides: pixels between the points of each grid, the finest grid first.
        boxes, classes, from_logits: as in `tfkd.losses.DenseSoftTarget`.

    Raises:
        TypeError: if the encoder can't be called.
        ValueError: for a size or a stride that is not positive.

    Reference:
        Feng et al. 2021, "TOOD: Task-aligned one-stage object detection",
        https://arxiv.org/abs/2108.07755
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        image_size: Sequence[int],
        strides: Sequence[int] = STRIDES,
        boxes: str = "boxes",
        classes: str = "classes",
        from_logits: bool = False,
    ):
        self.encoder = checks.function("encoder", encoder)
        self.image_size = check_size(image_size)
        self.strides = tuple(checks.positive_int("strides", stride) for stride in strides)
        self._read_head(boxes, classes, from_logits)

    def once(self, shared: Shared | None, y: Objects | None, student: Outputs) -> Assigned:
        """Returns the assignment of this step, which the first loss that needs it computes."""
        if shared is None:
            return self(y, student)
        return shared.once(self, lambda: self(y, student))

    def __call__(self, y: Objects | None, student: Outputs) -> Assigned:
        """Assigns the objects of a batch.

        Args:
            y: objects, in the form that `tfkd.detection.Matcher` accepts.
            student: outputs of the student, a dict.
        """
        points, strides = self._points()
        scores = self.scores(student, "student")
        corners = self._corners(student, points)
        boxes, classes, real, ignored = self._objects(y)
        # keras-cv's encoder takes lengths in pixels and classes as floats.
        p, predicted = tf.sigmoid(tf.stop_gradient(scores)), tf.stop_gradient(corners) * strides
        kinds = tf.cast(classes, tf.float32)
        args = (p, predicted, points * strides, kinds, boxes, real[..., None])
        target, fit, _ = self.encoder(*args)
        fit = tf.stop_gradient(tf.cast(fit, tf.float32))
        weight = tf.reduce_sum(fit, -1)
        matched = (weight > 0.0)[..., None]
        labelled = tf.reduce_all(classes != UNLABELLED, 1, keepdims=True)
        free = matched[..., 0] | ~_inside(points * strides, ignored)
        # For points without an object keras-cv's encoder returns boxes without area, whose
        # CIoU and its gradient are NaN in a graph, and 0 · NaN is NaN: use unit boxes.
        unit = tf.constant([0.0, 0.0, 1.0, 1.0])
        return Assigned(
            boxes=tf.where(matched, tf.stop_gradient(target) / strides, unit),
            scores=fit,
            predicted=tf.where(matched, corners, unit),
            weight=weight,
            known=labelled & free,
            count=tf.reduce_sum(weight),
        )

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (P, 2) as (x, y), in units of their strides; and the strides (P, 1)."""
        rows, sizes = [], []
        for stride in self.strides:
            height, width = (-(-side // stride) for side in self.image_size)
            y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
            rows.append(np.stack([x.ravel(), y.ravel()], 1))
            sizes.append(np.full((height * width, 1), stride))
        return np.concatenate(rows).astype("float32"), np.concatenate(sizes).astype("float32")

    def _corners(self, student: Outputs, points: np.ndarray) -> tf.Tensor:
        """Corners of the student's boxes, float32 (B, P, 4), in units of the stride."""
        logits = self.distances(student, "student")
        if logits.shape[1] not in (None, len(points)):
            expected = f"a model with {len(points)} points, as {self.image_size} pixels have"
            raise checks.value_error("student", expected, int(logits.shape[1]))
        bins = tf.range(logits.shape[-1], dtype=tf.float32)
        # The expected distance (Li et al. 2020).
        distances = tf.reduce_sum(tf.nn.softmax(logits) * bins, -1)
        return tf.concat([points - distances[..., :2], points + distances[..., 2:]], -1)

    def _objects(self, y: Objects | None) -> tuple[tf.Tensor, ...]:
        """Boxes in pixels, classes, a mask of objects; and the boxes of objects to ignore, or 0."""
        boxes, classes = objects(y)
        real = (classes >= 0) & tf.reduce_all(boxes[..., 2:] > boxes[..., :2], -1)
        height, width = self.image_size
        pixels = boxes * tf.constant([width, height, width, height], tf.float32)
        # The encoder divides 0 by 0 for a box without area, even if it is masked.
        safe = tf.where(real[..., None], pixels, tf.constant([0.0, 0.0, 1.0, 1.0]))
        return safe, classes, real, tf.where((classes == IGNORED)[..., None], pixels, 0.0)

    def get_config(self) -> dict[str, Any]:
        """All arguments, as JSON.

        Raises:
            ValueError: for an encoder that can't be saved.
        """
        if not hasattr(self.encoder, "get_config"):
            fix = "Give it get_config and from_config, and register it with Keras."
            raise checks.value_error("encoder", "one that can be saved", self.encoder, fix)
        return {
            **self._head_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "image_size": list(self.image_size),
            "strides": list(self.strides),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DenseAssignment:
        """Makes the assignment that `get_config` described."""
        import_keras_cv("A saved tfkd.losses.DenseAssignment")
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


def _inside(points: np.ndarray, boxes: tf.Tensor) -> tf.Tensor:
    """Which points (P, 2) are in one of an image's boxes (B, M, 4): bool (B, P)."""
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    return tf.reduce_any(tf.reduce_all((points > low) & (points < high), -1), 1)


class DenseLabelTerm(ElementwiseLoss):
    """Base class of the two terms on the labels.

    Args:
        assignment: `DenseAssignment`.
        name: name of the term in logs.
    """

    arguments = ("assignment",)

    def __init__(self, assignment: DenseAssignment, name: str | None = None):
        super().__init__(name)
        kind = "a DenseAssignment"
        self.assignment = checks.instance("assignment", assignment, DenseAssignment, kind)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Accepts any outputs: the teacher's are not used."""

    def elements(
        self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None, shared=None
    ):
        """One loss for every point, (B, P), for one of the outputs."""
        assigned = self.assignment.once(shared, y, student_outputs)
        output, values = self._values(assigned, student_outputs)
        part = Elements(values, assigned.known, count=assigned.count)
        return only(part, student_outputs, student_outputs[output])

    def _values(self, assigned, student):
        """Returns the name of the output that has this loss, and the losses (B, P)."""
        raise NotImplementedError


@register
class DenseConfidence(DenseLabelTerm):
    """Binary cross-entropy between the student's scores and the alignment with objects.

        (1 / Σ w) · Σ_points (1/C) · Σ_c BCE(fit(c), σ(z_c))

    over all points of the labelled images, with the alignment fit(c) and w = Σ_c fit(c)
    from the assignment. It is classification_loss="binary_crossentropy" of keras-cv's
    YOLOV8Detector, which weights it by 0.5.

    Args:
        assignment: `DenseAssignment`.
        name: name of the term in logs.

    Raises:
        TypeError: if the assignment is not a `DenseAssignment`.

    Reference:
        Feng et al. 2021, https://arxiv.org/abs/2108.07755
    """

    default_name = "dense_confidence"

    def _values(self, assigned, student):
        logits = self.assignment.scores(student, "student")
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=assigned.scores, logits=logits)
        return self.assignment.classes, tf.reduce_mean(losses, -1)


@register
class DenseLocalization(DenseLabelTerm):
    """Complete-IoU loss, 1 − CIoU, between the student's boxes and their objects.

        (1 / Σ w) · Σ_points w · (1 − CIoU)

    with w from the assignment. It is box_loss="ciou" of keras-cv's YOLOV8Detector, which
    weights it by 7.5, and uses keras-cv's CIoU: its penalty v for the aspect ratio is
    (4/π² · Δ)², with Δ the difference of the angles, where the paper has 4/π² · Δ².

    Args:
        assignment: `DenseAssignment`.
        name: name of the term in logs.

    Raises:
        TypeError: if the assignment is not a `DenseAssignment`.
        ImportError: when called, if keras-cv is not installed.

    Reference:
        Zheng et al. 2020, https://arxiv.org/abs/1911.08287 and
        Feng et al. 2021, https://arxiv.org/abs/2108.07755
    """

    default_name = "dense_localization"

    def _values(self, assigned, student):
        keras_cv = import_keras_cv("tfkd.losses.DenseLocalization")
        overlap = keras_cv.bounding_box.compute_ciou(assigned.boxes, assigned.predicted, "xyxy")
        return self.assignment.boxes, assigned.weight * (1.0 - overlap)
