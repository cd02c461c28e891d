"""Schedules between two values: linear, cosine, exponential and root."""

from __future__ import annotations

import dataclasses
import math

from tfkd import checks
from tfkd.schedules.accept import above_zero, number
from tfkd.schedules.base import Schedule, register


@dataclasses.dataclass(frozen=True)
class _Interval(Schedule):
    """From `start` at `begin_step` to `end` at `end_step`; constant outside."""

    start: float
    end: float
    begin_step: int = 0
    end_step: int | None = None

    def __post_init__(self):
        self._set("start", number("start", self.start))
        self._set("end", number("end", self.end))
        self._set("begin_step", checks.non_negative_int("begin_step", self.begin_step))
        expected = f"an integer of at least begin_step, {self.begin_step}"
        end_step = checks.integer("end_step", self.end_step, self.begin_step, expected)
        self._set("end_step", end_step)

    def _at(self, step, ops):
        progress = ops.progress(step, self.begin_step, self.end_step)
        value = self._between(progress, ops)
        # Rounding may neither leave the interval nor miss its ends.
        value = ops.clip(value, min(self.start, self.end), max(self.start, self.end))
        return ops.choose(progress <= 0, self.start, ops.choose(progress >= 1, self.end, value))

    def _between(self, progress, ops):
        raise NotImplementedError

    @property
    def last_step(self):
        return self.end_step

    def end_values(self):
        return (self.start, self.end)


@register
@dataclasses.dataclass(frozen=True)
class Linear(_Interval):
    """Linear interpolation: start + (end - start)·p, with the progress p in 0..1.

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
    """Cosine annealing: half a cosine wave (Loshchilov and Hutter 2016).

    start + (end - start)·(1 - cos πp)/2, with the progress p in 0..1.
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
    """Exponential change by the same factor at each step: start·(end / start)^p.

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
        above_zero("start", self.start)
        above_zero("end", self.end)

    def _between(self, progress, ops):
        start, end = math.log(self.start), math.log(self.end)
        return ops.exp(start + (end - start) * progress)


@register
@dataclasses.dataclass(frozen=True)
class Root(_Interval):
    """Power law: (startᵖ + (endᵖ - startᵖ)·q)^(1/p), with the progress q in 0..1.

    With p above 1 the value grows fast at first, and slowly later. As the pace of a
    curriculum it gives all new examples the same time before the next ones are added
    (Platanios et al. 2019, https://arxiv.org/abs/1903.09848, with p = 2: the square root).

    Args:
        start: value up to `begin_step`, at least 0.
        end: value from `end_step` on, at least 0.
        begin_step: first step of the change.
        end_step: last step of the change; equal to `begin_step`: a jump there.
        p: a number above 0; 1 is linear, and numbers below 1 are slower at first.

    Raises:
        TypeError: if an argument is not a number, or a step not an integer.
        ValueError: if an end is negative, `end_step` < `begin_step` or p ≤ 0.

    Example:
        >>> from tfkd.schedules import Root
        >>> [round(Root(0.2, 1.0, 0, 100, p=2)(step), 3) for step in (0, 25, 50, 100)]
        [0.2, 0.529, 0.721, 1.0]
    """

    p: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("start", "end"):
            checks.non_negative(name, getattr(self, name))
        self._set("p", float(checks.positive("p", self.p)))

    def _between(self, progress, ops):
        # high·(q + (1 - q)·(low/high)ᵖ)^(1/p), with q the progress from the lower end to
        # the higher, in logarithms, so that no power underflows.
        low, high = min(self.start, self.end), max(self.start, self.end)
        part = progress if self.start <= self.end else 1.0 - progress
        ratio = self.p * math.log(high / low) if low else math.inf
        if ratio < 1:  # exact for small p, where the power is close to 1
            power = ops.log1p((1.0 - part) * math.expm1(-ratio))
        else:  # the last term avoids log 0 at the lower end, where `_at` sets the value
            power = ops.log(part + (1.0 - part) * math.exp(-ratio) + 1e-35)
        return high * ops.exp(power / self.p)
