"""Comparison of a model with its original in one sentence: accuracy, speed, size, MACs."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfkd.report.measures import ACCURACY, Measure, decimals
from tfkd.results import Result

MINUS = "\N{MINUS SIGN}"
# Relative difference of two scores that rounding in float32 explains.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Against(Result):
    """Comparison of two rows of a `Table`; None where one of them has no value.

    Attributes:
        model: name of the model.
        original: name of the model that it is compared with.
        points: accuracy minus the original's, in percentage points; None for errors.
        faster: speed-up: the original's median latency divided by the model's.
        smaller: compression: the original's size divided by the model's.
        macs: multiply-accumulates as a fraction of the original's.
        score: name of the measure of `points` or `error`, such as "subset accuracy".
        error: mean absolute error minus the original's; below 0 is better, 0 within rounding.
        timing: the timed runtimes, if one is a Python function and the other is not: "a
            Python function and LiteRT". Their ratio then says little about the models.

    Example:
        >>> from tfkd.report import Against
        >>> print(Against("int8", "teacher", -0.23, 2.91, 6.3, 0.12))
        int8: −0.2 points, 2.9 times faster, 6.3 times smaller than teacher, 12 % of its MACs
        >>> print(Against("wide", "teacher", 0.04, 0.5, 1.0, None))
        wide: 0.0 points, 2.0 times slower than teacher, as large
        >>> print(Against("int8", "teacher", score="mean absolute error", error=-0.0312))
        int8: mean absolute error 0.0312 lower (better), against teacher
    """

    model: str
    original: str
    points: float | None = None
    faster: float | None = None
    smaller: float | None = None
    macs: float | None = None
    score: str = ACCURACY.name
    error: float | None = None
    timing: str = ""

    @classmethod
    def of(cls, row: Any, original: Any, measure: Measure = ACCURACY) -> Against:
        """Compares two rows of a `Table`."""
        scores = [getattr(one, measure.key) for one in (row, original)]
        gap = None if None in scores else scores[0].mean - scores[1].mean
        if gap and abs(gap) <= _ROUNDING * max(abs(one.mean) for one in scores):
            gap = 0.0
        points, error = (gap, None) if measure.percent else (None, gap)
        times = (one.latency and one.latency.p50 for one in (original, row))
        pairs = (times, (original.size, row.size), (row.macs, original.macs))
        faster, smaller, macs = (a / b if a and b else None for a, b in pairs)
        names, timing = (row.model, original.model), _timing(row, original)
        return cls(*names, points, faster, smaller, macs, measure.name, error, timing)

    @property
    def known(self) -> bool:
        """Whether any value is known."""
        numbers = (self.points, self.error, self.faster, self.smaller, self.macs)
        return any(v is not None for v in numbers)

    def parts(self) -> list[str]:
        """One sentence."""
        first = [] if self.points is None else [_points(self.points, self.score)]
        if self.error is not None:
            first = [f"{self.score} {_error(self.error)}"]
        last = []
        for ratio, more, less, equal in (
            (self.faster, "faster", "slower", "as fast"),
            (self.smaller, "smaller", "larger", "as large"),
        ):
            if ratio is not None:
                times = _times(max(ratio, 1 / ratio))
                word = more if ratio > 1 else less
                (last.append(equal) if times == "1.0" else first.append(f"{times} times {word}"))
        compared = any("times" in part for part in first)
        if compared:
            first[-1] += f" than {self.original}"
        if self.macs is not None:
            last.append(f"{_percent(self.macs)} of its MACs")
        text = f"{self.model}: {', '.join([*first, *last])}"
        text = text if compared else f"{text}, against {self.original}"
        said = self.timing and self.faster is not None
        return [f"{text} (the times are those of {self.timing})" if said else text]


def _timing(row: Any, original: Any) -> str:
    """The two runtimes, if a Python function is compared with something compiled."""
    kinds = [one.runtime for one in (row, original)]
    if "Python" not in kinds or kinds[0] == kinds[1]:
        return ""
    return " and ".join("a Python function" if k == "Python" else k or "a file" for k in kinds)


def _points(value: float, score: str) -> str:
    text = f"{value:+.1f}"
    text = "0.0" if float(text) == 0 else text.replace("-", MINUS)
    return f"{text} points" + ("" if score == ACCURACY.name else f" of {score}")


def _error(value: float) -> str:
    if value == 0:
        return "equal"
    word = "lower (better)" if value < 0 else "higher (worse)"
    return f"{abs(value):.{decimals(value)}f} {word}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:,.0f} %" if percent >= 9.5 else f"{percent:.2g} %"
