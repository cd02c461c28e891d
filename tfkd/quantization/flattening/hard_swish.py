"""Hard swish and hard sigmoid layers, and pattern matching that fuses their explicit forms.

MobileNetV3 (Howard et al. 2019, https://arxiv.org/abs/1905.02244) replaces the sigmoid by
relu6(x + 3)/6. Keras builds it from an addition, a ReLU and a multiplication. Quantizing each
of them would cost accuracy, and would prevent TFLite's converter from recognizing the pattern,
for which it has a single int8 operation.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import KerasTensor, TFOpLambda
from tfkd.networks.call_graph import Call, CallGraph, Key
from tfkd.networks.layer_parts import free_name
from tfkd.networks.rebuild import Rebuilder

layers = keras.layers


@keras.saving.register_keras_serializable("tfkd")
class HardSigmoid(keras.layers.Layer):
    """relu6(x + 3)/6.

    Args:
        inner: quantize relu6(x + 3) to 256 levels from 0 to 6. TFLite has no hard sigmoid
            operation, and computes the addition and the multiplication in int8 only if the
            tensor between them has a range, too. The levels coincide with those of an
            output in [0, 1], so this loses nothing.

    Example:
        >>> HardSigmoid()(tf.constant([-4.0, 0.0, 4.0])).numpy().tolist()
        [0.0, 0.5, 1.0]
    """

    def __init__(self, inner: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = bool(inner)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
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

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Any shape → the same shape."""
        return inputs * (tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0))


class _Match(NamedTuple):
    """A matched chain of calls: the layer class that replaces it, and all calls but the last."""

    kind: type
    inner: tuple[Call, ...]


def fuse_hard(graph: CallGraph, origins: dict[str, str]) -> tuple[CallGraph, dict[str, str]]:
    """Replaces each chain of calls that computes a hard swish or hard sigmoid by one layer.

    A chain is not replaced if anything else reads one of its intermediate tensors.

    Args:
        graph: call graph of a flat model.
        origins: name of each of its layers → path of the user's layer.

    Returns:
        The graph of the new model and its origins; the given ones if there is no chain.
        A new layer has the name of the last layer of its chain.
    """
    matches = _matches(graph)
    if not matches:
        return graph, origins
    inner = {call.key for match in matches.values() for call in match.inner}
    names = _names(graph, matches, inner)
    origins = {**origins, **{name: origins[key[0]] for key, name in names.items()}}
    rebuilder = Rebuilder()

    def visit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.key in inner:
            # Forward the input of the chain to its last call.
            return _tensors((args, kwargs))[0]
        if call.key in matches:
            return matches[call.key].kind(name=names[call.key])(_tensors((args, kwargs))[0])
        return rebuilder.copy(call, args, kwargs)

    return CallGraph(rebuilder.build(graph, visit)), origins


def _matches(graph: CallGraph) -> dict[Key, _Match]:
    """Last call → match, for all chains; hard swishes first, which contain hard sigmoids."""
    found: dict[Key, _Match] = {}
    for find in (_swish, _sigmoid):
        used = {call for match in found.values() for call in match.inner}
        for call in graph.calls.values():
            free = not call.is_input and call not in used and call.key not in found
            chain = find(graph, call) if free else None
            if chain is not None:
                found[call.key] = chain
    return found


def _only(graph: CallGraph, tensor: Any) -> Call | None:
    """The call that produced a tensor, if exactly one argument reads it; else None."""
    ref = graph.ref(tensor)
    return graph.maker(ref) if graph.only_reader(ref) else None


def _shifted(graph: CallGraph, call: Call | None) -> tuple[Any, tuple[Call, ...]] | None:
    """(x, calls of relu6(x + 3)), if a call is the last one of these; else None."""
    if call is None or not _is_relu6(call):
        return None
    sum_ = _only(graph, call.reads[0])
    source = None if sum_ is None else _plus_three(sum_)
    return None if sum_ is None or source is None else (source, (sum_, call))


def _sigmoid_of(graph: CallGraph, call: Call | None) -> tuple[Any, tuple[Call, ...]] | None:
    """(x, calls of relu6(x + 3)/6), if a call is the last one of these; else None."""
    clipped = None if call is None else _sixth(call)
    found = None if clipped is None else _shifted(graph, _only(graph, clipped))
    return None if found is None or call is None else (found[0], (*found[1], call))


