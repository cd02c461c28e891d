"""Decoupled knowledge distillation (DKD): soft targets split into target and other classes."""

from __future__ import annotations

import tensorflow as tf

from tfkd import checks, schedules
from tfkd.losses.base import (
    Elements,
    ElementwiseLoss,
    OneOutput,
    at_step,
    check_temperature,
    mask_of,
    only,
    register,
)
from tfkd.losses.logits import bernoulli_kl, check_scores, kl_from_logits
from tfkd.losses.standardization import check_classes, check_flag, scaled
from tfkd.schedules import Value
from tfkd.types import Tensor

# The logit that excludes a class from a softmax: exp(-1e9) is 0, and unlike 0 · -inf,
# which is NaN, 0 · -1e9 is 0.
_EXCLUDED = -1e9


@register
class DecoupledDistillation(OneOutput, ElementwiseLoss):
    """Decoupled knowledge distillation: target class and other classes are weighted apart.

    With p = softmax(z / T), y the label, and p̂ the softmax over the classes
    other than y, the loss of one example is

        T² · [α · KL(b_t ‖ b_s) + β · KL(p̂_t ‖ p̂_s)],   b = (p_y, 1 − p_y)

    for teacher t and student s; the mean over examples (and positions) is taken.
    Plain distillation has α = 1 and β = 1 − p_t(y): where the teacher is confident,
    it nearly ignores the ranking of the other classes, although that ranking is most
    informative there. With two classes the second part is 0.

    Args:
        temperature: T > 0, or a schedule of the step.
        alpha: weight of the target part, at least 0, or a schedule.
        beta: weight of the other classes' part, at least 0, or a schedule. With 8 this
            part dominates early training: warm it up, as the paper does, by
            `tfkd.schedules.Warmup(8.0, steps)`.
        output: name (dict) or index (list) of the output that holds the class
            scores, for a model with several; targets in the same structure are
            selected in the same way.
        name: name of the term in logs.
        standardize: whether z are Z-scores, as in `LogitsDistillation`; for C of at least 3.

    Scores have shape (B, ..., C), C at least 2. Labels y are integers of shape
    (B, ...) or (B, ..., 1), or one-hot of shape (B, ..., C).

    Raises:
        TypeError: if a weight is not a number, schedule or callable, or `standardize` not a bool.
        ValueError: for T ≤ 0, a negative weight or a value that is not finite; when
            called, if y is None or does not fit the scores.
        tf.errors.InvalidArgumentError: when called, for a label outside 0 ... C − 1.

    Reference:
        Zhao et al. 2022, https://arxiv.org/abs/2203.08679

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.DecoupledDistillation(temperature=1.0, beta=2.0)
        >>> teacher = tf.constant([[2.0, 1.0, 0.0]])
        >>> student = tf.constant([[2.0, 0.0, 1.0]])
        >>> round(float(loss.compute_loss(teacher, student, y=tf.constant([0]))), 4)
        0.9242
    """

    arguments = ("temperature", "alpha", "beta", "output", "standardize")
    on_logits = True

    def __init__(
        self,
        temperature: Value = 4.0,
        alpha: Value = 1.0,
        beta: Value = 8.0,
        output: str | int | None = None,
        name: str | None = None,
        standardize: bool = False,
    ):
        super().__init__(output, name)
        self.standardize = check_flag(standardize)
        self.temperature = check_temperature(temperature)
        self.alpha = schedules.get("alpha", alpha, checks.non_negative)
        self.beta = schedules.get("beta", beta, checks.non_negative)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both models score the same classes in this output."""
        student = self._select(student_outputs)
        check_scores(self._select(teacher_outputs), student)
        if self.standardize:
            check_classes(student)

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss per example, (B,) or (B, ...), for the output with the scores."""
        self.validate_outputs(teacher_outputs, student_outputs)
        teacher, student = self._select(teacher_outputs), self._select(student_outputs)
        mask = mask_of(student)
        true = self._true_class(y, student, mask)
        temperature = at_step("temperature", self.temperature, step)
        teacher_z = scaled(tf.stop_gradient(teacher), temperature, self.standardize)
        student_z = scaled(student, temperature, self.standardize)
        target, others = decoupled_kl(teacher_z, student_z, true)
        values = at_step("alpha", self.alpha, step) * target
        values += at_step("beta", self.beta, step) * others
        # T² keeps gradients at one scale for every T (Hinton et al. 2015).
        part = Elements(temperature * temperature * values, mask)
        return only(part, student_outputs, student)

    def _true_class(self, y, student, mask):
        """Bool (B, ..., C), True at the label."""
        classes = student.shape[-1]
        y = self._labels(y, fix="LogitsDistillation needs none.")
        labels = as_labels(y, student, mask)
        message = f"`y`: expected labels from 0 to {classes - 1}, as many as there are classes."
        tf.debugging.assert_non_negative(labels, message)
        tf.debugging.assert_less(labels, tf.constant(classes, labels.dtype), message)
        return tf.one_hot(labels, classes, on_value=True, off_value=False)


