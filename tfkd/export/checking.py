"""What an exported file is compared on, and what follows of it.

Examples that the user gives prove a file: it must reach the thresholds, or is not
left. Without them a small check runs all the same, on examples that calibrated the
file or on made-up ones. Such are not what the network was trained for, so that what
they show is a warning, and an error only where no rounding explains it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.example_inputs import to_verify
from tfkd.export import made_up
from tfkd.export.named_function import NamedFunction
from tfkd.export.parity import failures
from tfkd.networks.layer_parts import parts

GIVEN, CALIBRATION, MADE_UP = "given examples", "calibration examples", "made-up inputs"
NOTHING = "nothing"
# A mean error above this part of the range is no rounding.
GROSS = 0.1
# Outputs may be nearly the same for all inputs. Their rounding is no error of their
# small range: errors count as parts of this share of the largest output at least.
_FLOOR = 0.05
# An output that moves by less than this part of what the model's does is stuck.
_STILL = 0.1

Compare = Callable[[dict[str, np.ndarray]], tuple[dict[str, Any], dict[str, int]]]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs to compare a file on.

    Attributes:
        model: the Keras model.
        source: GIVEN, CALIBRATION, MADE_UP or NOTHING.
        arrays: {input name: (N, ...)}, or None for nothing.
        reason: why there is nothing.
    """

    model: Any
    source: str
    arrays: dict[str, np.ndarray] | None = None
    reason: str = ""


def examples(
    verify: Any,
    graph: NamedFunction,
    plain: NamedFunction | None = None,
    calibration: Mapping[str, np.ndarray] | None = None,
    make: Callable[[], dict[str, np.ndarray]] | None = None,
    least: int = 2,
    convert: Callable[[Any], Any] | None = None,
) -> Examples:
    """Decides what a file is compared on.

    Args:
        verify: of an exporter: examples; True: a small check; False: none at all.
        graph: the model.
        plain: the model that is converted, in which a quantized one shows its ranges.
        calibration: examples that calibrate the file.
        make: makes inputs up; None: by the first layers of `plain`.
        least: as many examples must be given.
        convert: applied to the arrays that are given.

    Raises:
        TypeError, ValueError: if examples are given, and wrong.
    """
    model = graph.model
    given = to_verify(verify, graph.inputs, convert=convert)
    if given is False:
        return Examples(model, NOTHING, None, "verify=False")
    if given is not True:
        if len(next(iter(given.values()))) < least:
            raise checks.value_error("verify", "at least two examples", verify)
        return Examples(model, GIVEN, given)
    if any(getattr(layer, "stateful", False) for layer in parts(model)):
        return Examples(model, NOTHING, None, "the model keeps a state from call to call")
    if calibration is not None:
        count = len(next(iter(calibration.values())))
        rows = np.linspace(0, count - 1, min(count, made_up.COUNT)).astype(int)
        some = {name: array[rows] for name, array in calibration.items()}
        return Examples(model, CALIBRATION, some)
    return _made_up(graph, plain or graph, make)


def _made_up(
    graph: NamedFunction, plain: NamedFunction, make: Callable[[], Any] | None
) -> Examples:
    """The first made-up inputs that the model takes, in the sizes that it leaves open."""
    is_open = any(-1 in one.shape for one in graph.inputs)
    reason = ""
    for size in made_up.SIZES if is_open else made_up.SIZES[:1]:
        try:
            arrays = make() if make else made_up.made_up(plain, size)
            with _unchanged(graph.model):
                graph.predict(arrays)
            return Examples(graph.model, MADE_UP, arrays)
        except Exception as error:  # whatever a model says to inputs that it does not take
            reason = reason or f"the model takes no made-up inputs ({_first_line(error)})"
    return Examples(graph.model, NOTHING, None, reason)


