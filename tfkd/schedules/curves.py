"""The built-in schedules."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.schedules.accept import deserialize, get, serialize, value_at
from tfkd.schedules.base import Schedule, register

# Ends and their difference must be finite in float32 too, and a positive end
# must not become 0 there.
_LARGEST = 1e38
_SMALLEST = 1e-37


def _number(name: str, value: Any) -> float:
    expected = "a finite number within ±1e38"
    checks.finite(name, value, expected)
    if abs(value) > _LARGEST:
        raise checks.value_error(name, expected, value)
    return float(value)


@register
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    Args:
        value: the value, finite.

    Example:
        >>> from tfkd.schedules import Constant
        >>> Constant(4)(1000)
        4.0
    """

    value: float

    def __post_init__(self):
        self._set("value", _number("value", self.value))

    def _at(self, step, ops):
        return self.value

    def end_values(self):
        return (self.value,)


@dataclasses.dataclass(frozen=True)
class _Interval(Schedule):
    """From `start` at `begin_step` to `end` at `end_step`; constant outside."""

    start: float
    end: float
    begin_step: int = 0
    end_step: int | None = None

    def __post_init__(self):
        self._set("start", _number("start", self.start))
        self._set("end", _number("end", self.end))
        self._set("begin_step", checks.non_negative_int("begin_step", self.begin_step))
        expected = f"an integer of at least begin_step, {self.begin_step}"
        end_step = checks.integer("end_step", self.end_step, self.begin_step, expected)
        self._set("end_step", end_step)

    def _at(self, step, ops):
        progress = ops.progress(step, self.begin_step, self.end_step)
        value = self._between(progress, ops)
        # Rounding may neither leave the interval nor miss its ends.
        low, high = min(self.start, self.end), max(self.start, self.end)
        value = ops.choose(value < low, low, ops.choose(value > high, high, value))
        return ops.choose(progress <= 0, self.start, ops.choose(progress >= 1, self.end, value))

    def _between(self, progress, ops):
        raise NotImplementedError

    def end_values(self):
        return (self.start, self.end)


@register
@dataclasses.dataclass(frozen=True)
class Linear(_Interval):
    """A straight line: start + (end - start)·p, p the part of the way done.

    Args:
        start: value up to `begin_step`.
        end: value from `end_step` on.
        begin_step: first step of the change.
        end_step: last step of the change; equal to `begin_step`: a jump there.

    Raises:
        TypeError: if an argument is not a number, or a step not an integer.
        ValueError: if a value is not finite or `end_step` < `begin_step`.

    Example:
        >>> from tfkd.schedules import Linear
        >>> warm = Linear(8.0, 2.0, begin_step=0, end_step=100)
        >>> [warm(step) for step in (0, 50, 100, 1000)]
        [8.0, 5.0, 2.0, 2.0]
    """

    def _between(self, progress, ops):
        return self.start + (self.end - self.start) * progress


