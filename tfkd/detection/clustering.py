"""Anchor sizes by k-means clustering with the distance 1 − IoU (YOLOv2), in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfkd import checks

_ROUNDS = 100  # iterations of k-means at most
_STARTS = 4  # initializations, of which the best result is kept
_CHUNK = 256  # boxes at a time, to bound the memory of their overlaps with all priors


def real_boxes(name: str, boxes: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Returns the boxes of an array (..., 4) or a list of arrays, without padding.

    Returns:
        float64 (N, 4).

    Raises:
        TypeError: if `boxes` is neither.
        ValueError: if there are no boxes, or one has no area.
    """
    if isinstance(boxes, (list, tuple)):
        parts = [np.asarray(part, np.float64).reshape(-1, 4) for part in boxes if len(part)]
        values = np.concatenate(parts) if parts else np.zeros((0, 4))
    elif hasattr(boxes, "shape") and hasattr(boxes, "dtype"):
        values = np.asarray(boxes, np.float64)
    else:
        raise checks.type_error(name, "an array (..., 4), or a list of arrays", boxes)
    if values.ndim < 2 or values.shape[-1] != 4:
        raise checks.value_error(name, "boxes (..., 4) as (x1, y1, x2, y2)", boxes)
    values = values.reshape(-1, 4)
    values = values[~(values == -1).all(1)]
    if not len(values):
        raise checks.value_error(name, "at least one box", boxes)
    good = np.isfinite(values).all(1) & (values[:, 2:] > values[:, :2]).all(1)
    if not good.all():
        fix = f"Box {int(np.argmin(good))} of {len(values)} has none: remove it."
        raise checks.value_error(name, "boxes with an area", boxes, fix)
    return values


def best_iou(boxes: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """The largest IoU (N,) of each box (N, 4), as corners, with priors (P, 4), as centers."""
    low, high = priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2
    area = priors[:, 2] * priors[:, 3]
    found = []
    for start in range(0, len(boxes), _CHUNK):
        part = boxes[start : start + _CHUNK, None]
        sides = np.minimum(part[..., 2:], high) - np.maximum(part[..., :2], low)
        common = np.maximum(sides, 0.0).prod(-1)
        own = (part[..., 2:] - part[..., :2]).prod(-1)
        found.append((common / (own + area - common)).max(1))
    return np.concatenate(found)


def _overlap(sizes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """IoU (N, K) of boxes of these sizes (N, 2) and (K, 2) that share their center."""
    common = np.minimum(sizes[:, None], centers).prod(-1)
    return common / (sizes.prod(-1)[:, None] + centers.prod(-1) - common)


def _start(sizes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Initial centers far apart, by k-means++ (Arthur & Vassilvitskii 2007)."""
    chosen = [int(random.integers(len(sizes)))]
    while len(chosen) < count:
        far = 1.0 - _overlap(sizes, sizes[chosen]).max(1)
        # The distance of a chosen size is 0, except for rounding.
        far[chosen] = 0.0
        far = np.maximum(far, 0.0) ** 2
        chosen.append(int(random.choice(len(sizes), p=far / far.sum())))
    return sizes[chosen]


def k_means(sizes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the cluster centers (count, 2) of sizes (N, 2), sorted by area.

    They are the centers of the highest mean IoU in all iterations of four initializations:
    since the mean of a cluster need not be its best center under this distance, the last
    iteration need not be the best.
    """
    checks.non_negative_int("seed", seed)
    kinds = np.unique(sizes, axis=0)
    if len(kinds) < count:
        expected = f"boxes of at least {count} sizes, one for each prior of a cell"
        raise checks.value_error("boxes", expected, f"{len(kinds)} sizes")
    best, best_score = sizes[:0], -1.0
    for start in range(_STARTS):
        centers = _start(kinds, count, np.random.default_rng([seed, start]))
        before = None
        for _ in range(_ROUNDS):
            overlap = _overlap(sizes, centers)
            nearest, score = overlap.argmax(1), overlap.max(1).mean()
            if score > best_score:
                best, best_score = centers, score
            if before is not None and (nearest == before).all():
                break
            before = nearest
            members = [sizes[nearest == k] for k in range(count)]
            means = [own.mean(0) if len(own) else centers[k] for k, own in enumerate(members)]
            centers = np.array(means)
    order = np.lexsort((best[:, 0], best.prod(1)))
    return best[order]
