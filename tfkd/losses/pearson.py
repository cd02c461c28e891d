"""DIST (Huang et al. 2022): Pearson correlations between and within classes."""

from __future__ import annotations

import tensorflow as tf

from tfkd import checks, replicas, schedules
from tfkd.losses.base import (
    Elements,
    ElementwiseLoss,
    OneOutput,
    at_step,
    check_temperature,
    mask_of,
    only,
    register,
    select_like,
)
from tfkd.losses.logits import check_scores
from tfkd.losses.standardization import check_classes, check_flag, scaled
from tfkd.losses.weighting import weights_like
from tfkd.schedules import Value
from tfkd.types import Structure

_EPSILON = 1e-8  # the authors': added to the product of two norms
_TINY = 1e-30  # a squared norm, of which the root must have a finite gradient


@register
class PearsonDistillation(OneOutput, ElementwiseLoss):
    """DIST: the student's probabilities correlate with the teacher's, instead of equalling them.

    With p = softmax(z / T) of B examples and C classes, and ρ the Pearson correlation,

        T² · [β · mean_i (1 − ρ(p_t[i, :], p_s[i, :])) + γ · mean_c (1 − ρ(p_t[:, c], p_s[:, c]))]

    The first part (inter-class) correlates the classes of each example, the second
    (intra-class) the examples of each class. A correlation ignores shift and scale, so a
    student that is much weaker than its teacher need not match its confidence. The loss on the
    labels alone says how sure it should be: before you use its probabilities, divide its scores
    by `tfkd.report.fit_temperature` of held-out examples, as recipes do.

    Positions of outputs (B, ..., C) count as examples. Sample weights w multiply an
    example's part and are the weights of means and covariances in the intra-class part,
    which is multiplied by the mean of w: an example of weight 0, or a masked position, has no
    influence on the others. Under a `tf.distribute` strategy the intra-class part is that of
    the global batch, whose probabilities are gathered.

    The intra-class part needs examples to compare, at best many of each class: it is 0 for
    fewer than two (of a weight above 0), and noisy for small batches. With two classes, the
    inter-class part has no gradient. ρ is computed as covariance / (product of norms + 1e-8),
    as by the authors: a class whose probability hardly varies counts as uncorrelated.

    Args:
        temperature: T > 0, or a schedule of the step.
        beta: weight of the inter-class part, at least 0, or a schedule.
        gamma: weight of the intra-class part, at least 0, or a schedule.
        output: name (dict) or index (list) of the output that holds the class scores, for a
            model with several.
        name: name of the term in logs.
        standardize: whether z are Z-scores, as in `LogitsDistillation`; for C of at least 3.

    Raises:
        TypeError: if a weight is not a number, schedule or callable, or `standardize` not a bool.
        ValueError: for T ≤ 0, a negative weight, or a value that is not finite; when called,
            if the models do not score the same classes.

    Reference:
        Huang et al. 2022, "Knowledge distillation from a stronger teacher",
        https://arxiv.org/abs/2205.10536

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.PearsonDistillation(temperature=1.0)
        >>> teacher = tf.math.log([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
        >>> unsure = tf.math.log([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]])  # in the same order
        >>> wrong = tf.math.log([[0.3, 0.4, 0.3], [0.4, 0.3, 0.3]])
        >>> [round(float(loss.compute_loss(teacher, each)), 2) for each in (unsure, wrong)]
        [0.33, 3.17]
    """

    arguments = ("temperature", "beta", "gamma", "output", "standardize")
    on_logits = True

    def __init__(
        self,
        temperature: Value = 4.0,
        beta: Value = 1.0,
        gamma: Value = 1.0,
        output: str | int | None = None,
        name: str | None = None,
        standardize: bool = False,
    ):
        super().__init__(output, name)
        self.temperature = check_temperature(temperature)
        self.beta = schedules.get("beta", beta, checks.non_negative)
        self.gamma = schedules.get("gamma", gamma, checks.non_negative)
        self.standardize = check_flag(standardize)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both models score the same classes in this output."""
        student = self._select(student_outputs)
        check_scores(self._select(teacher_outputs), student)
        if self.standardize:
            check_classes(student)

    def elements(self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None):
        """One loss per example, (B,) or (B, ...): its own part and the batch's."""
        self.validate_outputs(teacher_outputs, student_outputs)
        teacher, student = self._select(teacher_outputs), self._select(student_outputs)
        temperature, mask = at_step("temperature", self.temperature, step), mask_of(student)
        theirs, mine = (
            tf.nn.softmax(scaled(scores, temperature, self.standardize))
            for scores in (tf.stop_gradient(teacher), student)
        )
        inter = 1.0 - correlation(theirs, mine)
        weight = self._weights(inter, sample_weight, mask, student)
        intra = intra_class(theirs, mine, weight)
        values = at_step("beta", self.beta, step) * inter
        values += at_step("gamma", self.gamma, step) * intra
        # T² is the authors', who take it over from soft targets.
        part = Elements(temperature * temperature * values, mask)
        return only(part, student_outputs, student)

    def _weights(
        self,
        values: tf.Tensor,
        sample_weight: Structure | None,
        mask: tf.Tensor | None,
        student: tf.Tensor,
    ) -> tf.Tensor:
        """Weights of the examples or positions, in the shape of `values`; 0 where masked."""
        weight, given = tf.ones_like(values), tf.nest.flatten(sample_weight)
        one = given[0] if len(given) == 1 else select_like(sample_weight, self.output, self.name)
        if one is not None:
            weight *= weights_like(values, one, self, student)
        return weight if mask is None else weight * weights_like(values, mask, self, student)


def correlation(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Pearson correlation over the last axis: (..., C) → (...)."""
    teacher, student = (p - tf.reduce_mean(p, -1, keepdims=True) for p in (teacher, student))
    return _cosine(teacher, student, -1)


def intra_class(teacher: tf.Tensor, student: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """The mean over classes of 1 − ρ over the global batch's examples, a scalar.

    Args:
        teacher, student: probabilities (B, ..., C) of this replica.
        weight: (B, ...), of each example or position.
    """
    rows = [tf.reshape(p, [-1, student.shape[-1]]) for p in (teacher, student)]
    *rows, weight = replicas.gathered([*rows, tf.reshape(weight, [-1])])
    count = tf.math.count_nonzero(weight, dtype=tf.float32)
    # Weights of mean 1 over the examples that count: ε is for sums over examples.
    weight = tf.math.divide_no_nan(weight * count, tf.reduce_sum(weight))[:, None]
    means = [tf.reduce_sum(weight * p, 0) / tf.maximum(count, 1.0) for p in rows]
    theirs, mine = (tf.sqrt(weight) * (p - mean) for p, mean in zip(rows, means, strict=True))
    return tf.where(count < 2.0, 0.0, 1.0 - tf.reduce_mean(_cosine(theirs, mine, 0)))


def _cosine(a: tf.Tensor, b: tf.Tensor, axis: int) -> tf.Tensor:
    norms = (tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(v), axis), _TINY)) for v in (a, b))
    return tf.reduce_sum(a * b, axis) / (next(norms) * next(norms) + _EPSILON)
