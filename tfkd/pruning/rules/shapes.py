"""Channel rules of layers that keep or rearrange values: pooling, padding, reshape, permute."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

from tfkd.networks.layer_parts import keras_layers
from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.kernels import channel_axis
from tfkd.pruning.rules.registry import rule_for

layers = keras.layers


# Elementwise layers with f(0) = 0.
# GaussianNoise adds noise to masked channels as well, but in training only.
@rule_for(
    *keras_layers(
        "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise "
        "ActivityRegularization"
    )
)
def _identity(call: ChannelCall) -> list[Channels]:
    return call.same(call.input)


@rule_for(layers.Masking)
def _masking(call: ChannelCall) -> list[Channels]:
    # A step is masked if all its channels equal mask_value: with 0, zero channels and
    # removed channels are equivalent.
    if call.layer.mask_value != 0:
        return call.freeze_all(f"{call.path} compares all channels with a number that is not zero")
    return call.same(call.input)


@rule_for(
    *(
        getattr(layers, f"{kind}{n}D")
        for kind in ("MaxPooling", "AveragePooling", "ZeroPadding", "Cropping", "UpSampling")
        for n in (1, 2, 3)
    )
)
def _spatial(call: ChannelCall) -> list[Channels]:
    x = call.input
    if x.axis is not None and x.axis != channel_axis(call.layer) % len(x.shape):
        return call.freeze_all(f"{call.path} works along another axis than the channels")
    return call.same(x)


@rule_for(
    *keras_layers("GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D"),
    *keras_layers("GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D"),
    tracked=True,
)
def _global(call: ChannelCall) -> list[Channels]:
    x = call.input
    axis = channel_axis(call.layer) % len(x.shape)
    if x.axis != axis:
        return call.freeze_all(f"{call.path} works along another axis than the channels")
    return call.output(x.atoms, axis if call.layer.keepdims else 1, x.zero)


@rule_for(layers.Flatten, tracked=True)
def _flatten(call: ChannelCall) -> list[Channels]:
    x = call.input
    if None in x.shape[1:]:
        return call.freeze_all(f"{call.path} flattens an open shape")
    atoms, zero = _full(x, x.atoms), _full(x, x.zero)
    if call.layer.data_format == "channels_first" and atoms.ndim > 1:
        atoms, zero = np.moveaxis(atoms, 0, -1), np.moveaxis(zero, 0, -1)
    return call.output(atoms.reshape(-1), -1, zero.reshape(-1))


def _full(x: Channels, values: np.ndarray) -> np.ndarray:
    """Broadcasts per-channel values to the shape of one example."""
    sizes = [int(size or 0) for size in x.shape]
    shape = [len(values) if axis == x.axis else 1 for axis in range(1, len(sizes))]
    return np.broadcast_to(values.reshape(shape), sizes[1:])


def regular(values: np.ndarray) -> int | None:
    """The only axis along which values differ (the last if none do); None if several do."""
    differ = [a for a in range(values.ndim) if (values != values.take([0], a)).any()]
    if len(differ) > 1:
        return None
    return differ[0] if differ else values.ndim - 1


@rule_for(layers.Reshape, tracked=True)
def _reshape(call: ChannelCall) -> list[Channels]:
    x = call.input
    if None in x.shape[1:] or None in call.shape[1:]:
        return call.freeze_all(f"{call.path} reshapes an open shape")
    atoms = _full(x, x.atoms).reshape(call.shape[1:])
    axis = regular(atoms)
    if axis is None or len(x.atoms) == 1:
        return call.freeze_all(f"{call.path} spreads channels over several axes")
    line = (0,) * axis + (slice(None),) + (0,) * (atoms.ndim - axis - 1)
    # An output channel is zero only if all of its elements are.
    others = tuple(a for a in range(atoms.ndim) if a != axis)
    zero = _full(x, x.zero).reshape(call.shape[1:]).all(others)
    if call.layer.target_shape[axis] != -1:
        call.resize("target_shape", atoms[line], axis)
    return call.output(atoms[line], axis + 1, zero)


@rule_for(layers.Permute, tracked=True)
def _permute(call: ChannelCall) -> list[Channels]:
    x = call.input
    return [x.reshaped(call.shape, 1 + call.layer.dims.index(x.axis))]


@rule_for(layers.RepeatVector, tracked=True)
def _repeat(call: ChannelCall) -> list[Channels]:
    return [call.input.reshaped(call.shape, 2)]
