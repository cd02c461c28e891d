"""Detection targets: padding of ragged boxes and classes to arrays, and validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfkd import checks
from tfkd.detection.boxes import IGNORED, UNLABELLED, has_box

PAD = -1
# Largest excess of a box over 0..1 that is taken for rounding and clipped.
_SLACK = 1e-3

Names = tuple[str, str]


def widen(values: np.ndarray, rows: int) -> np.ndarray:
    """Pads (N, M, ...) along M to `rows`: classes of unlabelled images with -2, else with -1."""
    if values.shape[1] == rows:
        return values
    shape = (values.shape[0], rows, *values.shape[2:])
    padded = np.full(shape, PAD, values.dtype)
    if values.ndim == 2:
        padded[values[:, 0] == UNLABELLED] = UNLABELLED
    padded[:, : values.shape[1]] = values
    return padded


def pad(names: Names, boxes: Any, classes: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays, or lists of one array per image → new arrays float32 (N, M, 4) and int32 (N, M)."""
    for name, value in zip(names, (boxes, classes), strict=True):
        if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__len__"):
            raise checks.type_error(name, "an array, or a list of one array per image", value)
        if len(value) != count:
            raise checks.value_error(name, f"{count} entries, one per image", len(value))
    if _regular(boxes, 3) and _regular(classes, 2):
        return _arrays(names, np.asarray(boxes), np.asarray(classes))
    pairs = [_image(names, i, boxes[i], classes[i]) for i in range(count)]
    width = max(1, *(len(c) for _, c in pairs)) if pairs else 1
    padded = np.full((count, width, 4), PAD, np.float32)
    numbers = np.full((count, width), PAD, np.int32)
    for i, (some_boxes, some_classes) in enumerate(pairs):
        padded[i, : len(some_boxes)] = some_boxes
        numbers[i, : len(some_classes)] = some_classes
    return padded, numbers


def _regular(value: Any, rank: int) -> bool:
    return getattr(value, "ndim", None) == rank and value.dtype.kind != "O"


def _arrays(names: Names, boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if boxes.shape[2] != 4 or boxes.shape[1] == 0 or boxes.dtype.kind not in "fiu":
        raise checks.value_error(names[0], "boxes (N, M, 4), M at least 1", boxes)
    if classes.shape != boxes.shape[:2]:
        raise checks.value_error(names[1], f"one class per box, {boxes.shape[:2]}", classes)
    if classes.dtype.kind not in "iu":
        raise checks.type_error(names[1], "integer classes", classes)
    return boxes.astype(np.float32), classes.astype(np.int32)


def _image(names: Names, index: int, boxes: Any, classes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and classes (n,) of one image."""
    where = f"See image {index}."
    if boxes is None or classes is None:
        if boxes is not None or classes is not None:
            expected = "boxes and classes, or None in both (not labelled)"
            raise checks.value_error(names[boxes is not None], expected, None, where)
        return np.full((1, 4), PAD, np.float32), np.full(1, UNLABELLED, np.int32)
    boxes, classes = np.asarray(boxes), np.asarray(classes)
    if classes.size and classes.dtype.kind not in "iu":
        raise checks.type_error(names[1], "integer classes", classes, where)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise checks.value_error(names[0], "numbers (n, 4) for each image", boxes, where)
    if classes.shape != boxes.shape[:1]:
        expected = f"{len(boxes)} classes, one per box"
        raise checks.value_error(names[1], expected, classes, where)
    return boxes, classes


def check(names: Names, boxes: np.ndarray, classes: np.ndarray) -> None:
    """Validates padded boxes and classes; in place, sets padding to -1 and clips boxes to 0..1.

    All classes of an unlabelled image are set to -2.
    """
    if classes.min() < IGNORED:
        expected = "classes from 0; -1 for no box, -2 for an image that is not labelled, -3 for "
        expected += "an object to ignore"
        raise checks.value_error(names[1], expected, int(classes.min()))
    unlabelled = (classes == UNLABELLED).any(axis=1)
    real = has_box(classes)
    mixed = np.flatnonzero(unlabelled & real.any(axis=1))
    if mixed.size:
        expected = "-2 in all classes of an image that is not labelled, or in none"
        raise checks.value_error(names[1], expected, classes[mixed[0]], f"See image {mixed[0]}.")
    classes[unlabelled] = UNLABELLED
    boxes[~real] = PAD
    finite = np.isfinite(boxes).all(axis=-1)
    inside = (boxes >= -_SLACK).all(axis=-1) & (boxes <= 1 + _SLACK).all(axis=-1)
    area = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    for fits, expected in (
        (finite, "finite boxes"),
        (inside, "relative boxes (x1, y1, x2, y2) in 0..1"),
        (area, "boxes with x1 < x2 and y1 < y2"),
    ):
        bad = np.argwhere(real & ~fits)
        if len(bad):
            image, row = bad[0]
            box = [round(float(v), 4) for v in boxes[image, row]]
            raise checks.value_error(names[0], expected, box, _fix(expected, box, image, row))
    boxes[real] = np.clip(boxes[real], 0, 1)


def _fix(expected: str, box: list[float], image: int, row: int) -> str:
    where = f"It is box {row} of image {image}."
    if "relative" in expected and max(box) > 2:
        return f"{where} Pixels? Divide x by the width and y by the height."
    if "x1 < x2" in expected:
        return f"{where} Width and height instead of a corner? Add the first corner."
    return where
