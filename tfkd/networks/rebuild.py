"""Builds a functional model anew, call by call, with other layers where they are wanted.

A functional model is a list of calls: a layer, the tensors it reads, those it
makes. To put other layers into it, every call is made again in the same order,
on new tensors; what a caller returns in place of a call's result is what later
calls read. So nothing is edited, and the model at hand is never changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.keras_internals import AddLoss, AddMetric
from tfkd.networks.copy_layer import copy_layer, copy_state

Replace = Callable[..., Any]


def rebuild_functional(model: keras.Model, replace: Replace | None = None) -> keras.Model:
    """Returns a functional model made by calling every node of `model` anew, in order.

    Args:
        model: a functional or Sequential model; not changed. Models nested in it
            are layers like any other (`flatten` enters them).
        replace: called as `replace(layer, call_number, args, kwargs, default)` for every
            call but those of InputLayers; `layer` is that of `model`, `call_number` counts
            its calls from 0, `args` and `kwargs` hold the new tensors. Returns the new
            tensors, in the structure of the layer's own output. `default(*args, **kwargs)`
            calls a copy of the layer (same name, weights and flags; the same copy for
            every call of a shared layer, and made only if asked for). None: copies all.

    Returns:
        A `keras.Model` with the inputs, input and output structure and name of `model`,
        on layers of its own. New layers must have names that no other layer has.

    Raises:
        ValueError: if a layer can't be built again from its config.

    Example:
        >>> x = keras.Input((2,))
        >>> model = keras.Model(x, keras.layers.ReLU(name="act")(x * 2.0))
        >>> def doubled(layer, call_number, args, kwargs, default):
        ...     y = default(*args, **kwargs)
        ...     return keras.layers.Rescaling(2.0)(y) if layer.name == "act" else y
        >>> new = rebuild_functional(model, doubled)
        >>> new(tf.constant([[1.0, -1.0]])).numpy().tolist()
        [[4.0, 0.0]]
    """
    copies = Copies()
    losses = Losses()
    numbers: defaultdict[int, int] = defaultdict(int)

    def visit(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = node.layer
        number, numbers[id(layer)] = numbers[id(layer)], numbers[id(layer)] + 1
        if losses.take(layer, args):
            return args[0]
        default = copies.caller(layer)
        return (
            default(*args, **kwargs)
            if replace is None
            else replace(layer, number, args, kwargs, default)
        )

    inputs = new_inputs(model)
    outputs = follow(model, inputs, visit)
    return finish(model, inputs, outputs, copies, losses)


def layers_of(model: keras.Model) -> list[Any]:
    """The layers of a model, also the InputLayer that Sequential hides."""
    return keras.Model.layers.fget(model)


def nodes_of(model: keras.Model) -> Iterator[Any]:
    """The calls of a model as Keras' nodes, each behind those that it reads from."""
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from by_depth[depth]


def new_inputs(model: keras.Model) -> list[Any]:
    """A new input tensor for each of `model.inputs`, of the same name, shape and type."""
    layers = [tensor.node.layer for tensor in model.inputs]
    return [type(layer).from_config(layer.get_config()).output for layer in layers]


def follow(model: keras.Model, tensors: list[Any], visit: Callable[..., Any]) -> list[Any]:
    """Makes the calls of a model on new tensors.

    Args:
        model: a model that `is_network` holds true for.
        tensors: one for each of `model.inputs`.
        visit: `visit(node, args, kwargs)` → the new tensors of this call.

    Returns:
        One tensor for each of `model.outputs`.
    """
    known = {id(old): new for old, new in zip(model.inputs, tensors, strict=True)}

    def put(value: Any) -> Any:
        # A variable among the arguments would stay the user's own.
        return tf.constant(value) if isinstance(value, tf.Variable) else known.get(id(value), value)

    for node in nodes_of(model):
        if node.is_input or any(id(tensor) not in known for tensor in node.keras_inputs):
            continue
        args, kwargs = tf.nest.map_structure(put, (node.call_args, node.call_kwargs))
        made = tf.nest.flatten(visit(node, tuple(args), dict(kwargs)))
        known.update({id(o): n for o, n in zip(tf.nest.flatten(node.outputs), made, strict=True)})
    return [known[id(tensor)] for tensor in model.outputs]


def finish(
    model: keras.Model, inputs: list[Any], outputs: list[Any], copies: Copies, losses: Losses
) -> keras.Model:
    """The new model, in the structure of the old one; weights are copied."""
    new = keras.Model(
        tf.nest.pack_sequence_as(model._nested_inputs, inputs),
        tf.nest.pack_sequence_as(model._nested_outputs, outputs),
        name=model.name,
    )
    # Keras would name the outputs after the layers, and `compile` finds losses by these names.
    # Not tracked: a model with a list among what it tracks takes no added losses.
    object.__setattr__(new, "output_names", list(model.output_names))
    losses.give(new)
    copies.copy_weights()
    return new


class Losses:
    """Losses and metrics added to a functional model, which Keras keeps as layers of it."""

    def __init__(self) -> None:
        self._losses: list[Any] = []
        self._metrics: list[tuple[Any, Any, Any]] = []

    def take(self, layer: Any, args: tuple[Any, ...]) -> bool:
        """Keeps what a call adds; False for the call of any other layer."""
        if isinstance(layer, AddLoss):
            self._losses.append(args[0])
        elif isinstance(layer, AddMetric):
            self._metrics.append((args[0], layer.aggregation, layer.metric_name))
        return isinstance(layer, (AddLoss, AddMetric))

    def give(self, model: keras.Model) -> None:
        """Adds all that was kept to a new model."""
        for tensor in self._losses:
            model.add_loss(tensor)
        for tensor, aggregation, name in self._metrics:
            model.add_metric(tensor, aggregation=aggregation, name=name)


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


class Copies:
    """One copy of each layer, however often it is called.

    Args:
        names: id of a layer → name of its copy; any other keeps its own.
        split: `split(layer, name)` → the new layers that do what `layer` does; or None,
            to copy it.
    """

    def __init__(
        self,
        names: dict[int, str] | None = None,
        split: Callable[[Any, str], Parts | None] | None = None,
    ) -> None:
        self._names = names or {}
        self._split = split
        self._made: dict[int, tuple[Any, Parts]] = {}

    def of(self, layer: Any) -> Parts:
        """The layers that stand for `layer`; made with the first call."""
        if id(layer) not in self._made:
            name = self._names.get(id(layer), layer.name)
            parts = self._split(layer, name) if self._split else None
            self._made[id(layer)] = layer, parts or Parts([copy_layer(layer, name)])
        return self._made[id(layer)][1]

    def caller(self, layer: Any) -> Callable[..., Any]:
        """Calls what stands for a layer."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.of(layer)(*args, **kwargs)

        return call

    def copy_weights(self) -> None:
        """Sets the weights and flags of all copies; they have been called by now."""
        for layer, parts in self._made.values():
            parts.take(layer)

    def made(self) -> Iterator[tuple[Any, Parts]]:
        """Each layer that was called, and what stands for it."""
        yield from self._made.values()
