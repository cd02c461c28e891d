"""Pictures on disk → pixels of one size, which way up they are, and why one can't be read."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tfkd.data import names as naming

# EXIF orientation → number of Pillow's transposition that undoes it.
_BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


class LeadsOut(ValueError):
    """An image that lies outside of the data folder."""


def hint(image: pathlib.Path) -> str:
    """What may be wrong with the name of a file that is not there."""
    windows = pathlib.PureWindowsPath(image.name)
    if len(windows.parts) < 2:
        return ""
    if windows.anchor:
        return ". That is a path of Windows: write names from the data folder on, with /"
    there = image.with_name(windows.parts[0]).joinpath(*windows.parts[1:])
    return f". Write {windows.as_posix()}, with / for each \\" + (
        ": that file is there" if there.is_file() else ""
    )


def _orientation(image: Any) -> int:
    """What the camera notes of how to show an image, 1 to 8; 1: as it is."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken note is none
        return 1


def decoder(size: tuple[int, int]) -> Any:
    """`decode(picture)` → pixels (H, W, 3), (width, height), and a doubt; or the error.

    `picture` is a `reading.Picture`; LeadsOut is returned for one outside of its folder.
    The doubt: whether the camera's note says to turn the picture, and it is not known if its
    boxes are those of the turned one.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            "Reading images needs Pillow. Install it with `pip install tfkd[detection]`."
        ) from error

    def decode(picture: Any) -> Any:
        if naming.leads_out(picture.root, picture.image):
            return LeadsOut(str(naming.real(picture.image)))
        try:
            with Image.open(picture.image) as image:
                if image.mode.startswith(("I", "F")):
                    return ValueError(f"mode {image.mode}, save it with 8 bits a channel")
                note = _orientation(image)
                chosen = image
                if image.format == "TIFF" and note in _BACK:  # Pillow turns these as it reads them
                    chosen = image.transpose(_BACK[note])
                # Some tools annotate the picture as a viewer shows it, turned by the camera's
                # note; the size that they wrote down tells.
                doubt = False
                if not picture.fits(chosen.size):
                    chosen = ImageOps.exif_transpose(image)
                elif picture.objects:
                    # The size tells of a quarter turn, unless the picture is a square.
                    told = note >= 5 and not picture.fits(chosen.size[::-1])
                    doubt = note in _BACK and not told
                rgb = chosen.convert("RGB")
                small = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
                return np.asarray(small, np.uint8), rgb.size, doubt
        except Exception as error:  # each of Pillow's decoders has errors of its own
            return error

    return decode
