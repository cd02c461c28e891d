"""Many classes in few bytes: the k highest scores, and all others in one bucket.

With the others left out, a student would take the teacher to be surer than it is.
Instead both distributions are compared over k + 1 outcomes: each of the k classes, and
"any other". By the data processing inequality that KL is at most the whole one, and it
is 0 only if the student agrees on the k classes and on what is left for the rest.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd import checks
from tfkd.losses.logits import KL, LogitsDistillation, is_a
from tfkd.teachers.layout import TopK


def top_k(scores: Any, k: int, temperature: float) -> TopK:
    """Takes the k highest scores apart from the rest.

    Args:
        scores: (..., C) logits.
        k: how many, below C.
        temperature: T of the rest, T · log Σ exp(z / T) over the classes left out.

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
        raise checks.value_error(
            "top_k", f"fewer than the {classes} classes", k, "Leave top_k out to store all scores."
        )
    scores = tf.cast(scores, tf.float32)
    values, indices = tf.math.top_k(scores, k)
    return TopK(values, indices, _rest(scores, indices, temperature))


def bucketed(teacher: TopK, student: Any, temperature: float) -> tuple[Any, Any]:
    """Both as scores of k + 1 outcomes, of which softmax(z / T) is right at this T.

    Args:
        teacher: what `top_k` gave.
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
    """Raises ValueError unless a loss on class scores can work with the best of them.

    Args:
        loss: a distillation loss on the models' final outputs.
        temperature: T of the rest.
    """
    kind = getattr(loss, "loss", None)
    if not isinstance(loss, LogitsDistillation) or tf.nest.is_nested(kind) or not is_a(kind, KL):
        raise checks.value_error(
            "distillation_losses",
            "LogitsDistillation with its KL divergence, since the cache holds only the best scores",
            loss,
            "Build the cache without top_k for other losses.",
        )
    if loss.temperature != temperature:
        raise checks.value_error(
            "temperature",
            f"{temperature}, that of the cache: its rest bucket is right at that one alone",
            loss.temperature,
            "Build the cache with the temperature of the loss.",
        )


def agreement(teacher: TopK, student: Any) -> Any:
    """1 where the student's highest score is at the teacher's class, else 0; float32."""
    mine = tf.argmax(student, -1, output_type=tf.int32)
    return tf.cast(teacher.indices[..., 0] == mine, tf.float32)


def _rest(scores: Any, indices: Any, temperature: float) -> Any:
    """T · log Σ exp(z / T) over the classes that are not in `indices`."""
    taken = tf.reduce_any(tf.one_hot(indices, tf.shape(scores)[-1], True, False, dtype=tf.bool), -2)
    # A finite number: −inf would make the gradient of those left out NaN.
    others = tf.where(taken, -1e30, scores / temperature)
    return temperature * tf.reduce_logsumexp(others, -1, keepdims=True)