@contextlib.contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Puts back what a model changes in itself when it is called."""
    trained = {id(v) for v in model.trainable_variables}
    kept = [v for v in model.variables if id(v) not in trained and hasattr(v, "assign")]
    before = [variable.numpy() for variable in kept]
    try:
        yield
    finally:
        for variable, value in zip(kept, before, strict=True):
            if not np.array_equal(variable.numpy(), value, equal_nan=value.dtype.kind == "f"):
                variable.assign(value)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200].rstrip(". ")


def checked(
    found: Examples,
    compare: Compare,
    limits: Mapping[str, float],
    numbers: dict[str, Any],
    judge: Callable[[Mapping[str, Any], Mapping[str, int]], list[str]] | None = None,
    depth: int = 3,
) -> list[str]:
    """Compares a file, and puts what comes of it into `numbers`.

    Numbers of given examples stand in `numbers` itself, as `tfkd.export.parity.measure`
    has them; those of others in `numbers["check"]`, with `on`, what they are.

    Args:
        found: from `examples`.
        compare: runs file and model; returns (numbers, rank of each output).
        limits: what must be reached.
        numbers: of the report, changed.
        judge: what falls short on given examples; None: `tfkd.export.parity.failures`.
        depth: of the exporter's caller, to whom warnings are addressed.

    Returns:
        Why the file must not be left, one sentence each.
    """
    if found.source == GIVEN:
        assert found.arrays is not None
        new, ranks = compare(found.arrays)
        failed = list(new.get("overflows", ()))
        failed += judge(new, ranks) if judge else failures(new, limits, ranks)
        numbers |= {**new, "failures": failed}
        return failed
    check: dict[str, Any] = {"on": found.source}
    numbers["check"] = check
    if found.arrays is None:
        check["reason"] = found.reason
        return []
    try:
        with _unchanged(found.model):
            new, ranks = compare(found.arrays)
    except Exception as error:  # a missing package, or an error of the runtime
        check |= {"on": NOTHING, "reason": _first_line(error)}
        warnings.warn(
            f"The exported file was not compared with the Keras model: {check['reason']}. Pass "
            "verify=examples to see it run on your data, or verify=False to leave this out.",
            stacklevel=depth,
        )
        return []
    check |= new
    gross = list(_gross(new, limits))
    slight = [] if gross else list(_slight(new, limits, ranks))
    if slight:
        check["warnings"] = slight
        warnings.warn(
            f"The exported file differs from the Keras model on {new['examples']} {found.source}: "
            + "; ".join(slight)
            + ". Pass verify=examples to see what it does on your data.",
            stacklevel=depth,
        )
    return [f"{text} (on {new['examples']} {found.source})" for text in gross]


def _gross(numbers: Mapping[str, Any], limits: Mapping[str, float]) -> Iterator[str]:
    """What is wrong whatever the inputs are."""
    yield from numbers.get("overflows", ())
    limit = max(GROSS, limits.get("max_mean_error", GROSS))
    for name, row in numbers.get("outputs", {}).items():
        if row["not_finite"]:
            yield f"output {name!r} holds NaN or infinity where the Keras model's is finite"
        elif row["mean_error"] * _share(row) > limit:
            yield f"output {name!r}: mean_error {row['mean_error']:.3g} is above {limit:g}"
        elif limit == GROSS and _stuck(row):
            yield f"output {name!r} hardly depends on the input, as the Keras model's does"


def _stuck(row: Mapping[str, Any]) -> bool:
    moves = row["dependence"]
    return moves * _share(row) > GROSS and row["file_dependence"] < _STILL * moves


def _slight(
    numbers: Mapping[str, Any], limits: Mapping[str, float], ranks: Mapping[str, int]
) -> list[str]:
    """What would fall short of the thresholds on given examples."""
    rows = {
        name: row | {key: row[key] * _share(row) for key in ("max_error", "mean_error")}
        for name, row in numbers["outputs"].items()
    }
    # A network may well say one and the same of all made-up inputs, or be sure beyond the codes.
    limits = {**limits, "min_dependence": 0.0, "max_clipped": 1.0}
    return [*failures({"outputs": rows}, limits, ranks), *numbers.get("doubts", ())]


def _share(row: Mapping[str, Any]) -> float:
    """Turns errors as parts of an output's range into parts of at least `_FLOOR` of its size."""
    low, high = row["range"]
    unit = high - low or 1.0
    return unit / max(high - low, _FLOOR * max(abs(low), abs(high)) or unit)
