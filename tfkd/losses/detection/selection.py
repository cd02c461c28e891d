"""Hard-negative mining: selects the priors on which a detector's losses are computed.

Nearly all priors of a detector show background. SSD learns from all priors that are
matched with an object (positives) and, in every image, from three times as many of the
others (negatives): those with the largest classification loss (Liu et al. 2016, section
2.2). All terms of the loss use the same priors, so they are selected once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.base import Shared, register
from tfkd.types import Structure, Tensor

# {"boxes": ..., "classes": ...}: the labels of a batch, and the outputs of a model.
Objects: TypeAlias = Mapping[str, Tensor]
Outputs: TypeAlias = Mapping[str, "tf.Tensor"]
# A `tfkd.detection.Matcher`, or a function that does the same.
Matching: TypeAlias = Callable[[Objects], Objects]


class Selected(NamedTuple):
    """The selected priors of one batch, and their targets.

    Attributes:
        labels: int32 (B, P): class c as c + 1, 0 for background, −1 to ignore.
        offsets: float32 (B, P, 4): the target offsets, 0 where there is no object.
        positive: bool (B, P): priors that are matched with an object.
        selected: bool (B, P): the positives and the hard negatives.
        losses: float32 (B, P): the student's cross-entropy, with its gradient.
        count: float32 scalar: N, the number of positive priors in the batch.
    """

    labels: tf.Tensor
    offsets: tf.Tensor
    positive: tf.Tensor
    selected: tf.Tensor
    losses: tf.Tensor
    count: tf.Tensor


@register
class MultiBoxSelection:
    """Matches the objects of a batch with priors and mines hard negatives.

    Args:
        matcher: `tfkd.detection.Matcher`, or a function with the same arguments and
            results; None if the targets of the data set are already matched
            (`dataset.map` with a Matcher).
        negative_ratio: negatives for each positive of an image, above 0; None: all of
            the background.
        min_negatives: the least number of negatives of an image, also without an object.
        teacher_boxes: None, or a function (y, teacher's outputs) → y that adds the
            teacher's detections to the objects, such as `tfkd.detection.TeacherBoxes`.
        scores: "softmax": C + 1 scores per prior, the first for background. "sigmoid": C
            independent scores, as in RetinaNet.
        boxes, classes: names of the model's outputs: offsets (B, P, 4) and scores.

    Raises:
        TypeError: if `matcher` or `teacher_boxes` is not callable.
        ValueError: for a ratio that is not positive, or an unknown `scores`.

    Example:
        >>> import numpy as np, tensorflow as tf, tfkd
        >>> priors = np.array([[0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1]], "float32")
        >>> selection = tfkd.losses.MultiBoxSelection(tfkd.detection.Matcher(priors))
        >>> y = {"boxes": tf.constant([[[0.0, 0, 0.5, 1]]]), "classes": tf.constant([[0]])}
        >>> outputs = {"boxes": tf.zeros((1, 2, 4)), "classes": tf.zeros((1, 2, 3))}
        >>> chosen = selection(y, outputs)
        >>> chosen.positive.numpy().tolist(), chosen.selected.numpy().tolist()
        ([[True, False]], [[True, True]])
    """

    def __init__(
        self,
        matcher: Matching | None,
        negative_ratio: float | None = 3.0,
        min_negatives: int = 0,
        teacher_boxes: Callable[[Objects, Any], Objects] | None = None,
        scores: str = "softmax",
        boxes: str = "boxes",
        classes: str = "classes",
    ):
        self.matcher = matcher if matcher is None else checks.function("matcher", matcher)
        if negative_ratio is not None:
            negative_ratio = float(checks.positive("negative_ratio", negative_ratio))
        self.negative_ratio = negative_ratio
        self.min_negatives = checks.non_negative_int("min_negatives", min_negatives)
        if teacher_boxes is not None:
            checks.function("teacher_boxes", teacher_boxes)
            if matcher is None:
                fix = "A data set that is already matched can't take in the teacher's boxes."
                raise checks.value_error("matcher", "a Matcher, with teacher_boxes", None, fix)
        self.teacher_boxes = teacher_boxes
        self.scores = checks.one_of("scores", scores, ("softmax", "sigmoid"))
        self.boxes = checks.instance("boxes", boxes, str, "a name of an output")
        self.classes = checks.instance("classes", classes, str, "a name of an output")

    def once(
        self, shared: Shared | None, y: Objects | None, student: Outputs, teacher: Structure | None
    ) -> Selected:
        """Returns the selection of this step, which the first loss that needs it computes."""
        if shared is None:
            return self(y, student, teacher)
        teacher = shared.teacher if teacher is None else teacher
        return shared.once(self, lambda: self(y, student, teacher))

    def __call__(
        self, y: Objects | None, student: Outputs, teacher: Structure | None = None
    ) -> Selected:
        """Selects the priors of a batch.

        Args:
            y: objects, as `tfkd.detection.Matcher` accepts them (or as it returns them,
                if there is no matcher).
            student: outputs of the student, a dict.
            teacher: outputs of the teacher; without them `teacher_boxes` is not called.
        """
        offsets, scores = self.outputs(student, "student")
        if y is None:
            raise checks.value_error("y", "objects as {'boxes': ..., 'classes': ...}", y)
        if self.teacher_boxes is not None and teacher is not None:
            y = self.teacher_boxes(y, teacher)
        target = y if self.matcher is None else self.matcher(y)
        self._check_target(target, offsets, scores)
        labels = tf.cast(target["classes"], tf.int32)
        self._check_classes(labels, scores)
        losses = cross_entropy(labels, scores, self.scores)
        positive, background = labels > 0, labels == 0
        if self.negative_ratio is None:
            negative = background
        else:
            limits = (self.negative_ratio, self.min_negatives)
            negative = hard_negatives(losses, positive, background, *limits)
        count = tf.reduce_sum(tf.cast(positive, tf.float32))
        target_offsets = tf.cast(target["boxes"], tf.float32)
        return Selected(labels, target_offsets, positive, positive | negative, losses, count)

    def outputs(self, outputs: Outputs, side: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns offsets and scores of a model's outputs, as float32.

        Raises:
            ValueError: if the model has no such outputs.
        """
        return read_outputs(outputs, self.boxes, self.classes, side)

    def _check_target(self, target, offsets, scores):
        if not isinstance(target, dict) or not {"boxes", "classes"} <= set(target):
            name = "y" if self.matcher is None else "matcher"
            expected = "a target for every prior, {'boxes': (B, P, 4), 'classes': (B, P)}"
            raise checks.value_error(name, expected, target, "tfkd.detection.Matcher makes them.")
        if not offsets.shape[:-1].is_compatible_with(scores.shape[:-1]):
            expected = f"scores for the {offsets.shape[1]} priors that have offsets"
            raise checks.value_error("student", expected, scores)
        shapes = [target["boxes"].shape[:-1], target["classes"].shape]
        if all(offsets.shape[:-1].is_compatible_with(shape) for shape in shapes):
            return
        raise ValueError(
            f"`matcher`: expected targets for the student's {offsets.shape[1]} priors, received "
            f"targets for {target['classes'].shape[1]}. Give the Matcher the anchors that the "
            "model was built with (and matcher=None only if the targets are already matched)."
        )

    def _check_classes(self, labels, scores):
        highest = scores.shape[-1] - (self.scores == "softmax")
        tf.debugging.Assert(
            tf.reduce_all(labels <= highest),
            [
                f"`y`: expected classes from 0 to {highest - 1}, as the student scores {highest} "
                "classes, received class",
                tf.reduce_max(labels) - 1,
                "Number the classes from 0, or give the models more classes.",
            ],
        )

    def get_config(self) -> dict[str, Any]:
        """All arguments, as JSON.

        Raises:
            ValueError: for a matcher that can't be saved.
        """
        return {
            "matcher": _serialize("matcher", self.matcher),
            "negative_ratio": self.negative_ratio,
            "min_negatives": self.min_negatives,
            "teacher_boxes": _serialize("teacher_boxes", self.teacher_boxes),
            "scores": self.scores,
            "boxes": self.boxes,
            "classes": self.classes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MultiBoxSelection:
        """Makes the selection that `get_config` described."""
        read = keras.saving.deserialize_keras_object
        functions = {name: read(config[name]) for name in ("matcher", "teacher_boxes")}
        return cls(**{**config, **functions})


def _serialize(name: str, value: object) -> dict[str, Any] | None:
    if value is None or hasattr(value, "get_config"):
        return keras.saving.serialize_keras_object(value)
    fix = "Give it get_config and from_config, and register it with Keras."
    raise checks.value_error(name, "an object that can be saved", value, fix)


def read_outputs(
    outputs: Outputs, boxes: str, classes: str, side: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a model's two outputs of these names, in float32; ValueError if it has others."""
    if not isinstance(outputs, dict) or not {boxes, classes} <= set(outputs):
        received = sorted(outputs) if isinstance(outputs, dict) else outputs
        expected = f"a model with a dict of outputs, with {[boxes, classes]}"
        raise checks.value_error(side, expected, received, _fix(received))
    return tf.cast(outputs[boxes], tf.float32), tf.cast(outputs[classes], tf.float32)


def _fix(received: object) -> str | None:
    if isinstance(received, list) and {"box", "classification"} <= set(received):
        return (
            "For a pair of keras-cv's RetinaNets use tfkd.losses.retina_net_objective; for an SSD "
            "student of one give the selection teacher_boxes=tfkd.detection.TeacherBoxes("
            "**tfkd.detection.retina_net_head(teacher)), and omit the terms that compare outputs: "
            "weights={'soft': None, 'bounded': None}."
        )
    return None


def cross_entropy(labels: tf.Tensor, scores: tf.Tensor, kind: str) -> tf.Tensor:
    """Returns the cross-entropy of every prior, (B, P); 0 where the label is −1.

    Args:
        labels: int32 (B, P): class c as c + 1, 0 for background, −1 to ignore.
        scores: float32 (B, P, C + 1) for "softmax", (B, P, C) for "sigmoid".
        kind: "softmax", or "sigmoid": the sum over classes.
    """
    known = labels >= 0
    if kind == "softmax":
        safe = tf.where(known, labels, 0)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=safe, logits=scores)
    else:
        # one_hot of −1 (background) and −2 (to ignore) is all zeros.
        truth = tf.one_hot(labels - 1, scores.shape[-1])
        values = tf.nn.sigmoid_cross_entropy_with_logits(labels=truth, logits=scores)
        values = tf.reduce_sum(values, -1)
    return tf.where(known, values, 0.0)


def hard_negatives(
    losses: tf.Tensor,
    positive: tf.Tensor,
    background: tf.Tensor,
    ratio: float = 3.0,
    min_negatives: int = 0,
) -> tf.Tensor:
    """Selects the background priors of the largest loss in every image.

    Args:
        losses: float32 (B, P): the loss of each prior; no gradient flows through the
            selection.
        positive: bool (B, P): priors with an object.
        background: bool (B, P): priors that may be selected.
        ratio: negatives for each positive.
        min_negatives: the least number of negatives of an image.

    Returns:
        bool (B, P), with min(max(⌊ratio · N⌋, min_negatives), number of background
        priors) True in a row of N positives. Among equal losses the first are selected.
    """
    losses = tf.stop_gradient(losses)
    count = tf.reduce_sum(tf.cast(positive, tf.float32), 1)
    wanted = tf.maximum(tf.cast(tf.floor(ratio * count), tf.int32), min_negatives)
    wanted = tf.minimum(wanted, tf.reduce_sum(tf.cast(background, tf.int32), 1))
    ranked = tf.where(background, losses, float("-inf"))
    # One sort finds the smallest selected loss; ranks would need a second one.
    places = tf.maximum(wanted - 1, 0)[:, None]
    limit = tf.gather(tf.sort(ranked, 1, "DESCENDING"), places, batch_dims=1)
    # Of the losses that equal the limit, only as many count as are still missing.
    above = (ranked > limit) & background
    left = wanted - tf.reduce_sum(tf.cast(above, tf.int32), 1)
    equal = (ranked == limit) & background
    first = tf.cumsum(tf.cast(equal, tf.int32), 1) <= left[:, None]
    return (above | (equal & first)) & (wanted > 0)[:, None]
