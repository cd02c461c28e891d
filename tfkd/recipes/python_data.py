"""Data from Python: what a function returns, as arrays in parts.

A function named as "module:function" is called without arguments and returns

- a data set of `tfkd.data`;
- examples: `(x, y)`, or a finite `tf.data.Dataset` of such pairs, batched or not, which is
  read into memory; they are split into parts;
- parts: a tuple of (train, test) or (train, validation, test), or a dict with the keys
  "train", "test" and perhaps "val", each with examples as above.

x are images (N, H, W, C), texts (N,), or other numbers (N, ...); y are class numbers (N,), or
one-hot (N, K).
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from tfkd import checks, data
from tfkd.data.dataset import stratified_split
from tfkd.data.splits import named_classes, split_labels

# A data set, its own validation part (x, y) or (x, classes, boxes), and how it was split.
Read: TypeAlias = "tuple[Any, tuple[Any, ...] | None, str]"
Pair: TypeAlias = "tuple[Any, Any]"

OWN_TEST = "test part of its own"
_SOURCES = (data.Dataset, data.TextDataset, data.DetectionDataset)
_FORMS = (
    "(x, y), a tf.data.Dataset of such pairs, a data set of tfkd.data, or (train, test) or "
    "(train, val, test) of these"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Labelled examples that are neither images nor texts: (N, ...) numbers, (N,) labels."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = ()
    name: str = "data"

    def __post_init__(self):
        labels = {}
        for part in ("train", "test"):
            x = getattr(self, f"x_{part}")
            labels[f"y_{part}"] = split_labels(
                f"y_{part}", getattr(self, f"y_{part}"), len(x), "example"
            )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            expected = f"examples like x_train, {self.x_train.shape[1:]}"
            raise checks.value_error("x_test", expected, self.x_test)
        named = named_classes(self.class_names, labels, "an example")
        for name, value in {"class_names": named, **labels}.items():
            object.__setattr__(self, name, value)


def split_off(test_fraction: float, seed: int) -> str:
    """How a test part was made, in words."""
    return f"{test_fraction:.0%} split off to test (seed {seed})"


def call(name: str) -> Any:
    """What the function "module:function" returns.

    Raises:
        ValueError: if there is no such module or function, or it fails; the message says
            why.
    """
    module_name, _, function_name = name.partition(":")
    module = import_module(module_name, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        fix = checks.near_or_all(function_name, own)
        raise checks.value_error("data", f"a function of {module_name}", function_name, fix)
    try:
        return function()
    except Exception as error:  # whatever the user's function raises
        fix = f"It says: {checks.in_short(error)}"
        expected = "a function that runs without arguments"
        raise checks.value_error("data", expected, name, fix) from error


def import_module(module_name: str, name: str) -> ModuleType:
    """A module of the user, which may be in the working folder.

    Args:
        module_name: such as "mine.layers".
        name: as the user wrote it, for messages.

    Raises:
        ValueError: if it can't be imported; the message says why.
    """
    # As `python -m` does, and the command of a package does not.
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        fix = f"Python says: {error}. Start in the folder of the module, or set PYTHONPATH."
        raise checks.value_error("module", "one that can be imported", name, fix) from error
    except Exception as error:  # whatever the user's module raises
        fix = f"It says: {checks.in_short(error)}"
        raise checks.value_error("module", "one that can be imported", name, fix) from error
    finally:
        sys.path.remove(os.getcwd())


def split(
    found: Any, name: str, test_fraction: float, seed: int, class_names: Sequence[str] = ()
) -> Read:
    """What a function returned, as a data set with its own validation part, if there is one.

    Raises:
        ValueError: if it is none of the forms of this module, or endless.
    """
    if isinstance(found, _SOURCES):
        dev = (getattr(found, "x_dev", None), getattr(found, "y_dev", None))
        return found, None if dev[0] is None else dev, OWN_TEST
    parts = _parts(found)
    if parts is None:
        x, y = _examples(found, name)
        train, test = stratified_split(y, test_fraction, seed)
        source = source_of(name, (x[train], y[train]), (x[test], y[test]), class_names)
        return source, None, split_off(test_fraction, seed)
    pairs = {part: _examples(value, f"{name}, {part}") for part, value in parts.items()}
    source = source_of(name, pairs["train"], pairs["test"])
    val = checked_part(source, *pairs["val"]) if "val" in pairs else None
    return source, val, OWN_TEST


def source_of(name: str, train: Pair, test: Pair, class_names: Sequence[str] = ()) -> Any:
    """A data set of the kind that the examples are: texts, images or other numbers.

    Raises:
        TypeError, ValueError: if the examples don't make one.
    """
    arrays = (train[0], train[1], test[0], test[1])
    try:
        if are_texts(train[0]):
            texts = [[_text(x) for x in part] for part in (train[0], test[0])]
            return data.TextDataset(
                texts[0], train[1], texts[1], test[1], class_names=tuple(class_names), name=name
            )
        kind = data.Dataset if are_images(train[0]) else Arrays
        return kind(*arrays, class_names=tuple(class_names), name=name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def checked_part(source: Any, x: Any, y: Any) -> Pair:
    """A validation part in the form of `source`, of which it is checked to be a part.

    Raises:
        TypeError, ValueError: see `source_of`; if shapes or labels are others.
    """
    name = f"{source.name}, validation part"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They were given when `source` was made.
        made = source_of(name, (source.x_train, source.y_train), (x, class_numbers(y, name)))
    return made.x_test, made.y_test


def are_images(x: np.ndarray) -> bool:
    """Whether an array is taken for images: (N, H, W, C), or integers (N, H, W)."""
    return x.ndim == 4 or (x.ndim == 3 and x.dtype.kind in "iu")


def are_texts(x: np.ndarray) -> bool:
    """Whether an array holds strings."""
    return x.dtype.kind in "US" or (x.dtype == object and isinstance(x.flat[0], (str, bytes)))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _parts(found: Any) -> dict[str, Any] | None:
    """The parts by name; None for one collection of examples."""
    if isinstance(found, Mapping):
        keys = {"train", "test"} | ({"val"} & set(found))
        if set(found) != keys:
            expected = 'a dict with "train", "test" and perhaps "val"'
            raise checks.value_error("data", expected, sorted(map(str, found)))
        return dict(found)
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
        return None
    if not all(_is_dataset(one) or (isinstance(one, tuple) and len(one) == 2) for one in found):
        return None
    names = ("train", "test") if len(found) == 2 else ("train", "val", "test")
    return dict(zip(names, found, strict=True))


def _is_dataset(value: Any) -> bool:
    import tensorflow as tf

    return isinstance(value, tf.data.Dataset)


def _examples(value: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) as arrays, y as class numbers."""
    if _is_dataset(value):
        value = _collected(value, name)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise checks.value_error("data", _FORMS, value, f"It came from {name}.")
    x, y = (np.asarray(one) for one in value)
    if x.ndim == 0 or len(x) == 0 or len(x) != len(np.atleast_1d(y)):
        expected = "as many labels as examples, and at least one"
        received = f"{name} with x {x.shape} and y {y.shape}"
        raise checks.value_error("data", expected, received)
    return x, class_numbers(y, name)


