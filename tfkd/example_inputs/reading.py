"""Reads and validates example data in any form, batch by batch or as whole arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.example_inputs.forms import Batch, elements, is_batch, limit_of, opened, split
from tfkd.example_inputs.inputs import Input, by_name, check_finite, checked_array
from tfkd.example_inputs.nests import FORMS, leaves, length, mapped, take
from tfkd.types import Data


def batches(
    name: str,
    data: Data,
    inputs: Sequence[Input] = (),
    *,
    batch_size: int | None = None,
    max_examples: int | None = None,
    labels: bool = False,
    part: str = "train",
    strict: bool = True,
    finite: bool = True,
    again: bool = False,
    whole: bool = False,
    ordered: bool = True,
    convert: Callable[[Any], Any] | None = None,
) -> Iterator[Batch]:
    """Reads and validates data batch by batch.

    Args:
        name: name of the argument, for messages.
        data: in a form of `tfkd.example_inputs`.
        inputs: input specs of the model; (): not known, x keeps its structure.
        batch_size: examples per batch of arrays; None: all in one batch.
        max_examples: limit, see `tfkd.example_inputs`.
        labels: whether to read labels and weights; otherwise they are ignored.
        part: "train" or "test", for a data set of `tfkd.data`.
        strict: reject integers for a float input, such as unscaled images.
        finite: reject NaN and infinity.
        again: reject data that can be read only once.
        whole: read all examples: an endless data set is an error.
        ordered: whether the order of `inputs` is the model's; otherwise lists and tuples
            of several inputs are rejected.
        convert: function applied to each array of x before the checks.

    Returns:
        Batches; x is {input name: array of its dtype} where `inputs` are known.

    Raises:
        TypeError: if values are of the wrong type.
        ValueError: if there are no examples, a name or shape is wrong, or a value is NaN
            or infinite.
    """
    count = len(inputs) or None
    checks.optional(checks.positive_int, "max_examples", max_examples)
    check = functools.partial(_checked, name, inputs, labels, strict, finite, ordered, convert)
    source = opened(name, data, part, bool(inputs) and inputs[0].dtype.kind == "f")
    if is_batch(source, count):
        found = check(split(name, source, count), 0)
        total = len(next(leaves(found.x)))
        end = min(total, max_examples or total)
        step = batch_size or end
        if total and step >= total == end:
            return iter((found,))
        parts = (take(found, slice(a, min(a + step, end))) for a in range(0, end, step or 1))
        return _read(name, parts)
    limit = limit_of(name, data, max_examples, again, whole)
    return _read(name, (split(name, one, count) for one in elements(source)), check, limit)


def collect(
    name: str, data: Data, inputs: Sequence[Input], **options: Any
) -> dict[str, np.ndarray]:
    """Reads all inputs into one array each: {input name: (N, ...)}.

    Args:
        name, data, inputs, options: as for `batches`.
    """
    parts = [batch.x for batch in batches(name, data, inputs, **options)]
    return parts[0] if len(parts) == 1 else _joined(parts, False, name)


def arrays(
    name: str,
    data: Data,
    count: int | None = None,
    *,
    labels: bool = True,
    pairs: bool = True,
    stack: bool = False,
    part: str = "train",
    prepared: bool = False,
) -> Batch:
    """All examples with labels and weights, in their own structure, without input specs.

    Arrays are returned as they are, without reading memory maps.

    Args:
        name, data, part: as for `batches`.
        count: number of inputs of the model, if known.
        labels: False to drop labels and weights unread.
        pairs: whether a tuple is (x, y) rather than the inputs, if `count` is not known.
        stack: whether the elements of a data set are single examples, not batches.
        prepared: pass the images of a data set of `tfkd.data` through its `preprocess`.

    Raises:
        TypeError, ValueError: if there are no arrays or examples, lengths differ, or a
            data set is endless.
    """
    source = opened(name, data, part, prepared)
    if not pairs and count is None and type(source) is tuple:
        found = Batch(source)
    elif is_batch(source, count) or (count is None and isinstance(source, tuple)):
        found = split(name, source, count)
    else:
        limit_of(name, data, None, again=False, whole=True)
        batches = (split(name, element, count) for element in elements(source))
        parts = [batch if labels else Batch(batch.x) for batch in batches]
        if not parts or (not stack and not sum(length(name, part) for part in parts)):
            raise checks.value_error(name, "at least one example", data)
        found = _joined(parts, stack, name)
    if not labels:
        found = Batch(found.x)
    if not length(name, found):
        raise checks.value_error(name, "at least one example", next(leaves(found.x)))
    return found


def to_verify(
    verify: bool | Data, inputs: Sequence[Input], **options: Any
) -> bool | dict[str, np.ndarray]:
    """Reads a `verify` argument: True, False, or examples.

    Args:
        verify: True, False, or examples in any form of this package.
        inputs: what the model takes.
        **options: for `collect`.

    Returns:
        True or False, or the examples as {input name: (N, ...)}.

    Raises:
        TypeError: for None, a string, or data in another form.
        ValueError: for examples that the model does not take.
    """
    if isinstance(verify, (bool, np.bool_)):
        return bool(verify)
    if verify is None or isinstance(verify, (str, bytes)):
        raise checks.type_error("verify", f"True, False, or examples: {FORMS}", verify)
    return collect("verify", verify, inputs, part="test", **options)


def _read(
    name: str, source: Iterable[Batch], check: Any = None, limit: int | None = None
) -> Iterator[Batch]:
    seen = 0
    for batch in source:
        batch = batch if check is None else check(batch, seen)
        size = len(next(leaves(batch.x)))
        if limit is not None and seen + size > limit:
            batch = take(batch, slice(limit - seen))
        if size:
            yield batch
        seen += size
        if limit is not None and seen >= limit:
            return
    if not seen:
        raise checks.value_error(name, "at least one example", "none")


# Fields of a Batch and what they are.
_PARTS = {"x": "examples", "y": "labels", "sample_weight": "weights"}


def _joined(parts: Sequence[Any], stack: bool, name: str) -> Any:
    if not isinstance(parts[0], Batch):
        return _put_together(parts, stack, name, "examples")
    fields = dict(zip(Batch._fields, zip(*parts, strict=True), strict=True))
    found = {}
    for field, what in _PARTS.items():
        given = [part for part in fields[field] if part is not None]
        if given and len(given) < len(parts):
            expected = f"{what} in every batch, or in none"
            raise checks.value_error(name, expected, f"{len(given)} of {len(parts)} with {what}")
        found[field] = _put_together(given, stack, name, what) if given else None
    return Batch(**found)


def _put_together(parts: Sequence[Any], stack: bool, name: str, what: str) -> Any:
    """Joins arrays of equal structures; `what` they are, such as "labels"."""
    join = np.stack if stack else np.concatenate

    def joined(*arrays: Any) -> np.ndarray:
        values = [np.asarray(array) for array in arrays]
        return join(values if what == "examples" else _of_one_rank(values))

    shapes = list(dict.fromkeys(tuple(map(np.shape, leaves(part))) for part in parts))
    received = [shape[0] if len(shape) == 1 else shape for shape in shapes[:2]]
    expected = f"{what} of one shape{'' if stack else ' in all batches'}"
    try:
        return mapped(joined, *parts)
    except ValueError as error:
        fix = f"NumPy says: {error}."
        if what == "examples":
            columns = zip(*map(leaves, parts), strict=False)
            kinds = [list(dict.fromkeys(np.shape(a)[not stack :] for a in one)) for one in columns]
            received = next((found[:3] for found in kinds if len(found) > 1), received)
            expected = "examples of one shape"
            fix = f"Pad or resize them to one{'; batches are made here.' if stack else '.'}"
        raise checks.value_error(name, expected, received, fix) from error
    except (KeyError, TypeError, IndexError) as error:
        fix = "Each needs arrays of the same names."
        raise checks.value_error(name, expected, received, fix) from error


def _of_one_rank(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Labels of shapes (N, ...) and (N, ..., 1), which mean the same, without the last axis."""
    least = min(array.ndim for array in arrays)
    if all(array.ndim == least or array.shape[least:] == (1,) for array in arrays):
        return [array.reshape(array.shape[:least]) for array in arrays]
    return arrays


def _checked(
    name: str,
    inputs: Sequence[Input],
    labels: bool,
    strict: bool,
    finite: bool,
    ordered: bool,
    convert: Callable[[Any], Any] | None,
    batch: Batch,
    first: int,
) -> Batch:
    """A validated batch; `first` is the index of its first example."""
    if convert is not None:
        batch = batch._replace(x=mapped(convert, batch.x))
    if not inputs:
        x = mapped(np.asarray, batch.x)
        for leaf in leaves(x) if finite else ():
            check_finite(name, leaf, first)
    else:
        given = by_name(name, batch.x, inputs, ordered)
        x = {spec.name: checked_array(name, given[spec.name], spec, strict) for spec in inputs}
        for spec in inputs:
            if finite or (spec.quantized and x[spec.name].dtype.kind == "f"):
                check_finite(name, x[spec.name], first)
    size = length(name, x)
    others = mapped(np.asarray, batch[1:]) if labels else ()
    for leaf in leaves(others):
        if not leaf.ndim or len(leaf) != size:
            raise checks.value_error(name, f"a label for each of {size} examples", leaf)
    return Batch(x, *others)
