"""Splitting and padding of batches to the sizes that a backend supports; locking; reopening."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfkd.formats.forks import keep_forever
from tfkd.runtime.backend import Backend, explained, filled, plan
from tfkd.runtime.combining import split


class Batches:
    """Runs arrays of any batch size, one thread at a time if the backend requires it.

    Args:
        backend: the backend.
        rows: whether every output must have the batch as its first axis, so that its
            rows belong to examples.
    """

    def __init__(self, backend: Backend, rows: bool):
        self._backend: Any = backend
        self._run, self._rows = backend.run, rows
        self._outputs, self._call_cost = backend.outputs, backend.call_cost
        self._sizes = backend.sizes
        self.most = self._sizes[-1] if self._sizes else backend.most
        self._lock = None if backend.shared else threading.Lock()
        self._one = self._sizes is None or self._sizes[0] == 1
        # Float32 outputs need no decoding.
        plain = all(port.dtype == np.float32 for port in backend.outputs)
        self._decode = None if plain else [port.decode for port in backend.outputs]
        self.closed = False

    def __call__(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs (N, ...) arrays of the file's dtypes; returns float32 outputs."""
        count = len(arrays[0])
        if count == 1 and self._one:
            results = self.raw(arrays)
        elif self.most is not None and count > self.most:
            return split(arrays, self.most, self)
        else:
            results = self._planned(arrays, count)
        if self._rows:
            self._check(results, count)
        if self._decode is None:
            return results
        return [decode(r) for decode, r in zip(self._decode, results, strict=True)]

    def raw(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs the backend once, without splitting, padding or decoding."""
        try:
            if self._lock is None:
                return self._run(arrays)
            with self._lock:
                return self._run(arrays)
        except Exception as error:  # Each runtime raises exceptions of its own types.
            told = explained(error, arrays)
            if told is error:
                raise
            raise told from None

    def _planned(self, arrays: Sequence[np.ndarray], count: int) -> Sequence[np.ndarray]:
        """Runs up to `most` examples in batches of supported sizes."""
        sizes: tuple[int, ...] = (count,)
        if self._sizes is not None:
            sizes = plan(self._sizes, count, self._call_cost)
        if sizes == (count,):
            return self.raw(arrays)
        parts, start = [], 0
        for size in sizes:
            end = min(start + size, count)
            results = self.raw([filled(array[start:end], size) for array in arrays])
            self._check(results, size)
            parts.append([result[: end - start] for result in results])
            start = end
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _check(self, results: Sequence[np.ndarray], count: int) -> None:
        for port, result in zip(self._outputs, results, strict=True):
            if result.shape[:1] != (count,):
                raise ValueError(
                    f"The output {port.name!r} has the shape {result.shape} for {count} examples: "
                    "without the batch first, its rows can't be told apart. Run the file with "
                    "`cache_size=0`, `batch=None` and batches of its own size."
                )

    def after_fork(self, reopen: Callable[[], Backend]) -> None:
        """Runs in the child of a fork: makes the next call open the file again.

        Args:
            reopen: returns a new backend.
        """
        if self._backend is None:
            return  # It is closed.
        keep_forever(self._backend)
        ports, lock = (self._backend.inputs, self._backend.outputs), threading.Lock()
        self._lock = None if self._lock is None else threading.Lock()

        def first(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
            with lock:
                if self._run is first:
                    backend = reopen()
                    if (backend.inputs, backend.outputs) != ports:
                        raise ValueError("The file has changed since it was opened: open it again.")
                    self._backend, self._run = backend, backend.run
            return self._run(arrays)

        self._run = first
        self._backend = _Gone()

    def check_open(self) -> None:
        """Raises ValueError if it is closed."""
        if self.closed:
            _closed(())

    def close(self) -> None:
        """Closes the backend; with a lock, after the running call has ended."""
        with self._lock or contextlib.nullcontext():
            backend, self._backend, self._run = self._backend, None, _closed
            if backend is not None:
                self.closed = True
                backend.close()


class _Gone:
    """Placeholder for a backend from before a fork."""

    def close(self) -> None:
        """Does nothing, since the backend's destructor could hang."""


def _closed(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    raise ValueError("This Predictor is closed. Open the file again.")
