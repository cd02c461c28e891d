"""Backend for TensorRT engines (`.engine`, `.plan`) on an NVIDIA GPU.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.export import tensorrt as engines
from tfkd.formats.litert import Port
from tfkd.runtime import stored
from tfkd.runtime.cuda import Cuda
from tfkd.runtime.stored import Store


class TensorRT:
    """An engine; see `tfkd.runtime.backend.Backend`.

    GPU memory is allocated once, for the largest batch of the engine's profile.
    """

    kind = "TensorRT"
    call_cost = 8.0  # A GPU runs a small batch in about the time of one example.
    shared = False
    ordered = True

    def __init__(self, path: pathlib.Path):
        trt = engines.require_tensorrt()
        self._logger = engines.error_logger(trt)
        self._cuda = Cuda()
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            said = "; ".join(self._logger.errors) or "nothing"
            fix = (
                "An engine works only with the TensorRT version and the GPU of its build: "
                f"build it here with `tfkd.export.build_engine`. It says: {said}"
            )
            raise checks.value_error("path", "an engine for this machine", os.fspath(path), fix)
        self._engine = engine
        self._context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = [engine.get_tensor_mode(name) for name in names]
        ports = [self._port(trt, name, i) for i, name in enumerate(names)]
        pairs = list(zip(ports, modes, strict=True))
        self.inputs = tuple(p for p, mode in pairs if mode == trt.TensorIOMode.INPUT)
        self.outputs = tuple(p for p, mode in pairs if mode != trt.TensorIOMode.INPUT)
        fixed = self.inputs[0].shape[0]
        self.sizes: tuple[int, ...] | None = None if fixed == -1 else (fixed,)
        self.most: int | None = None
        if fixed == -1:
            least, _, most = engine.get_tensor_profile_shape(self.inputs[0].name, 0)
            self.most = int(most[0])
            if int(least[0]) > 1:  # Smaller batches are padded.
                self.sizes = tuple(range(int(least[0]), self.most + 1))
        largest = self.most or fixed
        self._memory: dict[str, int] = {}
        for port in ports:
            shape = (largest, *port.shape[1:])
            self._memory[port.name] = self._cuda.allocate(int(np.prod(shape)) * port.dtype.itemsize)
            self._context.set_tensor_address(port.name, self._memory[port.name])

    def _port(self, trt: Any, name: str, index: int) -> Port:
        shape = tuple(int(s) for s in self._engine.get_tensor_shape(name))
        if not shape or min(shape[1:], default=1) < 1:
            expected = f"an engine in which the batch alone is open (tensor {name!r})"
            raise checks.value_error("path", expected, shape)
        dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
        return Port(name, shape, dtype, 0.0, 0, index)

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs a batch."""
        self._cuda.enter()
        for port, array in zip(self.inputs, arrays, strict=True):
            if not self._context.set_input_shape(port.name, array.shape):
                raise checks.value_error("x", f"a batch that the engine takes: {port}", array)
            self._cuda.upload(self._memory[port.name], array)
        if not self._context.execute_async_v3(self._cuda.stream):
            said = "; ".join(self._logger.errors) or "nothing"
            raise RuntimeError(f"TensorRT could not run the engine. It says: {said}")
        results = []
        for port in self.outputs:
            result = np.empty(tuple(self._context.get_tensor_shape(port.name)), port.dtype)
            self._cuda.download(result, self._memory[port.name])
            results.append(result)
        self._cuda.wait()
        return results

    def close(self) -> None:
        """Frees the GPU memory and the engine."""
        self._cuda.enter()
        while self._memory:
            self._cuda.free(self._memory.popitem()[1])
        self._context = self._engine = self._runtime = None
        self._cuda.close()


def engine_for(path: pathlib.Path, store: Store, batch: int | None) -> pathlib.Path:
    """The engine of an ONNX file for this GPU, built if necessary.

    The engine and TensorRT's timing cache are kept in the store by the SHA-256 of the
    file, the version of TensorRT and the GPU.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`path`: there is no file {os.fspath(path)!r}.")
    version, gpu = str(engines.require_tensorrt().__version__), engines.gpu_name()
    text = f"{store.digest(path)}\n{version}\n{gpu}\n{batch}"
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    engine = store.folder / f"{path.stem}-{key}.engine"
    if engine.exists():
        try:
            if store.verify(engine)["recipe"].get("onnx_sha256") == store.digest(path):
                return engine
            stored.warn_recreated(engine, "its manifest names another model")
        except (ValueError, OSError) as error:
            stored.warn_recreated(engine, str(error))
            artifacts.manifest_path(engine).unlink(missing_ok=True)
    sizes = {} if batch is None else {"opt_batch": batch, "max_batch": batch}
    engines.build_engine(path, engine, timing_cache=store.folder / "timings", **sizes)
    store.digest(engine)
    return engine
