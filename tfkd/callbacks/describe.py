"""Hyper-parameters and a Markdown summary of models and losses, for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, schedules
from tfkd.distillation.distiller import Distiller
from tfkd.losses import DistillationLoss
from tfkd.results import NONE
from tfkd.schedules import Value
from tfkd.teachers.forward import as_list


def scalar(value: float | tf.Tensor | tf.Variable) -> float:
    """Value of a number, tensor or variable; unlike `float` it accepts mirrored variables."""
    return value if checks.is_number(value) else tf.convert_to_tensor(value).numpy().item()


def learning_rate(optimizer: keras.optimizers.Optimizer, step: int | None = None) -> float | None:
    """Returns the learning rate at a step (by default the current one), or None.

    It unwraps a `LossScaleOptimizer` and evaluates a schedule, since the optimizer's own
    property holds the value of the previous step.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if step is None and hasattr(optimizer, "_decayed_lr"):  # keras.optimizers.legacy
        return scalar(optimizer._decayed_lr(tf.float32))
    rate = getattr(optimizer, "_learning_rate", getattr(optimizer, "learning_rate", None))
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return scalar(rate(optimizer.iterations if step is None else step))
    return None if rate is None else scalar(rate)


def hyper_parameters(model: keras.Model, steps: int) -> dict[str, float | str | bool]:
    """Returns names and values for the HParams tab, read from a model in its first epoch.

    The model is the one that is trained, of a Distiller the student.

    Args:
        model: any compiled model.
        steps: the number of batches of this epoch so far.
    """
    values: dict[str, Any] = {}
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        values["optimizer"] = type(inner).__name__
        values["learning_rate"] = learning_rate(optimizer, step=0)
    values["batch_size"] = _batch_size(model, steps)
    if not isinstance(model, Distiller):
        values |= {"model": model.name, "model_parameters": parameters(model)}
        # A baseline stands in the same columns as the runs with a teacher.
        values |= {"teacher": "none", "teacher_parameters": 0, "student_loss_weight": 1.0}
        return {name: value for name, value in values.items() if value is not None}
    teachers = as_list(model.teacher)
    values |= {"model": model.student.name, "model_parameters": parameters(model.student)}
    values["teacher"] = " + ".join(_name(teacher) for teacher in teachers)
    counts = [parameters(teacher) for teacher in teachers]
    values["teacher_parameters"] = None if None in counts else sum(counts)  # type: ignore[arg-type]
    values["student_loss_weight"] = _plain(model.student_loss_weight)
    for term, loss, weight in _terms(model):
        values[f"{term}/weight"] = _plain(weight)
        for key, value in loss.get_config().items():
            if key != "name":
                # The config holds schedules and functions in serialized form.
                values[f"{term}/{key}"] = _plain(getattr(loss, key, value))
    return {name: value for name, value in values.items() if value is not None}


def _terms(model: Distiller) -> list[tuple[str, DistillationLoss, Value]]:
    names = [tracker.name for tracker in model._term_trackers]
    weights = model.distillation_loss_weights
    return list(zip(names, model.distillation_losses, weights, strict=True))


def _batch_size(model: keras.Model, steps: int) -> int | None:
    """Examples per step, from the count of the loss's mean, or None without such a mean."""
    if isinstance(model, Distiller):
        tracker = model._loss_tracker
    else:
        tracker = getattr(getattr(model, "compiled_loss", None), "_total_loss_mean", None)
    count = scalar(tracker.count) if tracker is not None else 0.0
    size = count / steps
    return int(size) if size >= 1 and size == int(size) else None


def _plain(value: object) -> float | str | bool | None:
    """Returns numbers, strings, bools and None unchanged, and a name for anything else."""
    if value is None or isinstance(value, (str, bool)) or checks.is_number(value):
        return value
    if isinstance(value, schedules.Schedule):
        return repr(value)
    if isinstance(value, (list, tuple, dict)):
        return ", ".join(str(_plain(item)) for item in tf.nest.flatten(value))
    return _name(value)


def _name(thing: object) -> str:
    """Returns a name for a model, a layer, a loss or a function."""
    for key in ("name", "__name__"):
        name = getattr(thing, key, None)
        if isinstance(name, str) and name:
            return name
    return "SavedModel" if getattr(thing, "signatures", None) else type(thing).__name__


