"""Imports teacher outputs computed elsewhere into the stored form of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.teachers import output_kinds
from tfkd.teachers.layout import Layout, Slot, take
from tfkd.types import Structure

_TINY = 1e-30  # smallest probability, which keeps logarithms finite
# Relative tolerance for outputs of equal examples, which differ by batching and float16.
_CLOSE = 1e-3
_SQUASHES = {"linear": None, "softmax": "Softmax", "sigmoid": "Sigmoid"}


def predicted(
    outputs: Structure, activation: str | None, layers: Mapping[str, Any], dtype: str, views: int
) -> tuple[Layout, dict[str, np.ndarray], int]:
    """The layout, the arrays (N, views, ...) by name of their slot, and N.

    Args:
        outputs, activation, layers, dtype, views: as in `TeacherCache.from_predictions`.

    Raises:
        TypeError, ValueError: if an entry is not an array of numbers, or lengths, views or
            values are invalid.
    """
    checks.one_of("activation", activation, (None, *_SQUASHES))
    checks.one_of("dtype", dtype, ("float16", "float32"))
    checks.positive_int("views", views)
    checks.instance("layers", layers, Mapping, "a dict of layer name → array")
    leaves: list[Any] = []
    structure = [take(outputs, leaves)]
    arrays, finals, features = {}, [], {}
    for number, leaf in enumerate(leaves):
        name = f"final.{number}"
        array = _array("outputs", leaf)
        kind = activation or _seen(array, number)
        scores, squash = _scores(array, kind), _SQUASHES[kind]
        arrays[name] = _stored("outputs", scores, dtype, views)
        kept = squash if arrays[name].dtype.kind == "f" else None
        finals.append(Slot(name, arrays[name].shape[2:], arrays[name].dtype.name, kept))
    for number, (layer, value) in enumerate(layers.items()):
        name = f"feature.{number}"
        arrays[name] = _stored(f"layers[{layer!r}]", _array("layers", value), dtype, views)
        features[layer] = Slot(name, arrays[name].shape[2:], arrays[name].dtype.name)
    counts = {name: len(array) for name, array in arrays.items()}
    if not counts or len(set(counts.values())) > 1 or 0 in counts.values():
        raise checks.value_error("outputs", "as many rows in each array, at least one", counts)
    return Layout(structure, tuple(finals), features), arrays, len(arrays["final.0"])


def check_repeats(outputs: Structure, layers: Mapping[str, Any], first: np.ndarray) -> None:
    """Rejects equal examples with different outputs, since outputs are found by content.

    Args:
        outputs, layers: as in `TeacherCache.from_predictions`.
        first: (N,) the first row with the same content, for each row.

    Raises:
        ValueError: if outputs differ by more than a thousandth; both rows are named.
    """
    rows = np.flatnonzero(first != np.arange(len(first)))
    if not rows.size:
        return
    leaves: list[Any] = []
    take(outputs, leaves)
    named = [("outputs", leaf) for leaf in leaves]
    named += [(f"layers[{layer!r}]", value) for layer, value in layers.items()]
    for name, value in named:
        array = np.asarray(value)
        one, other = array[first[rows]], array[rows]
        differ = one != other
        if array.dtype.kind == "f":
            scale = max(float(np.abs(one.astype(np.float64)).max()), 1e-30)
            differ = ~np.isclose(one, other, rtol=_CLOSE, atol=_CLOSE * scale)
        bad = differ.reshape(len(rows), -1).any(1)
        if bad.any():
            row = rows[int(np.argmax(bad))]
            received = f"other numbers in row {row} than in row {first[row]}"
            fix = (
                f"x[{row}] and x[{first[row]}] have the same content, and an example is found by "
                f"its content ({int(bad.sum())} such rows). Pass each example once, or the mean of "
                "the outputs in both rows."
            )
            raise checks.value_error(name, "equal outputs for equal examples", received, fix)


def _seen(array: np.ndarray, number: int) -> str:
    """Infers the activation from the values; warns if they are probabilities."""
    evidence = output_kinds.Evidence()
    if array.dtype.kind == "f" and array.ndim > 1 and len(array):
        output_kinds.see(evidence, array)
    kinds = {"one": "softmax", "unit": "sigmoid"}
    kind = kinds.get(evidence.seen or "", "linear")
    if kind != "linear":
        rows = ", and every row sums to 1" if kind == "softmax" else ""
        checks.warn(
            f"`activation`: output {number} is all in [0, 1]{rows}, so it is taken for the "
            f"probabilities of a {kind}. Pass activation={kind!r} to say so, or "
            'activation="linear" if these are logits, or not class scores.'
        )
    return kind


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise checks.type_error(name, "arrays of numbers", value) from None
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        fix = "For a PyTorch tensor pass `tensor.cpu().numpy()`."
        raise checks.type_error(name, "arrays of numbers, (N, ...)", value, fix)
    return array


def _scores(array: np.ndarray, activation: str) -> np.ndarray:
    """Logits of probabilities: log p, or log(p / (1 − p)) for a sigmoid."""
    if activation == "linear" or array.dtype.kind != "f":
        return array
    p = array.astype(np.float64)
    in_range = ((p >= 0) & (p <= 1 + 1e-3)).all()
    sums = p.sum(-1)[(p != 0).any(-1)]  # masked positions may be zero
    sum_to_one = sums.size > 0 and np.allclose(sums, 1, atol=1e-2)
    if not in_range or (activation == "softmax" and not sum_to_one):
        expected = f"probabilities, since activation is {activation!r}"
        raise checks.value_error("outputs", expected, array, 'For logits pass activation="linear".')
    if activation == "softmax":
        return np.log(np.maximum(p, _TINY))
    return np.log(np.maximum(p, _TINY)) - np.log(np.maximum(1 - p, _TINY))


def _stored(name: str, array: np.ndarray, dtype: str, views: int) -> np.ndarray:
    if views == 1:
        array = array[:, None]
    elif array.ndim < 2 or array.shape[1] != views:
        raise checks.value_error(name, f"(N, {views}, ...), the second axis the views", array)
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    bad = ~np.isfinite(stored)
    if bad.any():
        row = int(np.argmax(bad.reshape(len(bad), -1).any(1)))
        fix = f"Row {row} holds NaN, infinity, or more than float16 can hold: check it, or pass "
        raise checks.value_error(name, f"finite {dtype} numbers", array, fix + 'dtype="float32".')
    return stored
