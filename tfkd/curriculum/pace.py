"""Pacing functions of a curriculum: the share of the data in the pool at a step, in (0, 1].

A schedule of `tfkd.schedules` can be a pace if its value is constant from some step on:
it is a pure function of the step, the same in every process and after a restart. Only
`AdaptivePace` depends on a validation metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfkd import checks, schedules
from tfkd.curriculum import metrics
from tfkd.schedules.base import Step

_EXPECTED = "a fraction above 0 and at most 1"
# Keeps rounding errors from adding an example: 0.1 · 3 · 10 = 3.0000000000000004.
_SLACK = 1e-6


class AdaptivePace(tf.Module):
    """Adds data when a validation metric stops improving, and removes some when it drops.

    At the end of each epoch `update` reads the metric. After `patience` epochs without an
    improvement the fraction is multiplied by `growth`; if the metric is worse than the
    best so far by more than `tolerance`, the fraction is divided by `growth`.
    `tfkd.callbacks.CurriculumUpdate` and `tfkd.ProgressiveDistiller` call `update`.

    Batches that are already prepared when the fraction changes come from the previous
    pool: one or two, and a few more under a `tf.distribute` strategy, which prefetches.

    The state (level, best, waited) is held in variables: a `tf.train.Checkpoint` of the
    pace, or of its `Curriculum`, saves it.

    Attributes:
        level: int64 variable, the number of times the fraction has grown.

    Args:
        start: fraction at first, in (0, 1].
        growth: factor from one level to the next, above 1.
        end: the largest fraction, in [start, 1].
        monitor: the metric's name in the logs.
        mode: "min" or "max", whichever is better; "auto": "max" for names that contain
            "acc", "auc", "precision", "recall", "f1" or "agreement", else "min".
        patience: epochs without improvement before the fraction grows, at least 1.
        min_delta: the least improvement that counts, in units of the metric, at least 0.
        tolerance: by how much the metric may be worse than its best before the fraction
            decreases, in units of the metric; None: it never decreases.

    Raises:
        TypeError, ValueError: for an argument that is none of these.

    Example:
        >>> from tfkd.curriculum import AdaptivePace
        >>> pace = AdaptivePace(0.25, growth=2, patience=1, tolerance=0.1)
        >>> [pace.update({"val_accuracy": v}) for v in (0.5, 0.5, 0.51, 0.2, 0.6)]
        [0.25, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(
        self,
        start: float,
        growth: float = 1.5,
        end: float = 1.0,
        monitor: str = "val_accuracy",
        mode: str = "auto",
        patience: int = 1,
        min_delta: float = 0.0,
        tolerance: float | None = None,
    ):
        super().__init__(name="adaptive_pace")
        self.start = check_fraction("start", start)
        self.end = check_fraction("end", end)
        if self.end < self.start:
            raise checks.value_error("end", f"at least start, {self.start}", self.end)
        checks.finite("growth", growth, "a number above 1")
        if growth <= 1:
            raise checks.value_error("growth", "a number above 1", growth)
        self.growth = float(growth)
        self.sign = metrics.sign(monitor, mode)
        self.monitor = monitor
        self.patience = checks.positive_int("patience", patience)
        self.min_delta = float(checks.non_negative("min_delta", min_delta))
        self.tolerance = None
        if tolerance is not None:
            self.tolerance = float(checks.non_negative("tolerance", tolerance))
        # The tolerance keeps rounding errors from adding a level.
        self.levels = math.ceil(math.log(self.end / self.start) / math.log(self.growth) - 1e-9)
        self.level = tf.Variable(0, dtype=tf.int64, trainable=False, name="level")
        self._waited = tf.Variable(0, dtype=tf.int64, trainable=False, name="waited")
        self._best = tf.Variable(-math.inf, dtype=tf.float64, trainable=False, name="best")

    def __repr__(self) -> str:
        path = f"start={self.start}, growth={self.growth}, end={self.end}"
        return f"AdaptivePace({path}, now={self()})"

    def __call__(self, step: Step | None = None) -> float:
        """Returns the current fraction; `step`, which schedules take, is ignored."""
        level = int(self.level.numpy())
        return self.end if level >= self.levels else self.start * self.growth**level

    def fractions(self) -> np.ndarray:
        """Returns the fraction of each level: (levels + 1,)."""
        steps = [self.start * self.growth**level for level in range(self.levels)]
        return np.array([*steps, self.end])

    def update(self, logs: Mapping[str, float] | None) -> float:
        """Updates the level by an epoch's logs; returns the fraction from now on.

        Raises:
            ValueError: if the metric is not in the logs, or is NaN.
        """
        self._advance(self.sign * metrics.value_of(self.monitor, logs))
        return self()

    def _advance(self, value: float) -> None:
        best = float(self._best.numpy())
        if value > best + self.min_delta:
            self._best.assign(value)
            self._waited.assign(0)
        elif self.tolerance is not None and value < best - self.tolerance:
            self._move(-1)
        else:
            self._waited.assign_add(1)
            if int(self._waited.numpy()) >= self.patience:
                self._move(1)

    def _move(self, by: int) -> None:
        level = int(self.level.numpy()) + by
        self.level.assign(min(max(level, 0), self.levels))
        self._waited.assign(0)


def check_fraction(name: str, value: float) -> float:
    """Accepts a number in (0, 1]."""
    checks.finite(name, value, _EXPECTED)
    if not 0 < value <= 1:
        raise checks.value_error(name, _EXPECTED, value, "It is a share of the examples.")
    return float(value)


def accept(
    name: str, pace: float | schedules.Schedule | AdaptivePace
) -> schedules.Schedule | AdaptivePace:
    """Accepts a pace for the argument `name`; a number becomes a constant schedule.

    Raises:
        TypeError: if `pace` is neither number, schedule nor AdaptivePace.
        ValueError: if a fraction is outside (0, 1], or a schedule never becomes constant.
    """
    if isinstance(pace, AdaptivePace):
        return pace
    if not isinstance(pace, schedules.Schedule):
        if checks.is_number(pace):
            return schedules.Constant(check_fraction(name, pace))
        expected = "a number in (0, 1], a schedule of tfkd.schedules, or an AdaptivePace"
        fix = "A function of the step becomes one as a subclass of tfkd.schedules.Schedule."
        raise checks.type_error(name, expected, pace, fix)
    schedules.get(name, pace, check_fraction)
    if pace.last_step is None:
        expected = "a schedule whose value stops changing at a known step"
        raise checks.value_error(name, expected, pace, "Define `last_step` in its class.")
    return pace


def pool_sizes(pace: schedules.Schedule | AdaptivePace, count: int) -> np.ndarray:
    """Returns the sizes of the pool of `count` examples: ⌈fraction · count⌉, at least 1.

    Returns:
        int64, one for each level of an adaptive pace, or for each step of a schedule up
        to its `last_step`.

    Raises:
        ValueError: if the pace leaves (0, 1].
    """
    if isinstance(pace, AdaptivePace):
        fractions = pace.fractions()
    else:
        fractions = np.asarray(pace(np.arange((pace.last_step or 0) + 1)))
        for end in (fractions.min(), fractions.max()):
            check_fraction("pace", end)
    return np.clip(np.ceil(fractions * count - _SLACK), 1, count).astype(np.int64)
