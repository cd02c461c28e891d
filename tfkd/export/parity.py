"""An exported file against its Keras model, in numbers, and what is good enough.

Argmax agreement alone hides clipping: a file can agree on every image and be
wrong by a third of the range. So errors are counted too, relative to the range
of the Keras output (its maximum minus its minimum over all examples).

And it says as much of the model as of the file: where two classes are nearly equal,
the last bit decides. So the agreement that a file must reach is that of the decided
examples, in which the best class leads by more than twice the mean error: the mean
error, on both classes, does not turn them. What is left out of it is bounded by the
threshold of the mean error itself.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfkd import checks
from tfkd.results import Grid, Result, size_text

# What an export must reach unless it is told otherwise. Errors are parts of the range.
THRESHOLDS: dict[str, dict[str, float]] = {
    "float32": {"max_error": 1e-4, "min_agreement": 0.99},
    "float16": {"max_error": 1e-2, "min_agreement": 0.98},
    "dynamic": {"max_error": 0.1, "min_agreement": 0.95},
    "int8": {"max_error": 0.25, "min_agreement": 0.9},
    # The Keras model rounds as the file does, but for sums that lie between two codes.
    "quantized": {"max_error": 0.15, "max_mean_error": 0.02, "min_agreement": 0.95},
}
_SHARED = {"max_mean_error": 0.05, "max_clipped": 0.05, "min_dependence": 1e-3}


def thresholds_for(mode: str, changes: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the thresholds of `mode` with `changes` on top, checked."""
    limits = {**_SHARED, **THRESHOLDS[mode]}
    if changes is None:
        return limits
    checks.instance("thresholds", changes, Mapping, "a dict of thresholds by name")
    for key, value in changes.items():
        checks.one_of("thresholds", key, limits)
        checks.non_negative(f"thresholds[{key!r}]", value)
    return {**limits, **changes}


def measure(
    expected: Mapping[str, np.ndarray],
    received: Mapping[str, np.ndarray],
    limits: Mapping[str, tuple[float, float, float] | None],
) -> dict[str, Any]:
    """Compares outputs by name.

    Args:
        expected: {name: (N, ...)} from Keras.
        received: the same from the file, real numbers.
        limits: {name: (smallest, largest, step) of the output's codes, or None
            for a float output}.

    Returns:
        `examples`; over all outputs the worst `argmax_agreement` (None if no
        output has a class axis), `decided_agreement` (the same, of the decided
        examples), `max_error`, `mean_error`, `clipped`, `dependence`; and
        `outputs`, the same for each. `clipped` is the share
        of elements that sit at the first or last code while the Keras value
        lies beyond it. `not_finite` is the share of elements that are NaN or infinite in
        the file; each counts as an error of the whole range. `dependence` is how far an
        element moves from example to example, as a part of the range: near 0 the
        comparison is blind. `file_dependence` is the same of the file.
    """
    outputs = {
        name: _measure_one(expected[name], received[name], limits.get(name)) for name in expected
    }
    rows = list(outputs.values())
    return {
        "examples": len(next(iter(expected.values()))),
        "argmax_agreement": _least(r["argmax_agreement"] for r in rows),
        "decided_agreement": _least(r["decided_agreement"] for r in rows),
        "max_error": max(r["max_error"] for r in rows),
        "mean_error": max(r["mean_error"] for r in rows),
        "clipped": max(r["clipped"] for r in rows),
        "not_finite": max(r["not_finite"] for r in rows),
        "dependence": min(r["dependence"] for r in rows),
        "file_dependence": min(r["file_dependence"] for r in rows),
        "outputs": outputs,
    }


