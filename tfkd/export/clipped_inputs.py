"""How much of the examples lies outside the ranges of a file's quantized inputs.

A quantized input clips what lies beyond the range of its calibration. A few values a little
beyond are usual: of examples like those of the calibration, the largest may be a bit larger.
A share of the values, or examples with values far beyond, show that the file was calibrated
on other examples than it is used on, such as images without the bright spots to be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfkd.formats import litert
from tfkd.formats.onnx_nodes import load, require
from tfkd.types import Path

Range = tuple[float, float]

# In parts of the range: values this close to it don't count; those farther off than the second
# are far beyond it.
_SMALL, _FAR = 0.01, 0.25
_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
# Shares of all values and of the examples that are worth a warning.
_VALUES, _EXAMPLES = 0.05, 0.01


def ranges_of_tflite(path: Path) -> dict[str, Range]:
    """(smallest, largest) value that each quantized input of a `.tflite` file represents.

    If a float input is quantized by the operations that read it, their ranges are meant.
    """
    interpreter = litert.open_interpreter(path, delegate=False)
    tensors = {d["index"]: d for d in interpreter.get_tensor_details()}
    found = {}
    for port in litert.ports(interpreter)[0]:
        read = [op for op in interpreter._get_ops_details() if port.index in op["inputs"]]
        ends = [port.limits] if port.limits else []
        if read and all(op["op_name"] == "QUANTIZE" for op in read):
            after = (tensors[int(op["outputs"][0])] for op in read)
            ends.append(_widest([_limits(d["dtype"], *d["quantization"]) for d in after]))
        if ends:
            found[port.name] = max(low for low, _ in ends), min(high for _, high in ends)
    return found


def ranges_of_onnx(file: Path | bytes) -> dict[str, Range]:
    """The same of the inputs of an ONNX file, which QuantizeLinear reads."""
    onnx = require("onnx")
    graph = (onnx.load_from_string(file) if isinstance(file, bytes) else load(file)).graph
    constants = {one.name: one for one in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for port in graph.input:
        ends = [_limits_of(node, constants) for node in _behind_moves(port.name, readers)]
        known = [one for one in ends if one is not None]
        if known and len(known) == len(ends):
            found[port.name] = _widest(known)
    return found


def _behind_moves(tensor: str, readers: Mapping[str, list[Any]]) -> Iterator[Any]:
    """The nodes that read a tensor, behind those that only move its values."""
    for node in readers.get(tensor, []):
        if node.op_type in _MOVES:
            yield from _behind_moves(node.output[0], readers)
        else:
            yield node


def _limits_of(node: Any, constants: Mapping[str, Any]) -> Range | None:
    """The range of a QuantizeLinear with one constant scale; None for other nodes."""
    found = [constants.get(name) for name in node.input[1:3]]
    if node.op_type != "QuantizeLinear" or len(found) < 2 or None in found:
        return None
    scale, zero = map(require("onnx").numpy_helper.to_array, found)
    return _limits(zero.dtype, scale.item(), zero.item()) if scale.size == 1 else None


def _limits(dtype: Any, scale: float, zero: int) -> Range:
    info = np.iinfo(dtype)
    return (int(info.min) - int(zero)) * float(scale), (int(info.max) - int(zero)) * float(scale)


def _widest(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def measure(
    arrays: Mapping[str, np.ndarray], ranges: Mapping[str, Range]
) -> dict[str, dict[str, Any]]:
    """Compares examples with the ranges of a file's inputs.

    Args:
        arrays: inputs (N, ...) by name, as the model takes them.
        ranges: (smallest, largest) of each quantized input by name.

    Returns:
        For each quantized input its `range`; `given`, the range of the examples; `values`, the
        fraction of the values that lie outside by more than 1 % of the range; `far`, the
        fraction of the examples with a value that is outside by more than a quarter of it.

    Example:
        >>> x = np.array([[0.0, 0.5], [1.0, 0.5], [0.0, 9.0], [1.004, 1.1]])
        >>> measure({"x": x}, {"x": (0.0, 1.0)})
        {'x': {'range': [0.0, 1.0], 'given': [0.0, 9.0], 'values': 0.25, 'far': 0.25}}
    """
    return {
        name: _measure_one(arrays[name], low, high)
        for name, (low, high) in ranges.items()
        if arrays[name].dtype.kind in "iuf" and arrays[name].size
    }


def _measure_one(values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    width, rows = high - low, values.reshape(len(values), -1)
    outside = (rows < low - _SMALL * width) | (rows > high + _SMALL * width)
    ends = rows.min(1), rows.max(1)
    far = (ends[0] < low - _FAR * width) | (ends[1] > high + _FAR * width)
    return {
        "range": [low, high],
        "given": [float(ends[0].min()), float(ends[1].max())],
        "values": float(outside.mean()),
        "far": float(far.mean()),
    }


def doubts(inputs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Sentences on the inputs of which too much is clipped; `inputs` from `measure`."""
    for name, row in inputs.items():
        if row["values"] <= _VALUES and row["far"] <= _EXAMPLES:
            continue
        low, high = row["range"]
        least, most = row["given"]
        yield (
            f"input {name!r}: {shares(row)} lie outside the range of the file's quantized input, "
            f"{low:.4g} to {high:.4g}, and are clipped: `verify` goes from {least:.4g} to "
            f"{most:.4g}. Calibrate on examples like those in use"
        )


def shares(row: Mapping[str, Any]) -> str:
    """How much is clipped, as "0.10% of the values (far in 100.00% of the examples)"."""
    text = f"{row['values']:.2%} of the values"
    return f"{text} (far, in {row['far']:.2%} of the examples)" if row["far"] else text
