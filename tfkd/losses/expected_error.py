"""Expected-error loss 1 − p(y), a differentiable error rate, and the curriculum objective.

    L_total = α · L_KD + β · L_CL,    L_CL = 1 − accuracy

Accuracy has no useful gradient, but its expectation has one if the predicted class is
sampled from the student's probabilities.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd import checks, schedules
from tfkd.losses.base import Elements, ElementwiseLoss, OneOutput, mask_of, only, register
from tfkd.losses.decoupled import as_labels, class_labels
from tfkd.losses.heads import scores_behind, with_classes
from tfkd.losses.logits import LogitsDistillation, check_scores
from tfkd.schedules import Value
from tfkd.types import Tensor


@register
class ExpectedErrorLoss(OneOutput, ElementwiseLoss):
    """1 − p(y): the expected error of a class sampled from the student's probabilities.

    The mean over examples (and positions) of 1 − p_s(y), with p_s the softmax of the
    student's scores, is 1 − accuracy in expectation, and is differentiable:

        ∂L/∂z_c = −p_s(y) (δ_cy − p_s(c))

    The loss of an example is at most 1, and its gradient vanishes where p_s(y) is near 0:
    a wrong label does less harm than under cross-entropy, but an untrained network learns
    more slowly. Combine it with soft targets or cross-entropy. The teacher's outputs are
    not used.

    In a Distiller it is one of the distillation losses and needs labels. It is also a
    loss on the labels for `compile(loss=ExpectedErrorLoss())` of any Keras model that
    ends in class scores or in a softmax.

    Args:
        output: name (dict) or index (list) of the output that holds the class
            scores, for a model with several; targets in the same structure are
            selected in the same way.
        name: name of the term in logs.

    Scores have shape (B, ..., C). Labels y are class numbers of shape (B, ...) or
    (B, ..., 1), or probabilities (one-hot or soft) of shape (B, ..., C). With C = 1 the
    score is that of a sigmoid, and y is in [0, 1], of shape (B, ...) or (B, ..., 1).

    Raises:
        TypeError: if `output` is neither a name nor an index.
        ValueError: when called, if y is None or does not fit the scores.
        tf.errors.InvalidArgumentError: when called, for a label outside 0 ... C − 1.

    Reference:
        Half of the mean absolute error of Ghosh et al. 2017,
        "Robust loss functions under label noise", https://arxiv.org/abs/1712.09482

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.ExpectedErrorLoss()
        >>> scores, y = tf.math.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), tf.constant([0, 2])
        >>> round(float(loss.compute_loss(scores, scores, y=y)), 4)
        0.7
        >>> loss(y, scores).numpy()  # as a loss on the labels: one value per example
        array([0.5, 0.9], dtype=float32)
    """

    on_logits = True

    def __call__(self, y_true: Tensor, y_pred: Tensor) -> tf.Tensor:
        """The loss on the labels as Keras calls it: float32 (B, ...), one per example.

        Args:
            y_true: labels, as described for the class.
            y_pred: class scores, or the output of a softmax or sigmoid.
        """
        y, mask = class_labels(y_true), mask_of(y_pred)
        scores = scores_behind(with_classes(y, tf.convert_to_tensor(y_pred)))
        return expected_error(y, scores, mask)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both models score the same classes in this output."""
        check_scores(self._select(teacher_outputs), self._select(student_outputs), binary=True)

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss per example, (B,) or (B, ...), for the output with the scores."""
        self.validate_outputs(teacher_outputs, student_outputs)
        y = class_labels(self._labels(y, fix="LogitsDistillation alone needs none."))
        student = self._select(student_outputs)
        mask = mask_of(student)
        return only(Elements(expected_error(y, student, mask), mask), student_outputs, student)


def expected_error(y: Tensor, scores: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Σ_c (1 − y(c)) · p(c) = 1 − Σ_c y(c) · p(c), float32 (B, ...).

    The first form, which is computed, has no cancellation where p(y) is near 1.

    Args:
        y: labels in any form that `ExpectedErrorLoss` accepts.
        scores: (B, ..., C), before softmax or sigmoid.
        mask: (B, ...) bool or None; labels are padding, of any value, where it is False.
    """
    classes, z = scores.shape[-1], tf.cast(scores, tf.float32)
    if classes == 1:
        y = tf.cast(_like(y, z), tf.float32)
        y = tf.concat([1.0 - y, y], -1)
        p = tf.concat([tf.sigmoid(-z), tf.sigmoid(z)], -1)
    else:
        p = tf.exp(tf.nn.log_softmax(z))
        if y.shape.rank is None or (y.shape.rank == z.shape.rank and y.shape[-1] is None):
            y = tf.cond(
                tf.size(y) == tf.size(z),
                lambda: tf.cast(tf.reshape(y, tf.shape(z)), tf.float32),
                lambda: _one_hot(y, z, mask),
            )
        elif not (y.shape.rank == z.shape.rank and y.shape[-1] == classes):
            y = _one_hot(y, z, mask)
        y = tf.cast(y, tf.float32)
    if mask is not None:
        # A uniform distribution in place of padding passes the check below.
        y = tf.where(tf.cast(mask, tf.bool)[..., None], y, 1.0 / max(classes, 2))
    # The tolerance is for soft labels that were rounded, for example to bfloat16.
    sums_to_one = tf.abs(tf.reduce_sum(y, -1) - 1.0) < 1e-2
    is_distribution = tf.reduce_all(y >= 0.0) & tf.reduce_all(sums_to_one)
    _assert(is_distribution, max(classes, 2), ", or rows of probabilities that sum to 1")
    return tf.reduce_sum((1.0 - y) * p, -1)


