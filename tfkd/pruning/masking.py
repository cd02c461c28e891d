"""Sets what is to be removed to zero, in place: the model that a shrunk one must equal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.networks import layer_weights
from tfkd.networks.layer_parts import flat_layers
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import KEPT, Graph
from tfkd.pruning.selection import Selection


class Slices:
    """All that removing a unit sets to zero: kernels, biases, gammas, betas, moving means.

    Args:
        graph: of the model whose weights they are.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._items: list[tuple[Any, dict[int, np.ndarray]]] = []
        known: dict[int, dict[int, np.ndarray]] = {}
        for item in graph.axes:
            if item.zeroed:
                variable = graph.variable(item.layer, item.weight)
                if id(variable) not in known:  # two paths may lead to one weight
                    known[id(variable)] = {}
                    self._items.append((variable, known[id(variable)]))
                known[id(variable)][item.axis] = item.units

    @property
    def variables(self) -> list[Any]:
        """The weights."""
        return [variable for variable, _ in self._items]

    def scale(self, factors: np.ndarray) -> None:
        """Multiplies the slices of each unit; a factor of 1 leaves every bit as it is.

        Args:
            factors: float array (U,).
        """
        for variable, axes in self._items:
            multiply(variable, spread(variable, axes, factors))

    def zero(self, removed: np.ndarray) -> None:
        """Sets the slices of units to zero, where the bool array (U,) is True."""
        self.scale(np.where(removed, 0.0, 1.0))

    def zero_units(self) -> np.ndarray:
        """Returns a bool array (U,): the units whose scored filters are zero throughout."""
        zero = np.zeros(self._graph.units, bool)
        alive = np.zeros(self._graph.units, bool)
        for item in self._graph.axes:
            if item.scored:
                value = _value(self._graph.variable(item.layer, item.weight))
                others = tuple(i for i in range(value.ndim) if i != item.axis)
                owned = item.units != KEPT
                zero[item.units[owned]] = True
                nonzero = (value != 0).any(axis=others)
                alive[item.units[owned & nonzero]] = True
        return zero & ~alive


def spread(variable: Any, axes: dict[int, np.ndarray], factors: np.ndarray) -> np.ndarray:
    """What a weight is multiplied by: an array that broadcasts against it.

    1 where no unit owns a slice; where units on two axes do, the smaller factor.

    Args:
        variable: the weight, or a slot of its shape.
        axes: axis → units of each index along it.
        factors: float array (U,).
    """
    result = np.ones([1] * variable.shape.rank)
    for axis, units in axes.items():
        along = np.ones(len(units))
        owned = units != KEPT
        along[owned] = factors[units[owned]]
        shape = [len(units) if i == axis else 1 for i in range(variable.shape.rank)]
        result = np.minimum(result, along.reshape(shape))
    return result


def multiply(variable: Any, factor: np.ndarray) -> None:
    """Multiplies a variable in place; 0 · NaN is 0."""
    if (factor != 1).any():
        value = _value(variable)
        scaled = value * factor.astype(value.dtype)
        variable.assign(np.where(factor == 0, np.zeros((), value.dtype), scaled))


def _value(variable: Any) -> np.ndarray:
    return np.asarray(tf.convert_to_tensor(variable))


@contextlib.contextmanager
def masked(graph: Graph, removed: np.ndarray) -> Iterator[None]:
    """Within a `with`, units are zero in the model of `graph`; then its weights are as before.

    A copy of the model would take as long to build as the shrunk one, and would
    hide what building from a config loses.
    """
    slices = Slices(graph)
    variables = slices.variables
    # Layers that were called with training=True change their statistics when they run.
    trained = {id(weight) for weight in graph.model.trainable_weights}
    variables += [w for w in layer_weights.arrays(graph.model) if id(w) not in trained]
    layers = [layer for layer in flat_layers(graph.model) if getattr(layer, "states", None)]
    states = [state for layer in layers for state in layer.states if layer.stateful]
    variables += [state for state in states if isinstance(state, tf.Variable)]
    before = [variable.numpy() for variable in variables]
    try:
        slices.zero(removed)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def apply_selection(model: keras.Model, selection: Selection) -> None:
    """Sets the filters of a selection to zero, in place: kernel, bias, gamma, beta, mean.

    The model keeps its shape and computes what the shrunk model computes.

    Args:
        model: the model that the selection was made for.
        selection: what to zero.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the selection was made for another model, is of a decay that
            has not come to its end, or would take every channel of a group. The
            model is then unchanged.

    Example:
        >>> from tfkd import models, pruning
        >>> model = models.resnet(8)
        >>> plan = pruning.plan(model, macs_reduction=0.4)
        >>> pruning.apply_selection(model, pruning.select(model, plan))
        >>> kernel = model.get_layer("stage1_block1_1_conv").kernel.numpy()
        >>> int((abs(kernel).sum((0, 1, 2)) == 0).sum()) == plan.remove["stage1_block1_1_conv"]
        True
    """
    graph = analyse(model)
    Slices(graph).zero(checked(selection).units(graph))


def checked(selection: Selection) -> Selection:
    """Raises unless it is a `Selection`, and one that is final."""
    if not isinstance(selection, Selection):
        raise TypeError(
            f"`selection`: expected a tfkd.pruning.Selection, received {type(selection).__name__}. "
            "Take decay.selection of a FilterDecay callback, or tfkd.pruning.select(model, plan)."
        )
    if selection.pending:
        raise ValueError(
            "`selection`: expected that of a decay that has come to its end, received one whose "
            f"{selection.pending}: its filters are not zero. Train to the schedule's end_step. Or, "
            "to remove filters without that, select(model, plan) chooses them now."
        )
    return selection
