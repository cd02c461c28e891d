"""Dependency graph of a model's channels: prunable units, channel groups, weight axes, costs.

A **unit** is the smallest structure that can be pruned on its own: one filter of a
convolution with its bias and batch normalization, or a set of coupled channels, such as the
same channel of every convolution whose outputs a residual sum adds. Units are numbered
0 … U − 1 over the model. A **group** is a set of units of the same layers: all filters of
one convolution, or all channels of one residual stage.

See Fang et al. 2023, DepGraph (https://arxiv.org/abs/2301.12900), for the general method.
The rest of `tfkd.pruning` builds on these classes.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.costs import trace
from tfkd.networks import layer_parts
from tfkd.networks.call_graph import CallGraph
from tfkd.networks.layer_parts import flat_layers
from tfkd.networks.paths import fingerprint, layers_by_path

KEPT = -1  # in an array of units: an index that is never removed


@dataclasses.dataclass(frozen=True)
class WeightAxis:
    """One axis of one weight, and the unit that each index along it belongs to.

    Attributes:
        layer: path of the layer, such as `backbone/conv1` inside a nested model.
        weight: attribute path of the weight on its layer, such as `kernel`.
        axis: the axis, from 0.
        units: int array, the unit of each index along the axis, or `KEPT`. A unit that
            owns several indices appears several times.
        zeroed: True if masking a unit sets these slices to zero (filter, bias, gamma,
            beta); False if they are only dropped when the model is shrunk (the input
            slices of the next layer, which then multiply zeros).
        scored: True for the filters from which importance scores are computed (kernels).
    """

    layer: str
    weight: str
    axis: int
    units: np.ndarray
    zeroed: bool
    scored: bool = False


@dataclasses.dataclass(frozen=True)
class Cost:
    """A weight, each element of which takes part in `positions` MACs per example."""

    layer: str
    weight: str
    positions: int


@dataclasses.dataclass(frozen=True)
class Resize:
    """A channel count in a layer's config, `config[key]` or `config[key][index]`.

    Attributes:
        layer: path of the layer.
        key: name in the layer's config; dots separate the keys of nested dicts.
        units: the units of the channels that are counted.
        index: position if `config[key]` is a sequence; None if it is a number.
    """

    layer: str
    key: str
    units: np.ndarray
    index: int | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that are produced by the same layers.

    Attributes:
        name: path of the first layer that produces the units (with the suffix `:2`, `:3`
            where a layer has units in several groups).
        units: int array of unit numbers, in channel order.
        layers: paths of the layers whose filters produce the units.
        residual: True if a sum of branches couples the channels of its layers.
    """

    name: str
    units: np.ndarray
    layers: tuple[str, ...]
    residual: bool

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Channels that can't be pruned, and the reason."""

    name: str
    layers: tuple[str, ...]
    channels: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Reads:
    """A tensor that a layer reads: its shape, and the unit of each index of its channel axis."""

    shape: tuple[int | None, ...]
    dtype: str
    axis: int | None
    units: np.ndarray

    def shape_after(self, removed: np.ndarray) -> tuple[int | None, ...]:
        """The shape, batch axis included, once units are removed."""
        sizes = list(self.shape)
        if self.axis is not None:
            sizes[self.axis] = int(kept(self.units, removed).sum())
        return tuple(sizes)


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its path, and its arguments with `Reads` in place of tensors."""

    layer: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Graph:
    """Channel dependencies of a model: prunable units, weights they own, MACs they cost.

    Attributes:
        network: call graph of the analysed model.
        model: the analysed model. Scores read its weights; it is never changed.
        groups: the `Group`s, in the order of the model's layers.
        frozen: a `Frozen` for each set of channels that can't be pruned.
        axes: a `WeightAxis` for each channel axis of a weight, frozen ones included.
        costs: a `Cost` for each weight that takes part in multiply-accumulates.
        resizes: a `Resize` for each channel count in a layer's config.
        units: number of units, U.
        uncounted: paths of layers with weights whose cost no pruning rule counts.
        input_shape: sizes for which costs are counted; None: those of the model.
        calls: a `LayerCall` for each call of a layer, in the order of the model.
    """

    def __init__(
        self,
        network: CallGraph,
        groups: Iterable[Group],
        frozen: Iterable[Frozen],
        axes: Iterable[WeightAxis],
        costs: Iterable[Cost],
        resizes: Iterable[Resize],
        units: int,
        fixed_macs: int = 0,
        uncounted: Iterable[str] = (),
        unruled: Iterable[str] = (),
        input_shape: trace.InputShape | None = None,
        calls: Iterable[LayerCall] = (),
    ):
        self.network = network
        self.model = model = network.model
        self.groups: tuple[Group, ...] = tuple(groups)
        self.frozen: tuple[Frozen, ...] = tuple(frozen)
        self.axes: tuple[WeightAxis, ...] = tuple(axes)
        self.costs: tuple[Cost, ...] = tuple(costs)
        self.resizes: tuple[Resize, ...] = tuple(resizes)
        self.units = units
        self.input_shape = input_shape
        self.calls: tuple[LayerCall, ...] = tuple(calls)
        self.uncounted: tuple[str, ...] = tuple(uncounted)
        self._fixed_by_rules = fixed_macs
        self._unruled: tuple[str, ...] = tuple(unruled)  # layers without rule and weights
        self._layers = layers_by_path(model)
        self.fingerprint = fingerprint(model)

    def group(self, name: str) -> Group:
        """Returns the group called `name`; raises KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def layer(self, path: str) -> keras.layers.Layer:
        """Returns the layer at a path."""
        return self._layers[path]

    def variable(self, layer: str, weight: str) -> tf.Variable:
        """Returns the variable at a weight's attribute path on the layer at a path."""
        return operator.attrgetter(weight)(self._layers[layer])

    @property
    def fixed_macs(self) -> int:
        """Multiply-accumulates that pruning can't reduce; part of `macs`.

        These belong to products without weights (attention scores) and to layers without
        a pruning rule, whose inputs are frozen and whose cost is therefore constant.
        """
        return self._fixed_by_rules + self._traced[0]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Paths of layers whose multiply-accumulates are unknown and not part of `macs`."""
        return self._traced[1]

    @property
    def sizes_missing(self) -> bool:
        """Whether the model leaves sizes open for which no `input_shape` was given."""
        is_open = any(None in tuple(tensor.shape)[1:] for tensor in self.model.inputs)
        return is_open and self.input_shape is None

    @functools.cached_property
    def _traced(self) -> tuple[int, tuple[str, ...]]:
        """(MACs of layers without a pruning rule, from a trace; layers of unknown cost)."""
        paths = self.uncounted + self._unruled
        if not paths:
            return 0, ()
        try:
            entries = trace.follow(self.model, self.input_shape)
        except ValueError:  # an open input shape
            return 0, self.uncounted
        partly = {cost.layer for cost in self.costs}
        partly |= {axis.layer for axis in self.axes if (axis.units != KEPT).any()}
        known, unknown = 0, []
        for path in paths:
            layer = self._layers.get(path)
            parts = {id(part) for part in flat_layers(layer)}
            costs = [p for e in entries if id(e.layer) in parts for p in e.products]
            if path in partly or None in costs or not costs:
                unknown.append(path)
            if path not in partly:
                known += sum(terms * outputs for p in costs for terms, outputs in p or ())
        return known, tuple(unknown)

    def macs(self, removed: np.ndarray | None = None) -> int:
        """Multiply-accumulates per example once units are removed.

        Args:
            removed: bool array (U,), True for removed units; None: none is removed.
        """
        shapes = self._shapes(removed)
        return self.fixed_macs + sum(
            cost.positions * int(np.prod(shapes[cost.layer, cost.weight], dtype=np.int64))
            for cost in self.costs
        )

    def params(self, removed: np.ndarray | None = None) -> int:
        """Parameters of the whole model, trainable or not, once units are removed."""
        shapes = self._shapes(removed)
        total = layer_parts.count(self.model.weights)
        for (layer, weight), shape in shapes.items():
            before = self.variable(layer, weight).shape.num_elements()
            total += int(np.prod(shape, dtype=np.int64)) - before
        return total

    def gather(self, weight: tf.Variable, value: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Drops the slices of removed units from an array of the shape of a weight."""
        for axis, units in self._owners.get(id(weight), ()):
            value = np.compress(kept(units, removed), value, axis)
        return value

    @functools.cached_property
    def _owners(self) -> dict[int, list[tuple[int, np.ndarray]]]:
        """id of a variable → (axis, units) for each of its channel axes."""
        found: dict[int, list[tuple[int, np.ndarray]]] = {}
        for axis in self.axes:
            variable = self.variable(axis.layer, axis.weight)
            found.setdefault(id(variable), []).append((axis.axis, axis.units))
        return found

    def _shapes(self, removed: np.ndarray | None) -> dict[tuple[str, str], list[int]]:
        keys = dict.fromkeys((axis.layer, axis.weight) for axis in self.axes)
        keys.update(dict.fromkeys((cost.layer, cost.weight) for cost in self.costs))
        shapes = {key: list(self.variable(*key).shape) for key in keys}
        if removed is not None:
            for axis in self.axes:
                shapes[axis.layer, axis.weight][axis.axis] = int(kept(axis.units, removed).sum())
        return shapes


def kept(units: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Bool array, True for the indices of `units` that are kept when units are removed."""
    return ~((units != KEPT) & removed[np.maximum(units, 0)]) if len(removed) else units == KEPT
