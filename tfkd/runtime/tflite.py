"""Backend for `.tflite` files: LiteRT's interpreter."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd.formats import litert
from tfkd.runtime.backend import arranged, powers

# There is one interpreter per batch size if all files together stay below 64 MiB.
_INTERPRETERS_BYTES = 64 << 20


class TFLite:
    """A file in the interpreter; see `tfkd.runtime.backend.Backend`.

    With `batch`, an open batch is run in a few sizes only. For small files each has an
    interpreter of its own; otherwise one is resized, which takes 0.1 to 0.2 ms. Either
    way memory stops growing once each size was run.
    """

    kind = "LiteRT"
    most: int | None = None
    call_cost = 0.25  # Small, since its kernels gain little from larger batches.
    shared = False

    def __init__(
        self,
        path: pathlib.Path,
        threads: int = 1,
        batch: int | None = None,
        recipe: Mapping[str, Any] | None = None,
    ):
        self._path, self._threads = path, threads
        first = litert.open_interpreter(path, threads)
        self.inputs, self.outputs, self.ordered = arranged(*litert.ports(first), recipe or {})
        self._into = [port.index for port in self.inputs]
        self._out = [port.index for port in self.outputs]
        fixed = self.inputs[0].shape[0]
        self.sizes: tuple[int, ...] | None
        if fixed != -1:
            self.sizes = (fixed,)
        else:
            self.sizes = None if batch is None else powers(batch)
        count = len(self.sizes or ())
        self._several = count > 1 and count * os.path.getsize(path) <= _INTERPRETERS_BYTES
        now: tuple = ()  # not allocated: see `litert.open_interpreter`
        if not any(port.open_sizes for port in self.inputs):
            shapes = {d["index"]: tuple(map(int, d["shape"])) for d in first.get_input_details()}
            now = tuple(shapes[index] for index in self._into)
        self._opened: dict[tuple, Any] = {now: first}
        # Without open sizes there is one interpreter; set_tensor refuses other shapes.
        self._fixed = None if any(-1 in port.shape for port in self.inputs) else first
        self.signed = len(first.get_signature_list()) == 1
        self._only = len(self._into) == len(self._out) == 1
        # Looked up once: an unnecessary reset takes half as long as a small network.
        self.remembers = litert.has_variables(path)

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs a batch; the state of an LSTM starts at zero, as in the Keras model."""
        if self._fixed is not None:
            return self._invoked(self._fixed, arrays)
        shapes = tuple([array.shape for array in arrays])
        try:
            return self._invoked(self._opened.get(shapes) or self._sized(shapes), arrays)
        except (RuntimeError, ValueError) as error:
            # An interpreter that could not be resized is unusable.
            self._opened = {(): litert.open_interpreter(self._path, self._threads)}
            raise litert.NotRunnable(self.inputs, arrays) from error

    def _invoked(self, interpreter: Any, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if self.remembers:
            interpreter.reset_all_variables()
        if self._only:
            interpreter.set_tensor(self._into[0], arrays[0])
            interpreter.invoke()
            return (interpreter.get_tensor(self._out[0]),)
        for index, array in zip(self._into, arrays, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._out]

    def _sized(self, shapes: tuple) -> Any:
        """An interpreter for these shapes: a new one, or an existing one that is resized."""
        oldest = next(iter(self._opened))
        if self._several and oldest and len(self._opened) < len(self.sizes or ()):
            interpreter = litert.open_interpreter(self._path, self._threads)
        else:
            interpreter = self._opened.pop(oldest)
        litert.resize(interpreter, self.inputs, shapes)
        self._opened[shapes] = interpreter
        return interpreter

    def close(self) -> None:
        """Frees the interpreters."""
        self._fixed = None
        self._opened.clear()
