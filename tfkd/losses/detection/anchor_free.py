"""Distillation of anchor-free detectors (YOLOv8): soft targets and localization distillation.

At each point of its grids such a detector predicts a score for every class and, for each
of the four edges of a box, a distribution over distances: `bins` logits for 0, 1, 2, ...
strides (Li et al. 2020, "Generalized focal loss", https://arxiv.org/abs/2006.04388).
Teacher and student have the same points, and no labels are needed: the teacher's
confidence is the weight of a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.losses.base import Elements, ElementwiseLoss, at_step, check_temperature, only, register
from tfkd.losses.detection.selection import read_outputs
from tfkd.losses.detection.terms import sigmoid_divergence
from tfkd.schedules import Value

# Least distance of probabilities from 0 and 1, equal to `keras.backend.epsilon()`.
_SMALLEST = 1e-7


def log_odds(probabilities: tf.Tensor) -> tf.Tensor:
    """Logits whose sigmoids are these probabilities, within ±16.1 (log 1e7)."""
    p = tf.clip_by_value(probabilities, _SMALLEST, 1.0 - _SMALLEST)
    return tf.math.log(p) - tf.math.log1p(-p)


class DenseHead:
    """Mixin that reads the outputs of an anchor-free detector.

    Args:
        boxes, classes: names of the model's outputs: logits of distances (B, P, 4·bins),
            in the order left, top, right, bottom edge; and scores (B, P, C).
        from_logits: whether the scores are logits rather than probabilities.
    """

    def _read_head(self, boxes: str, classes: str, from_logits: bool) -> None:
        self.boxes = checks.instance("boxes", boxes, str, "a name of an output")
        self.classes = checks.instance("classes", classes, str, "a name of an output")
        self.from_logits = checks.instance("from_logits", from_logits, bool, "True or False")

    def distances(self, outputs: Mapping[str, tf.Tensor], side: str) -> tf.Tensor:
        """Logits of the distances, float32 (B, P, 4, bins)."""
        logits, _ = read_outputs(outputs, self.boxes, self.classes, side)
        if logits.shape[-1] is None or logits.shape[-1] % 4:
            raise checks.value_error(side, "distances (B, P, 4 times the bins)", logits)
        return tf.reshape(logits, [*_leading(logits), 4, logits.shape[-1] // 4])

    def scores(self, outputs: Mapping[str, tf.Tensor], side: str) -> tf.Tensor:
        """Logits of the classes, float32 (B, P, C)."""
        _, scores = read_outputs(outputs, self.boxes, self.classes, side)
        return scores if self.from_logits else log_odds(scores)

    def _head_config(self) -> dict[str, Any]:
        return {"boxes": self.boxes, "classes": self.classes, "from_logits": self.from_logits}


def _leading(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of the first two axes, static where they are known."""
    shape = tf.shape(tensor)
    return [shape[axis] if tensor.shape[axis] is None else tensor.shape[axis] for axis in (0, 1)]


class DenseDistillation(DenseHead, ElementwiseLoss):
    """Base class: a divergence at every point, divided by the sum of the confidences.

    The teacher's confidence w at a point is its highest class probability there. Σ w
    over the (global) batch, at least 1, takes the place of the number of objects.
    """

    arguments = ("temperature", "boxes", "classes", "from_logits")

    def __init__(
        self,
        temperature: Value = 1.0,
        boxes: str = "boxes",
        classes: str = "classes",
        from_logits: bool = False,
        name: str | None = None,
    ):
        super().__init__(name)
        self.temperature = check_temperature(temperature)
        self._read_head(boxes, classes, from_logits)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both models have the same points, classes and bins."""
        for read, what in ((self.scores, "classes"), (self.distances, "4, bins")):
            theirs, mine = read(teacher_outputs, "teacher"), read(student_outputs, "student")
            if not theirs.shape.is_compatible_with(mine.shape):
                raise ValueError(
                    f"{self.name}: teacher and student must have the same points, classes and "
                    f"bins: the teacher's are {tuple(theirs.shape)}, the student's "
                    f"{tuple(mine.shape)} (batch, points, {what}). Build both for one image size."
                )

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss for every point, (B, P), for one of the outputs."""
        self.validate_outputs(teacher_outputs, student_outputs)
        teacher = tf.nest.map_structure(tf.stop_gradient, teacher_outputs)
        confidence = tf.reduce_max(tf.sigmoid(self.scores(teacher, "teacher")), -1)
        temperature = at_step("temperature", self.temperature, step)
        output, values = self._divergence(teacher, student_outputs, confidence, temperature)
        part = Elements(temperature**2 * values, count=tf.reduce_sum(confidence))
        return only(part, student_outputs, student_outputs[output])

    def _divergence(self, teacher, student, confidence, temperature):
        """Returns the name of the compared output, and the divergence (B, P) at T."""
        raise NotImplementedError


