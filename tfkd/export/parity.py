"""Numerical parity of an exported file with its Keras model: metrics, thresholds, report.

Argmax agreement alone hides clipping: a file can agree on every image and be
wrong by a third of the range. So errors are measured too, relative to the range
of the Keras output (its maximum minus its minimum over all examples).

Agreement also depends on the model: where two classes are nearly tied, the last bit
decides. So the threshold applies to the agreement on decided examples, in which the
best class leads by more than twice the mean error, so that an error of that size on
both classes can't swap them. Errors on the other examples are bounded by the threshold
of the mean error.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfkd import checks
from tfkd.results import Grid, Result, size_text

# Default thresholds by mode. Errors are fractions of the output's range.
THRESHOLDS: dict[str, dict[str, float]] = {
    "float32": {"max_error": 1e-4, "min_agreement": 0.99},
    "float16": {"max_error": 1e-2, "min_agreement": 0.98},
    "dynamic": {"max_error": 0.1, "min_agreement": 0.95},
    "int8": {"max_error": 0.25, "min_agreement": 0.9},
    # The Keras model rounds as the file does, except for sums halfway between two codes.
    "quantized": {"max_error": 0.15, "max_mean_error": 0.02, "min_agreement": 0.95},
}
_SHARED = {"max_mean_error": 0.05, "max_clipped": 0.05, "min_dependence": 1e-3}
_WORST_IF_LARGE = ("max_error", "mean_error", "clipped", "not_finite")


def thresholds_for(mode: str, changes: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the thresholds of `mode`, updated by `changes`, which are checked."""
    return updated({**_SHARED, **THRESHOLDS[mode]}, changes, checks.non_negative)


def updated(
    limits: dict[str, float],
    changes: Mapping[str, float] | None,
    check: Callable[[str, float], float],
) -> dict[str, float]:
    """Returns thresholds, updated by `changes`, each of which must pass `check`."""
    if changes is None:
        return limits
    checks.instance("thresholds", changes, Mapping, "a dict of thresholds by name")
    for key, value in changes.items():
        checks.one_of("thresholds", key, limits)
        check(f"thresholds[{key!r}]", value)
    return {**limits, **changes}


def measure(
    expected: Mapping[str, np.ndarray],
    received: Mapping[str, np.ndarray],
    limits: Mapping[str, tuple[float, float, float] | None],
) -> dict[str, Any]:
    """Compares outputs by name.

    Args:
        expected: outputs (N, ...) of the Keras model by name.
        received: outputs of the file by name, as real numbers.
        limits: (smallest, largest, step) of each output's codes, by name; None for a
            float output.

    Returns:
        The number of `examples`, the following metrics for each output in `outputs`,
        and their worst values over all outputs:

        * `argmax_agreement`: fraction of equal argmax; None without a class axis.
        * `decided_agreement`: the same on decided examples.
        * `max_error`, `mean_error`: as fractions of the range.
        * `clipped`: fraction of elements at the first or last code whose Keras value lies
          beyond it.
        * `not_finite`: fraction of elements that are NaN or infinite in the file; each
          counts as an error of the whole range.
        * `dependence`: how much an element varies between examples, as a fraction of the
          range; near 0 the comparison proves nothing. `file_dependence`: the same for the
          file.
    """
    outputs = {
        name: _measure_one(expected[name], received[name], limits.get(name)) for name in expected
    }
    rows = list(outputs.values())
    return {
        "examples": len(next(iter(expected.values()))),
        **{key: _least(r[key] for r in rows) for key in ("argmax_agreement", "decided_agreement")},
        **{key: max(r[key] for r in rows) for key in _WORST_IF_LARGE},
        **{key: min(r[key] for r in rows) for key in ("dependence", "file_dependence")},
        "outputs": outputs,
    }


