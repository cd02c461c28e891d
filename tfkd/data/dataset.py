"""Image classification data sets in memory, validated on construction."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd import checks
from tfkd.data import quality
from tfkd.data.splits import ImageSplits, named_classes, split_labels
from tfkd.types import Tensor

if TYPE_CHECKING:
    import tensorflow as tf

_CHUNK = 1024  # images converted to float at a time


def _images(name: str, value: Any) -> np.ndarray:
    """Returns `value` as uint8 or float32 of shape (N, H, W, C)."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise checks.type_error(name, "an array of images (N, H, W, C)", value)
    value = np.asarray(value)
    if value.ndim == 3:
        value = value[..., None]
    if value.ndim != 4 or 0 in value.shape:
        raise checks.value_error(name, "at least one image, as (N, H, W, C) or (N, H, W)", value)
    if value.dtype.kind == "f":
        value = value.astype(np.float32, copy=False)
        for start in range(0, len(value), _CHUNK):
            finite = np.isfinite(value[start : start + _CHUNK]).all(axis=(1, 2, 3))
            if not finite.all():
                bad = start + int(np.argmin(finite))
                fix = f"Image {bad} holds NaN or infinity: remove it."
                raise checks.value_error(name, "finite pixels", value, fix)
        return value
    if value.dtype.kind not in "iu":
        raise checks.type_error(name, "uint8 or float images", value)
    if value.dtype != np.uint8:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high > 255:
            fix = f"Pixels run from {low} to {high}: scale them to 0..255, or to float in [0, 1]."
            raise checks.value_error(name, "integer pixels in 0..255", value, fix)
    return value.astype(np.uint8, copy=False)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset(ImageSplits):
    """Labelled images, split into a training and a test part.

    Warns about images that are in both parts, and about equal images with different
    labels.

    Args:
        x_train: (N, H, W, C) or (N, H, W) images: uint8 (other integers within
            0..255 are converted), or float, converted to float32 and not rescaled.
        y_train: (N,) or (N, 1) integer labels; each of 0..K-1 at least once.
        x_test: (M, H, W, C) images of the same size and dtype.
        y_test: (M,) integer labels within 0..K-1.
        class_names: K names; default "0", "1", ...
        name: name of the data set in reports.
        places: source of each image, such as its file name, training images first;
            used in warnings only.

    Raises:
        TypeError: if an argument is not an array, or of the wrong dtype.
        ValueError: if shapes, lengths, pixel values or labels are inconsistent, or an
            image holds NaN.

    Example:
        >>> import numpy as np
        >>> from tfkd import data
        >>> x, y = np.arange(64, dtype="uint8").reshape(4, 4, 4), np.array([0, 1, 0, 1])
        >>> toy = data.Dataset(x, y, x[:2] + 1, y[:2], name="toy")
        >>> toy.image_shape, toy.num_classes, round(float(toy.mean[0]), 4)
        ((4, 4, 1), 2, 0.1235)
        >>> toy.preprocess(toy.x_test[:2]).shape
        TensorShape([2, 4, 4, 1])
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] = ()
    name: str = "data"
    places: dataclasses.InitVar[Sequence[Any] | None] = None

    def __post_init__(self, places: Sequence[Any] | None):
        x_train, x_test = _images("x_train", self.x_train), _images("x_test", self.x_test)
        if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
            expected = f"images like x_train, {x_train.shape[1:]} of {x_train.dtype}"
            raise checks.value_error("x_test", expected, x_test)
        labels = {}
        for name, images in (("y_train", x_train), ("y_test", x_test)):
            value = getattr(self, name)
            if not hasattr(value, "shape") or not hasattr(value, "dtype"):
                raise checks.type_error(name, "an array of integer labels (N,)", value)
            value = np.asarray(value)
            value = value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value
            if value.ndim != 1:
                fix = "One-hot labels? Pass their `argmax(axis=1)`." if value.ndim == 2 else None
                raise checks.value_error(name, "labels of shape (N,) or (N, 1)", value, fix)
            labels[name] = split_labels(name, value, len(images), "image")
        names = named_classes(self.class_names, labels, "an example")
        self._set({"x_train": x_train, "x_test": x_test, "class_names": names, **labels})
        quality.pixels(self.name, x_train, x_test)
        count = len(x_train)
        named = (None, None) if places is None else (places[:count], places[count:])
        train = quality.Part(x_train, self.y_train, named[0])
        test = quality.Part(x_test, self.y_test, named[1])
        quality.repeated(self.name, "images", {"train": train, "test": test}, names)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.x_train)} + {len(self.x_test)} images "
            f"{self.image_shape} {self.x_train.dtype}, {self.num_classes} classes)"
        )

    @property
    def scale(self) -> float:
        """What pixels are divided by: 255 for uint8, 1 for float images."""
        return 255.0 if self.x_train.dtype == np.uint8 else 1.0

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation per channel, in float64 and two passes over chunks."""
        x, starts = self.x_train, range(0, len(self.x_train), _CHUNK)
        count = x[..., 0].size

        def total(function):
            chunks = (x[s : s + _CHUNK].astype(np.float64) / self.scale for s in starts)
            return sum(function(chunk).sum((0, 1, 2)) for chunk in chunks)

        mean = total(lambda chunk: chunk) / count
        variance = total(lambda chunk: (chunk - mean) ** 2) / count
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)

    @property
    def mean(self) -> np.ndarray:
        """(C,) mean of the training images, after division by `scale`."""
        return self._moments[0]

    @property
    def std(self) -> np.ndarray:
        """(C,) standard deviation of the training images, after division by `scale`."""
        return self._moments[1]

    def preprocess(self, images: Tensor) -> tf.Tensor:
        """Standardizes images: (pixel / scale - mean) / std, in float32.

        For `data.batches(..., preprocess=dataset.preprocess)`. A channel that is
        constant in the training images is only shifted.

        Args:
            images: (B, H, W, C) array or tensor, as in `x_train`.

        Returns:
            (B, H, W, C) float32 tensor.
        """
        import tensorflow as tf

        std = np.where(self.std > 0, self.std, 1.0).astype(np.float32)
        return (tf.cast(images, tf.float32) / self.scale - self.mean) / std

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """A smaller, class-balanced data set.

        Subsets of one seed are nested: the 100 images are among the 200. The order
        of the images is kept.

        Args:
            train: number of training images; None: all.
            test: number of test images; None: all.
            seed: determines which images are taken.

        Returns:
            A `Dataset`; class sizes differ by at most one image.

        Raises:
            ValueError: if a class has too few images, or a class would have no
                training image.

        Example:
            >>> import numpy as np
            >>> from tfkd import data
            >>> small = data.digits().subset(train=100, test=50)
            >>> np.bincount(small.y_train).tolist()
            [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
        """
        checks.non_negative_int("seed", seed)
        if train is not None and checks.positive_int("train", train) < self.num_classes:
            raise checks.value_error("train", f"at least one of {self.num_classes} classes", train)
        # Bypasses the constructor, which would repeat its checks and warnings.
        small = copy.copy(self)
        vars(small).pop("_moments", None)
        for part, count in (("train", train), ("test", test)):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            kept = _balanced(part, y, count, seed)
            small._set({f"x_{part}": x[kept], f"y_{part}": y[kept]})
        return small


