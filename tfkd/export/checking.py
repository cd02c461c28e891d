"""Verification of exported files: choice of the examples, and errors or warnings from them.

Examples that the user gives verify a file: it must reach the thresholds, or it is
deleted. Without them a small check runs on the calibration examples or on synthetic
inputs. As the network was not trained on those, deviations are reported as warnings,
and as errors only if rounding can't explain them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.example_inputs import OPEN_SIZES, to_verify
from tfkd.export import clipped_inputs, made_up, parity
from tfkd.export.named_function import NamedFunction
from tfkd.export.thresholds import Limits, coarse, doubts, failures, stuck
from tfkd.formats.litert import NotRunnable
from tfkd.teachers import class_scores
from tfkd.types import Data, Path

GIVEN, CALIBRATION, MADE_UP = "given examples", "calibration examples", "made-up inputs"
NOTHING = "nothing"
# Rounding can't explain a mean error above this fraction of the output's range.
GROSS = 0.1
# Outputs may be nearly equal for all inputs, and rounding then large relative to their small
# range: errors are relative to at least this fraction of the largest output.
_FLOOR = 0.05
_ERRORS = ("max_error", "mean_error", "p99_error", "peak_error")
# An output that varies by less than this fraction of the Keras model's variation is stuck.
_STILL = 0.1

Compare = Callable[[dict[str, np.ndarray]], tuple[dict[str, Any], dict[str, int]]]


@dataclasses.dataclass(frozen=True)
class VerifyData:
    """Inputs on which a file is compared with its model.

    Attributes:
        graph: the model.
        source: GIVEN, CALIBRATION, MADE_UP or NOTHING.
        arrays: inputs (N, ...) by name; None if there are none.
        reason: why there are none.
    """

    graph: NamedFunction
    source: str
    arrays: dict[str, np.ndarray] | None = None
    reason: str = ""


def examples(
    verify: Data | bool,
    graph: NamedFunction,
    plain: NamedFunction | None = None,
    calibration: Mapping[str, np.ndarray] | None = None,
    make: Callable[[], dict[str, np.ndarray]] | None = None,
    least: int = 2,
    convert: Callable[[Any], Any] | None = None,
) -> VerifyData:
    """Chooses the examples on which a file is compared with its model.

    Args:
        verify: the exporter's argument: examples; True: a small check; False: no check.
        graph: the model.
        plain: the model that is converted; its first layers show the ranges of a
            quantized model's inputs.
        calibration: examples that calibrate the file.
        make: makes synthetic inputs; None: from the first layers of `plain`.
        least: the number of examples that must be given.
        convert: applied to the arrays that are given.

    Raises:
        TypeError, ValueError: if the given examples do not fit the model.
    """
    given = to_verify(verify, graph.inputs, convert=convert)
    if given is False:
        return VerifyData(graph, NOTHING, None, "verify=False")
    if given is not True:
        if len(next(iter(given.values()))) < least:
            raise checks.value_error("verify", "at least two examples", verify)
        return VerifyData(graph, GIVEN, given)
    if any(getattr(layer, "stateful", False) for layer in graph.layers):
        return VerifyData(graph, NOTHING, None, "the model keeps a state from call to call")
    if calibration is not None:
        count = len(next(iter(calibration.values())))
        rows = np.linspace(0, count - 1, min(count, made_up.COUNT)).astype(int)
        some = {name: array[rows] for name, array in calibration.items()}
        return VerifyData(graph, CALIBRATION, some)
    return _made_up(graph, plain or graph, make)


def _made_up(
    graph: NamedFunction, plain: NamedFunction, make: Callable[[], Any] | None
) -> VerifyData:
    """Synthetic inputs of the first size that the model accepts, where it leaves sizes open."""
    is_open = any(-1 in one.shape for one in graph.inputs)
    reason = ""
    for size in OPEN_SIZES if is_open else OPEN_SIZES[:1]:
        try:
            arrays = make() if make else made_up.made_up(plain, size)
            with graph.unchanged():
                graph.predict(arrays)
            return VerifyData(graph, MADE_UP, arrays)
        except Exception as error:  # A model may raise anything for inputs that don't fit.
            reason = reason or f"the model takes no made-up inputs ({_first_line(error)})"
    return VerifyData(graph, NOTHING, None, reason)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200].rstrip(". ")


class VerificationError(ValueError):
    """An exported file that is not good enough, compared with its model."""


def failure(what: str, failed: Iterable[str], end: str) -> VerificationError:
    """Returns the error for an export that fails verification."""
    return VerificationError(
        f"{what}: {'; '.join(failed)}. {end} `thresholds` sets what is good enough."
    )


@contextlib.contextmanager
def written(
    path: Path, recipe: Mapping[str, Any], numbers: dict[str, Any], what: str, keep_failed: bool
) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Writes a file and its manifest if the block ends without an error.

    Args:
        path: where to write the file.
        recipe, numbers: for the manifest; the block may change both.
        what: begins the error that is raised for failures.
        keep_failed: whether a file with failures is kept.

    Yields:
        The temporary file to write, and a list to which the block adds failures.
    """
    failed: list[str] = []
    with artifacts.atomic_path(path) as temporary:
        yield temporary, failed
        if failed and not keep_failed:
            raise failure(what, failed, "No file was left.")
    artifacts.write_manifest(path, recipe, numbers=numbers)
    if failed:
        raise failure(what, failed, f"The file was kept: {os.fspath(path)}.")


