"""Masks channels: zeroes filters in place; compares a model so masked with its shrunk form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.networks.layer_parts import flat_layers
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import KEPT, Graph
from tfkd.pruning.selection import Selection
from tfkd.types import Structure

BATCH = 4  # number of random examples on which the two models are compared
OPEN_SIZE = 32  # size used for axes of unknown size in random examples


class Slices:
    """The weight slices that masking a unit zeroes: kernel, bias, gamma, beta, moving mean.

    Args:
        graph: graph of the model that owns the weights.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._items: list[tuple[tf.Variable, dict[int, np.ndarray]]] = []
        known: dict[int, dict[int, np.ndarray]] = {}
        for item in graph.axes:
            if item.zeroed:
                variable = graph.variable(item.layer, item.weight)
                if id(variable) not in known:  # one weight may have two paths
                    known[id(variable)] = {}
                    self._items.append((variable, known[id(variable)]))
                known[id(variable)][item.axis] = item.units

    @property
    def variables(self) -> list[tf.Variable]:
        """The weights that masking changes."""
        return [variable for variable, _ in self._items]

    def scale(self, factors: np.ndarray) -> None:
        """Multiplies the slices of each unit; a factor of 1 changes no bit of them.

        Args:
            factors: float array (U,).
        """
        for variable, axes in self._items:
            multiply(variable, spread(variable, axes, factors))

    def zero(self, removed: np.ndarray) -> None:
        """Zeroes the slices of the units for which the bool array (U,) is True."""
        self.scale(np.where(removed, 0.0, 1.0))

    def zero_units(self) -> np.ndarray:
        """Returns a bool array (U,), True for units all of whose scored filters are zero."""
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


