"""Operation graph of a flat model: each layer call with its kind, its inputs and its readers."""

from __future__ import annotations

import dataclasses
from collections import Counter

import tf_keras as keras

from tfkd.networks.call_graph import Call, CallGraph, Key
from tfkd.networks.rebuild import ADDED
from tfkd.quantization import layer_roles
from tfkd.quantization.layer_roles import Kind, kind_of
from tfkd.quantization.wrappers import QuantizedLayer, QuantizedTensor


@dataclasses.dataclass(eq=False)
class Operation:
    """One call of a layer, as an integer runtime sees it.

    Attributes:
        call: the call.
        kind: the kind of its layer.
        shared: whether the layer is called more than once.
        inputs, readers: the operations that produce its inputs, and that read its outputs.
        is_output: whether one of its outputs is an output of the model.
    """

    call: Call
    kind: Kind
    shared: bool
    inputs: list[Operation] = dataclasses.field(default_factory=list)
    readers: list[Operation] = dataclasses.field(default_factory=list)
    is_output: bool = False

    @property
    def layer(self) -> keras.layers.Layer:
        """The layer."""
        return self.call.layer

    @property
    def plain(self) -> keras.layers.Layer:
        """The layer, without the wrapper that quantizes it."""
        return _plain(self.layer)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.call.name

    @property
    def index(self) -> int:
        """Index of this call among the calls of its layer, from 0."""
        return self.call.number

    @property
    def only_reader(self) -> Operation | None:
        """The only reader of its output; None if there are several, or it is a model output."""
        return self.readers[0] if len(self.readers) == 1 and not self.is_output else None

    @property
    def folded(self) -> Operation | None:
        """The batch normalization that is folded into this quantized layer, or None."""
        reader, wrapper = self.only_reader, self.layer
        if reader is None or self.shared or reader.shared:
            return None
        if self.kind.role != layer_roles.WEIGHTED:
            return None
        if not isinstance(wrapper, QuantizedLayer) or not wrapper._weight_vars:
            return None
        linear = wrapper.layer.activation in (None, keras.activations.linear)
        plain = linear and not wrapper.quantize_config.output_quantizer
        return reader if plain and reader.kind.role == layer_roles.NORM else None


def operations_of(graph: CallGraph) -> dict[Key, Operation]:
    """Call → operation of a flat model, in topological order."""
    found: dict[Key, Operation] = {}
    counts = Counter(name for name, _ in graph.calls)
    returned = {ref[:2] for ref in graph.outputs}
    for key, call in graph.calls.items():
        # Layers of `add_loss` and `add_metric` are not deployed.
        if isinstance(call.layer, ADDED):
            continue
        kind = kind_of(_plain(call.layer), call)
        if not all(tensor.dtype.is_floating for tensor in call.makes):
            kind = dataclasses.replace(kind, role=layer_roles.INTEGER)
        inputs = [found[one] for one in dict.fromkeys(ref[:2] for ref in call.inputs)]
        found[key] = Operation(call, kind, counts[call.name] > 1, inputs, is_output=key in returned)
        for other in inputs:
            other.readers.append(found[key])
    return found


def _plain(layer: keras.layers.Layer) -> keras.layers.Layer:
    return layer.layer if isinstance(layer, QuantizedLayer) else layer


def feeds_int8(operation: Operation) -> bool:
    """True if TensorRT computes a reader of this call in int8."""
    roles = (layer_roles.WEIGHTED, layer_roles.POOL, layer_roles.SUM)
    return any(reader.kind.role in roles for reader in operation.readers)


def feeds_shared_grid(operation: Operation) -> bool:
    """True if a reader needs the same scale and zero point for all inputs and its output."""
    shared = (keras.layers.Maximum, keras.layers.Minimum)
    for reader in operation.readers:
        inner = reader.plain
        role = reader.kind.role
        if role == layer_roles.CONCAT or type(inner) in shared:
            return True
        keeps = role == layer_roles.SAME or isinstance(inner, QuantizedTensor)
        if keeps and feeds_shared_grid(reader):
            return True
    return False
