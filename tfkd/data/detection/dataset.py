"""Object-detection data sets in memory, validated on construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd import checks
from tfkd.data import quality
from tfkd.data.detection import targets
from tfkd.data.detection.augment import augment_boxes
from tfkd.data.detection.findings import SHARED, AnnotationFinding, AnnotationFindings, warn_notes
from tfkd.data.splits import ImageSplits
from tfkd.detection import UNLABELLED
from tfkd.types import Tensor

if TYPE_CHECKING:
    import tensorflow as tf

SPLITS = ("train", "test")


def scaled(images: Tensor) -> tf.Tensor:
    """uint8 pixels → float32 in [-1, 1], the input range of tfkd's models: pixels / 127.5 − 1."""
    import tensorflow as tf

    return tf.cast(images, tf.float32) / 127.5 - 1.0


def check_images(name: str, value: Any) -> np.ndarray:
    """Returns `value` as uint8 of shape (N, H, W, 3), N at least 1."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        fix: str | None = "They must be of one size: resize them, then use `np.stack(images)`."
        raise checks.type_error(name, "one array of images (N, H, W, 3)", value, fix)
    value = np.asarray(value)
    if value.ndim != 4 or 0 in value.shape or value.shape[-1] != 3:
        grey = value.ndim == 3 or (value.ndim == 4 and value.shape[-1] == 1)
        fix = "Greyscale? Use `np.stack([images] * 3, axis=-1)` on (N, H, W)." if grey else None
        raise checks.value_error(name, "at least one image, as (N, H, W, 3)", value, fix)
    if value.dtype.kind not in "iu":
        fix = "In [0, 1]? Use `np.rint(255 * images).astype('uint8')`."
        raise checks.type_error(name, "uint8 images", value, fix)
    if value.dtype != np.uint8 and (value.min() < 0 or value.max() > 255):
        fix = f"Pixels run from {value.min()} to {value.max()}."
        raise checks.value_error(name, "integer pixels in 0..255", value, fix)
    return value.astype(np.uint8, copy=False)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DetectionDataset(ImageSplits):
    """Images with bounding boxes, split into a training and a test part.

    Boxes are relative corners (x1, y1, x2, y2) in 0..1, keras-cv's "rel_xyxy". Every
    image has M rows of boxes and classes, padded with -1. An unlabelled image has -2 in
    all its classes (`tfkd.detection.UNLABELLED`), unlike a labelled image without
    objects, whose classes are all -1. A box of class -3 (`tfkd.detection.IGNORED`) is an
    object to ignore: neither an object nor background in training, nor in scores.

    Args:
        x_train: (N, H, W, 3) images, uint8 or other integers in 0..255.
        boxes_train: (N, M, 4) boxes, or a list of N arrays (n, 4) with n >= 0; None in
            the list for an unlabelled image.
        classes_train: (N, M) integers, or a list of N arrays (n,): class numbers from
            0, and -1, -2 and -3 as above.
        x_test: images of the same size.
        boxes_test, classes_test: their boxes and classes.
        class_names: C names; default "0", "1", ... up to the largest class.
        name: name of the data set in reports.
        findings: faults in the annotation files, see `tfkd.data.voc`. Images that are
            in both parts are added to them, with a warning.
        augment: `augment(images, targets, seed)` suitable for these images; default:
            `tfkd.data.augment_boxes()`.

    Raises:
        TypeError: if an argument is not an array, or of the wrong dtype.
        ValueError: if shapes, lengths, pixels or classes are inconsistent, or a box is
            not finite, not in 0..1 or without area; image and box are named.

    Example:
        >>> import numpy as np
        >>> from tfkd import data
        >>> x = np.zeros((2, 8, 8, 3), "uint8")
        >>> boxes, classes = [[[0.1, 0.2, 0.5, 0.6]], []], [[1], []]
        >>> toy = data.DetectionDataset(x, boxes, classes, x + 1, boxes, classes, ("cat", "dog"))
        >>> toy
        DetectionDataset('data', 2 + 2 images (8, 8, 3), 1 + 1 objects of 2 classes)
        >>> toy.classes_train.tolist(), toy.boxes_train[1].tolist()
        ([[1], [-1]], [[-1.0, -1.0, -1.0, -1.0]])
    """

    x_train: np.ndarray
    boxes_train: np.ndarray
    classes_train: np.ndarray
    x_test: np.ndarray
    boxes_test: np.ndarray
    classes_test: np.ndarray
    class_names: tuple[str, ...] = ()
    name: str = "data"
    findings: tuple[AnnotationFinding, ...] = ()
    augment: Callable[[Any, Any, Any], Any] | None = None

    def __post_init__(self):
        fields: dict[str, Any] = {}
        for split in SPLITS:
            images = check_images(f"x_{split}", getattr(self, f"x_{split}"))
            names = (f"boxes_{split}", f"classes_{split}")
            boxes, classes = (getattr(self, name) for name in names)
            padded = targets.pad(names, boxes, classes, len(images))
            targets.check(names, *padded)
            fields |= {f"x_{split}": images, names[0]: padded[0], names[1]: padded[1]}
        if fields["x_train"].shape[1:] != fields["x_test"].shape[1:]:
            expected = f"images like x_train, {fields['x_train'].shape[1:]}"
            raise checks.value_error("x_test", expected, fields["x_test"])
        rows = max(fields[f"classes_{split}"].shape[1] for split in SPLITS)
        for split in SPLITS:
            for name in (f"boxes_{split}", f"classes_{split}"):
                fields[name] = targets.widen(fields[name], rows)
        fields["class_names"] = self._names(fields)
        if self.augment is None:
            fields["augment"] = augment_boxes()
        else:
            checks.function("augment", self.augment)
        shared = self._shared(fields["x_train"], fields["x_test"])
        fields["findings"] = AnnotationFindings((*self.findings, *shared))
        self._set(fields)

    def _shared(self, train: np.ndarray, test: np.ndarray) -> list[AnnotationFinding]:
        """Images in both parts, with a warning; none if a file reader has already found them."""
        if any(finding.kind == SHARED for finding in self.findings):
            return []
        found = [
            AnnotationFinding(
                SHARED, "x_test", None, "new images", f"x_test[{row}] is x_train[{place}]"
            )
            for part, row, earlier, place in quality.repeats({"train": train, "test": test})
            if part != earlier
        ]
        warn_notes(self.name, found)
        return found

    def _names(self, fields: dict[str, Any]) -> tuple[str, ...]:
        """Names of the classes; every class must have one."""
        if isinstance(self.class_names, str):
            raise checks.type_error("class_names", "a sequence of names", self.class_names)
        largest = max(int(fields[f"classes_{split}"].max()) for split in SPLITS)
        names = tuple(str(n) for n in self.class_names) or tuple(map(str, range(largest + 1)))
        if not names:
            raise checks.value_error("class_names", "names, since no image has an object", names)
        if len(set(names)) != len(names):
            raise checks.value_error("class_names", "names that differ", names)
        if largest >= len(names):
            fix = "Classes are numbered from 0, without one for the background."
            raise checks.value_error("class_names", f"{largest + 1} names or more", names, fix)
        return names

    def __repr__(self) -> str:
        objects = " + ".join(str(int((self.arrays(s)[2] >= 0).sum())) for s in SPLITS)
        unlabelled = f", {self.unlabelled} images unlabelled" if self.unlabelled else ""
        return (
            f"DetectionDataset({self.name!r}, {len(self.x_train)} + {len(self.x_test)} images "
            f"{self.image_shape}, {objects} objects of {self.num_classes} classes{unlabelled})"
        )

    @property
    def max_boxes(self) -> int:
        """M, the rows of boxes of every image: the largest number of objects in one."""
        return self.classes_train.shape[1]

    @property
    def unlabelled(self) -> int:
        """Number of unlabelled training images."""
        return int((self.classes_train[:, 0] == UNLABELLED).sum())

    def preprocess(self, images: Tensor) -> tf.Tensor:
        """(B, H, W, 3) pixels in 0..255 → float32 tensor, pixels / 127.5 − 1."""
        return scaled(images)

    def arrays(self, split: str = "train") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images (N, H, W, 3), boxes (N, M, 4) and classes (N, M) of "train" or "test"."""
        checks.one_of("split", split, SPLITS)
        x, boxes, classes = (getattr(self, f"{n}_{split}") for n in ("x", "boxes", "classes"))
        return x, boxes, classes

    def object_counts(self, split: str = "train") -> np.ndarray:
        """(N,) number of labelled objects of each image; 0 for an unlabelled image."""
        return (self.arrays(split)[2] >= 0).sum(axis=1)

    def subset(
        self, count: int | None = None, seed: int = 0, *, test: int | None = None
    ) -> DetectionDataset:
        """A smaller data set of randomly drawn images, whose order is kept.

        Subsets of one seed are nested: the 100 images are among the 200.

        Args:
            count: number of training images; None: all.
            seed: determines which images are taken.
            test: number of test images; None: all.

        Raises:
            ValueError: if there are fewer images than requested.
        """
        fields: dict[str, Any] = {}
        for number, (split, wanted) in enumerate((("train", count), ("test", test))):
            x, boxes, classes = self.arrays(split)
            name = "count" if split == "train" else "test"
            kept = _drawn(name, len(x), len(x) if wanted is None else wanted, [seed, number])
            fields |= {f"x_{split}": x[kept], f"boxes_{split}": boxes[kept]}
            fields[f"classes_{split}"] = classes[kept]
        return dataclasses.replace(self, **fields)

    def unlabel(self, keep: int, seed: int = 0) -> DetectionDataset:
        """Removes the labels of all but `keep` training images, for semi-supervised experiments.

        Choices of one seed are nested.

        Args:
            keep: number of images that keep their labels.
            seed: determines which images those are.

        Raises:
            ValueError: if there are fewer labelled images than `keep`.

        Example:
            >>> import numpy as np
            >>> from tfkd import data
            >>> x, one = np.zeros((3, 8, 8, 3), "uint8"), [[[0.1, 0.2, 0.5, 0.6]]] * 3
            >>> toy = data.DetectionDataset(x, one, [[0]] * 3, x + 1, one, [[0]] * 3)
            >>> toy.unlabel(keep=1).unlabelled
            2
        """
        labelled = np.flatnonzero(self.classes_train[:, 0] != UNLABELLED)
        kept = labelled[_drawn("keep", len(labelled), keep, [seed, 2])]
        boxes, classes = np.full_like(self.boxes_train, -1), np.full_like(self.classes_train, -2)
        boxes[kept], classes[kept] = self.boxes_train[kept], self.classes_train[kept]
        return dataclasses.replace(self, boxes_train=boxes, classes_train=classes)

    def drop_boxes(self, fraction: float, seed: int = 0) -> DetectionDataset:
        """Removes a fraction of the training boxes, to simulate missing annotations.

        Args:
            fraction: fraction of all training boxes, in [0, 1]; rounded to whole boxes.
            seed: determines which boxes are removed.
        """
        checks.fraction("fraction", fraction)
        checks.non_negative_int("seed", seed)
        rows = np.argwhere(self.classes_train >= 0)
        order = np.random.default_rng([seed, 3]).permutation(len(rows))
        gone = tuple(rows[order[: round(fraction * len(rows))]].T)
        boxes, classes = self.boxes_train.copy(), self.classes_train.copy()
        boxes[gone], classes[gone] = -1, -1
        return dataclasses.replace(self, boxes_train=boxes, classes_train=classes)


def _drawn(name: str, total: int, count: int, seed: list[int]) -> np.ndarray:
    """Sorted indices of `count` out of `total`."""
    checks.non_negative_int("seed", seed[0])
    if checks.positive_int(name, count) > total:
        raise checks.value_error(name, f"at most {total}, the number of images", count)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])
