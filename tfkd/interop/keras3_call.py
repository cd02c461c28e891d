"""`Keras3Call`: one call of a Keras 3 operation, with helpers to build its counterpart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfkd.interop.configs import Missing
from tfkd.keras_internals import KerasTensor, TFOpLambda


class Keras3Call(NamedTuple):
    """One call of a Keras 3 operation.

    Attributes:
        op: the `keras.Operation`.
        args: its positional arguments, with tf_keras tensors in place of Keras 3 ones.
        kwargs: its keyword arguments.
        shape: shape of the (first) result.
        dtype: dtype of the (first) result.
        name: name for the new layer; None: Keras generates one.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int | None, ...]
    dtype: str
    name: str | None

    @property
    def x(self) -> Any:
        """The first argument."""
        return self.args[0]

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a TensorFlow function as a layer."""
        named = {"name": self.name} if self.name else {}
        return TFOpLambda(function, **named)(*args, **kwargs)

    def layer(self, kind: type, inputs: Any, *args: Any, **config: Any) -> Any:
        """Calls a new layer of class `kind` in the dtype of the result."""
        dtype = {"dtype": self.dtype} if tf.as_dtype(self.dtype).is_floating else {}
        return kind(*args, name=self.name, **dtype, **config)(inputs)

    def cast(self, value: Any, dtype: str | None = None) -> Any:
        """Casts a tensor or constant to `dtype`, by default that of the result."""
        dtype = dtype or self.dtype
        if not is_tensor(value):
            plain = {"float32": float, "int32": int, "bool": bool}.get(dtype)
            if plain and isinstance(value, (bool, int, float)):
                return plain(value)
            return np.asarray(value, tf.as_dtype(dtype).as_numpy_dtype)
        return value if value.dtype == dtype else tf.cast(value, dtype)

    def axes(self) -> list[int] | None:
        """The operation's `axis` as a list; None stands for all axes."""
        axis = self.op.axis
        return axis if axis is None else [int(a) for a in np.ravel(axis)]

    def one_axis(self) -> int:
        """The operation's `axis` as an integer.

        Raises:
            Missing: if it is not a single axis.
        """
        axis = self.op.axis
        if isinstance(axis, (list, tuple)) and len(axis) == 1:
            axis = axis[0]
        if not isinstance(axis, int):
            raise Missing(f"axis={self.op.axis!r}")
        return axis


def is_tensor(value: Any) -> bool:
    """True for a symbolic tf_keras tensor."""
    return isinstance(value, KerasTensor)
