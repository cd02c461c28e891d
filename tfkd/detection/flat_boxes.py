"""Checks detections and ground truth, and flattens padded batches to one list of boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.detection.boxes import IGNORED, PADDING, UNLABELLED

# A padded batch of boxes, or a list of batches or of single images.
Boxes: TypeAlias = "Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]]"


@dataclasses.dataclass(frozen=True, eq=False)
class FlatBoxes:
    """The K boxes of many images, without padding.

    Attributes:
        images: (K,) int, index of the image of each box, ascending.
        boxes: (K, 4) float64 corners, relative to the image.
        classes: (K,) int, 0..C-1.
        scores: (K,) float64; ones for ground truth.
        count: number of images, including those without a box.
    """

    images: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    count: int

    def only(self, keep: np.ndarray) -> FlatBoxes:
        """Returns the boxes where bool (K,) `keep` is True; the number of images stays."""
        names = ("images", "boxes", "classes", "scores")
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in names})


def flat_detections(detections: Boxes) -> FlatBoxes:
    """Checks and flattens detections.

    Args:
        detections: dict {"boxes": (B, N, 4), "confidence": (B, N), "classes": (B, N)},
            optionally with "num_detections" (B,), and otherwise padded with class -1; or a
            list of such batches, or of dicts of single images without the axis B.

    Raises:
        TypeError, ValueError: for anything else, or NaN.
    """
    keys = ("boxes", "classes", "confidence")
    flat = _joined([_part("detections", one, keys) for one in _parts("detections", detections)])
    for name, values in (("boxes", flat.boxes), ("confidence", flat.scores[:, None])):
        broken = ~np.isfinite(values).all(1)
        if broken.any():
            image = int(flat.images[np.argmax(broken)])
            fix = f"Those of image {image} are not: check the model's weights and loss for NaN."
            raise checks.value_error(f"detections[{name!r}]", "finite numbers", values, fix)
    low = int(flat.classes.min(initial=0))
    if low < 0:
        raise checks.value_error("detections['classes']", "class numbers from 0", low)
    return flat


def flat_truth(truth: Boxes) -> FlatBoxes:
    """Checks and flattens ground truth.

    Args:
        truth: dict {"boxes": (B, M, 4), "classes": (B, M)}, padded with class -1; or a
            list of such batches, or of dicts of single images without the axis B.

    Objects to ignore (`tfkd.detection.IGNORED`) are left out; `flat_ignored` returns them.

    Raises:
        TypeError, ValueError: for anything else, for an image that has not been labelled,
            and for a box without area.
    """
    flat = _truth(truth)
    return flat.only(flat.classes != IGNORED)


def flat_ignored(truth: Boxes) -> FlatBoxes:
    """The objects to ignore of a ground truth, as `flat_truth` returns the others."""
    flat = _truth(truth)
    return flat.only(flat.classes == IGNORED)


def _truth(truth: Boxes) -> FlatBoxes:
    flat = _joined([_part("truth", one, ("boxes", "classes")) for one in _parts("truth", truth)])
    unlabelled = np.unique(flat.images[flat.classes == UNLABELLED])
    if len(unlabelled):
        shown = ", ".join(map(str, unlabelled[:5])) + (", ..." if len(unlabelled) > 5 else "")
        given = f"{len(unlabelled)} of {flat.count} images without labels (class {UNLABELLED})"
        fix = f"Leave them out, with their detections: {shown}. A labelled image without objects "
        fix += f"has only classes {PADDING}."
        raise checks.value_error("truth", "images that are labelled", given, fix)
    numbers = flat.classes[flat.classes != IGNORED]
    if int(numbers.min(initial=0)) < 0:
        raise checks.value_error("truth['classes']", "class numbers from 0", numbers.min())
    sides = flat.boxes[:, 2:] - flat.boxes[:, :2]
    broken = ~np.isfinite(flat.boxes).all(1) | (sides <= 0).any(1)
    if broken.any():
        first, count = int(np.argmax(broken)), int(broken.sum())
        expected = "finite corners (x1, y1, x2, y2) with x1 < x2 and y1 < y2"
        fix = f"It is a box of image {int(flat.images[first])}; {count} boxes in all are invalid: "
        fix += "leave them out."
        raise checks.value_error("truth['boxes']", expected, flat.boxes[first].tolist(), fix)
    return flat


def names_of(
    class_names: Sequence[str] | None, found: FlatBoxes, real: FlatBoxes
) -> tuple[str, ...]:
    """Returns the given names of all classes, or the numbers up to the highest."""
    sides = {"detections": found, "truth": real}
    highest = {name: int(flat.classes.max(initial=-1)) for name, flat in sides.items()}
    if class_names is None:
        return tuple(map(str, range(max(max(highest.values()) + 1, 1))))
    if not isinstance(class_names, (list, tuple)):
        raise checks.type_error("class_names", "a list of names", class_names)
    if not class_names:
        raise checks.value_error("class_names", "at least one name", class_names)
    for name, value in highest.items():
        if value >= len(class_names):
            fix = "Class 0 is the first object, not the background."
            expected = f"class numbers below {len(class_names)}, the number of `class_names`"
            raise checks.value_error(f"{name}['classes']", expected, value, fix)
    return tuple(map(str, class_names))


def _parts(name: str, value: Boxes) -> list[Mapping[str, ArrayLike]]:
    parts = [value] if isinstance(value, Mapping) else value
    if not isinstance(parts, (list, tuple)):
        expected = "a dict of arrays, or a list of dicts, one per image or batch"
        raise checks.type_error(name, expected, value)
    if not parts:
        raise checks.value_error(name, "at least one image", value)
    return list(parts)


def _part(name: str, part: Mapping[str, ArrayLike], keys: tuple[str, ...]) -> FlatBoxes:
    """Flattens one batch or one image; images are numbered from 0."""
    checks.instance(name, part, Mapping, f"dicts with {', '.join(map(repr, keys))}")
    for key in keys:
        if key not in part:
            fix = f"There are: {', '.join(map(repr, part)) or 'none'}."
            raise checks.value_error(name, f"a dict with {key!r}", sorted(part), fix)
    boxes, classes = (_array(part[key]) for key in ("boxes", "classes"))
    boxes = boxes.astype(np.float64)
    if not classes.size:  # np.asarray([]) has neither the last axis of 4 nor integers
        boxes, classes = boxes.reshape(*classes.shape, 4), classes.astype(np.int32)
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4 or classes.shape != boxes.shape[:-1]:
        expected = "boxes (B, N, 4) and classes (B, N), or (N, 4) and (N,) for one image"
        received = f"boxes {boxes.shape}, classes {classes.shape}"
        raise checks.value_error(name, expected, received)
    if not np.array_equal(classes, np.trunc(classes)):
        raise checks.value_error(f"{name}['classes']", "whole numbers", classes)
    scores = _array(part["confidence"]) if "confidence" in keys else np.ones(classes.shape)
    if scores.shape != classes.shape:
        expected = f"confidence of shape {classes.shape}, as the classes"
        raise checks.value_error(f"{name}['confidence']", expected, scores)
    if boxes.ndim == 2:
        boxes, classes, scores = boxes[None], classes[None], scores[None]
    valid = classes != PADDING
    if "confidence" in keys and part.get("num_detections") is not None:
        counts = np.asarray(part["num_detections"]).reshape(-1)
        if counts.shape != (len(boxes),):
            expected = f"{len(boxes)} numbers, one per image"
            raise checks.value_error(f"{name}['num_detections']", expected, counts)
        valid &= np.arange(classes.shape[1]) < counts[:, None]
    images = np.nonzero(valid)[0]
    found = (boxes[valid], classes[valid].astype(np.int64), scores[valid].astype(np.float64))
    return FlatBoxes(images, *found, len(boxes))


def _array(value: Any) -> np.ndarray:
    """Converts an array or a tensor, also a ragged one, to NumPy."""
    if hasattr(value, "to_tensor"):
        value = value.to_tensor(default_value=PADDING)
    return np.asarray(value)


def _joined(parts: list[FlatBoxes]) -> FlatBoxes:
    starts = np.cumsum([0, *(part.count for part in parts)])
    images = np.concatenate([p.images + start for p, start in zip(parts, starts, strict=False)])
    boxes = np.concatenate([part.boxes for part in parts])
    classes = np.concatenate([part.classes for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    count = int(starts[-1])
    if not count:
        raise checks.value_error("images", "at least one image", count)
    return FlatBoxes(images, boxes, classes, scores, count)