def parameters(model: object) -> int | None:
    """Returns the number of parameters, or None for a model without weights (a function)."""
    try:
        weights = getattr(model, "weights", None)
    except ValueError:  # not built yet
        return None
    if weights is None:
        weights = getattr(model, "variables", None)
    if weights is None:
        return None
    return sum(math.prod(weight.shape) for weight in weights)


def summary(model: keras.Model) -> str:
    """Returns a Markdown summary of a model, or of a Distiller's models and losses."""
    if not isinstance(model, Distiller):
        parts = [_models({"Model": model}), _layers("model", model)]
        return "\n\n".join(part for part in parts if part)
    teachers = as_list(model.teacher)
    titles = [f"Teacher {number}" for number in range(1, len(teachers) + 1)]
    if len(teachers) == 1:
        titles = ["Teacher"]
    models = {**dict(zip(titles, teachers, strict=True)), "Student": model.student}
    parts = [_models(models), _share(teachers, model.student), _losses(model)]
    parts += [_layers(title.lower(), one) for title, one in models.items()]
    return "\n\n".join(part for part in parts if part)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code(text: object) -> str:
    # In code spans names may contain any markup of Markdown and HTML; only | ends a cell.
    return "`" + str(text).replace("|", "/").replace("`", "'") + "`"


def _count(number: int | None) -> str:
    return NONE if number is None else f"{number:,}"


def _models(models: dict[str, object]) -> str:
    columns = list(models.values())
    layers = [list(_leaves(model)) for model in columns]
    rows = [
        ["Name", *(_code(_name(model)) for model in columns)],
        ["Class", *(_code(type(model).__name__) for model in columns)],
        ["Parameters", *(_count(parameters(model)) for model in columns)],
        ["Layers", *(_count(len(found) or None) for found in layers)],
        ["Input", *(_shape(model, "input_shape") for model in columns)],
        ["Output", *(_shape(model, "output_shape") for model in columns)],
    ]
    return "## Models\n\n" + _table(["", *models], rows)


def _shape(model: object, key: str) -> str:
    shape = getattr(model, key, None)
    return NONE if shape is None else _code(shape)


def _share(teachers: list[object], student: keras.Model) -> str:
    counts = [parameters(model) for model in (*teachers, student)]
    if None in counts or not sum(counts[:-1]):  # type: ignore[arg-type]
        return ""
    share = 100 * counts[-1] / sum(counts[:-1])  # type: ignore[operator,arg-type]
    owner = "teacher's" if len(teachers) == 1 else "teachers'"
    return f"The student has {share:.3g} % of the {owner} parameters."


def _losses(model: Distiller) -> str:
    rows = [["on the labels", "`student_loss`", _value(model.student_loss_weight), NONE, NONE]]
    for term, loss, weight in _terms(model):
        layers = [loss.teacher_layer_name, loss.student_layer_name]
        between = " → ".join(_code(layer or "output") for layer in layers)
        temperature = getattr(loss, "temperature", None)
        kind = type(loss).__name__
        rows.append([kind, _code(term), _value(weight), _value(temperature), between])
    head = ["Loss", "Term", "Weight", "Temperature", "Teacher → student"]
    return (
        "## Losses\n\ntotal = w · student loss + (1 − w) · Σ weight · term, with w the weight of "
        "the loss on the labels.\n\n" + _table(head, rows)
    )


def _value(value: object) -> str:
    if value is None:
        return NONE
    return f"{value:g}" if checks.is_number(value) else _code(value)


def _layers(title: str, model: object) -> str:
    """A table of layers by class; a list of all would have hundreds of lines."""
    kinds: dict[str, list[int]] = {}
    for layer in _leaves(model):
        kind = kinds.setdefault(type(layer).__name__, [0, 0])
        kind[0] += 1
        kind[1] += parameters(layer) or 0
    if not kinds:
        return ""
    rows = [[_code(kind), _count(n), _count(weights)] for kind, (n, weights) in kinds.items()]
    return f"## Layers of the {title}\n\n" + _table(["Layer", "Number", "Parameters"], rows)


def _leaves(model: object) -> Iterator[keras.layers.Layer]:
    """The layers, also those of nested models, each once and without input layers."""
    seen: set[int] = set()
    todo = list(getattr(model, "layers", None) or [])
    while todo:
        layer = todo.pop(0)
        inner = getattr(layer, "layers", None)
        if inner:
            todo = [*inner, *todo]
        elif id(layer) not in seen and type(layer).__name__ != "InputLayer":
            seen.add(id(layer))
            yield layer
