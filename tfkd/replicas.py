"""Distributed training: means over the global batch of a `tf.distribute` strategy.

Each replica computes its share of the mean: its local sum divided by the count
over all replicas. The optimizer sums the shares, so N replicas make the same
update as one replica would on the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks


def count() -> int:
    """Number of replicas in sync; 1 without a strategy."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else tf.distribute.get_strategy().num_replicas_in_sync


def global_sum(value: tf.Tensor) -> tf.Tensor:
    """All-reduced sum of a scalar tensor over the replicas."""
    if count() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def gathered(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Joins tensors of all replicas along the first axis; gradients are summed over them."""
    if count() == 1:
        return tensors
    context = tf.distribute.get_replica_context()
    # One at a time: TensorFlow fails in the gradient of `all_gather` of mixed shapes.
    whole = [context.all_gather(tensor, axis=0) for tensor in tensors]
    for joined, part in zip(whole, tensors, strict=True):
        joined.set_shape([None, *part.shape[1:]])
    return whole


def can_merge() -> bool:
    """Whether `merged_sum` can be used: in a step on several replicas."""
    return count() > 1 and not tf.__internal__.distribute.strategy_supports_no_merge_call()


def merged_sum(values: tf.Tensor) -> tf.Tensor:
    """Sum of a tensor over the replicas, computed in merge context as one shared tensor.

    For the values that a step returns, of which Keras fetches only the first replica's:
    the all-reduce of `global_sum` would wait for replicas whose result is never fetched.
    """

    def add(strategy: Any, parts: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    return tf.distribute.get_replica_context().merge_call(add, args=(values,))


def share_of_batch(size: tf.Tensor) -> tf.Tensor:
    """This replica's part of the global batch, in (0, 1]: size / global size."""
    if count() == 1:
        return tf.constant(1.0)
    return tf.math.divide_no_nan(size, global_sum(size))


def rows_of_worker(context: tf.distribute.InputContext | None, batch_size: int) -> tuple[int, int]:
    """First row and number of rows of this worker's share of a global batch.

    Raises:
        ValueError: if `batch_size` is not divisible by the number of workers.
    """
    checks.positive_int("batch_size", batch_size)
    if context is None:
        return 0, batch_size
    workers = context.num_input_pipelines
    if batch_size % workers:
        raise checks.value_error("batch_size", f"a multiple of the {workers} workers", batch_size)
    size = batch_size // workers
    return size * context.input_pipeline_id, size


def writes(model: keras.Model) -> bool:
    """Whether this process writes logs and files: of several workers, only the chief does.

    The other workers must still read every variable that the chief reads: moving
    statistics of a batch normalization are averaged over the workers on each read,
    which is a collective operation that waits for all of them.

    Args:
        model: a model created in the scope of its strategy.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return bool(getattr(getattr(strategy, "extended", None), "should_save_summary", True))


def distributed(
    make: Callable[[tf.distribute.InputContext], tf.data.Dataset],
    batch_size: int,
    strategy: tf.distribute.Strategy | None = None,
) -> tf.distribute.DistributedDataset:
    """Distributed dataset for `fit` in which each worker loads only its share of a batch.

    `strategy.distribute_datasets_from_function` gives each replica of a worker a whole
    element of its dataset, so with two replicas a step would see twice the worker's
    share. The elements are rebatched here, so that a step sees `batch_size` examples
    for any number of workers and of replicas on each.

    Args:
        make: function from an input context to the worker's share of each batch, such as
            `lambda context: cache.batches(x, y, 64, input_context=context)`, or the same
            with `Curriculum.batches`.
        batch_size: global batch size: examples per step over all replicas and workers.
        strategy: the training strategy; default: the current one.

    Raises:
        ValueError: if `batch_size` is not divisible by the number of replicas.

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

    def own(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = make(context)
        if context.num_replicas_in_sync == context.num_input_pipelines:
            return dataset
        return dataset.rebatch(batch_size // replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(own)
