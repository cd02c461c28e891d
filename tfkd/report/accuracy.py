"""Accuracy of predictions, and its mean and spread over seeds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfkd import checks


@dataclasses.dataclass(frozen=True)
class SeedStats:
    """Mean and spread of one number over several seeds.

    Attributes:
        mean: arithmetic mean.
        sd: sample standard deviation, divided by n − 1; None for one value.
        values: the values, in the order given.
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]

    def format(self, digits: int = 1) -> str:
        """Returns "93.1 ± 0.4", or "93.1" for one value."""
        text = f"{self.mean:.{digits}f}"
        return text if self.sd is None else f"{text} ± {self.sd:.{digits}f}"

    def __str__(self) -> str:
        return self.format()


def seed_stats(values: Any) -> SeedStats:
    """Returns mean ± sample standard deviation (n − 1) of a number over seeds.

    Args:
        values: one number, or a sequence of numbers, one a seed.

    Raises:
        ValueError: if there is none or one is not finite.

    Example:
        >>> from tfkd import report
        >>> str(report.seed_stats([92.7, 93.1, 93.5]))
        '93.1 ± 0.4'
    """
    try:
        array = np.atleast_1d(np.asarray(values, np.float64))
    except (TypeError, ValueError):
        raise checks.type_error("values", "numbers, one a seed", values) from None
    if array.ndim != 1 or array.size == 0:
        raise checks.value_error("values", "at least one number, in one dimension", values)
    if not np.isfinite(array).all():
        raise checks.value_error("values", "finite numbers", values)
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return SeedStats(float(array.mean()), sd, tuple(float(v) for v in array))


def accuracy(labels: Any, outputs: Any) -> float:
    """Percentage of examples whose largest output is at the label.

    Args:
        labels: (N,) or (N, 1) class numbers, or (N, C) one-hot or soft labels.
        outputs: (N, C) logits or probabilities.

    Returns:
        Accuracy between 0 and 100.

    Raises:
        ValueError: if the shapes do not belong together or there is no example.

    Example:
        >>> from tfkd import report
        >>> report.accuracy([0, 1, 1, 0], [[2, 1], [0, 3], [5, 4], [8, 1]])
        75.0
    """
    labels, outputs = np.asarray(labels), np.asarray(outputs)
    if outputs.ndim != 2 or outputs.shape[1] < 2 or outputs.shape[0] == 0:
        raise checks.value_error(
            "outputs", "an array (examples, classes) with at least 2 classes", outputs
        )
    if labels.shape == outputs.shape:
        labels = labels.argmax(-1)
    elif labels.shape in ((len(outputs),), (len(outputs), 1)):
        labels = labels.reshape(-1)
    else:
        raise checks.value_error(
            "labels", f"class numbers or one-hot labels for {len(outputs)} examples", labels
        )
    return 100.0 * float(np.mean(outputs.argmax(-1) == labels))
