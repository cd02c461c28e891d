"""A TFLite file opened for changes, by the classes that TensorFlow has for its format."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # of weights: the schema asks for it, and Python's writer forgets it


def schema() -> ModuleType:
    """TensorFlow's classes for the parts of a file."""
    from tfkd.keras_internals import schema_py_generated

    return schema_py_generated


def opened(data: bytes) -> Any:
    """The file as an object, to be changed."""
    return schema().ModelT.InitFromPackedBuf(data)


def packed(model: Any) -> bytes:
    """The bytes of a file."""
    import flatbuffers  # comes with TensorFlow

    model.buffers = [_Aligned(buffer) for buffer in model.buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


class _Aligned:
    """A buffer that packs itself at a multiple of 16 bytes."""

    def __init__(self, buffer: Any):
        self.data = None if buffer.data is None else bytes(bytearray(buffer.data))

    def Pack(self, builder: Any) -> int:
        """Called by the generated code."""
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


def take_pixels(model: Any, mean: float, std: float) -> None:
    """Lets a uint8 input stand for pixels: scale 1/std and zero point mean.

    The converter gives it the range that it saw in the examples. Behind it stands a
    QUANTIZE to int8, which goes from any scale to any other.
    """
    parts, graph = schema(), model.subgraphs[0]
    (index,) = graph.inputs
    readers = [op for op in graph.operators if index in np.asarray(op.inputs)]
    codes = {model.operatorCodes[op.opcodeIndex].builtinCode for op in readers}
    if codes != {parts.BuiltinOperator.QUANTIZE}:
        raise ValueError(
            "`io`: TFLite's converter has put no QUANTIZE behind the input, so that it can't take "
            "pixels as they are. Use io='float32'."
        )
    quantization = graph.tensors[index].quantization
    quantization.scale = np.array([1.0 / std], np.float32)
    quantization.zeroPoint = np.array([int(np.floor(mean + 0.5))], np.int64)
