"""Fingerprints: content hashes (SHA-256) of data, models, functions and settings.

Cached results are reused if the fingerprint of their inputs is unchanged, so
everything that can change a result must change the fingerprint. Names that Keras
generates (`model_1`, `dense_7`) are left out: they differ between runs of one program.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd.networks.layer_parts import flat_layers

_CHUNK = 1 << 22  # bytes read at once
# Keys of Keras's configs: of layers' names, and of what changes no operation of a model.
_OF_NAMES = ("name", "inbound_nodes", "input_layers", "output_layers")
_NO_OPERATION = ("_initializer", "_regularizer", "_constraint", "trainable", "build_config")
_DEPTH = 12  # levels of nested objects and functions that are followed
# Code of these libraries is identified by name: manifests record the versions.
_LIBRARIES = ("tensorflow", "tf_keras", "keras", "numpy", "tfkd", "builtins", "functools")


def digest(value: Any) -> str:
    """SHA-256 of a value in hexadecimal, the same in every process.

    Args:
        value: arrays (their bytes, shapes and dtypes), numbers, text, dicts, lists and
            tuples of these; models (their weights, and the settings of their layers);
            functions (their code, and the values that it refers to).

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import numpy as np
        >>> from tfkd import fingerprints
        >>> first = fingerprints.digest({"x": np.arange(3)})
        >>> first == fingerprints.digest({"x": np.arange(3)})
        True
        >>> first == fingerprints.digest({"x": np.arange(3.0)})
        False
    """
    hasher = _Hasher()
    hasher.add(value, _DEPTH)
    return hasher.sha.hexdigest()


def structure(model: Any) -> str:
    """SHA-256 of the layers, shapes and connections of a model, without names and weights.

    Models of one structure take the same time.

    Args:
        model: a built `tf_keras` model that has a config.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import fingerprints
        >>> def net(units): return keras.Sequential([keras.layers.Dense(units, input_shape=(2,))])
        >>> first = fingerprints.structure(net(3))
        >>> first == fingerprints.structure(net(3)), first == fingerprints.structure(net(4))
        (True, False)
    """
    config = model.get_config()
    names: dict[str, str] = {}
    _plain_config(config, names, False)  # collects the names, which connections refer to
    shapes = [[int(size) for size in one.shape] for one in _variables(model)]
    inputs = [[str(size) for size in one.shape] for one in getattr(model, "inputs", None) or ()]
    found = [type(model).__name__, _plain_config(config, names, False), shapes, inputs]
    text = json.dumps(found, sort_keys=True, default=lambda value: type(value).__qualname__)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_config(value: Any, names: dict[str, str], naming: bool) -> Any:
    """A config with numbers for names, and without what changes no operation."""
    if isinstance(value, Mapping):
        kept = [key for key in value if not str(key).endswith(_NO_OPERATION)]
        return {key: _plain_config(value[key], names, key in _OF_NAMES) for key in kept}
    if isinstance(value, (list, tuple)):
        return [_plain_config(item, names, naming) for item in value]
    if naming and isinstance(value, str):
        return names.setdefault(value, f"#{len(names)}")
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value


class _Hasher:
    def __init__(self):
        self.sha = hashlib.sha256()
        self._known: set[int] = set()  # ids already hashed: functions may be recursive

    def text(self, *parts: Any) -> None:
        """Hashes each part with its length, so that ("ab", "c") differs from ("a", "bc")."""
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8")
            self.sha.update(f"{len(data)}:".encode())
            self.sha.update(data)

    def add(self, value: Any, depth: int) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self.text(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
            self._container(value, depth)
        elif isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            self.text("name", getattr(value, "__module__", ""), value.__name__)
        elif hasattr(value, "nested_row_splits"):
            self.add([value.flat_values, *value.nested_row_splits], depth)
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            self._array(value)
        elif depth == 0 or id(value) in self._known:
            self.text("again", type(value).__qualname__)
        else:
            self._known.add(id(value))
            self._object(value, depth - 1)

    def _container(self, value: Any, depth: int) -> None:
        kind = "dict" if isinstance(value, Mapping) else type(value).__name__
        self.text(kind, len(value))
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                self.text(key)
                self.add(value[key], depth)
        else:
            ordered = value if isinstance(value, (list, tuple)) else sorted(value, key=repr)
            for item in ordered:
                self.add(item, depth)

    def _array(self, array: Any) -> None:
        shape = tuple(int(size) for size in array.shape)
        dtype = getattr(array.dtype, "name", str(array.dtype))
        self.text("array", dtype, shape)
        if not shape:
            self._values(np.asarray(array))
            return
        if isinstance(array, np.ndarray) or not hasattr(array, "__getitem__"):
            array = np.asarray(array)
        row = max(1, int(np.prod(shape[1:])) * 8)  # bytes, at 8 bytes a number
        rows = max(1, _CHUNK // row)
        for start in range(0, shape[0], rows):
            self._values(np.asarray(array[start : start + rows]))

    def _values(self, array: np.ndarray) -> None:
        if array.dtype.kind in "OUS":
            self.text(*(v if isinstance(v, bytes) else repr(v) for v in array.reshape(-1)))
        else:
            self.sha.update(array.tobytes())

    def _object(self, value: Any, depth: int) -> None:
        if isinstance(value, functools.partial):
            self.add([value.func, value.args, value.keywords], depth)
        elif inspect.ismethod(value):
            self.add([value.__func__, value.__self__], depth)
        elif inspect.isfunction(value):
            self._function(value, depth)
        elif isinstance(value, types.CodeType):
            self._code(value, depth)
        elif _is_model(value):
            self._model(value, depth)
        elif dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            self.text(type(value).__qualname__)
            self.add(fields, depth)
        else:
            self._instance(value, depth)

    def _instance(self, value: Any, depth: int) -> None:
        cls = type(value)
        self.text(cls.__module__, cls.__qualname__)
        if cls.__module__.split(".")[0] in _LIBRARIES:
            return
        self.add(vars(value) if hasattr(value, "__dict__") else {}, depth)
        if callable(value):
            self.add(cls.__call__, depth)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        self.text("function", function.__module__, function.__qualname__)
        inner = inspect.unwrap(function)
        if str(function.__module__).split(".")[0] in _LIBRARIES:
            # Closures of one library function differ in the values that they capture.
            self.add(_cells(inner), depth)
            return
        names = sorted(_names(inner.__code__))
        used = {name: inner.__globals__[name] for name in names if name in inner.__globals__}
        held = [inner.__code__, inner.__defaults__, inner.__kwdefaults__, _cells(inner), used]
        self.add(held, depth)

    def _code(self, code: types.CodeType, depth: int) -> None:
        self.text(code.co_code, code.co_names, code.co_varnames)
        self.add(code.co_consts, depth)

    def _model(self, model: Any, depth: int) -> None:
        cls = type(model)
        self.text("model", cls.__module__, cls.__qualname__)
        if cls.__module__.split(".")[0] not in _LIBRARIES:
            self.add([getattr(cls, name, None) for name in ("call", "__call__")], depth)
        for layer in flat_layers(model):
            if not hasattr(layer, "layers"):  # the config of a nested model holds names only
                self.text(type(layer).__qualname__, _settings(layer))
        self.add([_value(variable) for variable in _variables(model)], depth)


def _cells(function: types.FunctionType) -> dict[str, Any]:
    """Values that a closure captures, by variable name."""
    found = {}
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # the enclosing function has not assigned it yet
            continue
    return found


def _names(code: types.CodeType) -> set[str]:
    """Global names that a function, or a function defined in it, may use."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_model(value: Any) -> bool:
    by_type = any(hasattr(type(value), name) for name in ("variables", "weights"))
    return by_type or any(hasattr(value, name) for name in ("variables", "signatures"))


def _variables(model: Any) -> list[Any]:
    try:
        found = list(getattr(model, "variables", None) or ())
    except ValueError:  # a model that is not built
        found = []
    if not found and getattr(model, "signatures", None):
        found = [v for name in sorted(model.signatures) for v in model.signatures[name].variables]
    return found


def _value(variable: Any) -> Any:
    # Keras lists the vocabulary table of a lookup layer among its weights.
    words = getattr(variable, "get_tensors", None)
    return np.asarray(variable) if words is None else [np.asarray(part) for part in words()]


def _settings(layer: Any) -> str:
    try:
        config = dict(layer.get_config())
    except NotImplementedError:
        return ""
    for key in ("name", "trainable"):  # neither changes what the layer computes
        config.pop(key, None)
    return json.dumps(config, sort_keys=True, default=lambda value: type(value).__qualname__)