def _least(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _agreements(expected: np.ndarray, received: np.ndarray) -> tuple[float, float]:
    """Shares of equal argmax: over all positions, and over the decided ones (1 if none is)."""
    same = expected.argmax(-1) == received.argmax(-1)
    best = np.sort(expected.astype(np.float64), -1)[..., -2:]
    error = np.abs(received.astype(np.float64) - expected).mean()
    decided = best[..., 1] - best[..., 0] > 2 * error
    return float(same.mean()), float(same[decided].mean()) if decided.any() else 1.0


def _measure_one(
    expected: np.ndarray, received: np.ndarray, limits: tuple[float, float, float] | None
) -> dict[str, Any]:
    low, high = float(expected.min()), float(expected.max())
    span = high - low
    # A constant output has no range: errors are then absolute, and dependence is 0.
    unit = span or 1.0
    finite = np.isfinite(received)
    received = np.where(finite, received, 0)
    error = np.where(finite, np.abs(received.astype(np.float64) - expected) / unit, 1.0)
    agreement = decided = None
    if expected.ndim >= 2 and expected.shape[-1] > 1:
        agreement, decided = _agreements(expected, received)
    clipped = 0.0
    if limits is not None:
        first, last, step = limits
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
    """What falls short, one sentence each.

    Agreement must be reached by outputs of rank 2, (batch, classes), only: the
    last axis of a detector's boxes is no class axis.
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
    """What was written, and how it compares with the Keras model.

    Attributes:
        path: the file.
        bytes: its size.
        mode: "float32", "float16", "dynamic" or "int8".
        io: type of its inputs and outputs.
        numbers: `operations` and `float_operations` of the file, and of an int8
            TFLite file `in_float`, the latter by name; where it was verified, what
            `tfkd.export.parity.measure` returns; and where it was not, `check`: the
            same of the small check that runs then, with `on`, what it ran on
            ("made-up inputs", "calibration examples" or "nothing"), the `reason` if
            it is nothing, and `warnings`, what was found.
    """

    place: ClassVar[str] = "file"

    path: pathlib.Path
    bytes: int
    mode: str
    io: str
    numbers: dict[str, Any]

    @property
    def verified(self) -> bool:
        """Whether the file was run and compared on the examples of `verify`."""
        return "examples" in self.numbers

    @property
    def compared_on(self) -> str:
        """What the file was compared with the Keras model on: "200 given examples", ..."""
        if self.verified:
            return f"{self.numbers['examples']} given examples"
        check = self.numbers.get("check", {"on": "nothing", "reason": "verify=False"})
        if "examples" in check:
            return f"{check['examples']} {check['on']}"
        return f"nothing: {check['reason']}"

    def _checked(self) -> list[tuple[str, str]]:
        """Rows of a file that is not verified."""
        check = self.numbers.get("check", {})
        text = self.compared_on
        if "max_error" in check:
            text += f": max error / range {check['max_error']:.2e}, mean {check['mean_error']:.2e}"
        rows = [("verified on", "nothing: pass verify=images"), ("checked on", text)]
        return rows + [("warning", warning) for warning in check.get("warnings", ())]

    def parts(self) -> list[Grid]:
        """What was written, and how it compares."""
        rows = [(self.place, str(self.path)), ("size", size_text(self.bytes)), *self._about()]
        rows += self._compared() if self.verified else self._checked()
        return [Grid((), rows, left=2)]

    def _about(self) -> list[tuple[str, str]]:
        """Rows on what is in the file."""
        rows = [("mode, io", f"{self.mode}, {self.io}"), ("operations", self._operations())]
        if self.numbers.get("in_float"):
            rows.append(("in float", _summary(self.numbers["in_float"])))
        return rows

    def _operations(self) -> str:
        return f"{self.numbers['operations']} ({self.numbers['float_operations']} in float)"

    def _compared(self) -> list[tuple[str, str]]:
        """Rows of a file that is verified."""
        rows = compared_rows(self.numbers)
        return [*rows, ("outputs clipped", f"{self.numbers['clipped']:.2%}")]


def compared_rows(numbers: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """The numbers of `measure` as rows of a table."""
    return [
        ("verified on", f"{numbers['examples']} examples{where}"),
        ("argmax agreement", agreement_text(numbers)),
        ("max error / range", f"{numbers['max_error']:.2e}"),
        ("mean error / range", f"{numbers['mean_error']:.2e}"),
    ]


def agreement_text(numbers: Mapping[str, Any]) -> str:
    """ "93.00% (97.80% of the decided)"; the second only where it differs."""
    every, decided = numbers["argmax_agreement"], numbers["decided_agreement"]
    if every is None:
        return "-"
    return f"{every:.2%}" + ("" if every == decided else f" ({decided:.2%} of the decided)")


def _summary(in_float: Sequence[Mapping[str, str]]) -> str:
    """Operations by kind, each with how many there are and the tensor of the first."""
    kinds: dict[str, list[str]] = {}
    for row in in_float:
        kinds.setdefault(row["operation"], []).append(row["tensor"])
    return ", ".join(f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items())
