"""Logit standardization (Sun et al. 2024): Z-scores of class scores before the softmax.

    Z(z) = (z − mean z) / σ,   σ² = (1 / C) Σ_c (z_c − mean z)²

Mean and standard deviation are those of one row of scores (one example or position), so
teacher and student need to agree on the order and the relative distances of the classes,
and not on the size of their logits. The temperature divides Z, whose values are at most
√(C − 1). The authors' program divides by C − 1 in place of C, so that its temperature T is
T · √(C / (C − 1)) here.

Reference: "Logit standardization in knowledge distillation", https://arxiv.org/abs/2403.01427
"""

from __future__ import annotations

import tensorflow as tf

from tfkd import checks

# The least σ: the gradient of a Z-score is of order 1/σ, and scores that are all equal, as
# at the start of training, must not make it infinite (nor overflow float16).
_LEAST = 1e-3


def scaled(
    scores: tf.Tensor, temperature: float | tf.Tensor, standardize: bool = False
) -> tf.Tensor:
    """Returns z / T, or Z(z) / T, in float32.

    Args:
        scores: (..., C) logits; also (B,) without `standardize`.
        temperature: T > 0.
        standardize: whether each row is replaced by its Z-score first.
    """
    z = tf.cast(scores, tf.float32)
    if standardize:
        z -= tf.reduce_mean(z, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(z), -1, keepdims=True)
        z /= tf.sqrt(tf.maximum(variance, _LEAST**2))
    return z / temperature


def check_flag(value: bool) -> bool:
    """Accepts the argument `standardize`."""
    return checks.instance("standardize", value, bool, "True or False")


def check_classes(scores: tf.Tensor) -> None:
    """Raises ValueError unless the scores are of at least three classes.

    The Z-scores of two classes are 1 and −1, whatever their scores: without a gradient.
    """
    if len(scores.shape) < 2 or (scores.shape[-1] is not None and scores.shape[-1] < 3):
        expected = "scores of at least three classes (B, ..., C), since standardize=True"
        fix = "The Z-scores of two classes are always 1 and -1: pass standardize=False."
        raise checks.value_error("student", expected, scores, fix)
