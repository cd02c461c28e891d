"""Interval arithmetic: bounds on a tensor's values from the operations that compute it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import tensorflow as tf

Range = tuple[float, float]

# Operations whose outputs are their inputs, element by element.
IDENTITY_OPS = tuple(
    """
    Identity IdentityN Cast StopGradient PreventGradient Snapshot EnsureShape CheckNumerics
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel
    """.split()
)
_SHAPE_OPS = ("Reshape", "ExpandDims", "Squeeze", "Transpose")
# At the end of a graph they show that an output is no probability, whatever its values are.
NO_PROBABILITY = ("Tanh", "Softsign", "Softplus", "Elu", "Selu")
_END = 3  # operations before the last one that tell how a graph ends
# Operations whose elements are elements of their inputs, or means of such.
_SELECTING_OPS = tuple(
    """
    Reshape ExpandDims Squeeze Transpose ConcatV2 Pack GatherV2 StridedSlice Slice Mean Max Min
    MaxPool AvgPool
    """.split()
)
_UNBOUNDED: Range = (-math.inf, math.inf)
_RANGES: dict[str, Range] = {
    "Softmax": (0.0, 1.0),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Exp": (0.0, math.inf),
}


def in_unit(tensor: tf.Tensor) -> bool:
    """Whether a symbolic tensor is provably in [0, 1]: a sigmoid, a mean of some, a clip."""
    if isinstance(tensor, tf.__internal__.EagerTensor) or not tensor.dtype.is_floating:
        return False
    low, high = _range(tensor, {}, 64)  # the depth keeps recursion far from Python's limit
    return low >= 0.0 and high <= 1.0 + 1e-6  # a float32 mean of ones may round above 1


def _range(tensor: tf.Tensor, known: dict[Hashable, Range], depth: int) -> Range:
    key = tensor.ref()
    if key not in known:
        known[key] = _UNBOUNDED if depth == 0 else _of_op(tensor, known, depth - 1)
    return known[key]


def _of_op(tensor: tf.Tensor, known: dict[Hashable, Range], depth: int) -> Range:
    op = tensor.op
    if op.type in _RANGES:
        return _RANGES[op.type]
    if op.type == "Const":
        value = op.get_attr("value")
        value = np.asarray(tf.make_ndarray(value)) if value.dtype else np.empty(0)
        is_number = value.size and value.dtype.kind in "fiu"
        return (float(value.min()), float(value.max())) if is_number else _UNBOUNDED
    rule = _RULES.get(op.type, _hull if op.type in (*IDENTITY_OPS, *_SELECTING_OPS) else None)
    if rule is None or _is_share(op, known, depth):
        return _UNBOUNDED if rule is None else (0.0, 1.0)
    # Inputs of an integer type are axes, indices and sizes.
    inputs = [i for i in op.inputs if i.dtype.is_floating]
    found = rule(*(_range(i, known, depth) for i in inputs)) if inputs else _UNBOUNDED
    return _UNBOUNDED if any(math.isnan(end) for end in found) else found


def _is_share(op: tf.Operation, known: dict[Hashable, Range], depth: int) -> bool:
    """Whether an operation is a / Σ a with a ≥ 0, whose result is in [0, 1]."""
    if op.type != "RealDiv" or op.inputs[1].op.type != "Sum":
        return False
    part, total = op.inputs[0], op.inputs[1].op.inputs[0]
    return part is total and _range(part, known, depth)[0] >= 0.0


def _hull(*ranges: Range) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _sum(*ranges: Range) -> Range:
    return sum(low for low, _ in ranges), sum(high for _, high in ranges)


def _product(a: Range, b: Range) -> Range:
    ends = [x * y for x in a for y in b]
    return (math.nan, math.nan) if any(map(math.isnan, ends)) else (min(ends), max(ends))


def _inverse(a: Range) -> Range:
    return (1.0 / a[1], 1.0 / a[0]) if a[0] > 0.0 else _UNBOUNDED


def _least(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), min(a[1], b[1])


def _most(a: Range, b: Range) -> Range:
    return max(a[0], b[0]), max(a[1], b[1])


_RULES: dict[str, Callable[..., Range]] = {
    **dict.fromkeys(("Add", "AddV2", "AddN"), _sum),
    "Sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "Neg": lambda a: (-a[1], -a[0]),
    "Mul": _product,
    "RealDiv": lambda a, b: _product(a, _inverse(b)),
    "Reciprocal": _inverse,
    "Minimum": _least,
    "Maximum": _most,
    "ClipByValue": lambda a, low, high: _least(_most(a, low), high),
    "Relu": lambda a: _most(a, (0.0, 0.0)),
    "Relu6": lambda a: _least(_most(a, (0.0, 0.0)), (6.0, 6.0)),
    "Sum": lambda a: (0.0 if a[0] >= 0.0 else -math.inf, math.inf),
}


def end_of(op: tf.Operation, depth: int = _END) -> Any:
    """The types of the last operations on floats: (type, one such tuple for each input)."""
    while op.type in (*IDENTITY_OPS, *_SHAPE_OPS) and op.inputs:
        op = op.inputs[0].op
    before = [tensor.op for tensor in op.inputs if tensor.dtype.is_floating]
    inside: tuple[str, ...] = ()
    if op.type.endswith("PartitionedCall"):
        name, library = op.get_attr("f").name, op.graph.as_graph_def().library
        called = [one for one in library.function if one.signature.name == name]
        inside = tuple(node.op for one in called for node in one.node_def)
    return (op.type, inside, *(end_of(one, depth - 1) for one in before if depth))
