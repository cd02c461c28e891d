"""Image decoding and resizing with Pillow, EXIF orientation, and reasons for failure."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.data import names as naming

# EXIF orientation → the PIL.Image.Transpose that inverts it.
_BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


class LeadsOut(ValueError):
    """An image outside of the data folder."""


def hint(image: pathlib.Path) -> str:
    """A likely reason why a file was not found: a Windows path in the annotation."""
    windows = pathlib.PureWindowsPath(image.name)
    if len(windows.parts) < 2:
        return ""
    if windows.anchor:
        return ". That is a path of Windows: write names from the data folder on, with /"
    there = image.with_name(windows.parts[0]).joinpath(*windows.parts[1:])
    known = ": that file is there" if there.is_file() else ""
    return f". Write {windows.as_posix()}, with / for each \\{known}"


def _orientation(image: Any) -> int:
    """EXIF orientation of an image, 1 to 8; 1: as stored."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # invalid EXIF data count as no orientation
        return 1


def decoder(size: tuple[int, int]) -> Any:
    """`decode(picture)` → pixels (H, W, 3), (width, height), is_ambiguous; or the error.

    `picture` is a `reading.Picture`; LeadsOut is returned for one outside of its folder.
    An orientation is ambiguous if EXIF says to rotate or flip the image and the annotation
    does not show whether its boxes refer to the image as stored or as displayed.
    """
    with checks.needed("Reading images needs Pillow", "detection"):
        from PIL import Image, ImageOps

    def decode(picture: Any) -> Any:
        if naming.leads_out(picture.root, picture.image):
            return LeadsOut(str(naming.real(picture.image)))
        try:
            with Image.open(picture.image) as image:
                if image.mode.startswith(("I", "F")):
                    return ValueError(f"mode {image.mode}, save it with 8 bits a channel")
                orientation = _orientation(image)
                chosen = image
                if image.format == "TIFF" and orientation in _BACK:  # Pillow applies it on load
                    chosen = image.transpose(_BACK[orientation])
                # Some tools annotate the image as displayed, with the EXIF orientation
                # applied: the annotated size shows which of the two they used.
                is_ambiguous = False
                if not picture.fits(chosen.size):
                    chosen = ImageOps.exif_transpose(image)
                elif picture.objects:
                    # Orientations 5 to 8 swap width and height, which shows in the size of
                    # any image that is not square.
                    is_clear = orientation >= 5 and not picture.fits(chosen.size[::-1])
                    is_ambiguous = orientation in _BACK and not is_clear
                rgb = chosen.convert("RGB")
                small = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
                return np.asarray(small, np.uint8), rgb.size, is_ambiguous
        except Exception as error:  # each of Pillow's decoders raises its own errors
            return error

    return decode
