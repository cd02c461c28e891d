"""Accepts, evaluates, serializes and deserializes arguments that are numbers or schedules."""

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

# Values and their differences must be finite in float32 (up to 3.4e38) too, and a positive
# value must not become 0 or subnormal there (below 1.2e-38).
_LARGEST = 1e38
_SMALLEST = 1e-37


def number(name: str, value: float) -> float:
    """Accepts a number that is also finite in float32; returns it as a float."""
    expected = "a finite number within ±1e38"
    checks.finite(name, value, expected)
    if abs(value) > _LARGEST:
        raise checks.value_error(name, expected, value)
    return float(value)


def above_zero(name: str, value: float) -> None:
    """Raises ValueError unless a value, whose logarithm is taken, is above 0 in float32."""
    if value < _SMALLEST:
        expected = "a number above 0 (at least 1e-37)"
        raise checks.value_error(name, expected, value, "Linear reaches 0.")


@dataclasses.dataclass(frozen=True)
class OfCallable(Schedule):
    """A plain callable of the step as a schedule; it is called for each step of an array."""

    function: Callable[[Any], Any]

    def _at(self, step, ops):
        return ops.apply(self.function, step)

    def get_config(self):
        expected = "a number or a schedule of tfkd.schedules, which can be saved"
        fix = "Write it as a dataclass that extends Schedule, with `tfkd.schedules.register`."
        raise checks.value_error("schedule", expected, self.function, fix)


def get(
    name: str,
    value: Value,
    check: Callable[[str, float], object] | None = None,
    expected: str = "a finite number, a schedule, or a callable of the step",
) -> float | Schedule:
    """Accepts a number or a schedule for the argument `name`.

    Args:
        name: name of the argument, for error messages.
        value: a finite number, a `Schedule`, or a plain callable of the step.
        check: a function `check(name, number)` that raises for an invalid number, such
            as `tfkd.checks.positive`. The end values of a schedule are checked; a plain
            callable is not.
        expected: what is expected, in the message for a `value` that is none of these.

    Returns:
        The number unchanged, or a `Schedule`.

    Raises:
        TypeError: if `value` is neither number, schedule nor callable.
        ValueError: if `check` rejects the number, or an end value of the schedule.

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
        value: the result of `get`.
        step: as for `Schedule`.

    Example:
        >>> from tfkd import schedules
        >>> schedules.value_at(3, 7), schedules.value_at(schedules.Linear(0, 1, 0, 10), 7)
        (3.0, 0.7)
    """
    return float(value) if checks.is_number(value) else value(step)  # type: ignore[operator]


def serialize(value: Value) -> float | dict[str, Any]:
    """Serializes a number or schedule for JSON; see `deserialize`.

    Raises:
        ValueError: for a plain callable, or a class that is not registered.
        TypeError: if `value` is neither a number nor a schedule.

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
    """Restores the number or schedule that `serialize` was given.

    Raises:
        TypeError: if `obj` is neither a number nor such a dictionary.
        ValueError: if the class is not registered.

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