def class_numbers(y: Any, name: str) -> np.ndarray:
    """Class numbers (N,) of labels (N,), (N, 1) or one-hot (N, K); floats if they are whole."""
    y = np.asarray(y)
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.rint(y)).all():
        y = y.astype(np.int64)
    if y.ndim == 2 and y.shape[1] > 1 and (y.sum(axis=1) == 1).all() and y.max() == 1:
        return y.argmax(axis=1).astype(np.int32)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "iub":
        expected = "class numbers (N,), or one-hot labels (N, K)"
        raise checks.value_error("data", expected, y, f"They are the labels of {name}.")
    return y.astype(np.int32)


def _collected(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a data set as two arrays."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or isinstance(spec[0], (Mapping, tuple)):
        raise checks.value_error("data", "pairs (x, y)", spec, f"They came from {name}.")
    if int(dataset.cardinality()) == -1:
        fix = "Leave out its repeat()."
        raise checks.value_error("data", "a data set with an end", name, fix)
    pairs = list(dataset.as_numpy_iterator())
    if not pairs:
        raise checks.value_error("data", "a data set with examples", f"an empty one, {name}")
    # Labels of single examples are scalars, or one-hot vectors without a batch axis.
    rank = spec[1].shape.rank
    batched = rank == 2 or (rank == 1 and spec[1].shape[0] is None) or np.ndim(pairs[0][0]) == 4
    batched = batched or (rank == 1 and len(pairs[0][1]) == len(np.atleast_1d(pairs[0][0])))
    join = np.concatenate if batched else np.stack
    try:
        return join([x for x, _ in pairs]), join([y for _, y in pairs])
    except ValueError as error:
        fix = f"NumPy says: {checks.in_short(error)}"
        raise checks.value_error("data", "examples of one shape", name, fix) from error
