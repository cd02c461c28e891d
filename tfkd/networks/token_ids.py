"""Checks that token ids lie in the range of the Embedding layers that read them.

TensorFlow refuses other ids in a step, with an error of its graph, and on a GPU takes zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.call_graph import CallGraph, Ref, graph_of
from tfkd.networks.layer_parts import flat_layers, inputs_in_order

# Layers and operations that move ids without changing them.
_MOVES = ("InputLayer", "Reshape", "Flatten", "Permute", "RepeatVector", "SlicingOpLambda")
_MOVING = ("cast", "identity", "expand_dims", "squeeze", "reshape", "transpose", "stop_gradient")
# What TensorFlow says: the id, and the number of rows.
_REFUSED = re.compile(r"indices\S* = (-?\d+) is not in \[0, (\d+)\)")


class _Table(NamedTuple):
    rows: int
    name: str


def check(name: str, x: Any, models: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for arrays of ids that are outside of a model's Embedding.

    Other data, such as a `tf.data.Dataset`, are not read; nor are inputs that reach an
    Embedding by other ways than through layers that move values.

    Args:
        name: name of `x` in messages.
        x: arrays (N, ...) in the structure of the models' inputs.
        models: ("student", model) and the like.
    """
    leaves = tf.nest.flatten(x)
    arrays = all(isinstance(leaf, np.ndarray) or hasattr(leaf, "numpy") for leaf in leaves)
    if x is None or not arrays:
        return
    for side, model in models:
        graph = graph_of(model) if _embeddings(model) else None
        if graph is None:
            continue
        try:
            values = inputs_in_order(model, x)
        except (KeyError, ValueError):
            return  # Keras says what is wrong with their structure.
        for tensor, ids in zip(model.inputs, values, strict=False):
            table = _smallest(graph, graph.ref(tensor))
            numbers = np.asarray(ids)
            if table is None or numbers.dtype.kind not in "iuf" or not numbers.size:
                continue
            low, high = numbers.min(), numbers.max()  # Keras casts, so -0.5 is 0
            if low <= -1 or high >= table.rows:
                raise _error(name, side, [table], f"ids from {int(low)} to {int(high)}")


def explained(name: str, error: Exception, models: Iterable[tuple[str, Any]]) -> Exception:
    """A ValueError in place of TensorFlow's error for an id outside of an Embedding.

    Args:
        name: name of the data in the message.
        error: what a step has raised.
        models: ("student", model) and the like.

    Returns:
        The new error, or `error` itself if it is about anything else.
    """
    found = _REFUSED.search(str(error))
    if found is None:
        return error
    number, rows = map(int, found.groups())
    for side, model in models:
        tables = [one for one in _embeddings(model) if one.rows == rows]
        if tables:
            return _error(name, side, tables, f"the id {number}")
    return error


def _error(name: str, side: str, tables: list[_Table], received: str) -> ValueError:
    which = " or ".join(repr(table.name) for table in tables[:3])
    return checks.id_error(name, tables[0].rows, f"the Embedding {which} of the {side}", received)


def _embeddings(model: Any) -> list[_Table]:
    layers = flat_layers(model) if isinstance(model, keras.Model) else ()
    return [
        _Table(layer.input_dim, layer.name)
        for layer in layers
        if isinstance(layer, keras.layers.Embedding)
    ]


def _smallest(graph: CallGraph, ref: Ref) -> _Table | None:
    """The Embedding with the fewest rows of those that read a tensor; None without one."""
    found: list[_Table | None] = []
    for call in (graph.calls[key] for key in graph.readers[ref]):
        layer, inner = call.layer, graph.nested.get(call.name)
        while isinstance(layer, keras.layers.Wrapper):
            layer = layer.layer
        if isinstance(layer, keras.layers.Embedding):
            found.append(_Table(layer.input_dim, layer.name))
        elif inner is not None:
            found.append(_smallest(inner, inner.ref(inner.model.inputs[call.inputs.index(ref)])))
        elif _moves(layer):
            found.append(_smallest(graph, call.outputs[0]))
    return min((one for one in found if one is not None), default=None)


def _moves(layer: Any) -> bool:
    symbol = getattr(layer, "symbol", "").rsplit(".", 1)[-1]
    return type(layer).__name__ in _MOVES or symbol in _MOVING
