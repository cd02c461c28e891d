"""Runs models and functions in inference mode, and restores variables that change.

Measuring must not change a model: callables that take `training` get `training=False`,
and variables that change nevertheless are restored.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.accept import is_keras_3
from tfkd.networks.layer_parts import flat_layers, parts
from tfkd.types import Structure

# Limits of the search for models that a function refers to: levels of nesting, items of a
# container, objects in total.
_DEPTH, _MANY, _MOST = 4, 100, 5000


def knows_training(target: Any) -> bool:
    """Whether a callable takes `training`, and the argument is not bound already."""
    if isinstance(target, functools.partial):
        return "training" not in target.keywords and knows_training(target.func)
    owner = getattr(target, "__self__", None)
    if getattr(target, "__name__", "") in ("__call__", "call") and hasattr(owner, "call"):
        target = owner  # a bound method of a layer, whose own signature says nothing
    if is_keras_3(target):
        return True
    asked = [target.call] if isinstance(target, keras.layers.Layer) else [target]
    # Of a restored SavedModel only `__call__` has the signature.
    asked += [getattr(target, "__call__", None)]  # noqa: B004
    return any("training" in _parameters(one) for one in asked)


def _parameters(function: Any) -> set[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {one.name for one in found if one.kind is not one.POSITIONAL_ONLY}


def in_inference(target: Callable[..., Any]) -> Callable[..., Any]:
    """The callable with `training=False`, if it takes this argument."""
    return functools.partial(target, training=False) if knows_training(target) else target


class Compiled:
    """A TensorFlow module or a Keras layer or model, compiled to one tf.function.

    Args:
        target: a callable that takes a batch.
        x: a batch, on which the outputs of compiled function and `target` must agree.

    Raises:
        ValueError: if they do not agree, or `target` cannot be compiled.
    """

    kind = "TensorFlow"

    def __init__(self, target: Callable[..., Any], x: Structure):
        plain = in_inference(target)
        expected = plain(_tensors(x))  # eagerly, as the first call may create variables
        self._run = tf.function(plain, reduce_retracing=True)
        try:
            found = self(x)
            for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
                one, other = np.asarray(one), np.asarray(other)
                np.testing.assert_allclose(other, one, rtol=1e-2, atol=1e-3 * np.abs(one).max())
        except Exception as error:  # tracing fails in many ways
            raise ValueError("It can't be compiled.") from error

    def __call__(self, x: Structure) -> Structure:
        return tf.nest.map_structure(np.asarray, self._run(_tensors(x)))


def _tensors(x: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, x)


def prepared(target: Callable[..., Any], x: Structure) -> Callable[..., Any]:
    """A callable in inference mode; modules are compiled if possible.

    Args:
        target: a function, module, layer, or Keras 3 model.
        x: a small batch.
    """
    is_module = isinstance(target, tf.Module) or is_keras_3(target)
    if is_module and not _is_compiled(target):
        try:
            return Compiled(target, x)
        except ValueError as error:
            if str(error) != "It can't be compiled.":
                raise
    return in_inference(target)


def _is_compiled(target: Any) -> bool:
    inner = target.func if isinstance(target, functools.partial) else target
    called = getattr(inner, "__call__", None)  # noqa: B004
    return any(hasattr(one, "get_concrete_function") for one in (inner, called))


def warn_if_random(argument: str, one: np.ndarray, other: np.ndarray) -> None:
    """Warns if a callable is not deterministic.

    Dropout in training mode changes no variable, so only its outputs show it.

    Args:
        argument: name of the callable in messages.
        one: its outputs, an array.
        other: its outputs for the same examples in a second call.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    largest = np.abs(one).max(initial=0)
    if not np.isfinite(largest) or np.allclose(one, other, rtol=1e-2, atol=1e-2 * largest):
        return
    checks.warn(
        f"`{argument}` gives other outputs for the same examples in a second call, so its accuracy "
        "is that of one random sample. Dropout or noise is on: pass the model, or a function that "
        "calls it with training=False."
    )


def kind_of(target: Any) -> str:
    """The runtime of a target: "LiteRT", "TensorFlow", ...; "Python" for a plain function."""
    if _is_compiled(target):
        return "TensorFlow"
    return getattr(target, "kind", "Python")


