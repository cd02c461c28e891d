"""`open_data`: training, validation and test examples from a file, a folder or a function."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from tfkd import checks, data, fingerprints
from tfkd.data import quality
from tfkd.data.dataset import stratified_split
from tfkd.data.folder import check_size
from tfkd.detection import UNLABELLED
from tfkd.recipes.python_data import Arrays
from tfkd.recipes.readers import read

_CHUNK = 1024  # images resized at a time

Source: TypeAlias = "data.Dataset | data.TextDataset | data.DetectionDataset"


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Examples of one part.

    Attributes:
        x: (N, H, W, C) uint8 or float32 images, (N,) texts, or other arrays (N, ...).
        y: (N,) class numbers; for boxes (N, M), padded with −1.
        boxes: (N, M, 4) corners relative to the image; None for other kinds.
    """

    x: np.ndarray
    y: np.ndarray
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, rows: np.ndarray | slice) -> Part:
        """The part of these rows."""
        return Part(self.x[rows], self.y[rows], None if self.boxes is None else self.boxes[rows])


def chance(labels: np.ndarray) -> tuple[float, float]:
    """The accuracy of always guessing the most frequent class, and its standard error."""
    rate = float(np.bincount(labels).max() / len(labels))
    return rate, float(np.sqrt(rate * (1 - rate) / len(labels)))


def guesses(name: str, score: float, labels: np.ndarray | None) -> str:
    """A sentence if a score is not above chance by more than two standard errors, or "".

    Args:
        name: of the model.
        score: accuracy, or the mean average precision of boxes, in 0..1.
        labels: class numbers of the examples; None for boxes, where chance is 0.
    """
    rate, error = (0.0, 0.0) if labels is None else chance(labels)
    if score > rate + 2 * error:
        return ""
    count = 0 if labels is None else len(labels)
    few = f", which {count} examples do not tell apart" if score > rate else ""
    return (
        f"{name} is no better than a guess on these data: {100 * score:.1f} % right, where one "
        f"answer for all has {100 * rate:.1f} %{few}."
    )


