"""What the folders of an image data set are: its parts, or its classes."""

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
# Pictures that Pillow does not open by itself.
_UNREAD = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".dng", ".cr2", ".nef"})


class _Top:
    """The folders of a root, and what is in each.

    Attributes:
        within: folder -> its own folders that hold images, in one Unicode form.
        count: folder -> images at any depth.
    """

    def __init__(self, root: pathlib.Path):
        self.within: dict[str, set[str]] = {}
        self.count: dict[str, int] = {}
        for name in names.folders_in(root):
            files = names.files_below(root, root / name, EXTENSIONS)
            relative = [file.relative_to(root / name).parts for file in files]
            self.within[name] = {names.nfc(parts[0]) for parts in relative if len(parts) > 1}
            self.count[name] = len(files)

    def called(self, part: str, loosely: bool = False) -> list[tuple[int, str]]:
        """(rank, folder) of those that are called after a part and hold folders of images."""
        found = [(names.part_of(name, loosely), name) for name in self.within if self.within[name]]
        return sorted((where[1], name) for where, name in found if where and where[0] == part)


def layout(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Tells parts from classes, by their names and by what is in them.

    Returns:
        (training root, test root or None to split).

    Raises:
        ValueError: where two folders may be the same part, or a part has no classes.
    """
    top = _Top(root)
    train, test = top.called("train"), top.called("test") or top.called("dev")
    if not (train and test):
        loose = [top.called(part, True) for part in ("train", "test", "dev")]
        if loose[0] and (loose[1] or loose[2]):
            pair = loose[0], loose[1] or loose[2]
            # Other words beside it, as in "train_station": the classes must be the same ones.
            if top.within[pair[0][0][1]] & top.within[pair[1][0][1]]:
                train, test = pair
    if train and test:
        chosen = [_only(root, found) for found in (train, test)]
        _say_left_out(root, top, chosen)
        return root / chosen[0], root / chosen[1]
    _check_parts(root, top, [name for _, name in train])
    _say_doubts(root, top)
    return root, None


def _only(root: pathlib.Path, found: Sequence[tuple[int, str]]) -> str:
    """The folder of the first rank."""
    first = [name for rank, name in found if rank == found[0][0]]
    if len(first) > 1:
        shown = " and ".join(map(repr, first))
        fix = "Both may be the same part: rename one, or move it elsewhere."
        raise checks.value_error("path", f"one folder of each part in {root}", shown, fix)
    return first[0]


def _say_left_out(root: pathlib.Path, top: _Top, chosen: Sequence[str]) -> None:
    """Folders of images beside the parts; a validation part beside a test part is known."""
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
    """Refuses parts, and nothing that may be a class beside them, that are not whole."""
    filled = [name for name, count in top.count.items() if count]
    called = [name for name in filled if names.part_of(name)]
    parts = {part[0] for part in map(names.part_of, called) if part}
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


def _say_doubts(root: pathlib.Path, top: _Top) -> None:
    """Warns of classes that may be parts."""
    filled = [name for name, count in top.count.items() if count]
    called = [name for name in filled if names.part_of(name)]
    if len({part[0] for part in map(names.part_of, called) if part}) > 1:
        checks.warn(
            f"{root}: {_listed(filled)} are taken for classes, since not both of "
            f"{_listed(called)} hold class folders. If these are parts, put a folder for each "
            "class into both."
        )
    common = sorted(set.intersection(*(top.within[name] for name in filled))) if filled else []
    if len({part[0] for part in map(names.part_of, common) if part}) > 1:
        checks.warn(
            f"{root}: each of its classes holds {_listed(common)}, whose images are mixed and "
            "split anew. To keep the parts, turn the folders around: train/CLASS, test/CLASS."
        )
    elif len(filled) > 1 and len(common) > 1:
        checks.warn(
            f"{root}: {_listed(filled)} are taken for classes, but each holds the folders "
            f"{_listed(common)}. If they are parts, call them 'train' and 'test'."
        )


def _listed(items: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, items[:most]))
    return shown + (", ..." if len(items) > most else "")


def class_folders(root: pathlib.Path, fewest: int = 2) -> dict[str, list[pathlib.Path]]:
    """Class -> its folders: more than one where they differ in their Unicode form alone.

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
    _say_names(root, folders)
    return folders


def _say_names(root: pathlib.Path, folders: Mapping[str, Sequence[pathlib.Path]]) -> None:
    """Names that may be meant as one, and images beside the folders."""
    spaced = sorted(f.name for found in folders.values() for f in found if f.name != f.name.strip())
    merged = [name for name in spaced if len(folders[names.nfc(name)]) > 1]
    if merged:
        checks.warn(f"{root}: {_listed(merged)} and the same name without spaces are one class.")
    names.say_alike(str(root), folders)
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
            f"{_listed(missing)}: scores say nothing about them."
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
            f"{len(unread)} pictures of a kind that is not read ({shown}) are left out, the first "
            f"is {unread[0]}. Convert them, to PNG or JPEG."
        )
    return files, np.array(labels, np.int32)
