"""Lowering of Keras 3 operations (`x + y`, `keras.ops.mean(x)`) to tf_keras layers.

An operation becomes the equivalent tf_keras layer if there is one, since pruning and
quantization support layers best, and otherwise a TensorFlow function in a `TFOpLambda`.
Either has the name of the operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.interop import activations, shapes
from tfkd.interop.configs import Missing
from tfkd.interop.keras3_call import Keras3Call, is_tensor
from tfkd.keras_internals import KerasTensor

Rule = Callable[[Keras3Call], KerasTensor]


def translate(call: Keras3Call) -> KerasTensor | list[KerasTensor]:
    """Builds and calls the counterpart of a Keras 3 operation.

    Raises:
        Missing: if there is no counterpart, or none with these arguments.
    """
    name = type(call.op).__name__
    if not type(call.op).__module__.startswith("keras.src.ops.") or name not in _RULES:
        raise Missing("no counterpart for this operation")
    return _RULES[name](call._replace(args=tf.nest.map_structure(unmasked, call.args)))


def unmasked(value: Any) -> Any:
    """Drops the mask of a tensor: Keras 3 operations don't propagate masks, layers do."""
    if is_tensor(value) and getattr(value, "_keras_mask", None) is not None:
        return tf.identity(value)
    return value


# --- elementwise ------------------------------------------------------------------


def _binary(function: Any, merge: Any = None) -> Rule:
    def rule(call: Keras3Call) -> KerasTensor:
        common = _common_type(call.args) if call.dtype == "bool" else call.dtype
        left, right = (call.cast(value, common) for value in call.args)
        if merge is not None and is_tensor(left) and is_tensor(right):
            # Keras merge layers align tensors of unequal rank at the batch axis, while
            # operations broadcast from the last axis: use layers for equal ranks only.
            shapes = left.shape, right.shape
            if len(shapes[0]) == len(shapes[1]) > 1 and shapes[0][0] == shapes[1][0]:
                return call.layer(merge, [left, right])
        return call.run(function, left, right)

    return rule


def _common_type(values: tuple[Any, ...]) -> str:
    """The dtype in which two values are compared."""
    types = [tf.as_dtype(v.dtype) for v in values if is_tensor(v)]
    floats = [t for t in types if t.is_floating]
    if not floats and any(np.asarray(v).dtype.kind == "f" for v in values if not is_tensor(v)):
        return "float32"
    return max(floats or types, key=lambda t: t.size).name


def _unary(function: Any) -> Rule:
    def rule(call: Keras3Call) -> KerasTensor:
        return call.run(function, call.cast(call.x) if call.dtype != "bool" else call.x)

    return rule


def _logical(function: Any) -> Rule:
    return lambda call: call.run(function, *(call.cast(value, "bool") for value in call.args))


def _activation(name: str, **defaults: Any) -> Rule:
    def rule(call: Keras3Call) -> KerasTensor:
        for key, value in defaults.items():
            if getattr(call.op, key) != value:
                raise Missing(f"{key}={getattr(call.op, key)!r}")
        return call.layer(keras.layers.Activation, call.x, activations.counterpart(name))

    return rule


def _gelu(call: Keras3Call) -> KerasTensor:
    if not call.op.approximate:
        return call.layer(keras.layers.Activation, call.x, "gelu")
    return call.run(tf.nn.gelu, call.x, approximate=True)


def _softmax(call: Keras3Call) -> KerasTensor:
    return call.layer(keras.layers.Softmax, call.x, axis=call.one_axis())


def _clip(call: Keras3Call) -> KerasTensor:
    x, low, high = call.cast(call.x), call.op.x_min, call.op.x_max
    if low is None or high is None:
        function = tf.math.maximum if high is None else tf.math.minimum
        return call.run(function, x, low if high is None else high)
    return call.run(tf.clip_by_value, x, low, high)


def _where(call: Keras3Call) -> KerasTensor:
    condition, *values = [*call.args, *call.kwargs.values()]
    if len(values) != 2 or any(value is None for value in values):
        raise Missing("`where` without two values")
    return call.run(tf.where, call.cast(condition, "bool"), *(call.cast(v) for v in values))


# --- reductions --------------------------------------------------------------------


def _reduce(function: Any, as_result: bool = True) -> Rule:
    def rule(call: Keras3Call) -> KerasTensor:
        if getattr(call.op, "initial", None) is not None:
            raise Missing(f"initial={call.op.initial!r}")
        x = call.cast(call.x) if as_result else call.x
        return call.run(function, x, axis=call.axes(), keepdims=bool(call.op.keepdims))

    return rule


def _mean(call: Keras3Call) -> KerasTensor:
    axes = sorted(a % 4 for a in call.axes() or ())
    floating = is_tensor(call.x) and call.x.dtype == call.dtype
    if floating and len(call.x.shape) == 4 and axes == [1, 2]:
        layer, last = keras.layers.GlobalAveragePooling2D, "channels_last"
        return call.layer(layer, call.x, keepdims=bool(call.op.keepdims), data_format=last)
    return _reduce(tf.reduce_mean)(call)


def _arg(function: Any) -> Rule:
    def rule(call: Keras3Call) -> KerasTensor:
        if call.op.keepdims:
            raise Missing("keepdims=True")
        return call.run(function, call.x, axis=call.one_axis(), output_type=call.dtype)

    return rule


