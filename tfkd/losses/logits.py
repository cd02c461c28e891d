"""Soft targets (Hinton et al. 2015): distillation between class scores at a temperature.

All arithmetic is in float32 from logits by `log_softmax`; Keras's own `KLDivergence`
clips probabilities at 1e-7 and so loses the dark knowledge that distillation transfers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.base import (
    Elements,
    ElementwiseLoss,
    at_step,
    check_temperature,
    mask_of,
    register,
)
from tfkd.losses.standardization import check_classes, check_flag, scaled
from tfkd.losses.wrapped import Losses, LossFunction, apply_loss, each_output, is_sum, resolve_loss
from tfkd.schedules import Value

KL = (keras.losses.kl_divergence, keras.losses.KLDivergence)
CROSSENTROPY = (keras.losses.categorical_crossentropy, keras.losses.CategoricalCrossentropy)
BINARY = (keras.losses.binary_crossentropy, keras.losses.BinaryCrossentropy)
_EXACT = (KL, CROSSENTROPY, BINARY)


def is_a(loss: Losses, kinds: tuple[Callable[..., Any], type]) -> bool:
    """True if `loss` is the function or an instance of the class in `kinds`."""
    function, cls = kinds
    return loss is function or isinstance(loss, cls)


@register
class LogitsDistillation(ElementwiseLoss):
    """Soft targets: the student imitates the teacher's softened class scores.

    The loss is T² · Σ_c p_t (log p_t − log p_s), with p = softmax(z / T), averaged over
    examples (and positions, for outputs of shape (B, ..., C)). T² keeps the scale of the
    gradient independent of T, also when T is scheduled.

    A model may end in a softmax (or in sigmoids, with "binary_crossentropy"): the Distiller
    inverts it, exactly if the graph shows it. Other probabilities, such as the mean of
    several softmaxes, are recognized once by their values, with a warning;
    `tfkd.losses.declare_outputs` declares them and silences it.

    Args:
        temperature: T > 0, or a schedule of the step. Usually 2 to 6.
        loss: how scores are compared; a string, function or instance, or a structure of
            them like the model's outputs, with None for outputs without a loss.
            "kl_divergence": as above. "categorical_crossentropy": the same gradient, but
            the value is larger by the teacher's entropy. "binary_crossentropy": every unit
            is an independent sigmoid (multi-label, or one unit): T² · KL between Bernoulli
            distributions, summed over units. Of an instance of these only the reduction
            is used, the mean or the sum (reduction="sum"); label smoothing is refused.
            Any other loss, such as "mse", is called on (z_t / T, z_s / T) and not scaled.
        name: name of the term in logs.
        standardize: whether the scores of each example (or position), in every output that
            has a loss, are replaced by their Z-scores before they are divided by T: the
            student then imitates the order and the relative distances of the teacher's
            scores, not their size. The authors use T = 2, and weights of 0.1 for the labels
            and 9 for this loss. Not for sigmoids or fewer than three classes.

    Raises:
        TypeError: if `standardize` is not a bool.
        ValueError: for T ≤ 0 or not finite, an unknown loss, or if every loss is None; for
            `standardize` with "binary_crossentropy" or, when called, with two classes.

    Reference:
        Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531; Sun et al. 2024
        (standardize), https://arxiv.org/abs/2403.01427

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.LogitsDistillation(temperature=2.0)
        >>> round(float(loss.compute_loss(tf.constant([[2.0, 0.0]]), tf.constant([[0.0, 0.0]]))), 4)
        0.4438
        >>> by_order = tfkd.losses.LogitsDistillation(temperature=2.0, standardize=True)
        >>> float(by_order.compute_loss(tf.constant([[6.0, 4.0, 2.0]]), tf.constant([[3.0, 2, 1]])))
        0.0
    """

    arguments = ("temperature", "loss", "standardize")
    on_logits = True

    def __init__(
        self,
        temperature: Value = 3.0,
        loss: Losses = "kl_divergence",
        name: str | None = None,
        standardize: bool = False,
    ):
        super().__init__(name)
        self.temperature = check_temperature(temperature)
        self.loss = resolve_loss(loss)
        self.standardize = check_flag(standardize)
        for item in tf.nest.flatten(self.loss):
            _check_plain(item)
            if standardize and is_a(item, BINARY):
                expected = 'False with "binary_crossentropy"'
                fix = "The zero of a sigmoid's score has a meaning, which a Z-score would move."
                raise checks.value_error("standardize", expected, standardize, fix)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless each output that has a loss fits it."""
        super().validate_outputs(teacher_outputs, student_outputs)
        each_output(self.loss, teacher_outputs, student_outputs, _check_outputs)
        if self.standardize:
            outputs = (teacher_outputs, student_outputs)
            each_output(self.loss, *outputs, lambda loss, teacher, student: check_classes(student))

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss per example, (B,) or (B, ...), for each output that has a loss."""
        self.validate_outputs(teacher_outputs, student_outputs)
        temperature = at_step("temperature", self.temperature, step)
        one = functools.partial(self._one, temperature=temperature)
        return each_output(self.loss, teacher_outputs, student_outputs, one)

    def _one(self, loss, teacher, student, temperature):
        teacher_z = scaled(tf.stop_gradient(teacher), temperature, self.standardize)
        student_z = scaled(student, temperature, self.standardize)
        if not any(is_a(loss, kinds) for kinds in _EXACT):
            if len(student.shape) == 1:
                teacher_z, student_z = teacher_z[:, None], student_z[:, None]
            return Elements(apply_loss(loss, teacher_z, student_z), mask_of(student), is_sum(loss))
        if is_a(loss, KL):
            values = kl_from_logits(teacher_z, student_z)
        elif is_a(loss, CROSSENTROPY):
            values = -tf.reduce_sum(tf.nn.softmax(teacher_z) * tf.nn.log_softmax(student_z), -1)
        else:
            values = bernoulli_kl(teacher_z, student_z)
        # ∂KL/∂z is of order 1/T², which the factor cancels.
        return Elements(temperature * temperature * values, mask_of(student), is_sum(loss))


def kl_from_logits(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Σ_c p_t (log p_t − log p_s) over the last axis, from float32 logits."""
    log_teacher = tf.nn.log_softmax(teacher)
    return tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - tf.nn.log_softmax(student)), -1)


