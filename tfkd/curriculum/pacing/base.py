"""What a pace is: a schedule with values in (0, 1], that comes to rest at some step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.schedules import Schedule, register

_EXPECTED = "a fraction above 0 and at most 1"
# Rounding may not admit an example too many: 0.3 · 10 = 3.0000000000000004.
_SLACK = 1e-6


def check_fraction(name: str, value: Any) -> float:
    """Accepts a number in (0, 1]."""
    checks.finite(name, value, _EXPECTED)
    if not 0 < value <= 1:
        raise checks.value_error(name, _EXPECTED, value, "It is a share of the examples.")
    return float(value)


def pool_size(fraction: float, count: int) -> int:
    """Examples in play: ⌈fraction · count⌉, at least 1.

    Example:
        >>> from tfkd.curriculum import pacing
        >>> pacing.pool_size(0.3, 10), pacing.pool_size(0.31, 10), pacing.pool_size(1e-9, 10)
        (3, 4, 1)
    """
    return min(max(math.ceil(fraction * count - _SLACK), 1), count)


class Pacing(Schedule):
    """Base of the paces that are functions of the step.

    A pace of your own is a frozen dataclass that extends this, implements
    `_at(step, ops)` as `tfkd.schedules.Schedule` says, and `last_step`.
    """

    prefix = "pacing."  # Linear is the name of a schedule too

    @property
    def last_step(self) -> int:
        """The step from which the fraction no longer changes."""
        raise NotImplementedError(f"{type(self).__name__} does not implement `last_step`")

    def pool_sizes(self, count: int) -> np.ndarray:
        """Examples in play at the steps 0, 1, ..., last_step: int64 (last_step + 1,).

        Args:
            count: of all examples.

        Raises:
            ValueError: if the pace leaves (0, 1].
        """
        fractions = [check_fraction("pacing", self(step)) for step in range(self.last_step + 1)]
        return np.array([pool_size(fraction, count) for fraction in fractions], np.int64)


@register
@dataclasses.dataclass(frozen=True)
class Fixed(Pacing):
    """The same fraction at every step.

    Args:
        fraction: in (0, 1].

    Example:
        >>> from tfkd.curriculum import pacing
        >>> pacing.Fixed(0.5)(1000)
        0.5
    """

    fraction: float

    def __post_init__(self):
        self._set("fraction", check_fraction("fraction", self.fraction))

    @property
    def last_step(self) -> int:
        """0: it never changes."""
        return 0

    def _at(self, step, ops):
        return self.fraction

    def end_values(self):
        return (self.fraction,)
