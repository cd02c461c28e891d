"""File, folder and class names: Unicode normalization, hidden files, names of splits."""

from __future__ import annotations

import os
import pathlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tfkd import checks

# Folders that operating systems and tools create, besides names that begin with a dot.
_SYSTEM = frozenset({
    "__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle",
    "#snapshot", "$recycle.bin", "system volume information", "lost+found",
})  # fmt: skip

# (split, its names); of several names in a data set the one listed first is taken.
_RANKS = (
    ("train", ("train", "training")),
    ("train", ("trainval",)),
    ("test", ("test", "testing")),
    ("dev", ("val", "valid", "validation", "dev", "eval", "evaluation", "holdout")),
)
_PARTS = {word: (part, rank) for rank, (part, words) in enumerate(_RANKS) for word in words}
_FILLERS = ("images", "image", "imgs", "img", "dataset", "data", "split", "set", "part")
# Names of folders with unlabelled images, or with files that accompany images.
_ASIDE = frozenset({
    "unlabeled", "unlabelled", "unlabled", "unsupervised", "unsup", "predict", "prediction",
    "predictions", "pred", "inference", "submission", "extra", "labels", "masks", "annotations",
})  # fmt: skip


def nfc(text: str) -> str:
    """Text in Unicode NFC, in which "ä" is a single character, stripped of outer spaces."""
    return unicodedata.normalize("NFC", text).strip()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the operating system."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def folders_in(root: pathlib.Path) -> list[str]:
    """Names of the folders in `root` that are not hidden, in order."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))


def leads_out(root: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether a path leaves a folder: by "..", as an absolute path, or by a link."""
    return not real(path).is_relative_to(real(root))


def real(path: pathlib.Path) -> pathlib.Path:
    """The path with links resolved; an invalid path is returned unchanged."""
    try:
        return pathlib.Path(os.path.realpath(path))
    except ValueError:  # a null character in the name
        return path


def inside(root: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """Accepts a path that stays in a data folder once links are resolved.

    Raises:
        ValueError: if it leaves the folder.
    """
    if leads_out(root, path):
        fix = f"It leads to {real(path)}. Copy that into the folder, or pass one that holds both."
        expected = f"files and links that stay in {root}"
        raise checks.value_error("path", expected, str(path.relative_to(root)), fix)
    return path


def files_below(
    root: pathlib.Path, folder: pathlib.Path, extensions: Iterable[str]
) -> list[pathlib.Path]:
    """Sorted files with these extensions at any depth, hidden ones excluded.

    Args:
        root: the data folder, within which links are followed.
        folder: the folder in `root` to search.
        extensions: such as ".png", in lower case.

    Raises:
        ValueError: if a link leads out of `root`.
    """

    def fail(error: OSError) -> None:
        raise error

    def is_wanted(place: str, name: str) -> bool:
        path = pathlib.Path(place, name)
        if is_hidden(name) or not path.is_symlink():
            return not is_hidden(name)
        # A link to a parent folder would make the walk endless.
        target = real(inside(root, path))
        return not any(real(parent).is_relative_to(target) for parent in path.parents)

    found = []
    wanted = frozenset(extensions)
    for place, folders, files in os.walk(inside(root, folder), onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if is_wanted(place, name)]
        files = [name for name in files if pathlib.Path(name).suffix.lower() in wanted]
        found += [pathlib.Path(place, name) for name in files if is_wanted(place, name)]
    return sorted(path for path in found if path.is_file())


def _words(name: str) -> list[str]:
    """Words of a name without digits and fillers: "Train_images2" -> ["train"]."""
    words = re.split(r"[\W\d_]+", nfc(name).casefold())
    for n, word in enumerate(words):
        for filler in _FILLERS:
            words[n] = word.removesuffix(filler) if word != filler else ""
            if words[n] in _PARTS:
                break
        else:
            words[n] = "" if word in _FILLERS else word
    return [word for word in words if word]


def part_of(name: str, loosely: bool = False) -> tuple[str, int] | None:
    """The split that a file or folder is named after.

    Args:
        name: such as "Training", "val2017", "test_images".
        loosely: whether other words may be in the name, as in "seg_train".

    Returns:
        ("train", "test" or "dev", rank), lower ranks taking precedence; None if the name
        is not that of a split.

    Example:
        >>> from tfkd.data import names
        >>> [names.part_of(n) for n in ("TRAIN", "valid", "train_station")]
        [('train', 0), ('dev', 3), None]
    """
    words = _words(name)
    known = [_PARTS[word] for word in words if word in _PARTS]
    if not known or (len(known) < len(words) and not loosely):
        return None
    if len(set(known)) == 1:
        return known[0]
    return _PARTS["trainval"] if {part for part, _ in known} == {"train", "dev"} else None


def best(found: Sequence[tuple[int, Any]], expected: str, show: Callable[[Any], str] = repr) -> Any:
    """The entry of the best rank among (rank, entry); ValueError if it is not unique."""
    first = [entry for rank, entry in found if rank == min(found)[0]]
    if len(first) > 1:
        fix = "Both may be the same part: rename one, or move it elsewhere."
        raise checks.value_error("path", expected, " and ".join(map(show, first)), fix)
    return first[0]


def is_aside(name: str) -> bool:
    """Whether a folder's name says unlabelled images, or files that accompany images."""
    words = _words(name)
    return bool(words) and all(word in _ASIDE for word in words)


def warn_case(source: str, classes: Iterable[str]) -> None:
    """Warns of class names that differ only in case, except single letters such as "a" and "A"."""
    by_case = defaultdict(list)
    for name in classes:
        if len(name) > 1:
            by_case[name.casefold()].append(name)
    for alike in by_case.values():
        if len(alike) > 1:
            checks.warn(
                f"{source}: {', '.join(map(repr, alike))} differ only in case and are taken for "
                f"{len(alike)} classes. If they are one, give them one name."
            )


class OnDisk:
    """Finds files by name regardless of the Unicode normalization of names on disk.

    Args:
        root: the folder that names are relative to.

    Example:
        >>> import pathlib, tempfile
        >>> from tfkd.data import names
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "a\\u0308.txt").write_text("two characters")
        ...     names.OnDisk(folder).find("\\xe4.txt").exists()
        True
    """

    def __init__(self, root: str | os.PathLike):
        self.root = pathlib.Path(root)
        self._known: dict[pathlib.Path, dict[str, str]] = {}

    def find(self, name: str) -> pathlib.Path:
        """The path of the file on disk, or `root / name` if there is none."""
        asked = self.root / name
        if asked.exists():
            return asked
        place = self.root
        for part in pathlib.PurePath(name).parts:
            if not (place / part).exists():
                part = self._listing(place).get(nfc(part), part)
            place = place / part
        return place if place.exists() else asked

    def _listing(self, folder: pathlib.Path) -> dict[str, str]:
        if folder not in self._known:
            there = sorted(os.listdir(folder)) if folder.is_dir() else []
            self._known[folder] = {nfc(name): name for name in there}
        return self._known[folder]


def by_stem(files: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Stem -> file, for stems as written and in NFC; the first file of each stem."""
    files = list(files)
    found: dict[str, pathlib.Path] = {}
    for form in (str, nfc):
        for file in files:
            found.setdefault(form(file.stem), file)
    return found
