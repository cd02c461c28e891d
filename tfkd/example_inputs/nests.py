"""Nested structures of arrays in dicts, lists and tuples: `tf.nest` without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfkd import checks
from tfkd.types import Structure, Tensor

FORMS = "an array (N, ...), a dict or list of arrays, (x, y), or batches of these"


def is_array(value: Any) -> bool:
    """True for arrays and tensors of any library."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def leaves(x: Structure | None) -> Iterator[Any]:
    """The arrays of a nested structure of dicts, lists and tuples."""
    if isinstance(x, Mapping):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        for one in x:
            yield from leaves(one)
    elif x is not None:
        yield x


def mapped(function: Callable[..., Any], *nests: Any) -> Any:
    """Maps a function over the arrays of equal nested structures; None stays None."""
    first = nests[0]
    if isinstance(first, Mapping):
        return {key: mapped(function, *(nest[key] for nest in nests)) for key in first}
    if isinstance(first, (list, tuple)):
        made = [mapped(function, *parts) for parts in zip(*nests, strict=True)]
        return type(first)(*made) if hasattr(first, "_fields") else type(first)(made)
    return None if first is None else function(*nests)


def take(x: Structure, rows: slice | Tensor) -> Any:
    """Selects examples of a nested structure, by index or slice."""
    return mapped(lambda array: array[rows], x)


def length(name: str, x: Structure) -> int:
    """Number of examples in a nested structure of arrays.

    Args:
        name: of the argument, for messages.
        x: arrays (N, ...) in any nesting.

    Raises:
        TypeError: if it holds no array, or something else.
        ValueError: if N differs.

    Example:
        >>> import numpy as np
        >>> from tfkd.example_inputs.nests import length
        >>> length("x", {"image": np.zeros((3, 8, 8)), "text": np.zeros((3, 5))})
        3
    """
    found = list(leaves(x))
    if not found or not all(is_array(leaf) and len(leaf.shape) for leaf in found):
        wrong = next((leaf for leaf in found if not is_array(leaf) or not len(leaf.shape)), x)
        raise checks.type_error(name, FORMS, wrong, "Batch a data set first: `.batch(32)`.")
    counts = [int(leaf.shape[0]) for leaf in found]
    if len(set(counts)) > 1:
        raise checks.value_error(name, "as many examples for each input and label", counts)
    return counts[0]


def as_tuples(x: Structure) -> Any:
    """The structure with tuples in place of lists, which `tf.data` takes for one tensor."""
    if isinstance(x, Mapping):
        return {key: as_tuples(value) for key, value in x.items()}
    if isinstance(x, list) or type(x) is tuple:
        return tuple(map(as_tuples, x))
    return x
