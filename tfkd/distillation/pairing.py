"""Checks that inputs, outputs and their places mean the same in teacher and student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.features import FeatureDistillation
from tfkd.teachers.features import FINAL
from tfkd.teachers.forward import attribute, input_names, output_names
from tfkd.teachers.layout import put
from tfkd.teachers.precomputed import PrecomputedForward, PrecomputedTeacher, split
from tfkd.types import Data

Names = Sequence["str | None"]


def check_inputs(teachers: list[Any], student: keras.Model) -> None:
    """Raises ValueError if the input shapes of the models are incompatible."""
    mine = getattr(student, "inputs", None)
    for teacher in teachers:
        theirs = getattr(teacher, "inputs", None)
        if not mine or not isinstance(theirs, (list, tuple)) or not theirs:
            continue
        order = places(input_names(teacher), input_names(student))
        # In another order they still suit data that are a dict by name.
        ordered = theirs if order is None else [theirs[place] for place in order]
        a, b = [tuple(t.shape) for t in ordered], [tuple(t.shape) for t in mine]
        pairs = zip(a, b, strict=False)
        alike = all(tf.TensorShape(s).is_compatible_with(t) for s, t in pairs)
        if len(a) != len(b) or not alike:
            raise ValueError(
                f"teacher and student must take the same input: the teacher's shapes are {a}, "
                f"the student's {b}. Where they really differ, pass as teacher a function that "
                "changes the student's input and calls the model."
            )


def check_input_order(teachers: list[Any], student: keras.Model, x: Data) -> None:
    """Raises ValueError if arrays without names reach the inputs of both models crosswise.

    Args:
        teachers: as passed to the Distiller.
        student: the student.
        x: data of `fit` or of a step. If they are a dict, both models read them by name.
    """
    spec = getattr(x, "element_spec", x)
    x = split(spec[0] if spec is not x and isinstance(spec, tuple) else spec)[0]
    if isinstance(x, Mapping) or not tf.nest.is_nested(x):
        return
    mine = input_names(student)
    for theirs, order, stored in _in_other_order(teachers, mine, input_names):
        where = "to the cache, too" if stored else "which both read by name"
        text = (
            "teacher and student must take a list of inputs in the same order: the teacher's are "
            f"{_shown(theirs)}, the student's {_shown(mine)}. Pass `x` as a dict by these names, "
            f"{where}; or take as teacher keras.Model([teacher.inputs[i] for i in {order}], "
            "teacher.outputs)."
        )
        raise checks.plain(ValueError(text))


def check_outputs(teachers: list[Any], student: keras.Model) -> None:
    """Raises ValueError for outputs that can't be compared, or in lists of another order."""
    _check_output_types(teachers, student)
    _check_output_order(teachers, student)


def _check_output_types(teachers: list[Any], student: keras.Model) -> None:
    """Raises ValueError if no output of a model is one that can be compared and trained."""
    fix = (
        "Pass the model up to its scores: keras.Model(model.inputs, model.get_layer(NAME).output)."
    )
    for side, model in (*(("teacher", one) for one in teachers), ("student", student)):
        kinds = [
            one.dtype for one in getattr(model, "outputs", None) or () if hasattr(one, "dtype")
        ]
        if kinds and all(kind == tf.string for kind in kinds):
            raise checks.value_error(side, "numbers as outputs", "texts", fix)
        if side == "student" and kinds and not any(kind.is_floating for kind in kinds):
            expected = "outputs with a gradient, in floating point"
            raise checks.value_error(side, expected, f"{kinds[0].name}, as of an argmax", fix)


def _check_output_order(teachers: list[Any], student: keras.Model) -> None:
    """Raises ValueError if lists of outputs have the same names in another order.

    Labels and losses that are given by name would go to the right output, the teacher's
    outputs to that of another name.
    """
    mine = output_names(student)
    for theirs, order, stored in _in_other_order(teachers, mine, output_names):
        again = ", and build the cache with that" if stored else ""
        raise ValueError(
            "teacher and student must have their outputs in the same order: the teacher's are "
            f"{_shown(theirs)}, the student's {_shown(mine)}, and lists are compared by place. "
            f"Pass as teacher keras.Model(teacher.inputs, [teacher.outputs[i] for i in {order}])"
            f"{again}; or give both models a dict of outputs, which is compared by its keys."
        )


def _in_other_order(
    teachers: list[Any], mine: Names | None, names: Callable[[Any], Names | None]
) -> Iterator[tuple[Names | None, list[int], bool]]:
    """The names of each teacher in another order than the student's, by `names`.

    Yields:
        The names, their places in the student's order, whether the teacher is stored outputs.
    """
    for teacher in teachers:
        stored = isinstance(teacher, PrecomputedTeacher)
        for theirs in getattr(teacher, names.__name__) if stored else [names(teacher)]:
            order = places(theirs, mine)
            if order is not None:
                yield theirs, order, stored


def places(theirs: Names | None, mine: Names | None) -> list[int] | None:
    """The teacher's places in the student's order; None if the names tell of no other order.

    Only the same names in another order are a mistake for certain. Names that Keras generated
    (None) follow the order in which layers were made, so two models may have them swapped
    without meaning anything by it: alone they tell nothing.
    """
    if theirs is None or mine is None or list(theirs) == list(mine):
        return None
    if sorted(map(str, theirs)) != sorted(map(str, mine)):
        return None
    left = list(enumerate(theirs))
    order = []
    for name in mine:
        found = next(pair for pair in left if pair[1] == name)
        left.remove(found)
        order.append(found[0])
    return order


def _shown(names: Names | None) -> str:
    return str(["(no name)" if name is None else name for name in names or ()])


def check_final_outputs(loss: Any, teachers: Any, student: Any) -> None:
    """Raises ValueError if the models' final outputs do not suit a loss on them."""
    if loss.teacher_layer_name or loss.student_layer_name:
        return
    mine = _final(student)
    for theirs in map(_final, teachers.taps):
        several = tf.nest.is_nested(mine) or tf.nest.is_nested(theirs)
        looks = loss.on_logits or (several and isinstance(loss, FeatureDistillation))
        if looks and theirs is not None and mine is not None:
            loss.validate_outputs(theirs, mine)


def _final(taps: Any) -> Any:
    """Specs of the final outputs in their structure; None: not known before the model runs."""
    shape = taps.static_shape(FINAL)
    if shape:
        return tf.TensorSpec(shape)
    if isinstance(taps, PrecomputedForward):
        layout = taps.teacher.layout
        return put(layout.structure[0], [tf.TensorSpec((None, *s.shape)) for s in layout.finals])
    form = attribute(taps.model, "output")
    leaves = tf.nest.flatten(form)
    if not all(tf.TensorShape(getattr(leaf, "shape", None)).rank for leaf in leaves):
        return None
    return tf.nest.map_structure(lambda leaf: tf.TensorSpec(tuple(leaf.shape)), form)
