"""Values to one number: sample weights of any shape, masks, sums and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfkd import checks


def weighted_sums(
    parts: Sequence[Any], sample_weight: Any, owner: Any = None, outputs: Any = None
) -> list[tuple[Any, Any]]:
    """Sum and count of each part, so that sum / count is its mean; count None: a sum.

    As in Keras, the count is that of the values (of those that the mask leaves),
    not the sum of the weights: doubling every weight doubles the loss.

    Args:
        parts: `Elements`, one an output of the student, None for one left out.
        sample_weight: one array for all of them, one each, or None.
        owner: the loss.
        outputs: what the student returned, in the order of `parts`.
    """
    weights = tf.nest.flatten(sample_weight) if sample_weight is not None else [None]
    if len(weights) == 1:
        weights = weights * len(parts)
    if len(weights) != len(parts):
        raise checks.value_error(
            "sample_weight", f"one array, or one for each of {len(parts)} outputs", sample_weight
        )
    leaves = tf.nest.flatten(outputs)
    leaves = leaves if len(leaves) == len(parts) else [None] * len(parts)
    return [
        _weighted_sum(part, weight, owner, leaf)
        for part, weight, leaf in zip(parts, weights, leaves, strict=True)
        if part is not None
    ]


def _weighted_sum(part: Any, weight: Any, owner: Any, output: Any) -> tuple[Any, Any]:
    values = part.values
    if weight is not None:
        values = values * weights_like(values, weight, owner, output)
    if part.mask is None:
        count = tf.cast(tf.size(part.values), tf.float32)
    else:
        mask = _of_rank(tf.cast(part.mask, tf.bool), values.shape.rank)
        if mask.shape.rank > values.shape.rank > 0:
            expected = f"a shape that fits the loss's values, {tuple(values.shape)}"
            raise checks.value_error("mask", expected, mask)
        kept = tf.broadcast_to(mask, tf.shape(values))
        values = tf.where(kept, values, 0.0)
        count = tf.reduce_sum(tf.cast(kept, tf.float32))
    if part.count is not None:
        count = part.count
    return tf.reduce_sum(values), None if part.total else count


def mean_of(total: Any, count: Any) -> Any:
    """sum / count, 0 where nothing was counted; the sum itself where count is None."""
    # A count is a whole number: only 0 is changed.
    return total if count is None else total / tf.maximum(count, 1.0)


def weights_like(values: Any, weight: Any, owner: Any = None, output: Any = None) -> Any:
    """Sample weights, float32, that can be multiplied with a loss's values.

    Weights of positions beside a loss that has one value an example, or other positions
    (that of a layer): the mean of each example's weights.

    Args:
        values: (B, ...), one loss an example or a position.
        weight: (B,), (B, 1), (B, ...) or (B, ..., 1); its rank need not be known.
        owner: the loss; None: weights of positions must be those of the values.
        output: the student's output that the loss compares, or None.

    Raises:
        ValueError: if they don't fit.
    """
    weight, rank = tf.cast(weight, tf.float32), values.shape.rank
    if not rank:  # a sum, or a user's own loss of which the graph knows nothing
        return weight
    of_layer = getattr(owner, "student_layer_name", None) is not None
    if weight.shape.rank is None:
        weight = _by_rank_of(values, weight)
        return _where_it_fits(weight, values) if of_layer else weight
    weight = _of_rank(weight, rank)
    if weight.shape.rank > rank:
        positions = (tf.TensorShape(getattr(output, "shape", None)).rank or 0) - 1
        if not (of_layer or weight.shape.rank <= positions):
            expected = f"a shape that fits the loss's values, {tuple(values.shape)}"
            raise checks.value_error("sample_weight", expected, weight)
    elif not of_layer or _fits(weight.shape, values.shape):
        return weight
    elif _may_fit(weight.shape, values.shape):
        return _where_it_fits(weight, values)
    _say_mean(owner, weight, values)
    return _mean_of_each(weight, rank)


def _of_rank(weight: Any, rank: int) -> Any:
    """Drops axes of size 1 at the end as long as there are too many; adds them."""
    while weight.shape.rank > rank and weight.shape[-1] == 1:
        weight = tf.squeeze(weight, -1)
    while weight.shape.rank < rank:
        weight = weight[..., None]
    return weight


def _by_rank_of(values: Any, weight: Any) -> Any:
    """Weights of unknown rank in the rank of `values`; axes beyond it are averaged.

    Keras forgets the rank of what changes it from one `fit` to the next.
    """
    rank = values.shape.rank
    shape = tf.concat([tf.shape(weight), tf.ones([rank], tf.int32)], 0)
    weight = tf.reduce_mean(tf.reshape(weight, tf.concat([shape[:rank], [-1]], 0)), -1)
    return tf.ensure_shape(weight, [None] * rank)


def _where_it_fits(weight: Any, values: Any) -> Any:
    """Weights of one rank with `values`, or their mean where the positions are others."""
    shape = tf.shape(weight)
    fits = tf.reduce_all((shape == tf.shape(values)) | (shape == 1))
    return tf.cond(fits, lambda: weight, lambda: _mean_of_each(weight, values.shape.rank))


def _mean_of_each(weight: Any, rank: int) -> Any:
    """The mean of each example's weights, (B, 1, ...)."""
    return _of_rank(tf.reduce_mean(weight, list(range(1, weight.shape.rank))), rank)


def _fits(weight: tf.TensorShape, values: tf.TensorShape) -> bool:
    """Whether each position is known to have its weight."""
    pairs = list(zip(weight[1:], values[1:], strict=True))
    return all(mine == 1 or (mine == theirs and mine is not None) for mine, theirs in pairs)


def _may_fit(weight: tf.TensorShape, values: tf.TensorShape) -> bool:
    pairs = list(zip(weight[1:], values[1:], strict=True))
    return all(mine in (1, theirs, None) or theirs is None for mine, theirs in pairs)


def _say_mean(owner: Any, weight: Any, values: Any) -> None:
    """Says once of each loss that weights of positions became weights of examples."""
    if getattr(owner, "_said_mean_weights", False):
        return
    owner._said_mean_weights = True
    where = f"values of shape {tuple(values.shape)}" if values.shape.rank > 1 else "one an example"
    checks.warn(
        f"{owner.name}: `sample_weight` has shape {tuple(weight.shape)}, a weight for each "
        f"position, and this loss has {where}, so the mean of each example's weights is taken. "
        "Pass weights of shape (B,) to choose others."
    )
