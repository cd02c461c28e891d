"""The dataflow graph of a functional Keras model: layer calls, tensors, producers and consumers.

A layer can be called several times and a call can return several tensors, so a
tensor is identified as in a Keras config: (layer name, call index, output index).
Build a `CallGraph` once per model and pass it on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import Functional, _should_skip_first_node

Key = tuple[str, int]
Ref = tuple[str, int, int]
Visit = Callable[["Call", tuple[Any, ...], dict[str, Any]], Any]


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer: a node of the graph.

    Attributes:
        layer: the layer, which may be a nested model.
        number: index of this call among the layer's calls, as a config counts them.
        inputs: the tensors that it reads.
        outputs: the tensors that it produces.
        node: Keras's own record of the call.
    """

    layer: Any
    number: int
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    node: Any

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def key(self) -> Key:
        """Identifies the call within the model: (layer name, call index)."""
        return self.layer.name, self.number

    @property
    def is_input(self) -> bool:
        """True for the call of an InputLayer."""
        return self.node.is_input

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments, with Keras's symbolic tensors in them."""
        return self.node.call_args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments."""
        return self.node.call_kwargs

    @property
    def reads(self) -> list[Any]:
        """Keras's symbolic tensors for `inputs`."""
        return self.node.keras_inputs

    @property
    def makes(self) -> list[Any]:
        """Keras's symbolic tensors for `outputs`."""
        return tf.nest.flatten(self.node.outputs)


class Spec(NamedTuple):
    """Shape (including the batch axis; None where a size is open) and dtype of a tensor."""

    shape: tuple[int | None, ...]
    dtype: str


class CallGraph:
    """The calls of one model and of the models nested in it.

    Args:
        model: a model for which `is_network` is true; it is not changed.

    Attributes:
        model: the model.
        layers: layer by name, including input layers.
        calls: `Call` by key, in topological order.
        tensors: Keras's symbolic tensor by tensor reference.
        readers: for each tensor, the keys of the calls that read it.
        outputs: the tensors that the model returns.
        nested: graph of each nested model, by the model's name.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(2, name="dense")(x)
        >>> graph = CallGraph(keras.Model(x, keras.layers.ReLU(name="act")(y)))
        >>> list(graph.calls), graph.outputs
        ([('x', 0), ('dense', 0), ('act', 0)], (('act', 0, 0),))
        >>> graph.only_reader(("dense", 0, 0)).name
        'act'
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.layers: dict[str, Any] = {
            layer.name: layer
            for layer in keras.Model.layers.fget(model)  # Sequential hides its InputLayer.
        }
        self.calls: dict[Key, Call] = {}
        self.tensors: dict[Ref, Any] = {}
        self.readers: dict[Ref, list[Key]] = {}
        self._refs: dict[int, Ref] = {}
        for node, number in _numbered(model):
            self._add(node, number)
        self.outputs = tuple(self.ref(tensor) for tensor in model.outputs)
        self.nested = {
            name: CallGraph(layer) for name, layer in self.layers.items() if is_network(layer)
        }

    def _add(self, node: Any, number: int) -> None:
        made = tf.nest.flatten(node.outputs)
        outputs = tuple((node.layer.name, number, index) for index in range(len(made)))
        self._refs.update({id(tensor): ref for tensor, ref in zip(made, outputs, strict=True)})
        inputs = () if node.is_input else tuple(self.ref(tensor) for tensor in node.keras_inputs)
        call = Call(node.layer, number, inputs, outputs, node)
        self.calls[call.key] = call
        self.tensors.update(zip(outputs, made, strict=True))
        self.readers.update((ref, []) for ref in outputs)
        for ref in dict.fromkeys(inputs):
            self.readers[ref].append(call.key)

    def ref(self, tensor: Any) -> Ref:
        """The reference of one of Keras's symbolic tensors."""
        return self._refs[id(tensor)]

    def spec(self, ref: Ref) -> Spec:
        """Shape and dtype of a tensor."""
        tensor = self.tensors[ref]
        return Spec(tuple(tensor.shape), str(tensor.dtype.name))

    def maker(self, ref: Ref) -> Call:
        """The call that produces a tensor."""
        return self.calls[ref[:2]]

    def only_reader(self, ref: Ref) -> Call | None:
        """The only consumer of a tensor; None if it is read more than once or is an output."""
        readers = [self.calls[key] for key in self.readers[ref]]
        alone = len(readers) == 1 and readers[0].inputs.count(ref) == 1
        return readers[0] if alone and ref not in self.outputs else None

    def calls_of(self, layer: str) -> list[Call]:
        """The calls of one layer."""
        return [call for call in self.calls.values() if call.name == layer]

    def levels(self, prefix: str = "") -> dict[str, CallGraph]:
        """This graph under "" and those of nested models under their path, as "backbone/"."""
        found = {prefix: self}
        for name, graph in self.nested.items():
            found.update(graph.levels(f"{prefix}{name}/"))
        return found

    def follow(self, values: Sequence[Any], visit: Visit) -> list[Any]:
        """Interprets the graph: propagates values from the inputs to the outputs.

        Args:
            values: one value per model input.
            visit: called as `visit(call, args, kwargs)`, with values in place of tensors
                among the arguments; returns the values of the call's outputs, in their
                structure or as a flat list.

        Returns:
            One value per model output.
        """
        known = {id(old): new for old, new in zip(self.model.inputs, values, strict=True)}

        def substitute(value: Any) -> Any:
            return known.get(id(value), value)

        for call in self.calls.values():
            if call.is_input or any(id(tensor) not in known for tensor in call.reads):
                continue
            args, kwargs = tf.nest.map_structure(substitute, (call.args, call.kwargs))
            made = tf.nest.flatten(visit(call, tuple(args), dict(kwargs)))
            known.update({id(old): new for old, new in zip(call.makes, made, strict=True)})
        return [known[id(tensor)] for tensor in self.model.outputs]

    def after(self, ref: Ref) -> set[Key]:
        """All calls that depend on a tensor, directly or not."""
        found: set[Key] = set()
        for call in self.calls.values():
            if any(used == ref or used[:2] in found for used in call.inputs):
                found.add(call.key)
        return found

    def upto(self, key: Key) -> set[Key]:
        """All calls that a call depends on, including itself."""
        return self._reach([key], {})

    def alive(self, moved: Mapping[Ref, Ref], gone: Iterable[Key]) -> set[Key]:
        """The calls still needed once some tensors are replaced and some calls removed.

        Inputs stay, and so do calls that nothing reads: losses added to the model.

        Args:
            moved: tensor → the tensor that is read in its place.
            gone: keys of the removed calls.
        """
        gone = set(gone)
        roots = [resolve(ref, moved)[:2] for ref in self.outputs]
        for call in self.calls.values():
            unread = not any(self.readers[ref] for ref in call.outputs)
            if (unread and call.key not in gone) or call.is_input:
                roots.append(call.key)
        return self._reach(roots, moved)

    def _reach(self, roots: Iterable[Key], moved: Mapping[Ref, Ref]) -> set[Key]:
        found: set[Key] = set()
        todo = list(roots)
        while todo:
            key = todo.pop()
            if key not in found:
                found.add(key)
                todo += [resolve(ref, moved)[:2] for ref in self.calls[key].inputs]
        return found


