"""Reader of labelled texts in tab-separated files (TSV); errors name file and line."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.data import names as naming
from tfkd.data.dataset import stratified_split
from tfkd.data.text import TextDataset

ENDING = ".tsv"
TEXT_NAMES = ("sentence", "text", "review", "comment", "content", "phrase", "document")
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "target")
# From this many rows on, a column that is guessed to hold labels must repeat values.
_ENOUGH_ROWS = 10

Row = tuple[int, list[str]]


def tsv(
    path: str | os.PathLike,
    columns: Sequence[int | str] | None = None,
    header: bool | None = None,
    class_names: Sequence[str] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> TextDataset:
    """Loads labelled texts from tab-separated files in UTF-8.

    Two layouts are supported. A folder with `train.tsv`, `test.tsv` and optionally
    `dev.tsv` (or `val`, `valid`, `validation`; case is ignored); without a test file
    the dev file is the test part. Or a single file, which is split here. Each row
    holds a text and a label in either order: the label is the column with fewer
    distinct values. Quotation marks are not special, and empty lines are skipped. The
    classes are the labels of the training file, in numerical order if all are
    integers, else in alphabetical order.

    Args:
        path: the folder or the file.
        columns: (text, label), as indices from 0 or as names in the header; needed
            if there are more than two columns without known names.
        header: whether the first row is a header; None: it is if it holds a known
            name for each of the two columns, such as "sentence" and "label".
        class_names: names of the classes in reports, in their order; default: the
            labels as written.
        test_fraction: fraction of each class that becomes the test part of a single
            file.
        seed: determines which rows those are.

    Returns:
        A `TextDataset` named after the folder or the file.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if a file is empty or not UTF-8, a row has a different number of
            columns or no text, the label column cannot be determined, a label of the
            test part is unknown, or there is only one class; file and line are named.

    Example:
        >>> import pathlib, tempfile
        >>> from tfkd import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train = "a fine film\\tgood\\nso dull\\tbad\\nfine, fine\\tgood\\n"
        ...     for part, text in (("train", train), ("test", "dull film\\tbad\\n")):
        ...         size = pathlib.Path(folder, f"{part}.tsv").write_text(text)
        ...     texts = data.tsv(folder)
        >>> texts.class_names, texts.y_train.tolist(), texts.x_test[0]
        (('bad', 'good'), [1, 0, 1], 'dull film')
    """
    root = pathlib.Path(checks.instance("path", path, (str, os.PathLike), "a path"))
    if isinstance(class_names, str):
        raise checks.type_error("class_names", "a sequence of names", class_names)
    files = _files(root)
    layout, rows = _first_file(files["train"], columns, header)
    pairs = {"train": [layout.pair(files["train"], row) for row in rows]}
    for part, file in files.items():
        if part != "train":
            pairs[part] = _other_file(file, layout)
    _warn_of_quotes(files["train"], pairs["train"])
    names = _class_names(files["train"], pairs["train"])
    labels = {part: _numbers(files[part], pairs[part], names) for part in pairs}
    texts = {part: np.array([text for _, text, _ in pairs[part]], object) for part in pairs}
    if "test" not in pairs:
        train, test = stratified_split(labels["train"], test_fraction, seed)
        texts = {"train": texts["train"][train], "test": texts["train"][test]}
        labels = {"train": labels["train"][train], "test": labels["train"][test]}
    fields = {f"x_{part}": texts[part] for part in texts}
    fields |= {f"y_{part}": labels[part] for part in labels}
    return TextDataset(**fields, class_names=tuple(class_names) or names, name=root.stem)


def holds_texts(folder: str | os.PathLike) -> bool:
    """Whether a folder holds texts: a train.tsv, or .tsv files and no sub-folder."""
    entries = [p for p in pathlib.Path(folder).iterdir() if not naming.is_hidden(p.name)]
    found = [p.name.lower() for p in entries if p.suffix.lower() == ENDING and p.is_file()]
    return "train.tsv" in found or bool(found and not any(p.is_dir() for p in entries))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Columns of a TSV file.

    Attributes:
        text, label: indices of the columns.
        width: columns per row.
        head: the header in lower case; () if there is none.
    """

    text: int
    label: int
    width: int
    head: tuple[str, ...] = ()

    def pair(self, file: pathlib.Path, row: Row) -> tuple[int, str, str]:
        """(line number, text, label) of a row, checked."""
        number, fields = row
        if len(fields) != self.width:
            expected = f"{self.width} columns, separated by tabs, in each row"
            received = f"{len(fields)} in {_line(file, number)}"
            raise checks.value_error("path", expected, received)
        text, label = fields[self.text], fields[self.label]
        if not text or not label:
            missing = "label" if text else "text"
            received = _line(file, number)
            raise checks.value_error("path", f"a {missing} in each row", received, "Remove it.")
        return number, text, label


