"""Metadata of a detector's `.tflite` file: anchors, labels, input scaling, decoding options.

They are packed into the file, see `tfkd.formats.associated_files`. Nothing here imports
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.formats import associated_files
from tfkd.formats.associated_files import LABELS
from tfkd.types import Path

OPERATION = "TFLite_Detection_PostProcess"
# Boxes, classes, scores and count, named as in TensorFlow's own detectors.
OUTPUTS = (OPERATION, f"{OPERATION}:1", f"{OPERATION}:2", f"{OPERATION}:3")
HEADS = ("postprocess", "raw")
_RECIPE = "tfkd_detector.json"
_PRIORS = "priors.npy"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class DetectorRecipe:
    """All that is needed to feed a detector's network and to decode its outputs.

    Attributes:
        heads: what the file outputs: "raw", offsets and logits, or "postprocess", detections.
        labels: name of each class except the background.
        size: height, width and channels of the images.
        mean, std: the network's input is (pixels − mean) / std; one number, or one per
            channel.
        pixels: whether the file's input is uint8 pixels without scaling.
        options: all options of `tfkd.detection.decode`.
        priors: anchor boxes, float32 (P, 4) as (cx, cy, w, h).
    """

    heads: str
    labels: tuple[str, ...]
    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: bool
    options: dict[str, Any]
    priors: np.ndarray

    def fed(self, images: np.ndarray) -> np.ndarray:
        """Converts images, uint8 or scaled floats, to the input that the file expects."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        integers = images.dtype == np.uint8
        if self.pixels and not integers:
            return np.clip(np.rint(images * std + mean), 0, 255).astype(np.uint8)
        if self.pixels or not integers:
            return images
        return ((images.astype(np.float32) - mean) / std).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Everything except the priors in a form that JSON can hold."""
        values = dataclasses.asdict(self)
        del values["priors"]
        return {"format": _FORMAT, **values}


def check_labels(labels: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Checks that there are `count` unique labels of one line each; None: class indices."""
    if labels is None:
        return tuple(str(i) for i in range(count))
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise checks.type_error("labels", "a list with the name of each class", labels)
    for label in labels:
        if not isinstance(label, str) or not label.strip() or len(label.splitlines()) != 1:
            raise checks.value_error("labels", "names of one line of text each", label)
    if len(labels) != count or len(set(labels)) != count:
        expected = f"{count} different names, one for each class but the background"
        raise checks.value_error("labels", expected, list(labels))
    return tuple(labels)


def check_scaling(
    mean: float | Sequence[float], std: float | Sequence[float], pixels: bool, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Checks `mean` and `std`, scalars or one number per channel; returns (mean, std, pixels)."""
    found: list[tuple[float, ...]] = []
    for name, value, check in (("mean", mean, checks.finite), ("std", std, checks.positive)):
        values: Any = [value] if checks.is_number(value) else value
        if not isinstance(values, (list, tuple, np.ndarray)) or len(values) not in (1, channels):
            raise checks.value_error(name, f"a number, or {channels} of them", value)
        found.append(tuple(float(check(name, float(v))) for v in values))
    if len(found[0]) != len(found[1]):
        raise checks.value_error("std", f"as many numbers as `mean` has, {len(found[0])}", std)
    if pixels and (len({*found[0]}) > 1 or len({*found[1]}) > 1):
        fix = "An integer tensor has one scale: use io='float32'."
        raise checks.value_error("mean", "one number with io='uint8'", mean, fix)
    return found[0], found[1], pixels


def with_archive(data: bytes, recipe: DetectorRecipe) -> bytes:
    """Appends the archive to the bytes of a file."""
    members = {
        LABELS: associated_files.lines(recipe.labels),
        _RECIPE: json.dumps(recipe.to_json(), indent=2, ensure_ascii=False).encode(),
    }
    if recipe.heads == "raw":
        stream = io.BytesIO()
        np.save(stream, recipe.priors, allow_pickle=False)
        members[_PRIORS] = stream.getvalue()
    return associated_files.packed(data, members)


def read(path: Path) -> DetectorRecipe:
    """Reads the recipe that is appended to a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no recipe, or the recipe can't be read.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path`: there is no file {os.fspath(path)!r}.")
    expected = "a file that tfkd.export.detector_to_tflite wrote"
    try:
        members = associated_files.read(path)
        priors = np.zeros((0, 4), np.float32)
        if _PRIORS in members:
            priors = np.load(io.BytesIO(members[_PRIORS]), allow_pickle=False)
        return _from_json(json.loads(members[_RECIPE]), priors)
    except (KeyError, TypeError, ValueError) as error:
        fix = f"Its labels and settings can't be read: {error}."
        raise checks.value_error("path", expected, os.fspath(path), fix) from error


def _from_json(values: Mapping[str, Any], priors: np.ndarray) -> DetectorRecipe:
    if values["format"] != _FORMAT:
        raise ValueError(f"it has format {values['format']!r}, this tfkd reads {_FORMAT}")
    height, width, channels = values["size"]
    return DetectorRecipe(
        checks.one_of("heads", values["heads"], HEADS),
        tuple(values["labels"]),
        (int(height), int(width), int(channels)),
        tuple(values["mean"]),
        tuple(values["std"]),
        bool(values["pixels"]),
        dict(values["options"]),
        priors,
    )
