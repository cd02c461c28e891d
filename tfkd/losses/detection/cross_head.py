"""CrossKD (Wang et al. 2024): the student's head features through the teacher's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.detection.boxes import area, check_priors, decode_offsets
from tfkd.detection.keras_cv_models import import_keras_cv, retina_net_head
from tfkd.losses.base import Elements, ElementwiseLoss, register
from tfkd.losses.detection.keras_cv import check_anchors, check_classes


@register
class CrossHeadDistillation(ElementwiseLoss):
    """CrossKD for keras-cv's RetinaNet: the teacher's head reads the student's features.

    The features of the student's pyramid pass through the first `split` convolutions of its
    own heads and then through the rest of the teacher's. These cross-head predictions imitate
    the teacher's, so that the last layers of the student's own heads learn from the labels
    alone, with which the teacher may disagree:

        (1 / Σ w) · Σ_anchors [Σ_c |p_t − p_x|^β · H(p_t, p_x) + w_box · w · (1 − GIoU(b_t, b_x))]

    with p the sigmoids of a class's scores, b the decoded boxes, x the cross-head prediction,
    H the binary cross-entropy, and w = max_c p_t the teacher's confidence at the anchor. Σ w
    over the (global) batch, at least 1, takes the place of the number of objects (the paper's
    divisor), so that no labels are needed.

    It takes the place of soft targets and bounded regression beside the terms on the labels,
    as in the example. The teacher runs once a step, as always; `split` convolutions of the
    student's heads and the rest of the teacher's run a second time, on the student's features.
    The authors' program also gives each channel the teacher's mean and deviation first.

    Both models must be RetinaNets with the same classes and anchors, and heads with
    `conv_layers` and a `prediction_layer`, as those of keras-cv, of equal width at the split.
    `tfkd.models.ssd` is refused: its heads are one convolution, or a depthwise one and one
    1×1, whose width is that of each level of the student's backbone, so there is no feature
    inside them that the teacher's layers could read.

    Args:
        split: number of convolutions of the student's heads, from 0 (the teacher's whole
            heads read the student's pyramid) to all; None: all but the last, as in the paper.
        beta: exponent β ≥ 0 of the distance; 0: plain cross-entropy.
        box_weight: w_box ≥ 0; 0: classes only.
        image_size: (height, width) in pixels, for models that accept any size.
        name: name of the term in logs.

    Raises:
        TypeError: if the Distiller's models are not RetinaNets.
        ValueError: for a bad argument, or models whose classes, anchors or heads do not fit.

    Reference:
        Wang et al. 2024, "CrossKD: cross-head knowledge distillation for object detection",
        https://arxiv.org/abs/2306.11369

    Example:
        >>> import contextlib, io, tfkd
        >>> with contextlib.redirect_stdout(io.StringIO()):  # it prints its backend
        ...     import keras_cv
        >>> def detector(filters):
        ...     backbone = keras_cv.models.ResNetBackbone(
        ...         stackwise_filters=[filters] * 4, stackwise_blocks=[1] * 4,
        ...         stackwise_strides=[1, 2, 2, 2], include_rescaling=False,
        ...         input_shape=(64, 64, 3))
        ...     return keras_cv.models.RetinaNet(backbone, 3, "xyxy")
        >>> teacher, student = detector(16), detector(8)
        >>> terms = tfkd.losses.retina_net_objective(
        ...     teacher, student, weights={"soft": None, "bounded": None})
        >>> terms["distillation_losses"].append(tfkd.losses.CrossHeadDistillation())
        >>> terms["distillation_loss_weights"].append(1.0)
        >>> distiller = tfkd.Distiller(teacher, student, **terms)
        >>> [loss.name for loss in distiller.distillation_losses]
        ['multibox_confidence', 'multibox_localization', 'cross_head_distillation']
    """

    arguments = ("split", "beta", "box_weight", "image_size")
    student_layer_name = "feature_pyramid"

    def __init__(
        self,
        split: int | None = None,
        beta: float = 1.0,
        box_weight: float = 1.0,
        image_size: int | Sequence[int] | None = None,
        name: str | None = None,
    ):
        super().__init__(name)
        self.split = checks.optional(checks.non_negative_int, "split", split)
        self.beta = float(checks.non_negative("beta", beta))
        self.box_weight = float(checks.non_negative("box_weight", box_weight))
        self.image_size = image_size
        self._head: dict[str, Any] | None = None

    def validate_model_compatibility(self, teacher, student):
        """Keeps the layers of both heads; raises an error unless they fit."""
        kind = import_keras_cv("tfkd.losses.CrossHeadDistillation").models.RetinaNet
        fix = (
            "Its heads must have hidden features that the teacher's layers can read; those of "
            "tfkd.models.ssd have none. tfkd.losses.multibox_objective distils predictions."
        )
        for side, model in (("teacher", teacher), ("student", student)):
            if not isinstance(model, kind):
                raise checks.type_error(side, "one keras_cv.models.RetinaNet", model, fix)
        head = retina_net_head(student, self.image_size)
        check_classes(teacher, student)
        check_anchors(retina_net_head(teacher, self.image_size), head)
        names = {"classes": "classification_head", "boxes": "box_head"}
        self._head = {
            **head,
            "priors": check_priors(head["anchors"]),
            "layers": {key: self._layers(teacher, student, name) for key, name in names.items()},
        }

    def _layers(self, teacher: Any, student: Any, name: str) -> list[keras.layers.Layer]:
        """The student's layers before the split, then the teacher's after it."""
        theirs, mine = (getattr(model, name) for model in (teacher, student))
        for side, head in (("teacher", theirs), ("student", mine)):
            if not (hasattr(head, "conv_layers") and hasattr(head, "prediction_layer")):
                expected = f"a {name} with conv_layers and a prediction_layer, as keras-cv's own"
                raise checks.value_error(side, expected, head)
        count = min(len(theirs.conv_layers), len(mine.conv_layers))
        split = max(count - 1, 0) if self.split is None else self.split
        if split > count:
            raise checks.value_error("split", f"at most {count}, the convolutions of both", split)
        own = [*mine.conv_layers, mine.prediction_layer]
        rest = [*theirs.conv_layers, theirs.prediction_layer][split:]
        widths = [int(layer.kernel.shape[2]) for layer in (own[split], rest[0])]
        if widths[0] != widths[1]:
            expected = f"{widths[1]} channels after {split} convolutions of the {name}, as in the"
            fix = "Build both heads with equal widths, or choose another split."
            raise checks.value_error("student", f"{expected} teacher", widths[0], fix)
        return [*own[:split], *rest]

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Accepts any outputs: the models were checked."""
        del teacher_outputs, student_outputs

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss for every anchor, (B, P)."""
        if self._head is None:
            raise ValueError(
                f"{self.name} needs the heads of both models: pass it to a tfkd.Distiller, or call "
                "validate_model_compatibility(teacher, student) first."
            )
        head = self._head
        theirs = {
            key: tf.stop_gradient(tf.cast(teacher_outputs[head[key]], tf.float32))
            for key in ("boxes", "classes")
        }
        crossed = {
            key: _through(head["layers"][key], student_outputs, theirs[key].shape[-1])
            for key in theirs
        }
        confidence = tf.reduce_max(tf.sigmoid(theirs["classes"]), -1)
        values = focused_entropy(theirs["classes"], crossed["classes"], self.beta)
        if self.box_weight:
            boxes = [
                decode_offsets(each["boxes"], head["priors"], head["variances"], head["order"])
                for each in (theirs, crossed)
            ]
            values += self.box_weight * confidence * (1.0 - generalized_iou(*boxes))
        return [Elements(values, count=tf.reduce_sum(confidence))]


def _through(
    layers: Sequence[keras.layers.Layer], features: Sequence[tf.Tensor], size: int
) -> tf.Tensor:
    """Predictions (B, P, size) of a head from the levels of a pyramid, in their order."""
    rows = []
    for level in features:
        for layer in layers:
            level = layer(level)
        rows.append(tf.reshape(tf.cast(level, tf.float32), [tf.shape(level)[0], -1, size]))
    return tf.concat(rows, 1)


def focused_entropy(teacher: tf.Tensor, student: tf.Tensor, beta: float) -> tf.Tensor:
    """Σ_c |p_t − p_s|^β · H(p_t, p_s) from logits (B, P, C): (B, P)."""
    target = tf.sigmoid(teacher)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=student)
    if beta:
        # A power below 1 has no finite gradient at a distance of 0.
        distance = tf.maximum(tf.abs(target - tf.sigmoid(student)), 1e-12)
        entropy *= distance**beta
    return tf.reduce_sum(entropy, -1)


def generalized_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """IoU − (hull − union) / hull of boxes (..., 4) as corners, one by one: (...).

    Reference: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630
    """
    low, high = tf.maximum(first, second)[..., :2], tf.minimum(first, second)[..., 2:]
    overlap = area(tf.concat([low, high], -1))
    union = area(first) + area(second) - overlap
    low, high = tf.minimum(first, second)[..., :2], tf.maximum(first, second)[..., 2:]
    hull = area(tf.concat([low, high], -1))
    return tf.math.divide_no_nan(overlap, union) - tf.math.divide_no_nan(hull - union, hull)