class Unchanged:
    """Context that restores the variables of models, at the latest at its end.

    Args:
        models: name → models, or functions that may refer to models.
    """

    def __init__(self, models: Mapping[str, Iterable[Any]]):
        self._kept = {}
        for name, group in models.items():
            found: dict[int, tuple[Any, Any]] = {}
            states: set[int] = set()
            for one in group:
                for variable, is_state in _variables(one, set(), _DEPTH):
                    found[id(variable)] = (variable, _value(variable))
                    states |= {id(variable)} if is_state else set()
            self._kept[name] = (list(found.values()), states)
        self._said: set[str] = set()

    def __enter__(self) -> Unchanged:
        return self

    def __exit__(self, *error: Any) -> None:
        for name in self._kept:
            self.restore(name)

    def restore(self, name: str) -> list[Any]:
        """Restores changed variables; returns them except for states of recurrent layers."""
        kept, states = self._kept[name]
        changed = []
        for variable, value in kept:
            if not _same(_value(variable), value):
                variable.assign(value)
                changed.append(variable)
        return [one for one in changed if id(one) not in states]

    def check(self, argument: str, name: str, refuse: bool = False) -> None:
        """Restores changed variables, and warns or raises ValueError if there are any.

        Args:
            argument: name of the model in messages.
            name: key of the model.
            refuse: whether changed float variables (not counters and seeds) are an error.
        """
        changed = self.restore(name)
        if not changed:
            return
        names = [getattr(one, "path", None) or one.name for one in changed]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        text = f"{len(names)} of its variables changed while it ran ({shown})"
        again = "Their values were restored."
        if refuse and any("float" in str(one.dtype) for one in changed):
            raise ValueError(
                f"`{argument}`: expected a function that leaves its model as it is, but {text}. "
                f"It runs in training mode, so its outputs are not those of the model. {again} "
                "Pass the model, or a function that calls it with training=False."
            )
        if name not in self._said:
            self._said.add(name)
            checks.warn(
                f"`{argument}`: {text}. {again} Either it was called in training mode (pass the "
                "model, or a function that calls it with training=False), or a layer of it "
                "counts, draws random numbers or is always in training mode."
            )


def _value(variable: Any) -> Any:
    """The current value; tensors of TensorFlow share memory with the variable until it changes."""
    inner = getattr(variable, "_value", variable) if is_variable_of_keras_3(variable) else variable
    return inner.read_value() if isinstance(inner, tf.Variable) else np.array(inner)


def _same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def is_variable_of_keras_3(value: Any) -> bool:
    """True for a Keras 3 variable of any backend."""
    kinds = [kind for kind in type(value).__mro__ if kind.__module__.split(".")[0] == "keras"]
    return any(kind.__name__.endswith("Variable") for kind in kinds)


_PLAIN = (type, types.ModuleType, str, bytes, np.ndarray, tf.Tensor, type(None), int, float)


def _variables(value: Any, seen: set[int], depth: int) -> Iterator[tuple[Any, bool]]:
    """All variables that a model or function refers to, and whether each is a recurrent state."""
    if id(value) in seen or len(seen) > _MOST or isinstance(value, _PLAIN):
        return
    seen.add(id(value))
    if isinstance(value, tf.Variable) or is_variable_of_keras_3(value):
        yield value, False
    elif isinstance(value, tf.random.Generator):
        yield value.state, False
    elif isinstance(value, tf.Module) or is_keras_3(value):
        yield from _of_module(value)
    elif depth:
        held = []
        with contextlib.suppress(Exception):  # properties of arbitrary objects may raise
            held = _held(value)
        for one in held:
            yield from _variables(one, seen, depth - 1)


def _of_module(module: Any) -> Iterator[tuple[Any, bool]]:
    everything = flat_layers(module) if is_keras_3(module) else (module, *parts(module))
    states: set[int] = set()
    for part in everything:
        if getattr(part, "stateful", False):
            states |= {id(state) for state in tf.nest.flatten(getattr(part, "states", None))}
        for held in vars(part).values():
            # Keras 2 wraps the generator of a random layer in a RandomGenerator object.
            generator = getattr(held, "_generator", held)
            if isinstance(generator, tf.random.Generator):
                yield generator.state, False
    variables = []
    with contextlib.suppress(ValueError):  # a model that is not built has none yet
        variables = module.variables
    for variable in variables:
        if isinstance(variable, tf.Variable) or is_variable_of_keras_3(variable):
            yield variable, id(variable) in states


def _held(value: Any) -> list[Any]:
    """Objects that a value refers to: elements, arguments, closures, globals, attributes."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        return [*cells, *named, *(value.__defaults__ or ())]
    if hasattr(value, "python_function"):
        return [value.python_function]
    if isinstance(value, (list, tuple, set)):
        return list(value)[:_MANY]
    if isinstance(value, Mapping):
        return list(value.values())[:_MANY]
    return list(vars(value).values())[:_MANY] if hasattr(value, "__dict__") else []


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # declared, but not assigned yet
        return False