def _balanced(name: str, labels: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Sorted indices of `count` examples with equally many of each class of `labels`."""
    if count is None:
        return np.arange(len(labels))
    checks.positive_int(name, count)
    classes = np.random.default_rng(seed).permutation(np.unique(labels))
    base, extra = divmod(count, len(classes))
    kept = []
    for rank, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        wanted = base + (rank < extra)
        if wanted > len(members):
            having = f"class {label} has {len(members)} images, {wanted} are needed"
            expected = f"a number that every class can give its part of ({having})"
            raise checks.value_error(name, expected, count)
        kept.append(np.random.default_rng([seed, int(label)]).permutation(members)[:wanted])
    return np.sort(np.concatenate(kept))


def stratified_split(
    labels: np.ndarray, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified split: sorted indices (train, test), with `test_fraction` of each class in test.

    Each class has at least one example in both parts.

    Raises:
        ValueError: if `test_fraction` is not between 0 and 1, or a class has
            fewer than two examples.
    """
    checks.fraction("test_fraction", test_fraction)
    if test_fraction in (0, 1):
        raise checks.value_error("test_fraction", "a number above 0 and below 1", test_fraction)
    checks.non_negative_int("seed", seed)
    parts = []
    for label, count in enumerate(np.bincount(labels)):
        if count < 2:
            expected = "at least two examples of each class, to split"
            raise checks.value_error("labels", expected, labels, f"Class {label} has {count}.")
        members = np.flatnonzero(labels == label)
        wanted = int(np.clip(round(count * test_fraction), 1, count - 1))
        parts.append(np.random.default_rng([seed, label]).permutation(members)[:wanted])
    test = np.sort(np.concatenate(parts))
    return np.setdiff1d(np.arange(len(labels)), test), test
