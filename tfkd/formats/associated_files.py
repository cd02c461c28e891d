"""Files packed into a `.tflite` file, as TFLite metadata has them: labels, settings.

They are appended as a zip archive, which TFLite ignores and every unzip program can read.
Android's and MediaPipe's task libraries look for labels there, too.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping

from tfkd.types import Path

LABELS = "labels.txt"


def packed(data: bytes, members: Mapping[str, bytes]) -> bytes:
    """Appends an archive of `members` to the bytes of a file."""
    stream = io.BytesIO(data)
    # Not compressed, since MediaPipe maps the members into memory.
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as file:
        for name, member in members.items():
            # A fixed date makes exports reproducible byte for byte; 1980 is zip's earliest.
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), member)
    return stream.getvalue()


def read(path: Path) -> dict[str, bytes]:
    """The files that are packed into a file, by name; {} if there are none.

    Raises:
        ValueError: if they are damaged.
    """
    if not os.path.isfile(path) or not zipfile.is_zipfile(path):
        return {}
    try:
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"the files inside {os.fspath(path)!r} can't be read: {error}") from error


def lines(names: tuple[str, ...]) -> bytes:
    """Labels as a text file of one a line."""
    return ("\n".join(names) + "\n").encode()