def checked(
    found: VerifyData,
    compare: Compare,
    limits: Limits,
    numbers: dict[str, Any],
    judge: Callable[[Mapping[str, Any], Mapping[str, int]], list[str]] | None = None,
) -> list[str]:
    """Compares a file with its model, and writes the results into `numbers`.

    Results on given examples go into `numbers` itself, in the form of
    `tfkd.export.parity.measure`; others go into `numbers["check"]`, where `on` tells
    which examples were used.

    Args:
        found: the examples, from `examples`.
        compare: runs file and model; returns (numbers, rank of each output).
        limits: the thresholds.
        numbers: the numbers of the report; changed in place.
        judge: lists what misses a threshold on given examples; None:
            `tfkd.export.thresholds.failures`; outputs in doubt are then warned of.

    Returns:
        The reasons for which the file must be rejected, one sentence each.
    """
    if found.source != GIVEN:
        return _small_check(found, compare, limits, numbers)
    new, ranks = compared(found, compare)
    failed = list(new.get("overflows", ()))
    failed += judge(new, ranks) if judge else failures(new, limits, ranks)
    if failed:  # Why it may be so.
        failed += clipped_inputs.doubts(new.get("inputs", {}))
    numbers |= {**new, "failures": failed}
    in_doubt = [] if judge or failed else doubts(new, limits, ranks)
    if in_doubt:
        numbers["warnings"] = in_doubt
        checks.warn(f"The exported file may not be good enough: {'; '.join(in_doubt)}.")
    return failed


def _small_check(
    found: VerifyData, compare: Compare, limits: Limits, numbers: dict[str, Any]
) -> list[str]:
    """As `checked`, on examples that were not given."""
    check: dict[str, Any] = {"on": found.source}
    numbers["check"] = check
    if found.arrays is None:
        check["reason"] = found.reason
        return []
    try:
        with found.graph.unchanged():
            new, ranks = compared(found, compare)
    except NotRunnable:
        raise
    except Exception as error:  # A package is missing, or the runtime fails.
        check |= {"on": NOTHING, "reason": _first_line(error)}
        checks.warn(
            f"The exported file was not compared with the Keras model: {check['reason']}. Pass "
            "verify=examples to see it run on your data, or verify=False to skip the check."
        )
        return []
    check |= new
    gross = list(_gross(new, limits))
    slight = [] if gross else list(_slight(new, limits, ranks))
    if slight:
        check["warnings"] = slight
        checks.warn(
            f"The exported file differs from the Keras model on {new['examples']} {found.source}: "
            + "; ".join(slight)
            + ". Pass verify=examples to see what it does on your data."
        )
    return [f"{text} (on {new['examples']} {found.source})" for text in gross]


def compared(found: VerifyData, compare: Compare) -> tuple[dict[str, Any], dict[str, int]]:
    """The results of `compare`, with what the model tells of the kinds of its outputs."""
    assert found.arrays is not None
    numbers, ranks = compare(found.arrays)
    rows, graph = numbers.get("outputs", {}), found.graph
    seen = [rows.get(name, {}).get("kind", class_scores.UNKNOWN) for name in graph.outputs]
    kinds = class_scores.of_outputs(graph.model, seen)
    for name, kind in zip(graph.outputs, kinds, strict=True):
        if name in rows:
            rows[name]["kind"] = kind
    if rows:
        numbers |= parity.agreements(rows.values())
    return numbers, ranks


def _gross(numbers: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    """Yields deviations that are wrong for any inputs."""
    yield from numbers.get("overflows", ())
    for name, row in numbers.get("outputs", {}).items():
        limit = max(GROSS, limits.of(name)["max_mean_error"])
        if row["not_finite"]:
            yield f"output {name!r} holds NaN or infinity where the Keras model's is finite"
        elif row["mean_error"] * _share(row) > limit:
            yield f"output {name!r}: mean_error {row['mean_error']:.3g} is above {limit:g}"
        elif limit == GROSS and _is_stuck(row):
            yield stuck(name, row)


def _is_stuck(row: Mapping[str, Any]) -> bool:
    moves = row["dependence"]
    return moves * _share(row) > GROSS and row["file_dependence"] < _STILL * moves


def _slight(numbers: Mapping[str, Any], limits: Limits, ranks: Mapping[str, int]) -> list[str]:
    """Lists what would miss the thresholds if the examples had been given."""
    # On synthetic inputs a network's outputs may be constant or exceed the calibrated range.
    # Nearly equal scores are no sign of a bad file there: only decided examples are judged.
    passed = {"dependence": np.inf, "file_dependence": np.inf, "clipped": 0.0, "positions": 0}
    rows = {
        name: row | passed | {k: row[k] * _share(row) for k in _ERRORS if row[k] is not None}
        for name, row in numbers["outputs"].items()
    }
    found = [*failures({"outputs": rows}, limits, ranks), *coarse({"outputs": rows}, limits)]
    return [*found, *numbers.get("doubts", ())]


def _share(row: Mapping[str, Any]) -> float:
    """Factor that makes errors relative to max(range, `_FLOOR` · largest absolute output)."""
    low, high = row["range"]
    unit = high - low or 1.0
    return unit / max(high - low, _FLOOR * max(abs(low), abs(high)) or unit)
