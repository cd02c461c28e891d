"""Directory layout of image data sets: distinguishes split folders from class folders."""

from __future__ import annotations

import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tfkd import checks
from tfkd.data import names

EXTENSIONS = frozenset({
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
# Image formats that Pillow cannot open without plugins.
_UNREAD = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".dng", ".cr2", ".nef"})


class _Top:
    """The top-level folders of a data set and their content.

    Attributes:
        within: folder -> its sub-folders that contain images, as NFC names.
        count: folder -> number of images at any depth.
        filled: folders with images; filled_parts: those of them named after a split.
    """

    def __init__(self, root: pathlib.Path):
        self.within: dict[str, set[str]] = {}
        self.count: dict[str, int] = {}
        for name in names.folders_in(root):
            files = names.files_below(root, root / name, EXTENSIONS)
            relative = [file.relative_to(root / name).parts for file in files]
            self.within[name] = {names.nfc(parts[0]) for parts in relative if len(parts) > 1}
            self.count[name] = len(files)
        self.filled = [name for name, count in self.count.items() if count]
        self.filled_parts = [name for name in self.filled if names.part_of(name)]

    def called(self, part: str, loosely: bool = False) -> list[tuple[int, str]]:
        """Sorted (rank, folder) of those named after a split that contain folders of images."""
        found = [(names.part_of(name, loosely), name) for name in self.within if self.within[name]]
        return sorted((where[1], name) for where, name in found if where and where[0] == part)


def layout(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Distinguishes split folders from class folders, by name and content.

    Returns:
        (training root, test root); the test root is None if the data are to be split.

    Raises:
        ValueError: if two folders may be the same split, or a split has no classes.
    """
    top = _Top(root)
    train, test = top.called("train"), top.called("test") or top.called("dev")
    if not (train and test):
        loose = [top.called(part, True) for part in ("train", "test", "dev")]
        if loose[0] and (loose[1] or loose[2]):
            pair = loose[0], loose[1] or loose[2]
            # "train_station" may be a class: both folders must have classes in common.
            if top.within[pair[0][0][1]] & top.within[pair[1][0][1]]:
                train, test = pair
    if train and test:
        expected = f"one folder of each part in {root}"
        chosen = [names.best(found, expected) for found in (train, test)]
        _warn_left_out(root, top, chosen)
        return root / chosen[0], root / chosen[1]
    _check_parts(root, top, [name for _, name in train])
    _warn_ambiguous(root, top)
    return root, None


def parts(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of images named after the parts "train", "test" and "dev", as far as there are.

    Raises:
        ValueError: if two folders may be the same part.
    """
    top = _Top(root)
    expected = f"one folder of each part in {root}"
    called = {part: top.called(part) for part in ("train", "test", "dev")}
    return {part: root / names.best(found, expected) for part, found in called.items() if found}


def _warn_left_out(root: pathlib.Path, top: _Top, chosen: Sequence[str]) -> None:
    """Warns of folders of images beside the splits, other than a further split such as "val"."""
    others = {
        name: count
        for name, count in top.count.items()
        if count and name not in chosen and not (names.part_of(name) and top.within[name])
    }
    if others:
        shown = ", ".join(f"{name!r} ({count} images)" for name, count in others.items())
        checks.warn(
            f"{root}: {chosen[0]!r} and {chosen[1]!r} are its parts, so {shown} beside them is "
            "left out. Move what belongs to a part into the folders of its classes."
        )


def _check_parts(root: pathlib.Path, top: _Top, train: Sequence[str]) -> None:
    """Rejects folders named after splits that lack class folders, if no folder can be a class."""
    filled, called = top.filled, top.filled_parts
    parts = _parts_in(called)
    others = [name for name in filled if name not in called]
    is_split = train or len(parts) > 1 or ("train" in parts and others)
    if not is_split or not all(map(names.is_aside, others)):
        return
    flat = [name for name in called if not top.within[name]]
    fix = f"There are no class folders in {_listed(flat)}. " if flat else ""
    if train:
        fix += f"To split the training part, pass {str(root / train[0])!r}."
    expected = "a training and a test part with a folder for each class in both"
    raise checks.value_error("path", expected, f"{root} with {_listed(filled)}", fix)


def _warn_ambiguous(root: pathlib.Path, top: _Top) -> None:
    """Warns of folders that are taken for classes but may be splits."""
    filled, called = top.filled, top.filled_parts
    if len(_parts_in(called)) > 1:
        checks.warn(
            f"{root}: {_listed(filled)} are taken for classes, since not both of "
            f"{_listed(called)} hold class folders. If these are parts, put a folder for each "
            "class into both."
        )
    common = sorted(set.intersection(*(top.within[name] for name in filled))) if filled else []
    if len(_parts_in(common)) > 1:
        checks.warn(
            f"{root}: each of its classes holds {_listed(common)}, whose images are mixed and "
            "split anew. To keep the parts, swap the folder levels: train/CLASS, test/CLASS."
        )
    elif len(filled) > 1 and len(common) > 1:
        checks.warn(
            f"{root}: {_listed(filled)} are taken for classes, but each holds the folders "
            f"{_listed(common)}. If they are parts, call them 'train' and 'test'."
        )


def _parts_in(folders: Sequence[str]) -> set[str]:
    """The splits that folders are named after."""
    return {part[0] for part in map(names.part_of, folders) if part}


def _listed(items: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, items[:most]))
    return shown + (", ..." if len(items) > most else "")


