"""Image folders with one sub-folder per class, read with Pillow."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.data.dataset import Dataset, stratified_split
from tfkd.data.layout import class_folders, layout, list_files, parts, same_classes

# From this many files on, reading takes long enough to be worth a progress bar.
_LARGE = 500
# Files that are named of those that can't be read.
_SHOWN = 20
_GREY = {"1", "L", "LA"}  # modes of Pillow
ON_ERROR = ("raise", "skip")


def image_folder(
    path: str | os.PathLike,
    size: int | Sequence[int] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    on_error: str = "raise",
) -> Dataset:
    """Loads a folder with one sub-folder of images for each class.

    Two layouts are supported: `path/CLASS/*.png`, which is split here, or
    `path/train/CLASS/*.png` with `path/test` (or else `path/val`) beside it. Case
    is ignored, and names such as "training", "testing", "valid", "validation",
    "dev", "train_images" and "val2017" are recognized. Folders with such names are
    splits only if they contain folders of images; otherwise they are classes.

    Images are greyscale if every file is, else RGB; transparency is dropped and the
    EXIF orientation is applied. Hidden files and folders at any depth
    (`.ipynb_checkpoints`, `__MACOSX`, `._1.png`) and files without an image
    extension are ignored. Folders whose names differ only in their Unicode
    normalization are one class. Symbolic links are followed within `path`.

    Warns about images that are in both parts or that occur twice with different
    labels (compared by pixels), about classes without a test image, and about
    folders of images that are left out.

    Args:
        path: the folder.
        size: height and width in pixels to resize to (one number for a square),
            ignoring the aspect ratio; None: all files must have one size.
        test_fraction: fraction of each class that becomes the test part, for the
            first layout.
        seed: determines which images those are.
        on_error: "raise" an error that names all files that cannot be read, or "skip"
            them with one warning.

    Returns:
        A `Dataset` of uint8 images, with classes in alphabetical order.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if images cannot be read, sizes differ without `size`, a
            class is empty, there is only one class, or a link leads out of the
            folder; the files are named.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from PIL import Image
        >>> from tfkd import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for k, label in enumerate(("cat", "dog")):
        ...         os.mkdir(os.path.join(folder, label))
        ...         for i in range(5):
        ...             image = Image.fromarray(np.full((6, 6), 5 * k + i, "uint8"))
        ...             image.save(os.path.join(folder, label, f"{i}.png"))
        ...     images = data.image_folder(folder)
        >>> images.class_names, images.x_train.shape, images.x_test.shape
        (('cat', 'dog'), (8, 6, 6, 1), (2, 6, 6, 1))
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"`path`: there is no folder {str(root)!r}.")
    checks.one_of("on_error", on_error, ON_ERROR)
    size = None if size is None else check_size(size)
    train_root, test_root = layout(root)
    folders = class_folders(train_root)
    classes = tuple(folders)
    files, labels = list_files(root, folders, classes)
    if test_root is None:
        train, test = stratified_split(labels, test_fraction, seed)
    else:
        test_folders = class_folders(test_root, fewest=1)
        same_classes(train_root, classes, test_root, test_folders)
        test_files, test_labels = list_files(root, test_folders, classes)
        train = np.arange(len(files))
        test = len(files) + np.arange(len(test_files))
        files, labels = files + test_files, np.concatenate([labels, test_labels])
    images, kept = _read(files, size, on_error=on_error)
    if not kept.all():
        held = np.zeros(len(files), bool)
        held[train] = True
        files = [file for file, is_kept in zip(files, kept, strict=True) if is_kept]
        labels, held = labels[kept], held[kept]
        _check_classes(root, classes, labels if test_root is None else labels[held])
        if test_root is None:
            train, test = stratified_split(labels, test_fraction, seed)
        else:
            train, test = np.flatnonzero(held), np.flatnonzero(~held)
    places = [str(files[row].relative_to(root)) for row in (*train, *test)]
    return Dataset(
        images[train], labels[train], images[test], labels[test], classes, root.name, places
    )


