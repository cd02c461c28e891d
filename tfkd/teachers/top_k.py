"""Top-k logits: the k highest scores, and one bucket for all other classes.

Dropping the other classes would overstate the teacher's confidence. Instead, both
distributions are compared over k + 1 outcomes: each of the k classes, and "any other".
By the data processing inequality this KL divergence is at most that over all classes;
it is 0 only if the student agrees on the k classes and on the total of the others.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.losses.logits import KL, LogitsDistillation, is_a
from tfkd.teachers.layout import TopK
from tfkd.types import Tensor


def top_k(scores: Tensor, k: int, temperature: float) -> TopK:
    """Splits scores into the k highest and a bucket for the others.

    Args:
        scores: (..., C) logits.
        k: number of scores to keep, below C.
        temperature: T of the bucket, T · log Σ exp(z / T) over the other classes.

    Returns:
        A `TopK`; `rest` is (..., 1).

    Raises:
        ValueError: if there are no more than k classes.

    Example:
        >>> import tensorflow as tf
        >>> from tfkd.teachers.top_k import top_k
        >>> found = top_k(tf.math.log([[0.1, 0.6, 0.1, 0.2]]), 2, temperature=1.0)
        >>> found.indices.numpy().tolist(), round(float(tf.exp(found.rest[0, 0])), 4)
        ([[1, 3]], 0.2)
    """
    classes = scores.shape[-1]
    if classes is not None and k >= classes:
        fix = "Leave top_k out to store all scores."
        raise checks.value_error("top_k", f"fewer than the {classes} classes", k, fix)
    scores = tf.cast(scores, tf.float32)
    values, indices = tf.math.top_k(scores, k)
    return TopK(values, indices, _rest(scores, indices, temperature))


def bucketed(teacher: TopK, student: Tensor, temperature: float) -> tuple[Any, Any]:
    """Scores of teacher and student over k + 1 outcomes, for softmax(z / T) at this T only.

    Args:
        teacher: the result of `top_k`.
        student: (..., C) logits.
        temperature: the T of `teacher.rest`.

    Returns:
        (..., k + 1) scores each.
    """
    scores = tf.cast(student, tf.float32)
    batch_dims = len(scores.shape) - 1
    mine = tf.gather(scores, teacher.indices, batch_dims=batch_dims)
    rest = _rest(scores, teacher.indices, temperature)
    return tf.concat([teacher.values, teacher.rest], -1), tf.concat([mine, rest], -1)


def check_top_k(loss: Any, temperature: float | None) -> None:
    """Raises ValueError unless a loss on class scores supports top-k scores.

    Args:
        loss: a distillation loss on the models' final outputs.
        temperature: T of the bucket for the other classes.
    """
    kind = getattr(loss, "loss", None)
    if not isinstance(loss, LogitsDistillation) or tf.nest.is_nested(kind) or not is_a(kind, KL):
        why = "since the cache holds only top-k scores"
        expected = f"LogitsDistillation with its KL divergence, {why}"
        fix = "Build the cache without top_k for other losses."
        raise checks.value_error("distillation_losses", expected, loss, fix)
    if loss.standardize:
        expected = "False, since the cache holds only top-k scores: a Z-score needs all of them"
        fix = "Build the cache without top_k."
        raise checks.value_error("standardize", expected, True, fix)
    if loss.temperature != temperature:
        expected = f"{temperature}, that of the cache: its rest bucket holds at that one only"
        fix = "Build the cache with the temperature of the loss."
        raise checks.value_error("temperature", expected, loss.temperature, fix)


def agreement(teacher: TopK, student: Tensor) -> tf.Tensor:
    """Float32: 1 where teacher and student predict the same class, else 0."""
    mine = tf.argmax(student, -1, output_type=tf.int32)
    return tf.cast(teacher.indices[..., 0] == mine, tf.float32)


def _rest(scores: Any, indices: Any, temperature: float) -> Any:
    """T · log Σ exp(z / T) over the classes that are not in `indices`."""
    taken = tf.reduce_any(tf.one_hot(indices, tf.shape(scores)[-1], True, False, dtype=tf.bool), -2)
    # A large finite number in place of −inf, whose gradient would be NaN.
    others = tf.where(taken, -1e30, scores / temperature)
    return temperature * tf.reduce_logsumexp(others, -1, keepdims=True)
