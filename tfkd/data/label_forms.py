"""Conversion and validation of label, output and mask arrays; class names to class indices."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks

_FORMS = "class numbers, one-hot rows, a 0/1 matrix, names of classes or numbers to be predicted"


_FIXES = {
    "text": "Number the classes and keep their names: `names, y = np.unique(y, "
    "return_inverse=True)`; or keras.layers.StringLookup in `dataset.map`.",
    "objects": "Make an array of numbers of them: `np.asarray(y.tolist())`.",
}


def check_numbers(argument: str, values: Any, text: bool = False) -> None:
    """Rejects labels or weights that are text or objects; nothing else is checked.

    Args:
        argument: name of `values` in messages.
        values: an array, a tensor, a tensor spec, or a Python number or string.
        text: whether text is accepted.

    Raises:
        TypeError: if the values are objects, or text that is not accepted.
    """
    kind = _kind(values)
    if kind == "objects" or (kind == "text" and not text):
        fix = _FIXES[kind] if argument == "y" else "Convert them: `.astype('float32')`."
        raise checks.type_error(argument, f"numbers, not {kind}", values, fix)


def _kind(values: Any) -> str | None:
    """Returns "text", "objects", or None for anything else, such as numbers."""
    dtype = getattr(values, "dtype", None)
    if isinstance(values, (str, bytes)) or getattr(dtype, "name", None) == "string":
        return "text"  # "string" is a dtype of TensorFlow and of pandas
    if dtype is None or hasattr(dtype, "as_numpy_dtype"):
        return None
    array = np.asarray(values)
    if array.dtype.kind not in "USO":
        return None
    flat = array.reshape(-1)
    return "text" if all(isinstance(one, (str, bytes)) for one in flat) else "objects"


def names(class_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Class names, by default "0", "1", ...; raises ValueError unless there is one per class."""
    if class_names is None:
        return tuple(map(str, range(classes)))
    is_one = isinstance(class_names, (str, bytes)) or not hasattr(class_names, "__len__")
    if is_one or len(class_names) != classes:
        raise checks.value_error("class_names", f"{classes} names, one per class", class_names)
    return tuple(_text(name) for name in class_names)


def one_hot_rows(rows: np.ndarray) -> np.ndarray:
    """(M,) bools: which rows of (M, C) are one-hot."""
    return np.isin(rows, (0, 1)).all(-1) & (rows.sum(-1) == 1)


_OWN_FUNCTION = (
    "To score by other labels, write a function that returns a number for each example: "
    "difficulty.from_function(lambda x, y: ..., x, y)."
)


def _outputs_of(values: Any, count: int) -> list[Any]:
    """The keys of the labels of several outputs, each of `count` examples; else []."""
    if isinstance(values, Mapping):
        return list(values)
    if not isinstance(values, (list, tuple)) or len(values) == count:
        return []
    return list(range(len(values))) if {np.shape(v)[:1] for v in values} == {(count,)} else []


def class_numbers(argument: str, values: Any, count: int) -> np.ndarray:
    """Class labels as int64 (N,), where no outputs are given to compare them with.

    Args:
        argument: name of `values` in messages.
        values: class numbers (N,) or (N, 1), or one-hot rows (N, C).
        count: N.

    Raises:
        TypeError, ValueError: if the values are neither, or negative.
    """
    expected = f"{count} class numbers, (N,) or (N, 1), or one-hot rows (N, C)"
    if values is None or hasattr(values, "element_spec"):
        raise checks.type_error(argument, expected, values)
    outputs, fix = _outputs_of(values, count), None
    if outputs:
        first = outputs[0]
        fix = (
            f"Pass the labels of one output, {argument}[{first!r}], and as the model a function of "
            f"x that returns this output: lambda x: model(x)[{first!r}]. {_OWN_FUNCTION}"
        )
        raise checks.type_error(argument, expected, f"labels of outputs {outputs}", fix)
    array = np.asarray(values)
    if array.dtype.kind not in "iubf":
        if array.dtype.kind in "USO":
            fix = (
                f"Number the classes: `names, {argument} = np.unique({argument}, "
                f"return_inverse=True)`. For numbers as objects: `{argument}.astype(int)`."
            )
        raise checks.type_error(argument, expected, values, fix)
    if array.ndim not in (1, 2) or len(array) != count:
        other = array.ndim > 2 and len(array) == count
        raise checks.value_error(argument, expected, array, _OWN_FUNCTION if other else None)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    elif array.ndim == 2:
        if not one_hot_rows(array).all():
            fix = f"For soft labels pass the argmax. {_OWN_FUNCTION}"
            expected = "one-hot rows, if not class numbers"
            raise checks.value_error(argument, expected, array, fix)
        array = array.argmax(1)
    bad = (array != np.rint(array)) | (array < 0) | ~np.isfinite(array)
    if bad.any():
        first = int(np.argmax(bad))
        fix = f"The label of example {first} is {array[first]}."
        if array.dtype.kind == "f":
            fix = f"{fix} {_OWN_FUNCTION}"
        raise checks.value_error(argument, "class numbers from 0", array, fix)
    return array.astype(np.int64)


