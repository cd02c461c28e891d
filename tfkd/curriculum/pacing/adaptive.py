"""A pace that waits until the model has learned what is in play."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.curriculum import metrics
from tfkd.curriculum.pacing.base import check_fraction


class Adaptive(tf.Module):
    """More of the data when a validation metric stops improving, less when it drops.

    At the end of each epoch `update` looks at the metric. After `patience` epochs
    without an improvement the fraction is multiplied by `growth`; when the metric is
    worse than the best so far by more than `tolerance`, it is divided by `growth`.
    `tfkd.callbacks.CurriculumUpdate` and `tfkd.ProgressiveDistiller` call `update`.

    Batches that are ready when the fraction changes still come from the earlier pool: one
    or two, and a few more under a `tf.distribute` strategy, which prepares them ahead.

    Its state (level, best, waited) is in variables: a `tf.train.Checkpoint` that holds
    it, or the `Curriculum` that uses it, keeps it.

    Attributes:
        level: int64 variable, how many times the fraction has grown.

    Args:
        start: fraction at first, in (0, 1].
        growth: factor from one level to the next, above 1.
        end: the largest fraction, in [start, 1].
        monitor: the metric's name in the logs.
        mode: "min" or "max", what is better; "auto": "max" for names that hold "acc",
            "auc", "precision", "recall", "f1" or "agreement", else "min".
        patience: epochs without improvement before the fraction grows, at least 1.
        min_delta: what counts as an improvement, in units of the metric, at least 0.
        tolerance: by how much the metric may drop below its best before the fraction
            falls back, in units of the metric; None: it never falls back.

    Raises:
        TypeError, ValueError: for an argument that is none of these.

    Example:
        >>> from tfkd.curriculum import pacing
        >>> pace = pacing.Adaptive(0.25, growth=2, patience=1, tolerance=0.1)
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
        super().__init__(name="adaptive_pacing")
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
        self.levels = math.ceil(math.log(self.end / self.start) / math.log(self.growth) - 1e-9)
        self.level = tf.Variable(0, dtype=tf.int64, trainable=False, name="level")
        self._waited = tf.Variable(0, dtype=tf.int64, trainable=False, name="waited")
        self._best = tf.Variable(-math.inf, dtype=tf.float64, trainable=False, name="best")

    def __repr__(self) -> str:
        return f"Adaptive(start={self.start}, growth={self.growth}, end={self.end}, now={self()})"

    def __call__(self, step: Any = None) -> float:
        """The fraction now. `step` is taken for the sake of the other paces."""
        level = int(self.level.numpy())
        return self.end if level >= self.levels else self.start * self.growth**level

    def fractions(self) -> np.ndarray:
        """The fraction of each level: (levels + 1,)."""
        steps = [self.start * self.growth**level for level in range(self.levels)]
        return np.array([*steps, self.end])

    def update(self, logs: Any) -> float:
        """Looks at an epoch's logs, and returns the fraction from now on.

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
