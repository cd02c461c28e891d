"""Scaling of pixels, by name, by numbers, or for a new network: (pixels − mean) / std."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.recipes.data import Data

# (mean, std) of pixels in 0..255, by the range that the model takes.
NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),  # the images as they are
    "0-255": ((0.0,), (1.0,)),
    "0-1": ((0.0,), (255.0,)),
    "-1-1": ((127.5,), (127.5,)),
    # The statistics of ImageNet that PyTorch's models and keras's "torch" mode take.
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
AUTO, STANDARDIZE = "auto", "standardize"
FORMS = (
    "auto, none, 0-255, 0-1, -1-1, imagenet, standardize, or numbers mean,std of pixels (0..255)"
)
_NEW_NETWORKS = "-1-1"  # how networks that a run trains itself take pixels
_BRIGHT = 128.0  # pixels that never reach it do not fill their range


@dataclasses.dataclass(frozen=True)
class Scaling:
    """An input is (pixels − mean) / std, each of one number or of one per channel.

    `mean` and `std` are what `tfkd.export.to_tflite` takes under these names.

    Attributes:
        name: as `named` takes it.
        mean, std: of pixels in 0..255.
        why: how it was found.
        to_pixels: what images of floats are multiplied by to be pixels in 0..255: 255 for
            those in 0..1. None: they are no pixels; `mean` and `std` are in their units.

    Example:
        >>> import numpy as np
        >>> from tfkd.recipes.scaling import named
        >>> named("-1-1")(np.uint8([[[[0], [255]]]])).ravel().tolist()
        [-1.0, 1.0]
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    why: str = ""
    to_pixels: float | None = 1.0

    def __call__(self, images: Any) -> Any:
        """Scales (B, H, W, C) images to float32; arrays stay arrays, tensors tensors."""
        is_array = isinstance(images, np.ndarray)
        is_float = images.dtype.kind == "f" if is_array else images.dtype.is_floating
        unit = (self.to_pixels or 1.0) if is_float else 1.0
        # Not the images by the unit: this leaves those bit for bit that need nothing.
        mean, std = (np.float32(np.divide(part, unit)) for part in (self.mean, self.std))
        if is_array:
            return (images.astype(np.float32) - mean) / std
        return (tf.cast(images, tf.float32) - mean) / std

    def __str__(self) -> str:
        return f"preprocess {self.name}" + (f": {self.why}" if self.why else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` gives it back."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}


def from_json(values: Mapping[str, Any]) -> Scaling:
    """The inverse of `Scaling.to_json`."""
    mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
    return Scaling(values["name"], mean, std, values.get("why", ""), values.get("to_pixels", 1.0))


def to_pixels(images: np.ndarray) -> float | None:
    """What images are multiplied by to be pixels in 0..255, by their values.

    Returns:
        1 for numbers in 0..255; 255 for floats in 0..1; None for others, such as
        standardized images.
    """
    if images.dtype == np.uint8:
        return 1.0
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255:
        return None
    return 255.0 if high <= 1 and images.dtype.kind == "f" else 1.0


def named(name: str, data: Data | None = None) -> Scaling:
    """A scaling by name, or by its numbers.

    Args:
        name: one of `NAMED`; "standardize": mean and standard deviation of the training
            images by channel; or numbers, first the means and then the standard deviations,
            of pixels in 0..255: "127.5,127.5" or "123,116,103,58,57,57". Those of pixels in
            0..1, as PyTorch's are, are recognized by their size: "0.5,0.5".
        data: for "standardize", to check the number of channels, and for the range of images
            of floats; None: pixels in 0..255.

    Raises:
        ValueError: if it is none of these, or does not fit the images.
    """
    images = None if data is None or data.kind not in ("images", "boxes") else data.train.x
    unit = 1.0 if images is None else to_pixels(images)
    if name == STANDARDIZE:
        if data is None:
            raise checks.value_error("preprocess", "a name that needs no data", name)
        return _standardized(data, unit)
    if name in NAMED and unit is None and name != "none":
        fix = (
            f"The images hold {range_text(images)}: pass none if the model takes them as they are, "
            "standardize, or the numbers of their mean and standard deviation."
        )
        raise checks.value_error("preprocess", "a scaling of pixels, and images of such", name, fix)
    if name == "none" and unit is not None:
        return Scaling(name, (0.0,), (unit,), to_pixels=unit)
    found = Scaling(name, *NAMED[name]) if name in NAMED else _numbers(name, unit)
    channels = data.example_shape[-1] if data is not None and data.example_shape else None
    if channels and len(found.mean) not in (1, channels):
        received = f"{name}, for {len(found.mean)} channels"
        raise checks.value_error("preprocess", f"numbers for {channels} channels", received)
    return dataclasses.replace(found, to_pixels=unit)


def for_new_network(data: Data) -> Scaling:
    """The scaling for a network that is yet to be trained: to −1..1 where pixels fill 0..255."""
    unit = to_pixels(data.train.x)
    if unit is None or data.train.x.max() * unit < _BRIGHT:
        found = named(STANDARDIZE, data)
        return dataclasses.replace(found, why=f"the images hold {range_text(data.train.x)}")
    return named(_NEW_NETWORKS, data)


def range_text(images: Any) -> str:
    kind = "floats" if images.dtype.kind == "f" else "numbers"
    return f"{kind} from {float(images.min()):.3g} to {float(images.max()):.3g}"


def for_limits(limits: tuple[float, float] | None) -> Scaling:
    """The scaling whose range is nearest to that of a file's quantized input.

    Args:
        limits: smallest and largest number that the input holds; None for a float input,
            for which raw pixels are taken.

    Example:
        >>> from tfkd.recipes.scaling import for_limits
        >>> for_limits((-1.0, 0.992)).name, for_limits((0.0, 255.0)).name
        ('-1-1', 'none')
    """
    if limits is None:
        return dataclasses.replace(named("none"), why="raw pixels are taken")
    ranges = {"none": (0.0, 255.0), "0-1": (0.0, 1.0), "-1-1": (-1.0, 1.0)}
    distance = {
        name: abs(np.log((high - low) / (limits[1] - limits[0]))) + abs(low - limits[0]) / high
        for name, (low, high) in ranges.items()
    }
    best = min(distance, key=lambda name: distance[name])
    why = f"its input holds {limits[0]:.3g} to {limits[1]:.3g}"
    return dataclasses.replace(named(best), why=why)


def _numbers(name: str, unit: float | None) -> Scaling:
    try:
        values = tuple(float(part) for part in name.split(","))
    except ValueError:
        values = ()
    half = len(values) // 2
    if not values or len(values) % 2 or not np.isfinite(values).all() or min(values[half:]) <= 0:
        fix = checks.near(name, [*NAMED, AUTO, STANDARDIZE])
        raise checks.value_error("preprocess", FORMS, name, fix)
    mean, std = values[:half], values[half:]
    if unit is not None and max(std) < 1 and min(mean) >= 0 and max(mean) <= 1:
        mean, std = (tuple(255 * value for value in part) for part in (mean, std))
        return Scaling(name, mean, std, "these are the numbers of pixels in 0..1")
    return Scaling(name, mean, std)


def _standardized(data: Data, unit: float | None) -> Scaling:
    images = data.train.x
    axes = tuple(range(images.ndim - 1))
    mean = images.mean(axis=axes, dtype=np.float64) * (unit or 1.0)
    std = np.maximum(images.std(axis=axes, dtype=np.float64) * (unit or 1.0), 1e-6)
    rounded = [tuple(round(float(v), 4) for v in values) for values in (mean, std)]
    why = "mean and standard deviation of the training images"
    return Scaling(STANDARDIZE, rounded[0], rounded[1], why, unit)