@register
@dataclasses.dataclass(frozen=True)
class Cosine(_Interval):
    """Half a cosine wave: slow, fast, slow (Loshchilov and Hutter 2016).

    start + (end - start)·(1 - cos πp)/2, p the part of the way done.
    Reference: https://arxiv.org/abs/1608.03983

    Args:
        start: value up to `begin_step`.
        end: value from `end_step` on.
        begin_step: first step of the change.
        end_step: last step of the change; equal to `begin_step`: a jump there.

    Raises:
        TypeError: if an argument is not a number, or a step not an integer.
        ValueError: if a value is not finite or `end_step` < `begin_step`.

    Example:
        >>> from tfkd.schedules import Cosine
        >>> [round(Cosine(1.0, 0.0, 0, 4)(step), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def _between(self, progress, ops):
        return self.start + (self.end - self.start) * (0.5 - 0.5 * ops.cos(math.pi * progress))


@register
@dataclasses.dataclass(frozen=True)
class Exponential(_Interval):
    """The same factor at each step: start·(end / start)^p.

    Args:
        start: value up to `begin_step`, above 0.
        end: value from `end_step` on, above 0.
        begin_step: first step of the change.
        end_step: last step of the change; equal to `begin_step`: a jump there.

    Raises:
        TypeError: if an argument is not a number, or a step not an integer.
        ValueError: if an end is not positive or `end_step` < `begin_step`.

    Example:
        >>> from tfkd.schedules import Exponential
        >>> [round(Exponential(8.0, 1.0, 0, 3)(step), 6) for step in range(4)]
        [8.0, 4.0, 2.0, 1.0]
    """

    def __post_init__(self):
        super().__post_init__()
        for name in ("start", "end"):
            if getattr(self, name) < _SMALLEST:
                expected = "a number above 0 (at least 1e-37)"
                raise checks.value_error(name, expected, getattr(self, name), "Linear reaches 0.")

    def _between(self, progress, ops):
        start, end = math.log(self.start), math.log(self.end)
        return ops.exp(start + (end - start) * progress)


@register
@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """Constant pieces: `values[i]` until the step `boundaries[i]`.

    A new value begins at its boundary: `values[0]` holds for steps below
    `boundaries[0]`, and `values[-1]` from `boundaries[-1]` on.

    Args:
        boundaries: increasing steps, at least one.
        values: one value more than boundaries.

    Raises:
        TypeError: if a boundary is not an integer or a value not a number.
        ValueError: if lengths do not fit or boundaries do not increase.

    Example:
        >>> from tfkd.schedules import Piecewise
        >>> pieces = Piecewise([10, 20], [1.0, 0.5, 0.25])
        >>> [pieces(step) for step in (9, 10, 19, 20)]
        [1.0, 0.5, 0.5, 0.25]
    """

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self):
        for name in ("boundaries", "values"):
            if not isinstance(getattr(self, name), (list, tuple, np.ndarray)):
                raise checks.type_error(name, "a list", getattr(self, name))
        boundaries = tuple(checks.non_negative_int("boundaries", b) for b in self.boundaries)
        values = tuple(_number("values", v) for v in self.values)
        increasing = all(a < b for a, b in itertools.pairwise(boundaries))
        if not boundaries or not increasing:
            expected = "increasing steps, at least one"
            raise checks.value_error("boundaries", expected, self.boundaries)
        if len(values) != len(boundaries) + 1:
            expected = f"{len(boundaries) + 1} values, one more than boundaries"
            raise checks.value_error("values", expected, self.values)
        self._set("boundaries", boundaries)
        self._set("values", values)

    def _at(self, step, ops):
        value = self.values[0]
        for boundary, after in zip(self.boundaries, self.values[1:], strict=True):
            value = ops.choose(step >= boundary, after, value)
        return value

    def end_values(self):
        return tuple(self.values)

    def get_config(self):
        return {"boundaries": list(self.boundaries), "values": list(self.values)}


@register
@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """Linear from 0 to a value, or to what a schedule says, in `steps` steps.

    value(step)·min(step / steps, 1). The inner schedule sees the same step: its
    own change is not put off by the warm-up.

    Args:
        schedule: a number, a schedule, or a callable of the step.
        steps: length of the warm-up; 0 for none.

    Raises:
        TypeError: if `schedule` is none of these, or `steps` not an integer.
        ValueError: if a number is not finite or `steps` is below 0.

    Example:
        >>> from tfkd.schedules import Warmup
        >>> [Warmup(0.5, 10)(step) for step in (0, 5, 10, 99)]
        [0.0, 0.25, 0.5, 0.5]
    """

    schedule: Any
    steps: int

    def __post_init__(self):
        schedule = get("schedule", self.schedule, _number)
        if not isinstance(schedule, Schedule):
            schedule = float(schedule)
        self._set("schedule", schedule)
        self._set("steps", checks.non_negative_int("steps", self.steps))

    def _at(self, step, ops):
        return value_at(self.schedule, step) * ops.progress(step, 0, self.steps)

    def end_values(self):
        known = isinstance(self.schedule, Schedule)
        ends = self.schedule.end_values() if known else (self.schedule,)
        return (0.0, *ends) if self.steps else ends

    def get_config(self):
        return {"schedule": serialize(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(deserialize(config["schedule"]), config["steps"])
