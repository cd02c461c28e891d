"""The data of a curriculum, in any form that it takes, as arrays of one length."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks


def of(data: Any) -> tuple[Any, ...]:
    """Accepts (x,), (x, y), (x, y, sample_weight), x alone, or a data set of examples.

    Raises:
        TypeError, ValueError: for anything else, or a data set without an end.
    """
    if isinstance(data, tf.data.Dataset):
        return _read(data)
    expected = "(x, y), (x, y, sample_weight), or a tf.data.Dataset of examples"
    if isinstance(data, (list, tuple)):
        if not 1 <= len(data) <= 3:
            raise checks.value_error("data", expected, data)
        return tuple(data)
    if not hasattr(data, "shape") and not isinstance(data, dict):
        raise checks.type_error("data", expected, data)
    return (data,)


def _read(data: tf.data.Dataset) -> tuple[Any, ...]:
    if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise checks.value_error("data", "a data set that ends", data, "Use `.take(n)`.")
    examples = list(data.as_numpy_iterator())
    if not examples:
        raise checks.value_error("data", "at least one example", data)
    try:
        stacked = tf.nest.map_structure(lambda *values: np.stack(values), *examples)
    except ValueError as error:
        fix = f"NumPy says: {error}. Pad them; batches are made here (no `.batch`)."
        raise checks.value_error("data", "examples of one shape", data, fix) from error
    return stacked if isinstance(stacked, tuple) else (stacked,)


def count(arrays: tuple[Any, ...]) -> int:
    """How many examples they hold.

    Raises:
        TypeError: if one is no array.
        ValueError: if lengths differ or are 0.
    """
    leaves = tf.nest.flatten(arrays)
    for leaf in leaves:
        if not hasattr(leaf, "shape") or len(leaf.shape) < 1:
            raise checks.type_error("data", "arrays, the first axis that of the examples", leaf)
    counts = sorted({int(leaf.shape[0]) for leaf in leaves})
    if len(counts) != 1:
        raise checks.value_error("data", "arrays of one length", counts)
    if counts[0] == 0:
        raise checks.value_error("data", "at least one example", counts[0])
    return counts[0]
