"""Teacher-bounded regression loss: a student that beats its teacher has no loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from tfkd import checks, schedules
from tfkd.losses.base import Elements, ElementwiseLoss, OneOutput, at_step, mask_of, only, register
from tfkd.schedules import Value

if TYPE_CHECKING:
    from tfkd.losses.detection.selection import MultiBoxSelection


@register
class BoundedRegression(OneOutput, ElementwiseLoss):
    """Squared error to the truth where the student is not yet better than the teacher.

    The error of a teacher's regression output is unbounded, so it makes a poor target.
    The target is the truth y, and the teacher's error is the bound up to which the student
    learns; for each prediction s of the student and t of the teacher, and the margin m:

        b = ‖s − y‖²  where ‖s − y‖² + m > ‖t − y‖²,  else 0

    with squared L2 norms over the last axis, averaged over predictions. With a margin the
    student must be better than the teacher by m.

    Args:
        margin: m, at least 0, in squared units of y; or a schedule of the step.
        output: name (dict) or index (list) of the output to compare, for a model with
            several; targets in the same structure are selected in the same way.
        mask: None, or a function y → bool of shape (B,) or (B, P) that returns which
            predictions count, such as the anchors with an object. The mean is over
            those, and 0 if there are none. A Keras mask of the student's output applies
            as well.
        selection: for a detector: the `MultiBoxSelection` that matches priors with objects
            and computes the target offsets; it excludes `output` and `mask`. None: the
            selection of another loss of the Distiller, if the model has a dict of outputs
            and neither output nor mask is given; otherwise y is the target itself.
        name: name of the term in logs.

    Outputs and targets have the same shape: (B,), (B, 1), (B, D) or (B, P, D). The last
    axis holds one prediction; with shape (B,) each number is one.

    Raises:
        TypeError: if the margin is not a number or schedule, or the mask not a function.
        ValueError: for a negative margin; when called, if y is None or does not fit.

    Reference:
        Chen et al. 2017, "Learning efficient object detection models with
        knowledge distillation", NeurIPS 2017

    Example:
        >>> import tensorflow as tf
        >>> import tfkd
        >>> loss = tfkd.losses.BoundedRegression()
        >>> y, teacher = tf.constant([[0.0], [0.0]]), tf.constant([[1.0], [1.0]])
        >>> student = tf.constant([[2.0], [0.5]])  # worse, and better, than the teacher
        >>> float(loss.compute_loss(teacher, student, y=y))
        2.0
    """

    arguments = ("margin", "output", "mask", "selection")

    def __init__(
        self,
        margin: Value = 0.0,
        output: str | int | None = None,
        mask: Callable[[tf.Tensor], tf.Tensor] | None = None,
        name: str | None = None,
        selection: MultiBoxSelection | None = None,
    ):
        super().__init__(output, name)
        self.selection = selection
        if selection is not None and not hasattr(selection, "once"):
            raise checks.type_error("selection", "a tfkd.losses.MultiBoxSelection", selection)
        for argument, given in (("output", output), ("mask", mask)):
            if selection is not None and given is not None:
                fix = "The selection determines the output and the predictions that count."
                raise checks.value_error(argument, "None with a selection", given, fix)
        self.margin = schedules.get("margin", margin, checks.non_negative)
        self.mask = mask if mask is None else checks.function("mask", mask)

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raises ValueError unless both models have the output, in the same shape."""
        if self.output is None and isinstance(student_outputs, dict):
            return  # a detector's outputs are checked when the selection is known
        self._check_outputs(teacher_outputs, student_outputs)

    def _check_outputs(self, teacher_outputs, student_outputs):
        teacher, student = self._select(teacher_outputs), self._select(student_outputs)
        if not _same_shape(teacher, student):
            raise ValueError(
                f"{self.name}: predictions must have the same shape, the teacher's is "
                f"{teacher.shape}, the student's {student.shape}."
            )

    def elements(
        self, teacher_outputs, student_outputs, y=None, sample_weight=None, step=None, shared=None
    ):
        """One loss per prediction, (B,) or (B, P), for the output that is compared."""
        selection = self.selection or getattr(shared, "selection", None)
        own = self.output is not None or self.mask is not None
        if selection is not None and not own and isinstance(student_outputs, dict):
            return self._at_objects(selection, teacher_outputs, student_outputs, y, step, shared)
        self._check_outputs(teacher_outputs, student_outputs)
        chosen = self._select(student_outputs)
        teacher = tf.stop_gradient(_vectors(self._select(teacher_outputs)))
        student = _vectors(chosen)
        truth = self._truth(y, chosen)
        mask = self._kept(truth, student, mask_of(chosen))
        target = _vectors(truth)
        if mask is not None:
            # A masked target may be NaN, which must not reach the gradient.
            target = tf.where(mask[..., None], target, tf.stop_gradient(student))
        values = self._bounded(student, teacher, target, step)
        return only(Elements(values, mask), student_outputs, chosen)

    def _bounded(self, student, teacher, target, step):
        error = tf.reduce_sum(tf.square(student - target), -1)
        bound = tf.reduce_sum(tf.square(teacher - target), -1)
        worse = error + at_step("margin", self.margin, step) > bound
        return tf.where(worse, error, 0.0)

    def _at_objects(self, selection, teacher_outputs, student_outputs, y, step, shared):
        """The loss of a detector at the priors that are matched with an object."""
        chosen = selection.once(shared, y, student_outputs, teacher_outputs)
        teacher, _ = selection.outputs(teacher_outputs, "teacher")
        student, _ = selection.outputs(student_outputs, "student")
        if not teacher.shape.is_compatible_with(student.shape):
            raise ValueError(
                f"{self.name}: predictions must have the same shape, the teacher's is "
                f"{teacher.shape}, the student's {student.shape}. Build both with the same anchors."
            )
        values = self._bounded(student, tf.stop_gradient(teacher), chosen.offsets, step)
        part = Elements(values, chosen.positive, count=chosen.count)
        return only(part, student_outputs, student_outputs[selection.boxes])

    def _truth(self, y, student):
        y = tf.convert_to_tensor(self._labels(y, "targets"))
        if y.shape.rank is None:
            return tf.reshape(y, tf.shape(student))
        if not _same_shape(y, student):
            expected = f"targets in the shape of the predictions, {tuple(student.shape)}"
            raise checks.value_error("y", expected, y)
        return y

    def _kept(self, y, student, keras_mask):
        """The conjunction of Keras's mask and the user's, bool (B,) or (B, P), or None."""
        masks = [keras_mask, None if self.mask is None else self.mask(y)]
        masks = [tf.cast(mask, tf.bool) for mask in masks if mask is not None]
        for mask in masks:
            if not mask.shape.is_compatible_with(student.shape[:-1]):
                expected = f"one bool per prediction, {tuple(student.shape[:-1])}"
                raise checks.value_error("mask", expected, mask)
        return tf.reduce_all(tf.stack(masks), 0) if masks else None


def _vectors(values: tf.Tensor) -> tf.Tensor:
    """Returns float32 values, with a last axis added to shape (B,)."""
    values = tf.cast(values, tf.float32)
    return values[:, None] if len(values.shape) == 1 else values


def _same_shape(first: tf.Tensor, second: tf.Tensor) -> bool:
    """Whether shapes agree; (B,) and (B, 1) count as equal."""
    shapes = [t.shape if len(t.shape) > 1 else (t.shape[0], 1) for t in (first, second)]
    return tf.TensorShape(shapes[0]).is_compatible_with(shapes[1])
