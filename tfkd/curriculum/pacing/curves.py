"""The built-in paces."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from tfkd import checks
from tfkd.curriculum.pacing.base import Pacing, check_fraction
from tfkd.schedules import register


@dataclasses.dataclass(frozen=True)
class _Growing(Pacing):
    """From `start` at step 0 to `end` at step `steps`; constant after it."""

    start: float
    steps: int
    end: float = 1.0

    def __post_init__(self):
        self._set("start", check_fraction("start", self.start))
        self._set("steps", checks.positive_int("steps", self.steps))
        self._set("end", check_fraction("end", self.end))
        if self.end < self.start:
            mend = "For the hardest first, pass order='hardest_first' to Curriculum."
            raise checks.value_error("end", f"at least start, {self.start}", self.end, mend)

    @property
    def last_step(self) -> int:
        """The step at which the fraction is `end`."""
        return self.steps

    def _at(self, step, ops):
        part = ops.progress(step, 0, self.steps)
        value = self._between(part, ops)
        # Rounding may neither leave the interval nor miss its ends.
        value = ops.choose(value < self.start, self.start, value)
        value = ops.choose(value > self.end, self.end, value)
        return ops.choose(part <= 0, self.start, ops.choose(part >= 1, self.end, value))

    def _between(self, part, ops):
        raise NotImplementedError

    def end_values(self):
        return (self.start, self.end)


@register
@dataclasses.dataclass(frozen=True)
class Linear(_Growing):
    """The same number of examples joins at each step: start + (end − start)·t/T.

    Reference: Bengio et al. 2009, "Curriculum learning", ICML;
    Platanios et al. 2019, https://arxiv.org/abs/1903.09848

    Args:
        start: fraction at step 0, in (0, 1].
        steps: T, the step at which the fraction is `end`.
        end: fraction from then on, in [start, 1].

    Raises:
        TypeError: if an argument is not a number, or `steps` not an integer.
        ValueError: for fractions outside (0, 1], or an end below the start.

    Example:
        >>> from tfkd.curriculum import pacing
        >>> [pacing.Linear(0.5, 100)(step) for step in (0, 50, 100, 1000)]
        [0.5, 0.75, 1.0, 1.0]
    """

    def _between(self, part, ops):
        return self.start + (self.end - self.start) * part


@register
@dataclasses.dataclass(frozen=True)
class Root(_Growing):
    """Many join early and fewer later: (startᵖ + (endᵖ − startᵖ)·t/T)^(1/p).

    Each newcomer then has as long to be seen before the next ones come (Platanios
    et al. 2019, https://arxiv.org/abs/1903.09848, with p = 2: the square root).

    Args:
        start: fraction at step 0, in (0, 1].
        steps: T, the step at which the fraction is `end`.
        end: fraction from then on, in [start, 1].
        p: any number above 0; 1 is linear, above 1 faster at first, below 1 slower.

    Raises:
        TypeError: if an argument is not a number, or `steps` not an integer.
        ValueError: for fractions outside (0, 1], an end below the start, or p ≤ 0.

    Example:
        >>> from tfkd.curriculum import pacing
        >>> [round(pacing.Root(0.2, 100, p=2)(step), 3) for step in (0, 25, 50, 100)]
        [0.2, 0.529, 0.721, 1.0]
    """

    p: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        self._set("p", float(checks.positive("p", self.p)))

    def _between(self, part, ops):
        # As startᵖ·(1 + (rᵖ − 1)·part), r = end/start, in logarithms: no power of a
        # small fraction becomes 0, whatever p.
        ratio = self.p * math.log(self.end / self.start)
        if ratio > 80:
            # rᵖ is beyond float32, and at a whole step 1 is nothing beside rᵖ·part.
            grown = (ratio + ops.log(part + 1e-35)) / self.p
        else:
            grown = ops.log(1.0 + math.expm1(ratio) * part) / self.p
        return self.start * ops.exp(grown)


@register
@dataclasses.dataclass(frozen=True)
class Geometric(_Growing):
    """The same factor at each step: start·(end / start)^(t/T); few join early.

    Args:
        start: fraction at step 0, in (0, 1].
        steps: T, the step at which the fraction is `end`.
        end: fraction from then on, in [start, 1].

    Raises:
        TypeError: if an argument is not a number, or `steps` not an integer.
        ValueError: for fractions outside (0, 1], or an end below the start.

    Example:
        >>> from tfkd.curriculum import pacing
        >>> [round(pacing.Geometric(0.125, 3)(step), 6) for step in range(5)]
        [0.125, 0.25, 0.5, 1.0, 1.0]
    """

    def _between(self, part, ops):
        return self.start * ops.exp(math.log(self.end / self.start) * part)


@register
@dataclasses.dataclass(frozen=True)
class Step(Pacing):
    """Jumps: min(end, start·factor^⌊t / every⌋).

    "Fixed exponential pacing" of Hacohen and Weinshall 2019,
    https://arxiv.org/abs/1904.03626

    Args:
        start: fraction at step 0, in (0, 1].
        every: steps between jumps.
        factor: what the fraction is multiplied by at a jump, above 1.
        end: the largest fraction, in [start, 1].

    Raises:
        TypeError: if an argument is not a number, or `every` not an integer.
        ValueError: for fractions outside (0, 1], an end below the start, or a
            factor of 1 or less.

    Example:
        >>> from tfkd.curriculum import pacing
        >>> [pacing.Step(0.25, every=10, factor=2)(step) for step in (0, 9, 10, 20, 99)]
        [0.25, 0.25, 0.5, 1.0, 1.0]
    """

    start: float
    every: int
    factor: float = 1.9
    end: float = 1.0

    def __post_init__(self):
        self._set("start", check_fraction("start", self.start))
        self._set("every", checks.positive_int("every", self.every))
        self._set("end", check_fraction("end", self.end))
        checks.finite("factor", self.factor, "a number above 1")
        if self.factor <= 1:
            raise checks.value_error("factor", "a number above 1", self.factor, "1.9 is usual.")
        self._set("factor", float(self.factor))
        if self.end < self.start:
            raise checks.value_error("end", f"at least start, {self.start}", self.end)

    @property
    def jumps(self) -> int:
        """How many jumps it takes to reach `end`."""
        ratio = math.log(self.end / self.start) / math.log(self.factor)
        return math.ceil(ratio - 1e-9)

    @property
    def last_step(self) -> int:
        """The step of the last jump."""
        return self.jumps * self.every

    def _at(self, step, ops):
        # As a sum of pieces: no power that a float can't hold, and exact steps.
        value = self.start
        for jump in range(1, self.jumps + 1):
            after = min(self.end, self.start * self.factor**jump)
            after = self.end if jump == self.jumps else after
            value = ops.choose(step >= jump * self.every, after, value)
        return value

    def end_values(self):
        return (self.start, self.end)


@register
@dataclasses.dataclass(frozen=True)
class Pieces(Pacing):
    """Any fractions, each from a given step on: `fractions[i]` until `boundaries[i]`.

    They may fall as well as rise.

    Args:
        boundaries: increasing steps.
        fractions: one more than boundaries, each in (0, 1].

    Raises:
        TypeError: if a boundary is not an integer or a fraction not a number.
        ValueError: if lengths do not fit, boundaries do not increase, or a fraction
            is outside (0, 1].

    Example:
        >>> from tfkd.curriculum import pacing
        >>> [pacing.Pieces([10, 20], [0.3, 0.6, 1.0])(step) for step in (9, 10, 20)]
        [0.3, 0.6, 1.0]
    """

    boundaries: Sequence[int]
    fractions: Sequence[float]

    def __post_init__(self):
        for name in ("boundaries", "fractions"):
            if not isinstance(getattr(self, name), (list, tuple, np.ndarray)):
                raise checks.type_error(name, "a list", getattr(self, name))
        boundaries = tuple(checks.positive_int("boundaries", b) for b in self.boundaries)
        if not all(a < b for a, b in itertools.pairwise(boundaries)):
            raise checks.value_error("boundaries", "increasing steps", self.boundaries)
        fractions = tuple(check_fraction("fractions", f) for f in self.fractions)
        if len(fractions) != len(boundaries) + 1:
            expected = f"{len(boundaries) + 1} fractions, one more than boundaries"
            raise checks.value_error("fractions", expected, self.fractions)
        self._set("boundaries", boundaries)
        self._set("fractions", fractions)

    @property
    def last_step(self) -> int:
        """The last boundary."""
        return self.boundaries[-1] if self.boundaries else 0

    def _at(self, step, ops):
        value = self.fractions[0]
        for boundary, after in zip(self.boundaries, self.fractions[1:], strict=True):
            value = ops.choose(step >= boundary, after, value)
        return value

    def end_values(self):
        return tuple(self.fractions)

    def get_config(self):
        return {"boundaries": list(self.boundaries), "fractions": list(self.fractions)}
