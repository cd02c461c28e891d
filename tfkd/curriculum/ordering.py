"""Ranks examples by difficulty, such that every prefix has balanced classes."""

from __future__ import annotations

import numpy as np

from tfkd import checks
from tfkd.data.label_forms import one_hot_rows
from tfkd.types import Tensor

ORDERS = ("easiest_first", "hardest_first", "random")


def class_numbers(labels: Tensor | None, count: int) -> np.ndarray:
    """Accepts class numbers (N,) or (N, 1), or one-hot rows (N, C); returns (N,).

    Raises:
        ValueError: if labels are none of these, or not one per example.
    """
    fix = "Pass labels= with class numbers, or balance_classes=False."
    if labels is None or not hasattr(labels, "shape"):
        raise checks.value_error("balance_classes", "labels to balance", labels, fix)
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(1) if one_hot_rows(labels).all() else labels
    elif labels.ndim == 2:
        labels = labels[:, 0]
    kind = labels.dtype.kind
    whole = kind in "iub" or (kind == "f" and bool((labels == np.rint(labels)).all()))
    if labels.shape != (count,) or not whole:
        expected = f"class numbers ({count},) or one-hot rows, to balance"
        raise checks.value_error("balance_classes", expected, labels, fix)
    return labels


def ranked(
    scores: np.ndarray, classes: np.ndarray | None, order: str = "easiest_first", seed: int = 0
) -> np.ndarray:
    """Returns the indices of all examples in the order in which they enter the pool.

    With classes, every prefix has the class frequencies of the data, except for rounding:
    each class is ranked separately, and its k-th of n examples (from 0) is placed at
    (k + ½)/n. Ties are broken by an order drawn from the seed, since files are often
    sorted by class.

    Args:
        scores: float64 (N,), higher is harder.
        classes: class numbers (N,), or None.
        order: "easiest_first", "hardest_first", or "random" (scores are ignored).
        seed: of the order of ties, and of the random order.

    Returns:
        int64 (N,), a permutation.

    Example:
        >>> import numpy as np
        >>> from tfkd.curriculum import ordering
        >>> scores, classes = np.array([1.0, 2, 3, 9, 8, 7]), np.array([0, 0, 0, 1, 1, 1])
        >>> ordering.ranked(scores, None).tolist()
        [0, 1, 2, 5, 4, 3]
        >>> sorted(ordering.ranked(scores, classes)[:2].tolist())
        [0, 5]
    """
    draw = np.random.default_rng(seed).permutation(len(scores))
    keys = {"easiest_first": scores, "hardest_first": -scores, "random": draw}[order]
    by_key = np.lexsort((draw, keys))
    if classes is None:
        return by_key.astype(np.int64)
    place = np.empty(len(scores), np.float64)
    for number in np.unique(classes):
        members = by_key[classes[by_key] == number]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((draw, place)).astype(np.int64)
