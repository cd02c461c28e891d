"""Results again from their JSON values: `restored`, the inverse of `plain`."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from tfkd import checks

T = TypeVar("T")
_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def restored(kind: type[T], values: Any) -> T:
    """A dataclass again from the JSON values of its `to_dict`.

    Fields are restored by their annotations: nested dataclasses, tuples and mappings of them,
    arrays, paths; null becomes NaN where a number must be. Keys that are no fields, such as
    values that follow from the others, are ignored.

    Args:
        kind: a dataclass.
        values: JSON values, or an object of this kind already, which is returned.

    Returns:
        An object of this kind.

    Raises:
        TypeError: if `values` is neither a mapping nor an object of the kind.
        ValueError: if a field without default is missing.

    Example:
        >>> import dataclasses
        >>> from tfkd import results
        >>> @dataclasses.dataclass
        ... class Point:
        ...     x: float
        ...     names: tuple[str, ...] = ()
        >>> results.restored(Point, {"x": None, "names": ["a"], "sum": 3})
        Point(x=nan, names=('a',))
    """
    if isinstance(values, kind):
        return values
    checks.instance(kind.__name__, values, Mapping, f"the JSON values of a {kind.__name__}")
    fields = [field for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    given = {field.name: values[field.name] for field in fields if field.name in values}
    needed = [
        field.name
        for field in fields
        if field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if needed:
        expected = f"a value for {', '.join(needed)}"
        raise checks.value_error(f"JSON values of {kind.__name__}", expected, sorted(values))
    hints = _hints(kind)  # type: ignore[arg-type]
    return kind(**{name: _field(hints[name], value) for name, value in given.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _field(hint: Any, value: Any) -> Any:
    """A value in the form that its annotation asks for."""
    if isinstance(hint, typing.TypeVar) or hint is Any:
        return value
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _of_union(inner, value)
    if value is None:
        return float("nan") if hint is float else None
    if dataclasses.is_dataclass(hint):
        return restored(hint, value)  # type: ignore[arg-type]
    if hint is np.ndarray:
        return np.array(_without_null(value))
    if hint is pathlib.Path:
        return pathlib.Path(value)
    if origin in _SEQUENCES and isinstance(value, (list, tuple)):
        each = inner[:1] * len(value) if len(inner) == 1 or inner[-1] is Ellipsis else inner
        made = [_field(one, item) for one, item in zip(each, value, strict=True)]
        return made if origin is list else tuple(made)
    if isinstance(value, Mapping) and len(inner) == 2:
        return {key: _field(inner[1], item) for key, item in value.items()}
    return value


def _of_union(kinds: tuple[Any, ...], value: Any) -> Any:
    """Of several annotations that which fits a JSON value: an object, a list, or another."""
    if value is None:
        return None if type(None) in kinds else _field(float, None)
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if isinstance(value, Mapping):
            fits = dataclasses.is_dataclass(origin) or origin in (dict, collections.abc.Mapping)
        else:
            fits = isinstance(value, (list, tuple)) and (*_SEQUENCES, np.ndarray).count(origin) > 0
        if fits:
            return _field(kind, value)
    return value


def _without_null(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_null(item) for item in value]
    return float("nan") if value is None else value
