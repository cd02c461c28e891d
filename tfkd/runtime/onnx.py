"""`.onnx` files in ONNX Runtime."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.formats.litert import Port
from tfkd.formats.onnx_nodes import require

CPU = ("CPUExecutionProvider",)

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({t})": t for t in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    **{f"tensor({t})": t for t in ("int64", "uint64")},
}


class Onnx:
    """A file in ONNX Runtime, which any number of threads may call at once.

    See `tfkd.runtime.backend.Backend`.
    """

    kind = "ONNX Runtime"
    call_cost = 1.0
    shared = True

    def __init__(self, path: pathlib.Path, threads: int, providers: Sequence[str], **options: Any):
        self._session = open_session(path, threads, providers, **options)
        self.inputs = tuple(_port(v, i) for i, v in enumerate(self._session.get_inputs()))
        self.outputs = tuple(_port(v, i) for i, v in enumerate(self._session.get_outputs()))
        fixed = self.inputs[0].shape[0]
        self.sizes: tuple[int, ...] | None = None if fixed == -1 else (fixed,)
        self.most: int | None = None
        self._names = [port.name for port in self.inputs]
        self._wanted = [port.name for port in self.outputs]

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs a batch."""
        return self._session.run(self._wanted, dict(zip(self._names, arrays, strict=True)))

    def close(self) -> None:
        """Nothing: the session is freed when the last call that runs has ended."""


def open_session(
    path: pathlib.Path,
    threads: int,
    providers: Sequence[str],
    *,
    ready: bool = False,
    write: pathlib.Path | None = None,
) -> Any:
    """Opens a session.

    Args:
        path: the file.
        threads: threads within one call.
        providers: ONNX Runtime's execution providers, the preferred one first.
        ready: the file was optimized already.
        write: where ONNX Runtime leaves the optimized file.

    Raises:
        ImportError: if onnxruntime is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if ONNX Runtime lacks a provider or cannot run the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path`: there is no file {os.fspath(path)!r}.")
    runtime = require("onnxruntime")
    there = runtime.get_available_providers()
    lacking = [name for name in providers if name not in there]
    if lacking or not providers:
        mend = "Each comes with a build of ONNX Runtime: onnxruntime-gpu has CUDA's."
        raise checks.value_error("providers", f"some of {there}", list(providers), mend)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4
    if ready:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if write is not None:
        options.optimized_model_filepath = os.fspath(write)
    try:
        return runtime.InferenceSession(os.fspath(path), options, providers=list(providers))
    except Exception as error:  # it has a class of error for each status
        raise checks.value_error(
            "path", "an ONNX file that ONNX Runtime can run", os.fspath(path), f"It says: {error}"
        ) from error


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
