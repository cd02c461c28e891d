"""Example inputs as calibration and every exporter take them: arrays, dicts by name, batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks


class Input(NamedTuple):
    """One input of a model: name, shape of one example, dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def collect(
    name: str, value: Any, inputs: Sequence[Input], limit: int | None = None
) -> dict[str, np.ndarray]:
    """Gathers example inputs into one checked array for each input of a model.

    Args:
        name: the argument, for errors.
        value: an array (N, ...) for a model with one input; a dict of arrays by
            input name; or an iterable (a `tf.data.Dataset` too) of batches of
            either kind. A batch (x, y) counts as x.
        inputs: what the model takes.
        limit: read no further than this many examples; batches need no end then.

    Returns:
        {input name: (N, ...) array of the input's dtype}.

    Raises:
        TypeError: if values are of the wrong kind.
        ValueError: if there is no example, a name or shape is wrong, or a value
            is NaN or infinite.
    """
    batches = [value] if _is_batch(value) else _batches(name, value, limit)
    gathered: dict[str, list[np.ndarray]] = {spec.name: [] for spec in inputs}
    for batch in batches:
        arrays = _by_name(name, batch, inputs)
        for spec in inputs:
            gathered[spec.name].append(_array(name, arrays[spec.name], spec))
        if limit is not None and sum(map(len, gathered[inputs[0].name])) >= limit:
            break
    if not gathered[inputs[0].name] or not sum(map(len, gathered[inputs[0].name])):
        raise checks.value_error(name, "at least one example", value)
    result = {key: np.concatenate(parts)[:limit] for key, parts in gathered.items()}
    counts = {key: len(array) for key, array in result.items()}
    if len(set(counts.values())) > 1:
        raise checks.value_error(name, "as many examples for each input", counts)
    return result


def _is_batch(value: Any) -> bool:
    return isinstance(value, Mapping) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def _batches(name: str, value: Any, limit: int | None) -> Iterable[Any]:
    """Checks that `value` is an iterable, with an end where there is no limit."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise checks.type_error(
            name, "an array of inputs, a dict of them by name, or an iterable of batches", value
        )
    cardinality = getattr(value, "cardinality", None)
    endless = callable(cardinality) and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY
    if endless and limit is None:
        raise checks.value_error(
            name, "batches that come to an end", value, "Use `.take(n)` on the data set."
        )
    return value


def _by_name(name: str, batch: Any, inputs: Sequence[Input]) -> Mapping[str, Any]:
    """One batch → {input name: array}; labels are dropped."""
    if isinstance(batch, (tuple, list)) and batch:
        nested = isinstance(batch[0], (Mapping, tuple, list))
        batch = batch[0] if nested or len(inputs) == 1 else batch
    if isinstance(batch, (tuple, list)):
        if len(batch) != len(inputs):
            raise checks.value_error(name, f"{len(inputs)} arrays in each batch", len(batch))
        batch = {spec.name: array for spec, array in zip(inputs, batch, strict=True)}
    if not isinstance(batch, Mapping):
        if len(inputs) > 1:
            names = ", ".join(repr(spec.name) for spec in inputs)
            raise checks.type_error(name, f"a dict with the inputs {names}", batch)
        batch = {inputs[0].name: batch}
    wanted = {spec.name for spec in inputs}
    if set(batch) != wanted:
        raise checks.value_error(name, f"the inputs {sorted(wanted)}", sorted(map(str, batch)))
    return batch


def _array(name: str, value: Any, spec: Input) -> np.ndarray:
    """Checks one array against one input."""
    if not hasattr(value, "shape"):
        raise checks.type_error(name, f"an array for input {spec.name!r}", value)
    value = np.asarray(value)
    shown = ("batch", *(s if s >= 0 else "any" for s in spec.shape))
    fits = value.ndim == len(spec.shape) + 1 and all(
        want in (-1, got) for want, got in zip(spec.shape, value.shape[1:], strict=False)
    )
    if not fits:
        expected = f"examples of shape ({', '.join(map(str, shown))}) for input {spec.name!r}"
        raise checks.value_error(name, expected, value)
    if spec.dtype.kind == "f" and value.dtype.kind != "f":
        mend = "Scale the images as the model was trained: `dataset.preprocess(images)`."
        raise checks.type_error(name, f"float values for input {spec.name!r}", value, mend)
    if spec.dtype.kind in "iu" and value.dtype.kind not in "iu":
        raise checks.type_error(name, f"integers for input {spec.name!r}", value)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        bad = int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
        raise checks.value_error(
            name, "finite values", value, f"Example {bad} holds NaN or infinity."
        )
    return value.astype(spec.dtype, copy=False)
