"""What an integer runtime can do with each kind of layer.

The roles follow TFLite's 8-bit specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec);
what TensorRT needs is a subset of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.keras_internals import BatchNormalizationBase, LayerScale, StochasticDepth
from tfkd.networks.batch_norm import is_per_channel
from tfkd.networks.call_graph import Call
from tfkd.quantization import moving
from tfkd.quantization.flattening.attention import HeadAttention
from tfkd.quantization.flattening.hard_swish import HardSigmoid, HardSwish
from tfkd.quantization.wrappers import WEIGHTS

layers = keras.layers

# Roles. WEIGHTED and NORM begin a unit that has one range, at its end.
INPUT, WEIGHTED, NORM, RELU = "input", "weighted", "norm", "relu"
SUM, CONCAT, POOL, SAME, COMPUTE = "sum", "concat", "pool", "same", "compute"
UNKNOWN, INTEGER = "unknown", "integer"

# Nothing at all in inference.
IDENTITIES = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    StochasticDepth,
)
# They move numbers about, or leave them out: the grid of the input is that of the output.
_SAME = (
    *IDENTITIES,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Reshape,
    layers.Flatten,
    layers.Permute,
    layers.RepeatVector,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
)
_COMPUTE = (
    layers.Multiply,
    layers.Subtract,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    layers.PReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.ReLU,  # with a threshold, a slope or another limit than 6
    layers.Normalization,
    layers.UpSampling2D,
    layers.Resizing,
    HardSigmoid,
    HardSwish,
)
_SCALINGS = (BatchNormalizationBase, LayerScale, layers.Rescaling, layers.Normalization)
_POOL = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
)
_ACTIVATIONS = ("swish", "silu", "gelu", "elu", "hard_sigmoid", "hard_swish", "leaky_relu")

# TensorFlow functions called on Keras tensors, by their canonical names.
_SAME_SYMBOLS = {
    "reshape",
    "transpose",
    "identity",
    "expand_dims",
    "squeeze",
    "stop_gradient",
    "tile",
    "split",
    "unstack",
    "slice",
    "strided_slice",
    "__operators__.getitem",
    "nn.max_pool",
    "nn.max_pool2d",
    "nn.space_to_depth",
    "nn.depth_to_space",
    "pad",
}
_SUM_SYMBOLS = {"math.add", "__operators__.add"}
_COMPUTE_SYMBOLS = {
    "math.multiply",
    "math.subtract",
    "math.maximum",
    "math.minimum",
    "math.reduce_mean",
    "nn.silu",
    "nn.swish",
    "nn.leaky_relu",
    "nn.elu",
}
_POOL_SYMBOLS = {"nn.avg_pool", "nn.avg_pool2d"}

# TFLite computes these in one range whatever comes in. Where ranges are
# symmetric, [−1, 1] holds them all.
_FIXED = {
    "softmax": (0.0, 255 / 256),
    "sigmoid": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of one layer.

    Attributes:
        role: one of the roles above.
        fixed: the range of its output, where that is known beforehand.
        closed: it ends with a ReLU of its own, so that nothing more is fused.
        why: for UNKNOWN, what is the matter with it.
    """

    role: str
    fixed: tuple[float, float] | None = None
    closed: bool = False
    why: str = ""


