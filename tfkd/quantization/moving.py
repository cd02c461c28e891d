"""Whether a layer that is not known by its class only moves numbers: read from its graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfkd.networks.layer_parts import with_training

# They move numbers, leave some out, ask for a shape, or call what is looked at by itself.
_MOVES = {
    "ExpandDims",
    "Identity",
    "NoOp",
    "PartitionedCall",
    "Placeholder",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "StatefulPartitionedCall",
    "StridedSlice",
    "Tile",
    "Transpose",
}


def only_moves(layer: Any, tensor: Any) -> bool:
    """True if every number that a layer returns is one of those that it is given.

    Args:
        layer: of any class; called once, on no numbers, in inference.
        tensor: the one that it reads.
    """

    def call(x: Any) -> Any:
        args, kwargs = with_training(layer, False, (x,), {})
        return layer(*args, **kwargs)

    try:
        spec = tf.TensorSpec(tensor.shape, tensor.dtype)
        traced = tf.function(call, autograph=False).get_concrete_function(spec)
    except Exception:  # whatever a strange layer says to be called like this
        return False
    if traced.captured_inputs or tf.nest.is_nested(traced.structured_outputs):
        return False
    definition = traced.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return all(node.op in _MOVES or not any(map(_is_floating, _types(node))) for node in nodes)


def _types(node: Any) -> Iterator[int]:
    for value in node.attr.values():
        yield from (value.type, *value.list.type)


def _is_floating(kind: int) -> bool:
    return bool(kind) and tf.as_dtype(kind).is_floating
