"""Numerical parity of an exported file with its Keras model: metrics and report.

Argmax agreement alone hides clipping: a file can agree on every image and be
wrong by a third of the range. So errors are measured too, relative to the range
of the Keras output (its maximum minus its minimum over all examples).

Agreement also depends on the model: where two classes are nearly tied, the last bit
decides. So the threshold applies to the agreement on decided examples, in which the
best class leads by more than twice the mean error, so that an error of that size on
both classes can't swap them. Errors on the other examples are bounded by the threshold
of the mean error. The worse a file is, the fewer examples are decided by this rule: if they
are fewer than half, the threshold applies to the agreement on all examples.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfkd.export import clipped_inputs
from tfkd.quantization.lost_columns import SMALL, lost_columns
from tfkd.results import Grid, Result, size_text
from tfkd.teachers import class_scores

# Values this close to the last code, as a fraction of the range, don't count as clipped.
_SMALL_CLIP = 0.01
# Examples with a peak that are no single outlier.
_PEAKS = 2
# Rounding of float32 in multiples of a step.
_ROUNDING = 1e-3
_WORST_IF_LARGE = ("max_error", "p99_error", "peak_error", "mean_error", "clipped", "not_finite")
_AGREEMENTS = ("argmax_agreement", "decided_agreement", "decided", "positions")
_WORST_IF_SMALL = ("dependence", "file_dependence")


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
        and their worst values over all outputs (of agreements, all that may hold class
        scores):

        * `argmax_agreement`: fraction of equal argmax; None without a class axis.
        * `decided_agreement`: the same on decided examples; for each output `decided`,
          their number, and `positions`, the number of all.
        * `max_error`, `mean_error`: as fractions of the range.
        * `p99_error`: of an output of rank 3 or more, the error within which 99 % of the
          positions lie; the error of a position is the largest over the last axis.
        * `peak_error`: of such an output, how much lower the file's peaks are: the difference
          of an example's largest values in model and file, averaged over the examples in
          which the model's is in the upper half of its range, as a fraction of that. Taken
          for each channel (of a range that is not small) and for all together, for smallest
          values likewise; the largest of these. 0 if fewer than two examples have a peak.
        * `clipped`: fraction of elements at the first or last code whose Keras value lies
          beyond it, by more than one step and by more than 1 % of the range. One step is
          due to TFLite's own rule: its int8 softmax ends at 255/256, its tanh at 127/128.
        * `not_finite`: fraction of elements that are NaN or infinite in the file; each
          counts as an error of the whole range.
        * `dependence`: how much an element varies between examples, as a fraction of the
          range; near 0 the comparison proves nothing. `file_dependence`: the same for the
          file.

        For each output also its `range`; `file_range`, the same for the file; and `kind`:
        "classes" or "values", if its numbers show that it holds class scores or that it
        doesn't (see `tfkd.teachers.class_scores`), else "unknown". `lost_columns` lists the
        columns that vary in the model, on a scale far below that of the others, and are lost
        in the file: see `tfkd.quantization.lost_columns`.
    """
    outputs = {
        name: _measure_one(*_as_numbers(value, received[name]), limits.get(name))
        for name, value in expected.items()
    }
    rows = list(outputs.values())
    return {
        "examples": len(next(iter(expected.values()))),
        **{key: _worst(max, [r[key] for r in rows]) for key in _WORST_IF_LARGE},
        **{key: _worst(min, [r[key] for r in rows]) for key in _WORST_IF_SMALL},
        **agreements(rows),
        "outputs": outputs,
    }


