"""What a caller gives a `Predictor`, checked against the file's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import example_inputs
from tfkd.formats.litert import Port


def arrays_for(ports: Sequence[Port], data: Any) -> list[np.ndarray]:
    """Checks `data`; returns what the file stores, one array for each input in order.

    Raises:
        TypeError: if an array is of the wrong kind.
        ValueError: if a name or shape is wrong, there is no example, or a float
            that becomes an integer is not finite.
    """
    inputs = [example_inputs.Input(p.name, p.shape[1:], p.dtype, p.quantized) for p in ports]
    # NaN is an answer of a float network as any other; in integers it has no code.
    x = example_inputs.collect("data", data, inputs, part="test", finite=False, whole=True)
    return [np.ascontiguousarray(port.encode(x[port.name])) for port in ports]
