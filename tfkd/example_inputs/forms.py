"""Forms of example data: distinguishes one batch from an iterable of batches; read limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks
from tfkd.example_inputs.nests import FORMS, is_array, leaves

ENDLESS = 1000  # examples read of data without a known end
_CHUNK = 256  # examples preprocessed at a time


class Batch(NamedTuple):
    """Examples with their labels and sample weights, which may be None."""

    x: Any
    y: Any = None
    sample_weight: Any = None


def split(name: str, batch: Any, count: int | None) -> Batch:
    """Splits a batch into inputs, labels and weights; see the package for tuples.

    Args:
        name: name of the argument, for messages.
        batch: one batch in any form.
        count: number of inputs of the model; None: not known.
    """
    if isinstance(batch, Batch):
        return batch
    if not isinstance(batch, (tuple, list)) or (isinstance(batch, list) and count is None):
        return Batch(batch)
    if count is not None and count > 1 and batch and is_array(batch[0]):
        return Batch(batch)
    if not 1 <= len(batch) <= 3:
        raise checks.value_error(name, "x, (x, y) or (x, y, sample_weight)", batch)
    return Batch(*map(_plain, batch))


def _plain(value: Any) -> Any:
    """Converts a list of numbers or texts to an array; returns anything else unchanged."""
    listed = isinstance(value, list) and value and not any(map(is_array, leaves(value)))
    return np.asarray(value) if listed else value


def is_batch(data: Any, count: int | None) -> bool:
    """True for examples, with or without labels; False for an iterable of batches."""
    if is_array(data) or isinstance(data, (Mapping, Batch)):
        return True
    if not isinstance(data, (tuple, list)) or not data:
        return False
    if isinstance(data, list):
        return all(map(is_array, data)) and (count is None or len(data) == count > 1)
    if count == 1 and isinstance(data[0], (tuple, list)):
        return False
    return len(data) in (1, 2, 3, count) and is_batch(data[0], count)


def opened(name: str, data: Any, part: str, prepared: bool) -> Any:
    """Examples or an iterable of batches; data sets of `tfkd.data` are converted to these."""
    if is_array(data) or isinstance(data, Mapping):
        return data
    if hasattr(data, "x_train") and hasattr(data, "x_test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}", None)
        if not prepared or not hasattr(data, "preprocess"):
            return Batch(x, y)
        chunks = (slice(start, start + _CHUNK) for start in range(0, len(x), _CHUNK))
        return (Batch(data.preprocess(x[c]), None if y is None else y[c]) for c in chunks)
    # A PyDataset of Keras 3 is not an Iterable: it only has a length and items.
    readable = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes)) or not readable or _plain(data) is not data:
        raise checks.type_error(name, FORMS, data)
    return data


def limit_of(
    name: str, data: Any, max_examples: int | None, again: bool, whole: bool
) -> int | None:
    """Number of examples to read of an iterable of batches; None: all."""
    once = isinstance(data, Iterator)
    if again and once:
        fix = "Pass arrays, a list of batches or a tf.data.Dataset."
        raise checks.type_error(name, "batches that can be read again", data, fix)
    cardinality = getattr(data, "cardinality", None)
    endless = callable(cardinality) and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY
    if endless and whole:
        fix = "Use `.take(n)` on the data set."
        raise checks.value_error(name, "batches that come to an end", data, fix)
    if max_examples is None and not whole and (endless or once):
        return ENDLESS
    return max_examples


def elements(source: Any) -> Iterable[Any]:
    """The elements of an iterable, Sequence or PyDataset, which may lack an `__iter__`."""
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):  # a Keras Sequence too
        return (source[index] for index in range(len(source)))
    return source


def in_order(name: str, data: Any) -> None:
    """Rejects a `tf.data.Dataset` that shuffles: results are matched to examples by index.

    Args:
        name: of the argument, for messages.
        data: examples in any form; only a `tf.data.Dataset` can shuffle.

    Raises:
        ValueError: if it does.
    """
    todo = [data] if hasattr(data, "_inputs") else []
    while todo:
        one = todo.pop()
        if "Shuffle" in type(one).__name__:
            fix = "Results are matched to examples by index: pass it without `.shuffle`."
            raise checks.value_error(name, "examples in a fixed order", data, fix)
        todo += one._inputs()
