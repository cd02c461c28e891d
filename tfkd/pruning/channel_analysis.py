"""Dependency analysis of channels: which are coupled, which are prunable, which are frozen.

The analysis propagates an array of channel ids ("atoms") through every layer call. Layers
couple channels: a sum those of its branches, a depthwise convolution its input and output,
a shared layer those of its calls. The equivalence classes that remain are the prunable
units. A unit may be pruned only if its activation is provably zero, once its filters,
biases and batch-norm parameters are zero, wherever a layer mixes channels. All other
channels are frozen, and the reason is recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.costs.trace import InputShape, input_shapes
from tfkd.networks.accept import check_graph
from tfkd.networks.call_graph import Call, CallGraph, maker_of
from tfkd.networks.layer_parts import arrays
from tfkd.pruning import rules
from tfkd.pruning.channel_ledger import FIXED, Channels, Ledger
from tfkd.pruning.graph import (
    KEPT,
    Cost,
    Frozen,
    Graph,
    Group,
    LayerCall,
    Reads,
    Resize,
    WeightAxis,
)


def analyse(
    model: keras.Model, finite: bool = False, input_shape: InputShape | None = None
) -> Graph:
    """Finds the prunable channels of a model and the weights coupled to each of them.

    Args:
        model: a built functional or Sequential `tf_keras` model; nested models are
            analysed too. It is neither run nor changed.
        finite: whether its weights must be finite numbers.
        input_shape: sizes for which multiply-accumulates are counted, as in
            `tfkd.report.profile`; needed only if the model leaves sizes open.

    Returns:
        A `Graph` of channel groups and of the weight slices that their units own.

    Raises:
        TypeError: if `model` is not a `tf_keras` model.
        ValueError: if it is not built, or is a subclassed model, whose layer calls are
            not recorded; or, with `finite`, if weights are NaN or infinite.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import pruning
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(x)
        >>> y = keras.layers.Dense(2, name="head")(keras.layers.Flatten()(y))
        >>> graph = pruning.analyse(keras.Model(x, y))
        >>> [(group.name, group.size) for group in graph.groups]
        [('conv', 4)]
        >>> [(frozen.name, frozen.reason) for frozen in graph.frozen]
        [('head', 'output of the model')]
    """
    network = check_graph("model", model, finite)
    ledger = _followed(network, [tuple(tensor.shape) for tensor in model.inputs])
    if input_shape is None:
        return _build(network, ledger, ledger)
    shapes = input_shapes(model, input_shape)
    sized = [(tensor.shape[0], *shape) for tensor, shape in zip(model.inputs, shapes, strict=True)]
    # What can be pruned must hold for all sizes.
    return _build(network, ledger, _followed(network, sized), input_shape)


def _followed(network: CallGraph, shapes: list[tuple[int | None, ...]]) -> Ledger:
    """The ledger of a model with inputs of these shapes, batch axis included."""
    ledger = Ledger()
    inputs = [Channels(shape) for shape in shapes]
    for channels in network.follow(inputs, partial(_visit, network, ledger, "")):
        ledger.freeze(channels.atoms, "output of the model")
    return ledger


def _visit(
    network: CallGraph,
    ledger: Ledger,
    prefix: str,
    of: Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Channels]:
    """The channels of the outputs of a call in `network`."""
    layer = of.layer
    # A layer shared by two nested models keeps its first path: each weight has one owner.
    path = ledger.paths.setdefault(id(layer), prefix + of.name)
    # Stands for unknown rank: a single open axis, which no rule follows.
    shapes = [(None,) if t.shape.rank is None else tuple(t.shape) for t in of.makes]
    call = rules.ChannelCall(ledger, layer, path, args, kwargs, shapes)
    nested = network.nested.get(of.name)
    if nested is not None and len(call.inputs) == len(layer.inputs):
        return _enter(nested, call)
    ledger.calls.append((path, (args, kwargs), (tuple(of.args), dict(of.kwargs))))
    if any(size is None for shape in shapes for size in shape[1:]):
        call.shapes = _closed_shapes(layer, call, shapes)
    rule = rules.find(layer)
    if rule is None:
        (ledger.uncounted if arrays(layer) else ledger.unruled).append(path)
        reason = f"no rule for {path}, a {type(layer).__name__} (add one with register_rule)"
        call.hide(layer, reason)
        return call.freeze_all(reason)
    noted = len(ledger.noted[path])
    outputs = rule(call)
    if len(ledger.noted[path]) == noted:  # the rule recorded nothing for this call
        ledger.fix(path)
    return outputs


def _enter(network: CallGraph, call: rules.ChannelCall) -> list[Channels]:
    """Analyses a nested model; its input layers are resized with the tensors fed to them."""
    ledger = call.ledger
    for tensor, channels in zip(network.model.inputs, call.inputs, strict=True):
        path = f"{call.path}/{maker_of(tensor).name}"
        if channels.axis is None:
            ledger.fix(path)
        else:
            entry = rules.ChannelCall(ledger, None, path, [channels], {}, [])
            entry.resize("batch_input_shape", channels.atoms, channels.axis)
    return network.follow(call.inputs, partial(_visit, network, ledger, f"{call.path}/"))


def _closed_shapes(
    layer: keras.layers.Layer, call: rules.ChannelCall, shapes: list[Any]
) -> list[Any]:
    """Output shapes of this call where the model was built with open shapes."""
    given = [channels.shape for channels in call.inputs]
    if not given or len(shapes) != 1 or any(None in shape[1:] for shape in given):
        return shapes
    try:
        return [tuple(layer.compute_output_shape(given[0] if len(given) == 1 else given))]
    except (NotImplementedError, ValueError, TypeError):
        return shapes


def _build(
    network: CallGraph, ledger: Ledger, counted: Ledger, input_shape: InputShape | None = None
) -> Graph:
    """Numbers the units (classes of coupled atoms) and collects them into groups.

    The costs are those of `counted`, the ledger for the sizes of `input_shape`.
    """
    keys = list(ledger.axes)
    roots = [ledger.roots(ledger.axes[key][0]) for key in keys]
    reasons: dict[int, str] = {}
    for atom, reason in ledger.reasons.items():
        reasons.setdefault(ledger.root(atom), reason)
    summed = {ledger.root(atom) for atom in ledger.summed if atom != FIXED}
    # Units of one group own the same axes, and equally many indices of each.
    owned: dict[int, list[tuple[int, int]]] = defaultdict(list)
    order: dict[int, None] = {}
    for i, (key, atoms) in enumerate(zip(keys, roots, strict=True)):
        found, counts = np.unique(atoms[atoms != FIXED], return_counts=True)
        for atom, count in zip(found.tolist(), counts.tolist(), strict=True):
            owned[atom].append((i, count))
        if ledger.axes[key][2]:
            order.update(dict.fromkeys(a for a in atoms.tolist() if a != FIXED))
    members: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for atom in order:
        signature = (reasons.get(atom), *owned[atom])
        members[signature].append(atom)
    groups, frozen, number = _sort(keys, ledger, members, summed)
    frozen += [Frozen(path, (path,), *found) for path, found in ledger.hidden.items()]

    def units(atoms: np.ndarray) -> np.ndarray:
        return np.array([number.get(a, KEPT) for a in atoms.tolist()], int)

    axes = [
        WeightAxis(*key, units(atoms), *ledger.axes[key][1:])
        for key, atoms in zip(keys, roots, strict=True)
    ]
    resizes = [
        Resize(path, key, units(ledger.roots(atoms)), index)
        for (path, key, index), atoms in ledger.resizes.items()
    ]
    costs = [Cost(*key, positions) for key, positions in counted.costs.items()]
    found = groups, frozen, axes, costs, resizes
    unknown = dict.fromkeys(counted.uncounted), dict.fromkeys(counted.unruled)
    calls = _calls(ledger, counted, units)
    return Graph(network, *found, len(number), counted.fixed_macs, *unknown, input_shape, calls)


def _calls(
    ledger: Ledger, counted: Ledger, units: Callable[[np.ndarray], np.ndarray]
) -> list[LayerCall]:
    """The calls of layers, at the sizes of `counted`, with the units that they read."""

    def read(tracked: Any, sized: Any, recorded: Any) -> Any:
        if not isinstance(tracked, Channels):
            return tracked
        of = units(ledger.roots(tracked.atoms))
        return Reads(sized.shape, recorded.dtype.name, tracked.axis, of)

    pairs = zip(ledger.calls, counted.calls, strict=True)
    return [
        LayerCall(path, *tf.nest.map_structure(read, given, sized, recorded))
        for (path, given, recorded), (_, sized, _) in pairs
    ]


def _sort(
    keys: list[tuple[str, str, int]],
    ledger: Ledger,
    members: dict[tuple[Any, ...], list[int]],
    summed: set[int],
) -> tuple[list[Group], list[Frozen], dict[int, int]]:
    """Splits the sets of atoms into groups and frozen channels; numbers the units."""
    groups: list[Group] = []
    frozen: list[Frozen] = []
    number: dict[int, int] = {}
    used: dict[str, int] = defaultdict(int)
    for (reason, *owned), atoms in members.items():
        makers = tuple(dict.fromkeys(keys[i][0] for i, _ in owned if ledger.axes[keys[i]][2]))
        if reason is not None:
            frozen.append(Frozen(makers[0], makers, len(atoms), reason))
            continue
        used[makers[0]] += 1
        name = makers[0] if used[makers[0]] == 1 else f"{makers[0]}:{used[makers[0]]}"
        units = np.arange(len(number), len(number) + len(atoms))
        number.update(zip(atoms, units.tolist(), strict=True))
        groups.append(Group(name, units, makers, any(a in summed for a in atoms)))
    return groups, frozen, number
