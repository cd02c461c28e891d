"""Splitting of arrays by name into batches, and joining of the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np


def chunks(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields consecutive parts of arrays (N, ...), of up to `size` examples each."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}


def padded_rows(count: int, size: int) -> list[np.ndarray]:
    """Indices of consecutive batches of a fixed size; the last example fills up the last one."""
    return [np.minimum(np.arange(s, s + size), count - 1) for s in range(0, count, size)]


def joined(results: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Concatenates the results of consecutive batches by name, in float32 unless they are texts."""
    parts: dict[str, list[np.ndarray]] = {}
    for result in results:
        for name, value in result.items():
            array = np.asarray(value)
            array = array if array.dtype == object else array.astype(np.float32, copy=False)
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(part) for name, part in parts.items()}