def _place_of(file: pathlib.Path) -> str:
    """The file with its name first, since messages truncate long paths at the end."""
    return f"{file.name} in {file.parent}"


def _line(file: pathlib.Path, number: int) -> str:
    return f"line {number} of {_place_of(file)}"


def _files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Split → file; only "train" for a single file."""
    if root.is_file():
        return {"train": root}
    if not root.is_dir():
        raise FileNotFoundError(f"`path`: there is no file or folder {str(root)!r}.")
    found: dict[str, list[tuple[int, pathlib.Path]]] = {}
    for file in sorted(root.iterdir()):
        where = naming.part_of(file.stem)
        shown = file.suffix.lower() == ENDING and file.is_file() and not naming.is_hidden(file.name)
        if where and shown:
            found.setdefault(where[0], []).append((where[1], naming.inside(root, file)))
    if "test" not in found and "dev" in found:
        found["test"] = found.pop("dev")
    for part in ("train", "test"):
        if part not in found:
            raise FileNotFoundError(
                "`path`: expected train.tsv and test.tsv, but there is no file "
                f"{str(root / (part + ENDING))!r}. To split one file, pass its own path."
            )
    one = functools.partial(naming.best, expected="one file of each part", show=lambda f: f.name)
    return {part: one(found[part]) for part in ("train", "test", "dev") if part in found}


def _read(file: pathlib.Path) -> list[Row]:
    """The non-empty rows with their line numbers, from 1."""
    raw = file.read_bytes()
    try:
        content = unicodedata.normalize("NFC", raw.decode("utf-8-sig"))
        fault = content.find("\0")
        line = content.count("\n", 0, fault) + 1 if fault >= 0 else 0
        said = "It contains null bytes: is it UTF-16?"
    except UnicodeDecodeError as error:
        line, said = raw.count(b"\n", 0, error.start) + 1, f"Python says: {error.reason}."
    if line:
        received = _line(file, line)
        raise checks.value_error("path", "a text file in UTF-8", received, f"{said} Convert it.")
    lines = enumerate(content.split("\n"), start=1)
    rows = [(n, [f.strip() for f in text.split("\t")]) for n, text in lines if text.strip()]
    if not rows:
        expected = "a file with rows of text and label"
        raise checks.value_error("path", expected, f"none in {_place_of(file)}")
    return rows


def _first_file(file: pathlib.Path, columns: Any, header: Any) -> tuple[Layout, list[Row]]:
    """The layout of the training file, and its rows without the header."""
    rows = _read(file)
    first = rows[0][1]
    if len(first) < 2:
        fix = "Columns are separated by tabs, not by commas or spaces."
        received = f"1 in {_line(file, rows[0][0])}"
        raise checks.value_error("path", "at least two columns", received, fix)
    columns = _check_columns(columns)
    small = [name.lower() for name in first]
    by_name = [next((n for n in k if n in small), None) for k in (TEXT_NAMES, LABEL_NAMES)]
    if header is None:
        header = None not in by_name or any(isinstance(c, str) for c in columns or ())
    checks.instance("header", header, bool, "True, False or None")
    head = tuple(small) if header else ()
    rows = rows[1:] if header else rows
    if not rows:
        raise checks.value_error("path", "rows below the header", f"none in {_place_of(file)}")
    if columns is None and header and None not in by_name:
        columns = by_name
    if columns is None:
        columns = _guess(file, rows, len(first))
    places = [_place(file, c, len(first), head) for c in columns]
    return Layout(places[0], places[1], len(first), head), rows


def _check_columns(columns: Any) -> tuple[int | str, int | str] | None:
    if columns is None:
        return None
    expected = "(text, label): two numbers from 0, or names in the header"
    if not isinstance(columns, Sequence) or isinstance(columns, str) or len(columns) != 2:
        raise checks.value_error("columns", expected, columns)
    for column in columns:
        if not isinstance(column, str):
            checks.integer("columns", column, 0, expected)
    if columns[0] == columns[1]:
        raise checks.value_error("columns", "two different columns", columns)
    return tuple(columns)


def _place(file: pathlib.Path, column: int | str, width: int, head: Sequence[str]) -> int:
    """The index of a column given by index or name."""
    if not isinstance(column, str):
        if column >= width:
            expected = f"numbers below {width}, the columns of {file.name}"
            raise checks.value_error("columns", expected, column)
        return int(column)
    column = naming.nfc(column)
    if column.lower() not in head:
        fix = f"It has: {', '.join(map(repr, head))}." if head else "It has no header."
        raise checks.value_error("columns", f"a name in the header of {file.name}", column, fix)
    return list(head).index(column.lower())


def _guess(file: pathlib.Path, rows: Sequence[Row], width: int) -> tuple[int, int]:
    """(text, label) of two columns: the labels are the one with fewer distinct values."""
    fix = (
        "Say which they are: columns=(text, label), or --columns=TEXT,LABEL of the command, "
        "numbers from 0 or names in the header."
    )
    if width != 2:
        received = f"{width} columns in {_place_of(file)}"
        raise checks.value_error("columns", "given, where there are not two", received, fix)
    seen = [len({row[i] for _, row in rows if i < len(row)}) for i in (0, 1)]
    text, label = (0, 1) if seen[1] <= seen[0] else (1, 0)
    if len(rows) >= _ENOUGH_ROWS and 2 * seen[label] > len(rows):
        where = f"{len(rows)} rows of {_place_of(file)}"
        received = f"{seen[0]} and {seen[1]} different values in {where}"
        raise checks.value_error("columns", "one column of labels that repeat", received, fix)
    return text, label


def _other_file(file: pathlib.Path, layout: Layout) -> list[tuple[int, str, str]]:
    """Reads another file than the training file; with a header, its column order may differ."""
    rows = _read(file)
    if layout.head:
        head = tuple(name.lower() for name in rows[0][1])
        wanted = (layout.head[layout.text], layout.head[layout.label])
        places = [_place(file, name, len(head), head) for name in wanted]
        layout, rows = Layout(places[0], places[1], len(head), head), rows[1:]
        if not rows:
            raise checks.value_error("path", "rows below the header", f"none in {_place_of(file)}")
    return [layout.pair(file, row) for row in rows]


def _warn_of_quotes(file: pathlib.Path, pairs: Sequence[tuple[int, str, str]]) -> None:
    """Warns of texts in quotation marks as csv writers put them, with inner ones doubled."""
    quoted = [number for number, text, _ in pairs if re.fullmatch('"(?:[^"]|"")*""[^"]*"', text)]
    if quoted:
        checks.warn(
            f"{file.name}: {len(quoted)} texts are in quotation marks, with those inside doubled, "
            f"the first in line {quoted[0]}. Quotation marks are not special here: all of them "
            "belong to the texts. Write the file without quoting (csv.QUOTE_NONE), if a csv "
            "writer added them."
        )


def _class_names(file: pathlib.Path, pairs: Sequence[tuple[int, str, str]]) -> tuple[str, ...]:
    """The labels of the training file, in order."""
    labels = {label for _, _, label in pairs}
    try:
        names = sorted(labels, key=int)
    except ValueError:
        names = sorted(labels)
    if len(names) < 2:
        received = f"{names[0]!r} alone in {_place_of(file)}"
        raise checks.value_error("path", "two or more classes", received)
    naming.warn_case(_place_of(file), names)
    return tuple(names)


def _numbers(
    file: pathlib.Path, pairs: Sequence[tuple[int, str, str]], names: Sequence[str]
) -> np.ndarray:
    """(N,) class numbers."""
    index = {name: number for number, name in enumerate(names)}
    for number, _, label in pairs:
        if label not in index:
            shown = ", ".join(map(repr, names[:10]))
            fix = checks.near(label, names) or f"The training part has {shown}."
            received = f"{label!r} in {_line(file, number)}"
            raise checks.value_error("path", "labels of the training part", received, fix)
    return np.array([index[label] for _, _, label in pairs], np.int32)
