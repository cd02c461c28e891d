"""What a runtime must offer to stand behind `Predictor`, and the sizes of batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tfkd.formats.litert import Port


class Backend(Protocol):
    """An opened file.

    Attributes:
        kind: what runs it, for people: "LiteRT", "ONNX Runtime", ...
        inputs: its inputs, in the order in which `run` takes arrays.
        outputs: its outputs, in the order in which `run` gives them.
        sizes: the batch sizes that it runs, rising; None: any size.
        most: the largest batch; None: no limit.
        call_cost: what a call costs besides its examples, in examples: whether 7 are
            better run as 4 + 2 + 1 or filled up to 8.
        shared: whether several threads may call `run` at once.
    """

    kind: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: tuple[int, ...] | None
    most: int | None
    call_cost: float
    shared: bool

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs one batch of a size that it runs.

        Args:
            arrays: one for each input, of its dtype, contiguous, batch first.

        Returns:
            One array for each output, which the next call leaves alone.
        """
        ...

    def close(self) -> None:
        """Lets go of the file; `run` is not called again."""
        ...


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `most`, which is always there.

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
    """The batches in which `count` examples cost least; the last may be filled up.

    A batch costs as many examples as it has room for, and `call_cost` more.

    Args:
        sizes: the batches that can be run, rising.
        count: up to the largest of them.
        call_cost: of each batch, in examples.

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
    """The array with its last example repeated until there are `size`."""
    short = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], short, 0)]) if short else array


def zeros(ports: Sequence[Port], size: int) -> list[np.ndarray]:
    """A batch of zeros for each input; open axes have one place."""
    return [np.zeros((size, *(max(s, 1) for s in p.shape[1:])), p.dtype) for p in ports]


def check_agreement(one: Backend, other: Backend, tolerance: float) -> None:
    """Raises RuntimeError unless two backends of one model give the same for noise.

    Where more than the batch is open nothing is known that must run, and nothing is run.

    Args:
        one: what is trusted.
        other: with inputs and outputs of the same names.
        tolerance: as a part of the largest output, or of 1.
    """
    if any(map(open_shape, one.inputs)):
        return
    rng, feeds = np.random.default_rng(0), {}
    for port, array in zip(one.inputs, zeros(one.inputs, (one.sizes or (2,))[0]), strict=True):
        whole = port.dtype.kind != "f"  # 0 and 1 are in every vocabulary
        drawn = rng.integers(0, 2, array.shape) if whole else rng.normal(size=array.shape)
        feeds[port.name] = drawn.astype(port.dtype)
    received = _named(other, feeds)
    for name, expected in _named(one, feeds).items():
        scale = max(float(np.abs(expected).max(initial=0.0)), 1.0)
        if not np.allclose(received[name], expected, 0.0, tolerance * scale, equal_nan=True):
            raise RuntimeError(f"{other.kind} and {one.kind} differ in the output {name!r}")


def _named(backend: Backend, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = backend.run([feeds[port.name] for port in backend.inputs])
    return {p.name: p.decode(r) for p, r in zip(backend.outputs, results, strict=True)}


def open_shape(port: Port) -> bool:
    """Whether more than the batch is open."""
    return min(port.shape[1:], default=1) < 1
