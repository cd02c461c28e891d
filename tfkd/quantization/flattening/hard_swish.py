"""Hard swish and hard sigmoid as one layer each, found where they are written out.

MobileNetV3 (Howard et al. 2019, https://arxiv.org/abs/1905.02244) replaces the
sigmoid by relu6(x + 3)/6. Keras writes that with an addition, a ReLU and a
multiplication; ranges put on each of them would cost accuracy and hide from
TFLite's converter that there is one int8 operation for all of it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import TFOpLambda
from tfkd.networks.rebuild import layers_of, nodes_of, rebuild_functional

layers = keras.layers


@keras.saving.register_keras_serializable("tfkd")
class HardSigmoid(keras.layers.Layer):
    """relu6(x + 3)/6.

    Args:
        inner: put relu6(x + 3) on the 256 levels from 0 to 6. TFLite has no operation for
            the whole, and computes its addition and multiplication in int8 only if the
            tensor between them has a range too. The levels are those of an output on
            [0, 1], so it costs nothing.

    Example:
        >>> HardSigmoid()(tf.constant([-4.0, 0.0, 4.0])).numpy().tolist()
        [0.0, 0.5, 1.0]
    """

    def __init__(self, inner: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = bool(inner)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Any shape → the same shape."""
        clipped = tf.nn.relu6(inputs + 3.0)
        if self.inner:
            clipped = tf.quantization.fake_quant_with_min_max_args(clipped, 0.0, 6.0)
        return clipped * (1.0 / 6.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "inner": self.inner}


@keras.saving.register_keras_serializable("tfkd")
class HardSwish(keras.layers.Layer):
    """x·relu6(x + 3)/6.

    Example:
        >>> HardSwish()(tf.constant([-4.0, 0.0, 4.0])).numpy().tolist()
        [-0.0, 0.0, 4.0]
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Any shape → the same shape."""
        return inputs * (tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0))


class _Match(NamedTuple):
    """A call that ends a chain: what the chain computes, and the calls before the last."""

    kind: type
    inner: tuple[Any, ...]


def fuse_hard(model: keras.Model, origins: dict[str, str]) -> tuple[keras.Model, dict[str, str]]:
    """Returns the model with one layer for each chain that writes out a hard swish or sigmoid.

    A chain stays as it is if anything else reads a tensor inside it.

    Args:
        model: a flat model.
        origins: name → path of its layers.

    Returns:
        The new model and its origins; those given if there is no chain. The new layer has
        the name of the last layer of its chain.
    """
    graph = _Graph(model)
    matches = graph.matches()
    if not matches:
        return model, origins
    inner = {id(node) for match in matches.values() for node in match.inner}
    names = _names(model, matches, inner)
    origins = {**origins, **{names[id(n)]: origins[n.layer.name] for n in names.nodes}}

    def replace(layer, call_number, args, kwargs, default):  # type: ignore[no-untyped-def]
        node = graph.calls[id(layer), call_number]
        if id(node) in inner:
            # Hands the source of the chain on to its last call.
            return _tensors((args, kwargs))[0]
        if id(node) in matches:
            return matches[id(node)].kind(name=names[id(node)])(_tensors((args, kwargs))[0])
        return default(*args, **kwargs)

    return rebuild_functional(model, replace), origins


class _Graph:
    """Who makes and who reads each tensor of a flat model."""

    def __init__(self, model: keras.Model) -> None:
        self._makers: dict[int, Any] = {}
        self._reads: Counter[int] = Counter(id(tensor) for tensor in model.outputs)
        self.calls: dict[tuple[int, int], Any] = {}
        numbers: Counter[int] = Counter()
        for node in nodes_of(model):
            self._makers.update((id(tensor), node) for tensor in tf.nest.flatten(node.outputs))
            self._reads.update(id(tensor) for tensor in node.keras_inputs)
            if not node.is_input:
                self.calls[id(node.layer), numbers[id(node.layer)]] = node
                numbers[id(node.layer)] += 1

    def matches(self) -> dict[int, _Match]:
        """The last calls of all chains, by id; those of hard swishes come first."""
        found: dict[int, _Match] = {}
        for find in (self._swish, self._sigmoid):
            used = {id(node) for match in found.values() for node in match.inner}
            for node in self.calls.values():
                chain = None if id(node) in used or id(node) in found else find(node)
                if chain is not None:
                    found[id(node)] = chain
        return found

    def _only(self, tensor: Any, reads: int = 1) -> Any:
        """The call that made a tensor, if nothing but `reads` arguments reads it; or None."""
        return self._makers[id(tensor)] if self._reads[id(tensor)] == reads else None

    def _shifted(self, node: Any) -> tuple[Any, tuple[Any, ...]] | None:
        """x and the calls of relu6(x + 3), if that is what a call ends."""
        if node is None or not _is_relu6(node):
            return None
        sum_ = self._only(node.keras_inputs[0])
        source = None if sum_ is None else _plus_three(sum_)
        return None if source is None else (source, (sum_, node))

    def _sigmoid_of(self, node: Any) -> tuple[Any, tuple[Any, ...]] | None:
        """x and the calls of relu6(x + 3)/6."""
        clipped = None if node is None else _sixth(node)
        found = None if clipped is None else self._shifted(self._only(clipped))
        return None if found is None else (found[0], (*found[1], node))

    def _sigmoid(self, node: Any) -> _Match | None:
        found = self._sigmoid_of(node)
        return None if found is None else _Match(HardSigmoid, found[1][:-1])

    def _swish(self, node: Any) -> _Match | None:
        """x·(relu6(x + 3)/6), or (x·relu6(x + 3))/6."""
        for x, gate in _factors(node):
            found = self._sigmoid_of(self._only(gate))
            if found is not None and found[0] is x:
                return _Match(HardSwish, found[1])
        product = _sixth(node)
        inner = None if product is None else self._only(product)
        for x, gate in _factors(inner) if inner is not None else ():
            found = self._shifted(self._only(gate))
            if found is not None and found[0] is x:
                return _Match(HardSwish, (*found[1], inner))
        return None


