"""Whether a data set can be read once more without anybody noticing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# What only arranges the elements of its input, or makes them from constants.
_PURE = re.compile(
    r"_?(Parallel)?(TensorSlice|Tensor|Range|Map|FlatMap|Batch|PaddedBatch|Prefetch|Take|Skip|"
    r"Repeat|Zip|Concatenate|Options|AssertCardinality|Enumerate|Shard|Rebatch|Filter|Unbatch)"
    r"(Dataset)?(V\d)?"
)
# Elements that a shuffle may read before it gives the first one.
_BUFFER = 4096
# They hand out something else each time, or change what others read.
_IMPURE = re.compile(
    r"(Eager)?PyFunc|GeneratorDataset.*|.*Shuffle.*Dataset.*|Random\w*|Stateful\w*|"
    r"TruncatedNormal|ParameterizedTruncatedNormal|Multinomial|Rng\w*|Assign\w*|.*Cache.*|"
    r".*Iterator.*"
)


def is_repeatable(dataset: tf.data.Dataset) -> bool:
    """True if another iterator over a data set changes nothing for those of its owner.

    Not where it shuffles by a seed and anew each time (a counter moves on) or in a large
    buffer, reads a generator (which may end), caches, draws random numbers with a state
    or calls Python.

    Args:
        dataset: any; it is looked at, not read.
    """
    todo = [dataset]
    while todo:
        one = todo.pop()
        pure = _PURE.fullmatch(type(one).__name__) or _shuffles_harmlessly(one)
        if not pure:
            return False
        if any(_IMPURE.fullmatch(op) for op in _operations(one)):
            return False
        todo += one._inputs()
    return True


def _shuffles_harmlessly(dataset: Any) -> bool:
    """A small shuffle in an order that is the same each time, or that no seed tells."""
    if type(dataset).__name__ != "_ShuffleDataset" or int(dataset._buffer_size) > _BUFFER:
        return False
    unseeded = int(dataset._seed) == int(dataset._seed2) == 0
    return unseeded or not dataset._reshuffle_each_iteration


def _operations(dataset: Any) -> Iterator[str]:
    """Types of the operations in the functions that a data set maps."""
    for value in vars(dataset).values():
        graph = getattr(getattr(value, "function", None), "graph", None)
        if graph is None:
            continue
        definition = graph.as_graph_def()
        yield from (node.op for node in definition.node)
        for function in definition.library.function:
            yield from (node.op for node in function.node_def)