def bernoulli_kl(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Σ over outputs of KL(Bernoulli(σ(teacher)) ‖ Bernoulli(σ(student)))."""
    p = tf.sigmoid(teacher)
    on = tf.math.log_sigmoid(teacher) - tf.math.log_sigmoid(student)
    off = tf.math.log_sigmoid(-teacher) - tf.math.log_sigmoid(-student)
    return tf.reduce_sum(p * on + (1.0 - p) * off, -1)


def _check_outputs(loss: LossFunction, teacher: tf.Tensor, student: tf.Tensor) -> None:
    """Raises ValueError unless the loss fits one output of each model."""
    exact = any(is_a(loss, kinds) for kinds in _EXACT)
    scalars = len(teacher.shape) == len(student.shape) == 1
    # What "mse" compares may be one number per example, (B,) or (B, 1).
    if exact or not scalars:
        check_scores(teacher, student, binary=is_a(loss, BINARY) or not exact)


def _check_plain(loss: LossFunction | None) -> None:
    """Raises ValueError for options of a Keras loss that soft targets do not support."""
    if not isinstance(loss, keras.losses.Loss) or not any(is_a(loss, k) for k in _EXACT):
        return
    config = loss.get_config()
    if config.get("label_smoothing") or config.get("axis", -1) != -1:
        fix = "The teacher's targets are soft already: raise the temperature instead."
        expected = "no label_smoothing, and classes on the last axis"
        raise checks.value_error("loss", expected, loss, fix)


def check_scores(teacher: tf.Tensor, student: tf.Tensor, binary: bool = False) -> None:
    """Raises ValueError unless both are scores of the same, at least two, classes."""
    for side, scores in (("teacher", teacher), ("student", student)):
        if len(scores.shape) < 2:
            raise checks.value_error(side, "class scores of shape (B, ..., C)", scores)
    classes = student.shape[-1]
    if teacher.shape[-1] != classes:
        raise ValueError(
            f"teacher and student must score the same classes: the teacher has "
            f"{teacher.shape[-1]}, the student {classes}. Give the student as many outputs, in "
            "the same order."
        )
    if classes == 1 and not binary:
        expected = "at least two classes (the softmax of one score is always 1)"
        fix = 'For a single sigmoid output pass loss="binary_crossentropy", for a regression "mse".'
        raise checks.value_error("student", expected, student, fix)
