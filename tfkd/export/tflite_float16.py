"""Float16 range checks: numbers that overflow or vanish, and TFLite files that keep them.

TensorFlow's converter silently clips weights to ±65504, the largest float16 number, and rounds
constants below 3e-8, such as the 1e-8 of a logarithm or a division, to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.export.converter import quiet
from tfkd.export.detector import flatbuffer
from tfkd.export.named_function import NamedFunction

LARGEST = float(np.finfo(np.float16).max)
# Smaller numbers lose precision (subnormal), down to 2⁻²⁴ ≈ 6e-8.
_NORMAL = float(np.finfo(np.float16).smallest_normal)
# The smallest number above 0.
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_SHOWN = 3


def cut_off(values: np.ndarray, weights: Collection[float] = ()) -> bool:
    """Whether clipping a constant to float16's range would change what a model computes.

    Clipping is harmless if all large numbers are the same negative number and it occurs in
    no weight: it then stands for −∞, as −1e9 in attention masks.

    Args:
        values: a constant of a graph.
        weights: the `large_weights` of the model.
    """
    large = values[np.abs(values) > LARGEST]
    if not large.size:
        return False
    return bool(large[0] >= 0 or (large != large[0]).any() or float(-large[0]) in weights)


def large_weights(graph: NamedFunction) -> set[float]:
    """Absolute values of the numbers in a model's weights that float16 can't hold.

    They are absolute because a graph may hold the mean of a normalization negated.
    """
    learned = [weight for weight in graph.model.weights if hasattr(weight, "numpy")]
    given = (getattr(one, "input_mean", None) for one in graph.layers)
    found: set[float] = set()
    for one in (*learned, *(mean for mean in given if mean is not None)):
        values = np.abs(np.asarray(one))
        if values.dtype.kind == "f":
            found.update(values[values > LARGEST].astype(np.float32).tolist())
    return found


def problems(graph: NamedFunction) -> list[str]:
    """Describes weights of a model that overflow or underflow in float16, one sentence each."""
    found = []
    for weight in graph.model.weights:
        values = np.abs(np.asarray(weight)) if hasattr(weight, "numpy") else np.zeros(1)
        if values.dtype.kind != "f" or not values.size or not np.isfinite(values).all():
            continue
        largest = float(values.max())
        if largest > LARGEST or 0 < largest < _NORMAL:
            found.append(
                f"the largest number of {weight.name!r} is {largest:.3g}, and float16 goes from "
                "6e-08 to 65504: scale it, or stay in float32"
            )
    return found[:_SHOWN]


def keep_large(data: bytes, convert: Callable[[], bytes], weights: Collection[float] = ()) -> bytes:
    """Restores clipped weights of a float16 file in float32, and warns of them.

    Args:
        data: the bytes of a float16 file.
        convert: converts the same model to float32; called only if a weight was clipped.
        weights: the `large_weights` of the model.

    Returns:
        The bytes of the corrected file.

    Raises:
        ValueError: if such a weight can't be restored.
    """
    model = flatbuffer.opened(data)
    halves = [one for one in _constants(model, np.float16) if (np.abs(one[2]) == LARGEST).any()]
    if not halves:
        return data
    wholes = [values for *_, values in _constants(flatbuffer.opened(convert()), np.float32)]
    kept = []
    for graph, index, values in halves:
        name = graph.tensors[index].name.decode()
        same = [w for w in wholes if w.shape == values.shape and (_half(w) == values).all()]
        if not same or any((one != same[0]).any() for one in same[1:]):
            raise _refused(name, "more than that")
        if cut_off(same[0], weights) or (_weighs(model, graph, index) and cut_off(np.abs(same[0]))):
            kept.append(f"{name} (up to {np.abs(same[0]).max():.3g})")
            if not _replace(model, graph, index, same[0]):
                raise _refused(name, f"numbers up to {np.abs(same[0]).max():.3g}")
    if not kept:
        return data
    checks.warn(
        f"`mode`: float16 ends at 65504; these weights stay in float32: {', '.join(kept)}. On "
        "hardware that computes in float16 their results can still overflow; with mode='dynamic' "
        "or 'float32' they can't."
    )
    return flatbuffer.packed(model)


def vanishes(values: np.ndarray) -> bool:
    """Whether a constant is not 0, and all of it is in float16."""
    return bool(values.size and values.any() and not _half(values).any())


def has_vanishing(graph: NamedFunction) -> bool:
    """Whether a model computes with a constant that vanishes in float16."""
    with quiet():
        nodes = graph.function(1).get_concrete_function().graph.get_operations()
    constants = (node.outputs[0] for node in nodes if node.type == "Const")
    values = (tf.get_static_value(one) for one in constants if one.dtype == tf.float32)
    return any(value is not None and vanishes(np.asarray(value)) for value in values)


def keep_small(data: bytes, convert: Callable[[], bytes]) -> bytes:
    """Restores constants of a float16 file that vanished in float32, and warns of them.

    Weights of layers stay as they are; `problems` describes them.

    Args:
        data: the bytes of a float16 file.
        convert: converts the same model to float32.

    Returns:
        The bytes of the corrected file.
    """
    model = flatbuffer.opened(data)
    wholes = {
        graph.tensors[index].name: values
        for graph, index, values in _constants(flatbuffer.opened(convert()), np.float32)
    }
    kept = []
    for graph, index, values in _constants(model, np.float16):
        name = graph.tensors[index].name
        whole = wholes.get(name, values)
        if values.any() or not vanishes(whole) or _weighs(model, graph, index):
            continue
        if _replace(model, graph, index, whole):
            kept.append(f"{name.decode()} ({np.abs(whole).max():.3g})")
    if not kept:
        return data
    checks.warn(
        f"`mode`: float16 has no numbers below 6e-8; these constants stay in float32: "
        f"{', '.join(kept)}. On hardware that computes in float16 they are 0, so that a logarithm "
        "or a division that they guard can give infinity: raise them to 1e-6 if the model allows."
    )
    return flatbuffer.packed(model)


def _refused(name: str, held: str) -> ValueError:
    return ValueError(
        f"`mode`: float16 ends at 65504, and the weight {name!r} holds {held}. Use mode='dynamic' "
        "or mode='float32'."
    )


def _half(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16)


def _constants(model: Any, dtype: Any) -> list[tuple[Any, int, np.ndarray]]:
    """(subgraph, index of the tensor, values) of all constants of a dtype."""
    kinds = flatbuffer.schema().TensorType
    wanted = kinds.FLOAT16 if dtype == np.float16 else kinds.FLOAT32
    found = []
    for graph in model.subgraphs:
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if tensor.type == wanted and data is not None and len(data):
                values = np.frombuffer(bytes(bytearray(data)), dtype)
                shape = () if tensor.shape is None else tuple(tensor.shape)
                found.append((graph, index, values.reshape(shape)))
    return found


def _weighs(model: Any, graph: Any, index: int) -> bool:
    """Whether a constant is the weight operand of a layer, directly or through a DEQUANTIZE."""
    codes = [code.builtinCode for code in model.operatorCodes]
    known = flatbuffer.schema().BuiltinOperator
    kernels = (known.CONV_2D, known.DEPTHWISE_CONV_2D, known.FULLY_CONNECTED, known.CONV_3D)
    same = {index} | {
        int(op.outputs[0])
        for op in graph.operators
        if codes[op.opcodeIndex] == known.DEQUANTIZE and index in np.asarray(op.inputs)
    }
    return any(codes[op.opcodeIndex] in kernels and op.inputs[1] in same for op in graph.operators)


def _replace(model: Any, graph: Any, index: int, values: np.ndarray) -> bool:
    """Makes a constant float32 and removes the DEQUANTIZE after it; False if that fails."""
    names = flatbuffer.schema()
    codes = [code.builtinCode for code in model.operatorCodes]
    readers = [op for op in graph.operators if index in np.asarray(op.inputs)]
    if any(codes[op.opcodeIndex] != names.BuiltinOperator.DEQUANTIZE for op in readers):
        return False
    buffer = names.BufferT()
    buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    model.buffers.append(buffer)
    graph.tensors[index].buffer = len(model.buffers) - 1
    graph.tensors[index].type = names.TensorType.FLOAT32
    made = [int(op.outputs[0]) for op in readers]
    graph.operators = [op for op in graph.operators if not any(op is one for one in readers)]
    for op in graph.operators:
        op.inputs = np.array([index if i in made else i for i in np.asarray(op.inputs)], np.int32)
    return bool(readers) and not set(made) & set(map(int, graph.outputs))
