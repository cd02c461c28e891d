"""Reader of object-detection annotations in PASCAL VOC layout: one XML file per image."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from xml.parsers import expat

from tfkd import checks
from tfkd.data import names as naming
from tfkd.data.detection import parsing, reading
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.data.detection.findings import AnnotationLog
from tfkd.data.folder import ON_ERROR, check_size
from tfkd.data.layout import EXTENSIONS

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc(
    path: str | os.PathLike,
    size: int | Sequence[int],
    train: str = "train",
    test: str | None = "test",
    class_names: Sequence[str] | None = None,
    on_error: str = "raise",
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    difficult: bool = True,
    unlabelled: bool = False,
) -> DetectionDataset:
    """Loads a folder in the layout of PASCAL VOC.

    The folder holds `Annotations/ID.xml`, `JPEGImages/ID.jpg` (or .png, ...), and lists
    of IDs, one per line, in `ImageSets/Main/*.txt`. All annotations are read before any
    fault is reported, so that one run shows every fault. A width or height that is empty
    or not above 0 counts as missing. Coordinates are used as written, although PASCAL's
    own files count pixels from 1.

    Reference: Everingham et al. 2010, The PASCAL Visual Object Classes (VOC) Challenge,
    https://doi.org/10.1007/s11263-009-0275-4

    Args:
        path: the folder.
        size: height and width in pixels to resize to (one number for a square), with
            Pillow's bilinear filter, ignoring the aspect ratio.
        train, test: names of the lists; with `test=None` `train` is split.
        class_names: the classes, in their order; None: the class names of all objects
            of the training part, sorted.
        on_error: "raise" all faults as one error, or "skip" faulty objects and images
            with one warning that counts them.
        test_fraction: with `test=None`: fraction of the images for the test part.
        seed: determines which images those are.
        difficult: whether to keep objects that are marked as difficult.
        unlabelled: whether a training image without an XML file is an unlabelled image;
            otherwise it is a fault.

    Returns:
        A `DetectionDataset` named after the folder. Its `findings` list the faults and,
        as notes, the images without objects; see `AnnotationFinding`.

    Raises:
        FileNotFoundError: if there is no such folder or list.
        ValueError: if a list leads out of the folder.
        AnnotationError: a `ValueError` with `.findings`: invalid XML, images that are
            missing, undecodable, of another size or listed twice, IDs without an
            annotation, files and links that lead out of the folder, boxes without area
            or outside the image (by more than a pixel), unknown classes. Each with file and line.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from PIL import Image
        >>> from tfkd import data
        >>> xml = '''<annotation><object><name>cat</name><bndbox><xmin>2</xmin>
        ... <ymin>4</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object></annotation>'''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = pathlib.Path(folder)
        ...     for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        ...         (root / part).mkdir(parents=True)
        ...     for name in ("train", "test"):
        ...         _ = (root / f"ImageSets/Main/{name}.txt").write_text(name)
        ...         _ = (root / f"Annotations/{name}.xml").write_text(xml)
        ...         colour = "red" if name == "train" else "blue"
        ...         Image.new("RGB", (16, 8), colour).save(root / f"JPEGImages/{name}.jpg")
        ...     cats = data.voc(folder, size=8)
        >>> cats.class_names, cats.boxes_train.tolist()
        (('cat',), [[[0.125, 0.5, 0.5, 0.75]]])
    """
    root = pathlib.Path(checks.instance("path", path, (str, os.PathLike), "a path"))
    if not root.is_dir():
        raise FileNotFoundError(f"`path`: there is no folder {str(root)!r}.")
    size, names = check_size(size), reading.check_names(class_names)
    checks.one_of("on_error", on_error, ON_ERROR)
    reader = _Reader(root, difficult, AnnotationLog())
    pictures = reader.pictures(train, unlabelled)
    if test is None:
        pictures, test_pictures = reading.split(pictures, test_fraction, seed)
    else:
        test_pictures = reading.apart(pictures, reader.pictures(test, False), reader.found)
    names = names or reading.class_names(pictures)
    given = (names, size, reader.found, on_error, root.resolve().name)
    return reading.dataset(pictures, test_pictures, *given)


class _Reader:
    """Reads the lists and XML files of one folder; faults are added to `found`."""

    def __init__(self, root: pathlib.Path, difficult: bool, found: AnnotationLog):
        self.root, self.difficult, self.found = root, difficult, found
        folder = root / "JPEGImages"
        if not folder.is_dir():
            raise FileNotFoundError(f"`path`: there is no folder {str(folder)!r}.")
        # If an image exists in two formats, the .jpg file is taken.
        files = sorted(folder.iterdir(), key=lambda p: (p.suffix.lower() != ".jpg", p.name))
        shown = (file for file in files if not naming.is_hidden(file.name))
        self.images = naming.by_stem(f for f in shown if f.suffix.lower() in EXTENSIONS)
        annotations = root / "Annotations"
        listed = sorted(annotations.iterdir()) if annotations.is_dir() else []
        self.annotations = naming.by_stem(f for f in listed if f.suffix.lower() == ".xml")
        self.disk = naming.OnDisk(folder)

    def ids(self, name: str) -> list[tuple[int, str]]:
        """(line, ID) of each image in a list."""
        file = naming.inside(self.root, self.root / "ImageSets" / "Main" / f"{name}.txt")
        if not file.is_file():
            there = sorted(p.stem for p in file.parent.glob("*.txt"))
            fix = checks.near(name, there) or f"There are: {', '.join(there) or 'none'}."
            raise FileNotFoundError(f"There is no list {str(file)!r}. {fix}")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise checks.value_error("path", "lists in UTF-8", str(file), str(error)) from error
        seen: dict[str, int] = {}
        ids = []
        for line, text in enumerate(lines, 1):
            key = text.strip()
            form = naming.nfc(key)
            if form in seen:
                received = f"{key!r} again, first in line {seen[form]}"
                place = file.relative_to(self.root)
                self.found.add(place, "listed twice", line, "each image once", received)
            elif key:
                seen[form] = line
                ids.append((line, key))
        if not ids:
            raise checks.value_error("path", "a list of images", f"an empty file, {file}")
        return ids

    def pictures(self, name: str, unlabelled: bool) -> list[reading.Picture]:
        """The images of one list with their annotations."""
        checks.instance("train or test", name, str, "the name of a list in ImageSets/Main")
        listed = f"ImageSets/Main/{name}.txt"
        pictures = []
        for line, key in self.ids(name):
            file = self.annotations.get(key) or self.annotations.get(naming.nfc(key))
            if file is not None:
                picture = self.picture(key, file)
                if picture is not None:
                    pictures.append(picture)
            elif unlabelled:
                image = self.image(key, None)
                pictures.append(reading.Picture(image, self.root, listed, line, None))
            else:
                self.found.add(listed, "no annotation", line, f"a file {key}.xml", "none")
        return pictures

    def image(self, key: str, named: str | None) -> pathlib.Path:
        """The file of an image: by its ID, else by the file name in the annotation."""
        found = self.images.get(key) or self.images.get(naming.nfc(key))
        if found is None and named:
            found = self.disk.find(named)
            if not found.is_file() and "\\" not in named:
                found = None
        return found or self.disk.root / f"{key}.jpg"

    def picture(self, key: str, file: pathlib.Path) -> reading.Picture | None:
        """The image that an XML file annotates, or None if the file is invalid."""
        place = file.relative_to(self.root).as_posix()
        if naming.leads_out(self.root, file):
            expected, received = f"a file in {self.root}, links included", str(naming.real(file))
            self.found.add(place, "leads out", None, expected, received)
            return None
        try:
            top = parsing.xml(file.read_bytes())
        except (expat.ExpatError, LookupError, ValueError) as error:
            # Of an encoding that expat does not support, no line is known.
            self.found.add(place, "broken file", getattr(error, "lineno", 1), "XML", str(error))
            return None
        if top.tag != "annotation":
            self.found.add(place, "broken file", top.line, "<annotation>", f"<{top.tag}>")
            return None
        named, stated = top.find("filename"), top.find("size")
        objects = [self.object(one, place) for one in top.children if one.tag == "object"]
        size = self.size(stated, place)
        if size is None:
            return None
        image = self.image(key, named.text.strip() if named else None)
        kept, line = tuple(o for o in objects if o is not None), stated.line if stated else None
        return reading.Picture(image, self.root, place, top.line, kept, size, line)

    def size(
        self, stated: parsing.Element | None, place: str
    ) -> tuple[int | None, int | None] | None:
        """(width, height), None for a missing side; None if a side is not a number."""
        sides = [stated.find(tag) if stated else None for tag in ("width", "height")]
        texts = [side.text.strip() if side else None for side in sides]
        try:
            width, height = (parsing.length(text) for text in texts)
        except ValueError:
            received = " × ".join(text or "none" for text in texts)
            line = stated.line if stated else None
            self.found.add(place, "size", line, "numbers as width and height", received)
            return None
        return width, height

    def object(self, element: parsing.Element, place: str) -> reading.Object | None:
        """One object, or None if a value is missing or it is left out as difficult."""
        name = element.find("name")
        if name is None or not name.text.strip():
            received = "none" if name is None else "an empty one"
            self.found.add(place, "missing value", element.line, "a <name>", received)
            return None
        marked = element.find("difficult")
        if not self.difficult and marked is not None:
            flag = parsing.flag(marked.text)
            if flag is None:
                received = repr(marked.text.strip())
                self.found.add(place, "bad value", marked.line, "0 or 1 as <difficult>", received)
                return None
            if flag:
                expected = "objects that are not difficult"
                self.found.add(place, "difficult", marked.line, expected, marked.text.strip())
                return None
        box = element.find("bndbox")
        corners = []
        for tag in _CORNERS:
            corner = box.find(tag) if box else None
            value = parsing.number(corner.text) if corner else None
            if value is None:
                line = (corner or box or element).line
                received = repr(corner.text) if corner else "none"
                self.found.add(place, "missing value", line, f"a number in <{tag}>", received)
                return None
            corners.append(value)
        shown = ", ".join(f"{tag} {c:g}" for tag, c in zip(_CORNERS, corners, strict=True))
        x1, y1, x2, y2 = corners
        line = box.line if box else element.line
        return reading.Object(naming.nfc(name.text), (x1, y1, x2, y2), shown, name.line, line)
