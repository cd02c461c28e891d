"""Loads annotated images into arrays, for all annotation formats; faults become findings."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks
from tfkd.data import names as naming
from tfkd.data import quality
from tfkd.data.detection import decoding
from tfkd.data.detection.dataset import SPLITS, DetectionDataset
from tfkd.data.detection.findings import SHARED, AnnotationLog

# Rounding and 1-based coordinates put boxes up to this far outside: clipped without a finding.
_SLACK_PIXELS = 1.0


class Object(NamedTuple):
    """One annotated object of an image.

    Attributes:
        name: class name.
        box: (x1, y1, x2, y2) in pixels of the file.
        shown: the box as written in its file, for findings.
        name_line, box_line: line numbers of the two.
    """

    name: str
    box: tuple[float, float, float, float]
    shown: str
    name_line: int | None
    box_line: int | None


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image file and its annotation.

    Attributes:
        image: the image file.
        root: the data folder, which must contain the file.
        source: the annotation file, as findings name it.
        line: line of the image in the annotation file.
        objects: its objects; None if it is unlabelled.
        size: annotated (width, height), None for a side that is missing.
        size_line: line of the size in the annotation file.
    """

    image: pathlib.Path
    root: pathlib.Path
    source: str
    line: int | None
    objects: tuple[Object, ...] | None
    size: tuple[int | None, int | None] = (None, None)
    size_line: int | None = None

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether an image size agrees with the annotated size, as far as that is given."""
        return all(noted in (None, side) for noted, side in zip(self.size, size, strict=True))


class Arrays(NamedTuple):
    """Images (N, H, W, 3) with boxes (n, 4) and classes (n,) of each, None if unlabelled.

    `pictures` are those that could be decoded.
    """

    images: np.ndarray
    boxes: list[np.ndarray | None]
    classes: list[np.ndarray | None]
    pictures: list[Picture]


def check_names(names: Any) -> tuple[str, ...] | None:
    """Returns class names, which must be distinct, or None."""
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise checks.type_error("class_names", "a sequence of names", names)
    names = tuple(naming.nfc(str(name)) for name in names)
    if not names or len(set(names)) != len(names):
        raise checks.value_error("class_names", "at least one name, and each once", names)
    return names


def class_names(pictures: Iterable[Picture]) -> tuple[str, ...]:
    """The class names of all objects, sorted."""
    return tuple(sorted({o.name for p in pictures for o in p.objects or ()}))


def split(
    pictures: Sequence[Picture], test_fraction: float, seed: int
) -> tuple[list[Picture], list[Picture]]:
    """Random split into (train, test), neither empty; the order is kept."""
    checks.fraction("test_fraction", test_fraction)
    checks.non_negative_int("seed", seed)
    count = len(pictures)
    wanted = round(count * test_fraction)
    if not 0 < wanted < count:
        expected = f"a fraction that leaves images of {count} on both sides"
        raise checks.value_error("test_fraction", expected, test_fraction)
    order = np.random.default_rng(seed).permutation(count)
    train, test = ([pictures[i] for i in np.sort(o)] for o in (order[wanted:], order[:wanted]))
    return train, test


def apart(train: Sequence[Picture], test: Sequence[Picture], found: AnnotationLog) -> list[Picture]:
    """The test part without images that are also in the training part."""
    known = {naming.real(picture.image) for picture in train}
    apart = []
    for picture in test:
        if naming.real(picture.image) in known:
            expected, received = "an image of one part alone", "one of the training part too"
            found.add(picture.source, "in both parts", picture.line, expected, received)
        else:
            apart.append(picture)
    return apart


def read(
    pictures: Sequence[Picture], names: Sequence[str], size: tuple[int, int], found: AnnotationLog
) -> Arrays:
    """Decodes and resizes images; faulty ones are left out and added to `found`."""
    decode = decoding.decoder(size)
    numbers = {name: number for number, name in enumerate(names)}
    images = np.empty((len(pictures), *size, 3), np.uint8)
    boxes: list[np.ndarray | None] = []
    classes: list[np.ndarray | None] = []
    kept_pictures = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for picture, decoded in zip(pictures, pool.map(decode, pictures), strict=True):
            if isinstance(decoded, Exception):
                _add_unread(picture, decoded, found)
                continue
            pixels, (width, height), is_ambiguous = decoded
            if is_ambiguous:
                expected = "no EXIF orientation"
                received = f"one in {picture.image.name}, and a size that fits both ways"
                found.add(picture.source, "orientation", picture.line, expected, received)
            if not picture.fits((width, height)):
                expected = f"the size of the image, {width} × {height}"
                received = " × ".join(str(side or "none") for side in picture.size)
                found.add(picture.source, "size", picture.size_line, expected, received)
                continue
            images[len(boxes)] = pixels
            kept_pictures.append(picture)
            if picture.objects is None:
                boxes.append(None)
                classes.append(None)
                continue
            if not picture.objects:
                found.add(picture.source, "no object", picture.line, "objects", "none")
            kept = [_object(o, picture, width, height, numbers, found) for o in picture.objects]
            rows = [row for row in kept if row is not None]
            boxes.append(np.array([box for box, _ in rows], np.float32).reshape(-1, 4))
            classes.append(np.array([number for _, number in rows], np.int32))
    return Arrays(images[: len(boxes)], boxes, classes, kept_pictures)


def dataset(
    train: Sequence[Picture],
    test: Sequence[Picture],
    names: Sequence[str],
    size: tuple[int, int],
    found: AnnotationLog,
    on_error: str,
    name: str,
) -> DetectionDataset:
    """Loads both parts, then raises or warns of all findings."""
    _check_pixels([*train, *test], name)
    parts = [read(pictures, names, size, found) for pictures in (train, test)]
    for part, arrays in zip(("training", "test"), parts, strict=True):
        if not arrays.boxes:  # an error even with on_error="skip"
            raise found.error(name, f"No image of the {part} part can be used. Fix the files.")
    _add_shared(parts[0], parts[1], found)
    naming.warn_case(name, names)
    objects = [sum(len(b) for b in arrays.boxes if b is not None) for arrays in parts]
    labelled = any(b is not None for b in parts[0].boxes)
    if labelled and not objects[0] and found.left_out():
        raise found.error(
            name,
            f"No object of the training part is left: {found.left_out()}. Fix the files, or ask "
            "for objects that are there.",
        )
    findings = found.settle(name, on_error)
    for part, count in zip(("training", "test"), objects, strict=True):
        if not count and (labelled or part == "test"):
            checks.warn(f"{name}: no image of the {part} part has an object. Is its file whole?")
    columns = [f"{field}_{part}" for part in SPLITS for field in ("x", "boxes", "classes")]
    values = (value for arrays in parts for value in arrays[:3])
    fields: dict[str, Any] = dict(zip(columns, values, strict=True))
    return DetectionDataset(**fields, class_names=tuple(names), name=name, findings=findings)


def _check_pixels(pictures: Sequence[Picture], name: str) -> None:
    """Raises ValueError for boxes in fractions of the image, which would be specks in pixels."""
    boxes = np.array([one.box for picture in pictures for one in picture.objects or ()])
    if boxes.size and boxes.max() <= 1 and (boxes % 1).any():
        fix = "They look like fractions of the image: multiply them by its width and height."
        received = f"{name}, where no corner is beyond {boxes.max():.3g}"
        raise checks.value_error("path", "boxes in pixels", received, fix)


def _add_shared(train: Arrays, test: Arrays, found: AnnotationLog) -> None:
    """Adds a finding for each test image with the pixels of a training image."""
    images = {"train": train.images, "test": test.images}
    for part, row, earlier, place in quality.repeats(images):
        if part != earlier:
            picture, known = test.pictures[row], train.pictures[place]
            received = f"{picture.image.name} with the pixels of {known.image.name}"
            expected = "images that are not in the training part too"
            found.add(picture.source, SHARED, picture.line, expected, received)


def _add_unread(picture: Picture, error: Exception, found: AnnotationLog) -> None:
    """Adds the finding for an image that could not be decoded."""
    name = picture.image.name
    if isinstance(error, decoding.LeadsOut):
        kind, expected = "leads out", f"an image in {picture.root}, links included"
        received = f"{name}, which is {error}. Copy it into the folder"
    elif isinstance(error, FileNotFoundError):
        kind, expected = "missing image", f"the image {name}"
        received = "no such file" + decoding.hint(picture.image)
    else:
        kind, expected = "undecodable image", f"the image {name} to be readable"
        received = f"Pillow's {type(error).__name__}: {error}"
    found.add(picture.source, kind, picture.line, expected, received)


def _object(
    item: Object,
    picture: Picture,
    width: int,
    height: int,
    numbers: dict[str, int],
    found: AnnotationLog,
) -> tuple[list[float], int] | None:
    """Relative box and class number of one object, or None if it is left out."""
    add = functools.partial(found.add, picture.source)
    if item.name not in numbers:
        near = checks.near(item.name, numbers)
        received = repr(item.name) + (f". {near}" if near else "")
        shown = ", ".join(list(numbers)[:10]) + (", ..." if len(numbers) > 10 else "")
        add("unknown class", item.name_line, f"one of {shown}", received)
        return None
    if not _has_area(item.box, width, height):
        add("no area", item.box_line, "a box with width and height above 0", item.shown)
        return None
    x1, y1, x2, y2 = item.box
    beyond = max(-x1, -y1, x2 - width, y2 - height) > _SLACK_PIXELS
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))
    lost = not _has_area(clipped, width, height)
    if beyond or lost:
        kind = "off the image" if lost else "outside"
        expected = f"a box within the image, {width} × {height}"
        add(kind, item.box_line, expected, item.shown)
    if lost:
        return None
    sides = (width, height, width, height)
    return [c / side for c, side in zip(clipped, sides, strict=True)], numbers[item.name]


def _has_area(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    """Whether a box has an area in float32, in which boxes are stored."""
    sides = np.array([width, height, width, height])
    x1, y1, x2, y2 = (np.array(box) / sides).astype(np.float32)
    return bool(x1 < x2 and y1 < y2)
