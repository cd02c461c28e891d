"""What a runtime must offer to stand behind `Predictor`, and the sizes of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tfkd.export.litert import Port


class Backend(Protocol):
    """An opened file.

    Attributes:
        kind: what runs it, for people: "LiteRT", "ONNX Runtime", ...
        inputs: its inputs, in the order in which `run` takes arrays.
        outputs: its outputs, in the order in which `run` gives them.
        sizes: the batch sizes that it runs, rising; None: any size.
        most: the largest batch; None: no limit.
        shared: whether several threads may call `run` at once.
    """

    kind: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: tuple[int, ...] | None
    most: int | None
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


def filled(array: np.ndarray, size: int) -> np.ndarray:
    """The array with its last example repeated until there are `size`."""
    short = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], short, 0)]) if short else array


def zeros(ports: Sequence[Port], size: int) -> list[np.ndarray]:
    """A batch of zeros for each input; open axes have one place."""
    return [np.zeros((size, *(max(s, 1) for s in p.shape[1:])), p.dtype) for p in ports]


def open_shape(port: Port) -> bool:
    """Whether more than the batch is open."""
    return min(port.shape[1:], default=1) < 1
