"""Roles of layers in int8 inference: weighted, normalization, elementwise, shape-only, float.

The roles follow TFLite's 8-bit quantization specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec);
TensorRT needs a subset of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.keras_internals import BatchNormalizationBase, LayerScale, StochasticDepth
from tfkd.networks.batch_norm import is_per_channel
from tfkd.networks.call_graph import Call
from tfkd.networks.layer_parts import keras_layers
from tfkd.quantization import moving
from tfkd.quantization.flattening.attention import HeadAttention
from tfkd.quantization.flattening.hard_swish import HardSigmoid, HardSwish
from tfkd.quantization.wrappers import WEIGHTS

layers = keras.layers

# Roles. WEIGHTED, NORM and SUM start a fused kernel, which has one range, at its end. SAME
# keeps the scale and zero point of its input; INTEGER holds no floating-point values.
INPUT, WEIGHTED, NORM, RELU = "input", "weighted", "norm", "relu"
SUM, CONCAT, POOL, SAME, COMPUTE = "sum", "concat", "pool", "same", "compute"
UNKNOWN, INTEGER = "unknown", "integer"
# The range of their output may be chosen freely.
OWN_RANGE = (WEIGHTED, NORM, RELU, SUM, COMPUTE)

# The identity function in inference.
IDENTITIES = (
    *keras_layers(
        "Dropout SpatialDropout1D SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise "
        "ActivityRegularization"
    ),
    StochasticDepth,
)
# They rearrange, copy or drop values: output and input share scale and zero point.
_SAME = IDENTITIES + keras_layers(
    "MaxPooling1D MaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D Reshape Flatten Permute "
    "RepeatVector ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D UpSampling1D"
)
_COMPUTE = (
    *keras_layers("Multiply Subtract Average Maximum Minimum PReLU LeakyReLU ELU Normalization"),
    *(layers.UpSampling2D, layers.Resizing, HardSigmoid, HardSwish),
)
_SCALINGS = (BatchNormalizationBase, LayerScale, layers.Rescaling, layers.Normalization)
_POOL = keras_layers(
    "AveragePooling1D AveragePooling2D GlobalAveragePooling1D GlobalAveragePooling2D"
)
_ACTIVATIONS = ("swish", "silu", "gelu", "elu", "hard_sigmoid", "hard_swish", "leaky_relu")

_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod")
# Roles by the canonical names of TensorFlow functions that are called on Keras tensors.
_SYMBOLS = {"math.add": SUM, "__operators__.add": SUM, "concat": CONCAT}
_SYMBOLS |= {"nn.avg_pool": POOL, "nn.avg_pool2d": POOL}
_SYMBOLS |= dict.fromkeys(
    "reshape transpose identity expand_dims squeeze stop_gradient tile split unstack slice "
    "strided_slice __operators__.getitem nn.max_pool nn.max_pool2d nn.space_to_depth "
    "nn.depth_to_space pad".split(),
    SAME,
)
_SYMBOLS |= dict.fromkeys(
    "math.multiply math.subtract math.maximum math.minimum math.reduce_mean nn.silu nn.swish "
    "nn.leaky_relu nn.elu".split(),
    COMPUTE,
)

# TFLite prescribes the output ranges of these: scale 1/256 and zero point −128 for softmax
# and sigmoid, scale 1/128 and zero point 0 for tanh. A symmetric range is [−1, 1] for all.
_FIXED = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}


@dataclasses.dataclass(frozen=True)
class Kind:
    """How an integer runtime treats a layer.

    Attributes:
        role: one of the roles above.
        fixed: the output range, if the operation prescribes it.
        closed: whether the layer ends with its own ReLU, after which nothing is fused.
        clips: whether the end of its range is what clips it, so that it needs its own.
        why: for UNKNOWN, the reason why it is not supported.
    """

    role: str
    fixed: tuple[float, float] | None = None
    closed: bool = False
    clips: bool = False
    why: str = ""


def kind_of(layer: keras.layers.Layer, call: Call) -> Kind:
    """The kind of a layer of a flat model.

    Args:
        layer: the layer, without its quantization wrapper.
        call: the call of the layer that is quantized.
    """
    if isinstance(layer, layers.InputLayer):
        return Kind(INPUT)
    symbol = getattr(layer, "symbol", None)
    if hasattr(layer, "function") and type(layer).__name__ in _FUNCTIONS:
        return _of_symbol(symbol or "")
    if type(layer) in WEIGHTS:
        return _of_weighted(layer)
    if type(layer) is layers.ReLU:
        return _of_relu(layer)
    if type(layer) is layers.Activation:
        return _of_activation(_activation_name(layer.activation))
    if type(layer) is layers.Softmax:
        return Kind(COMPUTE, fixed=_FIXED["softmax"])
    for kinds, role in (((layers.Add,), SUM), ((layers.Concatenate,), CONCAT), (_POOL, POOL)):
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
    if isinstance(layer, _SCALINGS) and not is_per_channel(layer, call.reads[0].shape):
        if type(layer) is layers.Rescaling and _is_one_product(layer, call):
            return Kind(COMPUTE)
        return Kind(UNKNOWN, why="not one scale and offset for each channel of the last axis")
    if type(layer) in _COMPUTE:
        return Kind(COMPUTE, clips=type(layer) is HardSigmoid)
    if isinstance(layer, _SCALINGS):
        return Kind(NORM)
    # A range of its own behind a fixed one would be refused by TFLite's converter.
    if len(call.reads) == 1 and not call.kwargs and moving.only_moves(layer, call.reads[0]):
        return Kind(SAME)
    return Kind(UNKNOWN, why="has no form in 8-bit integers")


def symmetric(fixed: tuple[float, float] | None) -> tuple[float, float] | None:
    """The symmetric range that replaces a prescribed one."""
    return None if fixed is None else (-1.0, 1.0)


def _of_weighted(layer: keras.layers.Layer) -> Kind:
    if _channels_first(layer):
        return Kind(UNKNOWN, why="channels come first")
    name = _activation_name(layer.activation)
    if name not in ("linear", "relu", "relu6"):
        return Kind(UNKNOWN, why=f"activation {name!r} inside the layer")
    return Kind(WEIGHTED, closed=name != "linear")


def _activation_name(activation: Any) -> str:
    """Keras's name of an activation; for one that is not Keras's, a name that it does not have."""
    # Keras takes any function that is called "relu" for its own.
    if getattr(activation, "__module__", "").startswith(("tensorflow.", "tf_keras.")):
        name = keras.activations.serialize(activation)
        if isinstance(name, str):
            return name
    return f"{getattr(activation, '__name__', type(activation).__name__)}()"


def _of_activation(name: str) -> Kind:
    if name in _FIXED:
        return Kind(COMPUTE, fixed=_FIXED[name])
    if name in ("relu", "relu6"):
        return Kind(RELU)
    if name == "linear":
        return Kind(SAME)
    if name in _ACTIVATIONS:
        return Kind(COMPUTE, clips=name == "hard_sigmoid")
    return Kind(UNKNOWN, why=f"activation {name!r} has no form in 8-bit integers")


def _of_symbol(symbol: str) -> Kind:
    short = symbol.rpartition(".")[2]
    if symbol in ("nn.relu", "nn.relu6"):
        return Kind(RELU)
    if short in _FIXED:
        return Kind(COMPUTE, fixed=_FIXED[short])
    if symbol in _SYMBOLS:
        return Kind(_SYMBOLS[symbol])
    if short in ("add", "mul", "sub", "multiply", "subtract"):
        return Kind(COMPUTE)
    return Kind(UNKNOWN, why=f"function {symbol or 'unknown'!r} has no form in 8-bit integers")


def _of_relu(layer: keras.layers.Layer) -> Kind:
    limit = None if layer.max_value is None else float(layer.max_value)
    if layer.threshold:
        return Kind(UNKNOWN, why="a ReLU with a threshold has no form in 8-bit integers")
    if layer.negative_slope:
        why = "a ReLU with a slope and a maximum has no form in 8-bit integers"
        return Kind(COMPUTE) if limit is None else Kind(UNKNOWN, why=why)
    return Kind(RELU) if limit in (None, 6.0) else Kind(COMPUTE, clips=True)


def _is_one_product(layer: keras.layers.Layer, call: Call) -> bool:
    """True for a Rescaling without offset, which is a single multiplication."""
    return not np.any(layer.offset) and call.makes[0].shape == call.reads[0].shape


def _channels_first(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "data_format", None) == "channels_first"
