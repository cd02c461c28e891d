"""Draws detections, false positives and missed objects on images, with Pillow.

The palette is that of Okabe and Ito, which colour-blind readers can distinguish:
https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tfkd import artifacts, checks
from tfkd.detection.flat_boxes import (
    Boxes,
    FlatBoxes,
    flat_detections,
    flat_ignored,
    flat_truth,
    names_of,
)
from tfkd.detection.hits import hits, without_ignored
from tfkd.types import Path

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
# (left edge, row, class or None, text) of the entries.
Legend: TypeAlias = list[tuple[int, int, int | None, str]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_INK, _PAPER = "#202020", "#ffffff"
_HALO = (0, 0, 0, 110)  # a dark edge around lines makes them visible on any image
_GAP = 12  # pixels between images
_DASH = 6  # pixels of a thin dash, half of a thick one


def detection_pictures(
    images: np.ndarray,
    detections: Boxes,
    truth: Boxes | None = None,
    class_names: Sequence[str] | None = None,
    columns: int = 4,
    score_threshold: float = 0.5,
    path: Path | None = None,
    size: int = 480,
) -> np.ndarray | pathlib.Path:
    """Draws detections, and optionally the ground truth, on images side by side.

    Detections are solid boxes and missed objects dashed ones, in the colour of the class.
    A false positive (no object at IoU 0.5) has a white label with a question mark; the
    object of a true positive is a thin dashed line. False positives in an object to ignore
    (`tfkd.detection.IGNORED`) are not drawn.

    Args:
        images: (N, H, W, 3), uint8 pixels, or float in −1..1.
        detections: dict from `report.detect` for these images, or for more, of which the
            first N are drawn; see `report.detection` for other forms.
        truth: dict {"boxes": (N, M, 4), "classes": (N, M)}, or None.
        class_names: C names; default "0", "1", ...
        columns: images per row.
        score_threshold: detections with a lower score are not drawn.
        path: the PNG file to write; None: the picture is returned.
        size: pixels of the longer side to which each image is scaled.

    Returns:
        The path; or, without one, the picture, uint8 (height, width, 3).

    Raises:
        TypeError, ValueError: for a bad argument.
        ImportError: if Pillow is not installed.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> images = np.zeros((2, 32, 48, 3), "uint8")
        >>> found = [{"boxes": [[0.1, 0.1, 0.5, 0.5]], "classes": [0], "confidence": [0.8]}] * 2
        >>> report.detection_pictures(images, found, class_names=["cell"], size=120).shape
        (138, 276, 3)
    """
    pixels = _pixels(images)
    columns = min(checks.positive_int("columns", columns), len(pixels))
    checks.fraction("score_threshold", score_threshold)
    checks.integer("size", size, 64, "at least 64 pixels")
    found = flat_detections(detections)
    real = flat_truth(truth) if truth is not None else found.only(found.images < 0)
    for name, flat in (("detections", found), ("truth", real)):
        if flat.count < len(pixels):
            expected = f"those of at least the {len(pixels)} images"
            raise checks.value_error(name, expected, f"those of {flat.count}")
    names = names_of(class_names, found, real)
    found = found.only((found.scores >= score_threshold) & (found.images < len(pixels)))
    real = real.only(real.images < len(pixels))
    if truth is not None:
        found = without_ignored(found, real, flat_ignored(truth))
    taken = None if truth is None else hits(found, real)
    page = _page(pixels, found, real, taken, names, columns, size)
    if path is None:
        return np.asarray(page)
    with artifacts.atomic_path(path) as temporary:
        page.save(temporary, format="PNG")
    return pathlib.Path(path)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Converts images to uint8 (N, H, W, 3)."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise checks.value_error("images", "at least one image, as (N, H, W, 3)", images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f" or not (np.abs(images) <= 1.0).all():
        fix = "Floats are inputs of a model in -1..1; pixels 0..255 have to be uint8."
        raise checks.value_error("images", "uint8, or floats in -1..1", images, fix)
    return np.rint((images.astype(np.float32) + 1.0) * 127.5).astype(np.uint8)


def _page(
    pixels: np.ndarray,
    found: FlatBoxes,
    real: FlatBoxes,
    taken: np.ndarray | None,
    names: tuple[str, ...],
    columns: int,
    size: int,
) -> Image.Image:
    """All images with a line of text above each and the legend below, as one PIL image."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError(
            'Pictures of detections need Pillow. Install it with `pip install "tfkd[detection]"`.'
        ) from error
    scale = size / max(pixels.shape[1:3])
    high, wide = (max(1, round(side * scale)) for side in pixels.shape[1:3])
    letter = max(10, round(size / 34))  # pixels; smaller letters are illegible
    line = round(1.7 * letter)  # the height of a line of text with its spacing
    font = ImageFont.load_default(letter)
    width = columns * (wide + _GAP) + _GAP
    present = np.union1d(found.classes, real.classes)
    legend = _legend(font, width, line, [(k, names[k]) for k in present], taken is not None)
    bottom = _GAP // 2 + math.ceil(len(pixels) / columns) * (high + line + _GAP)
    page = Image.new("RGB", (width, bottom + (legend[-1][1] + 1) * line + _GAP // 2), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, picture in enumerate(pixels):
        left = _GAP + index % columns * (wide + _GAP)
        top = _GAP // 2 + index // columns * (high + line + _GAP)
        image = Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC)
        pen = _Pen(ImageDraw.Draw(image, "RGBA"), font, (wide, high), max(2, round(size / 200)))
        counts = _draw_image(pen, index, found, real, taken, names)
        counts = counts if len(pixels) == 1 else f"{index}: {counts}"
        page.paste(image, (left, top + line))
        draw.text((left, top + line // 2), counts, fill=_INK, font=font, anchor="lm")
    _draw_legend(draw, font, bottom, line, legend)
    return page


def _draw_image(
    pen: _Pen,
    index: int,
    found: FlatBoxes,
    real: FlatBoxes,
    taken: np.ndarray | None,
    names: tuple[str, ...],
) -> str:
    """Draws the boxes of one image; returns the line of text above it.

    `taken` is the object of each detection, or -1; None if the truth is not known.
    """
    mine = np.flatnonzero(found.images == index)
    mine = mine[np.argsort(found.scores[mine], kind="stable")]  # the highest score on top
    tags = []
    missed = 0
    for place in np.flatnonzero(real.images == index):
        box, kind = real.boxes[place], real.classes[place]
        if taken is not None and place in taken:
            pen.dashed(box, _PAPER, thin=True)
        else:
            missed += 1
            pen.dashed(box, colour(kind))
            tags.append((box, names[kind], kind, False))
    right = np.ones(len(found.boxes), bool) if taken is None else taken >= 0
    for place in mine:
        box, kind = found.boxes[place], found.classes[place]
        pen.solid(box, colour(kind))
        text = f"{names[kind]} {found.scores[place]:.2f}" + ("" if right[place] else " ?")
        tags.append((box, text, kind, right[place]))
    # Labels are drawn after all boxes, which would cross them out. Errors and high scores
    # come first: the later a label is placed, the fewer free places are left.
    for box, text, kind, filled in sorted(tags[::-1], key=lambda tag: tag[3]):
        pen.tag(box, text, colour(kind), filled)
    if taken is None:
        return f"{len(mine)} detected"
    count = int(right[mine].sum())
    return f"{count} right, {len(mine) - count} wrong, {missed} missed"


class _Pen:
    """Draws boxes, in relative coordinates, and their labels on one image."""

    def __init__(self, draw: ImageDraw.ImageDraw, font: Font, size: tuple[int, int], width: int):
        self.draw, self.font, self.size, self.width = draw, font, size, width
        self._tags: list[tuple[int, ...]] = []

    def _corners(self, box: np.ndarray) -> list[int]:
        """Corners of a box in pixels, clipped to the image."""
        sides = np.tile(self.size, 2)
        return np.clip(np.rint(box * sides), 0, sides - 1).astype(int).tolist()

    def solid(self, box: np.ndarray, ink: str) -> None:
        corners, width = self._corners(box), self.width
        around = [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1]
        self.draw.rectangle(around, outline=_HALO, width=width + 2)
        self.draw.rectangle(corners, outline=ink, width=width)

    def dashed(self, box: np.ndarray, ink: str, thin: bool = False) -> None:
        left, top, right, bottom = self._corners(box)
        width = 1 if thin else self.width
        dash = _DASH if thin else 2 * _DASH
        for y in (top, bottom):
            for x in range(left, right, 2 * dash):
                self._stroke((x, y, min(x + dash, right), y), ink, width)
        for x in (left, right):
            for y in range(top, bottom, 2 * dash):
                self._stroke((x, y, x, min(y + dash, bottom)), ink, width)

    def _stroke(self, line: tuple[int, ...], ink: str, width: int) -> None:
        self.draw.line(line, fill=_HALO, width=width + 2)
        self.draw.line(line, fill=ink, width=width)

    def tag(self, box: np.ndarray, text: str, ink: str, filled: bool) -> None:
        """Draws a label at the box, where it covers the least of other labels."""
        wide = math.ceil(self.font.getlength(text)) + 6
        high = self.font.getbbox("Ag", anchor="lt")[3] + 4
        places = list(self._places(self._corners(box), wide, high))
        place = min(places, key=self._covered)  # among equal ones the first
        self._tags.append(place)
        paper, letters = (ink, _on(ink)) if filled else (_PAPER, _INK)
        self.draw.rectangle(place, fill=paper, outline=ink)
        middle = (place[1] + place[3]) / 2
        self.draw.text((place[0] + 3, middle), text, fill=letters, font=self.font, anchor="lm")

    def _places(self, corners: list[int], wide: int, high: int) -> Iterator[tuple[int, ...]]:
        """Possible places of a label, the best first: above, inside, below; left, right."""
        left, top, right, bottom = corners
        for y in (top - high, top, bottom, bottom - high):
            if 0 <= y <= self.size[1] - high - 1:
                for x in (left, right - wide):
                    x = max(0, min(x, self.size[0] - wide - 1))
                    yield x, y, x + wide, y + high

    def _covered(self, place: tuple[int, ...]) -> float:
        """The area of other labels, in pixels, that a label at `place` would cover."""
        return sum(
            max(0, min(place[2], tag[2]) - max(place[0], tag[0]))
            * max(0, min(place[3], tag[3]) - max(place[1], tag[1]))
            for tag in self._tags
        )


def colour(kind: int) -> str:
    """Returns the colour of a class."""
    return COLOURS[int(kind) % len(COLOURS)]


def _on(ink: str) -> str:
    """Black or white, whichever has the better contrast with a colour."""
    red, green, blue = (int(ink[i : i + 2], 16) for i in (1, 3, 5))
    # The luma of Rec. 601.
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else _PAPER


def _legend(
    font: Font, width: int, line: int, kinds: list[tuple[int, str]], with_truth: bool
) -> Legend:
    """Entries of the legend, broken into rows: (left, row, class or None, text)."""
    notes = ["solid: detected"]
    if with_truth:
        notes += ["white label: wrong", "dashed: missed", "thin white: found"]
    entries: list[tuple[int | None, str]] = [*kinds, *((None, note) for note in notes)]
    placed, left, row = [], _GAP, 0
    for kind, text in entries:
        wide = math.ceil(font.getlength(text)) + (0 if kind is None else line)
        if left + wide > width and left > _GAP:
            left, row = _GAP, row + 1
        placed.append((left, row, kind, text))
        left += wide + 2 * _GAP
    return placed


def _draw_legend(
    draw: ImageDraw.ImageDraw, font: Font, top: int, line: int, legend: Legend
) -> None:
    for left, row, kind, text in legend:
        middle, half = top + (row + 0.5) * line, 0.28 * line
        if kind is not None:
            box = (left, middle - half, left + 2 * half, middle + half)
            draw.rectangle(box, fill=colour(kind))
            left += line
        draw.text((left, middle), text, fill=_INK, font=font, anchor="lm")
