"""Reader of object-detection annotations in COCO format: one JSON file for all images."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from tfkd import checks
from tfkd.data import names as naming
from tfkd.data.detection import parsing, reading
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.data.detection.findings import AnnotationLog
from tfkd.data.folder import ON_ERROR, check_size

_SIDES = ("width", "height")
SECTIONS = ("images", "annotations", "categories")


def coco(
    path: str | os.PathLike,
    images: str | os.PathLike,
    size: int | Sequence[int],
    test_path: str | os.PathLike | None = None,
    test_images: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    on_error: str = "raise",
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> DetectionDataset:
    """Loads images and boxes in COCO format (instances) into memory.

    All annotations are read before any fault is reported, so that one run shows every
    fault. Category ids may have gaps. Ids, sizes, boxes and `iscrowd` may be numbers or
    numeric strings ("7", "0"); names and files match in any Unicode normalization. A
    width or height that is null, empty, or not above 0 counts as missing. A category
    without objects that is the supercategory of another one with the same name, as some
    tools write for a root, is merged into it. Crowds (`iscrowd`) are left out and
    counted in `findings`.

    Reference: Lin et al. 2014, https://arxiv.org/abs/1405.0312;
    https://cocodataset.org/#format-data

    Args:
        path: the JSON file of the training part, or of all images.
        images: folder that its `file_name`s are relative to.
        size: height and width in pixels to resize to (one number for a square), with
            Pillow's bilinear filter, ignoring the aspect ratio.
        test_path: the JSON file of the test part; None: `path` is split.
        test_images: folder of the test images; None: `images`.
        class_names: the categories to load, in their order; objects of others are left
            out. None: all of `path`, ordered by id.
        on_error: "raise" all faults as one error, or "skip" faulty objects and images
            with one warning that counts them.
        test_fraction: without `test_path`: fraction of the images for the test part.
        seed: determines which images those are.

    Returns:
        A `DetectionDataset` named after `path`. Its `findings` list the faults and, as
        notes, images without objects and what was left out; see `AnnotationFinding`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if `class_names` holds a name that is not a category.
        AnnotationError: a `ValueError` with `.findings`: invalid JSON, entries that
            lack a value, images that are missing, undecodable, of another size,
            listed twice or outside of their folder (links followed), boxes without area
            or outside the image (by more than a pixel), unknown images and categories.
            Each with the file, the line of the entry's id, and its index.

    Example:
        >>> import json, pathlib, tempfile
        >>> from PIL import Image
        >>> from tfkd import data
        >>> content = {
        ...     "images": [{"id": i, "file_name": f"{i}.png"} for i in range(4)],
        ...     "annotations": [
        ...         {"id": i, "image_id": i, "category_id": 7, "bbox": [2, 4, 6, 2]}
        ...         for i in range(4)
        ...     ],
        ...     "categories": [{"id": 7, "name": "cat"}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = pathlib.Path(folder)
        ...     _ = (root / "cats.json").write_text(json.dumps(content))
        ...     for i in range(4):
        ...         Image.new("RGB", (16, 8), (9 * i, 0, 0)).save(root / f"{i}.png")
        ...     data.coco(root / "cats.json", root, size=8, test_fraction=0.25)
        DetectionDataset('cats', 3 + 1 images (8, 8, 3), 3 + 1 objects of 1 classes)
    """
    size, wanted = check_size(size), reading.check_names(class_names)
    checks.one_of("on_error", on_error, ON_ERROR)
    found = AnnotationLog()
    documents = [_Document(path, images, found)]
    if test_path is not None:
        documents.append(_Document(test_path, test_images or images, found))
    if any(document.broken for document in documents):
        raise found.error(str(path), "Fix the file: no entry of it can be used.")
    names = wanted or documents[0].names()
    for name in names:
        if name not in documents[0].categories.values():
            fix = checks.near(name, documents[0].names())
            raise checks.value_error("class_names", f"categories of {path}", name, fix)
    pictures, *rest = [document.pictures(wanted) for document in documents]
    if rest:
        test = reading.apart(pictures, rest[0], found)
    else:
        pictures, test = reading.split(pictures, test_fraction, seed)
    return reading.dataset(pictures, test, names, size, found, on_error, pathlib.Path(path).stem)


class _Document:
    """One JSON file and the folder of its images; faults are added to `found`."""

    def __init__(self, path: Any, images: Any, found: AnnotationLog):
        self.path = pathlib.Path(checks.instance("path", path, (str, os.PathLike), "a path"))
        self.folder = pathlib.Path(checks.instance("images", images, (str, os.PathLike), "a path"))
        if not self.path.is_file():
            raise FileNotFoundError(f"`path`: there is no file {str(path)!r}.")
        if not self.folder.is_dir():
            raise FileNotFoundError(f"`images`: there is no folder {str(images)!r}.")
        self.disk = naming.OnDisk(self.folder)
        self.found = found
        self.add = functools.partial(found.add, self.path)
        self.sections: dict[str, list[parsing.Entry]] = {}
        self.categories: dict[Any, str] = {}
        self.roots: set[Any] = set()
        self.broken = not self._read()
        if not self.broken:
            self._read_categories()

    def _read(self) -> bool:
        """Fills `sections`; returns False if the file is invalid."""
        try:
            sections = parsing.json_sections(self.path.read_text("utf-8-sig"), SECTIONS)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            self.add("broken file", line, "JSON" if line else "JSON in UTF-8", str(error))
            return False
        for name in SECTIONS:
            entries = sections.get(name)
            if entries is None or (name == "images" and not entries):
                received = "none" if name not in sections else "something else or an empty one"
                self.add("broken file", None, f'a list "{name}"', received)
            else:
                self.sections[name] = entries
        return len(self.sections) == len(SECTIONS)

    def _read_categories(self) -> None:
        """Fills `categories`, id → name, and `roots`, ids of duplicate supercategories."""
        parents: dict[Any, str] = {}
        for index, (value, line) in enumerate(self.sections["categories"]):
            number, name = self._values("categories", index, value, line, "id", "name")
            if number is None or name is None:
                continue
            name, parent = (naming.nfc(str(v)) for v in (name, value.get("supercategory")))
            known = set(self.categories) - self.roots
            twin = next((n for n in known if self.categories[n] == name), None)
            root = None
            if twin is not None:
                root = self._root(name, (twin, parents[twin]), (number, parent))
            if number in self.categories or (twin is not None and root is None):
                again = f"id {number!r}, name {name!r} again"
                self.add("listed twice", line, "each category once", again)
                continue
            self.roots |= {root} - {None}
            self.categories[number], parents[number] = name, parent

    def _root(self, name: str, first: tuple[Any, str], second: tuple[Any, str]) -> Any:
        """Which of two categories (id, supercategory) of one name is the other's supercategory.

        It is the one that only the other names as its supercategory; or the first, if it has
        no objects. None: neither.
        """
        (one, above_one), (other, above_other) = first, second
        if one == other:
            return None
        if (above_one == name) != (above_other == name):
            return other if above_one == name else one
        return None if one in self._used else one

    @functools.cached_property
    def _used(self) -> set[Any]:
        """Ids of the categories that have objects."""
        values = [value for value, _ in self.sections["annotations"] if isinstance(value, dict)]
        numbers = [value.get("category_id") for value in values]
        return {_id(number) for number in numbers if isinstance(number, (int, float, str))}

    def names(self) -> tuple[str, ...]:
        """Names of the categories ordered by id, roots left out."""
        numbers = sorted(set(self.categories) - self.roots, key=lambda n: (isinstance(n, str), n))
        return tuple(self.categories[number] for number in numbers)

    def _values(self, section: str, index: int, value: Any, line: int, *keys: str) -> list[Any]:
        """Values of `keys`, numbers or text; a missing one is None and adds a finding."""
        if not isinstance(value, dict):
            expected = f'an object as entry {index} of "{section}"'
            self.add("missing value", line, expected, repr(value)[:60])
            return [None] * len(keys)
        values = [value.get(key) for key in keys]
        for place, (key, item) in enumerate(zip(keys, values, strict=True)):
            if isinstance(item, bool) or not isinstance(item, (int, float, str)):
                expected = f'"{key}" in entry {index} of "{section}"'
                received = repr(item)[:60] if key in value else "none"
                self.add("missing value", line, expected, received)
                values[place] = None
            elif key.endswith("id"):
                values[place] = _id(item)
        return values

    def pictures(self, wanted: Sequence[str] | None) -> list[reading.Picture]:
        """All images with their objects of the categories `wanted`; None: all categories."""
        images: dict[Any, tuple[str, Any, int]] = {}
        files: set[str] = set()
        unsized = set()
        for index, (value, line) in enumerate(self.sections["images"]):
            number, name = self._values("images", index, value, line, "id", "file_name")
            if number is None or name is None:
                continue
            if number in images or naming.nfc(str(name)) in files:
                received = f"id {number!r}, {name!r} again"
                self.add("listed twice", line, "each image once", received)
                continue
            try:
                width, height = (parsing.length(value.get(key)) for key in _SIDES)
            except ValueError:
                sides = " × ".join(f"{value.get(key)!r:.60}" for key in _SIDES)
                received = f"{sides} in image {index} (id {number!r})"
                self.add("size", line, "numbers as width and height", received)
                unsized.add(number)
                width = height = None
            files.add(naming.nfc(str(name)))
            images[number] = (str(name), (width, height), line)
        objects = self._objects(images, wanted)
        source = os.fspath(self.path)
        return [
            reading.Picture(
                self.disk.find(name), self.folder, source, line, tuple(objects[number]), size, line
            )
            for number, (name, size, line) in images.items()
            if number not in unsized
        ]

    def _objects(self, images: Any, wanted: Sequence[str] | None) -> dict[Any, list[Any]]:
        """Objects of each image, by image id."""
        objects: dict[Any, list[reading.Object]] = {number: [] for number in images}
        for index, (value, line) in enumerate(self.sections["annotations"]):
            keys = ("image_id", "category_id")
            image, category = self._values("annotations", index, value, line, *keys)
            if image is None or category is None:
                continue
            shown = f"in annotation {index} (id {value.get('id')!r})"
            name, crowd = self.categories.get(category), parsing.flag(value.get("iscrowd", 0))
            if image not in images:
                self.add("unknown image", line, "an image of the file", f"{image!r} {shown}")
            elif crowd is None:
                received = f"{value['iscrowd']!r:.60} {shown}"
                self.add("bad value", line, "0 or 1 as iscrowd", received)
            elif crowd:
                self.add("crowd", line, "single objects", f"iscrowd {shown}")
            elif name is None:
                received = f"category {category!r} {shown}"
                self.add("unknown class", line, "a category of the file", received)
            elif wanted is not None and name not in wanted:
                self.add("other class", line, "the requested classes", f"{name!r} {shown}")
            else:
                box = _box(value.get("bbox"))
                shown = f"bbox {value.get('bbox')!r:.60} {shown}"
                if box is None:
                    self.add("missing value", line, "four numbers as bbox", shown)
                else:
                    objects[image].append(reading.Object(name, box, shown, line, line))
        return objects


def _id(value: Any) -> Any:
    """An id as int, even if written as text: some files mix both."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isdecimal() and str(int(value)) == value else value
    return value


def _box(value: Any) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) as corners, or None if these are not four numbers."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [parsing.number(item) for item in value]
    x, y, width, height = (number if number is not None else float("nan") for number in numbers)
    if None in numbers:
        return None
    return x, y, x + width, y + height
