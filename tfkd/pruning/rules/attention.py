"""Channel rules of `MultiHeadAttention` and `EinsumDense`."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

from tfkd.pruning.channel_ledger import Channels
from tfkd.pruning.rules.activations import activate
from tfkd.pruning.rules.channel_call import ChannelCall, positions
from tfkd.pruning.rules.registry import rule_for

layers = keras.layers


@rule_for(layers.MultiHeadAttention)
def attention(call: ChannelCall) -> list[Channels]:
    """Model width may shrink at the inputs and the output; head count and sizes are fixed."""
    layer = call.layer
    given = dict(zip(("query", "value", "key", "attention_mask"), call.args, strict=False))
    given.update(call.kwargs)
    query, value = given["query"], given["value"]
    key = given.get("key")
    key = value if key is None else key
    plain = all(isinstance(x, Channels) and len(x.shape) == 3 for x in (query, key, value))
    # Keras has no public attributes for the projections, hence the private ones below.
    if not plain or tuple(layer._attention_axes) != (1,) or len(call.shapes) != 1:
        call.ledger.uncounted.append(call.path)
        return call.freeze_all(f"{call.path} attends over other axes than the second")
    if isinstance(given.get("attention_mask"), Channels):
        call.freeze(given["attention_mask"], f"{call.path} takes it as a mask")
    tokens = {"query": query.shape[1], "key": key.shape[1], "value": value.shape[1]}
    for name, x in (("query", query), ("key", key), ("value", value)):
        atoms = call.mix(x, -1)
        call.weight(f"_{name}_dense.kernel", 0, atoms)  # (width, heads, head size)
        call.cost(f"_{name}_dense.kernel", tokens[name])
        call.resize(f"{name}_shape", atoms, 2)
    out = call.filters("_output_dense.kernel", 2, call.width)  # (heads, head size, width)
    call.cost("_output_dense.kernel", tokens["query"])
    call.resize("output_shape", out)
    if layer._use_bias:
        call.weight("_output_dense.bias", 0, out, zeroed=True)
    if None not in tokens.values():
        # q·kᵀ costs T·S·H·key_dim, and the weighted sum of values T·S·H·value_dim.
        sizes = layer._num_heads * (layer._key_dim + layer._value_dim)
        call.ledger.fixed_macs += tokens["query"] * tokens["key"] * sizes
    return call.output(out)


@rule_for(layers.EinsumDense)
def _einsum_dense(call: ChannelCall) -> list[Channels]:
    """Equations that contract the last axis into a new one, such as "abc,cd->abd"."""
    layer, x = call.layer, call.input
    left, result = layer.equation.replace(" ", "").replace("...", "0").split("->")
    source, kernel = left.split(",")
    last = result[-1]
    outer = [label for label in result[:-1] if label in kernel]
    if x.axis is not None and x.axis != len(x.shape) - 1:
        return _frozen(call)
    if source[-1] not in kernel or source[-1] in result or last in source or outer:
        return _frozen(call)
    if len([label for label in kernel if label in source]) != 1 or len(kernel) != 2:
        return _frozen(call)
    if layer.bias_axes and layer.bias_axes != last:
        return _frozen(call)
    if "0" in source and np.size(layer.partial_output_shape) > 1:
        return _frozen(call)  # it may contain sizes of the axes that "..." stands for
    call.weight("kernel", kernel.index(source[-1]), call.mix(x, -1))
    out = call.filters("kernel", kernel.index(last), call.width)
    call.cost("kernel", positions(call.shape, -1))
    if isinstance(layer.partial_output_shape, int):
        call.resize("output_shape", out)
    else:
        call.resize("output_shape", out, len(layer.partial_output_shape) - 1)
    if layer.bias_axes:
        call.weight("bias", 0, out, zeroed=True)
    return activate(call, call.output(out)[0], layer.activation)


def _frozen(call: ChannelCall) -> list[Channels]:
    if call.layer.weights:
        call.ledger.uncounted.append(call.path)
    return call.freeze_all(f"{call.path} ({call.layer.equation}) is not a plain dense layer")