def is_network(layer: object) -> bool:
    """True for a functional or Sequential model that does not override `call`.

    Only then does the graph of its layers describe all that it computes.
    """
    return (
        isinstance(layer, keras.Model)
        and bool(getattr(layer, "_is_graph_network", False))
        and type(layer).call in (Functional.call, keras.Sequential.call)
    )


def graph_of(model: object) -> CallGraph | None:
    """The graph of a layer or model; None if no graph describes all that it computes."""
    return CallGraph(model) if is_network(model) else None


def resolve(ref: Ref, moved: Mapping[Ref, Ref]) -> Ref:
    """The tensor that is read in place of `ref`, through consecutive replacements."""
    while ref in moved:
        ref = moved[ref]
    return ref


def first_number(layer: keras.layers.Layer) -> int:
    """Index of a layer's first call in a config: 1 for nested models, whose input layer is 0."""
    return int(_should_skip_first_node(layer))


def nodes_of(model: Any) -> list[Any]:
    """The nodes of a functional model of Keras 2 or 3 in topological order."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def maker_of(tensor: Any) -> Any:
    """The layer or operation that produced a symbolic tensor of Keras 2 or 3."""
    return tensor._keras_history[0]


def _numbered(model: keras.Model) -> list[tuple[Any, int]]:
    """Keras's nodes of a model in topological order, each with its call index in the config.

    A layer may have been called in other models too; a config skips those calls.
    """
    nodes = nodes_of(model)
    inside = {id(node) for node in nodes}
    numbers = {}
    for layer in {id(node.layer): node.layer for node in nodes}.values():
        own = [id(node) for node in layer._inbound_nodes if id(node) in inside]
        numbers.update({node: number for number, node in enumerate(own, first_number(layer))})
    return [(node, numbers[id(node)]) for node in nodes]