def _names(model: keras.Model, matches: dict[int, _Match], inner: set[int]) -> _Names:
    """Names of the new layers: that of the chain's last layer, if no other call needs it."""
    nodes = [node for node in nodes_of(model) if id(node) not in inner]
    calls = Counter(node.layer.name for node in nodes)
    taken = {layer.name for layer in layers_of(model)}
    found = _Names()
    for node in nodes:
        if id(node) in matches:
            name = node.layer.name
            if calls[name] > 1:
                number = 1
                while (name := f"{node.layer.name}_{number}") in taken:
                    number += 1
                taken.add(name)
            found[id(node)] = name
            found.nodes.append(node)
    return found


class _Names(dict[int, str]):
    """id of a call → name, with the calls themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Any] = []


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "_keras_history")


def _tensors(arguments: Any) -> list[Any]:
    return [item for item in tf.nest.flatten(arguments) if _is_tensor(item)]


def _operands(node: Any, *symbols: str) -> tuple[Any, Any] | None:
    """Both arguments of an operation of TensorFlow, if it is one of `symbols`."""
    if not isinstance(node.layer, TFOpLambda) or node.layer.symbol not in symbols:
        return None
    kwargs = {key: value for key, value in node.call_kwargs.items() if key != "name"}
    operands = [*node.call_args, *kwargs.values()]
    return (operands[0], operands[1]) if len(operands) == 2 else None


def _is_number(value: Any, wanted: float) -> bool:
    if _is_tensor(value) or np.size(value) != 1:
        return False
    return math.isclose(float(np.reshape(value, ())), wanted, rel_tol=1e-6)


def _with_number(operands: tuple[Any, Any] | None, number: float) -> Any:
    """The other operand, if one is `number` and the other a tensor; else None."""
    for value, tensor in (operands, operands[::-1]) if operands else ():
        if _is_tensor(tensor) and _is_number(value, number):
            return tensor
    return None


def _rescaled(node: Any, scale: float, offset: float) -> Any:
    """The input of a Rescaling by these numbers, else None."""
    layer = node.layer
    same = (
        type(layer) is layers.Rescaling
        and _is_number(layer.scale, scale)
        and (_is_number(layer.offset, offset) or layer.offset == offset == 0)
    )
    return node.keras_inputs[0] if same else None


def _plus_three(node: Any) -> Any:
    """x, if a call computes x + 3."""
    found = _with_number(_operands(node, "__operators__.add", "math.add"), 3.0)
    return _rescaled(node, 1.0, 3.0) if found is None else found


def _is_relu6(node: Any) -> bool:
    layer = node.layer
    if isinstance(layer, TFOpLambda):
        return layer.symbol == "nn.relu6"
    if type(layer) is layers.Activation:
        return layer.activation is tf.nn.relu6
    return (
        type(layer) is layers.ReLU
        and layer.max_value == 6
        and not layer.negative_slope
        and not layer.threshold
    )


def _sixth(node: Any) -> Any:
    """x, if a call computes x/6."""
    found = _with_number(_operands(node, "math.multiply", "__operators__.mul"), 1 / 6)
    if found is None:
        operands = _operands(node, "math.truediv", "math.divide", "__operators__.truediv")
        if operands and _is_number(operands[1], 6.0):
            found = operands[0]
    return _rescaled(node, 1 / 6, 0.0) if found is None else found


def _factors(node: Any) -> list[tuple[Any, Any]]:
    """Two tensors that a call multiplies, in either order."""
    if type(node.layer) is layers.Multiply:
        both = tuple(node.keras_inputs)
    else:
        both = _operands(node, "math.multiply", "__operators__.mul") or ()
    if len(both) != 2 or len(_tensors(both)) != 2:
        return []
    return [both, both[::-1]]