def _least(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _agreements(expected: np.ndarray, received: np.ndarray) -> tuple[float, float]:
    """Fractions of equal argmax on all positions and on the decided ones (1 if there are none)."""
    same = expected.argmax(-1) == received.argmax(-1)
    best = np.sort(expected.astype(np.float64), -1)[..., -2:]
    error = np.abs(received.astype(np.float64) - expected).mean()
    # An error of that size on each of the two best classes can't swap them.
    decided = best[..., 1] - best[..., 0] > 2 * error
    return float(same.mean()), float(same[decided].mean()) if decided.any() else 1.0


def _measure_one(
    expected: np.ndarray, received: np.ndarray, limits: tuple[float, float, float] | None
) -> dict[str, Any]:
    low, high = float(expected.min()), float(expected.max())
    span = high - low
    # A constant output has no range: its errors are absolute, and its dependence is 0.
    unit = span or 1.0
    finite = np.isfinite(received)
    received = np.where(finite, received, 0)
    error = np.where(finite, np.abs(received.astype(np.float64) - expected) / unit, 1.0)
    agreement = decided = None
    if expected.ndim >= 2 and expected.shape[-1] > 1:
        agreement, decided = _agreements(expected, received)
    clipped = 0.0
    if limits is not None:
        first, last, step = limits  # Values within half a step of the last code are rounded.
        below = (received <= first + step / 2) & (expected < first - step / 2)
        above = (received >= last - step / 2) & (expected > last + step / 2)
        clipped = float((below | above).mean())
    moves, moved = (values.max(0) - values.min(0) for values in (expected, received))
    return {
        "argmax_agreement": agreement,
        "decided_agreement": decided,
        "max_error": float(error.max()),
        "mean_error": float(error.mean()),
        "clipped": clipped,
        "not_finite": float((~finite).mean()),
        "dependence": float(moves.max() / unit),
        "file_dependence": float(moved.max() / unit),
        "range": [low, high],
    }


def failures(
    numbers: Mapping[str, Any], limits: Mapping[str, float], ranks: Mapping[str, int]
) -> list[str]:
    """Lists the thresholds that are missed, one sentence each.

    The agreement of outputs of other ranks than 2, (batch, classes), is not judged: the
    last axis of a detector's boxes, for example, is not a class axis.
    """
    found = []
    for name, row in numbers["outputs"].items():
        if row["dependence"] < limits["min_dependence"]:
            found.append(
                f"output {name!r} hardly depends on the input (it moves by "
                f"{row['dependence']:.2g} of its range), so that nothing can be concluded; is "
                "the model trained, and are the images different?"
            )
        if row["not_finite"]:
            found.append(
                f"output {name!r} holds NaN or infinity where the Keras model's is finite "
                f"({row['not_finite']:.2%} of its numbers)"
            )
        tests = [
            ("max_error", row["max_error"], limits["max_error"]),
            ("mean_error", row["mean_error"], limits["max_mean_error"]),
            ("clipped", row["clipped"], limits["max_clipped"]),
        ]
        found += [
            f"output {name!r}: {key} {value:.3g} is above {limit:g}"
            for key, value, limit in tests
            if value > limit
        ]
        agreement = row["decided_agreement"]
        if ranks[name] == 2 and agreement is not None and agreement < limits["min_agreement"]:
            found.append(
                f"output {name!r}: decided_agreement {agreement:.3g} is below "
                f"{limits['min_agreement']:g} (argmax_agreement of all examples: "
                f"{row['argmax_agreement']:.3g})"
            )
    return found


@dataclasses.dataclass(frozen=True)
class ExportReport(Result):
    """An exported file and how it compares with its Keras model.

    Attributes:
        path: the file.
        bytes: its size.
        mode: "float32", "float16", "dynamic" or "int8".
        io: dtype of its inputs and outputs.
        numbers: counts of `operations` and `float_operations`; `in_float`, the names of
            the latter in an int8 TFLite file. If the file was verified, the results of
            `tfkd.export.parity.measure`. Otherwise `check`, the results of the small
            check: with `on`, its examples ("made-up inputs", "calibration examples" or
            "nothing"), the `reason` if there were none, and `warnings`.
    """

    place: ClassVar[str] = "file"

    path: pathlib.Path
    bytes: int
    mode: str
    io: str
    numbers: dict[str, Any]

    @property
    def verified(self) -> bool:
        """Whether the file was compared with the model on the examples given as `verify`."""
        return "examples" in self.numbers

    @property
    def compared_on(self) -> str:
        """The examples on which file and model were compared: "200 given examples", ..."""
        if self.verified:
            return f"{self.numbers['examples']} given examples"
        check = self.numbers.get("check", {"on": "nothing", "reason": "verify=False"})
        if "examples" in check:
            return f"{check['examples']} {check['on']}"
        return f"nothing: {check['reason']}"

    def _checked(self) -> list[tuple[str, str]]:
        """Table rows of a file that is not verified."""
        check = self.numbers.get("check", {})
        text = self.compared_on
        if "max_error" in check:
            text += f": max error / range {check['max_error']:.2e}, mean {check['mean_error']:.2e}"
        rows = [("verified on", "nothing: pass verify=images"), ("checked on", text)]
        return rows + [("warning", warning) for warning in check.get("warnings", ())]

    def parts(self) -> list[Grid]:
        """A table of the file's properties and its parity with the model."""
        rows = [(self.place, str(self.path)), ("size", size_text(self.bytes)), *self._about()]
        rows += self._compared() if self.verified else self._checked()
        return [Grid((), rows, left=2)]

    def _about(self) -> list[tuple[str, str]]:
        """Table rows on the file's content."""
        rows = [("mode, io", f"{self.mode}, {self.io}"), ("operations", self._operations())]
        if self.numbers.get("in_float"):
            rows.append(("in float", _summary(self.numbers["in_float"])))
        return rows

    def _operations(self) -> str:
        return f"{self.numbers['operations']} ({self.numbers['float_operations']} in float)"

    def _compared(self) -> list[tuple[str, str]]:
        """Table rows of a file that is verified."""
        rows = compared_rows(self.numbers)
        return [*rows, ("outputs clipped", f"{self.numbers['clipped']:.2%}")]


def compared_rows(numbers: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """The results of `measure` as rows of a table."""
    return [
        ("verified on", f"{numbers['examples']} examples{where}"),
        ("argmax agreement", agreement_text(numbers)),
        ("max error / range", f"{numbers['max_error']:.2e}"),
        ("mean error / range", f"{numbers['mean_error']:.2e}"),
    ]


def agreement_text(numbers: Mapping[str, Any]) -> str:
    """Agreement as "93.00% (97.80% of the decided)"; the latter only where it differs."""
    every, decided = numbers["argmax_agreement"], numbers["decided_agreement"]
    if every is None:
        return "-"
    return f"{every:.2%}" + ("" if every == decided else f" ({decided:.2%} of the decided)")


def _summary(in_float: Sequence[Mapping[str, str]]) -> str:
    """Float operations by type, each with their number and the result tensor of the first."""
    kinds: dict[str, list[str]] = {}
    for row in in_float:
        kinds.setdefault(row["operation"], []).append(row["tensor"])
    return ", ".join(f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items())
