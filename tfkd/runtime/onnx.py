"""Backend for `.onnx` files: ONNX Runtime."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.formats.litert import Port
from tfkd.formats.onnx_session import open_session
from tfkd.formats.onnx_token_ids import rows_of
from tfkd.runtime.backend import outside

_SAME = "float16 bool int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()
_TYPES = {f"tensor({name})": name for name in _SAME}
_TYPES |= {"tensor(float)": "float32", "tensor(double)": "float64"}


class Onnx:
    """A file in ONNX Runtime, which is thread-safe; see `tfkd.runtime.backend.Backend`."""

    kind = "ONNX Runtime"
    call_cost = 1.0
    shared = True
    ordered = True

    def __init__(self, path: pathlib.Path, threads: int, providers: Sequence[str], **options: Any):
        self._session = open_session(path, threads, providers, **options)
        self.inputs = tuple(_port(v, i) for i, v in enumerate(self._session.get_inputs()))
        self.outputs = tuple(_port(v, i) for i, v in enumerate(self._session.get_outputs()))
        fixed = self.inputs[0].shape[0]
        self.sizes: tuple[int, ...] | None = None if fixed == -1 else (fixed,)
        self.most: int | None = None
        self._names = [port.name for port in self.inputs]
        self._wanted = [port.name for port in self.outputs]
        # ONNX takes the id -1 for the last row, where Keras and TFLite refuse it.
        rows = rows_of(self._session.get_modelmeta().custom_metadata_map)
        self._ids = [(i, rows[name]) for i, name in enumerate(self._names) if name in rows]

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs a batch."""
        for index, rows in self._ids:
            lowest = arrays[index].min()
            if lowest < 0:
                raise outside(int(lowest), rows)
        return self._session.run(self._wanted, dict(zip(self._names, arrays, strict=True)))

    def close(self) -> None:
        """Does nothing: the session is freed after the last running call."""


def _port(value: Any, index: int) -> Port:
    dtype = _TYPES.get(value.type)
    if dtype is None:
        expected = f"a file whose inputs and outputs hold numbers ({value.name!r})"
        raise checks.value_error("path", expected, value.type)
    if not value.shape:
        expected = f"a file whose inputs and outputs have a batch axis ({value.name!r})"
        raise checks.value_error("path", expected, value.shape)
    shape = tuple(s if isinstance(s, int) and s > 0 else -1 for s in value.shape)
    return Port(value.name, shape, np.dtype(dtype), 0.0, 0, index)
