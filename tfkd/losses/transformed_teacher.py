"""Transformed teacher matching (TTM, WTTM): the temperature is the teacher's alone."""

from __future__ import annotations

import tensorflow as tf

from tfkd import checks
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
from tfkd.losses.logits import check_scores, kl_from_logits
from tfkd.losses.standardization import check_classes, check_flag, scaled
from tfkd.schedules import Value


@register
class TransformedTeacherMatching(OneOutput, ElementwiseLoss):
    """WTTM: the student, at T = 1, matches the powers of the teacher's probabilities.

    With p = softmax(z) of teacher and student and γ = 1 / T, the loss of one example is

        U · KL(p_t^γ / U ‖ p_s),   U = Σ_c p_t(c)^γ

    averaged over examples (and positions). p_t^γ / U = softmax(z_t / T), as in soft targets,
    but the student's scores are not divided by T. The weight U, between 1 and C^(1 − γ),
    is largest where the teacher is unsure; with `weighted=False` it is left out (TTM). TTM is
    soft targets with a penalty on the student's confidence, its Rényi entropy of order γ.

    Args:
        temperature: T = 1 / γ > 0, or a schedule of the step. The paper uses 5 to 10.
        weighted: whether examples are weighted by U.
        output: name (dict) or index (list) of the output that holds the class scores, for a
            model with several.
        name: name of the term in logs.
        standardize: whether z are Z-scores, as in `LogitsDistillation`; for C of at least 3.

    Scores have shape (B, ..., C), C at least 2.

    Raises:
        TypeError: if `weighted` or `standardize` is not a bool.
        ValueError: for T ≤ 0 or not finite; when called, if the models do not score the same
            classes.

    Reference:
        Zheng and Yang 2024, "Knowledge distillation based on transformed teacher matching",
        https://arxiv.org/abs/2402.11148

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> teacher, student = tf.math.log([[0.64, 0.36]]), tf.math.log([[0.5, 0.5]])
        >>> matching = tfkd.losses.TransformedTeacherMatching
        >>> round(float(matching(2.0).compute_loss(teacher, student)), 4)  # U = 0.8 + 0.6
        0.0143
        >>> round(float(matching(2.0, weighted=False).compute_loss(teacher, student)), 4)
        0.0102
    """

    arguments = ("temperature", "weighted", "output", "standardize")
    on_logits = True

    def __init__(
        self,
        temperature: Value = 5.0,
        weighted: bool = True,
        output: str | int | None = None,
        name: str | None = None,
        standardize: bool = False,
    ):
        super().__init__(output, name)
        self.temperature = check_temperature(temperature)
        self.weighted = checks.instance("weighted", weighted, bool, "True or False")
        self.standardize = check_flag(standardize)

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
        temperature = at_step("temperature", self.temperature, step)
        teacher_z = scaled(tf.stop_gradient(teacher), 1.0, self.standardize)
        powers = tf.nn.log_softmax(teacher_z) / temperature
        values = kl_from_logits(powers, scaled(student, 1.0, self.standardize))
        if self.weighted:
            values *= tf.reduce_sum(tf.exp(powers), -1)
        return only(Elements(values, mask_of(student)), student_outputs, student)
