"""Checks of teacher, student, losses and data before the first step of a Distiller."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, schedules
from tfkd.distillation import targets
from tfkd.losses.base import DistillationLoss
from tfkd.networks.accept import ANY, FLOAT16_ENDS, check_model
from tfkd.teachers.forward import computes_in_float16
from tfkd.teachers.precomputed import PrecomputedTeacher, split
from tfkd.teachers.top_k import check_top_k
from tfkd.types import Data, Structure


def check_losses(losses: Any, weights: Any) -> tuple[list[Any], list[Any]]:
    """Accepts one or several losses and their weights; returns two lists of one length.

    Raises:
        TypeError: if a loss is not a DistillationLoss, or a weight not a number or schedule.
        ValueError: if there is no loss, or weights are of the wrong number, NaN or negative.
    """
    if losses is None:
        raise ValueError(
            "'distillation_losses' cannot be `None`. Pass a distillation loss (such as "
            "tfkd.losses.LogitsDistillation()) or a list of them."
        )
    losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    if not losses:
        raise checks.value_error("distillation_losses", "at least one loss", losses)
    for loss in losses:
        expected = "instances of tfkd.losses.DistillationLoss"
        checks.instance("distillation_losses", loss, DistillationLoss, expected)
    if weights is None:
        return losses, [1.0] * len(losses)
    if not isinstance(weights, (list, tuple)):
        weights = [weights]
    if len(weights) != len(losses):
        raise ValueError(
            f"Number of distillation_loss_weights ({len(weights)}) must match number of "
            f"distillation_losses ({len(losses)}): one weight for each loss."
        )
    name = "distillation_loss_weights"
    return losses, [schedules.get(name, weight, checks.non_negative) for weight in weights]


def precomputed(teachers: list[Any], losses: list[Any]) -> PrecomputedTeacher | None:
    """The precomputed teacher among the teachers, or None.

    Raises:
        ValueError: if there are other teachers, or it holds only the top-k scores and a
            loss needs all of them.
    """
    found = [teacher for teacher in teachers if isinstance(teacher, PrecomputedTeacher)]
    if not found:
        return None
    if len(teachers) > 1:
        fix = "To average several teachers build one cache: TeacherCache.build(path, [a, b], x)."
        raise checks.value_error("teacher", "one cached teacher alone, or models", teachers, fix)
    if found[0].layout.top_k is not None:
        for loss in losses:
            if not (loss.teacher_layer_name or loss.student_layer_name):
                check_top_k(loss, found[0].layout.temperature)
    return found[0]


def check_precomputed(teacher: PrecomputedTeacher, x: Data) -> None:
    """Raises ValueError for data without the outputs of the precomputed teacher."""
    spec = getattr(x, "element_spec", None)
    if spec is not None:
        part = spec[0] if isinstance(spec, tuple) else spec
        if split(part)[1] is not None:
            return
    elif not tf.nest.is_nested(x) and not hasattr(x, "shape"):
        return  # a generator or a function that makes data sets: checked when traced
    raise ValueError(
        f"`x`: expected batches with the outputs of {teacher.where}, received "
        f"{checks.describe(x)} without. Pass {teacher.how}."
    )


def check_student_weight(weight: Any) -> Any:
    """Accepts w in [0, 1] or a schedule; ValueError as in `keras.distillation`."""
    try:
        return schedules.get("student_loss_weight", weight, checks.fraction)
    except TypeError as error:
        raise ValueError(str(error)) from error


def check_student(student: Any) -> None:
    """Raises ValueError, as `keras.distillation` does, unless it is a tf_keras model."""
    try:
        check_model("student", student, ANY)
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_apart(teachers: list[Any], student: keras.Model) -> None:
    """Raises ValueError if a teacher shares variables with the student."""
    mine = {id(v) for v in _variables(student)}
    for teacher in teachers:
        if teacher is student or any(id(v) in mine for v in _variables(teacher)):
            raise ValueError(
                "teacher and student share weights: freezing the teacher would freeze the "
                "student. Pass teacher=tfkd.frozen_copy(model) for self-distillation."
            )


def _variables(model: Any) -> list[Any]:
    """The variables of a model; [] if it is not built."""
    try:
        return list(getattr(model, "variables", None) or ())
    except ValueError:
        return []


_FIRST = 64  # examples on which float16 teachers are checked


def check_float16(teachers: list[Any], forward: Any, x: Any) -> None:
    """Raises ValueError if float16 teachers overflow on the first examples.

    Args:
        teachers: as passed to the Distiller.
        forward: runs them, and returns the outputs that the losses use.
        x: data of `fit`.
    """
    if not any(computes_in_float16(one) for one in teachers):
        return
    first = _first_examples(x)
    if first is None or not _all_finite(first) or _all_finite(forward(first)):
        return
    raise ValueError(
        "`teacher`: expected finite outputs, received NaN or infinity on the first examples, in "
        f"float16. {FLOAT16_ENDS} Use bfloat16, which ends where float32 does: "
        'tfkd.frozen_copy(model, dtype="bfloat16"), or the policy "mixed_bfloat16".'
    )


def _all_finite(values: Any) -> bool:
    leaves = (tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(values) if leaf is not None)
    return all(bool(tf.reduce_all(tf.math.is_finite(t))) for t in leaves if t.dtype.is_floating)


def _first_examples(x: Any) -> Any:
    """The inputs of the first examples; None if reading would consume them."""
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)), None)
        x = None if batch is None else keras.utils.unpack_x_y_sample_weight(batch)[0]
    elif isinstance(x, keras.utils.Sequence):
        x = keras.utils.unpack_x_y_sample_weight(x[0])[0]
    leaves = tf.nest.flatten(x)
    if x is None or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return None
    return tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:_FIRST]), split(x)[0])


def check_fit_data(
    x: Data,
    y: Structure | None,
    sample_weight: Structure | None,
    shape: tuple[int | None, ...] | None,
    loss: Any,
    labels_are_used: bool = True,
) -> None:
    """Checks the data as far as possible before `fit` or `evaluate` begins.

    Args:
        x: arrays, a `tf.data.Dataset`, or anything else that Keras takes.
        y, sample_weight: targets and weights, or None.
        shape: shape of the student's output, or None if it is not known, or of several.
        loss: the student's loss, as given to `compile`.
        labels_are_used: False if that loss has a weight of 0.

    Raises:
        TypeError: for labels or weights that are text or objects.
        ValueError: for data without examples, labels outside [0, classes), or weights
            without labels.
    """
    if isinstance(x, tf.data.Dataset):
        if int(x.cardinality()) == 0:
            raise ValueError(
                "`x`: expected at least one batch, received an empty Dataset. Check how it is "
                "filtered or split."
            )
        _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    else:
        _check_examples(x)
        if y is None and sample_weight is not None:
            expected = "none without labels: Keras passes weights on only together with `y`"
            fix = "Pass any `y`, such as np.zeros(len(x)): without a loss on it, it is not used."
            raise checks.value_error("sample_weight", expected, sample_weight, fix)
    targets.check(y, shape, loss, labels_are_used)
    targets.check_weights(sample_weight)


def _check_examples(x: Any) -> None:
    arrays = tf.nest.flatten(x)
    if not arrays or x is None:
        raise checks.value_error("x", "at least one example", x, "Pass arrays or a Dataset.")
    for array in arrays:
        if hasattr(array, "shape") and len(array.shape) > 0 and array.shape[0] == 0:
            raise checks.value_error("x", "at least one example", array, "Check how it is split.")


PROBABILITY_LOSSES = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
)


def warn_of_logits(loss: Any, student: keras.Model) -> None:
    """Warns if a loss expects probabilities but the student returns logits."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    layers = getattr(student, "layers", None)
    if name not in PROBABILITY_LOSSES or not layers:
        return
    if getattr(layers[-1], "activation", None) is keras.activations.linear:
        checks.warn(
            f"loss={name!r} takes probabilities, but the student's last layer "
            f"{layers[-1].name!r} has no activation, so it returns logits. Pass the loss as an "
            "instance with from_logits=True."
        )


def check_trainable(student: keras.Model) -> None:
    """Raises ValueError if all weights of the student are frozen: `fit` would change nothing."""
    if student.built and student.weights and not student.trainable_weights:
        raise ValueError(
            f"`student`: expected a model that can be trained, received {student.name!r}, all of "
            "whose weights are frozen. Set student.trainable = True (a Distiller freezes its "
            "teacher: a model that was one before is still frozen)."
        )


def check_calibrated(student: keras.Model) -> None:
    """Raises if the student is quantized but not calibrated.

    This is checked before tracing: Keras cannot retrace a step whose first trace failed.
    """
    getattr(student, "check_calibrated", lambda: None)()
