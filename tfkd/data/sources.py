"""Loaders of data sets: bundled digits, `.npz` files, Keras's data sets, and `load`."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.data.dataset import Dataset, stratified_split
from tfkd.data.folder import image_folder
from tfkd.data.text import TextDataset
from tfkd.data.tsv import holds_texts, tsv

_KEYS = ("x_train", "y_train", "x_test", "y_test")

# Keras data set -> class names; empty if the classes are named by their numbers.
KERAS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": (),
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    ),
    "cifar100": (),
}  # fmt: skip


def digits(test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Scikit-learn's bundled handwritten digits: 1,797 images of 8×8, 10 classes.

    Handwriting of 43 people; nothing is downloaded. Do not mirror digits in
    augmentation: use `shift_and_flip(1, flip=False)`.

    Reference: Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80

    Args:
        test_fraction: fraction of each class that becomes the test part.
        seed: determines which images those are.

    Returns:
        A `Dataset` of uint8 images (N, 8, 8, 1), the 17 grey levels scaled to
        0..255.

    Raises:
        ImportError: if scikit-learn is not installed.

    Example:
        >>> from tfkd import data
        >>> data.digits()
        Dataset('digits', 1438 + 359 images (8, 8, 1) uint8, 10 classes)
    """
    with checks.needed("tfkd.data.digits needs scikit-learn, which holds the images", "demo"):
        from sklearn.datasets import load_digits
    bundled = load_digits()
    images = np.rint(bundled.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bundled.target.astype(np.int32)
    train, test = stratified_split(labels, test_fraction, seed)
    return Dataset(images[train], labels[train], images[test], labels[test], name="digits")


def npz(path: str | os.PathLike) -> Dataset:
    """Loads a `.npz` file in the Keras convention.

    Args:
        path: file with the arrays x_train, y_train, x_test, y_test; images
            (N, H, W, C) or (N, H, W), labels (N,) or (N, 1), see `Dataset`.

    Returns:
        A `Dataset` named after the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a `.npz` file, lacks an array, holds pickled
            objects (which are never loaded), or its arrays do not make a `Dataset`.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from tfkd import data
        >>> x, y = np.arange(128, dtype="uint8").reshape(8, 4, 4), np.array([0, 1, 2, 3] * 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "toy.npz")
        ...     np.savez(path, x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
        ...     data.npz(path)
        Dataset('toy', 4 + 4 images (4, 4, 1) uint8, 4 classes)
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path`: there is no file {path!r}.")
    arrays = _read_npz(path)
    name = os.path.splitext(os.path.basename(path))[0]
    try:
        return Dataset(**arrays, name=name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read_npz(path: str) -> dict[str, Any]:
    """Returns the arrays x_train, y_train, x_test and y_test by name."""
    try:
        packed = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise checks.value_error("path", "a .npz file", path, f"NumPy says: {error}") from error
    if not isinstance(packed, np.lib.npyio.NpzFile):
        raise checks.value_error("path", "a .npz file with several arrays", path)
    with packed:
        missing = [k for k in _KEYS if k not in packed.files]
        if missing:
            held = ", ".join(packed.files) or "nothing"
            fix = f"Missing: {', '.join(missing)}. It holds: {held}."
            expected = f"a file with the arrays {', '.join(_KEYS)}"
            raise checks.value_error("path", expected, path, fix)
        try:
            return {key: packed[key] for key in _KEYS}
        except Exception as error:  # zlib, zipfile and NumPy each raise their own errors
            expected, fix = "readable arrays without pickled objects", f"NumPy says: {error}"
            raise checks.value_error("path", expected, path, fix) from error


def keras_dataset(name: str) -> Dataset:
    """Loads one of Keras's own data sets.

    It is downloaded on first use and cached by Keras (in `~/.keras`).

    Args:
        name: "mnist", "fashion_mnist", "cifar10" or "cifar100" (fine labels).

    Returns:
        A `Dataset` of uint8 images.

    Raises:
        ValueError: for any other name.
        OSError: if the download fails.
    """
    checks.one_of("name", name, KERAS_NAMES)
    import tf_keras as keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception for a failed download
        raise OSError(
            f"Keras could not load {name!r}: {error}. It is downloaded at the first use: check the "
            "network connection, or pass a .npz file or an image folder instead."
        ) from error
    return Dataset(x_train, y_train, x_test, y_test, KERAS_NAMES[name], name)


def load(spec: str | os.PathLike, **options: Any) -> Dataset | TextDataset:
    """Loads a data set by name or path, for example from a command-line argument.

    Args:
        spec: "digits"; the name of a Keras data set ("mnist", "fashion_mnist",
            "cifar10", "cifar100"); the path of a `.npz` file; a folder of images; or,
            for texts, a folder with `train.tsv` and `test.tsv`, or one `.tsv` file.
        **options: passed on to `digits`, `npz`, `keras_dataset`,
            `image_folder` or `tsv`.

    Returns:
        A `Dataset`, or for texts a `TextDataset`.

    Raises:
        ValueError: if `spec` is none of these.

    Example:
        >>> from tfkd import data
        >>> data.load("digits", test_fraction=0.5).num_classes
        10
    """
    if not isinstance(spec, (str, os.PathLike)):
        raise checks.type_error("spec", "a name or a path", spec)
    spec = os.fspath(spec)
    if spec == "digits":
        return digits(**options)
    if spec in KERAS_NAMES:
        return keras_dataset(spec, **options)
    if os.path.isdir(spec):
        return tsv(spec, **options) if holds_texts(spec) else image_folder(spec, **options)
    if spec.lower().endswith(".npz"):
        return npz(spec, **options)
    if spec.lower().endswith(".tsv"):
        return tsv(spec, **options)
    names = ("digits", *KERAS_NAMES)
    expected = (
        f"one of {', '.join(map(repr, names))}, a path to a .npz or .tsv file, an image folder, or "
        "a folder with train.tsv and test.tsv"
    )
    fix = checks.near(spec, names) or "There is no file or folder of this name."
    if os.path.isfile(spec):
        fix = "It is a file, but not a .npz file or a .tsv file."
    raise checks.value_error("spec", expected, spec, fix)
