"""Reading, editing and writing TFLite flatbuffers with TensorFlow's generated schema classes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

_IDENTIFIER = b"TFL3"
# TFLite's schema requires this alignment of weights in bytes; the generated Python code
# does not apply it.
_ALIGNMENT = 16


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