def _one_hot(call: Keras3Call) -> KerasTensor:
    if call.op.sparse:
        raise Missing("sparse=True")
    classes, axis = int(call.op.num_classes), call.one_axis()
    return call.run(tf.one_hot, call.x, classes, axis=axis, dtype=call.dtype)


# --- products ------------------------------------------------------------------------


def _matmul(call: Keras3Call) -> KerasTensor:
    left, right = (call.cast(value) for value in call.args)
    if min(len(left.shape), len(right.shape)) < 2:
        raise Missing("a vector")
    return call.run(tf.linalg.matmul, left, right)


@keras.saving.register_keras_serializable(package="tfkd")
class Einsum(keras.layers.Layer):
    """`tf.einsum` of several tensors, which can't be deserialized as a `TFOpLambda`.

    Args:
        equation: as in `tf.einsum`.
        kwargs: name, dtype.
    """

    def __init__(self, equation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.equation = equation

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Contracts a list of tensors."""
        return tf.einsum(self.equation, *inputs)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "equation": self.equation}


def _einsum(call: Keras3Call) -> KerasTensor:
    values = [call.cast(value) for value in call.args]
    if not all(map(is_tensor, values)):
        raise Missing("a constant factor")
    return call.layer(Einsum, values, call.op.subscripts)


def _named(rule: Callable[[Any], Rule], names: str) -> dict[str, Rule]:
    """Operations by name, each with the rule for the function of tf.math of the same name."""
    return {name: rule(getattr(tf.math, _snake(name))) for name in names.split()}


def _snake(name: str) -> str:
    """LogicalAnd → logical_and."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


_ACTIVATIONS = (
    "Sigmoid Tanh Silu Selu Softplus Softsign LogSigmoid HardSigmoid HardSilu HardTanh TanhShrink"
).split()
_SHAPES = (
    "Reshape Ravel Transpose Squeeze Concatenate Stack Split Pad Take GetItem Flip Tile Repeat "
    "Resize"
).split()
_REDUCTIONS = ("Sum", "Prod", "Max", "Min", "All", "Any", "Logsumexp")
_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
_RULES: dict[str, Rule] = {
    **{n: _binary(getattr(tf.math, n.lower()), getattr(keras.layers, n)) for n in _MERGES},
    **_named(_binary, "DivideNoNan Equal NotEqual Greater GreaterEqual Less LessEqual"),
    "Divide": _binary(tf.math.truediv),
    "TrueDivide": _binary(tf.math.truediv),
    "FloorDivide": _binary(tf.math.floordiv),
    "Mod": _binary(tf.math.floormod),
    "Power": _binary(tf.math.pow),
    "Arctan2": _binary(tf.math.atan2),
    **_named(_logical, "LogicalAnd LogicalOr LogicalXor LogicalNot"),
    **_named(_unary, "Abs Negative Square Sqrt Rsqrt Reciprocal Exp Expm1 Log Log1p Sin Cos Tan"),
    **_named(_unary, "Sinh Cosh Erf Floor Ceil Sign"),
    "Absolute": _unary(tf.math.abs),
    "Arctan": _unary(tf.math.atan),
    "Copy": _unary(tf.identity),
    "ZerosLike": _unary(tf.zeros_like),
    "OnesLike": _unary(tf.ones_like),
    "StopGradient": _unary(tf.stop_gradient),
    "Cast": lambda call: call.run(tf.cast, call.x, call.dtype),
    "Relu": lambda call: call.layer(keras.layers.ReLU, call.x),
    "Relu6": lambda call: call.layer(keras.layers.ReLU, call.x, 6.0),
    "LeakyRelu": lambda call: call.layer(
        keras.layers.LeakyReLU, call.x, alpha=float(call.op.negative_slope)
    ),
    "Elu": lambda call: call.layer(keras.layers.ELU, call.x, alpha=float(call.op.alpha)),
    "Celu": _activation("celu", alpha=1.0),
    **{name: _activation(_snake(name)) for name in _ACTIVATIONS},
    "HardShrink": _activation("hard_shrink", threshold=0.5),
    "SoftShrink": _activation("soft_shrink", threshold=0.5),
    "Squareplus": _activation("squareplus", b=4),
    "Glu": _activation("glu", axis=-1),
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LogSoftmax": lambda call: call.run(tf.nn.log_softmax, call.x, axis=call.one_axis()),
    "Clip": _clip,
    "Where": _where,
    "Mean": _mean,
    **{name: _reduce(getattr(tf, f"reduce_{name.lower()}")) for name in _REDUCTIONS},
    "Amax": _reduce(tf.reduce_max),
    "Amin": _reduce(tf.reduce_min),
    "Var": _reduce(tf.math.reduce_variance),
    "Std": _reduce(tf.math.reduce_std),
    "Argmax": _arg(tf.argmax),
    "Argmin": _arg(tf.argmin),
    "Cumsum": lambda call: call.run(tf.cumsum, call.cast(call.x), axis=call.one_axis()),
    "OneHot": _one_hot,
    "TopK": lambda call: call.run(tf.math.top_k, call.x, k=int(call.op.k), sorted=call.op.sorted),
    **{name: getattr(shapes, _snake(name)) for name in _SHAPES},
    "Swapaxes": shapes.swap_axes,
    "Moveaxis": shapes.move_axis,
    "ExpandDims": shapes.expand,
    "Unstack": lambda call: call.run(tf.unstack, call.x, num=call.op.num, axis=call.one_axis()),
    "Matmul": _matmul,
    "Einsum": _einsum,
}