def _check_classes(root: pathlib.Path, classes: tuple[str, ...], labels: np.ndarray) -> None:
    """Raises if a class has no image left."""
    empty = [name for index, name in enumerate(classes) if index not in labels]
    if empty:
        received = f"{', '.join(empty)} without one in {str(root)!r}"
        raise checks.value_error("path", "an image that can be read in each class", received)


def validation_part(
    path: str | os.PathLike,
    like: Dataset,
    size: int | Sequence[int] | None = None,
    on_error: str = "raise",
) -> tuple[np.ndarray, np.ndarray] | None:
    """The images of a validation folder beside a training and a test folder.

    Args:
        path: the folder that `image_folder` read.
        like: what it returned.
        size, on_error: as given to it.

    Returns:
        (images, labels) with the shape and the classes of `like`; None if there is none.

    Raises:
        ValueError: see `image_folder`.
    """
    root = pathlib.Path(path)
    found = parts(root)
    if not {"train", "test", "dev"} <= set(found):
        return None
    folders = class_folders(found["dev"], fewest=1)
    same_classes(found["train"], like.class_names, found["dev"], folders)
    files, labels = list_files(root, folders, like.class_names)
    mode = "L" if like.image_shape[-1] == 1 else "RGB"
    size = None if size is None else check_size(size)
    images, kept = _read(files, size, mode, on_error)
    if images.shape[1:] != like.image_shape:
        expected = f"images like the training part's, {like.image_shape}"
        raise checks.value_error("path", expected, images, f"See {found['dev']}.")
    return images, labels[kept]


def check_size(size: Any) -> tuple[int, int]:
    """Returns (height, width) of one number or two."""
    if checks.is_number(size):
        return (checks.positive_int("size", size),) * 2
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise checks.value_error("size", "one number, or (height, width)", size)
    return checks.positive_int("size", size[0]), checks.positive_int("size", size[1])


