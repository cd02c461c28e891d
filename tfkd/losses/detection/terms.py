"""Terms of the MultiBox loss: confidence (focal loss), localization and soft targets.

Each is a sum over the selected priors of the batch, divided by N, the number of priors
with an object (at least 1): the loss of a batch without objects and negatives is 0.
"""

from __future__ import annotations

import tensorflow as tf

from tfkd import checks
from tfkd.losses.base import (
    Elements,
    ElementwiseLoss,
    Shared,
    at_step,
    check_temperature,
    only,
    register,
)
from tfkd.losses.detection.selection import MultiBoxSelection, Outputs, Selected
from tfkd.losses.standardization import check_classes, check_flag, scaled
from tfkd.schedules import Value


class MultiBoxTerm(ElementwiseLoss):
    """Base class of the terms: a loss for every prior, and a mask of those that count.

    Args:
        selection: `MultiBoxSelection`; None: the one of another loss of the Distiller.
        name: name of the term in logs.
    """

    arguments: tuple[str, ...] = ("selection",)

    def __init__(self, selection: MultiBoxSelection | None = None, name: str | None = None):
        super().__init__(name)
        if selection is not None:
            checks.instance("selection", selection, MultiBoxSelection, "a MultiBoxSelection")
        self.selection = selection

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Accepts any outputs: they are checked when the selection is known."""
        del teacher_outputs, student_outputs

    def elements(
        self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None, shared=None
    ):
        """One loss for every prior, (B, P), for one of the outputs."""
        selection = selection_of(self, shared)
        chosen = selection.once(shared, y, student_outputs, teacher_outputs)
        output, part = self.part(selection, chosen, teacher_outputs, student_outputs, step)
        return only(part, student_outputs, student_outputs[output])

    def part(
        self,
        selection: MultiBoxSelection,
        chosen: Selected,
        teacher: Outputs,
        student: Outputs,
        step: tf.Tensor | None,
    ) -> tuple[str, Elements]:
        """Returns the name of the output that has this loss, and the loss."""
        raise NotImplementedError


def selection_of(loss: object, shared: Shared | None) -> MultiBoxSelection:
    """Returns the loss's own selection, or the one that the Distiller's losses share.

    Raises:
        ValueError: if there is none.
    """
    selection = getattr(loss, "selection", None) or getattr(shared, "selection", None)
    if selection is None:
        expected = "a tfkd.losses.MultiBoxSelection, here or in another loss of the Distiller"
        fix = f"Which priors count is not known: {type(loss).__name__}(selection=...)."
        raise checks.value_error("selection", expected, None, fix)
    return selection


@register
class MultiBoxConfidence(MultiBoxTerm):
    """Cross-entropy, or focal loss, between the student's scores and the labels.

    Args:
        selection: as in `MultiBoxTerm`.
        focal_gamma: γ ≥ 0: with sigmoid scores each value is multiplied by (1 − p)^γ, p
            the probability of the true outcome (Lin et al. 2017); 0: plain cross-entropy.
        focal_alpha: None, or the weight α in (0, 1) of classes that are present; absent
            classes have 1 − α.
        name: name of the term in logs.

    Raises:
        ValueError: for γ < 0 or α outside [0, 1]; when called, for either with softmax
            scores.

    Reference:
        Liu et al. 2016, https://arxiv.org/abs/1512.02325 and
        Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """

    arguments = ("selection", "focal_gamma", "focal_alpha")
    default_name = "multibox_confidence"

    def __init__(
        self,
        selection: MultiBoxSelection | None = None,
        focal_gamma: float = 0.0,
        focal_alpha: float | None = None,
        name: str | None = None,
    ):
        super().__init__(selection, name)
        self.focal_gamma = float(checks.non_negative("focal_gamma", focal_gamma))
        if focal_alpha is not None:
            focal_alpha = float(checks.fraction("focal_alpha", focal_alpha))
        self.focal_alpha = focal_alpha

    def part(self, selection, chosen, teacher, student, step):
        """Cross-entropy at positives and hard negatives, divided by N."""
        values = chosen.losses
        if self.focal_gamma or self.focal_alpha is not None:
            if selection.scores != "sigmoid":
                expected = "0 and no focal_alpha, since the scores are a softmax"
                how = "negative_ratio=None, scores='sigmoid'"
                fix = f"Focal loss is for MultiBoxSelection(..., {how})."
                given = (self.focal_gamma, self.focal_alpha)
                raise checks.value_error("focal_gamma", expected, given, fix)
            _, scores = selection.outputs(student, "student")
            values = _focal(chosen.labels, scores, self.focal_gamma, self.focal_alpha)
        return selection.classes, Elements(values, chosen.selected, count=chosen.count)


def _focal(labels, scores, gamma, alpha):
    truth = tf.one_hot(labels - 1, scores.shape[-1])  # all zeros for the background
    values = tf.nn.sigmoid_cross_entropy_with_logits(labels=truth, logits=scores)
    # (1 − p)^γ = exp(γ · log σ(∓z)): unlike a power of 0, its gradient is never NaN.
    values *= tf.exp(gamma * tf.math.log_sigmoid((1.0 - 2.0 * truth) * scores))
    if alpha is not None:
        values *= truth * alpha + (1.0 - truth) * (1.0 - alpha)
    return tf.reduce_sum(values, -1)


@register
class MultiBoxLocalization(MultiBoxTerm):
    """Smooth L1 between the student's offsets and the encoded offsets of the objects.

    With d the difference, ½d² where |d| < 1 and |d| − ½ elsewhere, summed over the four
    offsets of a positive prior.

    Args:
        selection: as in `MultiBoxTerm`.
        name: name of the term in logs.

    Reference:
        Girshick 2015, "Fast R-CNN", https://arxiv.org/abs/1504.08083
    """

    default_name = "multibox_localization"

    def part(self, selection, chosen, teacher, student, step):
        """Smooth L1 at positives, divided by N."""
        offsets, _ = selection.outputs(student, "student")
        distance = tf.abs(offsets - chosen.offsets)
        values = tf.where(distance < 1.0, 0.5 * tf.square(distance), distance - 0.5)
        part = Elements(tf.reduce_sum(values, -1), chosen.positive, count=chosen.count)
        return selection.boxes, part


@register
class MultiBoxSoftTarget(MultiBoxTerm):
    """Soft targets on the selected priors: positives and hard negatives.

        T² · Σ_c w_c · p_t(c) · (log p_t(c) − log p_s(c)),   p = softmax(z / T)

    With all weights 1 this is the Kullback-Leibler divergence: never negative, and 0
    where the student equals the teacher. Chen et al. give the background a weight of 1.5
    (with T = 1); then the minimum is not at the teacher but at p_s ∝ w · p_t, which is
    biased towards background, and the value may be negative. For sigmoid scores it is the
    divergence of every class's Bernoulli distribution, where "absent" is the background.

    Args:
        temperature: T > 0, or a schedule of the step.
        background_weight: weight of the background class, above 0.
        foreground_weight: weight of all other classes, above 0.
        selection: as in `MultiBoxTerm`.
        name: name of the term in logs.
        standardize: whether z are Z-scores over the classes and the background, as in
            `LogitsDistillation`; for softmax scores, and two classes or more.

    The scores of several teachers are averaged.

    Raises:
        TypeError: if `standardize` is not a bool.
        ValueError: for T ≤ 0, or a weight that is not positive; when called, if the
            priors or classes of teacher and student differ, or for `standardize` with
            sigmoid scores.

    Reference:
        Chen et al. 2017, "Learning efficient object detection models with knowledge
        distillation", NeurIPS 2017

    Example:
        >>> import numpy as np, tensorflow as tf, tfkd
        >>> priors = np.array([[0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1]], "float32")
        >>> selection = tfkd.losses.MultiBoxSelection(tfkd.detection.Matcher(priors))
        >>> soft = tfkd.losses.MultiBoxSoftTarget(temperature=1.0, selection=selection)
        >>> y = {"boxes": tf.constant([[[0.0, 0, 0.5, 1]]]), "classes": tf.constant([[0]])}
        >>> outputs = lambda z: {
        ...     "boxes": tf.zeros((1, 2, 4)), "classes": tf.constant([[[0.0, z], [0.0, 0.0]]])}
        >>> round(float(soft.compute_loss(outputs(2.0), outputs(0.0), y=y)), 4)
        0.3278
    """

    arguments = (
        "selection", "temperature", "background_weight", "foreground_weight", "standardize"
    )  # fmt: skip
    default_name = "multibox_soft_target"

    def __init__(
        self,
        temperature: Value = 2.0,
        background_weight: float = 1.0,
        foreground_weight: float = 1.0,
        selection: MultiBoxSelection | None = None,
        name: str | None = None,
        standardize: bool = False,
    ):
        super().__init__(selection, name)
        self.standardize = check_flag(standardize)
        self.temperature = check_temperature(temperature)
        self.background_weight = float(checks.positive("background_weight", background_weight))
        self.foreground_weight = float(checks.positive("foreground_weight", foreground_weight))

    def part(self, selection, chosen, teacher, student, step):
        """The weighted divergence at positives and hard negatives, divided by N."""
        _, theirs = selection.outputs(teacher, "teacher")
        _, mine = selection.outputs(student, "student")
        check_alike(theirs, mine)
        temperature = at_step("temperature", self.temperature, step)
        softmax = selection.scores == "softmax"
        if self.standardize:
            self._check_standardized(softmax, mine)
        theirs = scaled(tf.stop_gradient(theirs), temperature, self.standardize)
        mine = scaled(mine, temperature, self.standardize)
        divergence = _softmax_divergence if softmax else sigmoid_divergence
        values = divergence(theirs, mine, self.background_weight, self.foreground_weight)
        values *= temperature**2
        return selection.classes, Elements(values, chosen.selected, count=chosen.count)

    def _check_standardized(self, softmax: bool, scores: tf.Tensor) -> None:
        if not softmax:
            fix = "The zero of a sigmoid's score has a meaning, which a Z-score would move."
            raise checks.value_error("standardize", "False with sigmoid scores", True, fix)
        check_classes(scores)


def check_alike(teacher: tf.Tensor, student: tf.Tensor) -> None:
    """Raises ValueError unless both have the same priors and classes, (B, P, ...)."""
    if not teacher.shape.is_compatible_with(student.shape):
        raise ValueError(
            "teacher and student must have the same priors and classes: the teacher's scores "
            f"are {tuple(teacher.shape)}, the student's {tuple(student.shape)} (batch, priors, "
            "classes). Build both with the same anchors and number of classes."
        )


def _softmax_divergence(teacher, student, background, foreground):
    log_t, log_s = tf.nn.log_softmax(teacher), tf.nn.log_softmax(student)
    weights = tf.constant([background] + [foreground] * (teacher.shape[-1] - 1), tf.float32)
    return tf.reduce_sum(weights * tf.exp(log_t) * (log_t - log_s), -1)


def sigmoid_divergence(
    teacher: tf.Tensor, student: tf.Tensor, background: float = 1.0, foreground: float = 1.0
) -> tf.Tensor:
    """KL of Bernoulli distributions from logits (B, P, C), summed over classes: (B, P)."""
    values = tf.zeros(())
    for sign, weight in ((1.0, foreground), (-1.0, background)):
        log_t, log_s = tf.math.log_sigmoid(sign * teacher), tf.math.log_sigmoid(sign * student)
        values += weight * tf.exp(log_t) * (log_t - log_s)
    return tf.reduce_sum(values, -1)