def warn_of_guessing(name: str, score: float, labels: np.ndarray | None) -> None:
    """Warns if a given model guesses; see `guesses`."""
    if found := guesses(name, score, labels):
        checks.warn(
            f"{found} Do its classes have the order of the data's (sorted names of folders), and "
            "does it take what `preprocess` says?"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """What `open_data` found.

    Attributes:
        name: of the data set, in reports.
        kind: "images", "texts", "boxes", or "arrays" for what is none of these.
        train, val, test: disjoint parts. Choices are made on `val`; `test` is for the
            final scores only.
        class_names: names of the classes.
        split: how the parts came about, in words.
        source: the `tfkd.data` data set of the training and test parts (without `val`), for
            what takes one, such as `tfkd.data.detection_batches`; None for arrays.
    """

    name: str
    kind: str
    train: Part
    val: Part
    test: Part
    class_names: tuple[str, ...]
    split: str
    source: Source | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, without one for the background."""
        return len(self.class_names)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of an example; () for texts."""
        return self.train.x.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all examples, labels and class names; see `tfkd.fingerprints`."""
        parts = [self.train, self.val, self.test]
        arrays = [
            [part.x.tolist() if part.x.dtype == object else part.x, part.y, part.boxes]
            for part in parts
        ]
        return fingerprints.digest([self.kind, list(self.class_names), arrays])

    def validating(self) -> Source | None:
        """`source` with the validation part in place of the test part."""
        return None if self.source is None else _with_parts(self.source, self.train, self.val)

    def __str__(self) -> str:
        sizes = [len(part) for part in (self.train, self.val, self.test)]
        shape = "×".join(map(str, self.example_shape))
        dtype = "" if self.kind == "texts" else f", {shape} {self.train.x.dtype}"
        noun = {"boxes": "images with boxes", "arrays": "examples"}.get(self.kind, self.kind)
        shown = ", ".join(self.class_names[:5]) + (", …" if len(self.class_names) > 5 else "")
        return (
            f"{sum(sizes):,} {noun} in {len(self.class_names)} classes ({shown}){dtype}: "
            f"{sizes[0]:,} to train, {sizes[1]:,} to validate, {sizes[2]:,} to test; {self.split}"
        )


def open_data(
    name: Any,
    *,
    size: int | Sequence[int] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    on_error: str = "raise",
    columns: Sequence[int | str] | None = None,
    say: Callable[[str], Any] | None = None,
) -> Data:
    """Opens data by name: reads the files, finds or makes the parts, checks them.

    Args:
        name: a folder of images (one folder a class, perhaps in folders of the parts); a
            `.npz` file; a `.tsv` file or a folder of them; a folder in VOC layout; a folder
            or `.json` file of COCO; "module:function", a Python function that returns a
            data set (see `tfkd.recipes.python_data`); "digits", or a name of Keras, such as
            "cifar10".
        size: height and width to resize images to, or one number for a square. For boxes
            it is needed.
        val_fraction: of the training part, for the validation part of data without one.
        test_fraction: of all, for the test part of data without one.
        seed: determines which examples those are.
        on_error: "raise" an error that lists all images that can't be read and all faults
            in annotations of boxes, or "skip" them, with a warning that counts them.
        columns: of a .tsv file, (text, label): names in its header, or numbers from 0; None:
            they are found.
        say: function that is called with a sentence on what was found; None: nothing.

    Returns:
        A `Data`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is in no known layout, a file can't be read, there is only one
            class, or a class has too few examples to split; the message names the file.

    Example:
        >>> from tfkd.recipes.data import open_data
        >>> digits = open_data("digits")
        >>> len(digits.train), len(digits.val), len(digits.test), digits.kind
        (1295, 143, 359, 'images')
    """
    checks.fraction("val_fraction", val_fraction)
    checks.non_negative_int("seed", seed)
    source, val, split = read(name, size, test_fraction, seed, on_error, columns)
    if size is not None and isinstance(source, data.Dataset):
        source, val, split = _resized(source, val, split, check_size(size))
    found = _described(source, val, split, val_fraction, seed)
    if found.kind != "boxes" and found.num_classes < 2:
        expected = "examples of two or more classes"
        received = f"{name} with the class {found.class_names[0]!r} alone"
        raise checks.value_error("data", expected, received)
    if say is not None:
        say(f"{found.name}: {found}")
    return found


def _resized(source: data.Dataset, val: Any, split: str, size: tuple[int, int]) -> Any:
    """The images in another size, if they have not got it from their reader."""
    if source.image_shape[:2] == size:
        return source, val, split
    before = "×".join(map(str, source.image_shape[:2]))
    train, test = (Part(resize(part.x, size), part.y) for part in _both(source))
    val = val and (resize(val[0], size), val[1])
    return _with_parts(source, train, test), val, f"{split}, resized from {before}"


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (N, H, W, C) in another size, bilinear with antialiasing, in their dtype."""
    import tensorflow as tf

    found = np.empty((len(images), *size, images.shape[-1]), images.dtype)
    for start in range(0, len(images), _CHUNK):
        part = tf.image.resize(images[start : start + _CHUNK], size, antialias=True).numpy()
        found[start : start + _CHUNK] = np.rint(part) if images.dtype == np.uint8 else part
    return found


def _described(
    source: Source | Arrays, val: Any, split: str, val_fraction: float, seed: int
) -> Data:
    """A `Data`, with a validation part from the training part if there is none."""
    kind = _kind(source)
    train, test = _both(source)
    if val is None:
        train, own, said = _split(source, train, kind, val_fraction, seed)
        split += f", {said}"
    else:
        split += ", validation part of its own"
        own = Part(*val)
        if kind != "texts":  # A `TextDataset` has compared its parts.
            _warn_of_shared(source.name, train, own)
    names, name = tuple(source.class_names), source.name
    kept = None if isinstance(source, Arrays) else _with_parts(source, train, test)
    return Data(name, kind, train, own, test, names, split, kept)


def _split(
    source: Any, train: Part, kind: str, fraction: float, seed: int
) -> tuple[Part, Part, str]:
    """The training part without a validation part, that part, and how it came about.

    Copies of an example stay together, so that none is both trained on and held back.
    """
    said = f"{fraction:.0%} of the training part held back to validate (seed {seed})"
    rows, first = np.arange(len(train)), _first_copies(train.x)
    held = _held_back(train.y, first, kind, fraction, seed, source.class_names)
    if held is not None:
        copies, is_held = int((first != rows).sum()), np.isin(first, held)
        said += f", {copies} copies of examples where the first of them is" if copies else ""
        return train.rows(~is_held), train.rows(is_held), said
    is_held = np.isin(rows, _held_back(train.y, rows, kind, fraction, seed, source.class_names))
    _warn_of_shared(source.name, train.rows(~is_held), train.rows(is_held))
    return train.rows(~is_held), train.rows(is_held), said


def _warn_of_shared(name: str, train: Part, val: Part) -> None:
    """Warns of examples of the validation part that are in the training part too."""
    found = quality.repeats({"train": train.x, "val": val.x})
    pairs = [(row, place) for part, row, earlier, place in found if part != earlier]
    if pairs:
        row, place = pairs[0]
        checks.warn(
            f"{name}: {len(pairs)} of the {len(val)} examples of the validation part are in the "
            f"training part too, by content; the first: number {row} is number {place} there. What "
            "is chosen by their score is not chosen for new examples: remove them from one part."
        )


def _kind(source: Source | Arrays) -> str:
    kinds = {
        data.Dataset: "images",
        data.TextDataset: "texts",
        data.DetectionDataset: "boxes",
        Arrays: "arrays",
    }
    return kinds[type(source)]


def _both(source: Any) -> tuple[Part, Part]:
    """The training and the test part of a data set."""
    return _part(source, "train"), _part(source, "test")


def _part(source: Any, name: str) -> Part:
    if isinstance(source, data.DetectionDataset):
        x, boxes, classes = source.arrays(name)
        return Part(x, classes, boxes)
    return Part(getattr(source, f"x_{name}"), getattr(source, f"y_{name}"))


def _first_copies(x: np.ndarray) -> np.ndarray:
    """For each example the row of the first one of the same content."""
    first = np.arange(len(x))
    for _, row, _, place in quality.repeats({"train": x}):
        first[row] = place
    return first


def _held_back(
    y: np.ndarray, first: np.ndarray, kind: str, fraction: float, seed: int, names: Sequence[str]
) -> np.ndarray | None:
    """Rows of the training part to hold back, of first copies: the others follow them.

    Classes keep their shares; images with boxes are drawn among the labelled ones.

    Returns:
        Sorted rows; None if copies leave too few examples of a class for both parts.

    Raises:
        ValueError: if there are too few.
    """
    unique = np.flatnonzero(first == np.arange(len(y)))
    if kind == "boxes":
        unique = unique[(y[unique] != UNLABELLED).any(axis=1)]
        wanted = round(len(unique) * fraction)
        if 0 < wanted < len(unique):
            return np.sort(np.random.default_rng(seed).permutation(unique)[:wanted])
        expected = f"a fraction that leaves images of {len(unique)} on both sides"
        raise checks.value_error("val_fraction", expected, fraction)
    counts = np.bincount(y)
    few = np.bincount(y[unique], minlength=len(counts))
    for name, count in zip(names, counts, strict=False):
        if count < 2:
            raise ValueError(
                "A validation part can't be held back: expected at least two examples of each "
                f"class to train on, received {count} of the class {name!r}. Add examples of it, "
                "or leave it out."
            )
    return None if few.min() < 2 else unique[stratified_split(y[unique], fraction, seed)[1]]


def _with_parts(source: Source, train: Part, test: Part) -> Source:
    """A copy of a data set with other parts, whose checks and warnings are not repeated."""
    found = copy.copy(source)
    vars(found).pop("_moments", None)  # mean and standard deviation of other images
    fields: dict[str, Any] = {"x_train": train.x, "x_test": test.x}
    if isinstance(source, data.DetectionDataset):
        fields |= {"classes_train": train.y, "classes_test": test.y}
        fields |= {"boxes_train": train.boxes, "boxes_test": test.boxes}
    else:
        fields |= {"y_train": train.y, "y_test": test.y}
    found._set(fields)
    return found
