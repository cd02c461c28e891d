"""Losses and loss weights of a Distiller that depend on the stage, and all settings as JSON."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, fingerprints, schedules
from tfkd.curriculum import Stage
from tfkd.distillation import validation
from tfkd.distillation.terms import unique_names
from tfkd.losses.base import DistillationLoss
from tfkd.progressive import carrying
from tfkd.progressive.values import OfStage, Position, RateOfStage
from tfkd.teachers.forward import as_list
from tfkd.teachers.precomputed import PrecomputedTeacher


def check_stages(stages: Any) -> list[Stage]:
    """Accepts a non-empty list of stages."""
    stages = list(stages) if isinstance(stages, (list, tuple)) else [stages]
    if not stages:
        raise checks.value_error("stages", "at least one tfkd.curriculum.Stage", stages)
    for stage in stages:
        checks.instance("stages", stage, Stage, "a list of tfkd.curriculum.Stage")
    return stages


def staged(values: Sequence[Any], default: Any, position: Position) -> Any:
    """A value that depends on the stage, or the default if no stage sets it."""
    if all(value is None for value in values):
        return default
    return OfStage(list(values), default, position)


def losses_of(stages: Sequence[Stage], losses: list[Any], position: Position) -> list[Any]:
    """Copies of the losses, whose temperatures depend on the stage.

    Raises:
        ValueError: if a stage names an unknown loss, or no loss has a temperature.
    """
    names = unique_names(losses)
    warm = [name for name, loss in zip(names, losses, strict=True) if hasattr(loss, "temperature")]
    for number, stage in enumerate(stages):
        if isinstance(stage.temperature, Mapping):
            _check_names(stage, number, "temperature", stage.temperature, warm)
        elif stage.temperature is not None and not warm:
            expected = f"None in {stage.title(number)}: no loss has a temperature"
            raise checks.value_error("temperature", expected, stage.temperature)
    result = []
    for name, loss in zip(names, losses, strict=True):
        loss = copy.copy(loss)
        if name in warm:
            values = [_of(stage.temperature, name) for stage in stages]
            loss.temperature = staged(values, loss.temperature, position)
        result.append(loss)
    return result


def weights_of(
    stages: Sequence[Stage], losses: list[Any], weights: list[Any], position: Position
) -> list[Any]:
    """The weights of the losses, which depend on the stage.

    Raises:
        ValueError: for a list of the wrong length, or an unknown name.
    """
    names = unique_names(losses)
    rows = [_row(stage, number, names) for number, stage in enumerate(stages)]
    columns = zip(*rows, strict=True)
    return [staged(list(c), weight, position) for c, weight in zip(columns, weights, strict=True)]


def _row(stage: Stage, number: int, names: list[str]) -> list[Any]:
    weights = stage.distillation_loss_weights
    if isinstance(weights, Mapping):
        _check_names(stage, number, "distillation_loss_weights", weights, names)
        return [weights.get(name) for name in names]
    if weights is None:
        return [None] * len(names)
    if len(weights) != len(names):
        expected = f"{len(names)} weights in {stage.title(number)}, one for each loss"
        raise checks.value_error("distillation_loss_weights", expected, weights)
    return list(weights)


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _check_names(
    stage: Stage, number: int, argument: str, given: Mapping[str, Any], known: list[str]
) -> None:
    for name in given:
        if name not in known:
            fix = checks.near(name, known) or f"There are: {', '.join(known) or 'none'}."
            expected = f"names of losses in {stage.title(number)}"
            raise checks.value_error(argument, expected, name, fix)


def student_weight_of(stages: Sequence[Stage], weight: Any, position: Position) -> Any:
    """The weight of the loss on the labels, which depends on the stage."""
    values = [stage.student_loss_weight for stage in stages]
    return staged(values, validation.check_student_weight(weight), position)


def of_training(owner: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that makes a training, by name: JSON with hashes in place of arrays and code.

    The data are not among it, as they may be a generator, nor the weights with which the
    student begins: those of the backup replace them.
    """
    settings = {
        "teacher": [_teacher(one) for one in as_list(owner.teacher)],
        "student": _student(owner.student),
        "distillation_losses": _plain(owner._losses),
        "distillation_loss_weights": _plain(owner._weights),
        "student_loss_weight": _plain(owner._student_weight),
        "weigh_distillation": owner._weigh_distillation,
        "optimizer": _optimizer(owner.distiller.optimizer),
        **{name: _plain(owner._compiled.get(name)) for name in ("loss", "loss_weights")},
        **{name: _plain(value) for name, value in arguments.items()},
    }
    for number, stage in enumerate(owner.stages):
        for field in dataclasses.fields(stage):
            if field.name != "data":
                value = _plain(getattr(stage, field.name))
                settings[f"{field.name} of {stage.title(number)}"] = value
    return settings


def _teacher(teacher: Any) -> str:
    if isinstance(teacher, PrecomputedTeacher):
        return teacher.identity
    return fingerprints.digest(teacher)


def _student(student: keras.Model) -> Any:
    try:
        return fingerprints.structure(student)
    except (NotImplementedError, TypeError, ValueError):  # no config, or not built
        return [type(student).__name__]


def _optimizer(optimizer: Any) -> Any:
    optimizer = carrying.inner(optimizer)
    config = {**optimizer.get_config(), "learning_rate": carrying.rate_of(optimizer)}
    config.pop("jit_compile", None)  # depends on the machine
    return [type(optimizer).__name__, _plain(config)]


def _plain(value: Any) -> Any:
    """A setting as JSON, the same in every process; of what it can't look into the type."""
    if isinstance(value, (OfStage, RateOfStage)):  # the stages have their own values
        return _plain(value.default)
    if value is None or isinstance(value, (bool, str)):
        return value
    if checks.is_number(value):
        return float(value)
    if isinstance(value, Mapping):
        # Keras makes up names, which differ from process to process.
        return {str(k): _plain(v) for k, v in value.items() if k != "name"}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "__array__") and not isinstance(value, tf.Variable):
        return fingerprints.digest(value)
    return [type(value).__qualname__, *_parts(value)]


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from map(_plain, (value.func, value.args, value.keywords))
    elif inspect.ismethod(value) or inspect.isfunction(value):
        function = inspect.unwrap(getattr(value, "__func__", value))
        yield function.__qualname__
        yield fingerprints.digest(function.__code__)
        # Objects that a function captures may change while it runs.
        values = [*(function.__defaults__ or ())]
        values += inspect.getclosurevars(function).nonlocals.values()
        yield [_plain(one) for one in values if isinstance(one, (bool, str, int, float))]
    elif isinstance(value, DistillationLoss) and value.arguments:
        yield {name: _plain(getattr(value, name)) for name in value.arguments}
    elif isinstance(value, schedules.Schedule) or hasattr(value, "get_config"):
        try:
            yield _plain(value.get_config())
        except (NotImplementedError, TypeError, ValueError):
            return
    elif dataclasses.is_dataclass(value) or type(value).__module__.startswith("tfkd."):
        held = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        yield _plain({k: v for k, v in held.items() if not isinstance(v, tf.Variable)})


def differ(known: Any, now: Any, name: Any) -> bool:
    """Whether two settings differ. An option that one version of tfkd lacks does not count."""
    if isinstance(known, dict) and name not in known:
        return False
    one, other = known[name], now[name]
    if isinstance(one, dict) and isinstance(other, dict):
        return any(differ(one, other, key) for key in other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) != len(other) or any(differ(one, other, i) for i in range(len(one)))
    return one != other
