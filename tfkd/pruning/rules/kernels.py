"""Channel rules of convolutions, dense layers, embeddings and normalizations."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.activations import activate
from tfkd.pruning.rules.channel_call import ChannelCall, positions
from tfkd.pruning.rules.registry import rule_for

layers = keras.layers


def channel_axis(layer: keras.layers.Layer) -> int:
    """The channel axis of a layer, given by its `data_format`; −1 if it has none."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def _finish(call: ChannelCall, atoms: np.ndarray, axis: int) -> list[Channels]:
    """The bias and activation with which all these layers end."""
    if call.layer.use_bias:
        call.weight("bias", 0, atoms, zeroed=True)
    return activate(call, call.output(atoms, axis)[0], call.layer.activation)


@rule_for(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _conv(call: ChannelCall) -> list[Channels]:
    layer, x = call.layer, call.input
    axis = channel_axis(layer)
    last = len(layer.kernel.shape) - 1  # kernel: (spatial..., Cin / groups, Cout)
    filters, groups = layer.filters, layer.groups
    call.cost("kernel", positions(call.shape, axis))
    if groups > 1 and layer.kernel.shape[-2] == 1:
        # One input channel per group is a depthwise convolution.
        out = np.repeat(call.at(x, axis), filters // groups)
        call.weight("kernel", last, out, zeroed=True)
        call.resize("groups", call.at(x, axis))
    else:
        into = call.mix(x, axis)
        out = call.filters("kernel", last, filters)
        if groups > 1:
            into = _tie_groups(call, into, groups)
            _tie_groups(call, out, groups)
        call.weight("kernel", last - 1, into)
    call.resize("filters", out)
    return _finish(call, out, axis)


def _tie_groups(call: ChannelCall, atoms: np.ndarray, groups: int) -> np.ndarray:
    """Couples the channels at the same offset of each group; returns the first group's.

    The kernel is shared by all groups along its input axis, and all groups must have the
    same number of filters.
    """
    table = atoms.reshape(groups, -1)
    for row in table[1:]:
        reason = f"{call.path} couples it to a frozen channel of another group"
        call.ledger.unite(table[0], row, reason)
    return table[0]


@rule_for(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(call: ChannelCall) -> list[Channels]:
    axis = channel_axis(call.layer)
    last = len(call.layer.kernel.shape) - 1  # kernel: (spatial..., Cout, Cin)
    call.weight("kernel", last, call.mix(call.input, axis))
    out = call.filters("kernel", last - 1, call.layer.filters)
    call.cost("kernel", positions(call.input.shape, axis))
    call.resize("filters", out)
    return _finish(call, out, axis)


@rule_for(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise(call: ChannelCall) -> list[Channels]:
    axis = channel_axis(call.layer)
    kernel = call.layer.depthwise_kernel.shape  # (spatial..., Cin, multiplier)
    into = call.at(call.input, axis)
    call.weight("depthwise_kernel", len(kernel) - 2, into, zeroed=True)
    call.cost("depthwise_kernel", positions(call.shape, axis))
    return _finish(call, np.repeat(into, kernel[-1]), axis)


@rule_for(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(call: ChannelCall) -> list[Channels]:
    axis = channel_axis(call.layer)
    depthwise, pointwise = call.layer.depthwise_kernel.shape, call.layer.pointwise_kernel.shape
    into = call.mix(call.input, axis)
    # Not zeroed: the depthwise step has no bias, so masked inputs stay zero after it.
    call.weight("depthwise_kernel", len(depthwise) - 2, into)
    call.weight("pointwise_kernel", len(pointwise) - 2, np.repeat(into, depthwise[-1]))
    out = call.filters("pointwise_kernel", len(pointwise) - 1, call.layer.filters)
    for name in ("depthwise_kernel", "pointwise_kernel"):
        call.cost(name, positions(call.shape, axis))
    call.resize("filters", out)
    return _finish(call, out, axis)


@rule_for(layers.Dense)
def _dense(call: ChannelCall) -> list[Channels]:
    call.weight("kernel", 0, call.mix(call.input, -1))
    out = call.filters("kernel", 1, call.layer.units)
    call.cost("kernel", positions(call.shape, -1))
    call.resize("units", out)
    return _finish(call, out, -1)


@rule_for(layers.Embedding)
def _embedding(call: ChannelCall) -> list[Channels]:
    call.freeze(call.input, f"{call.path} reads token ids")
    if getattr(call.layer, "sparse", False):
        return call.freeze_all(f"{call.path} is sparse")
    out = call.filters("embeddings", 1, call.layer.output_dim)
    call.resize("output_dim", out)
    return call.output(out)


@rule_for(layers.BatchNormalization, layers.experimental.SyncBatchNormalization, tracked=True)
def _batch_norm(call: ChannelCall) -> list[Channels]:
    layer, x = call.layer, call.input
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if [a % len(x.shape) for a in axes] != [x.axis]:
        return call.freeze_all(f"{call.path} normalizes another axis than the channels")
    if layer.renorm:
        return call.freeze_all(f"{call.path} has statistics for renormalization")
    if layer.scale:
        call.weight("gamma", 0, x.atoms, zeroed=True)
    if layer.center:
        call.weight("beta", 0, x.atoms, zeroed=True)
    # γ(x − μ)/σ + β is zero if γ = β = 0; without γ, only if x = μ = β = 0.
    call.weight("moving_mean", 0, x.atoms, zeroed=True)
    call.weight("moving_variance", 0, x.atoms)
    out = call.same(x)[0]
    return [out.with_zero(True) if layer.scale else out]


@rule_for(layers.Normalization)
def _normalization(call: ChannelCall) -> list[Channels]:
    return call.freeze_all(f"{call.path} has a separate constant for each channel")


@rule_for(layers.LayerNormalization, layers.GroupNormalization, layers.UnitNormalization)
def _over_channels(call: ChannelCall) -> list[Channels]:
    axis = call.layer.axis
    axes = [axis] if isinstance(axis, int) else list(axis)
    x = call.input
    grouped = isinstance(call.layer, layers.GroupNormalization)
    if x.axis is not None and (grouped or x.axis in [a % len(x.shape) for a in axes]):
        return call.freeze_all(f"{call.path} takes a mean over channels")
    return call.freeze_all(f"{call.path} has a scale along another axis than the channels")
