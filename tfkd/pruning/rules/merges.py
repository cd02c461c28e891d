"""Channel rules of layers that merge tensors: sums, products, concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tf_keras as keras

from tfkd.pruning.channel_ledger import FIXED, Channels
from tfkd.pruning.rules.channel_call import ChannelCall
from tfkd.pruning.rules.registry import rule_for

layers = keras.layers


def _size(x: Channels, from_end: int) -> int:
    """Size of `x` along an axis counted from the end; 1 if the axis is missing or open."""
    return (x.shape[from_end] or 1) if len(x.shape) >= -from_end else 1


def combine(
    call: ChannelCall, inputs: Sequence[Channels], product: bool = False, is_sum: bool = True
) -> list[Channels]:
    """The output of an elementwise layer with several inputs, with broadcasting.

    Couples the channels of the inputs. The result is zero where all inputs are zero, or,
    for a product, where any of them is.
    """
    followed = [x for x in inputs if x.axis is not None]
    axes = {x.from_end for x in followed}
    if len(axes) != 1:
        for x in followed:
            call.freeze(x, f"{call.path} joins tensors whose channels are on different axes")
        return [Channels(call.shape)]
    axis: int = axes.pop()  # type: ignore[assignment]  # followed: not None
    count = max(_size(x, axis) for x in inputs)
    whole = [x for x in followed if len(x.atoms) == count]
    zeros = []
    for x in inputs:
        if _size(x, axis) != count:
            call.freeze(x, f"{call.path} broadcasts it over all channels")
            zeros.append(np.zeros(count, bool))
        else:
            zeros.append(x.zero if x.axis is not None else np.zeros(count, bool))
    if not whole:
        return [Channels(call.shape)]
    first = whole[0].atoms
    for x in inputs:
        if _size(x, axis) == count:
            atoms = x.atoms if x.axis is not None else np.full(count, FIXED)
            if is_sum and x.axis is not None:
                different = first != atoms
                call.ledger.summed.update(first[different].tolist(), atoms[different].tolist())
            call.ledger.unite(first, atoms, f"{call.path} couples it to frozen channels")
    zero = np.logical_or.reduce(zeros) if product else np.logical_and.reduce(zeros)
    return call.output(first, axis, zero)


def concatenate(call: ChannelCall, inputs: Sequence[Channels], axis: int) -> list[Channels]:
    """The output of a concatenation along `axis`."""
    axis %= len(call.shape)
    followed = [x for x in inputs if x.axis is not None]
    if not followed:
        return [Channels(call.shape)]
    if {x.axis for x in followed} != {axis}:
        if len({x.axis for x in followed}) == 1:
            # Along another axis the channels coincide, as they do in a sum.
            return combine(call, inputs)
        return call.freeze_all(f"{call.path} joins tensors whose channels are on different axes")
    parts, zeros = [], []
    for x in inputs:
        size = x.shape[axis]
        if size is None:
            return call.freeze_all(f"{call.path} joins an open shape")
        parts.append(x.atoms if x.axis is not None else np.full(size, FIXED))
        zeros.append(x.zero if x.axis is not None else np.zeros(size, bool))
    return call.output(np.concatenate(parts), axis, np.concatenate(zeros))


@rule_for(layers.Add, layers.Subtract, layers.Average, layers.Maximum, layers.Minimum)
def _sum(call: ChannelCall) -> list[Channels]:
    return combine(call, call.inputs)


@rule_for(layers.Multiply)
def _product(call: ChannelCall) -> list[Channels]:
    return combine(call, call.inputs, product=True, is_sum=False)


@rule_for(layers.Concatenate)
def _concatenate(call: ChannelCall) -> list[Channels]:
    return concatenate(call, call.inputs, call.layer.axis)
