"""Argument checks with one form of message.

Every error that tfkd raises for a bad argument says four things: what the
argument is, what was expected, what was received, and how to mend it. The
checks here return the value that they accepted, so that a constructor reads

    self.margin = checks.non_negative("margin", margin)

Nothing here imports TensorFlow: a check must be cheap.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

MAX_REPR = 120


def describe(value: Any) -> str:
    """Returns a short text for `value`: its repr, cut, and type; arrays by shape."""
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    try:
        if dtype is not None and getattr(shape, "rank", 0) is None:  # a tensor in a graph
            return f"{type(value).__name__} of unknown shape and dtype {dtype}"
        if shape is not None and dtype is not None and len(tuple(shape)) > 0:
            return f"{type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # a user's own class must not hide the error that is to be told
        text = "a value without a repr"
    if len(text) > MAX_REPR:
        text = text[: MAX_REPR - 3] + "..."
    return f"{text} ({type(value).__name__})"


def message(name: str, expected: str, received: Any, mend: str | None = None) -> str:
    """Formats the one message: `name: expected …, received …. mend`."""
    text = f"`{name}`: expected {expected}, received {describe(received)}."
    return f"{text} {mend}" if mend else text


def value_error(name: str, expected: str, received: Any, mend: str | None = None) -> ValueError:
    """Returns (does not raise) the `ValueError` for argument `name`."""
    return ValueError(message(name, expected, received, mend))


def type_error(name: str, expected: str, received: Any, mend: str | None = None) -> TypeError:
    """Returns (does not raise) the `TypeError` for argument `name`."""
    return TypeError(message(name, expected, received, mend))


def is_number(value: Any) -> bool:
    """True for a real Python or NumPy scalar that is not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def finite(name: str, value: Any, expected: str = "a finite number") -> float:
    """Accepts a finite real number; returns it unchanged."""
    if not is_number(value):
        raise type_error(name, expected, value)
    if not math.isfinite(value):
        raise value_error(name, expected, value)
    return value


def positive(name: str, value: Any) -> float:
    """Accepts a finite number above 0."""
    finite(name, value, "a finite number above 0")
    if value <= 0:
        raise value_error(name, "a finite number above 0", value)
    return value


def non_negative(name: str, value: Any) -> float:
    """Accepts a finite number of at least 0."""
    finite(name, value, "a finite number of at least 0")
    if value < 0:
        raise value_error(name, "a finite number of at least 0", value)
    return value


def fraction(name: str, value: Any) -> float:
    """Accepts a number in [0, 1]."""
    finite(name, value, "a number between 0 and 1")
    if not 0 <= value <= 1:
        raise value_error(name, "a number between 0 and 1", value)
    return value


def integer(name: str, value: Any, minimum: int, expected: str) -> int:
    """Accepts a Python or NumPy integer of at least `minimum`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, (bool, np.bool_)):
        raise type_error(name, expected, value)
    if value < minimum:
        raise value_error(name, expected, value)
    return int(value)


def positive_int(name: str, value: Any) -> int:
    """Accepts an integer of at least 1."""
    return integer(name, value, 1, "an integer of at least 1")


def non_negative_int(name: str, value: Any) -> int:
    """Accepts an integer of at least 0."""
    return integer(name, value, 0, "an integer of at least 0")


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Accepts one of `choices`; a near miss is named in the error."""
    choices = tuple(choices)
    if value not in choices:
        expected = "one of " + ", ".join(repr(c) for c in choices)
        raise value_error(name, expected, value, near(value, choices))
    return value


def instance(name: str, value: Any, types: type | tuple[type, ...], expected: str) -> Any:
    """Accepts an instance of `types`, described to the user as `expected`."""
    if not isinstance(value, types):
        raise type_error(name, expected, value)
    return value


def function(name: str, value: Any) -> Any:
    """Accepts anything that can be called."""
    if not callable(value):
        raise type_error(name, "a callable", value)
    return value


def near(value: Any, choices: Iterable[Any], count: int = 3) -> str | None:
    """Returns "Did you mean …?" with the nearest of `choices`, or None."""
    names = list(dict.fromkeys(str(c) for c in choices))
    found = difflib.get_close_matches(str(value), names, n=count, cutoff=0.5)
    if not found:
        return None
    return "Did you mean " + " or ".join(repr(f) for f in found) + "?"


def listing(choices: Iterable[Any]) -> str:
    """Returns "There are: …." with the first 12 of `choices`."""
    names = [repr(c) for c in dict.fromkeys(map(str, choices))]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"There are: {', '.join(names[:12]) or 'none'}{more}."


def near_or_all(value: Any, choices: Iterable[Any]) -> str:
    """Returns "Did you mean …?", or `listing` where nothing is near."""
    choices = list(choices)
    return near(value, choices) or listing(choices)


def known_name(name: str, value: str, choices: Iterable[str], where: str) -> str:
    """Accepts a name that exists in `where`; the error lists near matches."""
    choices = list(choices)
    if value in choices:
        return value
    expected = f"the name of a layer of {where}"
    raise value_error(name, expected, value, near_or_all(value, choices))


def warn(text: str) -> None:
    """Warns once; the line that is shown is the user's own, the first outside of tfkd."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tfkd."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def whole_model_path(callbacks: Any) -> Any:
    """Where a ModelCheckpoint among Keras callbacks saves the whole model; None if none does."""
    if callbacks is None:
        return None
    several = getattr(callbacks, "callbacks", callbacks)
    for one in several if isinstance(several, (list, tuple)) else [several]:
        if getattr(one, "save_weights_only", None) is False and hasattr(one, "filepath"):
            return one.filepath
    return None


def in_short(error: Exception) -> str:
    """The kind and the first line of another's error, for a message that quotes it.

    Example:
        >>> from tfkd import checks
        >>> checks.in_short(ValueError("no such layer\\nCall arguments: ..."))
        'ValueError: no such layer'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Keras puts where before what.
    lines = [line for line in lines if not line.startswith("Exception encountered when")] or lines
    return ": ".join([type(error).__name__, *lines[:1]])