def _sigmoid(graph: CallGraph, call: Call) -> _Match | None:
    found = _sigmoid_of(graph, call)
    return None if found is None else _Match(HardSigmoid, found[1][:-1])


def _swish(graph: CallGraph, call: Call) -> _Match | None:
    """Matches x·(relu6(x + 3)/6) and (x·relu6(x + 3))/6."""
    for x, gate in _factors(call):
        found = _sigmoid_of(graph, _only(graph, gate))
        if found is not None and found[0] is x:
            return _Match(HardSwish, found[1])
    product = _sixth(call)
    inner = None if product is None else _only(graph, product)
    for x, gate in _factors(inner) if inner is not None else ():
        found = _shifted(graph, _only(graph, gate))
        if inner is not None and found is not None and found[0] is x:
            return _Match(HardSwish, (*found[1], inner))
    return None


def _names(graph: CallGraph, matches: dict[Key, _Match], inner: set[Key]) -> dict[Key, str]:
    """Names of the new layers: that of the chain's last layer, if it has no other calls."""
    kept = [key for key in graph.calls if key not in inner]
    calls = Counter(name for name, _ in kept)
    taken = set(graph.layers)
    found = {}
    for key in kept:
        if key in matches:
            found[key] = free_name(key[0], taken) if calls[key[0]] > 1 else key[0]
            taken.add(found[key])
    return found


def _tensors(arguments: Any) -> list[Any]:
    return [item for item in tf.nest.flatten(arguments) if isinstance(item, KerasTensor)]


def _operands(call: Call, *symbols: str) -> tuple[Any, Any] | None:
    """Both arguments of a TensorFlow operation, if it is one of `symbols`; else None."""
    if not isinstance(call.layer, TFOpLambda) or call.layer.symbol not in symbols:
        return None
    kwargs = {key: value for key, value in call.kwargs.items() if key != "name"}
    operands = [*call.args, *kwargs.values()]
    return (operands[0], operands[1]) if len(operands) == 2 else None


def _is_number(value: Any, wanted: float) -> bool:
    if isinstance(value, KerasTensor) or np.size(value) != 1:
        return False
    return math.isclose(float(np.reshape(value, ())), wanted, rel_tol=1e-6)


def _with_number(operands: tuple[Any, Any] | None, number: float) -> Any:
    """The tensor operand, if the other operand equals `number`; else None."""
    for value, tensor in (operands, operands[::-1]) if operands else ():
        if isinstance(tensor, KerasTensor) and _is_number(value, number):
            return tensor
    return None


def _rescaled(call: Call, scale: float, offset: float) -> Any:
    """The input of a Rescaling with this scale and offset; None for other calls."""
    layer = call.layer
    same = (
        type(layer) is layers.Rescaling
        and _is_number(layer.scale, scale)
        and (_is_number(layer.offset, offset) or layer.offset == offset == 0)
    )
    return call.reads[0] if same else None


def _plus_three(call: Call) -> Any:
    """x, if a call computes x + 3; else None."""
    found = _with_number(_operands(call, "__operators__.add", "math.add"), 3.0)
    return _rescaled(call, 1.0, 3.0) if found is None else found


def _is_relu6(call: Call) -> bool:
    layer = call.layer
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


def _sixth(call: Call) -> Any:
    """x, if a call computes x/6; else None."""
    found = _with_number(_operands(call, "math.multiply", "__operators__.mul"), 1 / 6)
    if found is None:
        operands = _operands(call, "math.truediv", "math.divide", "__operators__.truediv")
        if operands and _is_number(operands[1], 6.0):
            found = operands[0]
    return _rescaled(call, 1 / 6, 0.0) if found is None else found


def _factors(call: Call) -> list[tuple[Any, Any]]:
    """The two tensors that a call multiplies, in both orders; empty for other calls."""
    if type(call.layer) is layers.Multiply:
        both = tuple(call.reads)
    else:
        both = _operands(call, "math.multiply", "__operators__.mul") or ()
    if len(both) != 2 or len(_tensors(both)) != 2:
        return []
    return [both, both[::-1]]
