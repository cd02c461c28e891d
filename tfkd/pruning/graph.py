"""What an analysed model looks like: units, groups, and the axes of weights that they own.

A **unit** is the least that can be removed alone: one filter of a convolution
with its bias and batch normalization, or the same channel of every convolution
that a residual sum ties together. Units are numbered 0 … U − 1 over the model.
A **group** is a set of units that belong to the same layers: all filters of one
convolution, or all channels of one residual stage.

Everything else of `tfkd.pruning` is written against these classes.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import numpy as np

from tfkd.costs import trace
from tfkd.networks import layer_weights
from tfkd.networks.call_graph import CallGraph
from tfkd.networks.layer_parts import flat_layers
from tfkd.networks.paths import fingerprint, layers_by_path

KEPT = -1  # in an array of units: an index that is never removed


@dataclasses.dataclass(frozen=True)
class WeightAxis:
    """One axis of one weight, and the unit that each index along it belongs to.

    Attributes:
        layer: path of the layer, `backbone/conv1` inside a nested model.
        weight: attribute path of the weight on its layer, `kernel`.
        axis: the axis, from 0.
        units: int array, one number for each index along the axis: its unit, or
            `KEPT`. A number appears several times where indices go together.
        zeroed: True if removing a unit sets these slices to zero (a filter, a
            bias, gamma, beta); False if they are only left out (the inputs of
            the next layer, which then see zeros).
        scored: True for the filters by which a unit is judged (kernels).
    """

    layer: str
    weight: str
    axis: int
    units: np.ndarray
    zeroed: bool
    scored: bool = False


@dataclasses.dataclass(frozen=True)
class Cost:
    """A weight takes part in `positions` multiply-accumulates per element and example."""

    layer: str
    weight: str
    positions: int


@dataclasses.dataclass(frozen=True)
class Resize:
    """A number in a layer's config that counts channels: `config[key][index]`.

    Attributes:
        layer: path of the layer.
        key: name in the layer's config; dotted into nested dicts.
        units: the units of the channels that the number counts.
        index: position in `config[key]` if that is a sequence; None if a number.
    """

    layer: str
    key: str
    units: np.ndarray
    index: int | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that the same layers make.

    Attributes:
        name: name of the group: the path of the first layer that makes it (with
            `:2`, `:3` where a layer has units in several groups).
        units: int array of the numbers of its units, in channel order.
        layers: paths of the layers whose filters are its units.
        residual: True if a sum of several branches ties its layers together.
    """

    name: str
    units: np.ndarray
    layers: tuple[str, ...]
    residual: bool

    @property
    def size(self) -> int:
        """How many units it has."""
        return len(self.units)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Channels that must stay, and why."""

    name: str
    layers: tuple[str, ...]
    channels: int
    reason: str


class Graph:
    """The channels of a model: what may be removed, what goes with it, what it saves.

    Attributes:
        network: the calls of the analysed model.
        model: the analysed model. It is read when scores are taken, never changed.
        groups: the `Group`s, in the order of the model's layers.
        frozen: what may not be removed, a `Frozen` each, with the reason.
        axes: a `WeightAxis` for each axis of a weight that has channels, also
            of those that all stay.
        costs: a `Cost` for each weight that multiplies.
        resizes: a `Resize` for each number in a config that counts channels.
        units: how many units there are, U.
        uncounted: paths of layers with weights that no rule of pruning counts.
    """

    def __init__(
        self,
        network: CallGraph,
        groups,
        frozen,
        axes,
        costs,
        resizes,
        units,
        fixed_macs=0,
        uncounted=(),
        unruled=(),
    ):
        self.network = network
        self.model = model = network.model
        self.groups: tuple[Group, ...] = tuple(groups)
        self.frozen: tuple[Frozen, ...] = tuple(frozen)
        self.axes: tuple[WeightAxis, ...] = tuple(axes)
        self.costs: tuple[Cost, ...] = tuple(costs)
        self.resizes: tuple[Resize, ...] = tuple(resizes)
        self.units: int = units
        self.uncounted: tuple[str, ...] = tuple(uncounted)
        self._by_rules: int = fixed_macs
        self._unruled: tuple[str, ...] = tuple(unruled)  # without weights
        self._layers = layers_by_path(model)
        self._owners: dict[int, list[tuple[int, np.ndarray]]] | None = None
        self.fingerprint = fingerprint(model)

    def group(self, name: str) -> Group:
        """Returns the group of that name; KeyError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def variable(self, layer: str, weight: str) -> Any:
        """Returns the `tf.Variable` of a layer's path and a weight's attribute path."""
        return operator.attrgetter(weight)(self._layers[layer])

    @property
    def fixed_macs(self) -> int:
        """Multiply-accumulates that no removal changes; part of `macs`.

        Of layers whose products are not with weights, and of those that no rule of pruning
        counts: what reaches these stays, so that they cost what they cost now.
        """
        return self._by_rules + self._others[0]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Paths of layers whose multiply-accumulates nothing knows; `macs` leaves them out."""
        return self._others[1]

    @functools.cached_property
    def _others(self) -> tuple[int, tuple[str, ...]]:
        """What is known, by following the model, of layers that no rule counts; and the rest."""
        paths = self.uncounted + self._unruled
        if not paths:
            return 0, ()
        try:
            entries = trace.follow(self.model)
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
        """Multiply-accumulates for one example when units are removed.

        Args:
            removed: bool array (U,), True where a unit goes; None: nothing goes.
        """
        shapes = self._shapes(removed)
        return self.fixed_macs + sum(
            cost.positions * int(np.prod(shapes[cost.layer, cost.weight], dtype=np.int64))
            for cost in self.costs
        )

    def params(self, removed: np.ndarray | None = None) -> int:
        """Weights of the whole model, trained or not, when units are removed."""
        shapes = self._shapes(removed)
        total = layer_weights.count(self.model.weights)
        for (layer, weight), shape in shapes.items():
            before = self.variable(layer, weight).shape.num_elements()
            total += int(np.prod(shape, dtype=np.int64)) - before
        return total

    def owners(self) -> dict[int, list[tuple[int, np.ndarray]]]:
        """id of a variable → (axis, units) of each of its axes that has channels."""
        if self._owners is None:
            self._owners = {}
            for axis in self.axes:
                variable = self.variable(axis.layer, axis.weight)
                self._owners.setdefault(id(variable), []).append((axis.axis, axis.units))
        return self._owners

    def _shapes(self, removed: np.ndarray | None) -> dict[tuple[str, str], list[int]]:
        keys = dict.fromkeys((axis.layer, axis.weight) for axis in self.axes)
        keys.update(dict.fromkeys((cost.layer, cost.weight) for cost in self.costs))
        shapes = {key: list(self.variable(*key).shape) for key in keys}
        if removed is not None:
            for axis in self.axes:
                shapes[axis.layer, axis.weight][axis.axis] = int(kept(axis.units, removed).sum())
        return shapes


def gather(
    value: np.ndarray, axes: list[tuple[int, np.ndarray]], removed: np.ndarray
) -> np.ndarray:
    """An array without the indices of removed units along each of `axes`."""
    for axis, units in axes:
        value = np.compress(kept(units, removed), value, axis)
    return value


def kept(units: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Bool array: which indices stay, of an array of units, when units are removed."""
    return ~((units != KEPT) & removed[np.maximum(units, 0)]) if len(removed) else units == KEPT
