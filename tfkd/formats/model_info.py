"""`ModelInfo`: labels, input scaling and vocabulary that travel with an exported file."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfkd import artifacts, checks
from tfkd.formats import associated_files
from tfkd.types import Path

if TYPE_CHECKING:
    from tfkd.data.text import Encoder

MEMBER = "tfkd_model.json"
ENTRY = "info"  # of a manifest's recipe
ENCODER_SUFFIX = ".encoder.json"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What has to be known about a file beside its tensors.

    Attributes:
        labels: output name → names of the classes along its last axis.
        scaling: (mean, std): an input is (pixels − mean) / std, each of one number or of one
            per channel; None: not known.
        encoder: makes the token ids of texts; None: the file takes no texts.
    """

    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    encoder: Encoder | None = None

    def __bool__(self) -> bool:
        return bool(self.labels or self.scaling or self.encoder)

    def to_json(self) -> dict[str, Any]:
        """The information as JSON values."""
        found: dict[str, Any] = {"labels": {k: list(v) for k, v in self.labels.items()}}
        if self.scaling is not None:
            found["mean"], found["std"] = (list(values) for values in self.scaling)
        if self.encoder is not None:
            found["encoder"] = self.encoder.to_json()
        return found


def from_json(values: Mapping[str, Any]) -> ModelInfo:
    """The inverse of `ModelInfo.to_json`."""
    scaling = (tuple(values["mean"]), tuple(values["std"])) if "mean" in values else None
    encoder = _encoder().from_json(values["encoder"]) if "encoder" in values else None
    return ModelInfo({k: tuple(v) for k, v in values["labels"].items()}, scaling, encoder)


def _encoder() -> type[Encoder]:
    # `tfkd.data` imports TensorFlow, which files of numbers do not need.
    from tfkd.data.text import Encoder

    return Encoder


def read(path: Path, outputs: tuple[str, ...] = ()) -> ModelInfo:
    """Reads the information inside a file, in its manifest, or in files beside it.

    Args:
        path: the file.
        outputs: names of its outputs, of which the last has the labels of a file that only
            holds a list of them.

    Raises:
        ValueError: if the information is there and can't be read.
    """
    try:
        found = _inside(path, outputs) or _manifest(path)
        beside = pathlib.Path(f"{os.fspath(path)}{ENCODER_SUFFIX}")
        if found.encoder is None and beside.is_file():
            found = dataclasses.replace(found, encoder=_encoder().load(beside))
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fix = f"Its labels and settings can't be read: {checks.in_short(error)}"
        expected = "a file whose labels and settings can be read"
        raise checks.value_error("path", expected, os.fspath(path), fix) from error


def _inside(path: Path, outputs: tuple[str, ...]) -> ModelInfo:
    members = associated_files.read(path) if str(path).endswith(".tflite") else {}
    if MEMBER in members:
        return from_json(json.loads(members[MEMBER]))
    if associated_files.LABELS in members and outputs:
        labels = members[associated_files.LABELS].decode().splitlines()
        return ModelInfo({outputs[-1]: tuple(labels)})
    return ModelInfo()


def _manifest(path: Path) -> ModelInfo:
    if not artifacts.manifest_path(path).is_file():
        return ModelInfo()
    values = artifacts.read_manifest(path)["recipe"].get(ENTRY)
    return from_json(values) if values else ModelInfo()
