"""Reading, editing and writing TFLite flatbuffers with TensorFlow's generated schema classes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

_IDENTIFIER = b"TFL3"
# TFLite's schema requires this alignment of weights in bytes; the generated Python code
# does not apply it.
_ALIGNMENT = 16
_DEQUANTIZE_INT8 = 2  # the version of DEQUANTIZE that takes int8


def schema() -> ModuleType:
    """TensorFlow's generated classes for TFLite's schema."""
    from tfkd.keras_internals import schema_py_generated

    return schema_py_generated


def opened(data: bytes) -> Any:
    """Unpacks a file into a mutable `ModelT` object."""
    return schema().ModelT.InitFromPackedBuf(data)


def packed(model: Any) -> bytes:
    """Packs a `ModelT` object into the bytes of a file."""
    import flatbuffers  # A dependency of TensorFlow.

    model.buffers = [_Aligned(buffer) for buffer in model.buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


class _Aligned:
    """A buffer that is packed at a multiple of 16 bytes."""

    def __init__(self, buffer: Any):
        self.data = None if buffer.data is None else bytes(bytearray(buffer.data))

    def Pack(self, builder: Any) -> int:
        """Called by the generated code for each buffer."""
        parts = schema()
        start = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            start = builder.EndVector()
        parts.BufferStart(builder)
        if start is not None:
            parts.BufferAddData(builder, start)
        return int(parts.BufferEnd(builder))


def result_of(model: Any, number: int) -> str:
    """The name of the first result of an operation of a file's main subgraph; "" if none."""
    graph = model.subgraphs[0]
    if number >= len(graph.operators) or not len(graph.operators[number].outputs):
        return ""
    return str(graph.tensors[graph.operators[number].outputs[0]].name.decode())


def with_float_inputs(data: bytes) -> bytes:
    """Puts a DEQUANTIZE before each FULLY_CONNECTED that has float weights and an int8 input.

    TensorFlow's converter makes them from products of a quantized tensor and a constant matrix
    whose result has no range. LiteRT has no such kernel.

    Args:
        data: the bytes of a file.

    Returns:
        The bytes of the file with these products in float; `data` itself if it has none.
    """
    parts, model = schema(), opened(data)
    codes = [code.builtinCode for code in model.operatorCodes]
    changed = False
    for graph in model.subgraphs:
        floats: dict[int, int] = {}  # quantized tensor → the same in float
        operators = []
        for operator in graph.operators:
            if codes[operator.opcodeIndex] == parts.BuiltinOperator.FULLY_CONNECTED:
                read, weights = (int(index) for index in operator.inputs[:2])
                kinds = [graph.tensors[index].type for index in (read, weights)]
                if kinds == [parts.TensorType.INT8, parts.TensorType.FLOAT32]:
                    if read not in floats:
                        floats[read] = _add_float(graph, read)
                        operators.append(_dequantize(model, read, floats[read]))
                    operator.inputs = np.array([floats[read], *operator.inputs[1:]], np.int32)
            operators.append(operator)
        changed = changed or bool(floats)
        graph.operators = operators
    return packed(model) if changed else data


def _add_float(graph: Any, index: int) -> int:
    """Adds a float tensor of the shape of a quantized one to a subgraph; returns its index."""
    source, made = graph.tensors[index], schema().TensorT()
    made.name, made.type = source.name + b"_float", schema().TensorType.FLOAT32
    made.shape, made.shapeSignature = source.shape, source.shapeSignature
    made.hasRank = source.hasRank
    graph.tensors.append(made)
    return len(graph.tensors) - 1


def _dequantize(model: Any, source: int, result: int) -> Any:
    """A DEQUANTIZE of an int8 tensor, with its code among those of the file."""
    parts = schema()
    kind = parts.BuiltinOperator.DEQUANTIZE
    codes = [code.builtinCode for code in model.operatorCodes]
    if kind not in codes:
        code = parts.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = _DEQUANTIZE_INT8
        model.operatorCodes.append(code)
        codes.append(kind)
    index = codes.index(kind)
    model.operatorCodes[index].version = max(model.operatorCodes[index].version, _DEQUANTIZE_INT8)
    made = parts.OperatorT()
    made.opcodeIndex = index
    made.inputs, made.outputs = np.array([source], np.int32), np.array([result], np.int32)
    return made


def take_pixels(model: Any, mean: float, std: float) -> None:
    """Makes a uint8 input accept raw pixels: scale 1/std and zero point mean.

    The converter derives its scale from the calibration examples. The QUANTIZE to int8
    after the input requantizes from any scale to any other.
    """
    parts, graph = schema(), model.subgraphs[0]
    (index,) = graph.inputs
    readers = [op for op in graph.operators if index in np.asarray(op.inputs)]
    codes = {model.operatorCodes[op.opcodeIndex].builtinCode for op in readers}
    if codes != {parts.BuiltinOperator.QUANTIZE}:
        raise ValueError(
            "`io`: TFLite's converter put no QUANTIZE after the input, so that it can't accept "
            "raw pixels. Use io='float32'."
        )
    # (pixel − mean) / std = scale · (pixel − zero point)
    quantization = graph.tensors[index].quantization
    quantization.scale = np.array([1.0 / std], np.float32)
    quantization.zeroPoint = np.array([int(np.floor(mean + 0.5))], np.int64)
