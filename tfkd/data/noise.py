"""Symmetric label noise for experiments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks


def noisy_labels(labels: ArrayLike, fraction: float, num_classes: int, seed: int = 0) -> np.ndarray:
    """Replaces a fraction of the labels by another class, uniformly drawn.

    Symmetric label noise as in Zhang and Sabuncu 2018,
    https://arxiv.org/abs/1805.07836

    Args:
        labels: (N,) class numbers from 0 to num_classes − 1.
        fraction: fraction to replace, in [0, 1]; rounded to whole labels.
        num_classes: at least 2.
        seed: determines which labels change, and to which class.

    Returns:
        A changed copy of the labels.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: for labels outside the classes, or a fraction outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from tfkd import data
        >>> labels = np.arange(10) % 3
        >>> int((data.noisy_labels(labels, 0.4, num_classes=3) != labels).sum())
        4
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise checks.type_error("labels", "class numbers (N,)", labels)
    checks.integer("num_classes", num_classes, 2, "an integer of at least 2")
    checks.fraction("fraction", fraction)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        expected = f"labels from 0 to {num_classes - 1}"
        raise checks.value_error("labels", expected, f"{labels.min()} to {labels.max()}")
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(labels))[: round(fraction * len(labels))]
    noisy = labels.copy()
    shift = rng.integers(1, num_classes, len(wrong))
    noisy[wrong] = (labels[wrong].astype(np.int64) + shift) % num_classes
    return noisy
