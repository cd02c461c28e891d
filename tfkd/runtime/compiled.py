"""`.tflite` files in LiteRT's `CompiledModel` with XNNPACK's weight cache, for a fast start.

XNNPACK repacks the weights for the processor each time a file is opened. Its weight
cache keeps the packed weights in a file, which the next start maps into memory. Only
`CompiledModel` supports it, not the interpreter. A `CompiledModel` can be resized only
once, so there is one per batch size; they share the mapped weights. When Python exits,
LiteRT writes two lines to standard error, which can't be suppressed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd.formats import forks, litert
from tfkd.formats.litert import Port
from tfkd.runtime import stored
from tfkd.runtime.backend import arranged, check_agreement, powers, zeros
from tfkd.runtime.stored import Store
from tfkd.runtime.tflite import TFLite

# For files below 8 MiB the interpreter opens as fast, as the benchmark of start times shows.
LEAST_BYTES = 8 << 20
_ALIGNED = 64  # LiteRT's required alignment of host buffers in bytes.
_MOST = 16  # Largest batch of a file with an open batch, unless the user asks for another.
_TOLERANCE = 1e-5


class CompiledFile:
    """A file in a `CompiledModel`; see `tfkd.runtime.backend.Backend`."""

    kind = "LiteRT with XNNPACK's weight cache"
    most: int | None = None
    call_cost = 0.25
    shared = False

    def __init__(
        self,
        path: pathlib.Path,
        weights: pathlib.Path,
        ports: tuple[tuple[Port, ...], tuple[Port, ...]],
        threads: int,
        batch: int | None,
        recipe: Mapping[str, Any] | None = None,
    ):
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options

        self.inputs, self.outputs, self.ordered = arranged(*ports, recipe or {})
        fixed = self.inputs[0].shape[0]
        self.sizes: tuple[int, ...] | None = (fixed,) if fixed != -1 else powers(batch or _MOST)
        cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=os.fspath(weights))
        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        self._opened: dict[int, tuple] = {}
        self._open = lambda: CompiledModel.from_file(os.fspath(path), options=options)
        # A finalizer, since the destructors write to standard error, also without `close`.
        self._closing = weakref.finalize(self, _forget, self._opened)
        self._opened[self.sizes[0]] = self._sized(self.sizes[0])
        forks.register(self)

    def after_fork(self) -> None:
        """Runs in the child of a fork: keeps the models from being freed, even at exit."""
        forks.keep_forever(self._opened)
        self._closing.detach()

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs a batch."""
        size = len(arrays[0])
        found = self._opened.get(size)
        if found is None:
            found = self._opened[size] = self._sized(size)
        model, into, out, results = found
        for buffer, array in zip(into, arrays, strict=True):
            buffer.write(array)
        model.run_by_index(0, *out)
        return [result.copy() for result in results]

    def _sized(self, size: int) -> tuple:
        """Opens a model for one batch size: (model, input buffers, all buffers, results)."""
        from ai_edge_litert.tensor_buffer import TensorBuffer

        with litert.quiet_stderr():
            model = self._open()
            (signature,) = model.get_signature_list().values()
            if self.inputs[0].shape[0] == -1:
                for index, name in enumerate(signature["inputs"]):
                    (port,) = [port for port in self.inputs if port.name == name]
                    model.resize_input_tensor(index, [size, *port.shape[1:]])
            ordered = model.create_input_buffers(0)
            into = [ordered[signature["inputs"].index(port.name)] for port in self.inputs]
            # Output buffers that LiteRT creates would keep the batch size of the file.
            results = [_aligned((size, *port.shape[1:]), port.dtype) for port in self.outputs]
            made = {
                port.name: TensorBuffer.create_from_host_memory(result.reshape(-1))
                for port, result in zip(self.outputs, results, strict=True)
            }
            out = [made[name] for name in signature["outputs"]]
            for buffer, array in zip(into, zeros(self.inputs, size), strict=True):
                buffer.write(array)  # The first write loads LiteRT's libraries, which log.
        return model, into, (ordered, out), results

    def close(self) -> None:
        """Frees the models."""
        self._closing()


def open_compiled(
    path: pathlib.Path,
    store: Store,
    threads: int,
    batch: int | None,
    origin: Mapping[str, Any] | None = None,
) -> CompiledFile | None:
    """Opens a file with cached packed weights, which are created if necessary.

    A new cache is checked against the interpreter's outputs first.

    Args:
        path, store, threads, batch: as for a `Predictor`.
        origin: the recipe in the manifest of `path`.

    Returns:
        The backend; None if the file should be opened in the interpreter: it is small,
        has open axes other than the batch, has variable tensors, which `CompiledModel`
        can't reset, or opening failed, which is warned of.
    """
    if os.path.getsize(path) < LEAST_BYTES:
        return None
    try:
        recipe = {
            "format": "xnnpack_weights",
            "model_sha256": store.digest(path),
            "litert": importlib.metadata.version("ai-edge-litert"),
            "processor": stored.processor(),
        }
        weights = store.name(path.stem, recipe, ".weights")
        manifest = store.find(weights, recipe)
        if manifest is not None and not litert.has_variables(path):
            return CompiledFile(path, weights, _read(manifest["ports"]), threads, batch, origin)
        plain = TFLite(path, threads)
        ports = plain.inputs, plain.outputs
        open_sizes = any(port.open_sizes for port in ports[0] + ports[1])
        if plain.remembers or not plain.signed or open_sizes:
            return None

        def make(temporary: pathlib.Path) -> dict[str, Any]:
            made = CompiledFile(path, temporary, ports, threads, batch)
            try:
                check_agreement(plain, made, _TOLERANCE)
            finally:
                made.close()
            return {"ports": [[_plain(port) for port in some] for some in ports]}

        store.create(weights, recipe, make)
        return CompiledFile(path, weights, ports, threads, batch, origin)
    except (ImportError, RuntimeError, OSError, ValueError, TypeError) as error:
        stored.warn_uncached(path, error)
        return None


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of zeros at an address that is a multiple of 64 bytes."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(count + 2 * _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + count].view(dtype).reshape(shape)


def _forget(opened: dict[int, tuple]) -> None:
    with litert.quiet_stderr():
        opened.clear()


def _plain(port: Port) -> dict[str, Any]:
    return {**dataclasses.asdict(port), "dtype": port.dtype.name}


def _read(ports: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    into, out = (
        tuple(
            Port(**{**port, "shape": tuple(port["shape"]), "dtype": np.dtype(port["dtype"])})
            for port in some
        )
        for some in ports
    )
    return into, out
