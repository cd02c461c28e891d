"""`Sections`: a result made of others, each under a heading."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tfkd.results import Grid, Lines, Result, plain

Section = Result | Mapping[str, Any] | str


@dataclasses.dataclass(frozen=True)
class Sections(Result):
    """Results under headings; JSON has them by heading, with `_` for spaces.

    Attributes:
        sections: heading → a result, names and values, or a sentence.

    Example:
        >>> from tfkd.cli.sections import Sections
        >>> print(Sections({"File": {"bytes": 1200}, "Notes": "None."}))
        File
        ----
        <BLANKLINE>
        bytes  1,200
        <BLANKLINE>
        Notes
        -----
        <BLANKLINE>
        None.
    """

    sections: Mapping[str, Section]

    def parts(self) -> Iterator[Grid | Lines | str]:
        """The parts of all sections, each behind its heading."""
        for heading, section in self.sections.items():
            yield Lines([heading, "-" * len(heading)])
            if isinstance(section, str):
                yield section
            elif isinstance(section, Result):
                yield from section.parts()
            else:
                yield Grid((), [(name, _shown(value)) for name, value in section.items()], left=2)

    def to_dict(self) -> dict[str, Any]:
        """The sections as JSON values."""
        return {name.lower().replace(" ", "_"): plain(s) for name, s in self.sections.items()}


def _shown(value: Any) -> Any:
    """A value in a row: lists as their first items, and how many there are."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, (list, tuple)):
        return "none" if value is None else value
    shown = ", ".join(str(one) for one in value[:8])
    return shown + (f", … ({len(value)})" if len(value) > 8 else "")


@dataclasses.dataclass(frozen=True)
class Listing(Result):
    """A table and the JSON values that it shows.

    Attributes:
        head: names of the columns.
        rows: values.
        left: number of leading columns that hold text.
        note: a sentence below the table.
    """

    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    left: int = 1
    note: str = ""

    def parts(self) -> Iterator[Grid | Lines | str]:
        """The table, and the note."""
        if self.rows:
            rows = [tuple(_shown(value) for value in row) for row in self.rows]
            yield Grid(self.head, rows, left=self.left)
        if self.note:
            yield self.note

    def to_dict(self) -> Any:
        """One dict a row."""
        keys = [name.lower().replace(" ", "_") for name in self.head]
        rows = [dict(zip(keys, plain(list(row)), strict=True)) for row in self.rows]
        return {"rows": rows, "note": self.note} if self.note else {"rows": rows}
