"""Resizing of feature maps by area averaging (adaptive average pooling)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfkd import checks


def resize_to(features: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Resizes (B, *spatial, C) features to a smaller spatial `size`, by area averaging.

    Each new cell is the mean of the old cells that it covers, weighted by the covered
    part, so that all inputs have equal weight. Where the sizes divide this is average
    pooling. Features of the right size are returned as they are. There may be one or two
    spatial axes.
    """
    current = tuple(features.shape[1:-1])
    if current == tuple(size):
        return features
    if len(current) not in (1, 2) or None in current:
        expected = "one or two spatial axes of known size, (B, [H,] W, C)"
        fix = "Give the model's Input a fixed size."
        raise checks.value_error("features", expected, features, fix)
    # A small matrix per axis: unlike tf.image.resize, this compiles under XLA.
    pairs = zip(current, size, strict=True)
    matrices = [tf.constant(_averages(now, then), features.dtype) for now, then in pairs]
    form = "bwc,ow->boc" if len(current) == 1 else "bhwc,oh,pw->bopc"
    return tf.einsum(form, features, *matrices)


def _averages(now: int, then: int) -> np.ndarray:
    """(then, now) matrix: row o holds the weight of each input cell in output cell o."""
    edges = np.arange(then + 1) * now / then
    cells = np.arange(now)
    low = np.maximum(edges[:-1, None], cells)
    high = np.minimum(edges[1:, None], cells + 1)
    return np.maximum(high - low, 0.0) * then / now


def common_size(teacher: tf.Tensor, student: tf.Tensor) -> tuple[int, ...]:
    """The smaller of the two spatial sizes, axis by axis."""
    if len(teacher.shape) != len(student.shape):
        raise ValueError(
            "features of teacher and student must have the same rank: the teacher's shape is "
            f"{teacher.shape}, the student's {student.shape}. Name layers of one kind."
        )
    pairs = zip(teacher.shape[1:-1], student.shape[1:-1], strict=True)
    return tuple(t if s is None else s if t is None else min(t, s) for t, s in pairs)
