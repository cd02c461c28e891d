"""LRU cache of inference results by the content of examples."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

# Examples of up to 512 bytes are their own keys; larger ones are keyed by their digest.
_BYTES = 512
_DIGEST = 32  # bytes


@dataclasses.dataclass(frozen=True)
class CacheInfo:
    """Statistics of the result cache.

    Attributes:
        hits: number of examples whose results were cached.
        misses: number of examples that were run.
        size: number of results in the cache.
        max_size: capacity of the cache.
    """

    hits: int
    misses: int
    size: int
    max_size: int

    @property
    def hit_rate(self) -> float:
        """Fraction of hits among all examples; 0 before the first."""
        total = self.hits + self.misses
        return self.hits / total if total else 0.0


def key_of(rows: Sequence[np.ndarray]) -> Hashable:
    """The cache key of an example: shape and bytes of each input.

    Large inputs are replaced by their BLAKE2b digest. Dtypes are fixed by the file.

    Args:
        rows: one contiguous array per input.
    """
    if len(rows) == 1:
        return _key(rows[0])
    return tuple(_key(row) for row in rows)


def _key(row: np.ndarray) -> Hashable:
    if row.dtype == object:  # Texts: the bytes of the array are their addresses.
        return row.shape, *row.ravel().tolist()
    if row.nbytes <= _BYTES:
        return row.shape, row.tobytes()
    data = row.view(np.uint8).data  # NumPy exports no buffer of bfloat16.
    return row.shape, row.nbytes, hashlib.blake2b(data, digest_size=_DIGEST).digest()


class ResultCache:
    """A thread-safe cache for the results of up to `max_size` examples."""

    def __init__(self, max_size: int):
        self._max = max_size
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[Hashable, tuple[np.ndarray, ...]]
        self._kept = collections.OrderedDict()
        self._hits = self._misses = 0

    def answer(
        self, arrays: Sequence[np.ndarray], compute: Callable[[Sequence[np.ndarray]], Any]
    ) -> Sequence[np.ndarray]:
        """Returns the results of a batch; examples that are not cached are run together.

        Args:
            arrays: an array (N, ...) per input.
            compute: maps the arrays of the examples that are not cached to their results.

        Returns:
            An array (N, ...) per output, owned by the caller.
        """
        count = len(arrays[0])
        if count == 1:
            return self._one(arrays, compute)
        keys = [key_of([array[i : i + 1] for array in arrays]) for i in range(count)]
        found = self._look_up(keys)
        missing = {key: i for i, key in enumerate(keys) if found[i] is None}
        if missing:
            rows = list(missing.values())
            results = compute([array[rows] for array in arrays])
            split = [tuple(r[i : i + 1].copy() for r in results) for i in range(len(rows))]
            new = dict(zip(missing, split, strict=True))
            self._keep(new)
            found = [new[k] if f is None else f for k, f in zip(keys, found, strict=True)]
        outputs = zip(*[f for f in found if f is not None], strict=True)
        return [np.concatenate(column) for column in outputs]

    def _one(
        self, arrays: Sequence[np.ndarray], compute: Callable[[Sequence[np.ndarray]], Any]
    ) -> Sequence[np.ndarray]:
        key = key_of(arrays)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._hits += 1
                self._kept.move_to_end(key)
            else:
                self._misses += 1
        if kept is not None:
            return [row.copy() for row in kept]
        results = compute(arrays)
        self._keep({key: tuple(result.copy() for result in results)})
        return results

    def _look_up(self, keys: Sequence[Hashable]) -> list[tuple[np.ndarray, ...] | None]:
        with self._lock:
            found = [self._kept.get(key) for key in keys]
            for key, value in zip(keys, found, strict=True):
                if value is not None:
                    self._kept.move_to_end(key)
            missed = found.count(None)
            self._misses += missed
            self._hits += len(keys) - missed
        return found

    def _keep(self, new: dict[Hashable, tuple[np.ndarray, ...]]) -> None:
        with self._lock:
            for key, value in new.items():
                self._kept[key] = value
                self._kept.move_to_end(key)
            while len(self._kept) > self._max:
                self._kept.popitem(last=False)

    def after_fork(self) -> None:
        """Runs in the child of a fork, where a thread that is gone may hold the lock."""
        self._lock = threading.Lock()

    def info(self) -> CacheInfo:
        """Statistics since the last `clear`."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._kept), self._max)

    def clear(self) -> None:
        """Empties the cache and resets the counters."""
        with self._lock:
            self._kept.clear()
            self._hits = self._misses = 0
