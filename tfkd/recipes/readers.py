"""Readers behind `open_data`: which layout a folder or file has, and what it holds."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks, data
from tfkd.data import layout, names, sources
from tfkd.data.folder import validation_part
from tfkd.data.tsv import holds_texts
from tfkd.recipes import box_readers, python_data
from tfkd.recipes.python_data import OWN_TEST, Read, split_off

_PARTS = {"x_train", "y_train", "x_test", "y_test"}
_MORE = ("x_val", "y_val", "class_names")
NAMES = ("digits", *sources.KERAS_NAMES)
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KINDS = (
    "Data are a folder with one folder of images for each class, a .npz file (x_train, y_train, "
    "x_test, y_test), a .tsv file or a folder with train.tsv and test.tsv, a folder in VOC or "
    f"COCO layout, module:function, or one of {', '.join(NAMES)}."
)


def read(
    name: Any,
    size: Any,
    test_fraction: float,
    seed: int,
    on_error: str = "raise",
    columns: Sequence[int | str] | None = None,
) -> Read:
    """Reads data by name; see `tfkd.recipes.data.open_data`.

    The readers of files call them `path`; an error says what the caller gave, `data`.
    """
    try:
        found = _tables(name, columns, test_fraction=test_fraction, seed=seed)
        return found or _read(name, size, test_fraction, seed, on_error)
    except (ValueError, TypeError, OSError) as error:
        if len(error.args) == 1 and str(error.args[0]).startswith("`path`:"):
            error.args = (f"`data`{str(error.args[0]).removeprefix('`path`')}",)
        raise


def _tables(name: Any, columns: Sequence[int | str] | None, **options: Any) -> Read | None:
    """Texts of the columns that are named; None if none are."""
    if columns is None:
        return None
    path = pathlib.Path(name) if isinstance(name, (str, os.PathLike)) else None
    is_table = path is not None and (
        path.suffix.lower() == ".tsv" or (path.is_dir() and holds_texts(path))
    )
    if path is None or not is_table:
        fix = "Leave it out: it is for .tsv files."
        raise checks.value_error("columns", f"none for {name}", list(columns), fix)
    numbers = [int(c) if isinstance(c, str) and c.isdecimal() else c for c in columns]
    return _texts(path, {**options, "columns": numbers})


def _read(name: Any, size: Any, test_fraction: float, seed: int, on_error: str) -> Read:
    options: dict[str, Any] = {"test_fraction": test_fraction, "seed": seed}
    if not isinstance(name, (str, os.PathLike)):
        return python_data.split(name, "data", **options)
    text, path = os.fspath(name), pathlib.Path(name)
    if text == "digits":
        return data.digits(**options), None, split_off(test_fraction, seed)
    if text in sources.KERAS_NAMES:
        return data.keras_dataset(text), None, OWN_TEST
    if _FUNCTION.fullmatch(text) and not path.exists():
        return python_data.split(python_data.call(text), text, **options)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = checks.near(path.name, [*NAMES, *(n for n in beside if not names.is_hidden(n))])
        raise FileNotFoundError(f"There is no file or folder {text!r}. {near or _KINDS}")
    if (found := box_readers.read(path, size, on_error, **options)) is not None:
        return found
    if path.is_file():
        return _file(path, options)
    if holds_texts(path):
        return _texts(path, options)
    return _images(path, size, on_error, options)


def _file(path: pathlib.Path, options: dict[str, Any]) -> Read:
    ending = path.suffix.lower()
    if ending == ".tsv":
        return _texts(path, options)
    if ending == ".npz":
        return _npz(path, options)
    raise checks.value_error("data", "a .npz, .tsv or COCO .json file", str(path), _KINDS)


def _texts(path: pathlib.Path, options: dict[str, Any]) -> Read:
    texts = data.tsv(path, **options)
    val = None if texts.x_dev is None else (texts.x_dev, texts.y_dev)
    options.pop("columns", None)
    return texts, val, split_off(**options) if path.is_file() else OWN_TEST


def _images(path: pathlib.Path, size: Any, on_error: str, options: dict[str, Any]) -> Read:
    if not names.folders_in(path):
        there = ", ".join(sorted(p.name for p in path.iterdir())[:5])
        hint = f"It holds {there}. {_KINDS}" if there else f"It is empty. {_KINDS}"
        raise checks.value_error("data", "a folder with data", str(path), hint)
    images = data.image_folder(path, size, **options, on_error=on_error)
    parts = layout.parts(path)
    if "train" in parts and (held := parts.get("test") or parts.get("dev")):
        return (
            images,
            validation_part(path, images, size, on_error),
            f"test part from {held.name!r}",
        )
    return images, None, split_off(**options)


def _npz(path: pathlib.Path, options: dict[str, Any]) -> Read:
    """A file in Keras's convention, perhaps with a validation part; or with one part alone.

    Labels may be one-hot rows, or class numbers as floats or booleans. `class_names` holds
    names of the classes.
    """
    held = _by_part(_arrays(path))
    _check_keys(path, held)
    class_names = tuple(map(str, held.pop("class_names", ())))
    for alone in (("x", "y"), ("x_train", "y_train")):
        if set(held) >= set(alone) and not set(held) & ({*_PARTS, *_MORE} - set(alone)):
            x, y = (held[key] for key in alone)
            return python_data.split((x, y), path.stem, **options, class_names=class_names)
    converted = {
        key: python_data.class_numbers(labels, f"{key} of {path.name}")
        for key, labels in held.items()
        if key.startswith("y_") and labels.ndim and _are_written_otherwise(labels)
    }
    held |= converted
    plain = not converted and not class_names
    if set(held) >= _PARTS and not (plain and python_data.are_images(held["x_train"])):
        parts = [(held[f"x_{part}"], held[f"y_{part}"]) for part in ("train", "test")]
        source = python_data.source_of(path.stem, parts[0], parts[1], class_names)
    else:
        source = data.npz(path)
    if "x_val" not in held:
        return source, None, OWN_TEST
    return source, python_data.checked_part(source, held["x_val"], held["y_val"]), OWN_TEST


def _by_part(held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under the usual names of their parts: "x_valid" as "x_val"."""
    found = {}
    for key, value in held.items():
        side, _, part = key.partition("_")
        known = names.part_of(part) if side in ("x", "y") and part else None
        name = f"{side}_{'val' if known[0] == 'dev' else known[0]}" if known else key
        found[key if name in held else name] = value
    return found


