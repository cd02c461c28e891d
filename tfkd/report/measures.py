"""Evaluation measures: names, units and direction; mean average precision of labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Measure:
    """An evaluation measure.

    Attributes:
        key: attribute of `Row` and `Score` that holds it, and its name in files.
        name: name in sentences.
        head: head of its column.
        percent: whether it is a percentage, else it has the unit of the labels.
    """

    key: str
    name: str
    head: str
    percent: bool = True

    @property
    def higher_is_better(self) -> bool:
        """True for percentages, False for errors."""
        return self.percent

    @property
    def axis(self) -> str:
        """Axis label in a plot."""
        return f"{self.name} (%)" if self.percent else f"{self.name} (lower is better)"

    @property
    def title(self) -> str:
        """The capitalized name."""
        return self.name[0].upper() + self.name[1:]

    def gain(self, values: np.ndarray) -> np.ndarray:
        """Values with the sign for which larger is better."""
        return values if self.higher_is_better else -values

    def format(self, stats: Any) -> str:
        """A `SeedStats` as text: percentages with one decimal, errors with three digits."""
        return stats.format(1 if self.percent else decimals(stats.mean))


ACCURACY = Measure("accuracy", "accuracy", "accuracy %")
SUBSET_ACCURACY = Measure("subset_accuracy", "subset accuracy", "subset accuracy %")
AVERAGE_PRECISION = Measure("average_precision", "mean average precision", "mAP %")
ABSOLUTE_ERROR = Measure(
    "mean_absolute_error", "mean absolute error", "mean absolute error", percent=False
)
# Models are ranked by the first measure that they have.
MEASURES = (ACCURACY, SUBSET_ACCURACY, AVERAGE_PRECISION, ABSOLUTE_ERROR)


def of_rows(rows: Iterable[Any]) -> tuple[Measure, ...]:
    """The measures that at least one row has; accuracy if there are none."""
    rows = list(rows)
    found = [m for m in MEASURES if any(getattr(row, m.key) is not None for row in rows)]
    return tuple(found) or (ACCURACY,)


def decimals(value: float) -> int:
    """Decimal places that show a number with three significant digits.

    Example:
        >>> from tfkd.report.measures import decimals
        >>> decimals(7.0), decimals(0.01234), decimals(12345.0), decimals(0.0)
        (2, 4, 0, 2)
    """
    if value == 0 or not math.isfinite(value):
        return 2
    return max(0, 2 - math.floor(math.log10(abs(value))))


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Mean over labels of the average precision Σ (Rₙ − Rₙ₋₁)·Pₙ, in percent.

    Precision Pₙ and recall Rₙ are those at the threshold of the n-th highest score.
    Labels without a positive example are left out.

    Reference: Zhu 2004, "Recall, precision and average precision".

    Args:
        labels: (M, C) of 0 and 1.
        scores: (M, C) numbers, higher for positive.

    Returns:
        A number from 0 to 100; None if there are no positive examples.

    Example:
        >>> import numpy as np
        >>> from tfkd.report.measures import mean_average_precision
        >>> labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
        >>> scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.1, 0.1]])
        >>> round(mean_average_precision(labels, scores), 2)  # (1 + 2/3) / 2
        83.33
    """
    found = [_average_precision(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    known = [value for value in found if value is not None]
    return 100 * float(np.mean(known)) if known else None


def _average_precision(labels: np.ndarray, scores: np.ndarray) -> float | None:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    if hits[-1] == 0:
        return None
    # Equal scores share a threshold, so only the last of them counts.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
