"""What a caller gives a `Predictor`, checked against the file's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.formats.litert import Port


def arrays_for(ports: Sequence[Port], x: Any) -> list[np.ndarray]:
    """Checks `x`; returns what the file stores, one array for each input in order.

    Raises:
        TypeError: if an array is of the wrong kind.
        ValueError: if a name or shape is wrong, there is no example, or a float
            that becomes an integer is not finite.
    """
    names = [port.name for port in ports]
    if not isinstance(x, Mapping):
        if len(names) > 1:
            raise checks.type_error("x", f"a dict of arrays with the inputs {names}", x)
        x = {names[0]: x}
    if set(x) != set(names):
        raise checks.value_error("x", f"the inputs {names}", sorted(map(str, x)))
    arrays = {port.name: _check(port, x[port.name]) for port in ports}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise checks.value_error("x", "as many examples for each input", counts)
    return [np.ascontiguousarray(port.encode(arrays[port.name])) for port in ports]


def _check(port: Port, value: Any) -> np.ndarray:
    """Checks one array against one input of a file."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise checks.type_error("x", f"an array for input {port.name!r}", value)
    value = np.asarray(value)
    shape = port.shape[1:]
    fits = value.ndim == len(port.shape) and all(
        want in (-1, got) for want, got in zip(shape, value.shape[1:], strict=True)
    )
    if not fits:
        shown = ", ".join(["batch", *("any" if s < 0 else str(s) for s in shape)])
        mend = "One example? Add the batch axis: `x[None]`." if value.shape == shape else None
        raise checks.value_error("x", f"shape ({shown}) for input {port.name!r}", value, mend)
    if len(value) == 0:
        raise checks.value_error("x", "at least one example", value)
    if port.dtype.kind == "f" or (port.quantized and value.dtype != port.dtype):
        if value.dtype.kind != "f":
            mend = "Scale images as the model was trained: `dataset.preprocess(images)`."
            raise checks.type_error("x", f"float values for input {port.name!r}", value, mend)
        if port.quantized and not np.isfinite(value).all():
            raise checks.value_error("x", "finite values: NaN has no integer code", value)
    elif not port.quantized and value.dtype.kind != port.dtype.kind:
        raise checks.type_error("x", f"{port.dtype} values for input {port.name!r}", value)
    return value