def decoupled_kl(
    teacher: tf.Tensor, student: tf.Tensor, true: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """KL of (target, rest), and KL among the other classes, each of shape (B, ...).

    Args:
        teacher: the teacher's float32 scores / T, (B, ..., C).
        student: the student's float32 scores / T, (B, ..., C).
        true: bool (B, ..., C), one True in each row.
    """
    teacher_rest = tf.where(true, _EXCLUDED, teacher)
    student_rest = tf.where(true, _EXCLUDED, student)
    pairs = ((teacher, teacher_rest), (student, student_rest))
    target = bernoulli_kl(*(_target_logit(*pair, true) for pair in pairs))
    return target, kl_from_logits(teacher_rest, student_rest)


def _target_logit(scores: tf.Tensor, rest: tf.Tensor, true: tf.Tensor) -> tf.Tensor:
    """log(p_y / (1 − p_y)) = z_y − logsumexp of the other scores, (B, ..., 1)."""
    target = tf.reduce_sum(tf.where(true, scores, 0.0), -1, keepdims=True)
    return target - tf.reduce_logsumexp(rest, -1, keepdims=True)


def as_labels(y: Tensor, scores: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Returns int32 class numbers (B, ...) for scores (B, ..., C), 0 where they are masked.

    Raises:
        ValueError: if y is neither (B, ...), (B, ..., 1) nor one-hot (B, ..., C).
    """
    labels = _class_numbers(class_labels(y), scores)
    # The label of a masked position may be anything, often -1.
    return labels if mask is None else tf.where(tf.cast(mask, tf.bool), labels, 0)


def _class_numbers(y: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    given, shape = y, tf.TensorShape(scores.shape)
    if y.shape.rank is None or (y.shape.rank == shape.rank and y.shape[-1] is None):
        return tf.cond(
            tf.size(y) == tf.size(scores),
            lambda: tf.argmax(tf.reshape(y, tf.shape(scores)), -1, tf.int32),
            lambda: tf.cast(_in_shape(y, tf.shape(scores)[:-1], shape), tf.int32),
        )
    if y.shape.rank == shape.rank:
        if y.shape[-1] == 1:
            y = tf.squeeze(y, -1)
        elif y.shape[-1] == shape[-1]:
            y = tf.argmax(y, -1)
    if not y.shape.is_compatible_with(shape[:-1]):
        raise checks.value_error("y", f"{_forms(shape)} for scores of shape {tuple(shape)}", given)
    return tf.cast(y, tf.int32)


def class_labels(y: Tensor) -> tf.Tensor:
    """Accepts numeric labels; returns them as a tensor.

    Raises:
        TypeError: if they are strings.
    """
    y = tf.convert_to_tensor(y)
    if y.dtype == tf.string:
        fix = "Number the classes: `names, y = np.unique(y, return_inverse=True)`."
        raise checks.type_error("y", "class numbers", y, fix)
    return y


def _in_shape(y: tf.Tensor, wanted: tf.Tensor, scores: tf.TensorShape) -> tf.Tensor:
    """Reshapes labels of unknown rank; an error in the graph names the accepted shapes."""
    message = f"`y`: expected {_forms(scores)} for scores of shape {tuple(scores)}."
    fits = tf.debugging.Assert(tf.size(y) == tf.reduce_prod(wanted), [message, tf.shape(y)])
    with tf.control_dependencies([fits] if fits is not None else []):
        return tf.reshape(y, wanted)


def _forms(scores: tf.TensorShape) -> str:
    form = ", ".join("B" if i == 0 else str(n) for i, n in enumerate(scores[:-1]))
    return f"labels of shape ({form}), ({form}, 1) or one-hot ({form}, {scores[-1]})"
