"""Examples for scores of blocks, batch by batch and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs


class Batches:
    """Batches of `data` as tensors in the order of `model.inputs`, each with labels or None.

    Args:
        model: a functional or Sequential model.
        data: as in `choose_layers`.
        batch_size: examples at once, where `data` are arrays.
        again: it must be possible to read them more than once.

    Raises:
        TypeError, ValueError: if `data` are no such thing, or can't be read again.
    """

    def __init__(self, model: keras.Model, data: Any, batch_size: int, again: bool = False):
        self._inputs = [
            example_inputs.Input(
                name,
                tuple(-1 if size is None else size for size in tensor.shape[1:]),
                np.dtype(tensor.dtype.name),
            )
            for name, tensor in zip(model.input_names, model.inputs, strict=True)
        ]
        self._size = batch_size
        self._data, self._is_one = data, self._is_batch(data)
        if self._is_one:
            self._data = self._arrays(data)
            return
        if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
            expected = "examples, (x, y), a dict of arrays by input name, or batches of these"
            raise checks.type_error("data", expected, data)
        if again and iter(data) is data:
            mend = "Pass arrays, a list of batches or a tf.data.Dataset."
            raise checks.type_error("data", "batches that can be read again", data, mend)
        cardinality = getattr(data, "cardinality", None)
        if callable(cardinality) and int(cardinality()) == tf.data.INFINITE_CARDINALITY:
            mend = "Use `.take(n)` on the data set."
            raise checks.value_error("data", "batches that come to an end", data, mend)

    def __iter__(self) -> Iterator[tuple[list[Any], Any]]:
        count = 0
        for x, y in self._parts():
            count += 1
            yield [tf.constant(x[spec.name]) for spec in self._inputs], y
        if not count:
            raise checks.value_error("data", "at least one example", self._data)

    def _parts(self) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        if not self._is_one:
            yield from map(self._arrays, self._data)
            return
        x, y = self._data
        for start in range(0, len(next(iter(x.values()))), self._size):
            rows = slice(start, start + self._size)
            taken = {name: array[rows] for name, array in x.items()}
            yield taken, tf.nest.map_structure(lambda a, r=rows: None if a is None else a[r], y)

    def _is_batch(self, data: Any) -> bool:
        """True for examples, with labels or without; False for batches of them."""
        if _is_array(data) or isinstance(data, Mapping):
            return True
        if not isinstance(data, (tuple, list)) or not data:
            return False
        if isinstance(data, list):
            # A list of arrays is the inputs of a model that has as many; else batches.
            return len(data) == len(self._inputs) > 1 and all(map(_is_array, data))
        # (x, y), or (x, y, weights): the weights are not used. Or one array an input.
        return len(data) in (2, 3, len(self._inputs)) and self._is_batch(data[0])

    def _arrays(self, batch: Any) -> tuple[dict[str, np.ndarray], Any]:
        """Inputs by name, checked, and labels as arrays."""
        y = None
        one_by_one = isinstance(batch, tuple) and len(self._inputs) > 1 and _is_array(batch[0])
        if isinstance(batch, tuple) and not one_by_one:
            batch, y = batch[0], batch[1] if len(batch) > 1 else None
        if isinstance(batch, (tuple, list)):
            names = [spec.name for spec in self._inputs]
            if len(batch) != len(names):
                raise checks.value_error("data", f"arrays for the inputs {names}", batch)
            batch = dict(zip(names, batch, strict=True))
        x = example_inputs.collect("data", batch, self._inputs)
        y = tf.nest.map_structure(lambda labels: None if labels is None else np.asarray(labels), y)
        examples = len(next(iter(x.values())))
        for labels in tf.nest.flatten(y):
            if labels is not None and (not labels.ndim or len(labels) != examples):
                raise checks.value_error("data", f"a label for each of {examples} examples", labels)
        return x, y


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
