"""The calls of a flat functional model, in the order of the data, and who reads whom."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import AddLoss, AddMetric
from tfkd.networks.rebuild import nodes_of
from tfkd.quantization.layer_roles import INTEGER, Kind, kind_of


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer.

    Attributes:
        layer, node: Keras's.
        index: of this call among those of its layer.
        shared: the layer is called more than once.
        kind: what its layer is.
        inputs, readers: the calls whose tensors it reads, and that read its own.
        is_output: the model returns a tensor of it.
    """

    layer: Any
    node: Any
    index: int
    shared: bool
    kind: Kind
    inputs: list[Call] = dataclasses.field(default_factory=list)
    readers: list[Call] = dataclasses.field(default_factory=list)
    is_output: bool = False

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def tensors(self) -> list[Any]:
        """What it returns, as a flat list."""
        return tf.nest.flatten(self.node.outputs)

    @property
    def only_reader(self) -> Call | None:
        """The call that alone sees its output; None if there are more, or the user does."""
        return self.readers[0] if len(self.readers) == 1 and not self.is_output else None


def calls_of(model: keras.Model) -> list[Call]:
    """The calls of a flat model, each after those that it reads; inputs first."""
    # What an added loss or metric reads is deployed without it.
    nodes = [n for n in nodes_of(model) if not isinstance(n.layer, (AddLoss, AddMetric))]
    counts = Counter(id(node.layer) for node in nodes)
    seen: Counter[int] = Counter()
    calls: list[Call] = []
    maker: dict[int, Call] = {}  # id of a tensor → the call that makes it
    for node in nodes:
        layer = node.layer
        call = Call(layer, node, seen[id(layer)], counts[id(layer)] > 1, kind_of(layer, node))
        seen[id(layer)] += 1
        if not all(tensor.dtype.is_floating for tensor in call.tensors):
            call.kind = dataclasses.replace(call.kind, role=INTEGER)
        if not node.is_input:
            call.inputs = list(dict.fromkeys(maker[id(t)] for t in node.keras_inputs))
            for other in call.inputs:
                other.readers.append(call)
        maker.update((id(tensor), call) for tensor in call.tensors)
        calls.append(call)
    for tensor in tf.nest.flatten(model.outputs):
        maker[id(tensor)].is_output = True
    return calls