def agreements(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """The worst agreements of the outputs that may hold class scores; None if there are none."""
    judged = [row for row in rows if row["kind"] != class_scores.VALUES]
    return {key: _worst(min, [row[key] for row in judged]) for key in _AGREEMENTS[:2]}


def _as_numbers(expected: np.ndarray, received: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texts as their places in the alphabet, one a row; beyond its end where they differ."""
    if expected.dtype != object:
        return expected, received
    texts, places = np.unique(expected, return_inverse=True)
    codes = places.reshape(-1, 1).astype(float)
    return codes, np.where((expected == received).reshape(-1, 1), codes, codes + len(texts))


def _worst(choose: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """The largest or smallest value; None if an output has none."""
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _agreements(expected: np.ndarray, received: np.ndarray) -> dict[str, float | int]:
    """Fractions of equal argmax on all positions and on the decided ones, and their numbers."""
    same = expected.argmax(-1) == received.argmax(-1)
    best = np.sort(expected.astype(np.float64), -1)[..., -2:]
    error = np.abs(received.astype(np.float64) - expected).mean()
    # An error of that size on each of the two best classes can't swap them.
    decided = best[..., 1] - best[..., 0] > 2 * error
    share = float(same[decided].mean()) if decided.any() else 1.0
    return {
        "argmax_agreement": float(same.mean()),
        "decided_agreement": share,
        "decided": int(decided.sum()),
        "positions": same.size,
    }


def _p99(error: np.ndarray) -> float | None:
    """The error of a map that at most 1 % of its positions exceed; None for other outputs."""
    if error.ndim < 3:
        return None
    positions = error.max(-1).ravel()
    place = positions.size - 1 - positions.size // 100
    return float(np.partition(positions, place)[place])


def _peak_error(expected: np.ndarray, received: np.ndarray) -> float | None:
    """How much of its peaks a map has lost in the file; see `measure`."""
    if expected.ndim < 3 or not expected.size:
        return None
    least = max(SMALL * (float(expected.max()) - float(expected.min())), np.finfo(float).tiny)
    worst = 0.0
    for channels in (expected.shape[-1], 1):
        want, got = (array.reshape(len(array), -1, channels) for array in (expected, received))
        tops, bottoms = ([f(a, 1).astype(float) for a in (want, got)] for f in (np.max, np.min))
        low, high = bottoms[0].min(0), tops[0].max(0)
        for model, file in ([top - low for top in tops], [high - bottom for bottom in bottoms]):
            reached = model > (high - low) / 2
            some = (high - low >= least) & (reached.sum(0) >= _PEAKS)
            lost = np.where(reached, np.maximum(model - file, 0), 0)[:, some].sum(0)
            lost /= (reached.sum(0) * (high - low))[some]
            worst = max([worst, *lost.tolist()])
    return worst


def _clipped(
    expected: np.ndarray, received: np.ndarray, codes: tuple[float, float, float], unit: float
) -> float:
    """Fraction of the elements that are clipped; see `measure`."""
    first, last, step = codes
    beyond = max(step * (1 + _ROUNDING), _SMALL_CLIP * unit)
    # The file's element is at a code if it is within half a step of it.
    below = (received <= first + step / 2) & (expected < first - beyond)
    above = (received >= last - step / 2) & (expected > last + beyond)
    return float((below | above).mean())


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
    agree: dict[str, Any] = dict.fromkeys(_AGREEMENTS)
    if expected.ndim >= 2 and expected.shape[-1] > 1:
        agree = _agreements(expected, received)
    moves, moved = (values.max(0) - values.min(0) for values in (expected, received))
    return {
        **agree,
        "max_error": float(error.max()),
        "p99_error": _p99(error),
        "peak_error": _peak_error(expected, received),
        "mean_error": float(error.mean()),
        "clipped": 0.0 if limits is None else _clipped(expected, received, limits, unit),
        "not_finite": float((~finite).mean()),
        "dependence": float(moves.max() / unit),
        "file_dependence": float(moved.max() / unit),
        "range": [low, high],
        "file_range": [float(received.min()), float(received.max())],
        "kind": class_scores.of_values(expected),
        "lost_columns": lost_columns(expected, received),
    }


@dataclasses.dataclass(frozen=True)
class ExportReport(Result):
    """An exported file and how it compares with its Keras model.

    Attributes:
        path: the file.
        bytes: its size.
        mode: "float32", "float16", "dynamic" or "int8".
        io: dtype of its inputs and outputs.
        numbers: counts of `operations` and `float_operations`; `in_float`, the names of
            the latter in an int8 TFLite file; `int8_weights`, in a dynamic one, the number of
            float operations that read weights in 8 bits. If the file was verified, the results of
            `tfkd.export.parity.measure`, and `warnings`. Otherwise `check`, the results of
            the small check: with `on`, its examples ("made-up inputs", "calibration examples" or
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
        rows += [("warning", text) for text in self.numbers.get("warnings", ())]
        return [Grid((), rows, left=2)]

    def _about(self) -> list[tuple[str, str]]:
        """Table rows on the file's content."""
        rows = [("mode, io", f"{self.mode}, {self.io}"), ("operations", self._operations())]
        if self.numbers.get("in_float"):
            rows.append(("in float", _summary(self.numbers["in_float"])))
        return rows

    def _operations(self) -> str:
        text = f"{self.numbers['operations']} ({self.numbers['float_operations']} in float"
        count = self.numbers.get("int8_weights")
        return text + ("" if count is None else f", {count} of them with weights in 8 bits") + ")"

    def _compared(self) -> list[tuple[str, str]]:
        """Table rows of a file that is verified."""
        rows = compared_rows(self.numbers)
        clipped = ("outputs clipped", f"{self.numbers['clipped']:.2%}")
        return [*rows, clipped, *clipped_rows(self.numbers)]


def clipped_rows(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row of a table for each quantized input, with the share of its values that is clipped."""
    rows = numbers.get("inputs", {})
    several = len(rows) > 1
    return [
        (f"input {name!r} clipped" if several else "inputs clipped", clipped_inputs.shares(row))
        for name, row in rows.items()
    ]


def compared_rows(numbers: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """The results of `measure` as rows of a table."""
    errors = [
        ("max error / range", _max_error_text(numbers)),
        ("mean error / range", f"{numbers['mean_error']:.2e}"),
    ]
    agree = [("argmax agreement", agreement_text(numbers))]
    # What may be no class scores is told by its errors, and then by its agreement.
    compared = errors + agree if _is_in_doubt(numbers) else agree + errors
    return [("verified on", f"{numbers['examples']} examples{where}"), *compared]


def _is_in_doubt(numbers: Mapping[str, Any]) -> bool:
    """Whether an output may hold class scores, but isn't known to."""
    rows = numbers.get("outputs", {}).values()
    return any(r["kind"] == "unknown" and r["argmax_agreement"] is not None for r in rows)


def _max_error_text(numbers: Mapping[str, Any]) -> str:
    """The maximum error, and for maps the error within which 99 % of the positions lie."""
    text, p99 = f"{numbers['max_error']:.2e}", numbers["p99_error"]
    return text if p99 is None else f"{text} (99 % of positions: {p99:.2e})"


def agreement_text(numbers: Mapping[str, Any]) -> str:
    """Agreement as "93.00% (97.80% of the decided)"; the latter only where it differs."""
    every, decided = numbers["argmax_agreement"], numbers["decided_agreement"]
    if every is None:
        return "-"
    text = f"{every:.2%}" + ("" if every == decided else f" ({decided:.2%} of the decided)")
    return f"{text}, if the outputs are class scores" if _is_in_doubt(numbers) else text


def _summary(in_float: Sequence[Mapping[str, str]]) -> str:
    """Float operations by type, each with their number and the result tensor of the first."""
    kinds: dict[str, list[str]] = {}
    for row in in_float:
        kinds.setdefault(row["operation"], []).append(row["tensor"])
    return ", ".join(f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items())
