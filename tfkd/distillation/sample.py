"""Repeatability of `tf.data` pipelines: whether reading one again has side effects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# Data sets that only rearrange the elements of their input, or make them from constants.
_PURE = re.compile(
    r"_?(Parallel)?(TensorSlice|Tensor|Range|Map|FlatMap|Batch|PaddedBatch|Prefetch|Take|Skip|"
    r"Repeat|Zip|Concatenate|Options|AssertCardinality|Enumerate|Shard|Rebatch|Filter|Unbatch)"
    r"(Dataset)?(V\d)?"
)
# Largest buffer of a shuffle, which is filled before the first element is returned.
_BUFFER = 4096
# Operations that return something else each time, or have side effects.
_IMPURE = re.compile(
    r"(Eager)?PyFunc|GeneratorDataset.*|.*Shuffle.*Dataset.*|Random\w*|Stateful\w*|"
    r"TruncatedNormal|ParameterizedTruncatedNormal|Multinomial|Rng\w*|Assign\w*|.*Cache.*|"
    r".*Iterator.*"
)


def is_repeatable(dataset: tf.data.Dataset) -> bool:
    """True if an additional iterator over a data set does not affect later iterators.

    False for seeded shuffling that changes each time (its counter would advance) or has a
    large buffer, generators (which may be exhausted), caching, stateful random numbers,
    and Python functions.

    Args:
        dataset: any data set; its pipeline is inspected, no element is read.
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
    """Whether a shuffle has a small buffer, and an order that is fixed or has no seed."""
    if type(dataset).__name__ != "_ShuffleDataset" or int(dataset._buffer_size) > _BUFFER:
        return False
    unseeded = int(dataset._seed) == int(dataset._seed2) == 0
    return unseeded or not dataset._reshuffle_each_iteration


def _operations(dataset: Any) -> Iterator[str]:
    """Types of the operations in the functions of a data set, such as that of `map`."""
    for value in vars(dataset).values():
        graph = getattr(getattr(value, "function", None), "graph", None)
        if graph is None:
            continue
        definition = graph.as_graph_def()
        yield from (node.op for node in definition.node)
        for function in definition.library.function:
            yield from (node.op for node in function.node_def)
