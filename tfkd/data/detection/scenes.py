"""Synthetic detection scenes of handwritten digits, for training detectors within minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks
from tfkd.data.detection.augment import augment_boxes
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.data.folder import check_size
from tfkd.data.sources import digits

# Side of a digit's 8×8 image, relative to the shorter side of the scene.
_SCALES = (0.15, 0.45)
# Ink, in 0..1, from which a pixel belongs to the stroke.
_INK = 0.3
# Largest intersection over the smaller box: for equal boxes an IoU of 0.3 / 1.7 < 0.2.
_SHARED = 0.3
# Digits tried for a place in a scene, and positions tried for each digit.
_TRIES, _PLACES = 10, 20
_NOISE = 10.0  # standard deviation in grey levels of 0..255


class _Stroke(NamedTuple):
    """A tightly cropped digit: ink (h, w) in 0..1, and its class."""

    ink: np.ndarray
    label: int


class _Digits:
    """Digits (N, 8, 8, 1) from which enlarged ones are drawn."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        border = ((0, 0), (1, 1), (1, 1))  # for strokes that end at the edge
        self.ink = np.pad(images[..., 0].astype(np.float32) / 255, border)
        self.labels = labels

    def draw(self, rng: np.random.Generator, side: float) -> _Stroke:
        """A random digit, enlarged from 8×8 to `side` pixels and cropped to its stroke."""
        index = int(rng.integers(len(self.ink)))
        weights = _enlarging(self.ink.shape[1], round(side * self.ink.shape[1] / 8))
        large = weights @ self.ink[index] @ weights.T
        stroke = large >= _INK
        rows, columns = np.flatnonzero(stroke.any(axis=1)), np.flatnonzero(stroke.any(axis=0))
        cut = large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return _Stroke(cut, int(self.labels[index]))


def digit_scenes(
    count: int = 1000,
    test_count: int = 200,
    size: int | Sequence[int] = (96, 96),
    objects: tuple[int, int] = (1, 6),
    seed: int = 0,
) -> DetectionDataset:
    """Synthetic scenes of several handwritten digits, for detection within minutes.

    Scikit-learn's 8×8 digits (`tfkd.data.digits`) are enlarged to 15 to 45 % of the scene
    and drawn on a noisy grey background, brighter on dark and darker on bright ones.
    Boxes fit tightly around the strokes; the IoU of two boxes is below 0.2. Digits of
    test scenes never occur in training scenes, for any seed. Nothing is downloaded.

    Args:
        count: number of training scenes.
        test_count: number of test scenes.
        size: height and width in pixels, or one number for a square; 48 or more.
        objects: smallest and largest number of digits per scene, uniformly drawn.
        seed: determines the scenes. Scene i of a seed does not depend on `count`.

    Returns:
        A `DetectionDataset` of 10 classes, "0" to "9". Its `augment` does not mirror.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if a number is too small, or the digits do not fit into a scene.

    Example:
        >>> from tfkd import data
        >>> scenes = data.digit_scenes(count=20, test_count=5, size=64, objects=(2, 2))
        >>> scenes
        DetectionDataset('digit_scenes', 20 + 5 images (64, 64, 3), 40 + 10 objects of 10 classes)
    """
    checks.positive_int("count", count)
    checks.positive_int("test_count", test_count)
    checks.non_negative_int("seed", seed)
    height, width = check_size(size)
    if min(height, width) < 48:
        raise checks.value_error("size", "a height and a width of at least 48 pixels", size)
    low, high = _check_objects(objects)
    source = digits()
    fields: dict[str, Any] = {}
    for part, (split, wanted) in enumerate((("train", count), ("test", test_count))):
        strokes = _Digits(getattr(source, f"x_{split}"), getattr(source, f"y_{split}"))
        images = np.empty((wanted, height, width, 3), np.uint8)
        boxes, classes = [], []
        for index in range(wanted):
            rng = np.random.default_rng([seed, part, index])
            number = int(rng.integers(low, high + 1))
            grey, corners, found = _scene(rng, strokes, (height, width), number, low)
            images[index] = grey[..., None]
            boxes.append(np.array(corners) / (width, height, width, height))
            classes.append(np.array(found))
        fields |= {f"x_{split}": images, f"boxes_{split}": boxes, f"classes_{split}": classes}
    fields |= {"class_names": tuple("0123456789"), "augment": augment_boxes(flip=False)}
    return DetectionDataset(**fields, name="digit_scenes")


def _check_objects(objects: Any) -> tuple[int, int]:
    expected = "the fewest and the most digits of a scene, (1, 6)"
    if not isinstance(objects, Sequence) or isinstance(objects, str) or len(objects) != 2:
        raise checks.type_error("objects", expected, objects)
    low, high = (checks.integer("objects", n, 1, expected) for n in objects)
    if low > high:
        raise checks.value_error("objects", expected, objects, "The smaller number first.")
    return low, high


def _scene(
    rng: np.random.Generator, strokes: _Digits, size: tuple[int, int], wanted: int, fewest: int
) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """One scene: grey pixels (H, W), and the corners in pixels and classes of its digits."""
    ground = rng.uniform(50, 205)
    away = 1 if ground < 127.5 else -1
    canvas = np.full(size, ground, np.float32)
    boxes: list[list[int]] = []
    classes: list[int] = []
    for _ in range(wanted):
        placed = _place(rng, strokes, size, boxes)
        if placed is None:
            if len(boxes) < fewest:
                fix = "Use a larger `size`."
                raise checks.value_error("objects", f"digits that {size} has room for", wanted, fix)
            break
        stroke, box = placed
        x1, y1, x2, y2 = box
        colour = ground + away * rng.uniform(50, 120)
        patch = canvas[y1:y2, x1:x2]
        patch += stroke.ink * (colour - patch)
        boxes.append(box)
        classes.append(stroke.label)
    noise = rng.standard_normal(size, np.float32) * _NOISE
    return np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8), boxes, classes


def _place(
    rng: np.random.Generator, strokes: _Digits, size: tuple[int, int], boxes: list[list[int]]
) -> tuple[_Stroke, list[int]] | None:
    """A digit and a box for it that overlaps no other too much; None if none was found."""
    low, high = np.log(_SCALES)
    for _ in range(_TRIES):
        side = min(size) * float(np.exp(rng.uniform(low, high)))
        stroke = strokes.draw(rng, side)
        height, width = stroke.ink.shape
        x = rng.integers(0, size[1] - width + 1, _PLACES)
        y = rng.integers(0, size[0] - height + 1, _PLACES)
        places = np.stack([x, y, x + width, y + height], axis=1)
        free = np.flatnonzero(_shared(places, np.array(boxes).reshape(-1, 4)) <= _SHARED)
        if free.size:
            return stroke, places[free[0]].tolist()
    return None


def _enlarging(size: int, to: int) -> np.ndarray:
    """(to, size) weights of bilinear interpolation along one axis."""
    places = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    apart = np.abs(places[:, None] - np.arange(size)[None])
    return np.maximum(1 - apart, 0).astype(np.float32)


def _shared(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(K,) largest intersection with any of `boxes`, divided by the area of the smaller box."""
    if not len(boxes):
        return np.zeros(len(places))
    first = np.maximum(places[:, None, :2], boxes[None, :, :2])
    last = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    common = np.maximum(last - first, 0).prod(axis=-1)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (places, boxes)]
    return (common / np.minimum(areas[0][:, None], areas[1][None])).max(axis=1)
