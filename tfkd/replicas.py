"""Means over the global batch, when a `tf.distribute` strategy splits it.

Every replica computes its share of the mean: its own sum, divided by the count
over all replicas. The optimizer adds the shares up, so that N replicas make the
update that one replica would make on the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfkd import checks


def count() -> int:
    """How many replicas train in step; 1 without a strategy."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else tf.distribute.get_strategy().num_replicas_in_sync


def global_sum(value: Any) -> Any:
    """Sum of a scalar tensor over the replicas."""
    if count() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def can_merge() -> bool:
    """Whether `merged_sum` has something to do: in a step on several replicas."""
    return count() > 1 and not tf.__internal__.distribute.strategy_supports_no_merge_call()


def merged_sum(values: Any) -> Any:
    """Sum of a tensor over the replicas, as one tensor that all of them share.

    For what a step returns: of the results of `global_sum` all but the first would not
    be asked for.
    """

    def add(strategy: Any, parts: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    return tf.distribute.get_replica_context().merge_call(add, args=(values,))


def share_of_batch(size: Any) -> Any:
    """This replica's part of the global batch, in (0, 1]: size / global size."""
    if count() == 1:
        return tf.constant(1.0)
    return tf.math.divide_no_nan(size, global_sum(size))


def rows_of_worker(context: tf.distribute.InputContext | None, batch_size: int) -> tuple[int, int]:
    """First row, and number of rows, of this worker's share of a global batch.

    Raises:
        ValueError: if the batch does not divide by the workers.
    """
    checks.positive_int("batch_size", batch_size)
    if context is None:
        return 0, batch_size
    workers = context.num_input_pipelines
    if batch_size % workers:
        raise checks.value_error("batch_size", f"a multiple of the {workers} workers", batch_size)
    size = batch_size // workers
    return size * context.input_pipeline_id, size


def writes(model: Any) -> bool:
    """Whether this process writes logs and files: of several workers one does, the chief.

    The others must still read what the chief reads: the statistics of a batch
    normalization are the mean over all workers, and to read one waits for them all.

    Args:
        model: a model that was made in the scope of its strategy.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return bool(getattr(getattr(strategy, "extended", None), "should_save_summary", True))


def distributed(
    make: Callable[[Any], tf.data.Dataset], batch_size: int, strategy: Any = None
) -> Any:
    """Batches for `fit`, of which each worker makes its own share alone.

    `strategy.distribute_datasets_from_function` hands whole batches to the replicas of a
    worker, one to each: with two of them a worker's share of a batch would be half of
    what a step sees. Here it is cut, so that a step sees `batch_size` examples however
    many workers there are and however many replicas each has.

    Args:
        make: a function from an input context to a worker's share of each batch, such as
            `lambda context: cache.batches(x, y, 64, input_context=context)`, or the same
            of `Curriculum.batches`.
        batch_size: examples a step, over all replicas and workers.
        strategy: that of the training; the current one by default.

    Raises:
        ValueError: if the batch does not divide by the replicas.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> from tfkd import replicas
        >>> from tfkd.curriculum import Curriculum
        >>> data = Curriculum((np.arange(8.0), np.arange(8) % 2), np.arange(8.0), 1.0, 4)
        >>> fed = replicas.distributed(
        ...     lambda context: data.batches(input_context=context), batch_size=4)
        >>> x, y = next(iter(fed))
        >>> x.shape
        TensorShape([4])
    """
    checks.function("make", make)
    checks.positive_int("batch_size", batch_size)
    strategy = strategy or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise checks.value_error("batch_size", f"a multiple of the {replicas} replicas", batch_size)

    def own(context: Any) -> tf.data.Dataset:
        dataset = make(context)
        if context.num_replicas_in_sync == context.num_input_pipelines:
            return dataset
        return dataset.rebatch(batch_size // replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(own)