def kind_of(layer: Any, call: Call) -> Kind:
    """The kind of a layer of a flat model.

    Args:
        layer: the layer, without a wrapper around it.
        call: the call that it is asked for.
    """
    if isinstance(layer, layers.InputLayer):
        return Kind(INPUT)
    symbol = getattr(layer, "symbol", None)
    if hasattr(layer, "function") and type(layer).__name__ in (
        "TFOpLambda",
        "SlicingOpLambda",
        "ClassMethod",
    ):
        return _of_symbol(symbol or "")
    if type(layer) in WEIGHTS:
        return _of_weighted(layer)
    if isinstance(layer, _SCALINGS) and not is_per_channel(layer, call.reads[0].shape):
        if type(layer) is layers.Rescaling and _is_one_product(layer, call):
            return Kind(COMPUTE)
        return Kind(UNKNOWN, why="not one scale and offset for each channel of the last axis")
    if isinstance(layer, _SCALINGS) and type(layer) is not layers.Normalization:
        return Kind(NORM)
    if type(layer) is layers.ReLU and _is_plain(layer):
        return Kind(RELU)
    if type(layer) is layers.Activation:
        return _of_activation(keras.activations.serialize(layer.activation))
    if type(layer) is layers.Softmax:
        return Kind(COMPUTE, fixed=_FIXED["softmax"])
    for kinds, role in (
        ((layers.Add,), SUM),
        ((layers.Concatenate,), CONCAT),
        (_POOL, POOL),
    ):
        if type(layer) in kinds:
            return Kind(role)
    if type(layer) is HeadAttention:
        return Kind(UNKNOWN, why="scores and their softmax are computed in float")
    if _channels_first(layer):
        return Kind(UNKNOWN, why="channels come first")
    if type(layer) in (layers.UpSampling2D, layers.Resizing) and layer.interpolation == "nearest":
        return Kind(SAME)
    if type(layer) in _SAME:
        return Kind(SAME)
    if type(layer) in _COMPUTE:
        return Kind(COMPUTE)
    # A range of its own behind a fixed one would be refused by TFLite's converter.
    if len(call.reads) == 1 and not call.kwargs and moving.only_moves(layer, call.reads[0]):
        return Kind(SAME)
    return Kind(UNKNOWN, why="has no form in 8-bit integers")


def symmetric(fixed: tuple[float, float] | None) -> tuple[float, float] | None:
    """A known range as a symmetric one."""
    return None if fixed is None else (-1.0, 1.0)


def _of_weighted(layer: Any) -> Kind:
    if _channels_first(layer):
        return Kind(UNKNOWN, why="channels come first")
    name = keras.activations.serialize(layer.activation)
    if name not in ("linear", "relu", "relu6"):
        return Kind(UNKNOWN, why=f"activation {name!r} inside the layer")
    return Kind(WEIGHTED, closed=name != "linear")


def _of_activation(name: Any) -> Kind:
    if name in _FIXED:
        return Kind(COMPUTE, fixed=_FIXED[name])
    if name in ("relu", "relu6"):
        return Kind(RELU)
    if name == "linear":
        return Kind(SAME)
    if name in _ACTIVATIONS:
        return Kind(COMPUTE)
    return Kind(UNKNOWN, why=f"activation {name!r} has no form in 8-bit integers")


def _of_symbol(symbol: str) -> Kind:
    short = symbol.rpartition(".")[2]
    if symbol in ("nn.relu", "nn.relu6"):
        return Kind(RELU)
    if short in _FIXED:
        return Kind(COMPUTE, fixed=_FIXED[short])
    for symbols, role in (
        (_SAME_SYMBOLS, SAME),
        (_SUM_SYMBOLS, SUM),
        (_POOL_SYMBOLS, POOL),
        ({"concat"}, CONCAT),
    ):
        if symbol in symbols:
            return Kind(role)
    if symbol in _COMPUTE_SYMBOLS or short in ("add", "mul", "sub", "multiply", "subtract"):
        return Kind(COMPUTE)
    return Kind(UNKNOWN, why=f"function {symbol or 'unknown'!r} has no form in 8-bit integers")


def _is_plain(layer: Any) -> bool:
    limit = None if layer.max_value is None else float(layer.max_value)
    return limit in (None, 6.0) and not layer.negative_slope and not layer.threshold


def _is_one_product(layer: Any, call: Call) -> bool:
    """True for a Rescaling by an array alone, which is one operation."""
    return not np.any(layer.offset) and call.makes[0].shape == call.reads[0].shape


def _channels_first(layer: Any) -> bool:
    return getattr(layer, "data_format", None) == "channels_first"
