"""Channel rules of elementwise activations: a masked channel stays zero if f(0) = 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.registry import rule_for

layers = keras.layers

# Names of elementwise functions, valid for functions of the packages in _HOMES only.
ELEMENTWISE = frozenset(
    "linear identity relu relu6 elu selu swish silu gelu tanh sigmoid hard_sigmoid softplus "
    "softsign exponential exp mish leaky_relu hard_swish hard_silu celu hard_tanh hard_shrink "
    "soft_shrink tanh_shrink log_sigmoid squareplus".split()
)
_HOMES = ("tf_keras", "keras", "tensorflow", "tfkd")
_CHANNELWISE = ("softmax", "log_softmax")
_LAYERS = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.ThresholdedReLU)


def activate(call: ChannelCall, x: Channels, function: Any) -> list[Channels]:
    """The channels of f(x), for an activation function or layer f."""
    if x.axis is None:
        return [Channels(call.shape)]
    if type(function) in _LAYERS:
        return _after(x, function.call)
    name = getattr(function, "__name__", type(function).__name__)
    home = getattr(function, "__module__", "").split(".")[0]
    if name in _CHANNELWISE and home in _HOMES:
        if x.from_end == -1:
            call.freeze(x, f"{call.path} takes a softmax over channels")
        return [x.with_zero(False)]
    if name not in ELEMENTWISE or home not in _HOMES:
        call.freeze(x, f"{call.path} applies {name!r}, which is not known to be elementwise")
        return [Channels(x.shape)]
    return _after(x, function)


def _after(x: Channels, function: Callable[..., Any]) -> list[Channels]:
    return [x if at_zero(function) == 0 else x.with_zero(False)]


def at_zero(function: Callable[..., Any]) -> float:
    """f(0) of an elementwise function of tensors, in float32."""
    with tf.init_scope():
        return float(np.asarray(function(tf.zeros((1, 1, 1, 1)))).reshape(-1)[0])


@rule_for(layers.Activation)
def _activation(call: ChannelCall) -> list[Channels]:
    return activate(call, call.input, call.layer.activation)


@rule_for(*_LAYERS)
def _activation_layer(call: ChannelCall) -> list[Channels]:
    return activate(call, call.input, call.layer)


@rule_for(layers.Softmax)
def _softmax(call: ChannelCall) -> list[Channels]:
    x = call.input
    if x.axis in (np.atleast_1d(call.layer.axis) % len(x.shape)):
        return call.freeze_all(f"{call.path} takes a softmax over channels")
    return [x.with_zero(False)]


@rule_for(layers.PReLU)
def _prelu(call: ChannelCall) -> list[Channels]:
    x = call.input
    # alpha has the shape of one example, with size 1 on `shared_axes`.
    if x.axis is not None and call.layer.alpha.shape[x.axis - 1] == len(x.atoms) > 1:
        call.weight("alpha", x.axis - 1, x.atoms)
    return call.same(x)


@rule_for(layers.Rescaling)
def _rescaling(call: ChannelCall) -> list[Channels]:
    scale, offset = np.asarray(call.layer.scale), np.asarray(call.layer.offset)
    if scale.size > 1 or offset.size > 1:
        return call.freeze_all(f"{call.path} has a separate constant for each channel")
    out = call.same(call.input)
    return out if float(offset.reshape(())) == 0 else [out[0].with_zero(False)]
