"""A functional Keras model as a graph of calls: what each reads, makes, and who reads that.

A layer can be called several times and a call can return several tensors, so a
tensor is named as Keras names it in a config: (layer, number of its call,
number of the output). The graph is read once; whoever needs it is handed it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import _should_skip_first_node
from tfkd.networks.accept import is_network

Key = tuple[str, int]
Ref = tuple[str, int, int]
Visit = Callable[["Call", tuple[Any, ...], dict[str, Any]], Any]


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer: the tensors that it reads and those that it makes.

    Attributes:
        layer: the layer; a nested model is one like any other.
        number: of this call among those of the layer, as a config counts them.
        inputs: the tensors that it reads.
        outputs: the tensors that it makes.
        node: Keras's record of the call.
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
        """What tells it from other calls of the model."""
        return self.layer.name, self.number

    @property
    def is_input(self) -> bool:
        """True if it stands for an input of the model."""
        return self.node.is_input

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments by position, with Keras's tensors in them."""
        return self.node.call_args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments by name."""
        return self.node.call_kwargs

    @property
    def reads(self) -> list[Any]:
        """Keras's tensors for `inputs`."""
        return self.node.keras_inputs

    @property
    def makes(self) -> list[Any]:
        """Keras's tensors for `outputs`."""
        return tf.nest.flatten(self.node.outputs)


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int | None, ...]
    dtype: str


class CallGraph:
    """The calls of one model, and of the models nested in it.

    Args:
        model: a model that `is_network` holds true for; not changed.

    Attributes:
        model: the model.
        layers: name → layer, also those of inputs.
        calls: key → `Call`; a call stands after those that it reads from.
        tensors: tensor → the tensor of Keras.
        readers: tensor → keys of the calls that read it.
        outputs: the tensors that the model returns.
        nested: name of a nested model → its graph.
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
        """The name of one of Keras's tensors."""
        return self._refs[id(tensor)]

    def spec(self, ref: Ref) -> Spec:
        """Shape and type of a tensor."""
        tensor = self.tensors[ref]
        return Spec(tuple(tensor.shape), str(tensor.dtype.name))

    def maker(self, ref: Ref) -> Call:
        """The call that makes a tensor."""
        return self.calls[ref[:2]]

    def only_reader(self, ref: Ref) -> Call | None:
        """The call that alone reads a tensor, once; None if there are more, or the user does."""
        readers = [self.calls[key] for key in self.readers[ref]]
        alone = len(readers) == 1 and readers[0].inputs.count(ref) == 1
        return readers[0] if alone and ref not in self.outputs else None

    def calls_of(self, layer: str) -> list[Call]:
        """The calls of one layer."""
        return [call for call in self.calls.values() if call.name == layer]

    def levels(self, prefix: str = "") -> dict[str, CallGraph]:
        """This graph, under "", and those of the models nested in it, under "backbone/"."""
        found = {prefix: self}
        for name, graph in self.nested.items():
            found.update(graph.levels(f"{prefix}{name}/"))
        return found

    def follow(self, values: Sequence[Any], visit: Visit) -> list[Any]:
        """Passes values through the model, call by call.

        Args:
            values: one for each of the model's inputs.
            visit: `visit(call, args, kwargs)` → what the call makes of its arguments, in
                which values stand in place of tensors; in the structure of its outputs,
                or as a flat list.

        Returns:
            One value for each of the model's outputs.
        """
        known = {id(old): new for old, new in zip(self.model.inputs, values, strict=True)}

        def put(value: Any) -> Any:
            return known.get(id(value), value)

        for call in self.calls.values():
            if call.is_input or any(id(tensor) not in known for tensor in call.reads):
                continue
            args, kwargs = tf.nest.map_structure(put, (call.args, call.kwargs))
            made = tf.nest.flatten(visit(call, tuple(args), dict(kwargs)))
            known.update({id(old): new for old, new in zip(call.makes, made, strict=True)})
        return [known[id(tensor)] for tensor in self.model.outputs]

    def after(self, ref: Ref) -> set[Key]:
        """All calls that depend on a tensor."""
        found: set[Key] = set()
        for call in self.calls.values():
            if any(used == ref or used[:2] in found for used in call.inputs):
                found.add(call.key)
        return found

    def upto(self, key: Key) -> set[Key]:
        """All calls that a call depends on, and itself."""
        return self._reach([key], {})

    def alive(self, moved: Mapping[Ref, Ref], gone: Iterable[Key]) -> set[Key]:
        """The calls still needed when readers of `moved` tensors read others and `gone` go.

        Inputs stay, and so do calls that nothing reads (losses added to the model).
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


def graph_of(model: Any) -> CallGraph | None:
    """The graph of a layer or model; None if it has none that says all."""
    return CallGraph(model) if is_network(model) else None


def resolve(ref: Ref, moved: Mapping[Ref, Ref]) -> Ref:
    """The tensor read in place of `ref`; consecutive cuts lead further up."""
    while ref in moved:
        ref = moved[ref]
    return ref


def first_number(layer: Any) -> int:
    """The number of a layer's first call: a nested model's own input layer takes the number 0."""
    return int(_should_skip_first_node(layer))


def nodes_of(model: Any) -> list[Any]:
    """The calls of a functional model as nodes of Keras 2 or 3, each after those it reads from."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def maker_of(tensor: Any) -> Any:
    """The layer or operation that made a symbolic tensor of Keras 2 or 3."""
    return tensor._keras_history[0]


def _numbered(model: keras.Model) -> list[tuple[Any, int]]:
    """Keras's nodes of a model, in order, with their numbers in its config.

    A layer may have been called in other models too; a config skips these calls.
    """
    nodes = nodes_of(model)
    inside = {id(node) for node in nodes}
    numbers = {}
    for layer in {id(node.layer): node.layer for node in nodes}.values():
        own = [id(node) for node in layer._inbound_nodes if id(node) in inside]
        numbers.update({node: number for number, node in enumerate(own, first_number(layer))})
    return [(node, numbers[id(node)]) for node in nodes]
