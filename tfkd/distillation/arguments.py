"""Checks of what Keras would refuse only in the first step, or after the first epoch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import inputs_in_order, output_form

# Names of metrics that Keras chooses by the shapes of labels and outputs.
_CHOSEN = ("accuracy", "acc", "crossentropy", "ce")


def check(student: keras.Model, loss: Any, metrics: Any) -> None:
    """Checks the losses and metrics given to `compile`.

    Raises:
        ValueError: for a name that Keras does not know, or an output that is not there.
    """
    for name, value, module in (("loss", loss, keras.losses), ("metrics", metrics, keras.metrics)):
        _check_outputs(name, student, value)
        for one in tf.nest.flatten(value):
            known = one in _CHOSEN if isinstance(one, str) and module is keras.metrics else False
            if isinstance(one, str) and not known:
                _check_name(name, one, module)


def _check_name(argument: str, name: str, module: Any) -> None:
    try:
        known = callable(module.get(name))
    except (ValueError, TypeError):
        known = False
    if not known:
        names = [n for n in dir(module) if not n.startswith("_")]
        if module is keras.metrics:
            names += _CHOSEN
        fix = checks.near(name, names) or "Pass the function or the instance itself."
        raise checks.value_error(argument, f"names that keras.{_name(module)} has", name, fix)


def _name(module: Any) -> str:
    return module.__name__.rsplit(".", 1)[-1]


def _check_outputs(argument: str, student: keras.Model, value: Any) -> None:
    """Raises ValueError for a dict by output with a name that no output has."""
    outputs = output_form(student)
    if outputs is None or not isinstance(value, Mapping):
        return
    names = list(outputs) if isinstance(outputs, Mapping) else list(student.output_names)
    for name in value:
        if name not in names:
            expected = "a dict by the names of the student's outputs"
            raise checks.value_error(argument, expected, name, checks.near_or_all(name, names))


def check_arrays(name: str, student: keras.Model, x: Any, given: Iterable[Any]) -> None:
    """Checks arrays that Keras reads only after the first epoch of training.

    Args:
        name: the argument of `fit`, such as "validation_data".
        student: the student.
        x: its inputs.
        given: (x, y) or (x, y, sample_weight).

    Raises:
        ValueError: if the arrays differ in length, or do not have the shapes of the inputs.
    """
    arrays = [v for v in tf.nest.flatten(tuple(given)) if isinstance(v, (np.ndarray, tf.Tensor))]
    counts = {len(array) for array in arrays if len(array.shape) > 0}
    if len(counts) > 1:
        expected = "arrays with the same number of examples"
        raise checks.value_error(name, expected, sorted(counts), "They differ in length.")
    if output_form(student) is None:
        return
    try:
        values = inputs_in_order(student, x)
    except (KeyError, ValueError):
        return  # Keras says what is wrong with their structure.
    for tensor, value in zip(student.inputs, values, strict=False):
        shape = getattr(value, "shape", None)
        if shape is None or None in tuple(shape)[1:]:
            continue
        if not _fits(tuple(tensor.shape)[1:], tuple(shape)[1:]):
            expected = f"examples of shape {tuple(tensor.shape)[1:]}, as the student takes"
            raise checks.value_error(name, expected, value)


def _fits(wanted: tuple[int | None, ...], found: tuple[int, ...]) -> bool:
    """Whether Keras accepts a shape: it adds or drops a last axis of size 1."""
    shapes = [found, (*found, 1)] + [found[:-1]] * (found[-1:] == (1,))
    return any(tf.TensorShape(wanted).is_compatible_with(shape) for shape in shapes)


def check_folders(callbacks: Any) -> None:
    """Checks that the files of callbacks can be written, which most write after an epoch.

    Raises:
        ValueError: for a path through a file, or in a folder that can't be written to.
    """
    several = getattr(callbacks, "callbacks", callbacks)
    for one in several if isinstance(several, (list, tuple)) else [several]:
        for attribute in ("filepath", "filename", "backup_dir", "log_dir"):
            path = getattr(one, attribute, None)
            if isinstance(path, (str, os.PathLike)) and "://" not in os.fspath(path):
                _check_folder(f"{type(one).__name__}.{attribute}", os.fspath(path))


def _check_folder(name: str, path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.exists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        kind = "a folder that can't be written to" if os.path.isdir(folder) else "a file"
        raise checks.value_error(name, "a path that can be written", path, f"{folder} is {kind}.")
