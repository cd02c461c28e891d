"""Checks of a `Predictor`'s input data, and their conversion to the file's dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import example_inputs
from tfkd.formats.litert import Port
from tfkd.types import Data


def arrays_for(ports: Sequence[Port], data: Data, ordered: bool = True) -> list[np.ndarray]:
    """Checks `data`; returns one array of the file's dtype per input, in order.

    Args:
        ports: the inputs of the file.
        data: examples in any form of `tfkd.example_inputs`.
        ordered: whether `ports` are in the model's order; otherwise several inputs are
            accepted by name only.

    Raises:
        TypeError: if an array has the wrong dtype.
        ValueError: if a name or shape is wrong, there is no example, or a float
            that is quantized is not finite.
    """
    inputs = [example_inputs.Input(p.name, p.shape[1:], p.dtype, p.quantized) for p in ports]
    # A float network may be given NaN; only for integers there is no code of it.
    options: Any = {"part": "test", "finite": False, "whole": True, "ordered": ordered}
    x = example_inputs.collect("data", data, inputs, **options)
    return [np.ascontiguousarray(port.encode(x[port.name])) for port in ports]
