"""The interface of inference backends, and the planning of batch sizes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfkd import checks
from tfkd.formats.litert import Port


class Refused(ValueError):
    """An operation of the model refuses the values of its inputs."""


class Backend(Protocol):
    """A file opened in its runtime.

    Attributes:
        kind: human-readable name of the runtime: "LiteRT", "ONNX Runtime", ...
        inputs: the inputs, in the order in which `run` takes arrays.
        outputs: the outputs, in the order in which `run` returns them.
        ordered: whether `inputs` are in the order of the model's inputs.
        sizes: the supported batch sizes in ascending order; None: any size.
        most: the largest batch size; None: no limit.
        call_cost: the fixed cost of a call, measured in examples. It decides whether 7
            examples are run as 4 + 2 + 1 or padded to 8.
        shared: whether `run` is thread-safe.
    """

    kind: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ordered: bool
    sizes: tuple[int, ...] | None
    most: int | None
    call_cost: float
    shared: bool

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs one batch of a supported size.

        Args:
            arrays: one contiguous array per input, of its dtype, batch first.

        Returns:
            One array per output, which later calls do not overwrite.
        """
        ...

    def close(self) -> None:
        """Releases the file; `run` is not called again."""
        ...


# What the runtimes say of an index outside of a table, with the index and the number of rows.
_OUTSIDE = (
    re.compile(r"indices\S* = (?P<id>-?\d+) is not in \[0, (?P<rows>\d+)\)"),  # TensorFlow
    re.compile(r"idx=(?P<id>-?\d+) must be within the inclusive range \[-(?P<rows>\d+),"),  # ONNX
    re.compile(r"gather index out of bounds|indices_has_only_positive_elements"),  # LiteRT
)


def explained(error: Exception, arrays: Sequence[np.ndarray]) -> Exception:
    """A ValueError in place of a runtime's error for a token id outside of an Embedding.

    Args:
        error: what a runtime has raised; it is returned if it is about anything else.
        arrays: the inputs.
    """
    found = next((match for one in _OUTSIDE if (match := one.search(str(error)))), None)
    if found is None:
        return error
    groups = found.groupdict()
    if groups:
        return outside(int(groups["id"]), int(groups["rows"]))
    ids = [array for array in arrays if array.dtype.kind in "iu"] or arrays
    low, high = min(a.min() for a in ids), max(a.max() for a in ids)
    return checks.id_error("data", None, "an Embedding", f"ids from {low} to {high}")


def outside(number: int, rows: int) -> ValueError:
    """The error for a token id outside of an Embedding with so many rows."""
    return checks.id_error("data", rows, "an Embedding", f"the id {number}")


def arranged(
    inputs: Sequence[Port], outputs: Sequence[Port], recipe: Mapping[str, Any]
) -> tuple[tuple[Port, ...], tuple[Port, ...], bool]:
    """Returns (inputs, outputs, whether the inputs are in the model's order).

    Signatures of TFLite files and SavedModels hold names without an order, so that the
    order is taken from the exporter's recipe. Ports without such a record stay as they are.

    Args:
        inputs, outputs: the ports in any order.
        recipe: the recipe in the file's manifest; {} without a manifest.
    """
    into, known = _arranged(inputs, recipe.get("inputs"))
    return into, _arranged(outputs, recipe.get("outputs"))[0], known or len(into) == 1


def _arranged(ports: Sequence[Port], names: Any) -> tuple[tuple[Port, ...], bool]:
    """The ports in the order of `names`, if these are their names, and whether they are."""
    by_name = {port.name: port for port in ports}
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(by_name):
        return tuple(ports), False
    return tuple(by_name[str(name)] for name in names), True


def powers(most: int) -> tuple[int, ...]:
    """Powers of two up to `most`, and `most` itself.

    Example:
        >>> from tfkd.runtime.backend import powers
        >>> powers(6)
        (1, 2, 4, 6)
    """
    sizes = [1]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return (*sizes, most) if most > 1 else (1,)


@functools.lru_cache(maxsize=4096)
def plan(sizes: tuple[int, ...], count: int, call_cost: float) -> tuple[int, ...]:
    """The cheapest batch sizes for `count` examples; the last batch may be padded.

    A batch of size s costs s + `call_cost`. The optimum is found by dynamic programming.

    Args:
        sizes: the supported batch sizes in ascending order.
        count: number of examples, at most the largest size.
        call_cost: the fixed cost of a batch, in examples.

    Example:
        >>> from tfkd.runtime.backend import plan
        >>> plan((1, 2, 4, 8), 7, 0.25), plan((1, 2, 4, 8), 7, 8.0)
        ((4, 2, 1), (8,))
    """
    costs: list[float] = [0.0]
    firsts = [0]
    for n in range(1, count + 1):
        cost, size = min((s + call_cost + costs[max(n - s, 0)], -s) for s in sizes)
        costs.append(cost)
        firsts.append(-size)
    batches, left = [], count
    while left > 0:
        batches.append(firsts[left])
        left -= batches[-1]
    return tuple(sorted(batches, reverse=True))


def filled(array: np.ndarray, size: int) -> np.ndarray:
    """Pads an array to `size` examples by repeating its last one."""
    short = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], short, 0)]) if short else array


def zeros(ports: Sequence[Port], batch: int, size: int = 1) -> list[np.ndarray]:
    """A batch of zeros per input, or of empty texts; other open axes get the size `size`."""
    shapes = [(batch, *(size if s < 1 else s for s in port.shape[1:])) for port in ports]
    return [
        np.full(shape, "" if port.dtype == object else 0, port.dtype)
        for port, shape in zip(ports, shapes, strict=True)
    ]


def check_agreement(one: Backend, other: Backend, tolerance: float) -> None:
    """Raises RuntimeError unless two backends of one model agree on random inputs.

    If axes other than the batch are open, no valid input shape is known, and nothing is
    checked.

    Args:
        one: the reference.
        other: the backend to check, with the same input and output names.
        tolerance: allowed absolute error, relative to max(1, largest absolute output).
    """
    if any(port.open_sizes for port in one.inputs):
        return
    rng, feeds = np.random.default_rng(0), {}
    for port, array in zip(one.inputs, zeros(one.inputs, (one.sizes or (2,))[0]), strict=True):
        whole = port.dtype.kind != "f"  # 0 and 1 are valid indices of any vocabulary.
        drawn = rng.integers(0, 2, array.shape) if whole else rng.normal(size=array.shape)
        drawn = drawn.astype(str) if port.dtype == object else drawn
        feeds[port.name] = drawn.astype(port.dtype)
    received = _named(other, feeds)
    for name, expected in _named(one, feeds).items():
        if expected.dtype == object:
            if not (received[name] == expected).all():
                raise RuntimeError(f"{other.kind} and {one.kind} differ in the output {name!r}")
            continue
        scale = max(float(np.abs(expected).max(initial=0.0)), 1.0)
        if not np.allclose(received[name], expected, 0.0, tolerance * scale, equal_nan=True):
            raise RuntimeError(f"{other.kind} and {one.kind} differ in the output {name!r}")


def _named(backend: Backend, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = backend.run([feeds[port.name] for port in backend.inputs])
    return {p.name: p.decode(r) for p, r in zip(backend.outputs, results, strict=True)}
