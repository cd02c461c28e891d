"""Reduction of losses: sample weights of any shape, masks, sums and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from tfkd import checks
from tfkd.types import Structure


class Owner(Protocol):
    """The part of a `DistillationLoss` that messages and weights need."""

    student_layer_name: str | None

    @property
    def name(self) -> str: ...


class Elements(NamedTuple):
    """One output's unreduced loss.

    Attributes:
        values: float32 (B, ...), one loss per example or position.
        mask: (B, ...) bool, True where a value counts; None: all values count.
        total: whether the loss is the sum of the values instead of their mean.
        count: float32 scalar by which the sum is divided (at least 1), such as the
            number of objects; None: the number of values that count.
    """

    values: tf.Tensor
    mask: tf.Tensor | None = None
    total: bool = False
    count: tf.Tensor | None = None  # type: ignore[assignment]  # hides the unused tuple.count


def weighted_sums(
    parts: Sequence[Elements | None],
    sample_weight: Structure | None,
    owner: Owner | None = None,
    outputs: Structure | None = None,
) -> list[tuple[tf.Tensor, tf.Tensor | None]]:
    """Sum and count of each part: its mean is sum / count, or the sum if count is None.

    As in Keras, the count is the number of (unmasked) values, not the sum of the
    weights: doubling every weight doubles the loss.

    Args:
        parts: the `Elements` of each output of the student, None for outputs without a loss.
        sample_weight: one array for all parts, one for each, or None.
        owner: the loss.
        outputs: the student's outputs, in the order of `parts`.
    """
    weights = tf.nest.flatten(sample_weight) if sample_weight is not None else [None]
    if len(weights) == 1:
        weights = weights * len(parts)
    if len(weights) != len(parts):
        expected = f"one array, or one for each of {len(parts)} outputs"
        raise checks.value_error("sample_weight", expected, sample_weight)
    leaves = tf.nest.flatten(outputs)
    leaves = leaves if len(leaves) == len(parts) else [None] * len(parts)
    triples = zip(parts, weights, leaves, strict=True)
    return [_weighted_sum(part, w, owner, leaf) for part, w, leaf in triples if part is not None]


def _weighted_sum(
    part: Elements, weight: tf.Tensor | None, owner: Owner | None, output: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor | None]:
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


def mean_of(total: tf.Tensor, count: tf.Tensor | None) -> tf.Tensor:
    """Returns sum / count, 0 if nothing was counted, or the sum if count is None."""
    # A count of values or objects is an integer, so the maximum changes only 0.
    return total if count is None else total / tf.maximum(count, 1.0)


def weights_like(
    values: tf.Tensor,
    weight: tf.Tensor,
    owner: Owner | None = None,
    output: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns float32 sample weights that can be multiplied with the values of a loss.

    Weights per position are averaged over each example if the loss has one value per
    example, or other positions (those of a layer).

    Args:
        values: (B, ...), one loss per example or position.
        weight: (B,), (B, 1), (B, ...) or (B, ..., 1); its rank may be unknown.
        owner: the loss; None: weights per position must fit the values.
        output: the student's output that the loss compares, or None.

    Raises:
        ValueError: if weights and values do not fit.
    """
    weight, rank = tf.cast(weight, tf.float32), values.shape.rank
    if not rank:  # a sum, or a user's own loss whose rank the graph does not know
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
    _warn_of_mean(owner, weight, values)  # type: ignore[arg-type]
    return _mean_of_each(weight, rank)


def _of_rank(weight: tf.Tensor, rank: int) -> tf.Tensor:
    """Gives `weight` this rank by dropping or adding trailing axes of size 1."""
    while weight.shape.rank > rank and weight.shape[-1] == 1:
        weight = tf.squeeze(weight, -1)
    while weight.shape.rank < rank:
        weight = weight[..., None]
    return weight


def _by_rank_of(values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Gives weights of unknown rank that of `values`; further axes are averaged.

    Keras relaxes the rank of inputs that change it from one `fit` to the next.
    """
    rank = values.shape.rank
    shape = tf.concat([tf.shape(weight), tf.ones([rank], tf.int32)], 0)
    weight = tf.reduce_mean(tf.reshape(weight, tf.concat([shape[:rank], [-1]], 0)), -1)
    return tf.ensure_shape(weight, [None] * rank)


def _where_it_fits(weight: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Weights of the rank of `values`, or each example's mean if their positions differ."""
    shape = tf.shape(weight)
    fits = tf.reduce_all((shape == tf.shape(values)) | (shape == 1))
    return tf.cond(fits, lambda: weight, lambda: _mean_of_each(weight, values.shape.rank))


def _mean_of_each(weight: tf.Tensor, rank: int) -> tf.Tensor:
    """The mean of each example's weights, (B, 1, ...)."""
    return _of_rank(tf.reduce_mean(weight, list(range(1, weight.shape.rank))), rank)


def _fits(weight: tf.TensorShape, values: tf.TensorShape) -> bool:
    """Whether weights and values are known to have the same positions."""
    pairs = zip(weight[1:], values[1:], strict=True)
    return all(mine == 1 or (mine == theirs and mine is not None) for mine, theirs in pairs)


def _may_fit(weight: tf.TensorShape, values: tf.TensorShape) -> bool:
    pairs = list(zip(weight[1:], values[1:], strict=True))
    return all(mine in (1, theirs, None) or theirs is None for mine, theirs in pairs)


def _warn_of_mean(owner: Owner, weight: tf.Tensor, values: tf.Tensor) -> None:
    """Warns once per loss that weights per position are averaged to weights per example."""
    if getattr(owner, "_said_mean_weights", False):
        return
    owner._said_mean_weights = True  # type: ignore[attr-defined]
    where = f"values of shape {tuple(values.shape)}" if values.shape.rank > 1 else "one per example"
    checks.warn(
        f"{owner.name}: `sample_weight` has shape {tuple(weight.shape)}, a weight for each "
        f"position, and this loss has {where}, so the mean of each example's weights is taken. "
        "Pass weights of shape (B,) to choose others."
    )