def spread(variable: tf.Variable, axes: dict[int, np.ndarray], factors: np.ndarray) -> np.ndarray:
    """Expands per-unit factors to an array that broadcasts against a weight.

    The factor is 1 where no unit owns a slice, and the smaller one where units on two axes do.

    Args:
        variable: the weight, or an optimizer slot of its shape.
        axes: axis → unit of each index along it.
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


def multiply(variable: tf.Variable, factor: np.ndarray) -> None:
    """Multiplies a variable in place, with 0 · NaN = 0."""
    if (factor != 1).any():
        value = _value(variable)
        scaled = value * factor.astype(value.dtype)
        variable.assign(np.where(factor == 0, np.zeros((), value.dtype), scaled))


def _value(variable: tf.Variable) -> np.ndarray:
    return np.asarray(tf.convert_to_tensor(variable))


@contextlib.contextmanager
def masked(graph: Graph, removed: np.ndarray) -> Iterator[None]:
    """Context manager that masks units in the model of `graph` and restores its weights.

    Masking a copy instead would double the build time, and would hide what is lost when a
    model is rebuilt from its config.
    """
    slices = Slices(graph)
    # Layers called with training=True update their moving statistics whenever they run.
    others = [w for w in graph.model.non_trainable_weights if isinstance(w, tf.Variable)]
    layers = [layer for layer in flat_layers(graph.model) if getattr(layer, "states", None)]
    states = [state for layer in layers for state in layer.states if layer.stateful]
    others += [state for state in states if isinstance(state, tf.Variable)]
    variables = [*slices.variables, *others]
    before = [variable.numpy() for variable in variables]
    try:
        slices.zero(removed)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def compare(
    graph: Graph, removed: np.ndarray, small: keras.Model, verify: Any, tolerance: float
) -> None:
    """Raises unless a shrunk model computes what the masked one does.

    Args:
        graph: graph of the model, which is masked during the comparison.
        removed: bool array (U,), True for removed units.
        small: the shrunk model.
        verify: True: on random inputs; or also on these examples, as `to_verify` returns them.
        tolerance: largest difference allowed, as a fraction of the output's range.
    """
    model = graph.model
    batches = [] if verify is True else [example_inputs.packed(model, verify)]
    if all(tensor.dtype != tf.string for tensor in model.inputs):
        batches.insert(0, random_inputs(model))
    if not batches:
        expected = "examples (the model takes strings, which can't be drawn at random)"
        raise checks.value_error("verify", expected, True)
    with masked(graph, removed):
        _reset_states(model, small)
        for batch in batches:
            _compare(model, small, batch, tolerance)
        _reset_states(model, small)


def _reset_states(*models: keras.Model) -> None:
    """Resets stateful recurrent layers, so that both models start from the same state."""
    for model in models:
        model.reset_states()


def random_inputs(model: keras.Model, count: int = BATCH, seed: int = 0) -> Structure:
    """Random inputs in the structure that the model takes: normal values, or token ids.

    Strings are words from the vocabularies of the model's lookup layers, or unknown.
    """
    rng = np.random.default_rng(seed)
    layers = flat_layers(model)
    vocabularies = [one.input_dim for one in layers if isinstance(one, keras.layers.Embedding)]

    def draw(tensor: tf.Tensor) -> tf.Tensor:
        shape = [
            tensor.shape[0] or count,
            *(OPEN_SIZE if size is None else size for size in tensor.shape[1:]),
        ]
        if tensor.dtype == tf.string:
            tables = [layer for layer in layers if hasattr(layer, "get_vocabulary")]
            words = {str(word) for table in tables for word in table.get_vocabulary()}
            return tf.constant(rng.choice([*sorted(words)[:1000], "?"], shape))
        if tensor.dtype.is_floating and not vocabularies:
            return tf.constant(rng.normal(size=shape), tensor.dtype)
        return tf.cast(rng.integers(0, min(vocabularies, default=2), shape), tensor.dtype)

    return tf.nest.map_structure(draw, model.input)


def _compare(zeroed: keras.Model, small: keras.Model, batch: Any, tolerance: float) -> None:
    pairs = zip(
        tf.nest.flatten(zeroed(batch, training=False)),
        tf.nest.flatten(small(batch, training=False)),
        zeroed.output_names,
        strict=True,
    )
    for expected, found, name in pairs:
        expected, found = np.asarray(expected, "float64"), np.asarray(found, "float64")
        if not np.isfinite(expected).all():
            raise ValueError(
                f"`model`: expected finite outputs, received NaN or infinity in {name!r} of the "
                "masked model. Its weights are damaged, or its inputs out of range."
            )
        # Constant outputs have no range: relate the difference to their magnitude.
        spread = np.ptp(expected)
        scale = spread if spread > 0 else max(np.abs(expected).max(), 1.0)
        difference = np.abs(expected - found).max() / scale
        if not difference <= tolerance:
            raise ValueError(
                f"`selection`: expected the shrunk model to equal the masked one to {tolerance:g} "
                f"of the output's range, received a difference of {difference:.3g} in {name!r}. "
                "A rule given to tfkd.pruning.register_rule is wrong, or the model does not "
                "compute in float32 (then raise `tolerance`)."
            )


def apply_selection(model: keras.Model, selection: Selection) -> None:
    """Zeroes the filters of a selection in place: kernel, bias, gamma, beta, moving mean.

    The model keeps its shapes and computes the same function as the shrunk model.

    Args:
        model: the model that the selection was made for.
        selection: the units to zero.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the selection was made for another model, belongs to a filter decay
            that has not ended, or would remove every channel of a group. The model is
            then unchanged.

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
    """Accepts a final `Selection`; raises for anything else."""
    if not isinstance(selection, Selection):
        raise TypeError(
            f"`selection`: expected a tfkd.pruning.Selection, received {type(selection).__name__}. "
            "Take decay.selection of a FilterDecay callback, or tfkd.pruning.select(model, plan)."
        )
    if selection.pending:
        raise ValueError(
            "`selection`: expected one of a filter decay that has ended, received one whose "
            f"{selection.pending}: its filters are not zero yet. Train to the schedule's end_step, "
            "or choose filters by their current weights with select(model, plan)."
        )
    return selection