def _array(argument: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise checks.value_error(argument, "an array", values, f"NumPy says: {error}") from error
    if array.dtype.name in ("bfloat16", "float16"):  # NumPy cannot compare bfloat16
        array = array.astype(np.float32)
    return array


def numbers(argument: str, values: ArrayLike) -> np.ndarray:
    """A non-empty array of numbers; 16-bit floats become float32.

    Raises:
        TypeError, ValueError: if the values are not such an array.
    """
    array = _array(argument, values)
    if array.dtype.kind not in "fiu":
        raise checks.type_error(argument, "numbers", array)
    if array.ndim == 0 or array.size == 0:
        raise checks.value_error(argument, "an array (examples, classes) of some examples", array)
    return array


def as_numbers(values: ArrayLike, class_names: Sequence[str] | None) -> np.ndarray:
    """Labels as numbers of any shape; text is looked up in the class names.

    Args:
        values: numbers, or text that is in `class_names`.
        class_names: names of the classes, or None.

    Raises:
        ValueError: for bools, objects, and text that is not a class name.
    """
    array = _array("labels", values)
    flat = array.reshape(-1)
    if array.dtype.kind in "USO" and all(isinstance(one, (str, bytes)) for one in flat):
        return _by_name(array, class_names)
    if array.dtype.kind not in "fiu":
        fixes = {
            "O": "Make an array of numbers or of text of them: `np.asarray(labels.tolist())`.",
            "b": "Write them as 0 and 1: `labels.astype(int)`.",
        }
        raise checks.value_error("labels", _FORMS, array, fixes.get(array.dtype.kind))
    return array


def _text(value: Any) -> str:
    """A name in Unicode NFC: é may be one character, or e and a combining accent."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return unicodedata.normalize("NFC", text)


def _by_name(array: np.ndarray, class_names: Any) -> np.ndarray:
    if class_names is None:
        fix = "Pass `class_names=[...]`, in the order of the outputs."
        expected = "class numbers, if the classes have no names"
        raise checks.value_error("labels", expected, array, fix)
    known = [_text(name) for name in class_names]
    numbers = {name: i for i, name in enumerate(known)}
    if len(numbers) < len(known):
        expected = "names that differ, as labels are matched by them"
        raise checks.value_error("class_names", expected, class_names)
    found = [_text(one) for one in array.reshape(-1)]
    for i, name in enumerate(found):
        if name not in numbers:
            fix = checks.near(name, known) or f"There are: {', '.join(map(repr, known[:12]))}."
            fix = f"This is the label of example {i}. {fix}"
            raise checks.value_error("labels", "names that are in `class_names`", name, fix)
    return np.array([numbers[name] for name in found], np.int64).reshape(array.shape)


def kept(mask: ArrayLike | None, lead: tuple[int, ...]) -> np.ndarray:
    """(M,) bools: the positions that the mask keeps, all without a mask."""
    if mask is None:
        return np.ones(math.prod(lead), bool)
    array = _array("mask", mask)
    if array.shape == (*lead, 1):
        array = array[..., 0]
    if array.shape not in (lead, lead[:1]) or array.dtype.kind not in "biuf":
        expected = f"0 and 1 of shape {lead[:1]}" + (f" or {lead}" if len(lead) > 1 else "")
        raise checks.value_error("mask", expected, array)
    array = array.reshape(array.shape + (1,) * (len(lead) - array.ndim)) != 0
    return np.broadcast_to(array, lead).reshape(-1)


def check_finite(argument: str, values: np.ndarray, example: Callable[[int], int]) -> None:
    """Raises ValueError for NaN or infinity and names the example.

    Args:
        argument: name of `values` in messages.
        values: (K, ...), masked positions removed.
        example: maps a row to the index of its example.
    """
    if values.dtype.kind != "f":
        return
    broken = ~np.isfinite(values.reshape(len(values), -1)).all(-1)
    if broken.any():
        row = int(np.argmax(broken))
        what = "NaN" if np.isnan(values[row]).any() else "infinity"
        fix = f"Example {example(row)} holds {what}."
        raise checks.value_error(argument, f"{argument} without NaN and infinity", values, fix)