def _one_hot(y: Tensor, scores: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    labels, classes = as_labels(y, scores, mask), scores.shape[-1]
    _assert(tf.reduce_all((labels >= 0) & (labels < classes)), classes)
    return tf.one_hot(labels, classes)


def _like(y: Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Returns y with the last axis of size 1 that the scores have."""
    given = y
    if y.shape.rank is None:
        return tf.reshape(y, tf.shape(scores))
    if y.shape.rank == scores.shape.rank - 1:
        y = y[..., None]
    if not y.shape.is_compatible_with(scores.shape):
        expected = f"one label for each score, of shape {tuple(scores.shape)}"
        raise checks.value_error("y", expected, given)
    return y


def _assert(condition: tf.Tensor, classes: int, more: str = "") -> None:
    expected = f"labels from 0 to {classes - 1}, as many as there are classes{more}"
    tf.debugging.Assert(condition, [f"`y`: expected {expected}."])


def curriculum_objective(
    alpha: Value = 1.0, beta: Value = 1.0, temperature: Value = 4.0
) -> dict[str, Any]:
    """Returns the objective α · L_KD + β · L_CL as arguments for a Distiller.

    L_KD is `LogitsDistillation` (soft targets), L_CL is `ExpectedErrorLoss`. The loss on
    the labels that is passed to `compile` has weight 0: it is logged but not minimised.

    Args:
        alpha: weight of the soft targets, at least 0, or a schedule of the step.
        beta: weight of the expected error, at least 0, or a schedule.
        temperature: T > 0 of the soft targets, or a schedule.

    Returns:
        Keyword arguments of `tfkd.Distiller`: `distillation_losses`,
        `distillation_loss_weights` and `student_loss_weight`.

    Raises:
        TypeError: if a weight is neither a number nor a schedule.
        ValueError: for a negative weight, two weights of 0, or T ≤ 0.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> net = lambda units: keras.Sequential([
        ...     keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(3)])
        >>> objective = tfkd.losses.curriculum_objective(
        ...     alpha=1.0, beta=tfkd.schedules.Linear(0.0, 1.0, 0, 100))
        >>> distiller = tfkd.Distiller(net(32), net(4), **objective)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss, metrics=["accuracy"])
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> history = distiller.fit(x, y, verbose=0).history
        >>> [name for name in history if name.endswith(("error_loss", "logits_distillation"))]
        ['logits_distillation', 'expected_error_loss']
    """
    given = {"alpha": alpha, "beta": beta}
    weights = [schedules.get(name, v, checks.non_negative) for name, v in given.items()]
    if all(checks.is_number(weight) and weight == 0 for weight in weights):
        raise checks.value_error("beta", "alpha or beta above 0", beta)
    return {
        "distillation_losses": [LogitsDistillation(temperature), ExpectedErrorLoss()],
        "distillation_loss_weights": weights,
        "student_loss_weight": 0.0,
    }
