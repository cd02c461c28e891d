"""Argument validation with uniform error messages, and warnings at the caller's line.

Every error that tfkd raises for a bad argument says four things: the argument's
name, what was expected, what was received, and how to fix it. The checks return
the accepted value, so a constructor reads

    self.margin = checks.non_negative("margin", margin)

Nothing here imports TensorFlow, so checks stay cheap.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard, TypeVar

import numpy as np

Raised = TypeVar("Raised", bound=Exception)

MAX_REPR = 120  # characters of a value shown in a message
MAX_QUOTE = 600  # and of another's error
# Top-level packages whose frames `warn` skips to find the user's own line.
_INTERNAL = ("tfkd", "tf_keras", "tensorflow", "contextlib")


def describe(value: Any) -> str:
    """Returns a short description of `value`: shape and dtype of arrays, else repr and type."""
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    try:
        if dtype is not None and getattr(shape, "rank", 0) is None:  # a tensor in a graph
            return f"{type(value).__name__} of unknown shape and dtype {dtype}"
        if shape is not None and dtype is not None and len(tuple(shape)) > 0:
            return f"{type(value).__name__} of shape {tuple(shape)} and dtype {dtype}"
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # a broken __repr__ of a user's class must not hide the actual error
        text = "a value without a repr"
    if len(text) > MAX_REPR:
        text = text[: MAX_REPR - 3] + "..."
    return f"{text} ({type(value).__name__})"


def message(name: str, expected: str, received: Any, fix: str | None = None) -> str:
    """Formats an error message: "`name`: expected …, received …. fix"."""
    text = f"`{name}`: expected {expected}, received {describe(received)}."
    return f"{text} {fix}" if fix else text


def value_error(name: str, expected: str, received: Any, fix: str | None = None) -> ValueError:
    """Returns (does not raise) the `ValueError` for argument `name`."""
    return plain(ValueError(message(name, expected, received, fix)))


def type_error(name: str, expected: str, received: Any, fix: str | None = None) -> TypeError:
    """Returns (does not raise) the `TypeError` for argument `name`."""
    return plain(TypeError(message(name, expected, received, fix)))


def plain(error: Raised) -> Raised:
    """Returns the error, marked so that AutoGraph doesn't write a traceback into its message."""
    error.ag_pass_through = True  # type: ignore[attr-defined]
    return error


def is_number(value: Any) -> TypeGuard[float]:
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
    """Accepts one of `choices`; the error suggests close matches."""
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
    """Accepts any callable."""
    if not callable(value):
        raise type_error(name, "a callable", value)
    return value


def optional(check: Callable[..., Any], name: str, value: Any, *arguments: Any) -> Any:
    """Accepts None, and what `check(name, value, *arguments)` accepts."""
    return None if value is None else check(name, value, *arguments)


@contextlib.contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
    """Context of imports, whose ImportError says what needs the package and how to get it.

    Args:
        what: "report.classification needs scikit-learn", for the message.
        extra: the extra of tfkd that installs the package.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what}. Install it with `pip install tfkd[{extra}]`.") from error


def near(value: Any, choices: Iterable[Any], count: int = 3) -> str | None:
    """Returns "Did you mean …?" with the closest of `choices`, or None if none is close."""
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
    """Returns "Did you mean …?", or `listing` if no choice is close."""
    choices = list(choices)
    return near(value, choices) or listing(choices)


def known_name(name: str, value: str, choices: Iterable[str], where: str) -> str:
    """Accepts a layer name that exists in `where`; the error lists close matches."""
    choices = list(choices)
    if value in choices:
        return value
    expected = f"the name of a layer of {where}"
    raise value_error(name, expected, value, near_or_all(value, choices))


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the user's line: the innermost frame outside tfkd, Keras and TensorFlow."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_internal(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def _is_internal(module: str) -> bool:
    return module.split(".")[0] in _INTERNAL


def whole_model_path(callbacks: Any, of_student: bool = False) -> str | None:
    """The path to which a ModelCheckpoint in `callbacks` saves the whole model, or None.

    Args:
        callbacks: those of `fit`.
        of_student: look for a `StudentCheckpoint` instead.
    """
    if callbacks is None:
        return None
    several = getattr(callbacks, "callbacks", callbacks)
    for one in several if isinstance(several, (list, tuple)) else [several]:
        whole = getattr(one, "save_weights_only", None) is False and hasattr(one, "filepath")
        if whole and getattr(one, "of_student", False) == of_student:
            return one.filepath
    return None


def id_error(name: str, rows: int | None, where: str, received: str) -> ValueError:
    """Returns (does not raise) the `ValueError` for token ids that an Embedding does not have.

    Args:
        name: name of the data.
        rows: number of rows of the Embedding; None: not known.
        where: which Embedding it is.
        received: the ids.
    """
    numbers = "that are" if rows is None else f"from 0 to {rows - 1}, the"
    return ValueError(
        f"`{name}`: expected token ids {numbers} rows of {where}, received {received}. Give the "
        "Embedding as many rows as there are ids (input_dim), or map other ids to one of these."
    )


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
    text = ": ".join([type(error).__name__, *lines[:1]])
    return text if len(text) <= MAX_QUOTE else text[: MAX_QUOTE - 3] + "..."
