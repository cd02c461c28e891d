"""Acceptance criteria of a compressed model (gates), and the verdict on what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from tfkd import checks
from tfkd.report.against import MINUS
from tfkd.report.detection_table import DetectionRow
from tfkd.report.gate_values import Measured, measured
from tfkd.report.table import Row
from tfkd.results import Grid, Lines, Result, three_digits

ACCEPTED, REGRESSED, INFEASIBLE = "ACCEPTED", "REGRESSED", "INFEASIBLE"
# A difference of two percentages is exact to about this part of them.
_ROUNDING = 1e-9
AnyRow: TypeAlias = Row | DetectionRow


def _points(value: float) -> str:
    return f"{value:.2f} points".replace("-", MINUS)


def _percent(value: float) -> str:
    return f"{value:.2f} %"


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _bytes(value: float) -> str:
    return f"{value:,.0f} bytes"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How a gate is named, checked and shown; `least` gates pass from the value upwards."""

    title: str
    accept: Callable[[str, Any], Any]
    show: Callable[[float], str]
    least: bool = False


def _percentage(name: str, value: Any) -> float:
    if not checks.is_number(value) or not 0 <= value <= 100:
        raise checks.value_error(name, "a percentage from 0 to 100", value)
    return value


KINDS = {
    "max_drop": _Kind("drop of accuracy", checks.non_negative, _points),
    "max_class_drop": _Kind("drop of the worst class", checks.non_negative, _points),
    "min_agreement": _Kind("agreement with the original", _percentage, _percent, least=True),
    "latency_ms": _Kind("latency, median", checks.positive, lambda v: f"{three_digits(v)} ms"),
    "size": _Kind("size of the file", checks.positive, _bytes),
    "max_ece": _Kind("calibration error (ECE)", checks.fraction, lambda v: f"{v:.4f}"),
    "max_float_share": _Kind("operations in float", checks.fraction, _share),
    "max_macs_share": _Kind("multiply-accumulates left", checks.fraction, _share),
    "max_map_drop": _Kind("drop of mAP", checks.non_negative, _points),
}


@dataclasses.dataclass(frozen=True)
class Gates:
    """What a compressed model must meet; None: not asked. A value that equals its gate passes.

    Attributes:
        max_drop: largest drop of the accuracy (multi-label: subset accuracy), percentage points.
        max_class_drop: largest drop of any class, percentage points: of the class's accuracy
            (recall); multi-label: of its F1; detectors: of its AP50 in hundredths.
        min_agreement: smallest percentage of examples of which the original and the model
            predict the same.
        latency_ms: largest median time of one example, milliseconds.
        size: largest size of the deployed file, bytes.
        max_ece: largest expected calibration error, 0 to 1 (see
            `tfkd.report.calibration_error`).
        max_float_share: largest share of the file's operations that compute in float, 0 to 1.
        max_macs_share: largest share of the multiply-accumulates that is left, 0 to 1.
        max_map_drop: for detectors, largest drop of mAP (IoU 0.50 to 0.95), in hundredths
            ("points"): 0.412 → 0.402 is a drop of 1.0.

    Raises:
        TypeError, ValueError: if a value is not a number, or out of range.

    Example:
        >>> from tfkd import report
        >>> report.Gates(max_drop=1.0, latency_ms=2.0).asked
        {'max_drop': 1.0, 'latency_ms': 2.0}
    """

    max_drop: float | None = None
    max_class_drop: float | None = None
    min_agreement: float | None = None
    latency_ms: float | None = None
    size: int | None = None
    max_ece: float | None = None
    max_float_share: float | None = None
    max_macs_share: float | None = None
    max_map_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.asked.items():
            KINDS[name].accept(name, value)

    @property
    def asked(self) -> dict[str, float]:
        """The gates that are not None, by name."""
        values = {name: getattr(self, name) for name in KINDS}
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Check:
    """One gate of a verdict.

    Attributes:
        gate: name of the gate, a field of `Gates`.
        wanted: its value.
        measured: the measured value; None: it was not measured.
        passed: whether the gate is met; False if nothing was measured.
        note: what was measured (the worst class), or why there is no value.
        least: the least that is possible, if it was given and is above `wanted`.
    """

    gate: str
    wanted: float
    measured: float | None
    passed: bool
    note: str = ""
    least: float | None = None

    @property
    def by(self) -> float | None:
        """By how much the gate is failed, in its unit; None if it passed or was not measured."""
        return None if self.passed or self.measured is None else abs(self.measured - self.wanted)

    @property
    def title(self) -> str:
        """The gate in words, such as "drop of accuracy"."""
        return KINDS[self.gate].title

    def cells(self) -> tuple[str, str, str, str]:
        """The gate, what was wanted, what was measured, and the outcome, as text."""
        kind = KINDS[self.gate]
        sign = "at least" if kind.least else "at most"
        shown = "not measured" if self.measured is None else kind.show(self.measured)
        if self.passed:
            outcome = "passed"
        elif self.least is not None:
            outcome = f"infeasible: the least is {kind.show(self.least)}"
        else:
            # Two percentages differ by points.
            show = _points if kind.show is _percent else kind.show
            outcome = "failed" if self.by is None else f"failed by {show(self.by)}"
        outcome += f" ({self.note})" if self.note else ""
        return kind.title, f"{sign} {kind.show(self.wanted)}", shown, outcome


