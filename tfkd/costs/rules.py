"""MAC counting rules of the layers, used by `tfkd.report.profile` and by pruning.

A rule takes a `LayerCall` and returns pairs (terms, outputs): the layer computes `outputs`
values, each a sum of `terms` products, which makes terms · outputs multiply-accumulates. An
empty tuple: no products that count. None: unknown.

Shapes are those of a batch of one, batch axis included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import keras_layers

Shape = tuple[Any, ...]  # integers, or None for an open size
Products = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer on a batch of one example.

    Attributes:
        layer: the layer.
        arguments: parameter name of `layer.call` → shapes of the tensors passed to it;
            arguments without tensors are omitted.
        outputs: the shapes of the outputs.
    """

    layer: keras.layers.Layer
    arguments: dict[str, tuple[Shape, ...]]
    outputs: tuple[Shape, ...]

    @property
    def input(self) -> Shape:
        """Shape of the first input."""
        return next(iter(self.arguments.values()))[0]

    @property
    def output(self) -> Shape:
        """Shape of the first output."""
        return self.outputs[0]


Rule = Callable[[LayerCall], "Products | None"]
_RULES: dict[type, Rule] = {}


def register(layer_class: type, rule: Rule) -> None:
    """Registers the cost rule of a layer class; a later rule replaces an earlier one.

    Args:
        layer_class: the class. The rule also applies to subclasses without their own.
        rule: `rule(call)` → pairs (terms, outputs), where the layer computes `outputs`
            values that are each a sum of `terms` products; `()` if it has no products
            that count; None if the cost is unknown.

    Raises:
        TypeError: if the class is not a Keras layer or the rule is not callable.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import report
        >>> class Scale(keras.layers.Layer):
        ...     pass
        >>> report.register(Scale, lambda call: ())
    """
    if not isinstance(layer_class, type) or not issubclass(layer_class, keras.layers.Layer):
        raise checks.type_error("layer_class", "a subclass of tf_keras.layers.Layer", layer_class)
    _RULES[layer_class] = checks.function("rule", rule)


def find(layer: keras.layers.Layer) -> Rule | None:
    """Returns the rule of the layer's class or of its nearest base class, or None."""
    for ancestor in type(layer).__mro__:
        if ancestor in _RULES:
            return _RULES[ancestor]
    return None


def size(shape: Iterable[int | None]) -> int:
    """Number of elements of a shape.

    Raises:
        ValueError: if a size is open; the cost of the layer is then unknown.
    """
    shape = tuple(shape)
    if None in shape:
        raise ValueError("open shape")
    return math.prod(d for d in shape if d is not None)


def _closed(rule: Rule) -> Rule:
    """Wraps a rule so that it returns None if a shape it needs is open."""

    def guarded(call: LayerCall) -> Products | None:
        try:
            return rule(call)
        except ValueError:
            return None

    return guarded


def _conv(call: LayerCall) -> Products:
    # kernel: (spatial..., Cin / groups, Cout)
    return ((size(call.layer.kernel.shape[:-1]), size(call.output)),)


def _transposed(call: LayerCall) -> Products:
    # kernel: (spatial..., Cout, Cin). This is the gradient of a convolution that computes
    # each input element as a sum over the spatial window and Cout.
    return ((size(call.layer.kernel.shape[:-1]), size(call.input)),)


def _depthwise(call: LayerCall) -> Products:
    # kernel: (spatial..., Cin, multiplier); each output reads a single input channel.
    return ((size(call.layer.depthwise_kernel.shape[:-2]), size(call.output)),)


def _separable(call: LayerCall) -> Products:
    depthwise, pointwise = call.layer.depthwise_kernel.shape, call.layer.pointwise_kernel.shape
    middle, filters = pointwise[-2], pointwise[-1]
    positions = size(call.output) // filters
    return ((size(depthwise[:-2]), positions * middle), (middle, positions * filters))


def _dense(call: LayerCall) -> Products:
    return ((call.layer.kernel.shape[0], size(call.output)),)


def _einsum_dense(call: LayerCall) -> Products:
    # Labels that are missing from the output are contracted; "0" stands for "...".
    left, right = call.layer.equation.replace(" ", "").replace("...", "0").split("->")
    inputs, kernel = left.split(",")
    sizes = dict(zip(kernel, call.layer.kernel.shape, strict=True))
    head, _, tail = inputs.partition("0")
    sizes |= dict(zip(head, call.input, strict=False))
    if tail:
        sizes |= dict(zip(reversed(tail), reversed(call.input), strict=False))
    summed = [sizes[label] for label in {*inputs, *kernel} - {*right, "0"}]
    return ((size(summed), size(call.output)),)


