"""Rebuilding of functional models call by call, with some layers replaced.

Every call of the graph is repeated in topological order on new tensors. What a visitor
returns in place of a call's result is what later calls read. The original model is
never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import AddLoss, AddMetric
from tfkd.networks.call_graph import Call, CallGraph, Visit
from tfkd.networks.copy_layer import copy_layer, copy_state
from tfkd.networks.layer_parts import input_form, output_form

# Keras represents losses and metrics added to a functional model as layers of these classes.
ADDED = (AddLoss, AddMetric)


class Parts(list[Any]):
    """The layers, called in sequence, that replace one layer, in the order of its weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layers in sequence; only the first gets further arguments."""
        first, *others = self
        made = first(*args, **kwargs)
        for part in others:
            made = part(made)
        return made

    def take(self, layer: keras.layers.Layer) -> None:
        """Copies weights and `trainable` flags from the replaced layer; all must be built."""
        copy_state(layer, self)


class Rebuilder:
    """Repeats the calls of a model with one copy of each layer, however often it is called.

    Args:
        names: name of a layer's copy by the layer's id; other layers keep their names.
        split: called as `split(layer, name)`; returns the layers that replace `layer`, or
            None to copy it.

    Example:
        >>> x = keras.Input((2,))
        >>> model = keras.Model(x, keras.layers.ReLU(name="act")(x * 2.0))
        >>> rebuilder = Rebuilder()
        >>> def doubled(call, args, kwargs):
        ...     y = rebuilder.copy(call, args, kwargs)
        ...     return keras.layers.Rescaling(2.0)(y) if call.name == "act" else y
        >>> new = rebuilder.build(CallGraph(model), doubled)
        >>> new(tf.constant([[1.0, -1.0]])).numpy().tolist()
        [[4.0, 0.0]]
    """

    def __init__(
        self,
        names: dict[int, str] | None = None,
        split: Callable[[Any, str], Parts | None] | None = None,
    ) -> None:
        self._names = names or {}
        self._split = split
        self._made: dict[int, tuple[Any, Parts]] = {}
        self._added: list[tuple[Any, Any]] = []

    def build(
        self,
        graph: CallGraph,
        visit: Visit,
        start: Callable[[Call, Any], Any] | None = None,
        kind: type[keras.Model] = keras.Model,
        keep_losses: bool = True,
    ) -> keras.Model:
        """Returns a new model whose copied layers have the weights of the originals.

        Args:
            graph: graph of the model, which is not changed.
            visit: called as `visit(call, args, kwargs)` for every call except those of
                inputs and added losses, with the new tensors among the arguments. Returns
                the new outputs, in the structure of the layer's own output.
            start: called as `start(call, tensor)` for each new input; returns the tensor
                that is read in its place.
            kind: class of the new model.
            keep_losses: whether losses and metrics that were added to the model are kept.

        Returns:
            A `kind` with the name and the input and output structure of the model, and
            with layers of its own. New layers need unique names.

        Raises:
            ValueError: if a layer can't be built again from its config.
        """
        model = graph.model
        layers = [tensor.node.layer for tensor in model.inputs]
        inputs = [type(layer).from_config(layer.get_config()).output for layer in layers]
        starts = inputs
        if start is not None:
            calls = [graph.maker(graph.ref(tensor)) for tensor in model.inputs]
            starts = [start(call, new) for call, new in zip(calls, inputs, strict=True)]
        new = kind(
            tf.nest.pack_sequence_as(input_form(model), inputs),
            tf.nest.pack_sequence_as(output_form(model), self.follow(graph, starts, visit)),
            name=model.name,
        )
        # `compile` finds losses by output names, which Keras would derive from the new layers.
        # Bypass Keras's attribute tracking: a model that tracks a list can't have added losses.
        object.__setattr__(new, "output_names", list(model.output_names))
        if keep_losses:
            self._give_losses(new)
        for layer, parts in self.made():
            parts.take(layer)
        return new

    def follow(self, graph: CallGraph, tensors: list[Any], visit: Visit) -> list[Any]:
        """Repeats the calls of a graph, which may be nested, on new tensors."""

        def repeat(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(call.layer, ADDED):
                self._added.append((call.layer, args[0]))
                return args[0]
            # A variable among the arguments would stay shared with the original model.
            args, kwargs = tf.nest.map_structure(_constant, (args, kwargs))
            return visit(call, args, kwargs)

        return graph.follow(tensors, repeat)

    def copy(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Repeats a call on new tensors with the copy of its layer."""
        return self.of(call.layer)(*args, **kwargs)

    def of(self, layer: keras.layers.Layer) -> Parts:
        """The layers that replace `layer`, created on first use."""
        if id(layer) not in self._made:
            name = self._names.get(id(layer), layer.name)
            parts = self._split(layer, name) if self._split else None
            self._made[id(layer)] = layer, parts or Parts([copy_layer(layer, name)])
        return self._made[id(layer)][1]

    def made(self) -> Iterator[tuple[keras.layers.Layer, Parts]]:
        """Yields each layer that was called, with its replacement."""
        yield from self._made.values()

    def _give_losses(self, model: keras.Model) -> None:
        for layer, tensor in self._added:
            if isinstance(layer, AddLoss):
                model.add_loss(tensor)
            else:
                model.add_metric(tensor, aggregation=layer.aggregation, name=layer.metric_name)


def _constant(value: Any) -> Any:
    return tf.constant(value) if isinstance(value, tf.Variable) else value