def class_folders(root: pathlib.Path, fewest: int = 2) -> dict[str, list[pathlib.Path]]:
    """Class -> its folders; several if their names differ only in Unicode normalization.

    Raises:
        ValueError: if there are fewer classes than `fewest`.
    """
    found: dict[str, list[pathlib.Path]] = defaultdict(list)
    there = names.folders_in(root)
    for name in there:
        found[names.nfc(name)].append(root / name)
    if len(found) < fewest:
        number = {1: "one or more", 2: "two or more"}[fewest]
        received = f"{root} with {there or 'no sub-folder'}"
        fix = "Put the images of each class in a sub-folder of their own."
        if len(there) == 1 and names.folders_in(root / there[0]):
            fix += f" If they are in {there[0]!r}, pass {str(root / there[0])!r}."
        raise checks.value_error("path", f"a folder with {number} classes", received, fix)
    folders = {name: found[name] for name in sorted(found)}
    _warn_names(root, folders)
    return folders


def _warn_names(root: pathlib.Path, folders: Mapping[str, Sequence[pathlib.Path]]) -> None:
    """Warns of class names that may be the same class, and of images outside class folders."""
    spaced = sorted(f.name for found in folders.values() for f in found if f.name != f.name.strip())
    merged = [name for name in spaced if len(folders[names.nfc(name)]) > 1]
    if merged:
        checks.warn(f"{root}: {_listed(merged)} and the same name without spaces are one class.")
    names.warn_case(str(root), folders)
    beside = [p.name for p in root.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file()]
    beside = sorted(name for name in beside if not names.is_hidden(name))
    if beside:
        checks.warn(
            f"{root}: {_listed(beside)} (images beside the class folders: {len(beside)}) belong to "
            "no class and are left out."
        )


def same_classes(
    train_root: pathlib.Path,
    classes: Sequence[str],
    test_root: pathlib.Path,
    tested: Mapping[str, Sequence[pathlib.Path]],
) -> None:
    """Compares the classes of two parts.

    Raises:
        ValueError: if a class is in the test part alone.
    """
    unknown = [name for name in tested if name not in classes]
    if unknown:
        expected = f"only classes that are in {train_root}"
        place, near = str(test_root / unknown[0]), checks.near(unknown[0], classes)
        raise checks.value_error("path", expected, place, near)
    missing = [name for name in classes if name not in tested]
    if missing:
        checks.warn(
            f"{test_root}: no images of {len(missing)} of the {len(classes)} classes, "
            f"{_listed(missing)}: test scores do not cover them."
        )


def list_files(
    root: pathlib.Path, folders: Mapping[str, Sequence[pathlib.Path]], classes: Sequence[str]
) -> tuple[list[pathlib.Path], np.ndarray]:
    """The image files of all classes, in order, and their labels.

    Raises:
        ValueError: if a class has none, or a link leads out of `root`.
    """
    files: list[pathlib.Path] = []
    labels: list[int] = []
    unread: list[pathlib.Path] = []
    for name, places in folders.items():
        kinds = EXTENSIONS | _UNREAD
        below = [p for place in places for p in names.files_below(root, place, kinds)]
        found = [file for file in below if file.suffix.lower() in EXTENSIONS]
        unread += [file for file in below if file.suffix.lower() in _UNREAD]
        if not found:
            fix = f"Known extensions: {', '.join(sorted(EXTENSIONS))}."
            raise checks.value_error("path", "images in every class", str(places[0]), fix)
        files += found
        labels += [classes.index(name)] * len(found)
    if unread:
        shown = ", ".join(sorted({file.suffix.lower() for file in unread}))
        checks.warn(
            f"{len(unread)} images in formats that are not supported ({shown}) are left out, the "
            f"first is {unread[0]}. Convert them to PNG or JPEG."
        )
    return files, np.array(labels, np.int32)
