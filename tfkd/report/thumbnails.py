"""Small pictures of examples as data URLs, from arrays of any usual dtype, range and shape."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks

if TYPE_CHECKING:
    from PIL import Image

SIDE = 96  # pixels of the longer side


def thumbnails(
    images: ArrayLike, examples: Iterable[int] | None = None, side: int = SIDE
) -> dict[str, str]:
    """Pictures of examples for `RunReport.pictures`.

    Args:
        images: (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4): uint8 pixels, other
            integers, bools, or floats in any range, which is told by all the values: −1..1,
            0..1, 0..255, or else from the smallest to the largest. Of other numbers of channels
            the first is shown.
        examples: indices of the examples; None: all.
        side: pixels of the longer side; smaller images are not enlarged.

    Returns:
        Index (as text) → PNG as a data URL.

    Raises:
        TypeError, ValueError: for what is no images, or an index beyond them.
        ImportError: if Pillow is not installed.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> found = report.thumbnails(np.zeros((4, 8, 8), "float32"), [2])
        >>> list(found), found["2"][:22]
        (['2'], 'data:image/png;base64,')
    """
    array = np.asarray(images)
    if array.ndim not in (3, 4) or array.dtype.kind not in "biuf" or 0 in array.shape:
        expected = "images, as numbers (N, H, W) or (N, H, W, channels)"
        raise checks.value_error("images", expected, images)
    checks.positive_int("side", side)
    chosen = range(len(array)) if examples is None else [int(i) for i in examples]
    for index in chosen:
        if not 0 <= index < len(array):
            raise checks.value_error("examples", f"indices from 0 to {len(array) - 1}", index)
    if not len(chosen):
        return {}
    low, high = _limits(array)
    return {str(i): _encoded(_picture(array[i], low, high, side)) for i in chosen}


def data_url(picture: np.ndarray) -> str:
    """A picture as a PNG in a data URL, for `RunReport.scenes`.

    Args:
        picture: uint8 (H, W), (H, W, 3) or (H, W, 4), as of `report.detection_pictures`.

    Raises:
        ValueError: if it is none.
        ImportError: if Pillow is not installed.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> report.data_url(np.zeros((4, 4, 3), "uint8"))[:22]
        'data:image/png;base64,'
    """
    pixels = np.asarray(picture)
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))
    if pixels.dtype != np.uint8 or not is_picture or not pixels.size:
        raise checks.value_error("picture", "uint8 pixels (H, W, 3)", picture)
    return _encoded(_pillow().fromarray(pixels))


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pillow() -> Any:
    """The module PIL.Image."""
    with checks.needed("Pictures of examples need Pillow", "images"):
        from PIL import Image
    return Image


def _limits(array: np.ndarray) -> tuple[float, float]:
    """The values that are black and white."""
    if array.dtype == np.uint8:
        return 0.0, 255.0
    if array.dtype == bool:
        return 0.0, 1.0
    some = array[:: max(1, len(array) // 256)].astype(np.float64)
    some = some[np.isfinite(some)]
    low, high = (float(some.min()), float(some.max())) if some.size else (0.0, 1.0)
    if array.dtype.kind == "f" and -1.001 <= low < 0 and high <= 1.001:
        return -1.0, 1.0
    if low >= 0 and high <= 1.001 and array.dtype.kind == "f":
        return 0.0, 1.0
    if low >= 0 and 1 < high <= 255:
        return 0.0, 255.0
    return low, high if high > low else low + 1.0


def _picture(image: np.ndarray, low: float, high: float, side: int) -> Any:
    values = np.nan_to_num(image.astype(np.float64), nan=low, posinf=high, neginf=low)
    pixels = np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[-1] not in (3, 4):
        pixels = pixels[..., 0]
    pillow = _pillow()
    made = pillow.fromarray(pixels)
    if max(made.size) > side:
        scale = side / max(made.size)
        size = tuple(max(1, round(edge * scale)) for edge in made.size)
        made = made.resize(size, pillow.Resampling.LANCZOS)
    return made
