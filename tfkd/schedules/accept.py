"""From an argument to a number or schedule, and from there to JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tfkd import checks
from tfkd.schedules.base import CLASSES, Schedule, Step

if TYPE_CHECKING:
    import tensorflow as tf

# An argument that may change while a model trains: a number, or a function of the step.
Value: TypeAlias = "float | Schedule | Callable[[tf.Tensor], tf.Tensor]"

# Ends and their difference must be finite in float32 too, and a positive end
# must not become 0 there.
_LARGEST = 1e38
_SMALLEST = 1e-37


def number(name: str, value: float) -> float:
    """Accepts a number that is finite in float32 too."""
    expected = "a finite number within ±1e38"
    checks.finite(name, value, expected)
    if abs(value) > _LARGEST:
        raise checks.value_error(name, expected, value)
    return float(value)


def above_zero(name: str, value: float) -> None:
    """Refuses an end whose logarithm is taken, if it is 0 in float32 or negative."""
    if value < _SMALLEST:
        expected = "a number above 0 (at least 1e-37)"
        raise checks.value_error(name, expected, value, "Linear reaches 0.")


@dataclasses.dataclass(frozen=True)
class OfCallable(Schedule):
    """A plain callable of the step, which is called for each step of an array."""

    function: Callable[[Any], Any]

    def _at(self, step, ops):
        return ops.apply(self.function, step)

    def get_config(self):
        raise checks.value_error(
            "schedule",
            "a number or a schedule of tfkd.schedules, which can be saved",
            self.function,
            "Write it as a dataclass that extends Schedule, with `tfkd.schedules.register`.",
        )


def get(
    name: str,
    value: Value,
    check: Callable[[str, float], object] | None = None,
    expected: str = "a finite number, a schedule, or a callable of the step",
) -> float | Schedule:
    """Accepts a number or a schedule for the argument `name`.

    Args:
        name: the argument, for the error.
        value: a finite number, a `Schedule`, or a plain callable of the step.
        check: `check(name, number)` that raises for a bad number, such as
            `tfkd.checks.positive`. A schedule is checked at its ends and
            values, a plain callable is not.
        expected: what the error says when `value` is none of these.

    Returns:
        The number unchanged, or a `Schedule`.

    Raises:
        TypeError: if `value` is neither number, schedule nor callable.
        ValueError: if `check` refuses the number, or an end of the schedule.

    Example:
        >>> from tfkd import checks, schedules
        >>> schedules.get("temperature", 4, checks.positive)
        4
        >>> schedules.get("temperature", schedules.Linear(4, 0, 0, 10), checks.positive)
        Traceback (most recent call last):
        ...
        ValueError: `temperature`: expected a finite number above 0, received 0.0 (float). \
The schedule Linear(start=4.0, end=0.0, begin_step=0, end_step=10) reaches it.
    """
    check = check or checks.finite
    if checks.is_number(value):
        check(name, value)
        return value
    if isinstance(value, type) or not callable(value):
        raise checks.type_error(name, expected, value)
    if not isinstance(value, Schedule):
        return OfCallable(value)
    for end in value.end_values():
        try:
            check(name, end)
        except ValueError as error:
            raise ValueError(f"{error} The schedule {value!r} reaches it.") from None
    return value


def value_at(value: Value, step: Step) -> float | np.ndarray | tf.Tensor:
    """Returns a number as a float, or the value of a schedule at `step`.

    Args:
        value: what `get` returned.
        step: as for `Schedule`.

    Example:
        >>> from tfkd import schedules
        >>> schedules.value_at(3, 7), schedules.value_at(schedules.Linear(0, 1, 0, 10), 7)
        (3.0, 0.7)
    """
    return float(value) if checks.is_number(value) else value(step)  # type: ignore[operator]


def serialize(value: Value) -> float | dict[str, Any]:
    """Returns a number or schedule as what JSON can hold; see `deserialize`.

    Raises:
        ValueError: for a plain callable, and a class that is not registered.
        TypeError: if `value` is neither number nor schedule.

    Example:
        >>> from tfkd import schedules
        >>> schedules.serialize(schedules.Constant(2))
        {'class_name': 'Constant', 'config': {'value': 2.0}}
    """
    if checks.is_number(value):
        return value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, Schedule):
        raise checks.type_error("value", "a number or a schedule", value)
    config = value.get_config()
    name = type(value).__name__
    if CLASSES.get(name) is not type(value):
        fix = "Decorate the class with `tfkd.schedules.register`."
        raise checks.value_error("value", "a registered schedule", value, fix)
    return {"class_name": name, "config": config}


def deserialize(obj: float | Schedule | dict[str, Any]) -> float | Schedule:
    """Returns the number or schedule that `serialize` was given.

    Raises:
        TypeError: if `obj` is neither a number nor such a dictionary.
        ValueError: if the class is not known.

    Example:
        >>> from tfkd import schedules
        >>> schedules.deserialize({"class_name": "Constant", "config": {"value": 2.0}})
        Constant(value=2.0)
    """
    if checks.is_number(obj) or isinstance(obj, Schedule):
        return obj
    if not isinstance(obj, dict) or set(obj) != {"class_name", "config"}:
        expected = "a number, or a dictionary with class_name and config"
        raise checks.type_error("obj", expected, obj)
    name = checks.one_of("class_name", obj["class_name"], CLASSES)
    return CLASSES[name].from_config(obj["config"])
