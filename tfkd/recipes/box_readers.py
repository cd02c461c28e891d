"""Readers of images with boxes behind `open_data`: folders in VOC and COCO layout."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from tfkd import checks, data
from tfkd.data import names
from tfkd.data.detection.findings import TO_SKIP, AnnotationError, AnnotationLog
from tfkd.recipes.python_data import OWN_TEST, Read, split_off

_ROBOFLOW = "_annotations.coco.json"


class Part(NamedTuple):
    """A COCO file and the folder of its images."""

    file: pathlib.Path
    images: pathlib.Path


def read(
    path: pathlib.Path, size: Any, on_error: str, test_fraction: float, seed: int
) -> Read | None:
    """Reads a folder in VOC or COCO layout, or a COCO file; None for anything else.

    Raises:
        ValueError: without a size, and for faulty annotations; see `tfkd.data.voc` and
            `tfkd.data.coco`.
    """
    split = {"test_fraction": test_fraction, "seed": seed}
    if path.is_dir() and (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
        _check_size(path, size)
        return _voc(path, size, on_error, split)
    parts = coco_parts(path)
    if not parts:
        return None
    _check_size(path, size)
    return _coco(parts, size, on_error, split)


def _check_size(path: pathlib.Path, size: Any) -> None:
    if size is None:
        fix = "Such as --size=160, or the size that the model takes."
        expected = f"the height and width to which the images of {path} are resized"
        raise checks.value_error("size", expected, size, fix)


def _voc(path: pathlib.Path, size: Any, on_error: str, split: dict[str, Any]) -> Read:
    lists = path / "ImageSets" / "Main"
    there = {file.stem for file in lists.glob("*.txt")}
    if not there & {"train", "trainval"}:
        fix = "Write the names of the training images without ending into it, one a line."
        expected = f"a list {lists / 'train.txt'}"
        found = ", ".join(sorted(there)) or "none"
        raise checks.value_error("data", expected, f"lists in {path}: {found}", fix)
    train = "train" if "train" in there else "trainval"
    test = next((name for name in ("test", "val") if name in there), None)
    options = {"on_error": on_error, **split}

    def part(name: str, class_names: Any = None) -> Any:
        return data.voc(path, size, name, test, class_names, **options)

    if test != "test":
        how = split_off(**split) if test is None else "test part from the list 'val'"
        return part(train), None, how
    if train == "trainval" or "val" not in there:
        return part(train), None, OWN_TEST
    return *_with_held(part, train, "val"), OWN_TEST


def _with_held(part: Callable[..., Any], train: Any, held: Any) -> tuple[Any, tuple[Any, ...]]:
    """The source of a training part, and (x, classes, boxes) of the part that validates.

    Raises:
        AnnotationError: with the faults of both.
    """
    try:
        source = part(train)
    except AnnotationError as error:
        log = AnnotationLog()
        log.all += error.findings
        try:
            part(held)
        except AnnotationError as other:  # It has those of the test part, too.
            log.all += [finding for finding in other.findings if finding not in log.all]
        raise log.error(str(error).partition(":")[0], TO_SKIP) from error
    x, boxes, classes = part(held, source.class_names).arrays("train")
    return source, (x, classes, boxes)


def _coco(parts: dict[str, Part], size: Any, on_error: str, split: dict[str, Any]) -> Read:
    train = parts["train"]
    options: dict[str, Any] = {"on_error": on_error, **split}
    test = parts.get("test") or parts.get("dev")
    if test is None:
        return data.coco(*train, size, **options), None, split_off(**split)

    def part(read: Part, class_names: Any = None) -> Any:
        return data.coco(*read, size, *test, class_names=class_names, **options)

    if "test" not in parts or "dev" not in parts:
        return part(train), None, f"test part from {test.file.name!r}"
    return *_with_held(part, train, parts["dev"]), OWN_TEST


def coco_parts(path: pathlib.Path) -> dict[str, Part]:
    """The parts "train", "test" and "dev" of COCO data, as far as there are; {} for other data.

    Known are: one `.json` file beside its images or a folder `images`; a folder with such
    files, named after the parts or only one; `annotations/instances_train2017.json` with
    `train2017/`; and `train/_annotations.coco.json`.
    """
    if path.is_file():
        return {"train": Part(path, _images(path))} if _is_coco(path) else {}
    found: dict[str, Part] = {}
    for folder in names.folders_in(path):
        part, file = names.part_of(folder), path / folder / _ROBOFLOW
        if part and file.is_file():
            found[part[0]] = Part(file, path / folder)
    if "train" in found:
        return found
    files = [file for file in _json_files(path) if _is_coco(file)]
    for file in files:
        stem = file.stem.removeprefix("instances_")
        if part := names.part_of(stem):
            found.setdefault(part[0], Part(file, _images(file, stem)))
    if "train" in found:
        return found
    return {"train": Part(files[0], _images(files[0]))} if len(files) == 1 else {}


def _json_files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])


def _is_coco(file: pathlib.Path) -> bool:
    if file.suffix.lower() != ".json":
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    return all(f'"{section}"' in text for section in ("images", "annotations", "categories"))


def _images(file: pathlib.Path, part: str = "") -> pathlib.Path:
    """The folder of a file's images: named after the part, or `images`, or its own."""
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    places = [root / "images" / part, root / part] if part else []
    return next((p for p in [*places, root / "images"] if p.is_dir()), root)
