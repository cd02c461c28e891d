"""Times of layers at the widths of a pruned model, each layer measured as a model of its own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.costs.trace import input_shapes
from tfkd.networks import configs
from tfkd.pruning.graph import KEPT, Graph, LayerCall, Reads
from tfkd.pruning.shrinking import resized_layer, without_units
from tfkd.types import Measure


class Clock:
    """Milliseconds of a model's layers as a function of the units removed from each group.

    A layer is measured when its time is first asked for, and once for each of its widths;
    layers that are alike are measured once. The sum differs from the time of the whole
    model: operations without multiply-accumulates are not part of it, and each layer
    measured alone includes the cost of a call.

    Args:
        graph: the model's graph.
        measure: from a model to milliseconds.
    """

    def __init__(self, graph: Graph, measure: Measure):
        self.graph = graph
        self._measure = measure
        costly = {cost.layer for cost in graph.costs} | set(graph.uncounted)
        calls = [call for call in graph.calls if call.layer in costly]
        self._calls = [(call, _groups_of(graph, call)) for call in calls]
        self._parts = [
            [place for place, (_, groups) in enumerate(self._calls) if index in groups]
            for index in range(len(graph.groups))
        ]
        self._known: dict[tuple[int, ...], float] = {}
        self._alike: dict[str, float] = {}

    def total(self, counts: np.ndarray) -> float:
        """The sum over all layers, with counts (G,) removed."""
        return sum(self._time(place, counts) for place in range(len(self._calls)))

    def around(self, group: int, counts: np.ndarray) -> float:
        """The sum over the layers whose widths depend on one group."""
        return sum(self._time(place, counts) for place in self._parts[group])

    def whole(self, counts: np.ndarray) -> float:
        """The measured time of the whole model, with counts (G,) removed.

        It is measured beside the model as it is where `measure` can do that: the two times
        are compared, and a machine's speed may have changed between them.
        """
        whole = _of_sizes(self.graph.model, self.graph)
        if not counts.any():
            return self.measured(whole)
        cut = _of_sizes(without_units(self.graph, removed(self.graph, counts)), self.graph)
        beside = getattr(self._measure, "beside", None)
        return self.measured(cut) if beside is None else self.measured(cut, beside, whole)

    def measured(self, model: keras.Model, measure: Any = None, *others: keras.Model) -> float:
        """Milliseconds of a model, checked to be a number above 0."""
        found = (measure or self._measure)(model, *others)
        if not checks.is_number(found) or not 0 < found < float("inf"):
            expected = f"a callable that returns milliseconds, above 0, for {model.name!r}"
            raise checks.value_error("measure", expected, found)
        return float(found)

    def _time(self, place: int, counts: np.ndarray) -> float:
        call, groups = self._calls[place]
        key = (place, *counts[groups].tolist())
        if key not in self._known:
            self._known[key] = self._time_of(call, removed(self.graph, counts))
        return self._known[key]

    def _time_of(self, call: LayerCall, gone: np.ndarray) -> float:
        layer = self.graph.layer(call.layer)
        config = resized_layer(self.graph, call.layer, gone)
        arguments = tf.nest.map_structure(
            lambda one: (one.shape_after(gone), one.dtype) if isinstance(one, Reads) else one,
            (call.args, call.kwargs),
        )
        unnamed = {name: value for name, value in config.items() if name != "name"}
        described = [type(layer).__qualname__, unnamed, arguments]
        alike = json.dumps(described, sort_keys=True, default=repr)
        if alike not in self._alike:
            self._alike[alike] = self.measured(_alone(layer, config, call, gone))
        return self._alike[alike]


def removed(graph: Graph, counts: np.ndarray) -> np.ndarray:
    """Bool array (U,): the first units of each group, as many as counted."""
    found = np.zeros(graph.units, bool)
    for group, count in zip(graph.groups, counts, strict=True):
        found[group.units[:count]] = True
    return found


def _groups_of(graph: Graph, call: LayerCall) -> np.ndarray:
    """Indices of the groups on which the widths of a call depend."""
    owner = np.full(graph.units, -1)
    for index, group in enumerate(graph.groups):
        owner[group.units] = index
    leaves = tf.nest.flatten((call.args, dict(call.kwargs)))
    units = [one.units for one in leaves if isinstance(one, Reads)]
    units += [item.units for item in graph.resizes if item.layer == call.layer]
    every = np.concatenate([np.zeros(0, int), *units])
    return np.unique(owner[every[every != KEPT]])


def _alone(
    layer: keras.layers.Layer, config: configs.Config, call: LayerCall, gone: np.ndarray
) -> keras.Model:
    """A model of this one call, without the removed units and with fresh weights."""
    inputs = []

    def given(value: Any) -> Any:
        if not isinstance(value, Reads):
            return value
        batch, *shape = value.shape_after(gone)
        inputs.append(keras.Input(shape, batch, dtype=value.dtype))
        return inputs[-1]

    args, kwargs = tf.nest.map_structure(given, (call.args, dict(call.kwargs)))
    return keras.Model(inputs, configs.built_again(layer, config)(*args, **kwargs))


def _of_sizes(model: keras.Model, graph: Graph) -> keras.Model:
    """The model with inputs of the sizes that its graph counts for."""
    if graph.input_shape is None:
        return model
    shapes = input_shapes(graph.model, graph.input_shape)
    pairs = zip(graph.model.inputs, shapes, strict=True)
    inputs = [keras.Input(shape, one.shape[0], dtype=one.dtype.name) for one, shape in pairs]
    packed = tf.nest.pack_sequence_as(graph.model.input, inputs)
    return keras.Model(inputs, model(packed))