def _attention(call: LayerCall) -> Products:
    config = call.layer.get_config()
    heads, key_dim = config["num_heads"], config["key_dim"]
    value_dim = config["value_dim"] or key_dim
    query, value = call.arguments["query"][0], call.arguments["value"][0]
    key = call.arguments.get("key", (value,))[0]
    axes = config["attention_axes"] or range(1, len(query) - 1)
    axes = {axis % len(query) for axis in axes}
    targets = size(query[a] for a in axes)
    sources = size(value[a] for a in axes)
    rest = size(s for a, s in enumerate(query[:-1]) if a not in axes)
    depth = call.outputs[0][-1]
    return (
        (query[-1], rest * targets * heads * key_dim),
        (key[-1], rest * sources * heads * key_dim),
        (value[-1], rest * sources * heads * value_dim),
        (key_dim, rest * heads * targets * sources),  # scores
        (sources, rest * heads * targets * value_dim),  # weighted values
        (heads * value_dim, rest * targets * depth),
    )


def _dense_attention(call: LayerCall) -> Products:
    # Attention and AdditiveAttention: [query, value] or [query, value, key].
    query, value = call.arguments["inputs"][:2]
    pairs, depth = size(query[:-1]) * size(value[-2:-1]), size(query[-1:])
    values = (size(value[-2:-1]), size(call.output))
    if isinstance(call.layer, keras.layers.AdditiveAttention):
        # Without a scale, the scores are sums without products.
        return ((depth, pairs), values) if call.layer.use_scale else (values,)
    return ((depth, pairs), values) if call.layer.score_mode == "dot" else (values,)


def _dot(call: LayerCall) -> Products:
    axes = call.layer.axes
    first = call.arguments["inputs"][0]
    return ((size([first[axes if isinstance(axes, int) else axes[0]]]), size(call.output)),)


def _locally_connected(call: LayerCall) -> Products:
    layer = call.layer
    channels = call.input[1 if layer.data_format == "channels_first" else -1]
    return ((size([*layer.kernel_size, channels]), size(call.output)),)


def _recurrent(call: LayerCall) -> Products:
    # Each step multiplies the input and the state by a kernel for each gate.
    layer = call.layer
    gates = layer.cell.kernel.shape[-1]
    return ((size(call.input[-1:]) + layer.units, size(call.input[:-1]) * gates),)


def _bidirectional(call: LayerCall) -> Products | None:
    both: Products = ()
    for layer in (call.layer.forward_layer, call.layer.backward_layer):
        rule = find(layer)
        products = rule(dataclasses.replace(call, layer=layer)) if rule else None
        if products is None:
            return None
        both += products
    return both


def _wrapped(call: LayerCall) -> Products | None:
    # TimeDistributed and tfmot's wrappers: the shapes of the call include the time axis.
    inner = call.layer.layer
    rule = find(inner)
    if rule is not None:
        return rule(dataclasses.replace(call, layer=inner))
    return None if inner.weights or isinstance(inner, keras.Model) else ()


def _nothing(call: LayerCall) -> Products:
    return ()


_BY_RULE: dict[Rule, tuple[type, ...]] = {
    _conv: keras_layers("Conv1D Conv2D Conv3D"),
    _transposed: keras_layers("Conv1DTranspose Conv2DTranspose Conv3DTranspose"),
    _depthwise: keras_layers("DepthwiseConv1D DepthwiseConv2D"),
    _separable: keras_layers("SeparableConv1D SeparableConv2D"),
    _dense: keras_layers("Dense"),
    _einsum_dense: keras_layers("EinsumDense"),
    _attention: keras_layers("MultiHeadAttention"),
    _dense_attention: keras_layers("Attention AdditiveAttention"),
    _dot: keras_layers("Dot"),
    _locally_connected: keras_layers("LocallyConnected1D LocallyConnected2D"),
    _recurrent: keras_layers("LSTM GRU SimpleRNN"),
    _bidirectional: keras_layers("Bidirectional"),
    _wrapped: keras_layers("Wrapper"),
    # A batch normalization is folded into the preceding convolution.
    _nothing: keras_layers(
        "BatchNormalization Embedding LayerNormalization GroupNormalization Normalization PReLU "
        "StringLookup IntegerLookup TextVectorization Discretization CategoryEncoding"
    ),
}
for _rule, _classes in _BY_RULE.items():
    _RULES.update(dict.fromkeys(_classes, _closed(_rule)))

# Parts of operation types; loops and function calls may contain products.
_PRODUCTS = ("MatMul", "Conv", "Einsum", "While", "PartitionedCall")


def multiplies(operations: Iterable[tf.Operation]) -> bool:
    """True if a graph operation is, or may hide, a matrix product or a convolution."""
    return any(name in op.type for op in operations for name in _PRODUCTS)