def _read(
    files: list[pathlib.Path],
    size: tuple[int, int] | None,
    mode: str | None = None,
    on_error: str = "raise",
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes `files` into one uint8 array (N, H, W, 1 or 3), and which of them: bool."""
    with checks.needed("tfkd.data.image_folder needs Pillow", "demo"):
        from PIL import Image
    faults: dict[int, str] = {}
    # Headers first, which is cheap: all files must have the same number of channels.
    modes = _modes(Image, files, faults)
    if mode == "L" and modes - _GREY:
        checks.warn(
            f"Images like {files[0]} are in colour, and those of the training part are not: they "
            "are read in greyscale as well. Save all of them in one way."
        )
    mode = mode or ("L" if modes <= _GREY else "RGB")
    images, first, count = np.empty((len(files), 0, 0, 0), np.uint8), None, 0
    clear: list[pathlib.Path] = []
    for index, file in enumerate(_progress(files)):
        if index in faults:
            continue
        try:
            image = _decode(Image, file, mode, size, clear)
        except MemoryError:
            raise  # the machine's fault, not the file's
        except Exception as error:  # a truncated file: OSError, SyntaxError, struct.error, ...
            faults[index] = str(error)
            continue
        if first is None:
            first, images = file, np.empty((len(files), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            fix = f"{first} is {images.shape[1:3]}, {file} is {image.shape[:2]}."
            expected = "a size to resize to, since the images differ in size"
            raise checks.value_error("size", expected, None, fix)
        images[count] = image
        count += 1
    _warn_of_transparency(clear, len(files))
    if faults:
        _report([(files[index], faults[index]) for index in sorted(faults)], len(files), on_error)
    return images[:count], np.array([index not in faults for index in range(len(files))], bool)


def _report(faults: list[tuple[pathlib.Path, str]], total: int, on_error: str) -> None:
    """Raises, or warns, of all files that can't be read."""
    lines = [f"{file}: {why.replace(f' {str(file)!r}', '')}" for file, why in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        lines.append(f"and {len(faults) - _SHOWN} more")
    listed = "\n  ".join(["", *lines])
    if on_error == "raise" or len(faults) == total:
        raise ValueError(
            f"`path`: expected images that can be read, received {len(faults)} of {total} that "
            f'can\'t. Repair or remove them, or leave them out with on_error="skip":{listed}'
        )
    checks.warn(f"{len(faults)} of {total} images can't be read and are left out:{listed}")


def read_image(
    path: str | os.PathLike, channels: int = 3, size: int | Sequence[int] | None = None
) -> np.ndarray:
    """Reads one image file.

    Args:
        path: the file.
        channels: 1 for greyscale, 3 for RGB.
        size: height and width to resize to, or one number for a square; None: as it is.

    Returns:
        uint8 pixels (H, W, channels).

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if Pillow is not installed.
        ValueError: if the image can't be read.
    """
    file, mode = pathlib.Path(path), {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise checks.value_error("channels", "1 or 3", channels)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}.")
    with checks.needed("tfkd.data.folder.read_image needs Pillow", "images"):
        from PIL import Image
    clear: list[pathlib.Path] = []
    try:
        image = _decode(Image, file, mode, None if size is None else check_size(size), clear)
    except Exception as error:
        fix = f"{error}." if isinstance(error, ValueError) else f"Pillow says: {error}."
        raise checks.value_error("path", "an image that can be read", str(file), fix) from error
    _warn_of_transparency(clear, 1)
    return image


def _modes(image_module: Any, files: list[pathlib.Path], faults: dict[int, str]) -> set[str]:
    """Pillow modes of the files; warns of files with several frames, of which one is read.

    What is wrong with a file is added to `faults` under its index.
    """
    modes, several = set(), []
    for index, file in enumerate(files):
        try:
            with image_module.open(file) as image:
                mode = image.mode
                if getattr(image, "n_frames", 1) > 1:
                    several.append(file)
        except Exception as error:  # each of Pillow's decoders raises its own errors
            faults[index] = str(error)
            continue
        if fault := _too_deep(mode):
            faults[index] = fault
            continue
        modes.add(mode)
    if several:
        checks.warn(
            f"{len(several)} files hold more than one picture, of which the first is read; the "
            f"first such file is {several[0]}. If each is an example, save them one by one."
        )
    return modes


def _too_deep(mode: str) -> str:
    """What is wrong with a Pillow mode of more than 8 bits, whose conversion cuts them off."""
    return f"mode {mode}; save it with 8 bits per channel" if mode.startswith(("I", "F")) else ""


def _decode(
    image_module: Any,
    file: pathlib.Path,
    mode: str,
    size: tuple[int, int] | None,
    clear: list[pathlib.Path],
) -> np.ndarray:
    """Returns one image as uint8 (H, W, C); adds its file to `clear` if it is transparent."""
    from PIL import ImageOps

    with image_module.open(file) as image:
        if fault := _too_deep(image.mode):
            raise ValueError(fault)
        has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if has_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            clear.append(file)
        image = ImageOps.exif_transpose(image).convert(mode)
        if size is not None and image.size != size[::-1]:
            image = image.resize(size[::-1], image_module.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if mode == "L" else pixels


def _warn_of_transparency(clear: list[pathlib.Path], total: int) -> None:
    if clear:
        checks.warn(
            f"{len(clear)} of {total} images are transparent in places, which is dropped: the "
            f"colours that are stored there, often black, are shown; the first is {clear[0]}. Lay "
            "them on the background that the model will see, if that matters."
        )


def _progress(files: list[pathlib.Path]) -> Iterable[pathlib.Path]:
    """`files`, with a progress bar if they are many and rich is installed."""
    if len(files) < _LARGE:
        return files
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return files
    return track(files, "Reading images", console=Console(stderr=True), transient=True)