def _check_keys(path: pathlib.Path, held: dict[str, np.ndarray]) -> None:
    """Warns of arrays that are not used; refuses half a validation part."""
    if ("x_val" in held) != ("y_val" in held):
        expected = "both x_val and y_val, or neither"
        raise checks.value_error("data", expected, f"{path.name} with {', '.join(held)}")
    used = {"x", "y", *_MORE} if "x" in held else {*_PARTS, *_MORE}
    unused = [key for key in held if key not in used]
    if unused and ({"x", "y"} <= set(held) or {"x_train", "y_train"} <= set(held)):
        checks.warn(
            f"{path.name} also holds {', '.join(unused)}, which is not used. Arrays are known as "
            f"{', '.join(sorted(_PARTS) + list(_MORE))}."
        )


def _are_written_otherwise(labels: np.ndarray) -> bool:
    """Whether labels are one-hot rows, floats or booleans, where a data set takes integers."""
    return labels.dtype.kind in "fb" or (labels.ndim == 2 and labels.shape[1] > 1)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file; none if it can't be read, for which `data.npz` says why."""
    try:
        with np.load(path, allow_pickle=False) as packed:
            return {key: packed[key] for key in packed.files}
    except Exception:  # zlib, zipfile and NumPy each raise their own errors
        return {}
