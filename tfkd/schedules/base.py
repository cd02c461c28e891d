"""Base class of schedules, evaluated on numbers, NumPy arrays and tensors, and a registry."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from tfkd import checks

if TYPE_CHECKING:
    import tensorflow as tf

# One step, or an array, tensor or variable of steps.
Step: TypeAlias = "int | np.integer | np.ndarray | tf.Tensor | tf.Variable"

# Class names and classes, for `deserialize`.
CLASSES: dict[str, type[Schedule]] = {}


class _Arrays:
    """Arithmetic of a schedule on numbers and NumPy arrays, in float64."""

    exp, log, log1p, cos = np.exp, np.log, np.log1p, np.cos
    choose, clip = staticmethod(np.where), staticmethod(np.clip)

    @staticmethod
    def progress(step, begin, end):
        """The progress of `step` from begin (0) to end (1); a jump if they are equal."""
        if begin == end:
            return np.where(step >= end, 1.0, 0.0)
        # Integers are clipped before the division, so that large steps are exact.
        return (np.clip(step, begin, end) - begin) / (end - begin)

    @staticmethod
    def apply(function, values):
        """Calls a user's function, which may accept only scalars, for each value."""
        if np.ndim(values) == 0:
            return function(np.asarray(values).item())
        each = [function(value) for value in np.ravel(values).tolist()]
        return np.reshape(each, np.shape(values))


class _Tensors:
    """The same arithmetic on tensors, in float32."""

    def __init__(self):
        import tensorflow as tf

        self.exp, self.log, self.log1p, self.cos = tf.exp, tf.math.log, tf.math.log1p, tf.cos
        self._tf = tf

    def choose(self, condition, yes, no):
        # `where` rather than `cond`: both sides are cheap, and XLA fuses it.
        tf = self._tf
        return tf.where(condition, tf.cast(yes, tf.float32), tf.cast(no, tf.float32))

    def clip(self, value, low, high):
        tf = self._tf
        return tf.clip_by_value(tf.cast(value, tf.float32), low, high)

    def progress(self, step, begin, end):
        """As in `_Arrays`."""
        tf = self._tf
        if begin == end:
            return tf.cast(step >= end, tf.float32)
        passed = tf.clip_by_value(step, begin, end) - begin
        return tf.cast(passed, tf.float32) / float(end - begin)

    @staticmethod
    def apply(function, values):
        """As in `_Arrays`: a function of tensors."""
        return function(values)


def evaluate(function: Callable[[Any, Any], Any], step: Step) -> float | np.ndarray | tf.Tensor:
    """Returns `function(step, ops)`, with arithmetic for the type of the step.

    Args:
        function: a function of an int64 step (a Python integer, an array or a tensor)
            and of `ops`, the arithmetic for it.
        step: as for `Schedule`.

    Raises:
        TypeError: if `step` is none of these.
        ValueError: if the shapes of the values and the steps differ.
    """
    expected = "an integer, or an array, tensor or variable of integers"
    if isinstance(step, (numbers.Integral, np.ndarray)):
        steps = np.asarray(step)
        if steps.dtype.kind not in "iu":  # a bool is an Integral
            raise checks.type_error("step", expected, step)
        if steps.ndim == 0:
            return float(function(int(steps), _Arrays))
        return np.full(steps.shape, function(steps.astype(np.int64), _Arrays), np.float64)
    if not hasattr(step, "dtype") or isinstance(step, np.generic):
        raise checks.type_error("step", expected, step)
    import tensorflow as tf

    steps = tf.convert_to_tensor(step)
    if not steps.dtype.is_integer:
        raise checks.type_error("step", expected, step)
    steps = tf.cast(steps, tf.int64)
    value = tf.cast(function(steps, _Tensors()), tf.float32)
    if value.shape.rank == 0 and steps.shape.rank != 0:  # as for a Constant
        return tf.fill(tf.shape(steps), value)
    if not value.shape.is_compatible_with(steps.shape):
        raise checks.value_error("schedule", "a scalar from each step", value)
    return value


class Schedule:
    """Base class of schedules: `schedule(step)` is the value at a step.

    A subclass is a frozen dataclass whose fields are its arguments. It implements
    `_at(step, ops)`, where `ops` has the arithmetic for numbers and arrays or for
    tensors, and is registered for `deserialize` by `register`. To be the pace of a
    curriculum it also defines `last_step`.
    """

    @overload
    def __call__(self, step: int) -> float: ...

    @overload
    def __call__(self, step: np.ndarray) -> np.ndarray: ...

    @overload
    def __call__(self, step: tf.Tensor) -> tf.Tensor: ...  # type: ignore[overload-cannot-match]

    def __call__(self, step):
        """Returns the value at each step.

        Args:
            step: integers: one (of Python or NumPy), a NumPy array, or a tensor or
                variable (any integer dtype, any shape).

        Returns:
            A float; a float64 array of the shape of an array; a float32 tensor of
            the shape of a tensor.

        Raises:
            TypeError: if `step` is none of these.

        Example:
            >>> import numpy as np
            >>> from tfkd.schedules import Linear
            >>> Linear(8.0, 2.0, 0, 100)(np.array([0, 50, 1000])).tolist()
            [8.0, 5.0, 2.0]
        """
        return evaluate(self._at, step)

    def _at(self, step, ops):
        raise NotImplementedError(f"{type(self).__name__} does not implement `_at(step, ops)`")

    @property
    def last_step(self) -> int | None:
        """The step from which the value is constant; None if it never is, or if unknown."""
        return None

    def end_values(self) -> tuple[float, ...]:
        """Values that bound all values of the schedule; empty if unknown."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of an equal schedule, as JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """Makes the schedule that `get_config` described."""
        return cls(**config)

    def _set(self, name: str, value: object) -> None:
        # The dataclasses are frozen, but their constructor normalizes arguments.
        object.__setattr__(self, name, value)


def register(cls: type[Schedule]) -> type[Schedule]:
    """Class decorator that registers a subclass of `Schedule` for `deserialize`.

    Raises:
        TypeError: if `cls` is not a dataclass that extends `Schedule`.
        ValueError: if another class of that name is registered.
    """
    if not (isinstance(cls, type) and issubclass(cls, Schedule) and dataclasses.is_dataclass(cls)):
        raise checks.type_error("cls", "a dataclass that extends Schedule", cls)
    known = CLASSES.get(cls.__name__)
    if known is not None and known.__module__ != cls.__module__:
        raise checks.value_error("cls", "a name that no other schedule has", cls, "Rename it.")
    CLASSES[cls.__name__] = cls
    return cls
