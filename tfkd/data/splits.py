"""What the data sets in memory share: splits with class numbers, and names of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import checks


class Splits:
    """Base of the frozen dataclasses that hold the splits of a data set."""

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, without one for the background."""
        return len(self.class_names)

    def _set(self, fields: Mapping[str, Any]) -> None:
        """Sets fields of the frozen dataclass during its construction."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)


class ImageSplits(Splits):
    """The same for images (N, H, W, C) of one size."""

    x_train: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        return self.x_train.shape[1:]


def split_labels(name: str, value: Any, count: int, noun: str) -> np.ndarray:
    """Returns `value` as int32 of shape (count,), all at least 0.

    Args:
        name: name of `value` in messages.
        value: integer labels (N,).
        count: N.
        noun: what an example is in messages, such as "image".
    """
    labels = np.asarray(value)
    if labels.shape != (count,):
        raise checks.value_error(name, f"{count} labels, one for each {noun}", labels)
    if labels.dtype.kind not in "iu":
        fix = "If the numbers are whole, use `.astype('int32')`."
        raise checks.type_error(name, "integer labels", labels, fix)
    if labels.min() < 0:
        raise checks.value_error(name, "labels from 0", int(labels.min()))
    return labels.astype(np.int32)


def named_classes(
    class_names: tuple[str, ...], labels: Mapping[str, np.ndarray], noun: str
) -> tuple[str, ...]:
    """The names of the classes, by default "0", "1", ...

    Args:
        class_names: K names, or () for the default.
        labels: "y_train" and others → labels of a split.
        noun: what an example is in messages.

    Raises:
        ValueError: unless every label from 0 to the largest is in `y_train`, and there is
            one name per class.
    """
    counts = np.bincount(labels["y_train"])
    missing = np.flatnonzero(counts == 0)
    if missing.size:
        expected = f"every label from 0 to {len(counts) - 1} at least once"
        fix = f"Labels without {noun}: {missing[:10].tolist()}. Number the classes 0, 1, 2, ..."
        raise checks.value_error("y_train", expected, labels["y_train"], fix)
    for name, values in labels.items():
        if values.max() >= len(counts):
            fix = f"The training part has the labels 0 to {len(counts) - 1}."
            raise checks.value_error(name, "labels that are in y_train", int(values.max()), fix)
    names = tuple(str(n) for n in class_names) or tuple(map(str, range(len(counts))))
    if len(names) != len(counts):
        raise checks.value_error("class_names", f"{len(counts)} names, one per class", names)
    return names
