"""Detects residual blocks (skip connections) and shape-preserving nested models in a graph."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import tf_keras as keras

from tfkd.networks.call_graph import Call, CallGraph, Key, Ref
from tfkd.networks.layer_parts import keras_layers
from tfkd.pruning.blocks.segment import Block, Found, Segment, changed, problem, segment_of, tapped

_SUMS = frozenset({"__operators__.add", "math.add", "math.add_n"})
_ACTIVATIONS = keras_layers("Activation ReLU LeakyReLU ELU PReLU")
_NORMS = keras_layers("BatchNormalization GroupNormalization LayerNormalization")
_SEPARATORS = "_-./"


def find(graph: CallGraph) -> list[Found]:
    """All blocks of a checked model; outer models first, in the order of the data flow."""
    found: list[Found] = []
    for prefix, level in graph.levels().items():
        residual = [_residual(level, prefix, call) for call in level.calls.values()]
        nested = [_nested(level, prefix, name) for name in level.nested]
        blocks = [block for block in (*residual, *nested) if block is not None]
        place = {key: number for number, key in enumerate(level.calls)}
        blocks.sort(key=lambda item: place[item.segments[0].target[:2]])
        found += blocks
    return _with_unique_names(found)


def _nested(graph: CallGraph, prefix: str, name: str) -> Found | None:
    """A nested model as a block, if all of its calls preserve shape and dtype."""
    found = []
    for call in graph.calls_of(name):
        segment = segment_of(graph, prefix, {call.key})
        if isinstance(segment, str) or problem(graph, segment):
            return None
        found.append(segment)
    path = prefix + name
    block = Block(path, (path,), prefix + found[0].source[0], path, removable=True)
    return Found(block, tuple(found), path)


def _residual(graph: CallGraph, prefix: str, call: Call) -> Found | None:
    """The block that ends at a call, if the call adds branches that start at one tensor."""
    layer = call.layer
    is_sum = isinstance(layer, keras.layers.Add) or getattr(layer, "symbol", None) in _SUMS
    if not is_sum or len(call.inputs) < 2 or len(set(call.inputs)) < len(call.inputs):
        return None
    source, reason = _shortcut(graph, call), ""
    if source is None:
        source, reason = _fork(graph, call)  # a projection shortcut, which is listed only
    if source is None:
        return None
    calls = graph.after(source) & graph.upto(call.key)
    tail = _tail(graph, source, call, calls)
    target = tail[-1].outputs[0] if tail else call.outputs[0]
    segment = Segment(prefix, frozenset(calls | {c.key for c in tail}), source, target)
    change, tap = changed(graph, segment), tapped(graph, segment)
    if reason and tap:
        return None  # Crossing branches, as in NASNet, form no block.
    if reason and change:
        reason += " and" + change.removeprefix("it")
    reason = reason or change or tap
    layers = list(dict.fromkeys(key[0] for key in graph.calls if key in segment.calls))
    block = Block(
        name=prefix + (_common_name(layers, graph.layers) or call.name),
        layers=tuple(prefix + layer for layer in layers),
        input=prefix + source[0],
        output=prefix + target[0],
        removable=not reason,
        reason=reason,
    )
    return Found(block, (segment,), prefix + call.name)


def _shortcut(graph: CallGraph, call: Call) -> Ref | None:
    """The identity shortcut: the input of a sum on which all its other inputs depend."""
    for ref in call.inputs:
        after = graph.after(ref)
        if all(other[:2] in after for other in call.inputs if other != ref):
            return ref
    return None


def _fork(graph: CallGraph, call: Call) -> tuple[Ref | None, str]:
    """The last tensor on which all inputs of a sum depend, and why it is no shortcut."""
    branches = [graph.upto(ref[:2]) for ref in call.inputs]
    common = set.intersection(*branches)
    fork = next((key for key in reversed(graph.calls) if key in common), None)
    if fork is None or len(graph.calls[fork].outputs) != 1:
        return None, ""
    source = graph.calls[fork].outputs[0]
    before, after = graph.spec(source), graph.spec(call.outputs[0])
    # Embeddings of the same token ids that are added (tokens, positions) are no block.
    if len(before.shape) != len(after.shape) or before.dtype != after.dtype:
        return None, ""
    shortest = min((branch - common for branch in branches), key=len)
    names = [repr(key[0]) for key in graph.calls if key in shortest]
    names = [*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else names
    return source, f"its shortcut passes through {', '.join(names)}"


def _tail(graph: CallGraph, source: Ref, call: Call, inside: set[Key]) -> list[Call]:
    """The activation or normalization after a sum, if x comes from one of the same kind.

    In ReLU(x + f(x)) with x from a ReLU, the block ends after the second ReLU, which would
    otherwise remain when the block is removed.
    """
    behind: list[Call] = []
    ref = call.outputs[0]
    while (reader := graph.only_reader(ref)) and _kind(reader) is not None:
        behind.append(reader)
        ref = reader.outputs[0]
    before: list[Call] = []
    made = graph.maker(source)
    while _kind(made) is not None:
        before.append(made)
        made = graph.maker(made.inputs[0])
    # In a pre-norm block the branch starts with the normalization: it is not part of the end.
    begins = [_kind(graph.calls[key]) for key in graph.readers[source] if key in inside]
    for length in range(min(len(behind), len(before)), 0, -1):
        kinds = [_kind(c) for c in behind[:length]]
        if kinds == [_kind(c) for c in before[:length][::-1]] and kinds[0] not in begins:
            return behind[:length]
    return []


def _kind(call: Call) -> Any:
    """A key for the kind of a unary activation or normalization; None for other calls."""
    layer = call.layer
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    if isinstance(layer, _NORMS):
        return type(layer).__name__
    if isinstance(layer, _ACTIVATIONS):
        return type(layer).__name__, repr({**layer.get_config(), "name": ""})
    symbol = getattr(layer, "symbol", None) or ""
    return symbol if symbol.startswith("nn.") and symbol.endswith("lu") else None


def _common_name(names: list[str], layers: dict[str, Any]) -> str:
    """The common prefix of the names of layers with weights, up to a separator."""
    names = [name for name in names if layers[name].weights]
    first, last = min(names, default=""), max(names, default="")
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    start = "".join(letter for letter, _ in same)
    if not all(name == start or name[len(start)] in _SEPARATORS for name in names):
        start = start[: max(start.rfind(mark) for mark in _SEPARATORS) + 1]
    start = start.rstrip(_SEPARATORS)
    # Default names of Keras such as `conv2d_3` and `conv2d_4` do not identify a block.
    if all(re.fullmatch(re.escape(start) + r"(_\d+)?", name) for name in names):
        return ""
    return start


def _with_unique_names(found: list[Found]) -> list[Found]:
    """Replaces ambiguous prefixes by the name of the sum, and numbers remaining duplicates."""
    seen = [item.block.name for item in found]
    named = []
    taken: dict[str, int] = {}
    for item in found:
        name = item.block.name
        if seen.count(name) > 1:
            name = item.end
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}:{taken[name]}"
        named.append(dataclasses.replace(item, block=dataclasses.replace(item.block, name=name)))
    return named
