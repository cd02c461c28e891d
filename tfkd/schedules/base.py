"""What a schedule is: one rule for numbers and tensors, and a list of classes."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import numpy as np

from tfkd import checks

# Class name -> class, for `deserialize`.
CLASSES: dict[str, type[Schedule]] = {}


class _Floats:
    """Arithmetic of a schedule on Python numbers."""

    exp = staticmethod(math.exp)
    log = staticmethod(math.log)
    cos = staticmethod(math.cos)

    @staticmethod
    def choose(condition, yes, no):
        return yes if condition else no

    @staticmethod
    def progress(step, begin, end):
        """How far `step` is from begin (0) to end (1); a jump if they are one."""
        if begin == end:
            return 1.0 if step >= end else 0.0
        return (min(max(step, begin), end) - begin) / (end - begin)


class _Tensors:
    """The same arithmetic on scalar tensors, in float32."""

    def __init__(self):
        import tensorflow as tf

        self.exp = tf.exp
        self.log = tf.math.log
        self.cos = tf.cos
        self._tf = tf

    def choose(self, condition, yes, no):
        # `where`, not `cond`: both sides are scalars, and XLA fuses it.
        tf = self._tf
        return tf.where(condition, tf.cast(yes, tf.float32), tf.cast(no, tf.float32))

    def progress(self, step, begin, end):
        """As in `_Floats`; clipped as integers, which is exact for any step."""
        tf = self._tf
        if begin == end:
            return tf.cast(step >= end, tf.float32)
        passed = tf.clip_by_value(step, begin, end) - begin
        return tf.cast(passed, tf.float32) / float(end - begin)


class Schedule:
    """Base of the schedules: `schedule(step)` → value.

    A subclass is a frozen dataclass whose fields are its arguments. It
    implements `_at(step, ops)`, where `ops` holds the arithmetic for numbers or
    for tensors, and is made known to `deserialize` with `register`.
    """

    prefix = ""  # goes before the name of the class where it is registered

    def __call__(self, step: Any) -> Any:
        """Returns the value at `step`.

        Args:
            step: Python or NumPy integer, or a scalar integer tensor or
                variable (any integer dtype).

        Returns:
            A float, or a float32 scalar tensor if `step` is a tensor.

        Raises:
            TypeError: if `step` is neither.
        """
        step, is_tensor = _step(step)
        if is_tensor:
            import tensorflow as tf

            value = tf.cast(self._at(step, _Tensors()), tf.float32)
            if value.shape.rank not in (0, None):
                raise checks.value_error("schedule", "a scalar from each step", value)
            return value
        return float(self._at(step, _Floats()))

    def _at(self, step, ops):
        raise NotImplementedError(f"{type(self).__name__} does not implement `_at(step, ops)`")

    def end_values(self) -> tuple[float, ...]:
        """Values that bound every value of the schedule; empty if not known."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal schedule, fit for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """Makes a schedule from what `get_config` returned."""
        return cls(**config)

    def _set(self, name: str, value: Any) -> None:
        # The dataclasses are frozen; arguments are made canonical once.
        object.__setattr__(self, name, value)


def _step(step: Any) -> tuple[Any, bool]:
    """Returns (step, whether it is a tensor); tensors become int64 scalars."""
    expected = "an integer, or a scalar integer tensor or variable"
    if isinstance(step, numbers.Integral) and not isinstance(step, (bool, np.bool_)):
        return int(step), False
    if isinstance(step, np.ndarray) and step.ndim == 0 and step.dtype.kind in "iu":
        return int(step), False
    if not hasattr(step, "dtype") or isinstance(step, (np.ndarray, np.generic)):
        raise checks.type_error("step", expected, step)
    import tensorflow as tf

    tensor = tf.convert_to_tensor(step)
    if not tensor.dtype.is_integer or tensor.shape.rank not in (0, None):
        raise checks.type_error("step", expected, step)
    return tf.cast(tensor, tf.int64), True


def register(cls: type[Schedule]) -> type[Schedule]:
    """Makes a subclass of `Schedule` known to `deserialize`; use it as a decorator.

    Raises:
        TypeError: if `cls` is not a dataclass that extends `Schedule`.
        ValueError: if another class has its name.
    """
    if not (isinstance(cls, type) and issubclass(cls, Schedule) and dataclasses.is_dataclass(cls)):
        raise checks.type_error("cls", "a dataclass that extends Schedule", cls)
    name = cls.prefix + cls.__name__
    known = CLASSES.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise checks.value_error("cls", "a name that no other schedule has", cls, "Rename it.")
    CLASSES[name] = cls
    return cls
