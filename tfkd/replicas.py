"""Means over the global batch, when a `tf.distribute` strategy splits it.

Every replica computes its share of the mean: its own sum, divided by the count
over all replicas. The optimizer adds the shares up, so that N replicas make the
update that one replica would make on the whole batch.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def count() -> int:
    """How many replicas train in step; 1 without a strategy."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else tf.distribute.get_strategy().num_replicas_in_sync


def global_sum(value: Any) -> Any:
    """Sum of a scalar tensor over the replicas."""
    if count() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def share_of_batch(size: Any) -> Any:
    """This replica's part of the global batch, in (0, 1]: size / global size."""
    if count() == 1:
        return tf.constant(1.0)
    return tf.math.divide_no_nan(size, global_sum(size))