@register
class DenseSoftTarget(DenseDistillation):
    """The teacher's class scores at every point as soft targets.

        (1 / Σ w) · Σ_points T² · Σ_c KL(p_t(c), p_s(c)),   p = σ(z / T)

    where KL is between the Bernoulli distributions of a class (present or absent), and w
    is the teacher's confidence, max_c p_t(c) at T = 1. With many points and few objects a
    temperature above 1 shifts the weight towards the background.

    Args:
        temperature: T > 0, or a schedule of the step.
        boxes, classes: names of the model's outputs: logits of distances (B, P, 4·bins),
            and scores (B, P, C).
        from_logits: whether the scores are logits. False: they are probabilities, as
            those of keras-cv's YOLOV8Detector.
        name: name of the term in logs.

    The outputs of several teachers are averaged.

    Raises:
        TypeError: for names that are not strings.
        ValueError: for T ≤ 0; when called, if the models' points or classes differ.

    Reference:
        Hinton et al. 2015, https://arxiv.org/abs/1503.02531, applied at every point

    Example:
        >>> import tensorflow as tf, tfkd
        >>> outputs = lambda p: {
        ...     "boxes": tf.zeros((1, 2, 64)), "classes": tf.constant([[[p], [0.5]]])}
        >>> soft = tfkd.losses.DenseSoftTarget()
        >>> round(float(soft.compute_loss(outputs(0.9), outputs(0.5))), 4)  # Σ w = 1.4
        0.2629
    """

    default_name = "dense_soft_target"

    def _divergence(self, teacher, student, confidence, temperature):
        theirs, mine = self.scores(teacher, "teacher"), self.scores(student, "student")
        return self.classes, sigmoid_divergence(theirs / temperature, mine / temperature)


@register
class LocalizationDistillation(DenseDistillation):
    """Localization distillation: the teacher's distributions over the distances of box edges.

        (1 / Σ w) · Σ_points w · (1/4) · Σ_edges T² · KL(softmax(z_t / T), softmax(z_s / T))

    with w the teacher's confidence at the point, its highest class probability. The
    distribution carries more information than its mean, the predicted distance: a flat one
    shows that the edge is ambiguous. In the background, where edges are meaningless, w is
    near 0.

    Args:
        temperature: T > 0, or a schedule of the step. The paper uses 10.
        boxes, classes: names of the model's outputs: logits of distances (B, P, 4·bins),
            and scores (B, P, C).
        from_logits: whether the scores are logits. False: they are probabilities, as
            those of keras-cv's YOLOV8Detector.
        name: name of the term in logs.

    The outputs of several teachers are averaged.

    Raises:
        TypeError: for names that are not strings.
        ValueError: for T ≤ 0; when called, if the models' points or bins differ.

    Reference:
        Zheng et al. 2022, "Localization distillation for dense object detection",
        https://arxiv.org/abs/2102.12252

    Example:
        >>> import tensorflow as tf, tfkd
        >>> outputs = lambda z: {  # two bins; an object at the first point only
        ...     "boxes": tf.constant([[[z, 0.0] * 4, [9.0, 0.0] * 4]]),
        ...     "classes": tf.constant([[[1.0], [0.0]]])}
        >>> edges = tfkd.losses.LocalizationDistillation(temperature=1.0)
        >>> round(float(edges.compute_loss(outputs(2.0), outputs(0.0))), 4)
        0.3278
    """

    default_name = "localization_distillation"

    def _divergence(self, teacher, student, confidence, temperature):
        log_t, log_s = (
            tf.nn.log_softmax(self.distances(outputs, side) / temperature)
            for outputs, side in ((teacher, "teacher"), (student, "student"))
        )
        edges = tf.reduce_sum(tf.exp(log_t) * (log_t - log_s), -1)
        return self.boxes, confidence * tf.reduce_mean(edges, -1)
