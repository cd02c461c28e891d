"""Matches detections with ground truth into true and false positives, by COCO's rule."""

from __future__ import annotations

import numpy as np

from tfkd.detection.flat_boxes import FlatBoxes


def hits(found: FlatBoxes, real: FlatBoxes, overlap: float = 0.5) -> np.ndarray:
    """Matches each detection with at most one object.

    The detections of an image and class are matched by decreasing score, each with the
    free object of its class that it overlaps most, if their IoU is at least `overlap`.

    Args:
        found: K detections.
        real: ground truth of the same images.
        overlap: the lowest intersection over union of a match.

    Returns:
        (K,) int: index of the object in `real`, or -1 for a false positive.

    Example:
        >>> from tfkd.detection.flat_boxes import flat_detections, flat_truth
        >>> from tfkd.detection.hits import hits
        >>> box = [0.1, 0.1, 0.4, 0.5]
        >>> found = [{"boxes": [box, box], "classes": [0, 0], "confidence": [0.3, 0.9]}]
        >>> hits(flat_detections(found), flat_truth([{"boxes": [box], "classes": [0]}]))
        array([-1,  0])
    """
    taken = np.full(len(found.boxes), -1)
    # A number for each (image, class), within which boxes can match.
    classes = 1 + max(found.classes.max(initial=0), real.classes.max(initial=0))
    groups = [flat.images * classes + flat.classes for flat in (found, real)]
    for group in np.intersect1d(*groups):
        mine, theirs = (np.flatnonzero(values == group) for values in groups)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        overlaps = _overlaps(found.boxes[mine], real.boxes[theirs])
        for index, row in zip(mine, overlaps, strict=True):
            # Among equal overlaps the last object, as in pycocotools.
            best = len(row) - 1 - int(row[::-1].argmax())
            if row[best] >= overlap:
                taken[index] = theirs[best]
                overlaps[:, best] = -1.0
    return taken


def without_ignored(
    found: FlatBoxes, real: FlatBoxes, ignored: FlatBoxes, overlap: float = 0.5
) -> FlatBoxes:
    """Leaves out false positives with that share of their area or more in an object to ignore.

    So COCO treats crowds.
    """
    if not len(ignored.classes):
        return found
    keep = hits(found, real) >= 0
    for index in np.flatnonzero(~keep):
        box, there = found.boxes[index], ignored.boxes[ignored.images == found.images[index]]
        sides = np.minimum(box[2:], there[:, 2:]) - np.maximum(box[:2], there[:, :2])
        area = (box[2:] - box[:2]).prod()
        keep[index] = not (np.maximum(sides, 0.0).prod(-1) >= overlap * area).any()
    return found.only(keep)


def curves(
    found: FlatBoxes, real: FlatBoxes, classes: int, count: int = 101
) -> tuple[np.ndarray, np.ndarray]:
    """Counts true and false positives (IoU 0.5) at evenly spaced score thresholds.

    Returns:
        Two arrays (classes, count): the numbers of true and of false positives with a
        score of at least 0, 1 / (count − 1), ..., 1.
    """
    right = hits(found, real) >= 0
    thresholds = np.linspace(0.0, 1.0, count)
    both = np.empty((2, classes, count), np.int64)
    for side, chosen in enumerate((right, ~right)):
        for kind in range(classes):
            scores = np.sort(found.scores[chosen & (found.classes == kind)])
            both[side, kind] = len(scores) - np.searchsorted(scores, thresholds)
    return both[0], both[1]


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (N, M) of corners, in float64 like pycocotools."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.maximum(high - low, 0.0).prod(-1)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)
