"""Piecewise-constant schedules: constant, piecewise and staircase."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from tfkd import checks
from tfkd.schedules.accept import above_zero, number
from tfkd.schedules.base import Schedule, register


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
        self._set("value", number("value", self.value))

    def _at(self, step, ops):
        return self.value

    @property
    def last_step(self):
        return 0

    def end_values(self):
        return (self.value,)


@register
@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """Piecewise-constant values: `values[i]` up to the step `boundaries[i]`.

    A new value starts at its boundary: `values[0]` is for steps below `boundaries[0]`,
    and `values[-1]` from `boundaries[-1]` on.

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
        values = tuple(number("values", v) for v in self.values)
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

    @property
    def last_step(self):
        return self.boundaries[-1]

    def end_values(self):
        return tuple(self.values)

    def get_config(self):
        return {"boundaries": list(self.boundaries), "values": list(self.values)}


@register
@dataclasses.dataclass(frozen=True)
class Staircase(Schedule):
    """Exponential steps by a factor: start·factor^⌊t / every⌋, until it reaches `end`.

    The value is held for `every` steps. As the pace of a curriculum, with a factor of
    1.9, it is the "fixed exponential pacing" of Hacohen and Weinshall 2019,
    https://arxiv.org/abs/1904.03626.

    Args:
        start: value at step 0, above 0.
        end: the last value, which then stays, above 0.
        every: steps from one jump to the next.
        factor: factor of each jump: above 1 if `end` is above `start`, between 0 and 1
            if it is below.

    Raises:
        TypeError: if an argument is not a number, or `every` not an integer.
        ValueError: if an end is not positive, or the factor leads away from `end`.

    Example:
        >>> from tfkd.schedules import Staircase
        >>> [round(Staircase(0.25, 1.0, 10, factor=2)(step), 6) for step in (0, 9, 10, 20, 99)]
        [0.25, 0.25, 0.5, 1.0, 1.0]
    """

    start: float
    end: float
    every: int
    factor: float

    def __post_init__(self):
        for name in ("start", "end", "factor"):
            self._set(name, number(name, getattr(self, name)))
        above_zero("start", self.start)
        above_zero("end", self.end)
        self._set("every", checks.positive_int("every", self.every))
        falls = self.end < self.start
        if not (0 < self.factor < 1 if falls else self.factor > 1):
            kind = "between 0 and 1" if falls else "above 1"
            expected = f"a number {kind}, to get from {self.start} to {self.end}"
            raise checks.value_error("factor", expected, self.factor)

    @property
    def last_step(self):
        # The tolerance keeps rounding errors from adding a jump.
        jumps = math.log(self.end / self.start) / math.log(self.factor)
        return math.ceil(jumps - 1e-9) * self.every

    def _at(self, step, ops):
        part = ops.progress(step - step % self.every, 0, self.last_step)
        growth = math.log(self.factor) * (self.last_step // self.every)
        value = ops.exp(math.log(self.start) + part * growth)
        value = ops.clip(value, min(self.start, self.end), max(self.start, self.end))
        return ops.choose(part >= 1, self.end, value)

    def end_values(self):
        return (self.start, self.end)