@dataclasses.dataclass(frozen=True)
class Verdict(Result, file_name="verdict"):
    """Verdict on a model: ACCEPTED, REGRESSED or INFEASIBLE; from `judge`.

    Attributes:
        status: "ACCEPTED": all gates passed; "REGRESSED": at least one did not, or its
            value was not measured; "INFEASIBLE": a budget can't be reached.
        checks: one `Check` for each gate that was asked.
        model: name of the model.
        original: name of the model that it is compared with.
        note: what else speaks against the model, such as a file that differs from it.
    """

    status: str
    checks: tuple[Check, ...] = ()
    model: str = ""
    original: str = ""
    note: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the status is ACCEPTED."""
        return self.status == ACCEPTED

    @property
    def failed(self) -> tuple[Check, ...]:
        """The gates that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        if self.note:
            return f"{self.status}: " + "; ".join([self.note, *map(_failure, self.failed)])
        if not self.checks:
            return f"{self.status}: no gate was asked."
        if not self.failed:
            count = len(self.checks)
            met = {1: "the gate is met.", 2: "both gates are met."}
            return f"{self.status}: " + met.get(count, f"all {count} gates are met.")
        failed = sorted(self.failed, key=lambda check: check.least is None)
        return f"{self.status}: " + "; ".join(map(_failure, failed)) + "."

    def parts(self) -> list[Grid | Lines | str]:
        """The sentence, and a table of the gates."""
        head = ("gate", "wanted", "measured", "result")
        tags = {i: [("not met", "")] for i, check in enumerate(self.checks) if not check.passed}
        grid = Grid(head, [check.cells() for check in self.checks], left=4, tags=tags)
        return [self.sentence, *([grid] if self.checks else [])]


def _failure(check: Check) -> str:
    title, wanted, shown, outcome = check.cells()
    if check.measured is None and check.least is None:
        return f"{title} was not measured, wanted {wanted}" + (
            f" ({check.note})" if check.note else ""
        )
    if check.measured is None:
        return f"{title}, wanted {wanted}: {outcome}"
    return f"{title} {shown}, wanted {wanted}: {outcome}"


def judge(
    gates: Gates,
    original: AnyRow,
    final: AnyRow | None,
    *,
    float_share: float | None = None,
    macs_share: float | None = None,
    least: Mapping[str, float] | None = None,
) -> Verdict:
    """Judges a model by its gates.

    Args:
        gates: what was asked.
        original: row of the model that it was made from, of `report.compare`'s `Table` or of
            a `DetectionTable`.
        final: row of the model; None: there is none, as a budget can't be reached.
        float_share: share of the file's operations that compute in float, 0 to 1: of an
            `export` report `numbers["float_operations"] / numbers["operations"]`.
        macs_share: share of the original's multiply-accumulates that is left, 0 to 1; None: it
            is told from the two rows.
        least: gate → the least value that is possible, for a budget that can't be reached:
            {"latency_ms": 3.1}. It counts only where it is above the gate and the gate isn't met.

    Returns:
        A `Verdict`. A value that was asked for and not measured is no pass: it is named.

    Raises:
        TypeError, ValueError: for a bad argument, an unknown gate in `least`, or if there is no
            final model and nothing in `least` says why.

    Example:
        >>> from tfkd import report
        >>> base = report.Row("base", report.seed_stats(93.0), size=400_000)
        >>> tiny = report.Row("tiny", report.seed_stats(91.5), size=90_000)
        >>> print(report.judge(report.Gates(max_drop=1.0, size=100_000), base, tiny))
        REGRESSED: drop of accuracy 1.50 points, wanted at most 1.00 points: failed by 0.50 points.
        <BLANKLINE>
        gate              wanted                 measured      result
        ----------------  ---------------------  ------------  ---------------------
        drop of accuracy  at most 1.00 points    1.50 points   failed by 0.50 points
        size of the file  at most 100,000 bytes  90,000 bytes  passed
    """
    checks.instance("gates", gates, Gates, "tfkd.report.Gates")
    rows = (Row, DetectionRow)
    checks.instance("original", original, rows, "a row of a Table or DetectionTable")
    checks.instance("final", final, (*rows, type(None)), "a row of such a table, or None")
    checks.optional(checks.fraction, "float_share", float_share)
    checks.optional(checks.fraction, "macs_share", macs_share)
    shares = {"max_float_share": float_share, "max_macs_share": macs_share}
    least = dict(least or {})
    for name, value in least.items():
        checks.one_of("least", name, KINDS)
        checks.non_negative(f"least[{name!r}]", value)
    found = [
        _check(name, wanted, measured(name, original, final, shares), least.get(name))
        for name, wanted in gates.asked.items()
    ]
    impossible = any(check.least is not None for check in found)
    if final is None and not impossible:
        fix = "Say in `least` which budget can't be reached: {'latency_ms': 3.1}."
        raise checks.value_error("final", "the row of the model", final, fix)
    failed = any(not check.passed for check in found)
    status = INFEASIBLE if impossible else REGRESSED if failed else ACCEPTED
    return Verdict(status, tuple(found), final.model if final else "", original.model)


def _check(name: str, wanted: float, found: Measured, least: float | None) -> Check:
    value, note = found
    passed = value is not None and _meets(KINDS[name].least, value, wanted)
    beyond = least is not None and not _meets(False, least, wanted)
    return Check(name, wanted, value, passed, note, least if beyond and not passed else None)


def _meets(at_least: bool, value: float, wanted: float) -> bool:
    if math.isclose(value, wanted, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        return True
    return value > wanted if at_least else value < wanted
