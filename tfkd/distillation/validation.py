"""What must hold between teacher, student, losses and data before a step runs."""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, schedules
from tfkd.distillation import targets
from tfkd.losses.base import DistillationLoss
from tfkd.networks.accept import ANY, check_model
from tfkd.networks.layer_weights import FLOAT16_ENDS
from tfkd.teachers.features import FINAL
from tfkd.teachers.forward import computes_in_float16
from tfkd.teachers.precomputed import RidingTeacher, split
from tfkd.teachers.top_k import check_top_k


def check_losses(losses: Any, weights: Any) -> tuple[list[Any], list[Any]]:
    """Accepts one loss or several, and a weight for each: two lists of one length.

    Raises:
        TypeError: for what is no DistillationLoss, or no weight.
        ValueError: for no loss at all, weights of another number, NaN or negative.
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


def riding(teachers: list[Any], losses: list[Any]) -> RidingTeacher | None:
    """The teacher whose outputs come with the data, if it is one.

    Raises:
        ValueError: if it stands beside others, or holds only the best scores and a loss
            needs more.
    """
    found = [teacher for teacher in teachers if isinstance(teacher, RidingTeacher)]
    if not found:
        return None
    if len(teachers) > 1:
        raise checks.value_error(
            "teacher",
            "one cached teacher alone, or models",
            teachers,
            "To average several teachers build one cache: TeacherCache.build(path, [a, b], x).",
        )
    if found[0].layout.top_k is not None:
        for loss in losses:
            if not (loss.teacher_layer_name or loss.student_layer_name):
                check_top_k(loss, found[0].layout.temperature)
    return found[0]


def check_riding(teacher: RidingTeacher, x: Any) -> None:
    """Raises ValueError for data that carry no outputs of the teacher."""
    spec = getattr(x, "element_spec", None)
    if spec is not None:
        part = spec[0] if isinstance(spec, tuple) else spec
        if split(part)[1] is not None:
            return
    elif not tf.nest.is_nested(x) and not hasattr(x, "shape"):
        return  # a generator or a creator of data sets: seen when it is traced
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


def check_apart(teachers: list[Any], student: Any) -> None:
    """Raises ValueError if a teacher shares variables with the student."""
    mine = {id(v) for v in _variables(student)}
    for teacher in teachers:
        if teacher is student or any(id(v) in mine for v in _variables(teacher)):
            raise ValueError(
                "teacher and student share weights: freezing the teacher would freeze the "
                "student. Pass teacher=tfkd.frozen_copy(model) for self-distillation."
            )


def _variables(model: Any) -> list[Any]:
    """The variables of a model, none if it has not been built."""
    try:
        return list(getattr(model, "variables", None) or ())
    except ValueError:
        return []


_FIRST = 64


def check_float16(teachers: list[Any], forward: Any, x: Any) -> None:
    """Raises ValueError if teachers in float16 leave its range on the first examples.

    Args:
        teachers: as passed.
        forward: runs them, and returns all that the losses see.
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
    """The inputs of the first examples; None if they can't be had without using them up."""
    if isinstance(x, tf.data.Dataset):
        batch = next(iter(x.take(1)), None)
        x = None if batch is None else keras.utils.unpack_x_y_sample_weight(batch)[0]
    elif isinstance(x, keras.utils.Sequence):
        x = keras.utils.unpack_x_y_sample_weight(x[0])[0]
    leaves = tf.nest.flatten(x)
    if x is None or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return None
    return tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:_FIRST]), split(x)[0])


def check_inputs(teachers: list[Any], student: Any) -> None:
    """Raises ValueError if the models can't take the same input."""
    mine = getattr(student, "inputs", None)
    for teacher in teachers:
        theirs = getattr(teacher, "inputs", None)
        if not mine or not isinstance(theirs, (list, tuple)) or not theirs:
            continue
        a, b = [tuple(t.shape) for t in theirs], [tuple(t.shape) for t in mine]
        if len(a) != len(b) or not all(_compatible(s, t) for s, t in zip(a, b, strict=True)):
            raise ValueError(
                f"teacher and student must take the same input: the teacher's shapes are {a}, "
                f"the student's {b}. Where they really differ, pass as teacher a function that "
                "changes the student's input and calls the model."
            )


def _compatible(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(
        s is None or t is None or s == t for s, t in zip(a, b, strict=True)
    )


def check_final_outputs(loss: Any, teachers: Any, student: Any) -> None:
    """Raises ValueError if a loss on scores can't work on the models' final outputs."""
    if not loss.on_logits or loss.teacher_layer_name or loss.student_layer_name:
        return
    mine = student.static_shape(FINAL)
    for theirs in (taps.static_shape(FINAL) for taps in teachers.taps):
        if theirs and mine:
            loss.validate_outputs(tf.TensorSpec(theirs), tf.TensorSpec(mine))


def check_fit_data(x: Any, y: Any, sample_weight: Any, num_classes: int | None, loss: Any) -> None:
    """Checks what can be seen of the data before `fit` or `evaluate` begins.

    Args:
        x: arrays, a `tf.data.Dataset`, or anything else that Keras takes.
        y, sample_weight: targets and weights, or None.
        num_classes: classes that the student scores, or None if not known.
        loss: the student's loss, as given to `compile`.

    Raises:
        TypeError: for labels or weights that are text or objects.
        ValueError: for data without examples, labels outside [0, classes), or weights
            without labels.
    """
    if isinstance(x, tf.data.Dataset):
        if int(x.cardinality()) == 0:
            raise ValueError(
                "`x`: expected at least one batch, received an empty Dataset. Look at what "
                "filters or splits it."
            )
        _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    else:
        _check_examples(x)
        if y is None and sample_weight is not None:
            expected = "none without labels: Keras hands weights on beside `y` alone"
            mend = "Pass any `y`, such as np.zeros(len(x)): no loss on the labels, no use of it."
            raise checks.value_error("sample_weight", expected, sample_weight, mend)
    targets.check(y, num_classes, loss)
    targets.check_weights(sample_weight)


def _check_examples(x: Any) -> None:
    arrays = tf.nest.flatten(x)
    if not arrays or x is None:
        raise checks.value_error("x", "at least one example", x, "Pass arrays or a Dataset.")
    for array in arrays:
        if hasattr(array, "shape") and len(array.shape) > 0 and array.shape[0] == 0:
            raise checks.value_error("x", "at least one example", array, "Look at what splits it.")


PROBABILITY_LOSSES = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
)


def warn_of_logits(loss: Any, student: Any) -> None:
    """Warns where a loss expects probabilities and the student returns logits."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    layers = getattr(student, "layers", None)
    if name not in PROBABILITY_LOSSES or not layers:
        return
    if getattr(layers[-1], "activation", None) is keras.activations.linear:
        warnings.warn(
            f"loss={name!r} takes probabilities, but the student's last layer "
            f"{layers[-1].name!r} has no activation, so it returns logits. Pass the loss as an "
            "instance with from_logits=True.",
            stacklevel=3,
        )


def check_trainable(student: Any) -> None:
    """Raises if every weight of the student is frozen: `fit` would change nothing."""
    if student.built and student.weights and not student.trainable_weights:
        raise ValueError(
            f"`student`: expected a model that can be trained, received {student.name!r}, all of "
            "whose weights are frozen. Set student.trainable = True (a Distiller freezes its "
            "teacher: a model that was one before is still frozen)."
        )


def check_calibrated(student: Any) -> None:
    """Raises if the student is quantized and has no ranges yet.

    Before anything is traced: Keras can't trace a step again whose first trace failed.
    """
    getattr(student, "check_calibrated", lambda: None)()
