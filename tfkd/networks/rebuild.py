"""Builds a functional model anew, call by call, with other layers where they are wanted.

To put other layers into a model, every call of its graph is made again in the same
order, on new tensors; what a caller returns in place of a call's result is what later
calls read. So nothing is edited, and the model at hand is never changed.
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

# Losses and metrics added to a functional model, which Keras keeps as layers of it.
ADDED = (AddLoss, AddMetric)


class Parts(list[Any]):
    """New layers that stand for one, in the order of its weights, one called after the other."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the one layer returns."""
        first, *others = self
        made = first(*args, **kwargs)
        for part in others:
            made = part(made)
        return made

    def take(self, layer: Any) -> None:
        """Sets weights and flags to those of the one layer; all have been called by now."""
        copy_state(layer, self)


class Rebuilder:
    """Makes the calls of a model again, with one copy of each layer however often it is called.

    Args:
        names: id of a layer → name of its copy; any other keeps its own.
        split: `split(layer, name)` → the new layers that do what `layer` does; or None,
            to copy it.

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
        """Returns a new model; the weights of copies are those of their layers.

        Args:
            graph: of the model; it is not changed.
            visit: called as `visit(call, args, kwargs)` for every call but those of inputs
                and added losses; the arguments hold the new tensors. Returns the new
                tensors, in the structure of the layer's own output.
            start: `start(call, tensor)` → what is read in place of a new input.
            kind: class of the new model.
            keep_losses: add the losses and metrics to it that were added to the model.

        Returns:
            A `kind` with the inputs, input and output structure and name of the model, on
            layers of its own. New layers must have names that no other layer has.

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
        outputs = self.follow(graph, starts, visit)
        new = kind(
            tf.nest.pack_sequence_as(input_form(model), inputs),
            tf.nest.pack_sequence_as(output_form(model), outputs),
            name=model.name,
        )
        # Keras would name the outputs after the layers, and `compile` finds losses by these names.
        # Not tracked: a model with a list among what it tracks takes no added losses.
        object.__setattr__(new, "output_names", list(model.output_names))
        if keep_losses:
            self._give_losses(new)
        for layer, parts in self.made():
            parts.take(layer)
        return new

    def follow(self, graph: CallGraph, tensors: list[Any], visit: Visit) -> list[Any]:
        """Makes the calls of a graph, which may be nested, on new tensors."""

        def again(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(call.layer, ADDED):
                self._added.append((call.layer, args[0]))
                return args[0]
            # A variable among the arguments would stay the user's own.
            args, kwargs = tf.nest.map_structure(_constant, (args, kwargs))
            return visit(call, args, kwargs)

        return graph.follow(tensors, again)

    def copy(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns on new tensors."""
        return self.of(call.layer)(*args, **kwargs)

    def of(self, layer: Any) -> Parts:
        """The layers that stand for `layer`; made with the first call."""
        if id(layer) not in self._made:
            name = self._names.get(id(layer), layer.name)
            parts = self._split(layer, name) if self._split else None
            self._made[id(layer)] = layer, parts or Parts([copy_layer(layer, name)])
        return self._made[id(layer)][1]

    def made(self) -> Iterator[tuple[Any, Parts]]:
        """Each layer that was called, and what stands for it."""
        yield from self._made.values()

    def _give_losses(self, model: keras.Model) -> None:
        for layer, tensor in self._added:
            if isinstance(layer, AddLoss):
                model.add_loss(tensor)
            else:
                model.add_metric(tensor, aggregation=layer.aggregation, name=layer.metric_name)


def _constant(value: Any) -> Any:
    return tf.constant(value) if isinstance(value, tf.Variable) else value
