"""Sizes of examples as difficulty: counts of tokens, words and objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfkd import checks


def lengths(data: ArrayLike, padding: int) -> np.ndarray:
    """Number of tokens without padding, or words, of each text; see `difficulty.length`."""
    expected = "token numbers (N, L), a list of sequences, or strings (N,)"
    rows = _rows("data", data, expected)
    return np.array([_length(row, padding, expected) for row in rows], np.float64)


def _length(row: ArrayLike, padding: int, expected: str) -> int:
    if isinstance(row, (str, bytes)):
        return len(row.split())
    tokens = np.asarray(row)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise checks.type_error("data", expected, row)
    return int((tokens != padding).sum())


def objects(
    labels: ArrayLike | Mapping[str, ArrayLike], padding: float, mask: ArrayLike | None
) -> np.ndarray:
    """Number of objects of each image; see `difficulty.object_count`."""
    expected = "boxes (N, M, 4) or classes (N, M), a list of N arrays, or a dict with either"
    if isinstance(labels, Mapping):
        found = [labels[name] for name in ("classes", "boxes") if name in labels]
        if not found:
            raise checks.value_error("labels", expected, sorted(map(str, labels)))
        labels = found[0]
    rows = _rows("labels", labels, expected)
    if mask is not None:
        return _masked(mask, rows)
    return np.array([_objects(row, padding, expected) for row in rows], np.float64)


def _objects(row: ArrayLike, padding: float, expected: str) -> int:
    values = np.asarray(row)
    if values.size and values.dtype.kind not in "iuf":
        raise checks.type_error("labels", expected, row)
    if values.ndim not in (1, 2):
        raise checks.value_error("labels", expected, row)
    kept = values != padding
    return int(kept.sum() if kept.ndim == 1 else kept.any(-1).sum())


def _masked(mask: ArrayLike, rows: Sequence[Any]) -> np.ndarray:
    mask = np.asarray(mask)
    sizes = {len(row) for row in rows}
    if mask.dtype != bool or mask.ndim != 2 or len(mask) != len(rows) or {mask.shape[1]} != sizes:
        expected = f"bools ({len(rows)}, M), one for each place for an object"
        raise checks.value_error("mask", expected, mask)
    return mask.sum(1).astype(np.float64)


def _rows(name: str, values: Any, expected: str) -> Sequence[Any]:
    """Returns a list, tuple or array of length N whose items are the examples."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        is_array = hasattr(values, "shape") and len(values.shape) > 0
        if not is_array:
            raise checks.type_error(name, expected, values)
    if isinstance(values, tf.RaggedTensor):
        values = list(values)
    elif not isinstance(values, (list, tuple)):
        values = np.asarray(values)
        if values.ndim == 0:
            raise checks.type_error(name, expected, values)
    if not len(values):
        raise checks.value_error(name, "at least one example", values)
    return values
